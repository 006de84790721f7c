package tally

import (
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tcptable"
)

// former are the listeners of earlier walks, for connections that they have left behind: a
// server that closes its listener first, or has ended, does not turn them into connections
// that went out. It keeps listeners and ports, no rows, and those only as long as there are rows.
//
// A port of the pool may be a client's as soon as these have gone, between two walks. So it
// is kept for two lengths of TIME_WAIT at most, and not once connect(2) has got it.
type former struct {
	listeners [tcptable.NumTables]listeners
	seen      time.Time            // when the walk began that saw those that are not gone
	gone      map[uint16]time.Time // by port, when the walk began that saw one last
	spent     kernelstat.PortSet   // of gone ones that have left nothing but TIME_WAITs

	// Of the walk under way.
	used    [tcptable.NumTables]kernelstat.PortSet // they have left connections
	live    kernelstat.PortSet                     // among these some that are not in TIME_WAIT
	clients kernelstat.PortSet                     // of the pool, in SYN_SENT
}

func newFormer() *former {
	return &former{listeners: newListeners(), gone: make(map[uint16]time.Time)}
}

// begin begins a walk, and returns the ports of the pool that connections of former listeners
// hold, if there still are some.
func (f *former) begin(now time.Time, pool *kernelstat.Pool) (held kernelstat.PortSet) {
	f.used, f.live, f.clients = [tcptable.NumTables]kernelstat.PortSet{}, kernelstat.PortSet{}, kernelstat.PortSet{}
	if pool == nil {
		return held
	}
	tooLong := func(seen time.Time) bool { return now.Sub(seen) > 2*pool.TimeWait }
	all := tooLong(f.seen)
	for t := range f.listeners {
		ports := &f.listeners[t].ports
		for i := range ports {
			if all {
				ports[i] &^= pool.Ports[i]
			}
			held[i] |= ports[i] & pool.Ports[i]
		}
	}
	for port, seen := range f.gone {
		if pool.Ports.Has(port) && tooLong(seen) {
			held.Remove(port)
			for t := range f.listeners {
				f.listeners[t].ports.Remove(port)
			}
		}
	}
	return held
}

// accepted reports whether a connection is one that a former listener has accepted. What is
// not in TIME_WAIT can't be, where nothing but TIME_WAITs was left before.
func (f *former) accepted(s *tcptable.Socket) bool {
	live := s.State != tcptable.TimeWait
	if !f.listeners[s.Table].accept(&s.Local) || live && f.spent.Has(s.Local.Port) {
		return false
	}
	f.used[s.Table].Add(s.Local.Port)
	if live {
		f.live.Add(s.Local.Port)
	}
	return true
}

// end ends a whole walk that began then and saw these listeners: now they are former ones. It
// leaves others in their place, whose memory may be used again.
func (f *former) end(begun time.Time, seen *[tcptable.NumTables]listeners) {
	var kept kernelstat.PortSet
	for t := range f.used {
		for i := range kept {
			f.used[t][i] &^= f.clients[i]
			kept[i] |= f.used[t][i]
		}
	}
	for port := range f.gone {
		if !kept.Has(port) {
			delete(f.gone, port)
		}
	}
	for port := range kept.All() {
		if _, known := f.gone[port]; !known {
			f.gone[port] = f.seen
		}
	}
	if len(f.gone) > 0 {
		for t := range seen {
			seen[t].keep(&f.listeners[t], &f.used[t])
		}
	}
	for i := range kept {
		f.spent[i] = kept[i] &^ f.live[i]
	}
	f.listeners, *seen = *seen, f.listeners
	f.seen = begun
}
