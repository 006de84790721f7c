package collector

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"

	"timewait_exporter/collector/tcptable"
)

const (
	// maxEndpoints is how many endpoints of listeners are told apart.
	maxEndpoints = 1 << 14
	// localsPerPort is how many local IPs of a listening port have series of their own.
	localsPerPort = 20
)

// acceptQueue is what waits for accept(2) on the listening sockets of one local
// address and port. There are several with SO_REUSEPORT or SO_BINDTODEVICE, each
// with a queue of its own, and a handshake goes to one of them, full or not.
type acceptQueue struct {
	sockets, length, limit uint64
	// fill is how full the fullest of them is, and full how many are at 1.
	fill float64
	full uint64
}

// add counts a LISTEN row. A queue is full when it is longer than the backlog
// (sk_acceptq_is_full in include/net/sock.h); it is much longer where a second
// listen(2) asked for less.
func (q *acceptQueue) add(s *tcptable.Socket) {
	length, room := uint64(s.RxQueue), uint64(s.Backlog)+1
	one := acceptQueue{sockets: 1, length: length, limit: uint64(s.Backlog), fill: min(1, ratio(length, room))}
	if length >= room {
		one.full = 1
	}
	q.merge(&one)
}

func (q *acceptQueue) merge(other *acceptQueue) {
	q.sockets += other.sockets
	q.length += other.length
	q.limit += other.limit
	q.fill = max(q.fill, other.fill)
	q.full += other.full
}

// acceptQueues are those of all listeners.
type acceptQueues struct {
	endpoints map[tcptable.Endpoint]acceptQueue // at most maxEndpoints
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
	if !known && len(a.endpoints) == maxEndpoints {
		q = a.others[s.Local.Port]
		q.add(s)
		a.others[s.Local.Port] = q
		return
	}
	q.add(s)
	a.endpoints[s.Local] = q
}

// listening is what sock_diag tells of listeners and /proc does not: lengths and
// limits of one moment, and who takes no IPv4.
type listening struct {
	queues *acceptQueues // nil where sock_diag tells nothing
	v6Only portSet       // whose listeners on :: take no IPv4
}

func readListening(ctx context.Context, diag *tcptable.SockDiag) (*listening, error) {
	l := &listening{queues: newAcceptQueues()}
	var dualStack portSet // SO_REUSEPORT allows both on one port
	for s, err := range diag.Listeners(ctx) {
		if err != nil {
			return nil, err
		}
		l.queues.add(&s)
		switch {
		case s.Local.Addr != anyAddr(ipv6):
		case s.V6Only:
			l.v6Only.add(s.Local.Port)
		default:
			dualStack.add(s.Local.Port)
		}
	}
	for i, ports := range dualStack {
		l.v6Only[i] &^= ports
	}
	return l, nil
}

// addTo exports the queues of the ports that are named: each local IP of a port up to
// localsPerPort in order of address, and what the rest have together. Without
// limits only what the table of sockets tells.
func (a *acceptQueues) addTo(out *samples, netns string, named *portSet, limits bool) {
	var endpoints []tcptable.Endpoint
	for e := range a.endpoints {
		if named.has(e.Port) {
			endpoints = append(endpoints, e)
		}
	}
	slices.SortFunc(endpoints, func(a, b tcptable.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), bytes.Compare(a.Addr[:], b.Addr[:]))
	})
	rest := maps.Clone(a.others)
	var locals int // of the port, so far
	for i, e := range endpoints {
		if i == 0 || e.Port != endpoints[i-1].Port {
			locals = 0
		}
		q := a.endpoints[e]
		if locals++; locals <= localsPerPort {
			q.addTo(out, netns, e.Addr.IP().String(), e.Port, limits)
			continue
		}
		sum := rest[e.Port]
		sum.merge(&q)
		rest[e.Port] = sum
	}
	for port, q := range rest {
		if named.has(port) {
			q.addTo(out, netns, other, port, limits)
		}
	}
}

func (q *acceptQueue) addTo(out *samples, netns, ip string, port uint16, limits bool) {
	labels := []string{netns, ip, strconv.Itoa(int(port))}
	out.add(listenerSockets, float64(q.sockets), labels...)
	out.add(listenerAcceptQueue, float64(q.length), labels...)
	if !limits {
		return
	}
	out.add(listenerAcceptQueueLimit, float64(q.limit), labels...)
	out.add(listenerAcceptQueueFill, q.fill, labels...)
	out.add(listenerFullSockets, float64(q.full), labels...)
}

// listenerPort counts the inbound rows of a local port, without the listeners.
type listenerPort struct {
	states     [tcptable.NumStates]uint64
	unaccepted [tcptable.NumStates]uint64 // of these, what no program has accepted
	rows       uint64
}

// addListeners names the ports with most connections. The queues are theirs, whatever
// is in them: a series must not come and go with what it counts.
func (t *tally) addListeners(out *samples, netns string, n int, queues *acceptQueues) {
	var named portSet
	for _, port := range largest(maps.Keys(t.listenerPorts), n, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(t.listenerPorts[b].rows, t.listenerPorts[a].rows), cmp.Compare(a, b))
	}) {
		named.add(port)
		t.listenerPorts[port].addTo(out, netns, strconv.Itoa(int(port)))
	}
	var rest listenerPort
	for port, l := range t.listenerPorts {
		if named.has(port) {
			continue
		}
		for s := range l.states {
			rest.states[s] += l.states[s]
			rest.unaccepted[s] += l.unaccepted[s]
		}
	}
	if named.len() < len(t.listenerPorts) {
		rest.addTo(out, netns, other)
	}
	if queues != nil {
		queues.addTo(out, netns, &named, true)
	} else {
		t.acceptQueues.addTo(out, netns, &named, false)
	}
}

func (l *listenerPort) addTo(out *samples, netns, port string) {
	for s, rows := range l.states {
		// What an alert compares with a limit is there at 0 too.
		if s := tcptable.State(s); rows > 0 || s == tcptable.SynRecv {
			out.add(listenerConnections, float64(rows), netns, port, s.String())
		}
	}
	for _, s := range []tcptable.State{tcptable.Established, tcptable.CloseWait} {
		out.add(listenerUnaccepted, float64(l.unaccepted[s]), netns, port, s.String())
	}
}
