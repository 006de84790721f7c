package collector

import (
	"cmp"
	"slices"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const (
	// unchangedFor is how long a table is left that no counter says has changed:
	// accept(2) and recv(2) change one without, and TIME_WAITs grow old.
	unchangedFor = 5 * time.Minute
	// urgentShare of the pool, urgentCloseWait of the open connections, urgentUnanswered
	// connections, and urgentRemote of at least urgentInbound of the pool, are half of what
	// alerts fire at.
	urgentShare, urgentCloseWait = 0.25, 0.05
	urgentUnanswered             = 2
	urgentRemote, urgentInbound  = 0.25, 0.05
	// fewCloseWaits are no leak.
	fewCloseWaits = 10
)

// The classes of namespaces by how much their tables are to be read.
const (
	urgent = iota
	changed
	unchanged
)

// order returns whose table is to be read next: urgent ones, then those that have
// changed, then the others; of each those first that were read longest ago. Every third is
// not urgent, however many are, and over three rounds each place is the third.
func (s *namespaces) order(all []*view, now time.Time) []*view {
	classes := make(map[*view]int, len(all))
	for _, v := range all {
		classes[v] = v.class(s.pool, now)
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *view) int {
		return cmp.Or(
			cmp.Compare(classes[a], classes[b]),
			cmp.Compare(a.turn, b.turn),
			cmp.Compare(b.portsUsed(s.pool), a.portsUsed(s.pool)),
			cmp.Compare(a.Name, b.Name),
		)
	})
	first := slices.IndexFunc(sorted, func(v *view) bool { return classes[v] != urgent })
	if first < 0 {
		return sorted
	}
	hurry, rest := sorted[:first], sorted[first:]
	order := make([]*view, 0, len(all))
	for i := s.rounds; len(hurry) > 0 && len(rest) > 0; i++ {
		if i%3 == 0 {
			order, rest = append(order, rest[0]), rest[1:]
		} else {
			order, hurry = append(order, hurry[0]), hurry[1:]
		}
	}
	return slices.Concat(order, hurry, rest)
}

func (v *view) class(p *kernelstat.Pool, now time.Time) int {
	switch {
	case v.sockets == nil:
		if v.portsUsed(p) >= urgentShare {
			return urgent
		}
		return changed
	case v.portsUsed(p) >= urgentShare, v.leaks(), v.hangs(), v.hasOneRemote(p):
		return urgent
	case v.now != v.then, now.Sub(v.sockets.Read) >= unchangedFor:
		return changed
	}
	return unchanged
}

// portsUsed is the most of the pool that can be gone by now toward a destination, or on a
// local IP: no more than all sockets have, and no more than was gone at the last look and
// the connects since.
func (v *view) portsUsed(p *kernelstat.Pool) float64 {
	if v.sysctls() == snapshot.SysctlsUnknown {
		return 0
	}
	size := float64(p.Size)
	most := float64(v.now.inUse) / size
	if v.sockets != nil {
		ports := v.sockets.Ports
		opened := float64(v.now.opened - v.then.opened)
		most = min(most, max(ports.Connect, ports.Bind, ports.BindAny)+opened/size)
	}
	return most
}

// leaks reports whether connections may be leaking: a part of them waited for close(2) at
// the last look, or there are many more since.
func (v *view) leaks() bool {
	var closeWaits uint64
	for f := range snapshot.NumFamilies {
		for d := range snapshot.NumDirections {
			closeWaits += v.sockets.Connections[f][d][tcptable.CloseWait]
		}
	}
	now, then := float64(v.now.established), float64(v.then.established)
	return closeWaits >= fewCloseWaits && float64(closeWaits) >= urgentCloseWait*now || now > 2*then+fewCloseWaits*fewCloseWaits
}

// hangs reports whether connections waited at the last look for a peer that does not
// answer, or for accept(2).
func (v *view) hangs() bool {
	return v.sockets.Unanswered[snapshot.Outbound].Sum() >= urgentUnanswered ||
		slices.ContainsFunc(v.sockets.AcceptQueues, func(q snapshot.AcceptQueue) bool { return q.Length > 0 })
}

// hasOneRemote reports whether one remote had a large part of many inbound connections at
// the last look.
func (v *view) hasOneRemote(p *kernelstat.Pool) bool {
	var inbound uint64
	for f := range snapshot.NumFamilies {
		inbound += v.sockets.Connections[f][snapshot.Inbound][tcptable.Established]
	}
	return v.sockets.TopShare[snapshot.Inbound][tcptable.Established] >= urgentRemote && float64(inbound) >= urgentInbound*float64(p.Size)
}
