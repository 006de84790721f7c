package tally

import (
	"hash/maphash"
	"iter"
	"math"
	"math/bits"
)

// counts counts rows by key, and under each key by label.
//
// Up to limit distinct keys every count is exact. Beyond, memory stays what it
// is: the keys with the fewest rows give way, as in the Misra-Gries summary that
// makes room for half of its counters at a time (Anderson et al., "A
// High-Performance Algorithm for Identifying Frequent Items in Data Streams",
// IMC 2017). No count is ever too high, none is short by more than shortfall, and
// shortfall is at most twice the rows over limit, so whoever holds many rows is always in.
//
// Rows that are added as light ones count for nothing in this: keys that have no
// others give way to all that have, and are turned away once three quarters of the
// room are taken. What they lose is not in shortfall.
//
// It is not for concurrent use. Its memory is used again after reset.
type counts[K comparable] struct {
	limit int
	seed  maphash.Seed // random, so that no peer can choose keys that collide

	slots   []uint32 // a hash table of entry numbers plus 1; its length is a power of two
	entries []entry[K]
	away    entry[K] // the last one turned away
	cells   []cell   // cells[0] stands for none
	free    uint32   // the first cell not in use

	light     bool // some entries may have light rows only
	shortfall uint32
	seen      *bitmap // keys ever seen, once some gave way

	// gaveWay, if set, is called with each entry that gives way or is turned away.
	gaveWay func(*entry[K])
}

type entry[K comparable] struct {
	key  K
	hash uint32
	// rows, without light ones, is counted since the key came in, which was when
	// shortfall was late: so many rows it may have had before.
	rows, late uint32
	cells      uint32 // the first of its cells
}

// cell is a count under one label, in a list of those of an entry: most keys have
// one or two labels.
type cell struct {
	rows, next uint32
	label      uint16
}

func newCounts[K comparable](limit int) *counts[K] {
	c := &counts[K]{limit: limit, seed: maphash.MakeSeed()}
	c.reset()
	return c
}

// add counts so many rows. What it returns is good until the next call.
func (c *counts[K]) add(key *K, label uint16, rows uint32) *entry[K] {
	e := c.entry(key)
	e.rows += rows
	i := e.cells
	for i != 0 && c.cells[i].label != label {
		i = c.cells[i].next
	}
	if i == 0 {
		i = c.newCell()
		c.cells[i] = cell{label: label, next: e.cells}
		e.cells = i
	}
	c.cells[i].rows += rows
	return e
}

// addLight counts a light row.
func (c *counts[K]) addLight(key *K, label uint16) {
	if len(c.entries) < c.limit-c.limit/4 || c.lookup(key) != nil {
		c.add(key, label, 1).rows--
		c.light = true
		return
	}
	c.estimate()
	c.seen.add(uint32(maphash.Comparable(c.seed, *key)))
	if c.gaveWay != nil {
		i := c.newCell()
		c.cells[i] = cell{label: label, rows: 1}
		c.away = entry[K]{key: *key, cells: i}
		c.gaveWay(&c.away)
		c.freeCells(i)
	}
}

// entry returns the entry of key, a new one if it has none.
func (c *counts[K]) entry(key *K) *entry[K] {
	hash := uint32(maphash.Comparable(c.seed, *key))
	slot := c.find(key, hash)
	if n := c.slots[slot]; n != 0 {
		return &c.entries[n-1]
	}
	if len(c.entries) == c.limit {
		c.makeRoom()
		slot = c.find(key, hash)
	} else if 4*len(c.entries) >= 3*len(c.slots) {
		c.index(2 * len(c.slots))
		slot = c.find(key, hash)
	}
	if c.seen != nil {
		c.seen.add(hash)
	}
	c.entries = append(c.entries, entry[K]{key: *key, hash: hash, late: c.shortfall})
	c.slots[slot] = uint32(len(c.entries))
	return &c.entries[len(c.entries)-1]
}

// find returns the slot of key, or the free one where it belongs.
func (c *counts[K]) find(key *K, hash uint32) uint32 {
	mask := uint32(len(c.slots) - 1)
	for slot := hash & mask; ; slot = (slot + 1) & mask {
		n := c.slots[slot]
		if n == 0 || c.entries[n-1].hash == hash && c.entries[n-1].key == *key {
			return slot
		}
	}
}

