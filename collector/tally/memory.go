package tally

import (
	"maps"
	"slices"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tcptable"
)

// maxRemembered is how many listeners of a table are in a Memory.
const maxRemembered = 1 << 10

// Memory is what is remembered of a namespace's listeners between two walks, so that one
// Tally can count many namespaces. It takes little room, and does not change.
type Memory struct {
	listeners [tcptable.NumTables]struct {
		wildcard []uint16
		bound    []tcptable.Endpoint
	}
	seen  time.Time
	gone  map[uint16]time.Time
	spent []uint16
}

// Remember returns what the next Count of the same namespace is to Recall. Of the last
// one, there is nothing more to be had then.
func (t *Tally) Remember() *Memory {
	if t.whole {
		t.former.end(t.begun, &t.listeners)
		t.whole = false
	}
	f := t.former
	m := &Memory{seen: f.seen, gone: maps.Clone(f.gone), spent: slices.Collect(f.spent.All())}
	for of := range f.listeners {
		l := &m.listeners[of]
		for port := range f.listeners[of].wildcard.All() {
			if len(l.wildcard) < maxRemembered {
				l.wildcard = append(l.wildcard, port)
			}
		}
		for at := range f.listeners[of].bound {
			if len(l.bound) < maxRemembered {
				l.bound = append(l.bound, at)
			}
		}
	}
	return m
}

// Recall has the next Count go on from what is remembered; with nil it is the first one of
// a namespace.
func (t *Tally) Recall(m *Memory) {
	t.whole = false
	f := t.former
	for of := range f.listeners {
		bound := f.listeners[of].bound
		clear(bound)
		f.listeners[of] = listeners{bound: bound}
	}
	clear(f.gone)
	f.seen, f.spent = time.Time{}, kernelstat.PortSet{}
	if m == nil {
		return
	}
	f.seen = m.seen
	maps.Copy(f.gone, m.gone)
	for _, port := range m.spent {
		f.spent.Add(port)
	}
	for of := range m.listeners {
		l := &f.listeners[of]
		for _, port := range m.listeners[of].wildcard {
			l.ports.Add(port)
			l.wildcard.Add(port)
		}
		for _, at := range m.listeners[of].bound {
			l.ports.Add(at.Port)
			l.bound[at] = struct{}{}
		}
	}
}
