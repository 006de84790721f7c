package tally

import (
	"bytes"
	"cmp"
	"iter"
	"maps"
	"slices"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// Limits are how many of each a snapshot has one by one: the largest. What is equal is in
// order of address and port, so that equal ones don't take turns.
type Limits struct {
	Remotes, Destinations, Listeners, Locals int
	// Targets are those of outbound connections, whatever their local address.
	Targets int
}

// queuesPerPort is how many local IPs of a listening port have queues of their own.
const queuesPerPort = 20

// Snapshot returns what the last Count counted.
func (t *Tally) Snapshot(n Limits) *snapshot.Sockets {
	held := t.held
	out := &snapshot.Sockets{
		Connections:    t.connections,
		Unread:         t.received,
		Unacknowledged: t.unsent,
		Orphans:        t.orphans,
		Timers:         t.timers,
		Unanswered:     t.unanswered,
		HalfClosed:     t.halfClosed,
		TimeWait:       t.buckets(),
		Destinations:   t.destinations.distinct(),
		HeldPorts:      &held,
		Undercount: snapshot.Undercount{
			Remote:      uint64(max(t.remotes[snapshot.Inbound].shortfall, t.remotes[snapshot.Outbound].shortfall)),
			Destination: uint64(max(t.destinations.shortfall, t.devices.counts.shortfall)),
			LocalIP:     t.locals.missed,
		},
	}
	t.nameRemotes(out, n.Remotes)
	t.nameListeners(out, n.Listeners)
	if t.pool != nil {
		out.Ports = t.ports(n)
	}
	if n.Targets > 0 {
		out.Targets = t.targets(n.Targets)
	}
	return out
}

// largest returns the n elements of seq that come first by compare, in order.
func largest[T any](seq iter.Seq[T], n int, compare func(a, b T) int) []T {
	top := ranking[T]{n: n, compare: compare}
	for element := range seq {
		top.add(element)
	}
	return top.elements
}

// ranking keeps the n elements that come first by compare, in order.
type ranking[T any] struct {
	n        int
	compare  func(a, b T) int
	elements []T
}

func (r *ranking[T]) add(element T) {
	if len(r.elements) == r.n && (r.n == 0 || r.compare(element, r.elements[r.n-1]) >= 0) {
		return
	}
	at, _ := slices.BinarySearchFunc(r.elements, element, r.compare)
	if len(r.elements) == r.n {
		r.elements = r.elements[:r.n-1]
	}
	r.elements = slices.Insert(r.elements, at, element)
}

// buckets has one above the kernel's own 60 s only where TIME_WAIT lasts longer: where
// a sysctl says so, or said so when a connection came into it.
func (t *Tally) buckets() (all [snapshot.NumDirections][]snapshot.Bucket) {
	above := len(timeWaitBounds)
	longer := t.pool != nil && t.pool.TimeWait > kernelstat.TimeWaitLength
	for _, w := range t.timeWait {
		longer = longer || w[above] > 0
	}
	for d, w := range t.timeWait {
		for i, bound := range timeWaitBounds {
			all[d] = append(all[d], snapshot.Bucket{UpTo: bound, Connections: w[i]})
		}
		if longer {
			all[d] = append(all[d], snapshot.Bucket{UpTo: kernelstat.LongestTimeWait, Connections: w[above]})
		}
	}
	return all
}

// heldRemote is a remote IP, or block, with its entries in both directions; one of
// them may be nil.
type heldRemote struct {
	key     tcptable.Addr
	entries [snapshot.NumDirections]*entry[tcptable.Addr]
	rows    uint64
}

func byRows(a, b heldRemote) int {
	return cmp.Or(cmp.Compare(b.rows, a.rows), bytes.Compare(a.key[:], b.key[:]))
}

func (t *Tally) allRemotes() iter.Seq[heldRemote] {
	return func(yield func(heldRemote) bool) {
		for d := range snapshot.NumDirections {
			for i := range t.remotes[d].entries {
				e := &t.remotes[d].entries[i]
				if e.rows == 0 {
					continue // all of it is in groups
				}
				r := heldRemote{key: e.key, rows: uint64(e.rows)}
				r.entries[d] = e
				if opposite := t.remotes[1-d].lookup(&e.key); opposite != nil && opposite.rows > 0 {
					if d == snapshot.Outbound {
						continue // seen as inbound
					}
					r.entries[1-d] = opposite
					r.rows += uint64(opposite.rows)
				}
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (t *Tally) nameRemotes(out *snapshot.Sockets, n int) {
	rest := &out.OtherRemotes
	for d := range snapshot.NumDirections {
		for f := range snapshot.NumFamilies {
			for s := range d.States() {
				rest[d][s] += t.connections[f][d][s]
			}
		}
		rest[d][tcptable.Listen] = 0

		out.RemoteIPs[d] = t.remotes[d].distinct()
		for s, most := range t.mostOfOne(d) {
			out.TopShare[d][s] = ratio(most, rest[d][s])
		}
	}
	top := largest(t.allRemotes(), n, byRows)
	out.Remotes = make([]snapshot.Remote, 0, len(t.groups.names)+len(top))
	for i, name := range t.groups.names {
		out.Remotes = append(out.Remotes, snapshot.Remote{Group: name, States: t.groups.states[i]})
		for d, states := range t.groups.states[i] {
			for state, rows := range states {
				rest[d][state] -= rows
			}
		}
	}
	for _, r := range top {
		named := snapshot.Remote{IP: r.key.IP(), Bits: t.prefix[familyOf(r.key)]}
		for d, e := range r.entries {
			if e == nil {
				continue
			}
			for label, rows := range t.remotes[d].labels(e) {
				if label == grouped {
					continue
				}
				rest[d][label] -= uint64(rows)
				named.States[d][label] = uint64(rows)
			}
		}
		out.Remotes = append(out.Remotes, named)
	}
}

// mostOfOne returns, by state, the connections of the remote, or group, with most of them.
func (t *Tally) mostOfOne(d snapshot.Direction) (most snapshot.States) {
	remotes := t.remotes[d]
	for i := range remotes.entries {
		for label, rows := range remotes.labels(&remotes.entries[i]) {
			if label != grouped {
				most[label] = max(most[label], uint64(rows))
			}
		}
	}
	for _, group := range t.groups.states {
		for state, rows := range group[d] {
			most[state] = max(most[state], rows)
		}
	}
	return most
}

// nameListeners names the ports with most connections. The queues are theirs, whatever
// is in them: a series must not come and go with what it counts.
func (t *Tally) nameListeners(out *snapshot.Sockets, n int) {
	top := largest(maps.Keys(t.listenerPorts), n, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(t.listenerPorts[b].rows, t.listenerPorts[a].rows), cmp.Compare(a, b))
	})
	out.Listeners = make([]snapshot.Listener, 0, len(top))
	var named kernelstat.PortSet
	for _, port := range top {
		named.Add(port)
		l := t.listenerPorts[port].Listener
		l.Port = port
		out.Listeners = append(out.Listeners, l)
	}
	if named.Len() < len(t.listenerPorts) {
		rest := new(snapshot.Listener)
		for port, l := range t.listenerPorts {
			if named.Has(port) {
				continue
			}
			for s := range l.States {
				rest.States[s] += l.States[s]
				rest.Unaccepted[s] += l.Unaccepted[s]
			}
		}
		out.OtherListeners = rest
	}
	if t.dump != nil {
		out.HasBacklogs = true
		t.fillSynQueues(out.Listeners)
	}
	out.AcceptQueues = t.acceptQueues().of(&named)
}

// worstDestinations returns the n destinations to name, the worst one first. A
// quarter of the places is for those that hold most ports, whether connect may take
// them over or not: where it then doesn't (tcp_tw_reuse, and a peer without
// timestamps) they are the ones that nothing can be connected to. Another quarter, as far
// as there are any, is for those that don't answer, which may hold few.
func (t *Tally) worstDestinations(n int) []heldDestination {
	blocked := ranking[heldDestination]{n: n - (n+2)/4, compare: byBlocked}
	silent := ranking[heldDestination]{n: n / 4, compare: byUnanswered}
	held := ranking[heldDestination]{n: n, compare: byHeld}
	anySilent := t.unanswered[snapshot.Outbound] != (snapshot.States{})
	for d := range t.devices.all() {
		if anySilent {
			t.findUnanswered(&d)
		}
		blocked.add(d)
		held.add(d)
		if d.unanswered > 0 {
			silent.add(d)
		}
	}
	worst := make([]heldDestination, 0, n)
	named := make(map[*entry[destination]]bool, n)
	name := func(all []heldDestination, places int) {
		for _, d := range all {
			if len(worst) < places && !named[d.entry] {
				worst = append(worst, d)
				named[d.entry] = true
			}
		}
	}
	name(blocked.elements, blocked.n-len(silent.elements))
	name(silent.elements, n)
	name(held.elements, n)
	return worst
}

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func (t *Tally) targets(n int) []snapshot.Target {
	type target struct {
		remote tcptable.Addr
		port   uint16
	}
	connections := make(map[target]uint64)
	for i := range t.destinations.entries {
		e := &t.destinations.entries[i]
		to := target{e.key.remote, e.key.port}
		for _, rows := range t.destinations.labels(e) {
			connections[to] += uint64(rows)
		}
	}
	return largest(func(yield func(snapshot.Target) bool) {
		for to, n := range connections {
			if !yield(snapshot.Target{IP: to.remote.IP(), Port: to.port, Connections: n}) {
				return
			}
		}
	}, n, byConnections)
}

func byConnections(a, b snapshot.Target) int {
	return cmp.Or(cmp.Compare(b.Connections, a.Connections), a.IP.Compare(b.IP), cmp.Compare(a.Port, b.Port))
}
