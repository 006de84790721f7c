package tcptable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diagText is a socket as testdata/sockdiag writes it down.
func diagText(s Socket) string {
	text := fmt.Sprintf("%v %v %s %v %v rx=%d tx=%d backlog=%d left=%v inode=%d",
		s.Table, s.State, [...]string{Full: "full", Mini: "mini", Request: "request", Bound: "bound"}[s.Kind],
		addrPort(s.Local), addrPort(s.Remote), s.RxQueue, s.TxQueue, s.Backlog, s.TimerLeft, s.Inode)
	if s.Device != 0 {
		text += fmt.Sprint(" device=", s.Device)
	}
	if s.V6Only {
		text += " v6only"
	}
	if s.Transparent {
		text += " transparent"
	}
	return text
}

// parseAnswer parses the datagrams that answer the request seq. The sockets it
// returns are those before the error.
func parseAnswer(kind uint16, seq uint32, datagrams ...[]byte) (sockets []Socket, done bool, err error) {
	for _, datagram := range datagrams {
		if done {
			return sockets, false, errors.New("a datagram behind the last one")
		}
		done, err = parseReply(datagram, kind, seq, func(diag []byte) error {
			s := Socket{Backlog: 99, TimerLeft: 99, Kind: Bound, Device: 99, V6Only: true, Transparent: true} // what the row before may have left
			if err := parseDiag(diag, &s); err != nil {
				return err
			}
			sockets = append(sockets, s)
			return nil
		})
		if err != nil {
			return sockets, done, err
		}
	}
	return sockets, done, nil
}

// capture reads the datagrams of testdata/sockdiag/NAME.*.bin.
func capture(t testing.TB, name string) (datagrams [][]byte) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		t.Skip("the captures are in the byte order of a little-endian kernel")
	}
	for i := 1; ; i++ {
		datagram, err := os.ReadFile(fmt.Sprintf("testdata/sockdiag/%s.%d.bin", name, i))
		if i > 1 && errors.Is(err, os.ErrNotExist) {
			return datagrams
		}
		if err != nil {
			t.Fatal(err)
		}
		datagrams = append(datagrams, datagram)
	}
}

// captures are those of testdata/sockdiag and the type of their records.
var captures = map[string]uint16{
	"all-states": getSock, "unprivileged": getSock,
	"listeners-ipv4": unix.SOCK_DIAG_BY_FAMILY, "listeners-ipv6": unix.SOCK_DIAG_BY_FAMILY,
	"missing-handler": unix.SOCK_DIAG_BY_FAMILY, "missing-family": unix.SOCK_DIAG_BY_FAMILY,
	"short-request": unix.SOCK_DIAG_BY_FAMILY,
}

func TestParseReplyCaptured(t *testing.T) {
	for name, kind := range captures {
		t.Run(name, func(t *testing.T) {
			sockets, done, err := parseAnswer(kind, 1, capture(t, name)...)
			var got strings.Builder
			for _, s := range sockets {
				fmt.Fprintln(&got, diagText(s))
			}
			if done {
				fmt.Fprintln(&got, "done")
			}
			if err != nil {
				fmt.Fprintln(&got, "error:", err)
			}
			want, err := os.ReadFile(filepath.Join("testdata/sockdiag", name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", &got, want)
			}
		})
	}
}

// TestParseReplyAgreesWithProc compares what sock_diag and /proc said of the same
// sockets.
func TestParseReplyAgreesWithProc(t *testing.T) {
	for _, name := range []string{"all-states", "unprivileged"} {
		sockets, _, err := parseAnswer(getSock, 1, capture(t, name)...)
		if err != nil {
			t.Fatal(err)
		}
		fromProc := make(map[string]Socket)
		for _, s := range mustWalk(t, NewProcNet("testdata/sockdiag/net")) {
			fromProc[diagText(undated(s))] = s
		}
		bound := 0
		for _, s := range sockets {
			if s.Kind == Bound {
				bound++
				continue
			}
			p, ok := fromProc[diagText(undated(s))]
			if !ok {
				t.Errorf("%s: /proc does not have %s", name, diagText(s))
				continue
			}
			delete(fromProc, diagText(undated(s)))
			if off := s.TimerLeft - p.TimerLeft; off < 0 || off > time.Second {
				t.Errorf("%s: %s, but /proc says %v a moment later", name, diagText(s), p.TimerLeft)
			}
		}
		for _, s := range fromProc {
			t.Errorf("%s: only /proc has %s", name, text(s))
		}
		if bound != 4 {
			t.Errorf("%s: %d idle sockets, want 4", name, bound)
		}
	}
}

// undated is a socket without its timer, which the clock changes, and without what
// /proc does not tell.
func undated(s Socket) Socket {
	s.TimerLeft, s.Device, s.Backlog, s.V6Only, s.Transparent = 0, 0, 0, false, false
	return s
}

// inetDiagMsg is struct inet_diag_msg of include/uapi/linux/inet_diag.h. Ports and
// addresses are in network order.
type inetDiagMsg struct {
	Family, State, Timer, Retrans        uint8
	SourcePort, DestPort                 [2]byte
	Source, Dest                         [16]byte
	Interface                            uint32
	Cookie                               [2]uint32
	Expires, RQueue, WQueue, UID, Socket uint32
}

// encode lays out structs as they are in memory.
func encode(structs ...any) []byte {
	var b []byte
	for _, s := range structs {
		var err error
		if b, err = binary.Append(b, binary.NativeEndian, s); err != nil {
			panic(err) // a struct without a fixed size
		}
	}
	return b
}

// attribute is a struct nlattr with its payload and padding.
func attribute(kind uint16, payload ...byte) []byte {
	a := append(encode(uint16(unix.SizeofNlAttr+len(payload)), kind), payload...)
	return append(a, make([]byte, -len(a)&3)...)
}

// message is a netlink message with its padding.
func message(kind, flags uint16, seq uint32, payload ...byte) []byte {
	m := encode(unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + len(payload)), Type: kind, Flags: flags, Seq: seq}, payload)
	return append(m, make([]byte, -len(m)&3)...)
}

// attrMark is INET_DIAG_MARK, which only those with CAP_NET_ADMIN are told.
const attrMark = 15

// Parts of the answers that the tests put together.
const testSeq = 77

func numberedDiag(i int) []byte {
	return encode(inetDiagMsg{Family: unix.AF_INET, State: uint8(TimeWait), Timer: timerMini, Expires: 1000,
		SourcePort: [2]byte{0, 80}, DestPort: [2]byte{byte(i >> 8), byte(i)}, Source: [16]byte{10, 0, 0, 1}, Dest: [16]byte{10, 0, 0, 2}})
}

func numberedMessage(i int) []byte {
	return message(getSock, unix.NLM_F_MULTI, testSeq, numberedDiag(i)...)
}

