package tcptable

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Message types and states that golang.org/x/sys/unix does not name
// (include/uapi/linux/inet_diag.h, include/net/tcp_states.h).
const (
	getSock       = 18 // TCPDIAG_GETSOCK, the request of before Linux 3.3
	attrInfo      = 2  // INET_DIAG_INFO
	attrShutdown  = 8  // INET_DIAG_SHUTDOWN
	attrV6Only    = 11 // INET_DIAG_SKV6ONLY
	attrCgroup    = 21 // INET_DIAG_CGROUP_ID
	attrSockopt   = 22 // INET_DIAG_SOCKOPT
	boundInactive = 13 // TCP_BOUND_INACTIVE, since Linux 6.8

	listening = 1<<Listen | 1<<boundInactive
	connected = 1<<newSynRecv - 1<<Established - 1<<Listen
	// live has what is no minisock, and those of FIN_WAIT2.
	live = 1<<NumStates - 1<<Established - 1<<TimeWait - 1<<Close

	// lastAck is the offset of tcpi_last_ack_recv, in milliseconds, in a struct tcp_info
	// (include/uapi/linux/tcp.h).
	lastAck = 56
)

// dump is a request for the sockets of a family, 0 for both, in some states.
type dump struct {
	family uint8
	states uint32
	info   bool // with a struct tcp_info of each
}

// refusalError is the kernel's answer that it does not do what it was asked for.
type refusalError struct{ errno unix.Errno }

func (e refusalError) Error() string { return "the kernel refuses the dump: " + e.errno.Error() }
func (e refusalError) Unwrap() error { return e.errno }

// request returns the netlink message that asks for q: a struct inet_diag_req for
// both families, which only that can ask for, else a struct inet_diag_req_v2.
func (q dump) request(seq uint32) []byte {
	const header = unix.SizeofNlMsghdr
	var msg []byte
	var kind uint16
	if q.family == unix.AF_UNSPEC {
		kind = getSock
		msg = make([]byte, header+60) // family, lengths and extensions 4 bytes, id 48, states, flags
		msg[header+3] = q.extensions()
		binary.NativeEndian.PutUint32(msg[header+52:], q.states)
	} else {
		kind = unix.SOCK_DIAG_BY_FAMILY
		msg = make([]byte, header+56) // family, protocol, extensions and padding 4 bytes, states, id 48
		msg[header], msg[header+1], msg[header+2] = q.family, unix.IPPROTO_TCP, q.extensions()
		binary.NativeEndian.PutUint32(msg[header+4:], q.states)
	}
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(msg[8:], seq)
	return msg
}

// extensions are the attributes to be sent that are not sent unasked.
func (q dump) extensions() (bits uint8) {
	if q.info {
		bits = 1 << (attrInfo - 1)
	}
	return bits
}