// index makes slots anew for the entries there are.
func (c *counts[K]) index(size int) {
	if size == len(c.slots) {
		clear(c.slots)
	} else {
		c.slots = make([]uint32, size)
	}
	mask := uint32(size - 1)
	for i := range c.entries {
		slot := c.entries[i].hash & mask
		for c.slots[slot] != 0 {
			slot = (slot + 1) & mask
		}
		c.slots[slot] = uint32(i + 1)
	}
}

// makeRoom drops the entries that have light rows only. If there are none, it raises
// shortfall until half of the entries are at or below it, and drops those.
func (c *counts[K]) makeRoom() {
	c.estimate()
	if c.light {
		c.drop()
		c.light = false
	}
	if len(c.entries) == c.limit {
		for len(c.entries) > c.limit/2 {
			c.shortfall++
			c.drop()
		}
	}
	c.index(len(c.slots))
}

// drop drops the entries at or below shortfall.
func (c *counts[K]) drop() {
	kept := c.entries[:0]
	for i := range c.entries {
		e := &c.entries[i]
		if e.rows+e.late > c.shortfall {
			kept = append(kept, *e)
			continue
		}
		if c.gaveWay != nil {
			c.gaveWay(e)
		}
		c.freeCells(e.cells)
	}
	c.entries = kept
}

// estimate makes distinct an estimate.
func (c *counts[K]) estimate() {
	if c.seen != nil {
		return
	}
	c.seen = new(bitmap)
	for i := range c.entries {
		c.seen.add(c.entries[i].hash)
	}
}

func (c *counts[K]) newCell() uint32 {
	if i := c.free; i != 0 {
		c.free = c.cells[i].next
		return i
	}
	c.cells = append(c.cells, cell{})
	return uint32(len(c.cells) - 1)
}

func (c *counts[K]) freeCells(first uint32) {
	last := first
	for c.cells[last].next != 0 {
		last = c.cells[last].next
	}
	c.cells[last].next, c.free = c.free, first
}

// labels yields the labels of an entry and the rows under each.
func (c *counts[K]) labels(e *entry[K]) iter.Seq2[uint16, uint32] {
	return func(yield func(uint16, uint32) bool) {
		for i := e.cells; i != 0; i = c.cells[i].next {
			if !yield(c.cells[i].label, c.cells[i].rows) {
				return
			}
		}
	}
}

// lookup returns the entry of key, nil if it has none.
func (c *counts[K]) lookup(key *K) *entry[K] {
	if n := c.slots[c.find(key, uint32(maphash.Comparable(c.seed, *key)))]; n != 0 {
		return &c.entries[n-1]
	}
	return nil
}

// distinct returns the number of different keys added; once some gave way, an
// estimate of it that is good to about 1 % up to 16 million.
func (c *counts[K]) distinct() uint64 {
	if c.seen == nil {
		return uint64(len(c.entries))
	}
	return c.seen.estimate()
}

// reset forgets all rows. It keeps the memory for the next walk, unless that was
// far more than the last one needed.
func (c *counts[K]) reset() {
	const few = 1 << 10
	if cap(c.entries) > few && len(c.entries) < cap(c.entries)/8 || c.slots == nil {
		c.entries, c.cells = nil, nil
		c.slots = make([]uint32, few)
	}
	clear(c.slots)
	c.entries = c.entries[:0]
	c.cells = append(c.cells[:0], cell{})
	c.free, c.light, c.shortfall, c.seen = 0, false, 0, nil
}

// bitmap estimates how many different hashes it was given, by linear counting
// (Whang, Vander-Zanden and Taylor, "A Linear-Time Probabilistic Counting
// Algorithm for Database Applications", TODS 1990).
type bitmap [1 << 22 / 64]uint64

func (b *bitmap) add(hash uint32) {
	bit := hash % uint32(64*len(b))
	b[bit/64] |= 1 << (bit % 64)
}

func (b *bitmap) estimate() uint64 {
	size := 64 * len(b)
	unset := size
	for _, word := range b {
		unset -= bits.OnesCount64(word)
	}
	return uint64(math.Round(float64(size) * math.Log(float64(size)/float64(max(unset, 1)))))
}
