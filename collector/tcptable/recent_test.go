package tcptable

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// ends are those of row i.
func ends(i int) []byte { return binary.NativeEndian.AppendUint64(nil, uint64(i)) }

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