// ending is a message that says how the dump went.
func ending(kind uint16, errno unix.Errno) []byte {
	return message(kind, unix.NLM_F_MULTI, testSeq, encode(-int32(errno))...)
}

// TestParseReply has datagrams of several messages.
func TestParseReply(t *testing.T) {
	f := func(want []int, wantDone bool, parts ...[]byte) {
		t.Helper()
		sockets, done, err := parseAnswer(getSock, testSeq, bytes.Join(parts, nil))
		if err != nil || done != wantDone {
			t.Fatalf("done is %v, want %v, and %v", done, wantDone, err)
		}
		var got []int
		for _, s := range sockets {
			got = append(got, int(s.Remote.Port))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got the sockets %v, want %v", got, want)
		}
	}
	done := ending(unix.NLMSG_DONE, 0)
	noop := message(unix.NLMSG_NOOP, 0, testSeq)
	odd := message(getSock, 0, testSeq, append(numberedDiag(9), 1, 2, 3)...)
	f(nil, false)
	f([]int{1}, false, numberedMessage(1))
	f([]int{1, 2, 3}, false, numberedMessage(1), numberedMessage(2), numberedMessage(3))
	f([]int{1, 2}, true, numberedMessage(1), numberedMessage(2), done)
	f(nil, true, done)
	// What stands behind the end is not looked at.
	f([]int{1}, true, numberedMessage(1), done, numberedMessage(2))
	f(nil, true, done, []byte{1, 2, 3})
	// Nothing to do.
	f([]int{1, 2}, true, noop, numberedMessage(1), noop, noop, numberedMessage(2), done)
	// The length of a message leaves out its padding, which the last one may lack.
	f([]int{9, 1, 9}, false, odd, numberedMessage(1), odd)
	f([]int{9, 9}, false, odd, odd[:len(odd)-1])
	// The answer to a dump that tells more than an error number, as some kernels do.
	f([]int{1}, true, numberedMessage(1), message(unix.NLMSG_DONE, 0, testSeq, make([]byte, 40)...))
}

// TestParseReplyRefuses has datagrams that no dump of sockets can have, and dumps
// that went wrong. What came before the error has been seen.
func TestParseReplyRefuses(t *testing.T) {
	f := func(seen int, reason string, parts ...[]byte) {
		t.Helper()
		sockets, done, err := parseAnswer(getSock, testSeq, bytes.Join(parts, nil))
		if err == nil {
			t.Fatalf("no error, want %q", reason)
		}
		if done || len(sockets) != seen || !strings.Contains(err.Error(), reason) {
			t.Errorf("%d sockets, done is %v, %q; want %d and %q", len(sockets), done, err, seen, reason)
		}
		last := bytes.TrimRight(parts[len(parts)-1], "\x00")
		if strings.HasPrefix(reason, "a reply ") && !strings.Contains(err.Error(), fmt.Sprintf("%x", last[:min(len(last), 40)])) {
			t.Errorf("%q does not show %x", err, last)
		}
	}
	one := numberedMessage(1)
	withLength := func(length uint32) []byte {
		m := slices.Clone(one)
		binary.NativeEndian.PutUint32(m, length)
		return m
	}
	for _, n := range []int{1, 4, unix.SizeofNlMsghdr - 1} {
		f(0, "a reply is too short for a netlink header", one[:n])
		f(1, "a reply is too short for a netlink header", one, one[:n])
	}
	for _, length := range []uint32{0, 1, unix.SizeofNlMsghdr - 1, uint32(len(one) + 1), 1 << 31, 1<<32 - 1} {
		f(2, fmt.Sprintf("has a length of %d, with %d bytes left", int(length), len(one)), one, one, withLength(length))
	}
	f(1, fmt.Sprintf("has a length of %d, with %d bytes left", len(one), len(one)-1), one, one[:len(one)-1])

	// The answer to somebody else, or to an earlier request.
	f(1, "a reply answers request 76 and not 77", one, message(getSock, unix.NLM_F_MULTI, testSeq-1, numberedDiag(2)...))
	f(0, "a reply answers request 0 and not 77", message(unix.NLMSG_NOOP, 0, 0))
	f(0, "a reply answers request 4294967295 and not 77", message(unix.NLMSG_DONE, 0, 1<<32-1, 0, 0, 0, 0))
	// The table changed in a way that the kernel could not follow.
	f(1, "a reply says the dump was interrupted", one, message(getSock, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, testSeq, numberedDiag(2)...))
	f(1, "a reply says the dump was interrupted", one, message(unix.NLMSG_DONE, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, testSeq, 0, 0, 0, 0))
	// The kernel lost something.
	f(1, "a reply is of unknown type 4", one, message(unix.NLMSG_OVERRUN, 0, testSeq))
	f(1, "a reply is of unknown type 20", one, message(unix.SOCK_DIAG_BY_FAMILY, 0, testSeq, numberedDiag(2)...))
	f(0, "a reply is of unknown type 65535", message(0xffff, 0, testSeq))
	for _, kind := range []uint16{unix.NLMSG_DONE, unix.NLMSG_ERROR} {
		for n := range 4 {
			f(1, "a reply is too short for an error number", one, message(kind, 0, testSeq, make([]byte, n)...)[:unix.SizeofNlMsghdr+n])
		}
	}
	f(1, "a reply acknowledges what asked for a dump", one, message(unix.NLMSG_ERROR, 0, testSeq, 0, 0, 0, 0))
	f(1, "a socket of 71 bytes and not 72", one, message(getSock, 0, testSeq, numberedDiag(2)[:71]...))
	f(1, "a socket of 0 bytes and not 72", one, message(getSock, 0, testSeq))
}

// TestParseReplyErrno has dumps that the kernel refuses. Without tcp_diag it says
// so in the message that ends each dump.
func TestParseReplyErrno(t *testing.T) {
	f := func(kind uint16, errno unix.Errno) {
		t.Helper()
		for seen, before := range [][]byte{nil, numberedMessage(1)} {
			sockets, done, err := parseAnswer(getSock, testSeq, append(before, ending(kind, errno)...))
			if !errors.Is(err, errno) || done || len(sockets) != seen {
				t.Errorf("%d sockets, done is %v, %v; want %d and %v", len(sockets), done, err, seen, errno)
			}
		}
	}
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EPERM, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOBUFS, unix.EINTR} {
		f(unix.NLMSG_ERROR, errno)
		f(unix.NLMSG_DONE, errno)
	}
}

// TestParseReplyStops hands on what the caller says to a socket.
func TestParseReplyStops(t *testing.T) {
	rows := 0
	done, err := parseReply(bytes.Repeat(numberedMessage(1), 5), getSock, testSeq, func([]byte) error {
		if rows++; rows == 3 {
			return errStopped
		}
		return nil
	})
	if !errors.Is(err, errStopped) || done || rows != 3 {
		t.Errorf("done is %v, %v, after %d rows", done, err, rows)
	}
}

