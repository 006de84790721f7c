package tally

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// Group is remote addresses that are counted as one, under a name.
type Group struct {
	Name string
	// Prefixes are of IPv4 or IPv6 addresses, none of which is an IPv4 one in 16 bytes. No
	// address is in two groups; in one it may be several times.
	Prefixes []netip.Prefix
}

// grouped is the label of rows whose remote is in a group. For its address, or block,
// they are light: it is a remote that there is, and has none of the group's rows.
const grouped = 0x10

// groups finds the group of an address, and has what is counted of each.
type groups struct {
	names  []string
	spans  [snapshot.NumFamilies][]span // apart from each other, in order
	states [][snapshot.NumDirections]snapshot.States
}

// span is the addresses from first to last, all of one group.
type span struct {
	first, last tcptable.Addr
	group       int
}

func newGroups(all []Group) groups {
	g := groups{states: make([][snapshot.NumDirections]snapshot.States, len(all))}
	var prefixes [snapshot.NumFamilies][]span
	for i, group := range all {
		g.names = append(g.names, group.Name)
		for _, p := range group.Prefixes {
			s := spanOf(p, i)
			prefixes[familyOf(s.first)] = append(prefixes[familyOf(s.first)], s)
		}
	}
	for family, spans := range prefixes {
		slices.SortFunc(spans, func(a, b span) int {
			return cmp.Or(bytes.Compare(a.first[:], b.first[:]), bytes.Compare(b.last[:], a.last[:]))
		})
		// Of two prefixes that overlap one is inside the other, and comes behind it.
		for _, s := range spans {
			if apart := g.spans[family]; len(apart) == 0 || bytes.Compare(apart[len(apart)-1].last[:], s.first[:]) < 0 {
				g.spans[family] = append(apart, s)
			}
		}
	}
	return g
}

func spanOf(p netip.Prefix, group int) span {
	s := span{first: p.Masked().Addr().As16(), group: group}
	s.last = s.first
	bits := 8 * len(s.last)
	for bit := bits - p.Addr().BitLen() + p.Bits(); bit < bits; bit++ {
		s.last[bit/8] |= 0x80 >> (bit % 8)
	}
	return s
}

// of returns the group of an address, less than 0 if it is in none.
func (g *groups) of(a tcptable.Addr) int {
	spans := g.spans[familyOf(a)]
	if len(spans) == 0 {
		return -1
	}
	a = a.WithoutZone()
	low, high := 0, len(spans)
	for low < high {
		if mid := (low + high) / 2; bytes.Compare(spans[mid].first[:], a[:]) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 || bytes.Compare(a[:], spans[low-1].last[:]) > 0 {
		return -1
	}
	return spans[low-1].group
}
