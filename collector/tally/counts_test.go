package tally

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// exactly has the rows of each key by label.
type exactly map[uint64][8]uint64

func (x exactly) add(key uint64, label uint16, rows uint32) {
	labels := x[key]
	labels[label] += uint64(rows)
	x[key] = labels
}

// fill adds n times what next says to c, and counts it a second way.
func fill(c *counts[uint64], n int, next func(i int) (key uint64, label uint16, rows uint32)) exactly {
	exact := make(exactly)
	for i := range n {
		key, label, rows := next(i)
		c.add(&key, label, rows)
		exact.add(key, label, rows)
	}
	return exact
}

// zipf returns a key of which few have many rows and many have few.
func zipf(random *rand.Rand) uint64 { return uint64(1 / (1 - random.Float64())) }

func total(labels [8]uint64) uint64 {
	var sum uint64
	for _, rows := range labels {
		sum += rows
	}
	return sum
}

// checkBounds holds counts to what its comment promises.
func checkBounds(t *testing.T, c *counts[uint64], exact exactly) {
	t.Helper()
	var rows uint64
	for _, labels := range exact {
		rows += total(labels)
	}
	if uint64(c.shortfall)*uint64(c.limit) > 2*rows {
		t.Errorf("%d rows in %d entries may be %d short", rows, c.limit, c.shortfall)
	}
	if len(c.entries) > c.limit {
		t.Errorf("%d entries, %d are allowed", len(c.entries), c.limit)
	}
	found := make(map[uint64]bool)
	for i := range c.entries {
		e := &c.entries[i]
		if found[e.key] {
			t.Errorf("key %d is there twice", e.key)
		}
		found[e.key] = true
		if c.lookup(&e.key) != e {
			t.Errorf("key %d is not found", e.key)
		}
		want := exact[e.key]
		if n := total(want); uint64(e.rows) > n || uint64(e.rows)+uint64(c.shortfall) < n {
			t.Errorf("key %d has %d rows, want %d and at most %d less", e.key, e.rows, n, c.shortfall)
		}
		var sum uint32
		for label, n := range c.labels(e) {
			sum += n
			if uint64(n) > want[label] || uint64(n)+uint64(c.shortfall) < want[label] {
				t.Errorf("key %d has %d rows under label %d, want %d and at most %d less", e.key, n, label, want[label], c.shortfall)
			}
		}
		if sum != e.rows {
			t.Errorf("key %d has %d rows, and %d under its labels", e.key, e.rows, sum)
		}
	}
	for key, labels := range exact {
		if n := total(labels); n > uint64(c.shortfall) && !found[key] {
			t.Errorf("key %d has %d rows and is not there, though at most %d may be missing", key, n, c.shortfall)
		}
		if !found[key] && c.lookup(&key) != nil {
			t.Errorf("key %d is found and not there", key)
		}
	}
	if len(exact) <= c.limit {
		if c.shortfall != 0 || len(c.entries) != len(exact) || c.distinct() != uint64(len(exact)) {
			t.Errorf("%d keys in %d entries of %d, %v distinct, %d short", len(exact), len(c.entries), c.limit, c.distinct(), c.shortfall)
		}
	} else if off := math.Abs(float64(c.distinct())/float64(len(exact)) - 1); off > 0.02 {
		t.Errorf("%v distinct, want %d", c.distinct(), len(exact))
	}
}

// TestCounts is a property test: random rows of several kinds of crowds.
func TestCounts(t *testing.T) {
	const rows = 20_000
	random := rand.New(rand.NewPCG(7, 8))
	f := func(limit, rows int, key func(i int) uint64) {
		t.Helper()
		c := newCounts[uint64](limit)
		for range 2 { // with the memory of the first time
			exact := fill(c, rows, func(i int) (uint64, uint16, uint32) { return key(i), uint16(random.UintN(8)), 1 })
			checkBounds(t, c, exact)
			c.reset()
			if len(c.entries) != 0 || c.distinct() != 0 || c.shortfall != 0 {
				t.Errorf("%d entries, %v distinct, %d short after reset", len(c.entries), c.distinct(), c.shortfall)
			}
			checkBounds(t, c, nil)
		}
	}
	distinct := func(i int) uint64 { return uint64(i) }
	scattered := func(int) uint64 { return random.Uint64() }
	few := func(int) uint64 { return random.Uint64N(10) }
	skewed := func(int) uint64 { return zipf(random) }
	attacked := func(i int) uint64 {
		if i%4 == 0 {
			return random.Uint64N(3) // three that matter among a crowd
		}
		return random.Uint64()
	}
	late := func(i int) uint64 {
		if i > rows*9/10 {
			return 1 // comes when there is no room
		}
		return 1000 + uint64(i)
	}
	waves := func(i int) uint64 { return uint64(i % 3000) } // each gives way before it comes again
	for _, limit := range []int{2, 3, 16, 1000, 1024, 4096} {
		f(limit, 0, distinct)
		f(limit, 1, distinct)
		f(limit, limit, distinct)
		f(limit, limit+1, distinct)
		f(limit, rows, distinct)
		f(limit, rows, scattered)
		f(limit, rows, few)
		f(limit, rows, skewed)
		f(limit, rows, attacked)
		f(limit, rows, late)
		f(limit, rows, waves)
	}
	f(1000, 100_000, distinct)
}

// TestCountsWeighted adds many rows at once.
func TestCountsWeighted(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	c := newCounts[uint64](100)
	checkBounds(t, c, fill(c, 5000, func(int) (uint64, uint16, uint32) {
		return zipf(random), uint16(random.UintN(3)), uint32(random.UintN(50))
	}))
}