// TestParseDiag goes to the limits of the fields.
func TestParseDiag(t *testing.T) {
	f := func(m inetDiagMsg, want string, attributes ...[]byte) {
		t.Helper()
		sockets, _, err := parseAnswer(getSock, testSeq, message(getSock, 0, testSeq, append(encode(m), bytes.Join(attributes, nil)...)...))
		if err != nil {
			t.Fatal(err)
		}
		if got := diagText(sockets[0]); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	ones := [16]byte(bytes.Repeat([]byte{0xff}, 16))
	mapped := [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}
	m := func(family uint8, state uint8, timer uint8) inetDiagMsg {
		return inetDiagMsg{Family: family, State: state, Timer: timer, SourcePort: [2]byte{0x1f, 0x90}, DestPort: [2]byte{0xff, 0xff},
			Source: [16]byte{192, 0, 2, 1}, Dest: [16]byte{255, 255, 255, 255}}
	}
	// Addresses: of IPv4 the first four bytes count.
	f(m(unix.AF_INET, 1, 0), "tcp established full 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	v4 := m(unix.AF_INET, 1, 0)
	v4.Source, v4.Dest = [16]byte{4: 9, 15: 9}, ones
	f(v4, "tcp established full 0.0.0.0:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	v6 := m(unix.AF_INET6, 1, 0)
	v6.Source, v6.Dest = ones, [16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 0x77}
	f(v6, "tcp6 established full [ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:8080 [2001:db8::77]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	v6.Source, v6.Dest = mapped, mapped
	f(v6, "tcp6 established full 127.0.0.1:8080 127.0.0.1:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	v6.Source, v6.Dest = [16]byte{12: 127, 15: 1}, [16]byte{} // IPv4-compatible, which is no IPv4
	f(v6, "tcp6 established full [::7f00:1]:8080 [::]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	// A device, which link-local addresses have in them.
	device := m(unix.AF_INET, 1, 0)
	device.Interface = 3
	f(device, "tcp established full 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0 device=3")
	device.Family, device.Source, device.Dest = unix.AF_INET6, [16]byte{0: 0xfe, 1: 0x80, 15: 1}, [16]byte{0: 0xfe, 1: 0x80, 8: 2, 15: 9}
	f(device, "tcp6 established full [fe80::1%3]:8080 [fe80::200:0:0:9%3]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	device.Source = [16]byte{0: 0x20, 1: 0x01, 15: 1}
	f(device, "tcp6 established full [2001::1]:8080 [fe80::200:0:0:9%3]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	device.Interface = 1<<32 - 1
	f(device, "tcp6 established full [2001::1]:8080 [fe80::200:0:0:9%4294967295]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	device.Dest = [16]byte{0: 0xfe, 1: 0x80, 7: 1, 15: 9} // of fe80::/10, but with bits that are 0
	f(device, "tcp6 established full [2001::1]:8080 [fe80:0:0:1::9]:65535 rx=0 tx=0 backlog=0 left=0s inode=0 device=4294967295")
	device.Interface, device.Dest = 0, [16]byte{0: 0xfe, 1: 0x80, 15: 9}
	f(device, "tcp6 established full [2001::1]:8080 [fe80::9]:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	// Numbers.
	full := m(unix.AF_INET, uint8(CloseWait), 4)
	full.Expires, full.RQueue, full.WQueue, full.UID, full.Socket = 1<<32-1, 1<<32-1, 1<<32-2, 1<<32-3, 1<<32-4
	f(full, "tcp close_wait full 192.0.2.1:8080 255.255.255.255:65535 rx=4294967295 tx=4294967294 backlog=0 left=0s inode=4294967292")
	listener := m(unix.AF_INET, uint8(Listen), 0)
	listener.RQueue, listener.WQueue, listener.Socket = 5, 4096, 7
	f(listener, "tcp listen full 192.0.2.1:8080 255.255.255.255:65535 rx=5 tx=0 backlog=4096 left=0s inode=7")
	listener.WQueue = 1<<32 - 1
	f(listener, "tcp listen full 192.0.2.1:8080 255.255.255.255:65535 rx=5 tx=0 backlog=4294967295 left=0s inode=7")
	// Timers: only that of a minisock says how long the socket lives.
	for timer := range uint8(6) {
		keepalive := m(unix.AF_INET, uint8(Established), timer)
		keepalive.Expires = 7_200_000
		if timer != timerMini {
			f(keepalive, "tcp established full 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
		}
	}
	mini := m(unix.AF_INET, uint8(TimeWait), timerMini)
	mini.Expires = 59_999
	f(mini, "tcp time_wait mini 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=59.999s inode=0")
	mini.State, mini.Expires = uint8(FinWait2), 1<<32-1
	f(mini, "tcp fin_wait2 mini 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=1193h2m47.295s inode=0")
	orphan := m(unix.AF_INET, uint8(FinWait2), 2)
	orphan.Expires = 40_000
	f(orphan, "tcp fin_wait2 full 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0")
	// Half open: only a full socket has ways that can be shut down.
	const request = "tcp syn_recv request 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0"
	const child = "tcp syn_recv full 192.0.2.1:8080 255.255.255.255:65535 rx=0 tx=0 backlog=0 left=0s inode=0"
	mark, shutdown := attribute(attrMark, 0, 0, 0, 0), attribute(attrShutdown, 0)
	f(m(unix.AF_INET, uint8(SynRecv), 1), request)
	f(m(unix.AF_INET, uint8(SynRecv), 1), request, mark)
	f(m(unix.AF_INET, uint8(SynRecv), 1), child, shutdown)
	f(m(unix.AF_INET, uint8(SynRecv), 1), child, mark, shutdown, attribute(5, 0))
	f(m(unix.AF_INET, newSynRecv, 1), request)
	f(m(unix.AF_INET, newSynRecv, 1), request, shutdown)
	// Bound and idle.
	const idle = "tcp6 close bound [c000:201::]:8080 [ffff:ffff::]:65535 rx=0 tx=0 backlog=0 left=0s inode=0"
	f(m(unix.AF_INET6, uint8(Close), 0), idle)
	f(m(unix.AF_INET6, uint8(Close), 0), idle, shutdown, attribute(attrV6Only, 0), mark)
	f(m(unix.AF_INET6, uint8(Close), 0), idle+" v6only", shutdown, attribute(attrV6Only, 1), mark)
}

func TestParseDiagRefuses(t *testing.T) {
	f := func(diag []byte, reason string) {
		t.Helper()
		var s Socket
		err := parseDiag(diag, &s)
		if err == nil || !strings.Contains(err.Error(), reason) {
			t.Fatalf("%v, want %q", err, reason)
		}
		if raw := fmt.Sprintf("%x", diag[:min(len(diag), diagLength)]); !strings.Contains(err.Error(), raw) {
			t.Errorf("%q does not show %s", err, raw)
		}
	}
	for n := range diagLength {
		f(numberedDiag(1)[:n], fmt.Sprintf("a socket of %d bytes and not 72", n))
	}
	for family := range 256 {
		if family != unix.AF_INET && family != unix.AF_INET6 {
			f(encode(inetDiagMsg{Family: uint8(family), State: 1}), fmt.Sprintf("unknown family %d", family))
		}
	}
	for state := range 256 {
		if state >= 1 && state <= 12 {
			continue
		}
		for _, timer := range []uint8{0, timerMini} {
			f(encode(inetDiagMsg{Family: unix.AF_INET, State: uint8(state), Timer: timer}), fmt.Sprintf("unknown state %d", state))
		}
	}
	for _, state := range []State{Established, SynSent, SynRecv, FinWait1, Close, CloseWait, LastAck, Listen, Closing} {
		f(encode(inetDiagMsg{Family: unix.AF_INET6, State: uint8(state), Timer: timerMini}), "the timer of a minisock in state "+state.String())
	}
}

// TestParseAttrs has lists of attributes, malformed ones too: those say nothing.
func TestParseAttrs(t *testing.T) {
	f := func(want bool, attributes ...[]byte) {
		t.Helper()
		list := bytes.Join(attributes, nil)
		if got := parseAttrs(list, new(Socket)); got != want {
			t.Errorf("%x: %v, want %v", list, got, want)
		}
	}
	shutdown, other := attribute(attrShutdown, 3), attribute(5, 1, 2, 3, 4, 5)
	f(false)
	f(true, shutdown)
	f(true, shutdown[:5]) // without padding
	f(true, other, shutdown)
	f(true, other, other, shutdown, other)
	f(false, other)
	f(false, other, other[:9])
	f(false, attribute(attrShutdown|1<<8, 3))
	// Cut off, or of a length that leads nowhere or out of the list.
	for n := range unix.SizeofNlAttr {
		f(false, shutdown[:n])
		f(false, other, shutdown[:n])
	}
	for _, length := range []uint16{0, 1, 3} {
		f(false, encode(length, uint16(5)), shutdown)
	}
	f(false, encode(uint16(13), uint16(5)), shutdown)
	f(false, encode(uint16(0xffff), uint16(5)), shutdown)
	f(false, encode(uint16(9), uint16(5)), shutdown[:4]) // the padding of the first takes the second
	f(false, shutdown[:4])

	v6Only := func(want bool, attributes ...[]byte) {
		t.Helper()
		s := Socket{V6Only: true} // what the row before may have left
		if parseAttrs(bytes.Join(attributes, nil), &s); s.V6Only != want {
			t.Errorf("%x: V6Only is %v, want %v", bytes.Join(attributes, nil), s.V6Only, want)
		}
	}
	v6Only(false)
	v6Only(false, shutdown, other)
	v6Only(false, shutdown, attribute(attrV6Only, 0))
	v6Only(true, shutdown, attribute(attrV6Only, 1), other)
	v6Only(true, attribute(attrV6Only, 1)[:5])
	v6Only(false, attribute(attrV6Only, 1)[:4])
	v6Only(false, attribute(attrV6Only))

	transparent := func(want bool, attributes ...[]byte) {
		t.Helper()
		s := Socket{Transparent: true} // what the row before may have left
		if parseAttrs(bytes.Join(attributes, nil), &s); s.Transparent != want {
			t.Errorf("%x: Transparent is %v, want %v", bytes.Join(attributes, nil), s.Transparent, want)
		}
	}
	bit := sockoptTransparent()
	transparent(false)
	transparent(false, shutdown, attribute(attrSockopt, ^bit, 0xff))
	transparent(true, shutdown, attribute(attrSockopt, bit, 0), other)
	transparent(true, shutdown, other, attribute(attrSockopt, 0xff, 0xff)[:6])
	transparent(true, attribute(attrSockopt, bit)[:5])
	transparent(false, attribute(attrSockopt, bit)[:4])
	transparent(false, attribute(attrSockopt))
}

// TestRequest reads the requests as the kernel does.
func TestRequest(t *testing.T) {
	type sockID struct {
		Ports     [4]byte
		Source    [16]byte
		Dest      [16]byte
		Interface uint32
		Cookie    [2]uint32
	}
	type reqV2 struct { // struct inet_diag_req_v2
		Header                       unix.NlMsghdr
		Family, Protocol, Ext, Blank uint8
		States                       uint32
		ID                           sockID
	}
	type req struct { // struct inet_diag_req
		Header                          unix.NlMsghdr
		Family, SourceLen, DestLen, Ext uint8
		ID                              sockID
		States, DBs                     uint32
	}
	const flags = unix.NLM_F_REQUEST | unix.NLM_F_ROOT | unix.NLM_F_MATCH
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		got := dump{family, 1 << Listen}.request(5)
		want := encode(reqV2{Header: unix.NlMsghdr{Len: 72, Type: 20, Flags: flags, Seq: 5}, Family: family, Protocol: 6, States: 1 << 10})
		if !bytes.Equal(got, want) {
			t.Errorf("family %d: got\n%x\nwant\n%x", family, got, want)
		}
	}
	got := dump{unix.AF_UNSPEC, listening | connected}.request(1<<32 - 1)
	// All states but 0; 12 and 13 are NEW_SYN_RECV and BOUND_INACTIVE.
	want := encode(req{Header: unix.NlMsghdr{Len: 76, Type: 18, Flags: flags, Seq: 1<<32 - 1}, States: 0b10_1111_1111_1110})
	if !bytes.Equal(got, want) {
		t.Errorf("both families: got\n%x\nwant\n%x", got, want)
	}
	if listening&connected != 0 {
		t.Errorf("states %b are asked for twice", listening&connected)
	}
}

// TestParseReplyAllocations proves that a row costs no allocation.
func TestParseReplyAllocations(t *testing.T) {
	allocations := func(rows int) float64 {
		var reply []byte
		for i := range rows {
			reply = append(reply, numberedMessage(i)...)
		}
		reply = append(reply, ending(unix.NLMSG_DONE, 0)...)
		recent := newRecentRows()
		var s Socket
		return testing.AllocsPerRun(10, func() {
			n := 0
			recent.reset()
			recent.nextRead()
			done, err := parseReply(reply, getSock, testSeq, func(diag []byte) error {
				if err := parseDiag(diag, &s); err != nil {
					return err
				}
				if !recent.seen(diag[diagID:diagCookie]) {
					n++
				}
				return nil
			})
			if !done || err != nil || n != rows {
				t.Fatalf("%d rows, want %d; done is %v, %v", n, rows, done, err)
			}
		})
	}
	if few, many := allocations(1), allocations(10_000); many > few {
		t.Errorf("10,000 rows allocate %.0f times, one row %.0f times", many, few)
	}
}

// diagSlowly is what parseDiag should make of a record.
func diagSlowly(diag []byte) (s Socket, ok bool) {
	var m inetDiagMsg
	if _, err := binary.Decode(diag, binary.NativeEndian, &m); err != nil {
		return s, false
	}
	s = Socket{RxQueue: m.RQueue, TxQueue: m.WQueue, State: State(m.State), Inode: uint64(m.Socket)}
	local, remote := netip.AddrFrom16(m.Source), netip.AddrFrom16(m.Dest)
	switch m.Family {
	case unix.AF_INET:
		local, remote = netip.AddrFrom4([4]byte(m.Source[:4])), netip.AddrFrom4([4]byte(m.Dest[:4]))
	case unix.AF_INET6:
		s.Table = TCP6
	default:
		return s, false
	}
	s.Local = Endpoint{local.As16(), binary.BigEndian.Uint16(m.SourcePort[:])}
	s.Remote = Endpoint{remote.As16(), binary.BigEndian.Uint16(m.DestPort[:])}
	s.Device = m.Interface
	for _, addr := range []*Addr{&s.Local.Addr, &s.Remote.Addr} {
		if m.Interface != 0 && m.Family == unix.AF_INET6 && netip.MustParsePrefix("fe80::/64").Contains(addr.IP()) {
			*addr, s.Device = addr.WithZone(m.Interface), 0
		}
	}
	full := false
	for attrs := diag[72:]; len(attrs) >= 4; { // man 7 rtnetlink, RTA_OK and RTA_NEXT
		length := int(binary.NativeEndian.Uint16(attrs))
		if length < 4 || length > len(attrs) {
			break
		}
		switch binary.NativeEndian.Uint16(attrs[2:]) {
		case 8:
			full = true
		case 11:
			s.V6Only = length > 4 && attrs[4] != 0
		case 22:
			s.Transparent = length > 4 && attrs[4]&sockoptTransparent() != 0
		}
		attrs = attrs[min((length+3)&^3, len(attrs)):]
	}
	switch {
	case m.State == 12:
		s.State, s.Kind = SynRecv, Request
	case m.State == 0 || m.State > 12:
		return s, false
	case m.Timer == 3:
		s.Kind, s.TimerLeft = Mini, time.Duration(m.Expires)*time.Millisecond
		return s, s.State == TimeWait || s.State == FinWait2
	case s.State == Close:
		s.Kind = Bound
	case s.State == Listen:
		s.Backlog, s.TxQueue = m.WQueue, 0
	case s.State == SynRecv && !full:
		s.Kind = Request
	}
	return s, true
}

// FuzzReply reads any bytes as a datagram of a dump: every socket that comes out
// is in it, and none is lost without an error.
func FuzzReply(f *testing.F) {
	for name, kind := range captures {
		for _, datagram := range capture(f, name) {
			f.Add(datagram, kind == getSock)
		}
	}
	f.Add([]byte{}, true)
	f.Add(message(unix.NLMSG_NOOP, 0, 1), true)
	f.Add(message(unix.NLMSG_OVERRUN, 0, 1), false)
	f.Add(message(getSock, unix.NLM_F_DUMP_INTR, 1, numberedDiag(1)...), true)
	f.Add(message(getSock, 0, 2, numberedDiag(1)...), true)
	f.Fuzz(func(t *testing.T, reply []byte, legacy bool) {
		kind := uint16(unix.SOCK_DIAG_BY_FAMILY)
		if legacy {
			kind = getSock
		}
		got, done, err := parseAnswer(kind, 1, reply)
		for _, s := range got {
			if s.State == 0 || s.State >= NumStates || s.Table >= NumTables || s.Kind > Bound {
				t.Fatalf("%#v of %x", s, reply)
			}
		}

		// The standard library wants padding behind the last message too.
		messages, malformed := syscall.ParseNetlinkMessage(append(slices.Clone(reply), make([]byte, -len(reply)&3)...))
		if malformed != nil {
			if err == nil && !done {
				t.Fatalf("no error of %x: %v", reply, malformed)
			}
			return
		}
		var want []Socket
		var wantDone, wantErr bool
		left := len(reply)
		for _, m := range messages {
			cut := int(m.Header.Len) > left // in the padding that was added
			left -= (int(m.Header.Len) + 3) &^ 3
			s, ok := diagSlowly(m.Data)
			switch {
			case cut || m.Header.Seq != 1 || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
				wantErr = true
			case m.Header.Type == kind && ok:
				want = append(want, s)
			case m.Header.Type == unix.NLMSG_DONE || m.Header.Type == unix.NLMSG_ERROR:
				wantDone = m.Header.Type == unix.NLMSG_DONE && len(m.Data) >= 4 && int32(binary.NativeEndian.Uint32(m.Data)) >= 0
				wantErr = !wantDone
			case m.Header.Type != unix.NLMSG_NOOP:
				wantErr = true
			}
			if wantDone || wantErr {
				break
			}
		}
		wantErr = wantErr || !wantDone && left > 0
		if done != wantDone || (err != nil) != wantErr || !slices.Equal(got, want) {
			t.Fatalf("%x: done is %v, %v; got %v\nwant %v, error %v, %v", reply, done, err, got, wantDone, wantErr, want)
		}
	})
}

// scenarioEnv names the one test that a re-executed test binary is to run.
const scenarioEnv = "TCPTABLE_TEST_SCENARIO"

// inNamespace runs scenario in a fresh network namespace with lo up, in a process
// of its own. An ordinary user gets a user namespace too, in which it is root.
func inNamespace(t *testing.T, scenario func(t *testing.T)) {
	t.Helper()
	if os.Getenv(scenarioEnv) == t.Name() {
		setLoopbackUp(t)
		scenario(t)
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.v", "-test.timeout=1m", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), scenarioEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	output, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState == nil:
		for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSPC, unix.ENOSYS, unix.EUSERS} {
			if errors.Is(err, refusal) {
				t.Skipf("this kernel or container refuses new namespaces: %v", err)
			}
		}
		t.Fatal(err)
	case err != nil:
		t.Fatalf("in its own namespace: %v\n%s", err, output)
	case bytes.Contains(output, []byte("--- SKIP: "+t.Name())):
		t.Skip(string(output))
	case !bytes.Contains(output, []byte("--- PASS: "+t.Name())):
		t.Fatalf("the scenario did not run:\n%s", output)
	}
}

func setLoopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(os.NewSyscallError("ioctl", err))
	}
}

// connectTo opens a connection to l; both ends stay open as long as the test.
func connectTo(t *testing.T, l net.Listener, network string) (client, server net.Conn) {
	t.Helper()
	host := "127.0.0.1"
	if network == "tcp6" {
		host = "::1"
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client, err = net.Dial(network, net.JoinHostPort(host, port))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func listenOn(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// closeMany leaves n connections in TIME_WAIT: those of the clients, which close
// first.
func closeMany(t *testing.T, n int) {
	t.Helper()
	// Or else a later connect takes the port of an earlier one.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	l := listenOn(t, "tcp4", "127.0.0.1:0")
	for range n {
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		client.Close()
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		server.Close()
	}
}

// buildTable fills the namespace with sockets of both families that stay as they
// are; a dump of them takes many datagrams.
func buildTable(t *testing.T) {
	t.Helper()
	closeMany(t, 2000)
	l := listenOn(t, "tcp", ":0") // dual-stack where there is IPv6
	for range 300 {
		connectTo(t, l, "tcp4")
	}
	if _, err := os.Stat("/proc/self/net/tcp6"); err == nil {
		l := listenOn(t, "tcp6", "[::1]:0")
		for range 200 {
			connectTo(t, l, "tcp6")
		}
	}
}

// collect walks; the sockets it returns are those before the error.
func collect(t *testing.T, d *SockDiag) (sockets []Socket, err error) {
	t.Helper()
	for s, err := range d.Sockets(t.Context()) {
		if err != nil {
			return sockets, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// sorted writes sockets down without timers and backlogs, in an order of their own.
func sorted(sockets []Socket) (lines []string) {
	for _, s := range sockets {
		lines = append(lines, diagText(undated(s)))
	}
	slices.Sort(lines)
	return lines
}

// wantTable walks and compares the sockets with those of /proc. Both are read
// anew: what came before must not show.
func wantTable(t *testing.T, d *SockDiag) {
	t.Helper()
	sockets, err := collect(t, d)
	if err != nil {
		t.Fatal(err)
	}
	got, want := sorted(sockets), sorted(mustWalk(t, NewProcNet("/proc/self/net")))
	if len(want) < 500 {
		t.Fatalf("/proc has %d sockets", len(want))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d sockets, /proc has %d", len(got), len(want))
	}
	connections := false
	for _, s := range sockets {
		if s.State != Listen {
			connections = true
		} else if connections {
			t.Errorf("a listener behind a connection: %s", diagText(s))
		}
	}
}

// openFiles counts this process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// TestSockDiagWalks leaves walks in all ways: the next one is whole again.
func TestSockDiagWalks(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		d := NewSockDiag()
		wantTable(t, d)
		wantTable(t, d)
		if d.split {
			t.Log("this kernel does not dump both families at once")
		}
		files := openFiles(t)

		for _, stopAfter := range []int{1, 2, 30, 100, 500, 1000, 2500} {
			rows := 0
			for _, err := range d.Sockets(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if rows++; rows == stopAfter {
					break
				}
			}
			if rows != stopAfter {
				t.Fatalf("%d rows, want %d", rows, stopAfter)
			}
			if stopAfter%2 == 0 { // the next walk may also be stopped
				wantTable(t, d)
			}
		}
		for _, err := range d.Listeners(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		wantTable(t, d)

		for range 3 {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		wantTable(t, d)

		// Two dumps, or one for both families: the same sockets.
		d.split = !d.split
		wantTable(t, d)

		if now := openFiles(t); now != files {
			t.Errorf("%d files are open, %d were", now, files)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if now := openFiles(t); now != files-1 {
			t.Errorf("%d files are open after Close, want %d", now, files-1)
		}
	})
}

// TestSockDiagContext ends walks by their context.
func TestSockDiagContext(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		d := NewSockDiag()
		wantTable(t, d)
		f := func(walk iter.Seq2[Socket, error], want error, during func()) {
			t.Helper()
			rows := 0
			var last error
			for _, err := range walk {
				if last = err; err != nil {
					break
				}
				if rows++; rows == 1 {
					during()
				}
			}
			if !errors.Is(last, want) || rows > 1000 {
				t.Errorf("%v after %d rows, want %v", last, rows, want)
			}
			wantTable(t, d)
		}
		reason := errors.New("the scrape is over")
		canceled, cancel := context.WithCancelCause(t.Context())
		f(d.Sockets(canceled), reason, func() { cancel(reason) })
		f(d.Sockets(canceled), reason, func() { t.Error("a row after the end") })

		late, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer stop()
		f(d.Sockets(late), context.DeadlineExceeded, func() { time.Sleep(100 * time.Millisecond) })
		f(d.Sockets(late), context.DeadlineExceeded, func() { t.Error("a row after the deadline") })

		// The deadline of a walk that was done in time is none of the next one.
		soon, stopSoon := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer stopSoon()
		for _, err := range d.Sockets(soon) {
			if err != nil {
				t.Fatal(err)
			}
		}
		split := d.split
		<-soon.Done()
		wantTable(t, d)
		if d.split != split {
			t.Error("the request for both families failed")
		}
	})
}

// TestSockDiagLateCancel ends contexts when the last row of a dump is there: what
// that does to the socket is over before the next dump.
func TestSockDiagLateCancel(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		last := "tcp4"
		if _, err := os.Stat("/proc/self/net/tcp6"); err == nil {
			last = "tcp6"
		}
		listenOn(t, last, ":0")
		d := NewSockDiag()
		runtime.GOMAXPROCS(8) // more than most machines have, so that something is late
		for i := range 5_000 {
			ctx, cancel := context.WithCancel(t.Context())
			for _, err := range d.Listeners(ctx) {
				if err == nil {
					go cancel()
				} else if !errors.Is(err, context.Canceled) {
					t.Fatalf("dump %d: %v", i, err)
				}
			}
			for _, err := range d.Listeners(t.Context()) {
				if err != nil {
					t.Fatalf("after dump %d: %v", i, err)
				}
			}
			cancel()
		}
	})
}

// TestSockDiagListeners compares limits with what listen(2) was told.
func TestSockDiagListeners(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		closeMany(t, 100)
		want := make(map[Endpoint]uint32)
		families := []int{unix.AF_INET}
		if _, err := os.Stat("/proc/self/net/tcp6"); err == nil {
			families = append(families, unix.AF_INET6)
		}
		for i, family := range families {
			for _, backlog := range []int{0, 1, 7, 100} {
				port := uint16(9000 + 1000*i + backlog)
				if err := unix.Listen(bound(t, family, port), backlog); err != nil {
					t.Fatal(os.NewSyscallError("listen", err))
				}
				wildcard := netip.IPv4Unspecified()
				if family == unix.AF_INET6 {
					wildcard = netip.IPv6Unspecified()
				}
				want[Endpoint{wildcard.As16(), port}] = uint32(backlog)
			}
			bound(t, family, uint16(9500+1000*i)) // only listeners are asked for
		}
		d := NewSockDiag()
		for range 2 {
			got := make(map[Endpoint]uint32)
			for s, err := range d.Listeners(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if s.State != Listen {
					t.Errorf("not a listener: %s", diagText(s))
				}
				got[s.Local] = s.Backlog
			}
			for at, backlog := range want {
				if limit, ok := got[at]; !ok || limit != backlog {
					t.Errorf("%v: %d (listed: %v), want %d", addrPort(at), limit, ok, backlog)
				}
			}
		}
	})
}

// bound returns a socket that holds a port on all addresses.
func bound(t *testing.T, family int, port uint16) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.Bind(fd, at); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	return fd
}

// TestSockDiagBound lists sockets that /proc does not, before all connections.
func TestSockDiagBound(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		closeMany(t, 200)
		for port := range uint16(5) {
			bound(t, unix.AF_INET, 9500+port)
		}
		d := NewSockDiag()
		for _, d.split = range []bool{false, true} {
			sockets, err := collect(t, d)
			if err != nil {
				t.Fatal(err)
			}
			var ports []uint16
			connections := false
			for _, s := range sockets {
				connections = connections || s.State != Listen && s.Kind != Bound
				if s.Kind != Bound {
					continue
				}
				ports = append(ports, s.Local.Port)
				if connections || s.State != Close || s.Inode == 0 {
					t.Errorf("behind a connection: %v; %s", connections, diagText(s))
				}
			}
			slices.Sort(ports)
			if len(ports) == 0 {
				t.Skip("this kernel, older than Linux 6.8, does not list idle sockets")
			}
			if !slices.Equal(ports, []uint16{9500, 9501, 9502, 9503, 9504}) {
				t.Errorf("idle are %v", ports)
			}
		}
	})
}

// sender is another process on the kernel's netlink, one that may write to d's
// socket. It needs CAP_NET_ADMIN, which the namespace gives.
type sender struct {
	fd int
	to *unix.SockaddrNetlink
}

func newSender(t *testing.T, d *SockDiag) sender {
	t.Helper()
	own, err := d.conn.Getsockname()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	return sender{fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: own.(*unix.SockaddrNetlink).Pid}}
}

func (s sender) send(t *testing.T, datagram []byte) {
	t.Helper()
	if err := unix.Sendto(s.fd, datagram, 0, s.to); err != nil {
		t.Fatal(os.NewSyscallError("sendto", err))
	}
}

// TestSockDiagForeign has datagrams in the middle of a dump that are no part of
// it: the walk fails, and the next one is whole.
func TestSockDiagForeign(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		f := func(reason string, datagram func(seq uint32) []byte) {
			t.Helper()
			d := NewSockDiag()
			wantTable(t, d)
			seq := d.seq + 1
			rows := 0
			var last error
			for _, err := range d.Sockets(t.Context()) {
				if last = err; err != nil {
					break
				}
				if rows++; rows == 1 {
					newSender(t, d).send(t, datagram(seq))
				}
			}
			if rows == 0 || last == nil || !strings.Contains(last.Error(), "sock_diag: ") || !strings.Contains(last.Error(), reason) {
				t.Errorf("%v after %d rows, want %q", last, rows, reason)
			}
			wantTable(t, d)
			if d.split {
				t.Error("each family is dumped on its own after a failure that was not the request's")
			}
			d.Close()
		}
		f("answers request 12345", func(uint32) []byte { return message(getSock, 0, 12345, numberedDiag(1)...) })
		f("answers request", func(seq uint32) []byte { return message(unix.NLMSG_DONE, 0, seq-1, 0, 0, 0, 0) })
		f("was interrupted", func(seq uint32) []byte { return message(getSock, unix.NLM_F_DUMP_INTR, seq, numberedDiag(1)...) })
		f("unknown type 4", func(seq uint32) []byte { return message(unix.NLMSG_OVERRUN, 0, seq) })
		f("unknown type 20", func(seq uint32) []byte { return message(unix.SOCK_DIAG_BY_FAMILY, 0, seq, numberedDiag(1)...) })
		f("operation not permitted", func(seq uint32) []byte { return message(unix.NLMSG_ERROR, 0, seq, encode(-int32(unix.EPERM))...) })
		f("no such file or directory", func(seq uint32) []byte { return message(unix.NLMSG_DONE, 0, seq, encode(-int32(unix.ENOENT))...) })
		f("too short for a netlink header", func(uint32) []byte { return []byte("garbage") })
		f("unknown state 77", func(seq uint32) []byte {
			return message(getSock, 0, seq, encode(inetDiagMsg{Family: unix.AF_INET, State: 77})...)
		})
		f("a datagram of more than 32768 bytes", func(seq uint32) []byte { return message(getSock, 0, seq, make([]byte, 40_000)...) })
	})
}

// TestSockDiagListedTwice has the kernel list sockets again in a later read, as it
// does when others came into their hash bucket meanwhile.
func TestSockDiagListedTwice(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		closeMany(t, 200)
		d := NewSockDiag()
		sockets, err := collect(t, d)
		if err != nil {
			t.Fatal(err)
		}
		listener := sockets[0]
		connection := sockets[slices.IndexFunc(sockets, func(s Socket) bool { return s.State == TimeWait })]
		f := func(s Socket, want int) {
			t.Helper()
			m := inetDiagMsg{Family: unix.AF_INET, State: uint8(s.State)}
			copy(m.Source[:], s.Local.Addr[12:])
			copy(m.Dest[:], s.Remote.Addr[12:])
			binary.BigEndian.PutUint16(m.SourcePort[:], s.Local.Port)
			binary.BigEndian.PutUint16(m.DestPort[:], s.Remote.Port)
			// It is read before the dump, of which connection is the first but for listeners.
			newSender(t, d).send(t, message(getSock, 0, d.seq+1, encode(m)...))
			got, err := collect(t, d)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != want || got[0].State != s.State || got[0].Local != s.Local || got[0].Remote != s.Remote {
				t.Errorf("%d rows, want %d, and first %s", len(got), want, diagText(s))
			}
		}
		n := len(sockets)
		f(connection, n)
		// Its state has changed meanwhile.
		changed := connection
		changed.State = Established
		f(changed, n)
		// Another one.
		changed.Remote.Port++
		f(changed, n+1)
		// Listeners may share an address (SO_REUSEPORT), and so may idle sockets.
		f(listener, n+1)
		connection.State = Close
		f(connection, n+1)
	})
}

