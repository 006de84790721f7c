package tcptable

import "hash/maphash"

// recentRows remembers the last few thousand rows of a walk, to know one that is
// listed again.
//
// Between two reads the kernel keeps its place as a bucket and a number of sockets
// in it, so a socket that came into the bucket meanwhile makes it list the one
// before again. And when the last read of a walk of /proc was full, one more is
// needed to see the end, which lists as many of the last rows again as sockets
// have come.
//
// Two sockets may have the same ends for good if they are bound to different
// devices (VRF). They are neighbours in their bucket, and /proc does not show the
// device, so of such a pair one is lost when it lies on both sides of a read.
type recentRows struct {
	seed maphash.Seed
	read uint32 // the number of the read under way
	// rows is a direct-mapped cache: a row takes the place of an earlier one whose
	// hash has the same low bits.
	rows [4096]struct {
		hash uint64
		read uint32
	}
}

func newRecentRows() *recentRows { return &recentRows{seed: maphash.MakeSeed()} }

// reset begins a walk.
func (r *recentRows) reset() { *r = recentRows{seed: r.seed} }

// nextRead begins a read.
func (r *recentRows) nextRead() { r.read++ }

// seen reports whether an earlier read had the row, told by its ends, and
// remembers it.
func (r *recentRows) seen(ends []byte) bool {
	hash := maphash.Bytes(r.seed, ends)
	row := &r.rows[hash%uint64(len(r.rows))]
	if row.hash == hash && row.read != r.read {
		return true
	}
	row.hash, row.read = hash, r.read
	return false
}
