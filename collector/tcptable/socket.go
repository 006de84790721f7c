// Package tcptable reads the kernel's table of TCP sockets, one socket at a
// time and without allocating per socket.
package tcptable

import (
	"context"
	"encoding/binary"
	"iter"
	"net/netip"
	"strconv"
	"time"
)

// State is a TCP state as the kernel numbers it (include/net/tcp_states.h).
type State uint8

// The states a row of the socket table can have. NEW_SYN_RECV (12) is printed
// by the kernel as SYN_RECV.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing

	// NumStates is the length of an array indexed by State.
	NumStates
)

var stateNames = [NumStates]string{
	Established: "established",
	SynSent:     "syn_sent",
	SynRecv:     "syn_recv",
	FinWait1:    "fin_wait1",
	FinWait2:    "fin_wait2",
	TimeWait:    "time_wait",
	Close:       "close",
	CloseWait:   "close_wait",
	LastAck:     "last_ack",
	Listen:      "listen",
	Closing:     "closing",
}

// String returns the kernel's name of the state in lower case.
func (s State) String() string {
	if s < NumStates && stateNames[s] != "" {
		return stateNames[s]
	}
	return "state " + strconv.Itoa(int(s))
}

// Kind tells which of the kernel's structures stands behind a row.
type Kind uint8

const (
	// Full is a struct tcp_sock.
	Full Kind = iota
	// Mini is a struct inet_timewait_sock: a socket in TIME_WAIT, or in
	// FIN_WAIT2 after the program has closed it. It has no inode, no owner and
	// no queues.
	Mini
	// Request is a struct request_sock: a half-open connection in SYN_RECV.
	Request
	// Bound is a struct tcp_sock that is bound and neither listens nor is
	// connected, in state CLOSE. Only sock_diag lists those.
	Bound

	numKinds
)

// Timer is what the kernel waits for in a Full socket, as it numbers it (the timer
// column of get_tcp4_sock in net/ipv4/tcp_ipv4.c, idiag_timer). One number that is
// none of these is an unknown timer.
type Timer uint8

// The timers.
const (
	// TimerNone is a socket that waits for its program or its peer alone: if the peer
	// is gone, nothing ends it.
	TimerNone Timer = 0
	// TimerRetransmit is for a SYN, data or a FIN to be acknowledged.
	TimerRetransmit Timer = 1
	// TimerKeepalive is for the time to ask an idle peer (SO_KEEPALIVE, man 7 tcp). In an
	// orphan in FIN_WAIT2 it is for the time to give up.
	TimerKeepalive Timer = 2
	timerMini      Timer = 3 // a minisock's time to live
	// TimerProbe is for the time to ask a peer whose window is 0 for room.
	TimerProbe Timer = 4

	// NumTimers is the length of an array indexed by Timer.
	NumTimers = 5
)

// String returns the timer's name.
func (t Timer) String() string {
	switch t {
	case TimerNone:
		return "none"
	case TimerRetransmit:
		return "retransmit"
	case TimerKeepalive:
		return "keepalive"
	case TimerProbe:
		return "probe"
	}
	return "timer " + strconv.Itoa(int(t))
}

// Table is one of the two tables; a socket is in exactly one of them.
type Table uint8

const (
	// TCP holds the AF_INET sockets.
	TCP Table = iota
	// TCP6 holds the AF_INET6 sockets, those that talk IPv4 included.
	TCP6

	// NumTables is the length of an array indexed by Table.
	NumTables
)

// String returns the table's file name below /proc/net.
func (t Table) String() string {
	if t == TCP6 {
		return "tcp6"
	}
	return "tcp"
}

// Addr is an IP address in 16 bytes, IPv4 as ::ffff:a.b.c.d whichever table it
// comes from. It has no pointer in it, unlike a netip.Addr, so that tables of
// addresses are nothing to the garbage collector and hashing one allocates nothing.
//
// A link-local IPv6 address, fe80::/64 (RFC 4291, section 2.5.6), means nothing
// without its zone: the number of the device whose link it is on. Where that is known,
// it is in the 48 bits that are 0, and the first byte is that of a multicast address,
// which no TCP socket has.
type Addr [16]byte

const (
	linkLocal = 0xfe80 << 48 // the first 64 bits
	zoned     = 0xff80 << 48 // with a zone in the lower 32 bits
)

