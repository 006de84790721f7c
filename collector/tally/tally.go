// Package tally counts the rows of the table of TCP sockets: by state, remote,
// destination, listener and port, in bounded memory and without an allocation per row.
package tally

import (
	"iter"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// MaxRemotes is how many remotes of a direction are told apart. Beyond, see counts.
const MaxRemotes = 1 << 17

// Tally counts the rows of one walk, each time of the same network namespace. It holds no
// row. It is not for concurrent use; its memory is used again by the next Count.
type Tally struct {
	pool         *kernelstat.Pool          // nil where it is not known
	dump         *Listening                // nil where sock_diag tells nothing
	prefix       [snapshot.NumFamilies]int // bits of a remote address that count
	wholeRemotes bool                      // all of them count

	rows        [tcptable.NumTables]uint64
	connections [snapshot.NumFamilies][snapshot.NumDirections]snapshot.States
	received    [snapshot.NumDirections]uint64 // bytes in the receive queues
	unsent      [snapshot.NumDirections]uint64 // bytes in the send queues
	orphans     uint64
	timers      [snapshot.NumDirections][tcptable.NumTimers]uint64
	unanswered  [snapshot.NumDirections]snapshot.States
	halfClosed  [snapshot.NumDirections]uint64
	timeWait    [snapshot.NumDirections]timeWaits

	remotes      [snapshot.NumDirections]*counts[tcptable.Addr]
	groups       groups
	destinations *counts[destination]
	devices      devices

	listeners     [tcptable.NumTables]listeners
	former        *former
	begun         time.Time
	whole         bool // the walk has ended, and well
	listenerPorts map[uint16]*listenerPort
	queues        *acceptQueues
	halfOpen      map[synQueue]uint64 // connections

	owned       *owned                             // nil where owners are not wanted
	sharedMinis map[sharedEndpoint]snapshot.States // at most MaxEndpoints

	held      kernelstat.PortSet // by any row
	outside   kernelstat.PortSet // not of the pool, of outbound rows
	heldPorts kernelstat.PortSet // of the pool, held whatever the destination: by LISTEN and Bound rows, or what former listeners have left
	locals    localPorts

	named []uint32 // the hashes of the destinations that Snapshot named
}

// unansweredFrom is how many retransmissions or probes in a row without an answer make a
// peer silent: one or two are lost on any network.
const unansweredFrom = 3

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

// New returns an empty tally that counts remote addresses by group and, those in none, by
// prefixes of so many bits.
func New(prefixIPv4, prefixIPv6 int, all ...Group) *Tally {
	t := &Tally{
		prefix:        [snapshot.NumFamilies]int{snapshot.IPv4: prefixIPv4, snapshot.IPv6: prefixIPv6},
		wholeRemotes:  prefixIPv4 == 32 && prefixIPv6 == 128,
		groups:        newGroups(all),
		destinations:  newCounts[destination](MaxDestinations),
		listeners:     newListeners(),
		former:        newFormer(),
		listenerPorts: make(map[uint16]*listenerPort),
		queues:        newAcceptQueues(),
		halfOpen:      make(map[synQueue]uint64),
	}
	t.destinations.gaveWay = t.addRemoteOf
	t.devices = newDevices(t.destinations)
	for d := range t.remotes {
		t.remotes[d] = newCounts[tcptable.Addr](MaxRemotes)
	}
	return t
}

// Count counts one walk of the table; what was counted before is forgotten, but for the
// listeners of whole walks, whose connections may be there when they are not. Rows are
// judged by these, the pool and the dump of listeners; both may be nil. After an
// error there is nothing to be had but Rows: half a table would look like a quiet
// machine.
func (t *Tally) Count(rows iter.Seq2[tcptable.Socket, error], p *kernelstat.Pool, l *Listening) error {
	t.reset(p, l)
	for s, err := range rows {
		if err != nil {
			return err
		}
		t.add(&s)
	}
	t.finish()
	return nil
}

// Rows returns how many rows of each table the last Count read.
func (t *Tally) Rows() [tcptable.NumTables]uint64 { return t.rows }

// ListenerPorts returns the ports that somebody listens on.
func (t *Tally) ListenerPorts() *kernelstat.PortSet {
	return t.listeners[tcptable.TCP].ports.Union(&t.listeners[tcptable.TCP6].ports)
}

// OutsidePorts returns the local ports of outbound connections that are not of the pool.
func (t *Tally) OutsidePorts() *kernelstat.PortSet { return &t.outside }

// reset forgets all rows; the next ones are judged by p and l.
func (t *Tally) reset(p *kernelstat.Pool, l *Listening) {
	if p != nil {
		t.locals.reset(p.Low, p.High)
	}
	clear(t.listenerPorts)
	t.queues.reset()
	clear(t.halfOpen)
	if t.whole {
		t.former.end(t.begun, &t.listeners)
	}
	now := time.Now()
	held := t.former.begin(now, p)
	for i := range t.listeners {
		clear(t.listeners[i].bound)
	}
	for _, remotes := range t.remotes {
		remotes.reset()
	}
	clear(t.groups.states)
	t.destinations.reset()
	t.devices.reset()
	if t.owned != nil {
		t.owned.reset()
		clear(t.sharedMinis)
	}
	*t = Tally{
		pool: p, dump: l, prefix: t.prefix, wholeRemotes: t.wholeRemotes, remotes: t.remotes, groups: t.groups,
		destinations: t.destinations, devices: t.devices,
		listenerPorts: t.listenerPorts, queues: t.queues, halfOpen: t.halfOpen, locals: t.locals, owned: t.owned, sharedMinis: t.sharedMinis, named: t.named,
		listeners: [tcptable.NumTables]listeners{{bound: t.listeners[tcptable.TCP].bound}, {bound: t.listeners[tcptable.TCP6].bound}},
		former:    t.former, begun: now, heldPorts: held,
	}
}

// add counts a row. LISTEN and Bound rows have to come before the others, and
// finish after the last.
func (t *Tally) add(s *tcptable.Socket) {
	t.rows[s.Table]++
	t.held.Add(s.Local.Port)
	family := familyOf(s.Local.Addr)
	if s.Kind == tcptable.Bound {
		t.holdForAll(s)
		return
	}
	if s.State == tcptable.Listen {
		if t.isOwned(s) {
			t.owned.add(s, snapshot.Inbound)
		}
		t.connections[family][snapshot.Inbound][tcptable.Listen]++
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
	waiting := dir == snapshot.Inbound &&
		(s.State == tcptable.Established || s.State == tcptable.CloseWait || s.State == tcptable.SynRecv)
	orphan := ownerless && !waiting
	if orphan {
		t.orphans++
	}
	silent := false
	if s.Kind == tcptable.Full && !orphan && s.State != tcptable.SynRecv && s.State != tcptable.Close {
		if s.Timer < tcptable.NumTimers {
			t.timers[dir][s.Timer]++
		}
		if s.State == tcptable.FinWait2 {
			t.halfClosed[dir]++
		}
		if silent = s.Unanswered >= unansweredFrom; silent {
			t.unanswered[dir][s.State]++
		}
	}

	var cgroup uint32
	isOwned := t.isOwned(s)
	if isOwned {
		cgroup = t.owned.add(s, dir)
	}
	pooled := t.pool != nil && t.pool.Ports.Has(s.Local.Port)
	if pooled {
		t.locals.hold(&s.Local)
	}
	if dir == snapshot.Inbound {
		t.addRemote(snapshot.Inbound, s.Remote.Addr, uint16(s.State), 1)
		l := t.listenerPort(s.Local.Port)
		l.States[s.State]++
		l.rows++
		switch {
		case ownerless && waiting && s.State != tcptable.SynRecv:
			l.Unaccepted[s.State]++
		case s.Kind != tcptable.Full && t.owned != nil:
			t.addMini(s, l)
		}
		if s.Kind == tcptable.Request {
			t.addHalfOpen(s)
		}
		return
	}
	label := uint16(s.State)
	if silent {
		label |= unanswered
	}
	to := destination{s.Local.Addr, s.Remote.Addr, s.Remote.Port}
	if isOwned {
		t.owned.addAlive(s.Cookie, t.destinations.hash(&to), cgroup)
	}
	switch {
	case !pooled:
		t.outside.Add(s.Local.Port)
		t.destinations.addLight(&to, label|unpooled)
		return
	case t.heldPorts.Has(s.Local.Port):
		label |= heldForAll
	case reuses(t.pool, s):
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
func (t *Tally) finish() {
	for i := range t.destinations.entries {
		t.addRemoteOf(&t.destinations.entries[i])
	}
	t.devices.findWorst()
	for i := range t.heldPorts {
		t.heldPorts[i] &= t.held[i] // what former listeners have left may have gone
	}
	t.whole = true
}

// addRemoteOf counts what a destination has for its remote, so that an outbound row
// costs one look-up and not two.
func (t *Tally) addRemoteOf(e *entry[destination]) {
	for label, rows := range t.destinations.labels(e) {
		t.addRemote(snapshot.Outbound, e.key.remote, label&stateBits, rows)
	}
}

// addRemote counts rows in a state for a remote.
func (t *Tally) addRemote(d snapshot.Direction, remote tcptable.Addr, state uint16, rows uint32) {
	key := t.remoteKey(remote)
	if group := t.groups.of(remote); group >= 0 {
		t.groups.states[group][d][state] += uint64(rows)
		t.remotes[d].addLight(&key, grouped)
		return
	}
	t.remotes[d].add(&key, state, rows)
}

// holdForAll notes that connect can use the port for no destination. A dual-stack
// socket on :: takes it on all IPv4 addresses too (ipv6_rcv_saddr_equal in
// net/ipv6/inet6_hashtables.c).
func (t *Tally) holdForAll(s *tcptable.Socket) {
	port := s.Local.Port
	if t.pool == nil || !t.pool.Ports.Has(port) {
		return
	}
	t.heldPorts.Add(port)
	t.locals.hold(&s.Local)
	if s.Local.Addr == anyAddr(snapshot.IPv6) && !s.V6Only && !(s.State == tcptable.Listen && t.dump != nil && t.dump.v6Only.Has(port)) {
		t.locals.hold(&tcptable.Endpoint{Addr: anyAddr(snapshot.IPv4), Port: port})
	}
}

// addHalfOpen counts a half-open connection for the listener that it waits for. One of TCP
// Fast Open, which is Full, waits in the accept queue.
func (t *Tally) addHalfOpen(s *tcptable.Socket) {
	_, bound := t.listeners[s.Table].bound[s.Local]
	t.halfOpen[synQueueOf(s.Table, s.Local, !bound)]++
}

func (t *Tally) listenerPort(port uint16) *listenerPort {
	l := t.listenerPorts[port]
	if l == nil {
		l = new(listenerPort)
		t.listenerPorts[port] = l
	}
	return l
}

// reuses reports whether connect(2) may take the port of s over right now for
// a connection between the same ends, as tcp_twsk_unique in net/ipv4/tcp_ipv4.c
// decides. Whether timestamps were on when s was connected is not in the table,
// so the sysctl of today stands for it; nor is whether s was bound to the
// loopback device.
func reuses(p *kernelstat.Pool, s *tcptable.Socket) bool {
	if s.State != tcptable.TimeWait || !p.Timestamps {
		return false
	}
	switch p.ReuseMode {
	case 1:
	case 2:
		if !s.Local.Addr.IP().IsLoopback() && !s.Remote.Addr.IP().IsLoopback() {
			return false
		}
	default:
		return false
	}
	// The age is below 0 where TIME_WAIT lasted longer when s came into it.
	return p.TimeWait-s.TimerLeft > p.ReuseDelay
}

// remoteKey returns the address, or the block it is counted under.
func (t *Tally) remoteKey(remote tcptable.Addr) tcptable.Addr {
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
