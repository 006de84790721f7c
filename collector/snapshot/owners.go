package snapshot

import (
	"net/netip"
	"time"

	"timewait_exporter/collector/owner"
)

// Owners tells whose the sockets of a walk are. An owner is named as owner.Owner.Label
// writes it; owners of one name are one.
//
// A live socket is of the process that made it, an accepted one of its listener's. A minisock or half-open
// connection that came in is of its listener, if that has one owner and had no other
// for as long as TIME_WAIT lasts. All else is of owner.Unknown.
type Owners struct {
	// All are those with most live sockets, most first, then owner.Other, which is all further ones in
	// sum, and owner.Unknown, where there are any. By direction and state, all together
	// are Sockets.Connections.
	All []OwnerSockets
	// Listeners are the owners of AcceptQueues.
	Listeners []ListenerOwner
	// Destinations are the owners of Ports.Destinations; nil where there are too many
	// sockets to tell.
	Destinations []DestinationOwners
}

// OwnerSockets are the sockets of an owner.
type OwnerSockets struct {
	Name string
	// Owner is what is known of it; of no kind for owner.Other and owner.Unknown.
	Owner owner.Owner
	// Cgroups are the ids of its cgroups.
	Cgroups []uint64
	// Connections are its sockets, listening ones included, and Unaccepted those in
	// ESTABLISHED or CLOSE_WAIT that no program has accepted.
	Connections [NumDirections]States
	Unaccepted  States
	// CloseWaits are its accepted sockets in CLOSE_WAIT.
	CloseWaits CloseWaits

	// Program is the comm of its oldest process, empty if that is not known.
	Program string
	// Worst is its process that is nearest to its own limit of open files; nil if that is
	// not known.
	Worst *owner.Process
}

// CloseWaits are accepted sockets in CLOSE_WAIT by age. An age is the time since the
// peer's last ACK, or since the socket was first seen in this state if that is longer: each
// answered keepalive probe is an ACK too.
type CloseWaits struct {
	Sockets uint64
	Oldest  time.Duration
	// Older counts those that are older than each of CloseWaitAges.
	Older [len(closeWaitAges)]uint64
}

var closeWaitAges = [...]time.Duration{time.Minute, 10 * time.Minute, time.Hour}

// CloseWaitAges are the ages that CloseWaits.Older counts from.
func CloseWaitAges() [len(closeWaitAges)]time.Duration { return closeWaitAges }

// Add counts a socket.
func (c *CloseWaits) Add(age time.Duration) {
	c.Sockets++
	c.Oldest = max(c.Oldest, age)
	for i, than := range closeWaitAges {
		if age > than {
			c.Older[i]++
		}
	}
}

// Merge counts the sockets of another.
func (c *CloseWaits) Merge(other *CloseWaits) {
	c.Sockets += other.Sockets
	c.Oldest = max(c.Oldest, other.Oldest)
	for i, n := range other.Older {
		c.Older[i] += n
	}
}

// ListenerOwner is an owner of listening sockets on a local address and port.
type ListenerOwner struct {
	LocalIP netip.Addr
	Port    uint16
	Name    string
}

// DestinationOwners tells whose the outbound sockets toward a destination are: those that are
// alive, and those that earlier walks saw alive and that have gone in the last five minutes, each
// once. The latter make its TIME_WAITs, but were the likelier to be seen the longer they
// lived.
type DestinationOwners struct {
	LocalIP, RemoteIP netip.Addr
	RemotePort        uint16
	// Live and Gone have the owners with most of each, most first, and then all others as
	// owner.Other.
	Live, Gone []OwnerCount
}

// OwnerCount counts sockets of an owner.
type OwnerCount struct {
	Name    string
	Sockets uint64
}
