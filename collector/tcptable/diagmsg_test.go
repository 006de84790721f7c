package tcptable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// parseAnswer parses the datagrams that answer the request seq. The sockets it
// returns are those before the error.
func parseAnswer(kind uint16, seq uint32, datagrams ...[]byte) (sockets []Socket, done bool, err error) {
	for _, datagram := range datagrams {
		if done {
			return sockets, false, errors.New("a datagram behind the last one")
		}
		done, err = parseReply(datagram, kind, seq, func(diag []byte) error {
			s := Socket{Backlog: 99, Timer: 99, Unanswered: 99, TimerLeft: 99, Kind: Bound, Device: 99, V6Only: true, Transparent: true} // what the row before may have left
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
			lines := texts(sockets)
			if done {
				lines = append(lines, "done")
			}
			if err != nil {
				lines = append(lines, "error: "+err.Error())
			}
			wantText(t, filepath.Join("testdata/sockdiag", name+".txt"), lines...)
		})
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

// record is a struct inet_diag_msg with its attributes, as inet_sk_diag_fill,
// inet_twsk_diag_fill and inet_req_diag_fill in net/ipv4/inet_diag.c make it.
func record(s Socket) []byte {
	m := inetDiagMsg{Family: unix.AF_INET, State: uint8(s.State), Interface: s.Device, RQueue: s.RxQueue, WQueue: s.TxQueue, Socket: uint32(s.Inode),
		Timer: uint8(s.Timer), Retrans: s.Unanswered, Expires: 7_200_000} // which says nothing of how long it lives
	binary.BigEndian.PutUint16(m.SourcePort[:], s.Local.Port)
	binary.BigEndian.PutUint16(m.DestPort[:], s.Remote.Port)
	if s.Table == TCP6 {
		m.Family, m.Source, m.Dest = unix.AF_INET6, s.Local.Addr, s.Remote.Addr
	} else {
		copy(m.Source[:], s.Local.Addr[12:])
		copy(m.Dest[:], s.Remote.Addr[12:])
	}
	var attributes [][]byte
	switch s.Kind {
	case Mini:
		m.Timer, m.Expires = uint8(timerMini), uint32(s.TimerLeft.Milliseconds())
	case Request:
		attributes = append(attributes, attribute(attrMark, 0, 0, 0, 0))
	default:
		attributes = append(attributes, attribute(attrShutdown, 0))
	}
	if s.State == Listen {
		m.WQueue = s.Backlog
	}
	if s.V6Only {
		attributes = append(attributes, attribute(attrV6Only, 1))
	}
	if s.Transparent {
		attributes = append(attributes, attribute(attrSockopt, sockoptTransparent(), 0))
	}
	return append(encode(m), bytes.Join(attributes, nil)...)
}

func numberedDiag(i int) []byte { return record(numbered(TCP, 2*i)) } // which are in TIME_WAIT

func numberedMessage(i int) []byte {
	return message(getSock, unix.NLM_F_MULTI, testSeq, numberedDiag(i)...)
}

// ending is a message that says how the dump went.
func ending(kind uint16, errno unix.Errno) []byte {
	return message(kind, unix.NLM_F_MULTI, testSeq, encode(-int32(errno))...)
}

// TestParseReply has datagrams of several messages, those that no dump of sockets can
// have, and dumps that went wrong. What comes before the end, or an error, has been seen.
func TestParseReply(t *testing.T) {
	f := func(want, failure string, parts ...[]byte) {
		t.Helper()
		sockets, done, err := parseAnswer(getSock, testSeq, bytes.Join(parts, nil))
		var seen []string
		for _, s := range sockets {
			seen = append(seen, strconv.Itoa(int(s.Remote.Addr[15])/2))
		}
		if done {
			seen = append(seen, "done")
		}
		if got := strings.Join(seen, " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if failure == "" && err != nil || failure != "" && (err == nil || !strings.Contains(err.Error(), failure)) {
			t.Fatalf("%v, want %q", err, failure)
		}
		if strings.HasPrefix(failure, "a reply ") {
			last := bytes.TrimRight(parts[len(parts)-1], "\x00")
			if !strings.Contains(err.Error(), fmt.Sprintf("%x", last[:min(len(last), 40)])) {
				t.Errorf("%q does not show %x", err, last)
			}
		}
	}
	one, two, three := numberedMessage(1), numberedMessage(2), numberedMessage(3)
	done, noop := ending(unix.NLMSG_DONE, 0), message(unix.NLMSG_NOOP, 0, testSeq)
	odd := message(getSock, 0, testSeq, append(numberedDiag(9), 1, 2, 3)...)
	f("", "")
	f("1", "", one)
	f("1 2 3", "", one, two, three)
	f("1 2 done", "", one, two, done)
	f("done", "", done)
	// What stands behind the end is not looked at.
	f("1 done", "", one, done, two)
	f("done", "", done, []byte{1, 2, 3})
	// Nothing to do.
	f("1 2 done", "", noop, one, noop, noop, two, done)
	// The length of a message leaves out its padding, which the last one may lack.
	f("9 1 9", "", odd, one, odd)
	f("9 9", "", odd, odd[:len(odd)-1])
	// The answer to a dump that tells more than an error number, as some kernels do.
	f("1 done", "", one, message(unix.NLMSG_DONE, 0, testSeq, make([]byte, 40)...))

	for _, n := range []int{1, 4, unix.SizeofNlMsghdr - 1} {
		f("1", "a reply is too short for a netlink header", one, one[:n])
	}
	for _, length := range []uint32{0, 1, unix.SizeofNlMsghdr - 1, uint32(len(one) + 1), 1 << 31, 1<<32 - 1} {
		m := slices.Clone(one)
		binary.NativeEndian.PutUint32(m, length)
		f("1 2", fmt.Sprintf("a reply has a length of %d, with %d bytes left", length, len(m)), one, two, m)
	}
	f("1", fmt.Sprintf("has a length of %d, with %d bytes left", len(one), len(one)-1), one, one[:len(one)-1])
	// The answer to somebody else, or to an earlier request.
	f("1", "a reply answers request 76 and not 77", one, message(getSock, unix.NLM_F_MULTI, testSeq-1, numberedDiag(2)...))
	f("", "a reply answers request 0 and not 77", message(unix.NLMSG_NOOP, 0, 0))
	f("", "a reply answers request 4294967295 and not 77", message(unix.NLMSG_DONE, 0, 1<<32-1, 0, 0, 0, 0))
	// The table changed in a way that the kernel could not follow.
	f("1", "a reply says the dump was interrupted", one, message(getSock, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, testSeq, numberedDiag(2)...))
	f("1", "a reply says the dump was interrupted", one, message(unix.NLMSG_DONE, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, testSeq, 0, 0, 0, 0))
	// The kernel lost something.
	f("1", "a reply is of unknown type 4", one, message(unix.NLMSG_OVERRUN, 0, testSeq))
	f("1", "a reply is of unknown type 20", one, message(unix.SOCK_DIAG_BY_FAMILY, 0, testSeq, numberedDiag(2)...))
	f("", "a reply is of unknown type 65535", message(0xffff, 0, testSeq))
	for _, kind := range []uint16{unix.NLMSG_DONE, unix.NLMSG_ERROR} {
		for n := range 4 {
			f("1", "a reply is too short for an error number", one, message(kind, 0, testSeq, make([]byte, n)...)[:unix.SizeofNlMsghdr+n])
		}
		// Without tcp_diag the kernel says so in the message that ends each dump.
		for _, errno := range []unix.Errno{unix.ENOENT, unix.EPERM, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOBUFS, unix.EINTR} {
			f("1", "the kernel refuses the dump: "+errno.Error(), one, ending(kind, errno))
		}
	}
	f("1", "a reply acknowledges what asked for a dump", one, message(unix.NLMSG_ERROR, 0, testSeq, 0, 0, 0, 0))
	f("1", "a socket of 71 bytes and not 72", one, message(getSock, 0, testSeq, numberedDiag(2)[:71]...))
	f("1", "a socket of 0 bytes and not 72", one, message(getSock, 0, testSeq))
}

// TestParseDiag has records in which not all that is there counts.
func TestParseDiag(t *testing.T) {
	m := func(state State, family uint8, source, dest string, device uint32) inetDiagMsg {
		return inetDiagMsg{State: uint8(state), Family: family, SourcePort: [2]byte{0, 80}, DestPort: [2]byte{0xff, 0xff},
			Source: netip.MustParseAddr(source).As16(), Dest: netip.MustParseAddr(dest).As16(), Interface: device}
	}
	v6 := func(source, dest string, device uint32) inetDiagMsg {
		return m(Established, unix.AF_INET6, source, dest, device)
	}
	synRecv := m(newSynRecv, unix.AF_INET, "a00:1:ffff:1:1:1:1:1", "a00:2::", 0) // of IPv4 the first four bytes count
	longest := m(FinWait2, unix.AF_INET, "a00:1::", "ffff:ffff::", 3)
	longest.Timer, longest.Expires = uint8(timerMini), 1<<32-1
	for _, test := range []struct {
		inetDiagMsg
		want string
	}{
		{synRecv, "tcp syn_recv request 10.0.0.1:80 10.0.0.2:65535"},
		{longest, "tcp fin_wait2 mini 10.0.0.1:80 255.255.255.255:65535 left=1193h2m47.295s device=3"},
		// IPv4-compatible addresses are no IPv4.
		{v6("::ffff:127.0.0.1", "::127.0.0.1", 0), "tcp6 established full 127.0.0.1:80 [::7f00:1]:65535"},
		// A device, which link-local addresses have in them.
		{v6("fe80::1", "fe80::200:0:0:9", 3), "tcp6 established full [fe80::1%3]:80 [fe80::200:0:0:9%3]:65535"},
		{v6("2001::1", "fe80::9", 1<<32-1), "tcp6 established full [2001::1]:80 [fe80::9%4294967295]:65535"},
		{v6("fe80::9", "2001::1", 3), "tcp6 established full [fe80::9%3]:80 [2001::1]:65535"},
		{v6("2001::1", "fe80:0:0:1::9", 3), "tcp6 established full [2001::1]:80 [fe80:0:0:1::9]:65535 device=3"}, // of fe80::/10, but with bits that are 0
		{v6("2001::1", "fe80::9", 0), "tcp6 established full [2001::1]:80 [fe80::9]:65535"},
	} {
		for _, attributes := range [][]byte{nil, attribute(attrShutdown, 0)} {
			sockets, _, err := parseAnswer(getSock, testSeq, message(getSock, 0, testSeq, append(encode(test.inetDiagMsg), attributes...)...))
			if err != nil || text(sockets[0]) != test.want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, texts(sockets), test.want)
			}
		}
	}
}

