package collector

import (
	"iter"
	"math/bits"
	"net/netip"

	"timewait_exporter/collector/tcptable"
)

// localPorts tells which ports of the pool each local address holds. Its memory is
// used again after reset.
type localPorts struct {
	low   int // the port of the first bit of a set
	words int // the length of a set
	// sets says where in bits the set of an address begins. The first one is of all
	// addresses beyond maxLocals.
	sets   map[tcptable.Addr]int
	bits   []uint64
	missed uint64 // rows in the first set

	// A key of sets and its value: neighbours in the table often share it.
	last    tcptable.Addr
	lastSet int
}

// reset forgets all ports; those to come are from low to high. It keeps the
// memory, unless that was far more than needed.
func (l *localPorts) reset(low, high int) {
	const few = 1 << 16
	if cap(l.bits) > few && len(l.bits) < cap(l.bits)/8 || l.sets == nil {
		l.bits, l.sets = nil, make(map[tcptable.Addr]int)
	}
	clear(l.sets)
	l.low, l.words, l.missed = low, (high-low)/64+1, 0
	l.bits = l.bits[:0]
	l.grow()
	l.last = tcptable.Addr{}
	l.lastSet = l.set(l.last)
}

// grow appends an empty set and returns where it begins.
func (l *localPorts) grow() int {
	start := len(l.bits)
	for range l.words {
		l.bits = append(l.bits, 0)
	}
	return start
}

func (l *localPorts) set(addr tcptable.Addr) int {
	start, ok := l.sets[addr]
	if !ok && len(l.sets) < maxLocals {
		start = l.grow()
		l.sets[addr] = start
	}
	return start
}

// hold notes that a row has the port, which is one of the pool.
func (l *localPorts) hold(local *tcptable.Endpoint) {
	if local.Addr != l.last {
		l.last, l.lastSet = local.Addr, l.set(local.Addr)
	}
	if l.lastSet == 0 {
		l.missed++
	}
	bit := int(local.Port) - l.low
	l.bits[l.lastSet+bit/64] |= 1 << (bit % 64)
}

// total returns how many ports any address holds.
func (l *localPorts) total() int {
	n := 0
	for word := range l.words {
		var union uint64
		for i := word; i < len(l.bits); i += l.words {
			union |= l.bits[i]
		}
		n += bits.OnesCount64(union)
	}
	return n
}

// shared returns how many ports sockets on all addresses hold: 0.0.0.0 and ::.
func (l *localPorts) shared() int { return l.len(l.sets[tcptable.Addr{}]) }

// all yields each address with the number of ports that it or sockets on all
// addresses hold.
func (l *localPorts) all() iter.Seq2[netip.Addr, int] {
	return func(yield func(netip.Addr, int) bool) {
		for addr, set := range l.sets {
			if ip := addr.IP(); !ip.IsUnspecified() && !yield(ip, l.len(set)) {
				return
			}
		}
	}
}

// len returns the number of ports in a set or in those of 0.0.0.0 and ::.
func (l *localPorts) len(set int) int {
	any6 := l.sets[tcptable.Addr{}]
	any4, ok := l.sets[tcptable.Addr{10: 0xff, 11: 0xff}]
	if !ok {
		any4 = any6
	}
	n := 0
	for i := range l.words {
		n += bits.OnesCount64(l.bits[set+i] | l.bits[any4+i] | l.bits[any6+i])
	}
	return n
}
