package tally

import (
	"bytes"
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// MaxEndpoints is how many endpoints of listeners are told apart.
const MaxEndpoints = 1 << 14

// acceptQueue is one whose place its key tells.
type acceptQueue snapshot.AcceptQueue

// add counts a LISTEN row. A queue is full when it is longer than the backlog
// (sk_acceptq_is_full in include/net/sock.h); it is much longer where a second
// listen(2) asked for less.
func (q *acceptQueue) add(s *tcptable.Socket) {
	length, room := uint64(s.RxQueue), uint64(s.Backlog)+1
	if s.Cgroup != 0 && len(q.Cgroups) < ownersPerQueue && !slices.Contains(q.Cgroups, s.Cgroup) {
		q.Cgroups = append(q.Cgroups, s.Cgroup)
	}
	one := acceptQueue{Sockets: 1, Length: length, Limit: uint64(s.Backlog), Fill: min(1, float64(length)/float64(room))}
	if length >= room {
		one.Full = 1
	}
	q.merge(&one)
}

func (q *acceptQueue) merge(other *acceptQueue) {
	q.Sockets += other.Sockets
	q.Length += other.Length
	q.Limit += other.Limit
	q.Fill = max(q.Fill, other.Fill)
	q.Full += other.Full
}

// acceptQueues are those of all listeners.
type acceptQueues struct {
	endpoints map[tcptable.Endpoint]acceptQueue // at most MaxEndpoints
	others    map[uint16]acceptQueue            // by port, those of all further endpoints
}

func newAcceptQueues() *acceptQueues {
	return &acceptQueues{endpoints: make(map[tcptable.Endpoint]acceptQueue), others: make(map[uint16]acceptQueue)}
}

func (a *acceptQueues) reset() {
	clear(a.endpoints)
	clear(a.others)
}

// add counts a LISTEN row.
func (a *acceptQueues) add(s *tcptable.Socket) {
	q, known := a.endpoints[s.Local]
	if !known && len(a.endpoints) == MaxEndpoints {
		q = a.others[s.Local.Port]
		q.add(s)
		a.others[s.Local.Port] = q
		return
	}
	q.add(s)
	a.endpoints[s.Local] = q
}

// Listening is what sock_diag tells of listeners and /proc does not: lengths and limits
// of one moment, and who takes no IPv4. It does not change once it is made.
type Listening struct {
	queues *acceptQueues
	v6Only kernelstat.PortSet // whose listeners on :: take no IPv4
	shared kernelstat.PortSet // whose listeners are of several cgroups

	ports    kernelstat.PortSet // of all listeners
	synRooms map[synQueue]uint64
}

// synQueue is where the half-open connections of an endpoint's listeners are, in one
// table. Addresses are without zones, which only one source has.
type synQueue struct {
	table tcptable.Table
	local tcptable.Endpoint
}

// synQueueOf returns that of the listeners on an address, or of those on all.
func synQueueOf(t tcptable.Table, local tcptable.Endpoint, onAll bool) synQueue {
	local.Addr = local.Addr.WithoutZone()
	if onAll {
		local.Addr = tcptable.Addr{}
	}
	return synQueue{t, local}
}

// CountListening counts the LISTEN rows of a dump. A listener may have synLimit half-open
// connections at most; 0 if that is not known.
func CountListening(rows iter.Seq2[tcptable.Socket, error], synLimit uint64) (*Listening, error) {
	l := &Listening{queues: newAcceptQueues(), synRooms: make(map[synQueue]uint64)}
	var dualStack kernelstat.PortSet // SO_REUSEPORT allows both on one port
	for s, err := range rows {
		if err != nil {
			return nil, err
		}
		l.queues.add(&s)
		l.ports.Add(s.Local.Port)
		if synLimit > 0 {
			l.addSynRoom(&s, synLimit)
		}
		switch {
		case s.Local.Addr != anyAddr(snapshot.IPv6):
		case s.V6Only:
			l.v6Only.Add(s.Local.Port)
		default:
			dualStack.Add(s.Local.Port)
		}
	}
	for i, ports := range dualStack {
		l.v6Only[i] &^= ports
	}
	l.shared = l.queues.shared()
	return l, nil
}

// addSynRoom adds the half-open connections that a listener has room for: as many as its
// accept queue, one more than the backlog (inet_csk_reqsk_queue_is_full in
// include/net/inet_connection_sock.h; before Linux 6.14 no more than the backlog).
func (l *Listening) addSynRoom(s *tcptable.Socket, limit uint64) {
	q := synQueueOf(s.Table, s.Local, s.Local.Addr.IP().IsUnspecified())
	if _, known := l.synRooms[q]; !known && len(l.synRooms) >= MaxEndpoints {
		q = synQueueOf(s.Table, s.Local, true)
	}
	l.synRooms[q] += min(uint64(s.Backlog)+1, limit)
}

// listenerPort is a listener, whose port its key tells.
type listenerPort struct {
	snapshot.Listener
	rows  uint64
	minis snapshot.States // those that are minisocks or half open
}

// fillSynQueues tells of each port's fullest SYN queue.
func (t *Tally) fillSynQueues(listeners []snapshot.Listener) {
	if len(t.dump.synRooms) == 0 {
		return // the limit is not known
	}
	fill := make(map[uint16]float64)
	for q, rows := range t.halfOpen {
		if room := t.dump.synRooms[q]; room > 0 { // else it has only just come, or gone
			fill[q.local.Port] = max(fill[q.local.Port], min(ratio(rows, room), 1))
		}
	}
	for i := range listeners {
		l := &listeners[i]
		l.SynFill, l.HasSynFill = fill[l.Port], t.dump.ports.Has(l.Port)
	}
}

// of returns the queues of the ports that are named: each local IP of a port up to
// queuesPerPort in order of address, and what the rest have together.
func (a *acceptQueues) of(named *kernelstat.PortSet) (all []snapshot.AcceptQueue) {
	var endpoints []tcptable.Endpoint
	for e := range a.endpoints {
		if named.Has(e.Port) {
			endpoints = append(endpoints, e)
		}
	}
	slices.SortFunc(endpoints, func(a, b tcptable.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), bytes.Compare(a.Addr[:], b.Addr[:]))
	})
	rest := maps.Clone(a.others)
	var before int // of the port
	for i, e := range endpoints {
		if i == 0 || e.Port != endpoints[i-1].Port {
			before = 0
		}
		q := a.endpoints[e]
		if before++; before <= queuesPerPort {
			all = append(all, q.at(e.Addr.IP(), e.Port))
			continue
		}
		sum := rest[e.Port]
		sum.merge(&q)
		rest[e.Port] = sum
	}
	for port, q := range rest {
		if named.Has(port) {
			all = append(all, q.at(netip.Addr{}, port))
		}
	}
	return all
}

func (q *acceptQueue) at(ip netip.Addr, port uint16) snapshot.AcceptQueue {
	named := snapshot.AcceptQueue(*q)
	named.LocalIP, named.Port = ip, port
	return named
}
