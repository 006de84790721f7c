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

// What a tally keeps exactly. Beyond, see counts and localPorts.
const (
	maxRemotes      = 1 << 17 // in each direction
	maxDestinations = 1 << 16
	maxLocals       = 1 << 10
)

// destination is what connect(2) needs a free local port for.
type destination struct {
	local, remote tcptable.Addr
	port          uint16
}

// The label under which a destination's rows are counted is their state with
// these bits. Only a row with none of them keeps connect away from a port of the
// pool that is otherwise free.
const (
	stateBits  = 0x0f
	unpooled   = 0x10 // the local port is not in the pool
	heldForAll = 0x20 // a listener, or an idle socket, holds the local port too
	reusable   = 0x40 // connect may take the port over
)

// tally counts the rows of one walk. It holds no row. It is not for concurrent
// use; its memory is used again after reset.
type tally struct {
	pool         *pool            // nil where it is not known
	prefix       [numFamilies]int // bits of a remote address that count
	wholeRemotes bool             // all of them count

	rows        [tcptable.NumTables]uint64
	connections [numFamilies][numDirections][tcptable.NumStates]uint64
	received    [numDirections]uint64 // bytes in the receive queues
	unsent      [numDirections]uint64 // bytes in the send queues
	orphans     uint64
	timeWait    [numDirections]timeWaits

	remotes      [numDirections]*counts[tcptable.Addr]
	destinations *counts[destination]
	devices      devices

	listeners     [tcptable.NumTables]listeners
	listenerPorts map[uint16]*listenerPort
	acceptQueues  *acceptQueues

	v6Only    portSet // ports whose listeners on :: take no IPv4, which rows of /proc don't tell
	heldPorts portSet // of the pool, held whatever the destination: by LISTEN and Bound rows
	locals    localPorts
}

// listeners are the LISTEN rows of one table.
type listeners struct {
	ports    portSet                        // on any address
	wildcard portSet                        // on all addresses, or on some that bound has no room for
	bound    map[tcptable.Endpoint]struct{} // at most maxEndpoints
}

// timeWaitBounds are the upper bounds of the buckets for the time that connections
// in TIME_WAIT have left.
var timeWaitBounds = [...]time.Duration{
	1 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second,
	30 * time.Second, 40 * time.Second, 50 * time.Second, 60 * time.Second,
}

// timeWaits counts connections in TIME_WAIT by bucket; the last one has what is
// above all bounds.
type timeWaits [len(timeWaitBounds) + 1]uint64

func (w *timeWaits) add(left time.Duration) {
	i := 0
	for i < len(timeWaitBounds) && left > timeWaitBounds[i] {
		i++
	}
	w[i]++
}

// newTally returns an empty tally that counts remote addresses by prefixes of so
// many bits.
func newTally(prefixIPv4, prefixIPv6 int) *tally {
	t := &tally{
		prefix:        [numFamilies]int{ipv4: prefixIPv4, ipv6: prefixIPv6},
		wholeRemotes:  prefixIPv4 == 32 && prefixIPv6 == 128,
		destinations:  newCounts[destination](maxDestinations),
		devices:       newDevices(),
		listenerPorts: make(map[uint16]*listenerPort),
		acceptQueues:  newAcceptQueues(),
	}
	t.destinations.gaveWay = t.addRemote
	for d := range t.remotes {
		t.remotes[d] = newCounts[tcptable.Addr](maxRemotes)
	}
	for i := range t.listeners {
		t.listeners[i].bound = make(map[tcptable.Endpoint]struct{})
	}
	return t
}

// reset forgets all rows; the next ones are judged by p.
func (t *tally) reset(p *pool) {
	if p != nil {
		t.locals.reset(p.low, p.high)
	}
	clear(t.listenerPorts)
	t.acceptQueues.reset()
	for i := range t.listeners {
		clear(t.listeners[i].bound)
	}
	for _, remotes := range t.remotes {
		remotes.reset()
	}
	t.destinations.reset()
	t.devices.reset()
	*t = tally{
		pool: p, prefix: t.prefix, wholeRemotes: t.wholeRemotes, remotes: t.remotes, destinations: t.destinations, devices: t.devices,
		listenerPorts: t.listenerPorts, acceptQueues: t.acceptQueues, locals: t.locals,
		listeners: [tcptable.NumTables]listeners{{bound: t.listeners[tcptable.TCP].bound}, {bound: t.listeners[tcptable.TCP6].bound}},
	}
}

