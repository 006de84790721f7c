package tally

import (
	"hash/maphash"
	"iter"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const (
	// MaxCgroups is how many cgroups are told apart; the sockets of others are nobody's.
	MaxCgroups = 1 << 14
	// maxAlive is how many live outbound sockets of a walk are kept to be told by
	// destination. Past it, destinations have no owners.
	maxAlive = 1 << 18
	// maxCloseWaits is how many sockets in CLOSE_WAIT are told apart. The age of
	// others is no more than what the kernel says.
	maxCloseWaits = 1 << 16
	// ownersPerQueue is how many cgroups may have an endpoint's LISTEN sockets.
	ownersPerQueue = 20
)

// owned counts the live sockets of a walk by cgroup. The rows of /proc tell no cgroup, so
// then they are of a dump by CountLive.
type owned struct {
	index   map[uint64]uint32 // by id
	last    uint32            // the last row's
	cgroups []cgroup          // the first is of nobody

	alive     []aliveSocket
	uncounted bool // there were more

	closeWaits []closeWait
	silent     bool // sock_diag told no cgroup of a live socket
}

// cgroup has the live sockets of a cgroup.
type cgroup struct {
	id         uint64 // 0 if it is not known
	states     [snapshot.NumDirections]snapshot.States
	unaccepted snapshot.States
	closeWaits snapshot.CloseWaits // those that are not in owned.closeWaits
}

// aliveSocket is a live outbound socket.
type aliveSocket struct {
	cookie      uint64
	destination uint32 // its hash
	cgroup      uint32 // index
}

// closeWait is an accepted socket in CLOSE_WAIT.
type closeWait struct {
	cookie uint64
	age    time.Duration // at least
	cgroup uint32        // index
}

func newOwned() *owned {
	o := &owned{index: make(map[uint64]uint32)}
	o.reset()
	return o
}

// reset forgets all rows. As counts.reset it keeps no memory that was far too much.
func (o *owned) reset() {
	const few = 1 << 10
	if cap(o.alive) > few && len(o.alive) < cap(o.alive)/8 {
		o.alive = nil
	}
	if cap(o.closeWaits) > few && len(o.closeWaits) < cap(o.closeWaits)/8 {
		o.closeWaits = nil
	}
	if cap(o.cgroups) > few && len(o.cgroups) < cap(o.cgroups)/8 {
		o.index, o.cgroups = make(map[uint64]uint32), nil
	}
	clear(o.index)
	o.cgroups = append(o.cgroups[:0], cgroup{})
	o.alive, o.closeWaits, o.uncounted, o.last, o.silent = o.alive[:0], o.closeWaits[:0], false, 0, false
}

func (o *owned) cgroup(id uint64) uint32 {
	if o.cgroups[o.last].id == id {
		return o.last
	}
	o.last = o.find(id)
	return o.last
}

func (o *owned) find(id uint64) uint32 {
	if i, known := o.index[id]; known {
		return i
	}
	if id == 0 || len(o.cgroups) == MaxCgroups {
		return 0
	}
	i := uint32(len(o.cgroups))
	o.cgroups = append(o.cgroups, cgroup{id: id})
	o.index[id] = i
	return i
}

// add counts a live socket.
func (o *owned) add(s *tcptable.Socket, dir snapshot.Direction) (cgroup uint32) {
	o.silent = o.silent || s.Cgroup == 0
	cgroup = o.cgroup(s.Cgroup)
	c := &o.cgroups[cgroup]
	c.states[dir][s.State]++
	switch {
	case s.State != tcptable.CloseWait && s.State != tcptable.Established:
	case s.Inode == 0 && dir == snapshot.Inbound:
		c.unaccepted[s.State]++
	case s.Inode == 0 || s.State == tcptable.Established:
	case s.Cookie == 0 || len(o.closeWaits) == maxCloseWaits:
		c.closeWaits.Add(s.LastAck)
	default:
		o.closeWaits = append(o.closeWaits, closeWait{s.Cookie, s.LastAck, cgroup})
	}
	return cgroup
}

// isOwned reports whether a row is a live socket of sock_diag's, with its cgroup if the kernel
// tells it.
func (t *Tally) isOwned(s *tcptable.Socket) bool {
	return s.Cookie != 0 && s.Kind == tcptable.Full && t.owned != nil
}

func (o *owned) addAlive(cookie uint64, destination, cgroup uint32) {
	if len(o.alive) == maxAlive {
		o.uncounted = true
		return
	}
	o.alive = append(o.alive, aliveSocket{cookie, destination, cgroup})
}

// CountOwners has rows counted by cgroup too, from the next Count on.
func (t *Tally) CountOwners() {
	t.owned, t.sharedMinis = newOwned(), make(map[sharedEndpoint]snapshot.States)
}

// CountLive counts by cgroup the rows of a dump of live sockets, which has LISTEN rows, after
// Count has counted a table that tells no cgroups.
func (t *Tally) CountLive(rows iter.Seq2[tcptable.Socket, error]) error {
	t.owned.reset()
	for s, err := range rows {
		if err != nil {
			return err
		}
		s.Transparent = false // as /proc, which tells no zones either
		s.Local.Addr, s.Remote.Addr = s.Local.Addr.WithoutZone(), s.Remote.Addr.WithoutZone()
		if s.State == tcptable.Listen {
			t.owned.add(&s, snapshot.Inbound)
			continue
		}
		dir := t.directionOf(&s)
		cgroup := t.owned.add(&s, dir)
		if dir == snapshot.Outbound {
			to := destination{s.Local.Addr, s.Remote.Addr, s.Remote.Port}
			t.owned.addAlive(s.Cookie, t.destinations.hash(&to), cgroup)
		}
	}
	return nil
}

// TellsNoCgroups reports whether there were live sockets, and sock_diag told no cgroup of any.
func (t *Tally) TellsNoCgroups() bool { return t.owned.silent && len(t.owned.cgroups) == 1 }

// HasCloseWaits reports whether there are sockets in CLOSE_WAIT whose age matters.
func (t *Tally) HasCloseWaits() bool { return len(t.owned.closeWaits) > 0 }

// AgeCloseWaits takes the ages of sockets in CLOSE_WAIT from a dump of them, where the rows
// before had none.
func (t *Tally) AgeCloseWaits(rows iter.Seq2[tcptable.Socket, error]) error {
	byCookie := make(map[uint64]*closeWait, len(t.owned.closeWaits))
	for i := range t.owned.closeWaits {
		byCookie[t.owned.closeWaits[i].cookie] = &t.owned.closeWaits[i]
	}
	for s, err := range rows {
		if err != nil {
			return err
		}
		if c := byCookie[s.Cookie]; c != nil {
			c.age = s.LastAck
		}
	}
	return nil
}

// Cgroups yields the ids of the cgroups of live sockets, and of listeners.
func (t *Tally) Cgroups() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for _, c := range t.owned.cgroups[1:] {
			if !yield(c.id) {
				return
			}
		}
		for _, q := range t.acceptQueues().endpoints {
			for _, id := range q.Cgroups {
				if !yield(id) {
					return
				}
			}
		}
	}
}

