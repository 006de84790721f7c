// Package snapshot is what is known of a network namespace, and of the node, at one
// time: the numbers that metrics are made of, without a word on how they are named or
// written. It reads nothing.
//
// A snapshot is made anew each time and does not change afterwards, so any number of
// readers may have it at the same time, and keep it. It is bounded, whatever happens in the
// network: remotes, destinations, listeners and local addresses are there one by one for
// the largest, and the others as their exact sum.
//
// What could not be read is nil, or not among the Numbers; 0 is a count.
package snapshot

import (
	"iter"
	"net/netip"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/tcptable"
)

// Node is what all network namespaces of a machine share.
type Node struct {
	// Kernel has the numbers that are of the node (kernelstat.Number.OfNode).
	Kernel kernelstat.Numbers
	// Namespaces are all others; nil where only one is read.
	Namespaces *Namespaces
	// Targets are what most outbound connections of all namespaces that are read go to,
	// most first; nil where that is not wanted. NATUse is the share, from 0 to 1, of the
	// ports of a NAT before the node that the first one of them needs; nil if these are not known.
	Targets []Target
	NATUse  *float64
}

// Namespaces are the network namespaces that processes are in, without the exporter's
// own.
type Namespaces struct {
	// Own is whose the exporter's own one is.
	Own owner.Owner
	// Others have the kernel's counts of each. Their Sockets are those of the last look
	// at the table, nil before the first, and name no more in all together than one alone
	// may.
	Others []*Namespace
	// Read are those whose table was read in this scrape. Of the others, Unchanged are
	// those of which no counter has changed since, and Waiting those of which one has.
	// Denied are those of which nothing may be read.
	Read, Unchanged, Waiting, Denied int
	// HostVisible is whether the processes of the host are: if not, there may be more.
	HostVisible bool
}

// Namespace is one network namespace.
type Namespace struct {
	// Name is "host" for that of PID 1, else "self"; with others beside it, whose it is.
	Name string
	// Owner is whose it is, where more than one is read.
	Owner owner.Owner
	// Dir is the net directory that was read; of others than the exporter's own, "".
	Dir     string
	Sysctls Sysctls

	// Pool is the ephemeral pool with its rules; nil where its sysctls can't be read or
	// are another namespace's.
	Pool *kernelstat.Pool
	// Sockets is the table of sockets; nil where the walk failed.
	Sockets *Sockets
	// Owners are those of Sockets; nil where nothing tells them, or reading them failed.
	Owners *Owners
	// OwnerSource says what tells the owners, or why nothing does; nil where they are
	// not wanted.
	OwnerSource *owner.Source
	// Kernel has the kernel's own counters and limits of the namespace, by its names
	// and in its units.
	Kernel kernelstat.Numbers
	// Parts tell how each part of this was read.
	Parts []Part
	// Rows are those of each table that were read since the program began, and
	// MalformedRows those of them that were not as the kernel writes them.
	Rows, MalformedRows [tcptable.NumTables]uint64
}

// Sysctls tells whose net sysctls the process sees (net/sysctl_net.c).
type Sysctls string

// The values of Sysctls.
const (
	SysctlsSame  Sysctls = "same"  // those of the namespace
	SysctlsOther Sysctls = "other" // those of another one, which are left out
	SysctlsNone  Sysctls = "none"  // none, or not readable
	// Those that a namespace begins with are assumed to hold in it.
	SysctlsAssumed Sysctls = "assumed"
	// They do not hold: ports outside of its range are in use by connect(2).
	SysctlsUnknown Sysctls = "unknown"
)

// Part is a file, a group of sysctls or a dump, which is read, and fails, by itself.
type Part struct {
	Name string
	Took time.Duration
	Err  error // nil if it was read
}

// Direction of a connection, seen from this host.
type Direction uint8

// The directions. Inbound is a connection of a listener's port.
const (
	Inbound Direction = iota
	Outbound

	// NumDirections is the length of an array indexed by Direction.
	NumDirections
)

