package tally

import (
	"bytes"
	"cmp"

	"timewait_exporter/collector/tcptable"
)

// MaxDestinations is how many destinations are told apart. Beyond, see counts.
const MaxDestinations = 1 << 16

// destination is what connect(2) needs a free local port for.
type destination struct {
	local, remote tcptable.Addr
	port          uint16
}

// The label under which a destination's rows are counted is their state with
// these bits. Only a row with none but the last keeps connect away from a port of the
// pool that is otherwise free.
const (
	stateBits  = 0x0f
	unpooled   = 0x10  // the local port is not in the pool
	heldForAll = 0x20  // a listener, or an idle socket, holds the local port too
	reusable   = 0x40  // connect may take the port over
	unanswered = 0x100 // the peer does not answer
)

type deviceDestination struct {
	destination
	device uint32
}

// What a label may have beside the bits of a row's.
const (
	onDevice = 0x80 // in a destination's: of a row that has a device
	common   = 0x80 // in a deviceDestination's: of a row that has none, whose port the device has as well
)

// heldDestination is a destination with the ports of the pool that are held toward
// it, and of these the blocked ones: that connect can't use, and no listener has.
type heldDestination struct {
	*entry[destination]
	on            *entry[deviceDestination] // nil: on no device
	held, blocked uint64
	unanswered    uint64 // connections of any port and device
	gone          bool   // most of those that a program has open are unanswered
}

func byBlocked(a, b heldDestination) int {
	if a.blocked != b.blocked {
		return cmp.Compare(b.blocked, a.blocked)
	}
	return byHeld(a, b)
}

// byUnanswered has destinations that are gone before those that are not, however large,
// of which some connections are always lost.
func byUnanswered(a, b heldDestination) int {
	switch {
	case a.gone != b.gone && a.gone:
		return -1
	case a.gone != b.gone:
		return 1
	case a.unanswered != b.unanswered:
		return cmp.Compare(b.unanswered, a.unanswered)
	}
	return byHeld(a, b)
}

func byHeld(a, b heldDestination) int {
	if a.held != b.held { // as most are, and the rest takes time
		return cmp.Compare(b.held, a.held)
	}
	return cmp.Or(
		bytes.Compare(a.key.remote[:], b.key.remote[:]),
		cmp.Compare(a.key.port, b.key.port),
		bytes.Compare(a.key.local[:], b.key.local[:]),
	)
}