// TestSockDiagSplit has a kernel that does not know the request for both families.
func TestSockDiagSplit(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		for _, refusal := range []unix.Errno{unix.EINVAL, unix.ENOENT, unix.EOPNOTSUPP} {
			d := NewSockDiag()
			wantTable(t, d)
			newSender(t, d).send(t, message(unix.NLMSG_ERROR, 0, d.seq+1, encode(-int32(refusal))...))
			wantTable(t, d)
			if !d.split {
				t.Errorf("after %v both families are asked for at once again", refusal)
			}
			wantTable(t, d)
			d.Close()
		}
	})
}

// TestSockDiagRefused has a kernel that can't dump: that is no empty table.
func TestSockDiagRefused(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		for _, kind := range []uint16{unix.NLMSG_DONE, unix.NLMSG_ERROR} {
			d := NewSockDiag()
			for s, err := range d.Listeners(t.Context()) {
				t.Errorf("%v, %v in a new namespace", s, err)
			}
			newSender(t, d).send(t, message(kind, unix.NLM_F_MULTI, d.seq+1, encode(-int32(unix.ENOENT))...))
			var last error
			for _, last = range d.Listeners(t.Context()) {
			}
			if !errors.Is(last, unix.ENOENT) || !strings.Contains(last.Error(), "sock_diag: the kernel refuses the dump") {
				t.Errorf("%v, want %v", last, unix.ENOENT)
			}
			for s, err := range d.Listeners(t.Context()) {
				t.Errorf("%v, %v after the refusal", s, err)
			}
			d.Close()
		}
	})
}