// WithZone returns a link-local IPv6 address with its zone, any other as it is.
func (a Addr) WithZone(device uint32) Addr {
	if device != 0 && binary.BigEndian.Uint64(a[:8]) == linkLocal {
		binary.BigEndian.PutUint64(a[:8], zoned|uint64(device))
	}
	return a
}

// zone returns the zone, 0 if there is none.
func (a Addr) zone() uint32 {
	if high := binary.BigEndian.Uint64(a[:8]); high>>32 == zoned>>32 {
		return uint32(high)
	}
	return 0
}

// WithoutZone returns the address without its zone.
func (a Addr) WithoutZone() Addr {
	if a.zone() != 0 {
		binary.BigEndian.PutUint64(a[:8], linkLocal)
	}
	return a
}

// Is4 reports whether it is an IPv4 address.
func (a Addr) Is4() bool {
	return binary.BigEndian.Uint64(a[:8]) == 0 && binary.BigEndian.Uint32(a[8:]) == 0xffff
}

// IP returns the address, IPv4 as such, and a link-local one with its zone if that is
// known: fe80::9%3.
func (a Addr) IP() netip.Addr {
	if zone := a.zone(); zone != 0 {
		return netip.AddrFrom16(a.WithoutZone()).WithZone(strconv.FormatUint(uint64(zone), 10))
	}
	return netip.AddrFrom16(a).Unmap()
}

// Endpoint is one end of a connection.
type Endpoint struct {
	Addr Addr
	Port uint16
}

// Socket is one row of the table.
type Socket struct {
	Local, Remote Endpoint
	Table         Table
	State         State
	Kind          Kind
	// Timer is the one that runs for a Full socket, else TimerNone.
	Timer Timer
	// Unanswered is how often in a row that timer has sent something again, or a probe,
	// and no answer came; at most 255.
	Unanswered uint8
	// V6Only is whether an AF_INET6 socket that listens, or is Bound, takes no IPv4
	// (IPV6_V6ONLY, man 7 ipv6). Only sock_diag tells it, else it is false.
	V6Only bool
	// Transparent is whether a Full socket may have a local address that is not this
	// host's (IP_TRANSPARENT, man 7 ip): one that TPROXY handed to a transparent
	// listener, or a proxy's own. Only sock_diag tells it, else it is false.
	Transparent bool
	// Device is the number of the device that the socket is bound to (SO_BINDTODEVICE, a
	// VRF), and 0 if there is none, or link-local addresses have it in them. Only
	// sock_diag tells it, else it is 0.
	Device uint32
	// RxQueue is what the program has not read: bytes, and of a LISTEN row the
	// connections waiting for accept(2).
	RxQueue uint32
	// TxQueue is what the peer has not acknowledged, in bytes. It is 0 in a
	// LISTEN row.
	TxQueue uint32
	// Backlog is the longest accept queue of a LISTEN row; the queue is full when
	// RxQueue is more than that. Only sock_diag tells it, else it is 0.
	Backlog uint32
	// TimerLeft is the time until a Mini goes away. It stays 0 for up to the
	// last two seconds, because the kernel fires these timers late
	// (kernel/time/timer.c). It is 0 for other kinds.
	TimerLeft time.Duration
	// Inode is 0 when no file descriptor belongs to the socket: a Mini, a
	// Request, a connection not yet accepted, or one the program has closed.
	Inode uint64
	// Cgroup is the id of the v2 cgroup of the process that made a Full or Bound socket,
	// and of an accepted one its listener's (INET_DIAG_CGROUP_ID, Linux 5.8). Only
	// sock_diag tells it, else it is 0.
	Cgroup uint64
	// Cookie tells the socket from all others, its own Mini excepted (SO_COOKIE, man 7
	// socket). Only sock_diag tells it, else it is 0.
	Cookie uint64
	// LastAck is how long ago the peer's last segment with an ACK came
	// (tcpi_last_ack_recv); a probe's answer is one. It is there of a Full socket where
	// SockDiag was asked for it, else it is 0.
	LastAck time.Duration
}

// Source is a way to read the socket table of one network namespace.
type Source interface {
	// Sockets walks the table once. LISTEN rows of both tables come before all
	// others, and rows of Kind Bound with them, so that whoever counts knows first
	// which ports are held for all. An error ends the sequence, and what came before
	// it is only a part of the table. So it is when the walk has far fewer rows than
	// the kernel counts, a *ShortError.
	//
	// A Source is not for concurrent use: it reads into memory of its own.
	Sockets(ctx context.Context) iter.Seq2[Socket, error]
}