func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// States yields the states that connections of the direction can have.
func (d Direction) States() iter.Seq[tcptable.State] {
	return func(yield func(tcptable.State) bool) {
		for s := tcptable.Established; s < tcptable.NumStates; s++ {
			listening := s == tcptable.Listen || s == tcptable.SynRecv
			if d == Outbound && listening || d == Inbound && s == tcptable.SynSent {
				continue
			}
			if !yield(s) {
				return
			}
		}
	}
}

// Family of the addresses of a socket, whichever table lists it.
type Family uint8

// The families. ::ffff:a.b.c.d is IPv4.
const (
	IPv4 Family = iota
	IPv6

	// NumFamilies is the length of an array indexed by Family.
	NumFamilies
)

func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// States counts sockets by state.
type States [tcptable.NumStates]uint64

// Add adds the counts of other.
func (s *States) Add(other *States) {
	for state, n := range other {
		s[state] += n
	}
}

// Sum returns the sockets in all states.
func (s *States) Sum() (sum uint64) {
	for _, n := range s {
		sum += n
	}
	return sum
}

// Sockets is one walk of the table of TCP sockets, net/tcp and net/tcp6 or the same by
// sock_diag (net/ipv4/tcp_ipv4.c, net/ipv4/tcp_diag.c).
type Sockets struct {
	// Source is what it was read from: "procfs" or "netlink".
	Source string
	// Read is when.
	Read time.Time

	// Connections counts all sockets, the listening ones as inbound.
	Connections [NumFamilies][NumDirections]States
	// Unread is what programs have not read, and Unacknowledged what peers have not
	// acknowledged, in bytes; listeners are left out.
	Unread, Unacknowledged [NumDirections]uint64
	// Orphans are connections that their program has closed and the kernel still works
	// on, minisocks left out.
	Orphans uint64
	// Timers counts full sockets, half-open ones and orphans left out, by the timer that runs;
	// one that none of tcptable has is not in it.
	Timers [NumDirections][tcptable.NumTimers]uint64
	// Unanswered are those of them whose last three or more retransmissions or probes nobody
	// has answered (icsk_retransmits and icsk_probes_out in include/net/inet_connection_sock.h).
	Unanswered [NumDirections]States
	// HalfClosed are those in FIN_WAIT2: their program has called shutdown(2) and not close(2),
	// and no timer ends them (tcp_time_wait in net/ipv4/tcp_minisocks.c is for closed ones).
	HalfClosed [NumDirections]uint64
	// TimeWait counts connections in TIME_WAIT by the time they have left. The bounds
	// rise; the last bucket is for those of kernels whose TIME_WAIT is longer than 60 s, and is there
	// on these only.
	TimeWait [NumDirections][]Bucket

	// RemoteIPs are how many there are, or blocks of them.
	RemoteIPs [NumDirections]uint64
	// TopShare is the share, from 0 to 1, of the connections in a state that the one
	// remote with most of them holds.
	TopShare [NumDirections][tcptable.NumStates]float64
	// Remotes are all groups and then those with most connections, most first, and
	// OtherRemotes all others in sum. Listeners have no remote.
	Remotes      []Remote
	OtherRemotes [NumDirections]States

	// Destinations are how many there are: local IP, remote IP and remote port of
	// outbound connections.
	Destinations uint64
	// HeldPorts are the local ports that any socket has, on any address; nil of others than
	// the exporter's own namespace.
	HeldPorts *kernelstat.PortSet
	// Ports are those of the ephemeral pool; nil where the pool is not known.
	Ports *Ports
	// Targets are what most outbound connections go to, most first; only where the sum of
	// several namespaces is wanted.
	Targets []Target

	// Listeners are the local ports with most inbound connections, most first, and
	// OtherListeners all others in sum; nil if there are none.
	Listeners      []Listener
	OtherListeners *Listener
	// AcceptQueues are those of Listeners, whatever is in them.
	AcceptQueues []AcceptQueue
	// HasBacklogs is whether AcceptQueues has limits. The table does not tell them, only
	// sock_diag does.
	HasBacklogs bool

	// Undercount is by how many connections any one count may be short, because there
	// were too many different ones; sums never are.
	Undercount Undercount
}