// TestSockDiagTruncated has a buffer that is too small for the kernel's datagrams.
func TestSockDiagTruncated(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		closeMany(t, 100)
		d := NewSockDiag()
		d.buf = d.buf[:512]
		if sockets, err := collect(t, d); len(sockets) > 10 || err == nil || !strings.Contains(err.Error(), "sock_diag: a datagram of more than 512 bytes") {
			t.Errorf("%d sockets and %v", len(sockets), err)
		}
	})
}

// TestSockDiagSmallQueue has a receive queue of the least size: the kernel goes on
// with a dump only when there is room, so nothing is lost.
func TestSockDiagSmallQueue(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		d := NewSockDiag()
		wantTable(t, d)
		if err := d.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Fatal(err)
		}
		wantTable(t, d)
	})
}

// TestSockDiagOverrun has a receive queue that is full when the kernel has
// something else to say: it says ENOBUFS.
func TestSockDiagOverrun(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		client, server := connectTo(t, listenOn(t, "tcp4", "127.0.0.1:0"), "tcp4")
		d := NewSockDiag()
		wantTable(t, d)
		// The end of each socket is told to group SKNLGRP_INET_TCP_DESTROY
		// (include/uapi/linux/sock_diag.h).
		const tcpDestroy = 1
		if err := d.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, tcpDestroy); err != nil {
			t.Fatal(err)
		}
		if err := d.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Fatal(err)
		}
		rows := 0
		var last error
		for _, err := range d.Sockets(t.Context()) {
			if last = err; err != nil {
				break
			}
			if rows++; rows == 1 { // the next datagram of the dump is in the queue
				for _, end := range []net.Conn{client, server} {
					if err := end.(*net.TCPConn).SetLinger(0); err != nil {
						t.Fatal(err)
					}
					end.Close()
				}
				awaitError(t, d)
			}
		}
		if !errors.Is(last, unix.ENOBUFS) || rows == 0 {
			t.Errorf("%v after %d rows, want %v", last, rows, unix.ENOBUFS)
		}
		wantTable(t, d)
	})
}