// parseReply calls row with the payload of each message of kind in a datagram. It
// reports whether the dump is done.
//
// The last message carries an error number too, and there alone the kernel says
// that it can't dump TCP sockets, when tcp_diag is missing (inet_diag_dump in
// net/ipv4/inet_diag.c): unread, that looks like an empty table.
func parseReply(reply []byte, kind uint16, seq uint32, row func(diag []byte) error) (done bool, err error) {
	const header = unix.SizeofNlMsghdr
	for len(reply) > 0 {
		if len(reply) < header {
			return false, replyError(reply, "is too short for a netlink header")
		}
		length := int(binary.NativeEndian.Uint32(reply))
		if length < header || length > len(reply) {
			return false, replyError(reply, fmt.Sprintf("has a length of %d, with %d bytes left", length, len(reply)))
		}
		msg := reply[:length]
		got := binary.NativeEndian.Uint16(msg[4:])
		flags := binary.NativeEndian.Uint16(msg[6:])
		if answers := binary.NativeEndian.Uint32(msg[8:]); answers != seq {
			return false, replyError(msg, fmt.Sprintf("answers request %d and not %d", answers, seq))
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 {
			return false, replyError(msg, "says the dump was interrupted")
		}
		switch got {
		case kind:
			if err := row(msg[header:]); err != nil {
				return false, err
			}
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if length < header+4 {
				return false, replyError(msg, "is too short for an error number")
			}
			if code := int32(binary.NativeEndian.Uint32(msg[header:])); code < 0 {
				return false, refusalError{unix.Errno(-code)}
			}
			if got == unix.NLMSG_ERROR {
				return false, replyError(msg, "acknowledges what asked for a dump")
			}
			return true, nil
		case unix.NLMSG_NOOP:
		default:
			return false, replyError(msg, fmt.Sprintf("is of unknown type %d", got))
		}
		reply = reply[min((length+3)&^3, len(reply)):]
	}
	return false, nil
}

func replyError(msg []byte, what string) error {
	return fmt.Errorf("a reply %s: %x", what, msg[:min(len(msg), maxRow)])
}

// Fields of struct inet_diag_msg (include/uapi/linux/inet_diag.h). Ports and
// addresses are in network order, all else in the host's.
const (
	diagFamily  = 0
	diagState   = 1
	diagTimer   = 2
	diagRetrans = 3 // unanswered retransmissions or probes, by the timer
	diagID      = 4 // ports, addresses, device, cookie
	diagSource  = 8
	diagDest    = 24
	diagDevice  = 40
	diagCookie  = 44
	diagExpires = 52 // milliseconds
	diagRQueue  = 56
	diagWQueue  = 60
	diagInode   = 68
	diagLength  = 72
)

// parseDiag reads a struct inet_diag_msg and what follows it into s.
func parseDiag(diag []byte, s *Socket) error {
	if len(diag) < diagLength {
		return fmt.Errorf("a socket of %d bytes and not %d: %x", len(diag), diagLength, diag)
	}
	m := (*[diagLength]byte)(diag)
	s.Device = binary.NativeEndian.Uint32(m[diagDevice:])
	switch m[diagFamily] {
	case unix.AF_INET:
		s.Table = TCP
		s.Local.Addr, s.Remote.Addr = Addr{10: 0xff, 11: 0xff}, Addr{10: 0xff, 11: 0xff}
		copy(s.Local.Addr[12:], m[diagSource:])
		copy(s.Remote.Addr[12:], m[diagDest:])
	case unix.AF_INET6:
		s.Table = TCP6
		copy(s.Local.Addr[:], m[diagSource:])
		copy(s.Remote.Addr[:], m[diagDest:])
		if s.Device != 0 {
			s.Local.Addr, s.Remote.Addr = s.Local.Addr.WithZone(s.Device), s.Remote.Addr.WithZone(s.Device)
			if s.Local.Addr.zone() != 0 || s.Remote.Addr.zone() != 0 {
				s.Device = 0
			}
		}
	default:
		return fmt.Errorf("a socket of unknown family %d: %x", m[diagFamily], *m)
	}
	s.Local.Port = binary.BigEndian.Uint16(m[diagID:])
	s.Remote.Port = binary.BigEndian.Uint16(m[diagID+2:])
	s.State = State(m[diagState])
	s.RxQueue = binary.NativeEndian.Uint32(m[diagRQueue:])
	s.TxQueue = binary.NativeEndian.Uint32(m[diagWQueue:])
	s.Inode = uint64(binary.NativeEndian.Uint32(m[diagInode:]))
	s.Cookie = uint64(binary.NativeEndian.Uint32(m[diagCookie:])) | uint64(binary.NativeEndian.Uint32(m[diagCookie+4:]))<<32
	s.Kind, s.Timer, s.Unanswered, s.TimerLeft, s.Backlog = Full, TimerNone, 0, 0, 0
	full := parseAttrs(diag[diagLength:], s)
	switch {
	case s.State == newSynRecv:
		s.State, s.Kind = SynRecv, Request
	case s.State == 0 || s.State >= NumStates:
		return fmt.Errorf("a socket in unknown state %d: %x", m[diagState], *m)
	case Timer(m[diagTimer]) == timerMini:
		if s.State != TimeWait && s.State != FinWait2 {
			return fmt.Errorf("the timer of a minisock in state %v: %x", s.State, *m)
		}
		s.Kind = Mini
		s.TimerLeft = time.Duration(binary.NativeEndian.Uint32(m[diagExpires:])) * time.Millisecond
	case s.State == Close:
		s.Kind = Bound
	case s.State == Listen:
		s.Backlog, s.TxQueue = s.TxQueue, 0
	case s.State == SynRecv && !full:
		s.Kind = Request
	}
	if s.Kind == Full {
		s.Timer, s.Unanswered = Timer(m[diagTimer]), m[diagRetrans]
	}
	return nil
}

// sockoptTransparent returns the bit that is the sixth bit-field of a struct
// inet_diag_sockopt (include/uapi/linux/inet_diag.h). The first is the lowest bit on
// little-endian machines, the highest on big-endian ones.
func sockoptTransparent() byte {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return 1 << 2
	}
	return 1 << 5
}

// parseAttrs reads the attributes behind a struct inet_diag_msg
// (inet_diag_msg_attrs_fill in net/ipv4/inet_diag.c) into s, and reports whether
// they are of a full socket: of those only, the kernel says which ways are shut down.
func parseAttrs(attrs []byte, s *Socket) (full bool) {
	s.V6Only, s.Transparent, s.Cgroup, s.LastAck = false, false, 0, 0
	for len(attrs) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attrs))
		if length < unix.SizeofNlAttr || length > len(attrs) {
			return full
		}
		payload := attrs[unix.SizeofNlAttr:length]
		switch binary.NativeEndian.Uint16(attrs[2:]) {
		case attrInfo:
			if len(payload) >= lastAck+4 {
				s.LastAck = time.Duration(binary.NativeEndian.Uint32(payload[lastAck:])) * time.Millisecond
			}
		case attrShutdown:
			full = true
		case attrV6Only:
			s.V6Only = len(payload) > 0 && payload[0] != 0
		case attrCgroup:
			if len(payload) == 8 {
				s.Cgroup = binary.NativeEndian.Uint64(payload)
			}
		case attrSockopt:
			s.Transparent = len(payload) > 0 && payload[0]&sockoptTransparent() != 0
		}
		attrs = attrs[min((length+3)&^3, len(attrs)):]
	}
	return full
}
