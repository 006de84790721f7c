package tally

import "iter"

// devices counts connections of sockets that are bound to a device (SO_BINDTODEVICE, a
// VRF) by destination and device. A link-local address has its device in it: those are
// not counted here.
//
// A port that such a connection holds is kept from connects on the same device only, and
// one that a connection of no device holds from all (inet_bound_dev_eq in
// include/net/inet_sock.h). So toward one destination a port may be held by several.
type devices struct {
	destinations *counts[destination]
	counts       *counts[deviceDestination]
	// worst is the device with least ports left toward a destination, if there is one
	// with less than no device has.
	worst map[*entry[destination]]*entry[deviceDestination]

	// window has the rows seen last. Those that differ in their device alone are in one
	// bucket of the kernel's table, as its hash leaves the device out (inet_ehashfn in
	// net/ipv4/inet_hashtables.c), and so are near each other in a dump.
	window [64]deviceRow
	near   uint32 // for so many rows more, window has one with a device
}

type deviceRow struct {
	device      uint32
	destination uint32 // its hash
	localPort   uint16
	label       uint16
}

func newDevices(destinations *counts[destination]) devices {
	return devices{
		destinations: destinations,
		counts:       newCounts[deviceDestination](MaxDestinations),
		worst:        make(map[*entry[destination]]*entry[deviceDestination]),
	}
}

func (d *devices) reset() {
	d.counts.reset()
	clear(d.worst)
	*d = devices{destinations: d.destinations, counts: d.counts, worst: d.worst}
}

// place returns where the window has the row with a number.
func (d *devices) place(number uint64) *deviceRow {
	return &d.window[number%uint64(len(d.window))]
}

// compare counts a row toward a destination if it has a device; and its port, if
// another row in the window has the same one and no device, or the other way round. It
// is to be called with each row that has a device, and while near is not 0.
func (d *devices) compare(to *destination, row *deviceRow) {
	d.near = max(d.near, 1) - 1
	if row.device != 0 {
		d.counts.add(&deviceDestination{*to, row.device}, row.label, 1)
		d.near = uint32(len(d.window))
	}
	for i := range d.window {
		other := &d.window[i]
		if other.localPort != row.localPort || other.destination != row.destination || (other.device == 0) == (row.device == 0) {
			continue
		}
		none, device := row, other.device
		if row.device != 0 {
			none, device = other, row.device
		}
		d.counts.addLight(&deviceDestination{*to, device}, none.label|common)
	}
}

// findWorst ends the walk.
func (d *devices) findWorst() {
	for i := range d.counts.entries {
		on := &d.counts.entries[i]
		to := d.destinations.lookup(&on.key.destination)
		if to != nil && byBlocked(d.held(to, on), d.held(to, d.worst[to])) < 0 {
			d.worst[to] = on
		}
	}
}

// all yields each destination, on the device where it is worst.
func (d *devices) all() iter.Seq[heldDestination] {
	return func(yield func(heldDestination) bool) {
		for i := range d.destinations.entries {
			to := &d.destinations.entries[i]
			if !yield(d.held(to, d.worst[to])) {
				return
			}
		}
	}
}

func (d *devices) held(to *entry[destination], on *entry[deviceDestination]) heldDestination {
	held, blocked := 0, 0
	for label, n := range d.ports(to, on) {
		held += n
		if label&^(stateBits|unanswered) == 0 {
			blocked += n
		}
	}
	return heldDestination{entry: to, on: on, held: uint64(max(held, 0)), blocked: uint64(max(blocked, 0))}
}

// ports yields the labels of the ports that are held toward a destination on a device,
// or on none if that is nil, and how many each adds to what came before.
func (d *devices) ports(to *entry[destination], on *entry[deviceDestination]) iter.Seq2[uint16, int] {
	return func(yield func(uint16, int) bool) {
		for label, rows := range d.destinations.labels(to) {
			if label&(unpooled|onDevice) == 0 && !yield(label, int(rows)) {
				return
			}
		}
		if on == nil {
			return
		}
		for label, rows := range d.counts.labels(on) {
			n := int(rows)
			if label&common != 0 {
				n = -n
			}
			if !yield(label&^common, n) {
				return
			}
		}
	}
}
