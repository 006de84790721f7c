package tally

import (
	"cmp"
	"hash/maphash"
	"slices"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// Names tells what cgroups are called, as an owner.Resolver does.
type Names interface {
	Label(cgroup uint64) string
	Owner(cgroup uint64) owner.Owner
}

// Owners makes numbers by owner of what walks counted by cgroup. It remembers what one walk
// does not tell: who listened on a port before, since when a socket has been in
// CLOSE_WAIT, and which sockets have gone. It is not for concurrent use.
type Owners struct {
	limit int // of owners that are told one by one
	begun time.Time

	seed  maphash.Seed
	ports map[uint16]portOwner
	// listening is those of the walk under way.
	listening map[uint16]portOwner

	seen, before []sighting // by cookie

	closers closers
}

// NewOwners returns Owners that tell so many of them one by one.
func NewOwners(limit int) *Owners {
	return &Owners{
		limit: limit, begun: time.Now(), seed: maphash.MakeSeed(), ports: make(map[uint16]portOwner), listening: make(map[uint16]portOwner),
		closers: closers{destinations: make(map[triple]*goneSockets)},
	}
}

// owning is an owner whose sockets are being counted.
type owning struct {
	snapshot.OwnerSockets
	live uint64
}

// Snapshot returns the owners of the sockets that t has counted and made a snapshot of.
func (o *Owners) Snapshot(now time.Time, t *Tally, sockets *snapshot.Sockets, names Names) *snapshot.Owners {
	owners := make(map[string]*owning)
	of := func(name string) *owning {
		w := owners[name]
		if w == nil {
			w = &owning{OwnerSockets: snapshot.OwnerSockets{Name: name}}
			owners[name] = w
		}
		return w
	}
	label := func(cgroup uint64) string {
		if cgroup == 0 {
			return owner.Unknown
		}
		return names.Label(cgroup)
	}
	byIndex := make([]*owning, len(t.owned.cgroups))
	for i := range t.owned.cgroups {
		c := &t.owned.cgroups[i]
		byIndex[i] = of(label(c.id))
		byIndex[i].addCgroup(c)
	}
	o.addCloseWaits(now, t.owned.closeWaits, byIndex)
	o.addMinis(now, t, names, of)

	unknown := of(owner.Unknown)
	delete(owners, owner.Unknown)
	ranked := make([]*owning, 0, len(owners))
	for _, w := range owners {
		ranked = append(ranked, w)
	}
	slices.SortFunc(ranked, func(a, b *owning) int {
		return cmp.Or(cmp.Compare(b.live, a.live), cmp.Compare(a.Name, b.Name))
	})
	reconcile(ranked, unknown, sockets)
	return &snapshot.Owners{
		All:          o.largest(ranked, unknown, names),
		Listeners:    listenerOwners(sockets, names),
		Destinations: o.destinationOwners(now, t, sockets, label),
	}
}

func (w *owning) addCgroup(c *cgroup) {
	for d := range c.states {
		for state, n := range c.states[d] {
			w.Connections[d][state] += n
			w.live += n
		}
	}
	for state, n := range c.unaccepted {
		w.Unaccepted[state] += n
	}
	w.CloseWaits.Merge(&c.closeWaits)
	if c.id != 0 {
		w.Cgroups = append(w.Cgroups, c.id)
	}
}

// reconcile makes all owners together what the walk counted, which with /proc was not the dump
// that tells of cgroups: what the walk has more is nobody's, and what it has less is
// cut where most is.
func reconcile(owners []*owning, unknown *owning, sockets *snapshot.Sockets) {
	all := append(slices.Clone(owners), unknown)
	for d := range snapshot.NumDirections {
		for state := range d.States() {
			var walked, known uint64
			for f := range snapshot.NumFamilies {
				walked += sockets.Connections[f][d][state]
			}
			for _, w := range all {
				known += w.Connections[d][state]
			}
			if known > walked {
				slices.SortStableFunc(all, func(a, b *owning) int {
					return cmp.Compare(b.Connections[d][state], a.Connections[d][state])
				})
			}
			for i := 0; known > walked; i++ {
				n := min(known-walked, all[i].Connections[d][state])
				all[i].Connections[d][state] -= n
				known -= n
			}
			unknown.Connections[d][state] += walked - known
		}
	}
}

// largest returns the owners that are told one by one, and the others in sum.
func (o *Owners) largest(ranked []*owning, unknown *owning, names Names) []snapshot.OwnerSockets {
	var all []snapshot.OwnerSockets
	for _, w := range ranked[:min(o.limit, len(ranked))] {
		w.Owner = names.Owner(slices.Max(w.Cgroups))
		all = append(all, w.OwnerSockets)
	}
	if len(ranked) > o.limit {
		rest := owning{OwnerSockets: snapshot.OwnerSockets{Name: owner.Other}}
		for _, w := range ranked[o.limit:] {
			rest.merge(w)
		}
		all = append(all, rest.OwnerSockets)
	}
	unknown.Cgroups = nil
	return append(all, unknown.OwnerSockets)
}

func (w *owning) merge(other *owning) {
	for d := range other.Connections {
		for state, n := range other.Connections[d] {
			w.Connections[d][state] += n
		}
	}
	for state, n := range other.Unaccepted {
		w.Unaccepted[state] += n
	}
	w.CloseWaits.Merge(&other.CloseWaits)
}

// listenerOwners returns the owners of the queues that have a place of their own.
func listenerOwners(sockets *snapshot.Sockets, names Names) (all []snapshot.ListenerOwner) {
	for _, q := range sockets.AcceptQueues {
		if !q.LocalIP.IsValid() {
			continue
		}
		var labels []string
		for _, id := range q.Cgroups {
			labels = append(labels, names.Label(id))
		}
		slices.Sort(labels)
		for _, label := range slices.Compact(labels) {
			all = append(all, snapshot.ListenerOwner{LocalIP: q.LocalIP, Port: q.Port, Name: label})
		}
	}
	return all
}

// portOwner is whose the listeners of a port are, or were at the last walk that had any.
type portOwner struct {
	name    string // empty if there are several
	sockets uint64 // tells the endpoints and their cgroups from all others
	seen    time.Time
	changed time.Time // the last time that it was another's
}

// addMinis counts minisocks and half-open connections, which have no cgroup, for the owner of
// their listener.
func (o *Owners) addMinis(now time.Time, t *Tally, names Names, of func(string) *owning) {
	lasts := kernelstat.TimeWaitLength
	if t.pool != nil {
		lasts = max(lasts, t.pool.TimeWait)
	}
	queues := t.acceptQueues()
	o.notePorts(now, lasts, queues, names)
	add := func(name string, port portOwner, minis *snapshot.States) {
		for state, n := range minis {
			// A half-open connection ends with its listener.
			if n > 0 && (state == int(tcptable.SynRecv) || port.changed.IsZero() || now.Sub(port.changed) > lasts) {
				of(name).Connections[snapshot.Inbound][state] += n
			}
		}
	}
	for number, l := range t.listenerPorts {
		if port := o.ports[number]; port.seen.Equal(now) && port.name != "" && l.minis != (snapshot.States{}) {
			add(port.name, port, &l.minis)
		}
	}
	if len(t.sharedMinis) == 0 {
		return
	}
	endpoints := o.sharedEndpoints(now, queues, names)
	for at, states := range t.sharedMinis {
		if name := ownerAt(at, endpoints); name != "" {
			add(name, o.ports[at.local.Port], &states)
		}
	}
}

// ownerAt returns the owner of the listener that takes what comes to an endpoint, if it is
// one: that of the address goes before that of all.
func ownerAt(to sharedEndpoint, endpoints map[tcptable.Endpoint]string) string {
	any4 := tcptable.Endpoint{Addr: anyAddr(snapshot.IPv4), Port: to.local.Port}
	any6 := tcptable.Endpoint{Addr: anyAddr(snapshot.IPv6), Port: to.local.Port}
	if to.table == tcptable.TCP {
		any6 = any4 // takes what comes in that table for no other
	}
	for _, e := range []tcptable.Endpoint{to.local, any6, any4} {
		if name, ok := endpoints[e]; ok {
			return name
		}
	}
	return ""
}

// sharedEndpoints returns the owners of the endpoints of those ports that have several.
func (o *Owners) sharedEndpoints(now time.Time, queues *acceptQueues, names Names) map[tcptable.Endpoint]string {
	all := make(map[tcptable.Endpoint]string)
	for e, q := range queues.endpoints {
		if port := o.ports[e.Port]; !port.seen.Equal(now) || port.name != "" {
			continue
		}
		name := ownerOf(q.Cgroups, names)
		e.Addr = e.Addr.WithoutZone()
		if other, ok := all[e]; ok && other != name {
			name = owner.Unknown
		}
		all[e] = name
	}
	return all
}

// ownerOf returns whose cgroups are, if they are one owner's.
func ownerOf(cgroups []uint64, names Names) string {
	name := owner.Unknown
	for i, id := range cgroups {
		switch label := names.Label(id); {
		case i == 0:
			name = label
		case label != name:
			return owner.Unknown
		}
	}
	return name
}

// notePorts notes whose the listeners are, and when a port became another's.
func (o *Owners) notePorts(now time.Time, lasts time.Duration, queues *acceptQueues, names Names) {
	clear(o.listening)
	for e, q := range queues.endpoints {
		p, known := o.listening[e.Port]
		for _, id := range q.Cgroups {
			p.sockets ^= maphash.Comparable(o.seed, struct {
				tcptable.Endpoint
				uint64
			}{e, id})
		}
		switch name := ownerOf(q.Cgroups, names); {
		case !known:
			p.name = name
		case p.name != name:
			p.name = ""
		}
		o.listening[e.Port] = p
	}
	for port := range queues.others {
		o.listening[port] = portOwner{name: owner.Unknown}
	}
	for number, p := range o.listening {
		was, known := o.ports[number]
		p.seen, p.changed = now, was.changed
		same := p.sockets == was.sockets || p.name == was.name && p.name != "" && p.name != owner.Unknown
		if known && !same {
			p.changed = now
		}
		o.ports[number] = p
	}
	for number, p := range o.ports {
		if now.Sub(p.seen) > lasts {
			delete(o.ports, number)
		}
	}
}

// sighting is when a socket was seen in CLOSE_WAIT, or had to be in it for its age.
type sighting struct {
	cookie uint64
	since  time.Duration
}

// addCloseWaits counts sockets in CLOSE_WAIT by age.
func (o *Owners) addCloseWaits(now time.Time, all []closeWait, owners []*owning) {
	elapsed := now.Sub(o.begun)
	o.before, o.seen = o.seen, o.before[:0]
	for _, c := range all {
		since := elapsed - c.age
		if i, ok := slices.BinarySearchFunc(o.before, c.cookie, func(s sighting, cookie uint64) int { return cmp.Compare(s.cookie, cookie) }); ok {
			since = min(since, o.before[i].since)
		}
		o.seen = append(o.seen, sighting{c.cookie, since})
		owners[c.cgroup].CloseWaits.Add(elapsed - since)
	}
	slices.SortFunc(o.seen, func(a, b sighting) int { return cmp.Compare(a.cookie, b.cookie) })
}