// TestParseDiagPrinted makes records of random sockets as the kernel does and reads them
// back.
func TestParseDiagPrinted(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	flag := func() bool { return random.UintN(2) == 0 }
	for range 20_000 {
		want := randomSocket(random)
		want.Inode = uint64(uint32(want.Inode))
		switch want.State {
		case Close:
			want.Kind, want.Timer, want.Unanswered = Bound, TimerNone, 0
		case Listen:
			want.Backlog, want.TxQueue = want.TxQueue, 0
		}
		if flag() {
			want.Device = random.Uint32()
		}
		if want.Kind == Full || want.Kind == Bound {
			want.V6Only, want.Transparent = flag(), flag()
		}
		sockets, _, err := parseAnswer(getSock, testSeq, message(getSock, 0, testSeq, record(want)...))
		if err != nil {
			t.Fatal(err)
		}
		wantSockets(t, sockets, []Socket{want})
	}
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
		for _, timer := range []uint8{0, uint8(timerMini)} {
			f(encode(inetDiagMsg{Family: unix.AF_INET, State: uint8(state), Timer: timer}), fmt.Sprintf("unknown state %d", state))
		}
	}
	for _, state := range []State{Established, SynSent, SynRecv, FinWait1, Close, CloseWait, LastAck, Listen, Closing} {
		f(encode(inetDiagMsg{Family: unix.AF_INET6, State: uint8(state), Timer: uint8(timerMini)}), "the timer of a minisock in state "+state.String())
	}
}