// add counts a row. LISTEN and Bound rows have to come before the others, and
// finish after the last.
func (t *tally) add(s *tcptable.Socket) {
	t.rows[s.Table]++
	family := familyOf(s.Local.Addr)
	if s.Kind == tcptable.Bound {
		t.holdForAll(s)
		return
	}
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
		t.timeWait[dir].add(s.TimerLeft)
	}

	ownerless := s.Kind == tcptable.Full && s.Inode == 0
	waiting := dir == inbound &&
		(s.State == tcptable.Established || s.State == tcptable.CloseWait || s.State == tcptable.SynRecv)
	if ownerless && !waiting {
		t.orphans++
	}

	pooled := t.pool != nil && t.pool.ports.has(s.Local.Port)
	if pooled {
		t.locals.hold(&s.Local)
	}
	if dir == inbound {
		remote := t.remoteKey(s.Remote.Addr)
		t.remotes[inbound].add(&remote, uint8(s.State), 1)
		l := t.listenerPort(s.Local.Port)
		l.states[s.State]++
		l.rows++
		if ownerless && waiting && s.State != tcptable.SynRecv {
			l.unaccepted[s.State]++
		}
		return
	}
	label := uint8(s.State)
	to := destination{s.Local.Addr, s.Remote.Addr, s.Remote.Port}
	switch {
	case !pooled:
		t.destinations.addLight(&to, label|unpooled)
		return
	case t.heldPorts.has(s.Local.Port):
		label |= heldForAll
	case t.pool.reusable(s):
		label |= reusable
	}
	row := t.devices.place(t.rows[tcptable.TCP] + t.rows[tcptable.TCP6])
	row.device, row.localPort, row.label = s.Device, s.Local.Port, label
	if s.Device != 0 {
		label |= onDevice
	}
	row.destination = t.destinations.add(&to, label, 1).hash
	if s.Device|t.devices.near != 0 {
		t.devices.compare(&to, row)
	}
}

// finish ends the walk.
func (t *tally) finish() {
	for i := range t.destinations.entries {
		t.addRemote(&t.destinations.entries[i])
	}
	for i := range t.devices.counts.entries {
		on := &t.devices.counts.entries[i]
		to := t.destinations.lookup(&on.key.destination)
		if to != nil && byBlocked(t.held(to, on), t.held(to, t.devices.worst[to])) < 0 {
			t.devices.worst[to] = on
		}
	}
}

// addRemote counts what a destination has for its remote, so that an outbound row
// costs one look-up and not two.
func (t *tally) addRemote(e *entry[destination]) {
	key := t.remoteKey(e.key.remote)
	for label, rows := range t.destinations.labels(e) {
		t.remotes[outbound].add(&key, label&stateBits, rows)
	}
}

func (t *tally) addListener(s *tcptable.Socket) {
	l := &t.listeners[s.Table]
	port := s.Local.Port
	l.ports.add(port)
	switch _, known := l.bound[s.Local]; {
	case known:
	case s.Local.Addr.IP().IsUnspecified() || len(l.bound) == maxEndpoints:
		l.wildcard.add(port)
	default:
		l.bound[s.Local] = struct{}{}
	}
	t.listenerPort(port)
	t.acceptQueues.add(s)
	t.holdForAll(s)
}

// holdForAll notes that connect can use the port for no destination. A dual-stack
// socket on :: takes it on all IPv4 addresses too (ipv6_rcv_saddr_equal in
// net/ipv6/inet6_hashtables.c).
func (t *tally) holdForAll(s *tcptable.Socket) {
	port := s.Local.Port
	if t.pool == nil || !t.pool.ports.has(port) {
		return
	}
	t.heldPorts.add(port)
	t.locals.hold(&s.Local)
	if s.Local.Addr == anyAddr(ipv6) && !s.V6Only && !(s.State == tcptable.Listen && t.v6Only.has(port)) {
		t.locals.hold(&tcptable.Endpoint{Addr: anyAddr(ipv4), Port: port})
	}
}

// directionOf tells who connected to whom: a connection of a listener's port came
// in, unless it is only just sending its SYN. A listener takes connections of its
// own table only.
//
// What TPROXY hands to a listener keeps the address and port the client asked for,
// and has the listener's IP_TRANSPARENT. A transparent proxy's own connections have
// it as well, but a port of the pool, unless the proxy chose the client's.
func (t *tally) directionOf(s *tcptable.Socket) direction {
	l := &t.listeners[s.Table]
	port := s.Local.Port
	switch {
	case s.State == tcptable.SynRecv:
		return inbound
	case s.State == tcptable.SynSent:
		return outbound
	case s.Transparent && t.pool != nil && !t.pool.ports.has(port):
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

// remoteKey returns the address, or the block it is counted under.
func (t *tally) remoteKey(remote tcptable.Addr) tcptable.Addr {
	if t.wholeRemotes {
		return remote
	}
	ip, bits := remote.IP(), t.prefix[familyOf(remote)]
	if bits == ip.BitLen() {
		return remote
	}
	block, _ := ip.Prefix(bits) // fails only with more bits than the address has
	return block.Addr().As16()
}

// remoteName returns the label of a key that remoteKey made.
func (t *tally) remoteName(key tcptable.Addr) string {
	ip := key.IP()
	if bits := t.prefix[familyOf(key)]; bits < ip.BitLen() {
		return netip.PrefixFrom(ip, bits).String()
	}
	return ip.String()
}

func familyOf(addr tcptable.Addr) family {
	if addr.Is4() {
		return ipv4
	}
	return ipv6
}
