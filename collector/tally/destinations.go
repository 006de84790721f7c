package tally

import (
	"bytes"
	"cmp"

	"timewait_exporter/collector/snapshot"
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

// findUnanswered completes d.
func (t *Tally) findUnanswered(d *heldDestination) {
	var open uint64
	for label, rows := range t.destinations.labels(d.entry) {
		switch tcptable.State(label & stateBits) {
		case tcptable.Established, tcptable.SynSent, tcptable.CloseWait:
			open += uint64(rows)
		}
		if label&unanswered != 0 {
			d.unanswered += uint64(rows)
		}
	}
	d.gone = 2*d.unanswered > open
}

func (t *Tally) ports(n Limits) *snapshot.Ports {
	used := t.locals.total()
	out := &snapshot.Ports{Used: used, HeldForAll: t.heldPorts.Len(), BindAny: t.share(uint64(used))}

	// A port is counted toward a destination or as a listener's, never as both:
	// the labels keep them apart. A destination nobody talks to yet still lacks
	// the listeners' ports.
	forAll := uint64(out.HeldForAll)
	var blocked uint64
	worst := t.worstDestinations(max(n.Destinations, 1))
	out.Destinations = make([]snapshot.Destination, 0, len(worst))
	t.named = t.named[:0]
	for i, d := range worst {
		blocked = max(blocked, d.blocked)
		if i < n.Destinations {
			out.Destinations = append(out.Destinations, t.destination(d, forAll))
			t.named = append(t.named, d.hash)
		}
	}
	out.Connect = t.share(blocked + forAll)

	most := 0
	for f := range snapshot.NumFamilies {
		shared := t.locals.shared(f)
		most = max(most, unionLen(shared, shared))
	}
	out.Locals = largest(t.locals.all(), n.Locals, func(a, b snapshot.Local) int {
		return cmp.Or(cmp.Compare(b.Used, a.Used), a.IP.Compare(b.IP))
	})
	for i := range out.Locals {
		l := &out.Locals[i]
		l.Gone = t.share(uint64(l.Used))
		most = max(most, l.Used)
	}
	out.Bind = t.share(uint64(most))
	return out
}

func (t *Tally) destination(d heldDestination, forAll uint64) snapshot.Destination {
	to := snapshot.Destination{
		LocalIP: d.key.local.IP(), RemoteIP: d.key.remote.IP(), RemotePort: d.key.port,
		Gone: t.share(d.blocked + forAll), Unanswered: d.unanswered,
	}
	var held [tcptable.NumStates]int
	for label, n := range t.devices.ports(d.entry, d.on) {
		held[label&stateBits] += n
	}
	for state, n := range held {
		to.Held[state] = uint64(max(n, 0))
	}
	return to
}

// share returns the share of the pool that so many ports are. Of an empty pool every
// call fails. Ports that are held once on each of several devices, which /proc does not
// show, may count as more than there are.
func (t *Tally) share(ports uint64) float64 {
	if t.pool.Size == 0 {
		return 1
	}
	return min(ratio(ports, uint64(t.pool.Size)), 1)
}
