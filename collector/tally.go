package collector

import (
	"net/netip"
	"time"

	"timewait_exporter/collector/tcptable"
)

// direction of a connection, seen from this host.
type direction uint8

const (
	inbound direction = iota
	outbound
	numDirections
)

func (d direction) String() string {
	if d == inbound {
		return "inbound"
	}
	return "outbound"
}

// family of the addresses of a socket, whichever table lists it.
type family uint8

const (
	ipv4 family = iota
	ipv6
	numFamilies
)

func (f family) String() string {
	if f == ipv4 {
		return "ipv4"
	}
	return "ipv6"
}

// What a tally keeps exactly. Beyond, see counts and tally.localPorts.
const (
	maxRemotes      = 1 << 17 // in each direction
	maxDestinations = 1 << 16
	maxLocals       = 1 << 10

	maxSpare = 1 << 6 // port sets kept for the next walk
)

// address is an IP address as a key: 16 bytes, IPv4 mapped into IPv6.
type address [16]byte

func (a address) unmap() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// destination is what connect(2) needs a free local port for.
type destination struct {
	local, remote address
	port          uint16
}

// The label under which a destination's rows are counted is their state with
// these bits. Only a row with none of them keeps connect away from a port of the
// pool that is otherwise free.
const (
	stateBits = 0x0f
	unpooled  = 0x10 // the local port is not in the pool
	listened  = 0x20 // a listener holds the local port too
	reusable  = 0x40 // connect may take the port over
)

// tally counts the rows of one walk. It holds no row. It is not for concurrent
// use; its memory is used again after reset.
type tally struct {
	pool   *pool  // nil where it is not known
	prefix [2]int // bits of a remote address that count, by family

	rows        [tcptable.NumTables]uint64
	connections [numFamilies][numDirections][tcptable.NumStates]uint64
	received    [numDirections]uint64 // bytes in the receive queues
	unsent      [numDirections]uint64 // bytes in the send queues
	orphans     uint64
	timeWait    [numDirections]timerHistogram

	remotes      [numDirections]*counts[address]
	destinations *counts[destination]

	listeners     [tcptable.NumTables]listeners
	listenerPorts map[uint16]*listenerPort
	acceptQueues  map[netip.AddrPort]uint64

	usedPorts   portSet // of the pool, by any row
	listenPorts portSet // of the pool, by a LISTEN row
	locals      map[netip.Addr]*portSet
	lastLocal   netip.Addr // a key of locals, and its value: neighbours share it
	lastPorts   *portSet
	missedPorts uint64 // rows left out of locals
	spare       []*portSet
}

// listeners are the LISTEN rows of one table.
type listeners struct {
	ports    portSet // on any address
	wildcard portSet // on all addresses
	bound    map[netip.AddrPort]struct{}
}

// listenerPort counts the inbound rows of a local port, without the listeners.
type listenerPort struct {
	states     [tcptable.NumStates]uint64
	rows       uint64
	unaccepted uint64
}

// timerBuckets are the upper bounds of the timer histogram, in seconds.
var timerBuckets = [...]uint64{1, 5, 10, 20, 30, 40, 50, 60}

// timerHistogram counts timers by bucket; the last one has no bound.
type timerHistogram struct {
	buckets [len(timerBuckets) + 1]uint64
	sum     time.Duration
}

func (h *timerHistogram) observe(left time.Duration) {
	i := 0
	for i < len(timerBuckets) && left > time.Duration(timerBuckets[i])*time.Second {
		i++
	}
	h.buckets[i]++
	h.sum += left
}

// newTally returns an empty tally that counts remote addresses by prefixes of so
// many bits.
func newTally(prefixIPv4, prefixIPv6 int) *tally {
	t := &tally{
		prefix:        [numFamilies]int{ipv4: prefixIPv4, ipv6: prefixIPv6},
		destinations:  newCounts[destination](maxDestinations),
		listenerPorts: make(map[uint16]*listenerPort),
		acceptQueues:  make(map[netip.AddrPort]uint64),
		locals:        make(map[netip.Addr]*portSet),
	}
	for d := range t.remotes {
		t.remotes[d] = newCounts[address](maxRemotes)
	}
	for i := range t.listeners {
		t.listeners[i].bound = make(map[netip.AddrPort]struct{})
	}
	return t
}

// reset forgets all rows; the next ones are judged by p.
func (t *tally) reset(p *pool) {
	for _, ports := range t.locals {
		if len(t.spare) < maxSpare {
			t.spare = append(t.spare, ports)
		}
	}
	clear(t.locals)
	clear(t.listenerPorts)
	clear(t.acceptQueues)
	for i := range t.listeners {
		clear(t.listeners[i].bound)
	}
	for _, remotes := range t.remotes {
		remotes.reset()
	}
	t.destinations.reset()
	*t = tally{
		pool: p, prefix: t.prefix, remotes: t.remotes, destinations: t.destinations,
		listenerPorts: t.listenerPorts, acceptQueues: t.acceptQueues, locals: t.locals, spare: t.spare,
		listeners: [tcptable.NumTables]listeners{{bound: t.listeners[tcptable.TCP].bound}, {bound: t.listeners[tcptable.TCP6].bound}},
	}
}