// awaitError waits until the kernel has noted an error on d's socket.
func awaitError(t *testing.T, d *SockDiag) {
	t.Helper()
	raw, err := d.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		deadline := time.Now().Add(10 * time.Second)
		for time.Now().Before(deadline) {
			poll := []unix.PollFd{{Fd: int32(fd)}} // of no event but an error
			if n, err := unix.Poll(poll, 100); n == 1 && err == nil {
				return
			}
		}
		t.Error("the kernel notes no error")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSockDiagLost loses most sockets of a dump, of which nothing in it tells.
func TestSockDiagLost(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		d := NewSockDiag()
		wantTable(t, d)
		// A filter sees each datagram of a dump and says how much of it is kept: the
		// first message, and the last one of the dump, which is alone (netlink_dump in
		// net/netlink/af_netlink.c).
		const done = 64
		var length uint32 // where the low byte of a message's length is
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			length = 3
		}
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
			{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: done, Jf: 2},
			{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: length},
			{Code: unix.BPF_RET | unix.BPF_A},
			{Code: unix.BPF_RET | unix.BPF_K, K: done},
		}
		raw, err := d.conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var attachErr error
		err = raw.Control(func(fd uintptr) {
			attachErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		})
		if err := errors.Join(err, attachErr); err != nil {
			t.Fatal(err)
		}
		sockets, err := collect(t, d)
		if len(sockets) == 0 || len(sockets) > 100 {
			t.Errorf("%d sockets came through", len(sockets))
		}
		if err == nil || !strings.Contains(err.Error(), "sock_diag: ") || !strings.Contains(err.Error(), " were read, but sockstat counts ") {
			t.Errorf("%v with %d sockets", err, len(sockets))
		}
	})
}

