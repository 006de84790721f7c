package collector

// devices counts connections of sockets that are bound to a device (SO_BINDTODEVICE, a
// VRF) by destination and device. A link-local address has its device in it: those are
// not counted here.
//
// A port that such a connection holds is kept from connects on the same device only, and
// one that a connection of no device holds from all (inet_bound_dev_eq in
// include/net/inet_sock.h). So toward one destination a port may be held by several.
type devices struct {
	counts *counts[deviceDestination]
	// worst is the device with least ports left toward a destination, if there is one
	// with less than no device has.
	worst map[*entry[destination]]*entry[deviceDestination]

	// window has the rows seen last. Those that differ in their device alone are in one
	// bucket of the kernel's table, as its hash leaves the device out (inet_ehashfn in
	// net/ipv4/inet_hashtables.c), and so are near each other in a dump.
	window [64]deviceRow
	near   uint32 // for so many rows more, window has one with a device
}

type deviceDestination struct {
	destination
	device uint32
}

type deviceRow struct {
	device      uint32
	destination uint32 // its hash
	localPort   uint16
	label       uint8
}

// What a label may have beside the bits of a row's.
const (
	onDevice = 0x80 // in a destination's: of a row that has a device
	common   = 0x80 // in a deviceDestination's: of a row that has none, whose port the device has as well
)

func newDevices() devices {
	return devices{
		counts: newCounts[deviceDestination](maxDestinations),
		worst:  make(map[*entry[destination]]*entry[deviceDestination]),
	}
}

func (d *devices) reset() {
	d.counts.reset()
	clear(d.worst)
	*d = devices{counts: d.counts, worst: d.worst}
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
