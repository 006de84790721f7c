package tally

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
)

const (
	// closersFor is how long a socket that has gone counts, and closersEvery how exactly.
	closersFor   = 5 * time.Minute
	closersEvery = 30 * time.Second
	// maxSighted is how many live sockets are remembered until the next walk. Of more than these it is
	// a sample.
	maxSighted = 1 << 15
	// maxClosers is how many cgroups are told apart that closed sockets toward a
	// destination within closersEvery.
	maxClosers = 256
	// ownersPerDestination is how many owners are told of a destination.
	ownersPerDestination = 5
)

// closers tells who closes the sockets toward destinations: by those that one walk saw
// alive and a later one didn't, each once. Of live ones whoever keeps some open has most, though these make no
// TIME_WAIT.
type closers struct {
	destinations map[triple]*goneSockets
	number       uint32 // of the last destination that has one

	sighted, before []sightedSocket // by cookie
}

// triple is a snapshot.Destination's.
type triple struct {
	local, remote netip.Addr
	port          uint16
}

// sightedSocket is a live socket toward a destination that is told one by one.
type sightedSocket struct {
	cookie, cgroup uint64
	destination    uint32 // its number
}

// goneSockets are those toward a destination.
type goneSockets struct {
	number uint32
	named  time.Time // last
	// by counts them by cgroup; a slot is used again after closersFor.
	by [closersFor / closersEvery]map[uint64]uint64
	of [closersFor / closersEvery]int64 // which multiple of closersEvery a slot is of
}

func (g *goneSockets) add(slot int64, cgroup uint64) {
	i := slot % int64(len(g.by))
	if g.by[i] == nil || g.of[i] != slot {
		g.by[i], g.of[i] = make(map[uint64]uint64, 1), slot
	}
	if _, known := g.by[i][cgroup]; !known && len(g.by[i]) == maxClosers {
		cgroup = 0
	}
	g.by[i][cgroup]++
}

// sum returns those of the last slots by name.
func (g *goneSockets) sum(slot int64, name func(cgroup uint64) string) map[string]uint64 {
	by := make(map[string]uint64)
	for i := range g.by {
		if g.of[i] <= slot-int64(len(g.by)) {
			continue
		}
		for cgroup, n := range g.by[i] {
			by[name(cgroup)] += n
		}
	}
	return by
}

// destinationOwners returns the owners of the live sockets toward the destinations that are told
// one by one, and of those that have gone.
func (o *Owners) destinationOwners(now time.Time, t *Tally, sockets *snapshot.Sockets, name func(cgroup uint64) string) []snapshot.DestinationOwners {
	c := &o.closers
	if sockets.Ports == nil || t.owned.uncounted {
		c.before, c.sighted = c.before[:0], c.sighted[:0]
		return nil
	}
	slot := int64(now.Sub(o.begun) / closersEvery)
	named := sockets.Ports.Destinations
	index := make(map[uint32]int, len(named)) // by hash
	gone := make([]*goneSockets, len(named))
	byNumber := make(map[uint32]*goneSockets, len(named))
	for i, d := range named {
		index[t.named[i]] = i
		gone[i] = c.at(triple{d.LocalIP, d.RemoteIP, d.RemotePort}, now)
		byNumber[gone[i].number] = gone[i]
	}
	type holding struct{ destination, cgroup uint32 }
	held := make(map[holding]uint64)
	c.before, c.sighted = c.sighted, c.before[:0]
	toward := t.owned.alive[:0] // those that matter
	for _, s := range t.owned.alive {
		if _, ok := index[s.destination]; ok {
			toward = append(toward, s)
		}
	}
	isIn := sampleOf(len(toward))
	for _, s := range toward {
		i := index[s.destination]
		held[holding{uint32(i), s.cgroup}]++
		if s.cookie != 0 && isIn(s.cookie) {
			c.sighted = append(c.sighted, sightedSocket{s.cookie, t.owned.cgroups[s.cgroup].id, gone[i].number})
		}
	}
	live := make([]map[string]uint64, len(named))
	for h, n := range held {
		if live[h.destination] == nil {
			live[h.destination] = make(map[string]uint64)
		}
		live[h.destination][name(t.owned.cgroups[h.cgroup].id)] += n
	}
	slices.SortFunc(c.sighted, func(a, b sightedSocket) int { return cmp.Compare(a.cookie, b.cookie) })
	next := 0
	for _, s := range c.before {
		for next < len(c.sighted) && c.sighted[next].cookie < s.cookie {
			next++
		}
		if next < len(c.sighted) && c.sighted[next].cookie == s.cookie {
			continue
		}
		if g := byNumber[s.destination]; g != nil && isIn(s.cookie) {
			g.add(slot, s.cgroup)
		}
	}
	all := make([]snapshot.DestinationOwners, 0, len(named))
	for i, d := range named {
		all = append(all, snapshot.DestinationOwners{
			LocalIP: d.LocalIP, RemoteIP: d.RemoteIP, RemotePort: d.RemotePort,
			Live: mostOf(live[i]), Gone: mostOf(gone[i].sum(slot, name)),
		})
	}
	return all
}

// at returns what has gone toward a destination, which is told one by one now. What has not
// been for closersFor is forgotten, and all that is not now when there is too much.
func (c *closers) at(to triple, now time.Time) *goneSockets {
	g := c.destinations[to]
	if g == nil {
		const many = 1 << 10
		for to, g := range c.destinations {
			if age := now.Sub(g.named); age > closersFor || len(c.destinations) > many && age > 0 {
				delete(c.destinations, to)
			}
		}
		c.number++
		g = &goneSockets{number: c.number}
		c.destinations[to] = g
	}
	g.named = now
	return g
}

// sampleOf returns which cookies are in a sample of at most maxSighted of so many. Who is in
// a smaller sample is in a larger one too.
func sampleOf(all int) func(cookie uint64) bool {
	bits := 0
	for all>>bits > maxSighted {
		bits++
	}
	mask := uint64(1)<<bits - 1
	return func(cookie uint64) bool {
		const golden = 0x9e3779b97f4a7c15 // cookies are numbered in turn
		return cookie*golden>>32&mask == 0
	}
}

// mostOf returns the owners with most sockets, and all others in sum.
func mostOf(by map[string]uint64) []snapshot.OwnerCount {
	all := make([]snapshot.OwnerCount, 0, len(by))
	for name, n := range by {
		all = append(all, snapshot.OwnerCount{Name: name, Sockets: n})
	}
	slices.SortFunc(all, func(a, b snapshot.OwnerCount) int {
		return cmp.Or(cmp.Compare(b.Sockets, a.Sockets), cmp.Compare(a.Name, b.Name))
	})
	if len(all) > ownersPerDestination {
		rest := snapshot.OwnerCount{Name: owner.Other}
		for _, c := range all[ownersPerDestination:] {
			rest.Sockets += c.Sockets
		}
		all = append(all[:ownersPerDestination], rest)
	}
	return all
}