// acceptQueues are those of sock_diag's dump of listeners, else of the table.
func (t *Tally) acceptQueues() *acceptQueues {
	if t.dump != nil {
		return t.dump.queues
	}
	return t.queues
}

// sharedEndpoint is where a minisock is on a port whose listeners have several owners. Its
// address has no zone.
type sharedEndpoint struct {
	local tcptable.Endpoint
	table tcptable.Table
}

// addMini counts an inbound minisock or half-open row, whose owner is its listener's.
func (t *Tally) addMini(s *tcptable.Socket, l *listenerPort) {
	l.minis[s.State]++
	if t.dump == nil || !t.dump.shared.Has(s.Local.Port) {
		return
	}
	at := sharedEndpoint{tcptable.Endpoint{Addr: s.Local.Addr.WithoutZone(), Port: s.Local.Port}, s.Table}
	states, known := t.sharedMinis[at]
	if !known && len(t.sharedMinis) == MaxEndpoints {
		return
	}
	states[s.State]++
	t.sharedMinis[at] = states
}

// shared returns the ports whose LISTEN sockets are of several cgroups.
func (a *acceptQueues) shared() (ports kernelstat.PortSet) {
	first := make(map[uint16]uint64)
	for e, q := range a.endpoints {
		for _, id := range q.Cgroups {
			if known, ok := first[e.Port]; ok && known != id {
				ports.Add(e.Port)
			}
			first[e.Port] = id
		}
	}
	for port := range a.others {
		ports.Add(port) // which endpoints are whose is not known
	}
	return ports
}

// hash tells a key among those that are not far more than 2^16.
func (c *counts[K]) hash(key *K) uint32 { return uint32(maphash.Comparable(c.seed, *key)) }