// TestCountsGaveWay hears of every row that is not in an entry at the end.
func TestCountsGaveWay(t *testing.T) {
	c := newCounts[uint64](64)
	gone := make(exactly)
	add := func(e *entry[uint64]) {
		for label, rows := range c.labels(e) {
			gone.add(e.key, label, rows)
		}
	}
	c.gaveWay = add
	random := rand.New(rand.NewPCG(11, 12))
	exact := fill(c, 20_000, func(int) (uint64, uint16, uint32) { return zipf(random), uint16(random.UintN(3)), 1 })
	for i := range c.entries {
		add(&c.entries[i])
	}
	if len(exact) <= c.limit {
		t.Fatalf("%d keys give no way", len(exact))
	}
	if !maps.Equal(gone, exact) {
		t.Errorf("%v, want %v", gone, exact)
	}
}

// TestCountsMemory takes no more memory for the rows of a second walk, and gives
// it back after a flood.
func TestCountsMemory(t *testing.T) {
	c := newCounts[uint64](1 << 16)
	walk := func(keys int) {
		c.reset()
		for key := range uint64(keys) {
			c.add(&key, uint16(key%5), 1)
		}
	}
	walk(50_000)
	if n := testing.AllocsPerRun(3, func() { walk(50_000) }); n > 0 {
		t.Errorf("%v allocations in a walk like the one before", n)
	}
	if n := testing.AllocsPerRun(1, func() { walk(1_000_000) }); n > 100 {
		t.Errorf("%v allocations in a walk in which many keys give way", n)
	}
	if got, most := cap(c.entries), 2*c.limit; got > most {
		t.Errorf("room for %d entries, the limit is %d", got, c.limit)
	}
	if got, most := cap(c.cells), 4*c.limit; got > most {
		t.Errorf("room for %d cells, the limit is %d", got, c.limit)
	}
	walk(100)
	walk(100)
	if got := max(cap(c.entries), cap(c.cells), len(c.slots)); got > 4096 {
		t.Errorf("room for %d entries, %d cells and %d slots after a flood is over", cap(c.entries), cap(c.cells), len(c.slots))
	}
}

func TestLargest(t *testing.T) {
	descending := func(a, b int) int { return cmp.Compare(b, a) }
	random := rand.New(rand.NewPCG(13, 14))
	for range 200 {
		numbers := make([]int, random.IntN(60))
		for i := range numbers {
			numbers[i] = random.IntN(50)
		}
		want := slices.Clone(numbers)
		slices.SortFunc(want, descending)
		for _, n := range []int{0, 1, random.IntN(70)} {
			if got := largest(slices.Values(numbers), n, descending); !slices.Equal(got, want[:min(n, len(want))]) {
				t.Errorf("the %d largest of %v are %v", n, numbers, got)
			}
		}
	}
}

// TestCountsLight has keys of light rows among others: they give way to those, and
// come in only while there is much room. Every row is counted by someone.
func TestCountsLight(t *testing.T) {
	const limit = 1000
	f := func(heavy, light int, wantShort bool) {
		t.Helper()
		var away uint64
		c := newCounts[uint64](limit)
		c.gaveWay = func(e *entry[uint64]) {
			for _, rows := range c.labels(e) {
				away += uint64(rows)
			}
		}
		for range 2 { // with the memory of the first time
			away = 0
			for i := range max(heavy, light) {
				if key := uint64(i); i < light {
					c.addLight(&key, uint16(i%8))
				}
				if key := uint64(1_000_000 + i); i < heavy {
					c.add(&key, 0, 1)
				}
			}
			if short := c.shortfall > 0; short != wantShort {
				t.Errorf("%d keys, and %d light ones: %d short", heavy, light, c.shortfall)
			}
			in := away
			found := make(map[bool]int)
			for i := range c.entries {
				found[c.entries[i].key >= 1_000_000]++
				for _, rows := range c.labels(&c.entries[i]) {
					in += uint64(rows)
				}
			}
			if in != uint64(heavy+light) {
				t.Errorf("%d keys, and %d light ones: %d rows are in or gave way", heavy, light, in)
			}
			if !wantShort && found[true] != heavy {
				t.Errorf("%d keys, and %d light ones: %d and %d are in", heavy, light, found[true], found[false])
			}
			if len(c.entries) > limit {
				t.Errorf("%d entries", len(c.entries))
			}
			if off := math.Abs(float64(c.distinct())/float64(heavy+light) - 1); off > 0.02 {
				t.Errorf("%v distinct, want %d", c.distinct(), heavy+light)
			}
			c.reset()
		}
	}
	f(1, 1, false)
	f(0, limit, false)
	f(0, 100*limit, false)
	f(10, 100*limit, false)
	f(limit/2, 100*limit, false)
	f(limit, 100*limit, false)
	f(limit, limit, false)
	f(limit+1, 0, true)
	f(limit+1, 100*limit, true)
	f(10*limit, 100*limit, true)

	// A key is light no more once it has a row that counts.
	c := newCounts[uint64](4)
	keys := []uint64{0, 1, 2, 3, 4}
	c.addLight(&keys[0], 1)
	c.addLight(&keys[1], 1)
	c.add(&keys[0], 2, 1)
	for i := range keys[2:] {
		c.add(&keys[2+i], 2, 1)
	}
	if c.lookup(&keys[0]) == nil || c.lookup(&keys[1]) != nil || c.shortfall != 0 {
		t.Errorf("%+v, %d short", c.entries, c.shortfall)
	}
	c.addLight(&keys[0], 3) // one that is in is counted though there is no room
	for label, rows := range c.labels(c.lookup(&keys[0])) {
		if rows != 1 {
			t.Errorf("%d rows under label %d", rows, label)
		}
	}
}