// add counts a row. All LISTEN rows have to come before the others.
func (t *tally) add(s *tcptable.Socket) {
	t.rows[s.Table]++
	family := familyOf(s.Local.Addr())
	if s.State == tcptable.Listen {
		t.connections[family][inbound][tcptable.Listen]++
		t.addListener(s)
		return
	}
	dir := t.directionOf(s)
	t.connections[family][dir][s.State]++
	t.received[dir] += uint64(s.RxQueue)
	t.unsent[dir] += uint64(s.TxQueue)
	if s.State == tcptable.TimeWait {
		t.timeWait[dir].observe(s.TimerLeft)
	}

	ownerless := s.Kind == tcptable.Full && s.Inode == 0
	waiting := dir == inbound &&
		(s.State == tcptable.Established || s.State == tcptable.CloseWait || s.State == tcptable.SynRecv)
	if ownerless && !waiting {
		t.orphans++
	}

	t.remotes[dir].add(t.remoteKey(s.Remote.Addr()), uint8(s.State))
	pooled := t.pool != nil && t.pool.ports.has(s.Local.Port())
	if pooled {
		t.holdPort(s.Local)
	}
	if dir == inbound {
		l := t.listenerPort(s.Local.Port())
		l.states[s.State]++
		l.rows++
		if ownerless && waiting && s.State != tcptable.SynRecv {
			l.unaccepted++
		}
		return
	}
	label := uint8(s.State)
	switch {
	case !pooled:
		label |= unpooled
	case t.listenPorts.has(s.Local.Port()):
		label |= listened
	case t.pool.reusable(s):
		label |= reusable
	}
	t.destinations.add(destination{s.Local.Addr().As16(), s.Remote.Addr().As16(), s.Remote.Port()}, label)
}

func (t *tally) addListener(s *tcptable.Socket) {
	l := &t.listeners[s.Table]
	port := s.Local.Port()
	l.ports.add(port)
	if s.Local.Addr().IsUnspecified() {
		l.wildcard.add(port)
	} else {
		l.bound[s.Local] = struct{}{}
	}
	t.listenerPort(port)
	t.acceptQueues[s.Local] += uint64(s.RxQueue)
	if t.pool != nil && t.pool.ports.has(port) {
		t.listenPorts.add(port)
		t.holdPort(s.Local)
	}
}

// directionOf tells who connected to whom: a connection of a listener's port came
// in. A listener takes connections of its own table only.
func (t *tally) directionOf(s *tcptable.Socket) direction {
	l := &t.listeners[s.Table]
	port := s.Local.Port()
	switch {
	case s.State == tcptable.SynRecv:
		return inbound
	case !l.ports.has(port):
		return outbound
	case l.wildcard.has(port):
		return inbound
	}
	if _, ok := l.bound[s.Local]; ok {
		return inbound
	}
	return outbound
}

func (t *tally) listenerPort(port uint16) *listenerPort {
	l := t.listenerPorts[port]
	if l == nil {
		l = new(listenerPort)
		t.listenerPorts[port] = l
	}
	return l
}

// holdPort notes that a row holds a port of the pool.
func (t *tally) holdPort(local netip.AddrPort) {
	t.usedPorts.add(local.Port())
	if ports := t.localPorts(local.Addr()); ports != nil {
		ports.add(local.Port())
	} else {
		t.missedPorts++
	}
}

// localPorts returns the set of ports of a local address, nil when it is one too
// many.
func (t *tally) localPorts(local netip.Addr) *portSet {
	if t.lastPorts != nil && t.lastLocal == local {
		return t.lastPorts
	}
	ports := t.locals[local]
	if ports == nil {
		if len(t.locals) == maxLocals {
			return nil
		}
		if n := len(t.spare); n > 0 {
			ports, t.spare = t.spare[n-1], t.spare[:n-1]
			*ports = portSet{}
		} else {
			ports = new(portSet)
		}
		t.locals[local] = ports
	}
	t.lastLocal, t.lastPorts = local, ports
	return ports
}

// remoteKey returns the address, or the block it is counted under.
func (t *tally) remoteKey(remote netip.Addr) address {
	if bits := t.prefix[familyOf(remote)]; bits < remote.BitLen() {
		block, _ := remote.Prefix(bits) // fails only when there are more bits than BitLen
		remote = block.Addr()
	}
	return remote.As16()
}

// remoteName returns the label of a key that remoteKey made.
func (t *tally) remoteName(key address) string {
	remote := key.unmap()
	if bits := t.prefix[familyOf(remote)]; bits < remote.BitLen() {
		return netip.PrefixFrom(remote, bits).String()
	}
	return remote.String()
}

func familyOf(addr netip.Addr) family {
	if addr.Is4() {
		return ipv4
	}
	return ipv6
}
