package tally

import (
	"iter"
	"maps"
	"math/bits"
	"slices"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// MaxLocals is how many local addresses are told apart.
const MaxLocals = 1 << 10

func familyOf(addr tcptable.Addr) snapshot.Family {
	if addr.Is4() {
		return snapshot.IPv4
	}
	return snapshot.IPv6
}

// anyAddr returns the address of sockets that are bound to all of a family.
func anyAddr(f snapshot.Family) tcptable.Addr {
	if f == snapshot.IPv4 {
		return tcptable.Addr{10: 0xff, 11: 0xff}
	}
	return tcptable.Addr{}
}

// localPorts tells which ports of the pool each local address holds. Its memory is
// used again after reset.
type localPorts struct {
	low    int                        // the port of the first bit of a set
	words  int                        // the length of a set
	sets   map[tcptable.Addr][]uint64 // the ports of each address, at most MaxLocals
	others []uint64                   // those of all further addresses
	missed uint64                     // rows in others
	spare  [][]uint64

	// A key of sets and its value: neighbours in the table often share it.
	last    tcptable.Addr
	lastSet []uint64
}

// reset forgets all ports; those to come are from low to high. It keeps the memory
// of the sets, unless it is far more than the last walk needed.
func (l *localPorts) reset(low, high int) {
	const few = 64
	words := (high-low)/64 + 1
	if words != l.words || len(l.spare) > few+8*len(l.sets) {
		l.spare = nil
	}
	if words == l.words {
		l.spare = slices.AppendSeq(l.spare, maps.Values(l.sets))
	} else {
		l.others = make([]uint64, words)
	}
	if l.sets == nil {
		l.sets = make(map[tcptable.Addr][]uint64)
	}
	clear(l.sets)
	clear(l.others)
	l.low, l.words, l.missed = low, words, 0
	l.last = tcptable.Addr{}
	l.lastSet = l.set(l.last)
}

// set returns the set of an address, nil if it is one too many.
func (l *localPorts) set(addr tcptable.Addr) []uint64 {
	set := l.sets[addr]
	if set != nil || len(l.sets) == MaxLocals {
		return set
	}
	if n := len(l.spare); n > 0 {
		set, l.spare = l.spare[n-1], l.spare[:n-1]
		clear(set)
	} else {
		set = make([]uint64, l.words)
	}
	l.sets[addr] = set
	return set
}

// hold notes that a row has the port, which is one of the pool.
func (l *localPorts) hold(local *tcptable.Endpoint) {
	if local.Addr != l.last {
		l.last, l.lastSet = local.Addr, l.set(local.Addr)
	}
	set := l.lastSet
	if set == nil {
		set = l.others
		l.missed++
	}
	bit := int(local.Port) - l.low
	set[bit/64] |= 1 << (bit % 64)
}

// total returns how many ports any address holds.
func (l *localPorts) total() int {
	union := slices.Clone(l.others)
	for _, set := range l.sets {
		addAll(union, set)
	}
	return unionLen(union, union)
}

// shared returns the set of ports that sockets on all addresses of a family hold.
func (l *localPorts) shared(f snapshot.Family) []uint64 {
	if set := l.sets[anyAddr(f)]; set != nil {
		return set
	}
	return make([]uint64, l.words)
}

func addAll(to, set []uint64) {
	for i, word := range set {
		to[i] |= word
	}
}

// all yields each address with the number of ports that it or sockets on all
// addresses hold.
func (l *localPorts) all() iter.Seq[snapshot.Local] {
	return func(yield func(snapshot.Local) bool) {
		shared := [snapshot.NumFamilies][]uint64{snapshot.IPv4: l.shared(snapshot.IPv4), snapshot.IPv6: l.shared(snapshot.IPv6)}
		for addr, set := range l.sets {
			if ip := addr.IP(); !ip.IsUnspecified() && !yield(snapshot.Local{IP: ip, Used: unionLen(set, shared[familyOf(addr)])}) {
				return
			}
		}
	}
}

// unionLen returns the number of ports in a or in b.
func unionLen(a, b []uint64) int {
	n := 0
	for i, word := range a {
		n += bits.OnesCount64(word | b[i])
	}
	return n
}
