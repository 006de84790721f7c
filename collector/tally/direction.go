package tally

import (
	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// listeners are the LISTEN rows of one table.
type listeners struct {
	ports    kernelstat.PortSet             // on any address
	wildcard kernelstat.PortSet             // on all addresses, or on some that bound has no room for
	bound    map[tcptable.Endpoint]struct{} // at most MaxEndpoints
}

func newListeners() (all [tcptable.NumTables]listeners) {
	for t := range all {
		all[t].bound = make(map[tcptable.Endpoint]struct{})
	}
	return all
}

func (l *listeners) add(s *tcptable.Socket) {
	port := s.Local.Port
	l.ports.Add(port)
	switch _, known := l.bound[s.Local]; {
	case known:
	case s.Local.Addr.IP().IsUnspecified() || len(l.bound) == MaxEndpoints:
		l.wildcard.Add(port)
	default:
		l.bound[s.Local] = struct{}{}
	}
}

// accept reports whether there is a listener for connections to a local address and port.
func (l *listeners) accept(local *tcptable.Endpoint) bool {
	switch {
	case !l.ports.Has(local.Port):
		return false
	case l.wildcard.Has(local.Port):
		return true
	}
	_, ok := l.bound[*local]
	return ok
}

// keep adds those of other listeners that are on these ports.
func (l *listeners) keep(others *listeners, ports *kernelstat.PortSet) {
	for i, word := range ports {
		l.ports[i] |= word
		l.wildcard[i] |= others.wildcard[i] & word
	}
	for at := range others.bound {
		if ports.Has(at.Port) && len(l.bound) < MaxEndpoints {
			l.bound[at] = struct{}{}
		}
	}
}

func (t *Tally) addListener(s *tcptable.Socket) {
	t.listeners[s.Table].add(s)
	t.listenerPort(s.Local.Port)
	t.queues.add(s)
	t.holdForAll(s)
}

// directionOf tells who connected to whom: a connection of a listener's port came
// in, unless it is only just sending its SYN. A listener takes connections of its
// own table only. It may have gone.
//
// What TPROXY hands to a listener keeps the address and port the client asked for,
// and has the listener's IP_TRANSPARENT. A transparent proxy's own connections have
// it as well, but a port of the pool, unless the proxy chose the client's.
func (t *Tally) directionOf(s *tcptable.Socket) snapshot.Direction {
	port := s.Local.Port
	switch {
	case s.State == tcptable.SynRecv:
		return snapshot.Inbound
	case s.State == tcptable.SynSent:
		if t.pool != nil && t.pool.Ports.Has(port) {
			t.former.clients.Add(port)
		}
		return snapshot.Outbound
	case s.Transparent && t.pool != nil && !t.pool.Ports.Has(port),
		t.listeners[s.Table].accept(&s.Local), t.former.accepted(s):
		return snapshot.Inbound
	}
	return snapshot.Outbound
}
