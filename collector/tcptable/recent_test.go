package tcptable

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// ends are those of row i.
func ends(i int) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(i)) }

// TestRecentRows knows a row of an earlier read again.
func TestRecentRows(t *testing.T) {
	r := newRecentRows()
	f := func(i int, want bool) {
		t.Helper()
		if got := r.seen(ends(i)); got != want {
			t.Errorf("row %d in read %d: %v, want %v", i, r.read, got, want)
		}
	}
	r.reset()
	r.nextRead()
	f(1, false)
	f(2, false)
	// In one read the kernel lists no socket twice: these are two with equal ends.
	f(2, false)
	r.nextRead()
	f(2, true)
	f(2, true)
	f(3, false)
	f(3, false)
	r.nextRead()
	f(3, true)
	f(4, false)
	// A walk begins: nothing is left of the one before.
	r.reset()
	f(4, false)
	r.nextRead()
	f(3, false)
	f(4, true)
	// All of the ends count.
	r.nextRead()
	if r.seen(ends(5)[:4]) || r.seen(nil) || r.seen([]byte("")) {
		t.Error("a row is known that was never listed")
	}
	r.nextRead()
	if !r.seen(nil) {
		t.Error("a row without ends is not known")
	}
}

// TestRecentRowsRemembers has reads as long as those of a dump: the rows of the
// read before are known, and nothing else is.
func TestRecentRowsRemembers(t *testing.T) {
	const perRead = 340 // records of minisocks in 32 KiB
	r := newRecentRows()
	known, again := 0, 0
	for read := range 100 {
		r.nextRead()
		if read > 0 {
			// The very last row, which is the one most often listed again, is always known.
			if last := read*perRead - 1; !r.seen(ends(last)) {
				t.Errorf("read %d: the last row of the read before is not known", read)
			}
			for range 20 {
				again++
				if r.seen(ends((read-1)*perRead + rand.IntN(perRead))) {
					known++
				}
			}
		}
		for i := range perRead {
			if r.seen(ends(read*perRead + i)) {
				t.Fatalf("row %d of read %d is new", i, read)
			}
		}
	}
	// A row that shares its place with a later one is forgotten.
	if known < again*8/10 {
		t.Errorf("of %d rows of the read before only %d are known", again, known)
	}
}