// TestSockDiagAllocations proves that a socket costs no allocation: those of a
// dump grow with its datagrams, of 340 sockets each.
func TestSockDiagAllocations(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		d := NewSockDiag()
		allocations := func() (allocs float64, rows int) {
			allocs = testing.AllocsPerRun(5, func() {
				rows = 0
				for s, err := range d.Sockets(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					if s.State == TimeWait {
						rows++
					}
				}
			})
			return allocs, rows
		}
		closeMany(t, 100)
		few, rowsOfFew := allocations()
		closeMany(t, 9_900)
		many, rowsOfMany := allocations()
		// A TIME_WAIT may end early on a busy machine (RFC 1337).
		if rowsOfFew < 90 || rowsOfMany < 9_000 {
			t.Fatalf("%d and %d rows, want 100 and 10,000", rowsOfFew, rowsOfMany)
		}
		t.Logf("100 sockets: %.0f allocations, 10,000 sockets: %.0f", few, many)
		if datagrams := float64(9_900/340 + 1); many-few > 15*datagrams {
			t.Errorf("9,900 sockets more cost %.0f allocations more", many-few)
		}
	})
}

// TestSockDiagOfThisKernel asks for the sockets of the namespace the tests are in.
func TestSockDiagOfThisKernel(t *testing.T) {
	l := listenOn(t, "tcp4", "127.0.0.1:0")
	client, _ := connectTo(t, l, "tcp4")
	sockets, err := collect(t, NewSockDiag())
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) {
		t.Skipf("this kernel has no sock_diag for TCP: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, s := range sockets {
		switch addrPort(s.Local).String() {
		case l.Addr().String():
			found["server "+s.State.String()]++
		case client.LocalAddr().String():
			found["client "+s.State.String()]++
		}
	}
	for _, what := range []string{"server listen", "server established", "client established"} {
		if found[what] != 1 {
			t.Errorf("%s is listed %d times, want once", what, found[what])
		}
	}
}