// Undercount is in connections: 0 where every count is exact.
type Undercount struct{ Remote, Destination, LocalIP uint64 }

// Bucket counts connections in TIME_WAIT that end within UpTo, and not within the UpTo of
// the bucket before it.
type Bucket struct {
	UpTo        time.Duration
	Connections uint64
}

// Remote is a peer, or a group of them.
type Remote struct {
	// Group is the name of a group; "" if it is none.
	Group string
	// IP is its address, or the first one of a block of those that share Bits bits.
	IP     netip.Addr
	Bits   int
	States [NumDirections]States
}

// Connections returns how many it has.
func (r *Remote) Connections() uint64 {
	return r.States[Inbound].Sum() + r.States[Outbound].Sum()
}

// Listener is a local port with its inbound connections, listeners left out.
type Listener struct {
	Port   uint16 // 0 in a sum of several
	States States
	// Unaccepted are those in ESTABLISHED or CLOSE_WAIT that no program has accepted.
	Unaccepted States
	// SynFill is how full its fullest SYN queue is, from 0 to 1: half-open connections of an
	// address / those that its listening sockets have room for. HasSynFill is whether that
	// is known: not of a sum, and only by sock_diag and sysctls of the namespace.
	SynFill    float64
	HasSynFill bool
}

// AcceptQueue is what waits for accept(2) on the listening sockets of one local address
// and port. There are several with SO_REUSEPORT or SO_BINDTODEVICE, each with a queue of
// its own, and a handshake goes to one of them, full or not.
type AcceptQueue struct {
	LocalIP netip.Addr // not valid in the sum of a port's further addresses
	Port    uint16
	// Sockets are how many listen, Length and Limit their connections that wait and
	// their backlogs, in sum.
	Sockets, Length, Limit uint64
	// Fill is how full the fullest of them is, length / (backlog + 1), at most 1; and
	// Full how many are at 1.
	Fill float64
	Full uint64
	// Cgroups are the ids of the v2 cgroups of the processes that made them; nil where
	// that is not known.
	Cgroups []uint64
}

// Ports tells what of the ephemeral pool is held.
type Ports struct {
	// Used are the ports that any socket holds toward anything.
	Used int
	// HeldForAll are those of them that connect(2) can use for no destination: of
	// listening sockets and, where the source shows them, of idle bound ones.
	HeldForAll int
	// Connect is the share of the pool, from 0 to 1, that is gone for connect(2) to the
	// worst destination; Bind for bind(2) with port 0 on the worst local IP, and BindAny
	// on ::. At 1 the next such call fails.
	Connect, Bind, BindAny float64
	// Destinations are those with most of the pool gone, a quarter of them those with most
	// of it held, and up to a quarter those with most connections unanswered.
	Destinations []Destination
	// Locals are the local addresses with most ports, most first.
	Locals []Local
}

// Target is what outbound connections go to, whatever their local address.
type Target struct {
	IP          netip.Addr
	Port        uint16
	Connections uint64
}

// Destination is what connect(2) needs a free local port for.
type Destination struct {
	LocalIP, RemoteIP netip.Addr
	RemotePort        uint16
	// Held are the ports of the pool that are held toward it.
	Held States
	// Gone is the share of the pool, from 0 to 1, that connect(2) can't use: Held, less
	// what it may take over, and the ports of listeners.
	Gone float64
	// Unanswered are the connections toward it, of whatever port, that Sockets.Unanswered
	// counts.
	Unanswered uint64
}

// Local is a local address.
type Local struct {
	IP netip.Addr
	// Used are the ports of the pool that any socket holds on it or on all, and Gone
	// their share of the pool, from 0 to 1.
	Used int
	Gone float64
}