// TestParseAttrs has lists of attributes, malformed ones too: those say nothing.
func TestParseAttrs(t *testing.T) {
	f := func(want string, attributes ...[]byte) {
		t.Helper()
		list := bytes.Join(attributes, nil)
		s := Socket{V6Only: true, Transparent: true, Cgroup: 99, LastAck: 99} // what the row before may have left
		full := parseAttrs(list, &s)
		if s.Cgroup != 0 || s.LastAck != 0 {
			t.Errorf("%x: cgroup %d, last ACK %v ago", list, s.Cgroup, s.LastAck)
		}
		if got := fmt.Sprint(full, s.V6Only, s.Transparent); got != want {
			t.Errorf("%x: full, of IPv6 only, transparent: %s, want %s", list, got, want)
		}
	}
	const nothing, full, v6Only, transparent = "false false false", "true false false", "false true false", "false false true"
	shutdown, other := attribute(attrShutdown, 3), attribute(5, 1, 2, 3, 4, 5)
	f(nothing)
	f(full, shutdown)
	f(full, shutdown[:5]) // without padding
	f(nothing, shutdown[:4])
	f(full, other, shutdown)
	f(full, other, other, shutdown, other)
	f(nothing, other)
	f(nothing, other, other[:9])
	f(nothing, attribute(attrShutdown|1<<8, 3))
	// Cut off, or of a length that leads nowhere or out of the list.
	for n := range unix.SizeofNlAttr {
		f(nothing, shutdown[:n])
		f(nothing, other, shutdown[:n])
	}
	for _, length := range []uint16{0, 1, 3, 13, 0xffff} {
		f(nothing, encode(length, uint16(5)), shutdown)
	}
	f(nothing, encode(uint16(9), uint16(5)), shutdown[:4]) // the padding of the first takes the second

	// One byte of the payload counts.
	bit := sockoptTransparent()
	f(v6Only, attribute(attrV6Only, 1)[:5])
	f(nothing, attribute(attrV6Only, 1)[:4])
	f(nothing, attribute(attrV6Only))
	f(full, shutdown, attribute(attrV6Only, 0))
	f("true true false", shutdown, attribute(attrV6Only, 1), other)
	f(transparent, attribute(attrSockopt, bit)[:5])
	f(transparent, other, attribute(attrSockopt, 0xff, 0xff)[:6])
	f(nothing, attribute(attrSockopt, bit)[:4])
	f(nothing, attribute(attrSockopt))
	f(full, shutdown, attribute(attrSockopt, ^bit, 0xff))
	f("true false true", shutdown, attribute(attrSockopt, bit, 0), other)

	// Those of owners, whole ones only.
	id, info := attribute(attrCgroup, encode(uint64(0x1_0000_0007))...), attribute(attrInfo, append(make([]byte, lastAck), encode(uint32(1500), uint32(9))...)...)
	var s Socket
	if parseAttrs(slices.Concat(other, id, info), &s); s.Cgroup != 0x1_0000_0007 || s.LastAck != 1500*time.Millisecond {
		t.Errorf("cgroup %#x, last ACK %v ago", s.Cgroup, s.LastAck)
	}
	f(nothing, attribute(attrCgroup, 7, 0, 0, 0))
	f(nothing, attribute(attrInfo, make([]byte, lastAck+3)...))
	f(nothing, id[:11])
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
			var s Socket
			bad := m.Header.Type == kind && parseDiag(m.Data, &s) != nil
			switch {
			case cut || m.Header.Seq != 1 || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
				wantErr = true
			case m.Header.Type == kind && !bad:
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
