package tally

import (
	"cmp"

	"timewait_exporter/collector/snapshot"
)

// Share returns snapshots of several namespaces, of which any may be nil, that name no
// more than n in all together: the largest of those that the given ones name. The others
// are in the sums of their own namespace.
func Share(all []*snapshot.Sockets, n Limits) []*snapshot.Sockets {
	remotes := make(places)
	choose(remotes, all, remotesOf, n.Remotes, func(a, b *snapshot.Remote) int {
		return cmp.Compare(b.Connections(), a.Connections())
	})
	listeners := make(places)
	choose(listeners, all, listenersOf, n.Listeners, func(a, b *snapshot.Listener) int {
		return cmp.Compare(b.States.Sum(), a.States.Sum())
	})
	locals := make(places)
	choose(locals, all, localsOf, n.Locals, func(a, b *snapshot.Local) int { return cmp.Compare(b.Used, a.Used) })
	// As in worstDestinations.
	destinations := make(places)
	quarter := n.Destinations / 4
	choose(destinations, all, destinationsOf, n.Destinations-2*quarter, func(a, b *snapshot.Destination) int { return cmp.Compare(b.Gone, a.Gone) })
	choose(destinations, all, destinationsOf, quarter, func(a, b *snapshot.Destination) int { return cmp.Compare(b.Unanswered, a.Unanswered) })
	choose(destinations, all, destinationsOf, quarter, func(a, b *snapshot.Destination) int { return cmp.Compare(b.Held.Sum(), a.Held.Sum()) })

	shared := make([]*snapshot.Sockets, len(all))
	for i, from := range all {
		if from == nil {
			continue
		}
		to := *from
		shared[i] = &to
		var others []snapshot.Remote
		to.Remotes, others = split(remotes, i, from.Remotes)
		for _, r := range others {
			for d := range r.States {
				to.OtherRemotes[d].Add(&r.States[d])
			}
		}
		splitListeners(&to, from, listeners, i)
		if from.Ports != nil {
			ports := *from.Ports
			to.Ports = &ports
			ports.Destinations, _ = split(destinations, i, from.Ports.Destinations)
			ports.Locals, _ = split(locals, i, from.Ports.Locals)
		}
	}
	return shared
}

// Targets returns the n targets that have most connections in all snapshots together, of
// those that are named in them. Any snapshot may be nil.
func Targets(all []*snapshot.Sockets, n int) []snapshot.Target {
	sums := make(map[snapshot.Target]uint64)
	for _, s := range all {
		if s == nil {
			continue
		}
		for _, to := range s.Targets {
			sums[snapshot.Target{IP: to.IP, Port: to.Port}] += to.Connections
		}
	}
	return largest(func(yield func(snapshot.Target) bool) {
		for to, sum := range sums {
			to.Connections = sum
			if !yield(to) {
				return
			}
		}
	}, n, byConnections)
}

// splitListeners leaves those of from's listeners in to that are named, each with its
// queues, and adds the others up.
func splitListeners(to, from *snapshot.Sockets, named places, of int) {
	var others []snapshot.Listener
	to.Listeners, others = split(named, of, from.Listeners)
	if len(others) == 0 {
		return
	}
	var rest snapshot.Listener
	if from.OtherListeners != nil {
		rest = *from.OtherListeners
	}
	for _, l := range others {
		rest.States.Add(&l.States)
		rest.Unaccepted.Add(&l.Unaccepted)
	}
	to.OtherListeners, to.AcceptQueues = &rest, nil
	for _, q := range from.AcceptQueues {
		for _, l := range to.Listeners {
			if q.Port == l.Port {
				to.AcceptQueues = append(to.AcceptQueues, q)
			}
		}
	}
}

// places are those that elements have in one of several lists.
type places map[place]bool

type place struct{ list, at int }

// choose adds the n elements to chosen, of those that are not in it, that come first by
// compare; equal ones in the order of their places.
func choose[T any](chosen places, all []*snapshot.Sockets, list func(*snapshot.Sockets) []T, n int, compare func(a, b *T) int) {
	type element struct {
		place
		of *T
	}
	for _, e := range largest(func(yield func(element) bool) {
		for i, s := range all {
			if s == nil {
				continue
			}
			elements := list(s)
			for at := range elements {
				if p := (place{i, at}); !chosen[p] && !yield(element{p, &elements[at]}) {
					return
				}
			}
		}
	}, n, func(a, b element) int {
		return cmp.Or(compare(a.of, b.of), cmp.Compare(a.list, b.list), cmp.Compare(a.at, b.at))
	}) {
		chosen[e.place] = true
	}
}

// split returns the elements of a list that are chosen, and the others.
func split[T any](chosen places, list int, elements []T) (in, out []T) {
	for at, e := range elements {
		if chosen[place{list, at}] {
			in = append(in, e)
		} else {
			out = append(out, e)
		}
	}
	return in, out
}

func remotesOf(s *snapshot.Sockets) []snapshot.Remote     { return s.Remotes }
func listenersOf(s *snapshot.Sockets) []snapshot.Listener { return s.Listeners }

func localsOf(s *snapshot.Sockets) []snapshot.Local {
	if s.Ports == nil {
		return nil
	}
	return s.Ports.Locals
}

func destinationsOf(s *snapshot.Sockets) []snapshot.Destination {
	if s.Ports == nil {
		return nil
	}
	return s.Ports.Destinations
}
