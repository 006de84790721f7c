package tcptable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
		s := Socket{V6Only: true, Transparent: true} // what the row before may have left
		full := parseAttrs(list, &s)
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
func connectTo(t *testing.T, l net.Listener, network string) (client, server *net.TCPConn) {
	t.Helper()
	client, err := net.DialTCP(network, nil, &net.TCPAddr{Port: l.Addr().(*net.TCPAddr).Port}) // of this host
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.(*net.TCPListener).AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
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
		client, server := connectTo(t, l, "tcp4")
		client.Close()
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		server.Close()
	}
}

// idlePorts are those that buildTable binds and leaves idle.
var idlePorts = []uint16{9500, 9501, 9502}

// buildTable fills the namespace with sockets of both families that stay as they
// are; a dump of them takes many datagrams.
func buildTable(t *testing.T) {
	t.Helper()
	closeMany(t, 2000)
	for _, port := range idlePorts {
		bound(t, unix.AF_INET, port)
	}
	l := listenOn(t, "tcp", ":0") // dual-stack where there is IPv6
	for range 300 {
		connectTo(t, l, "tcp4")
	}
	if hasIPv6() {
		l := listenOn(t, "tcp6", "[::1]:0")
		for range 200 {
			connectTo(t, l, "tcp6")
		}
	}
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/self/net/tcp6")
	return err == nil
}

// sorted writes sockets down without timers and backlogs, in an order of their own.
func sorted(sockets []Socket) (lines []string) {
	for _, s := range sockets {
		lines = append(lines, text(undated(s)))
	}
	slices.Sort(lines)
	return lines
}

// wantTable walks and compares the sockets with those of /proc, and those that are idle,
// which /proc does not list, with idlePorts. All are read anew: what came before must not
// show.
func wantTable(t *testing.T, d *SockDiag) {
	t.Helper()
	var idle []uint16
	var sockets []Socket
	connections := false
	for _, s := range mustWalk(t, d) {
		first := s.State == Listen || s.Kind == Bound
		if first && connections {
			t.Errorf("behind a connection: %s", text(s))
		}
		connections = connections || !first
		if s.Kind != Bound {
			sockets = append(sockets, s)
			continue
		}
		if idle = append(idle, s.Local.Port); s.State != Close || s.Inode == 0 {
			t.Error(text(s))
		}
	}
	got, want := sorted(sockets), sorted(mustWalk(t, NewProcNet("/proc/self/net")))
	if len(want) < 500 {
		t.Fatalf("/proc has %d sockets", len(want))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d sockets, /proc has %d", len(got), len(want))
	}
	slices.Sort(idle)
	if len(idle) > 0 && !slices.Equal(idle, idlePorts) { // kernels before Linux 6.8 list none
		t.Errorf("idle are %v", idle)
	}
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
		for _, stopAfter := range []int{1, 100} {
			rows := 0
			for s, err := range d.Listeners(t.Context()) {
				if err != nil || s.State != Listen {
					t.Fatalf("%v, %s", err, text(s))
				}
				if rows++; rows == stopAfter {
					break
				}
			}
			wantTable(t, d)
		}

		for range 3 {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		wantTable(t, d)

		// Two dumps, or one for both families: the same sockets.
		d.split = !d.split
		wantTable(t, d)

		// With a receive queue of the least size: the kernel goes on with a dump only when
		// there is room, so nothing is lost.
		if err := d.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Fatal(err)
		}
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
		f := func(table iter.Seq2[Socket, error], want error, during func()) {
			t.Helper()
			if sockets, err := walk(table, during); !errors.Is(err, want) || len(sockets) > 1000 {
				t.Errorf("%v after %d rows, want %v", err, len(sockets), want)
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
		if _, err := walk(d.Sockets(soon)); err != nil {
			t.Fatal(err)
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
		if hasIPv6() {
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
			if _, err := walk(d.Listeners(t.Context())); err != nil {
				t.Fatalf("after dump %d: %v", i, err)
			}
			cancel()
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

// send writes to d's socket as another process on the kernel's netlink. It needs
// CAP_NET_ADMIN, which the namespace gives.
func send(t *testing.T, d *SockDiag, datagram []byte) {
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
	if err := unix.Sendto(fd, datagram, 0, own); err != nil {
		t.Fatal(os.NewSyscallError("sendto", err))
	}
}

// TestSockDiagForeign has datagrams in the middle of a dump that are no part of
// it, or a read that fails: so does the walk, and the next one is whole.
func TestSockDiagForeign(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		f := func(reason string, during func(d *SockDiag)) {
			t.Helper()
			d := NewSockDiag()
			defer d.Close()
			wantTable(t, d)
			sockets, err := walk(d.Sockets(t.Context()), func() { during(d) })
			if len(sockets) == 0 || err == nil || !strings.HasPrefix(err.Error(), "sock_diag: ") || !strings.Contains(err.Error(), reason) {
				t.Errorf("%v after %d rows, want %q", err, len(sockets), reason)
			}
			wantTable(t, d)
			if d.split {
				t.Error("each family is dumped on its own after a failure that was not the request's")
			}
		}
		f("answers request 0", func(d *SockDiag) { send(t, d, message(unix.NLMSG_DONE, 0, 0)) })
		f("operation not permitted", func(d *SockDiag) { refuse(t, d, unix.NLMSG_ERROR, unix.EPERM, d.seq) })
		f("unknown state 77", func(d *SockDiag) {
			send(t, d, message(getSock, 0, d.seq, encode(inetDiagMsg{Family: unix.AF_INET, State: 77})...))
		})
		f("a datagram of more than 32768 bytes", func(d *SockDiag) { send(t, d, message(getSock, 0, d.seq, make([]byte, 40_000)...)) })
		f("recvmsg", func(d *SockDiag) { d.conn.Close() })
	})
}

// refuse ends the dump seq of d with an error number.
func refuse(t *testing.T, d *SockDiag, kind uint16, errno unix.Errno, seq uint32) {
	t.Helper()
	send(t, d, message(kind, unix.NLM_F_MULTI, seq, encode(-int32(errno))...))
}

// TestSockDiagLost has a dump end early, of which nothing in it tells.
func TestSockDiagLost(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		d := NewSockDiag()
		wantTable(t, d)
		sockets, err := walk(d.Sockets(t.Context()), func() { refuse(t, d, unix.NLMSG_DONE, 0, d.seq) })
		if short, ok := errors.AsType[*ShortError](err); !ok || int(short.Rows) > len(sockets) || !strings.HasPrefix(err.Error(), "sock_diag: ") {
			t.Errorf("%v with %d sockets", err, len(sockets))
		}
	})
}

// TestSockDiagListedTwice has the kernel list sockets again in a later read, as it
// does when others came into their hash bucket meanwhile.
func TestSockDiagListedTwice(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		closeMany(t, 200)
		d := NewSockDiag()
		sockets := mustWalk(t, d)
		listener := sockets[0]
		connection := sockets[slices.IndexFunc(sockets, func(s Socket) bool { return s.State == TimeWait })]
		f := func(s Socket, want int) {
			t.Helper()
			// It is read before the dump, of which connection is the first but for listeners.
			send(t, d, message(getSock, 0, d.seq+1, record(s)...))
			got := mustWalk(t, d)
			if len(got) != want || got[0].State != s.State || got[0].Local != s.Local || got[0].Remote != s.Remote {
				t.Errorf("%d rows, want %d, and first %s", len(got), want, text(s))
			}
		}
		n := len(sockets)
		f(connection, n)
		// Its state has changed meanwhile.
		changed := connection
		changed.State, changed.Kind = Established, Full
		f(changed, n)
		// Another one.
		changed.Remote.Port++
		f(changed, n+1)
		// Listeners may share an address (SO_REUSEPORT), and so may idle sockets.
		f(listener, n+1)
		connection.State, connection.Kind = Close, Bound
		f(connection, n+1)
	})
}

// TestSockDiagRefused has a kernel that can't dump, which is no empty table, or does not
// know the request for both families.
func TestSockDiagRefused(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		for _, refusal := range []unix.Errno{unix.EINVAL, unix.ENOENT, unix.EOPNOTSUPP} {
			for _, kind := range []uint16{unix.NLMSG_DONE, unix.NLMSG_ERROR} {
				d := NewSockDiag()
				wantTable(t, d)
				refuse(t, d, kind, refusal, d.seq+1)
				if sockets, err := walk(d.Listeners(t.Context())); !errors.Is(err, refusal) || len(sockets) > 0 || !strings.HasPrefix(err.Error(), "sock_diag: the kernel refuses the dump") {
					t.Errorf("%v after %d rows, want %v", err, len(sockets), refusal)
				}
				wantTable(t, d)
				refuse(t, d, kind, refusal, d.seq+1)
				wantTable(t, d)
				if !d.split {
					t.Errorf("after %v both families are asked for at once again", refusal)
				}
				d.Close()
			}
		}
	})
}

// TestSockDiagAllocations proves that a socket costs no allocation: those of a
// dump grow with its datagrams, of 340 sockets each.
func TestSockDiagAllocations(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		d := NewSockDiag()
		closeMany(t, 100)
		few := allocations(t, d, 90) // a TIME_WAIT may end early on a busy machine (RFC 1337)
		closeMany(t, 9_900)
		many := allocations(t, d, 9_000)
		t.Logf("100 sockets: %.0f allocations, 10,000 sockets: %.0f", few, many)
		if datagrams := float64(9_900/340 + 1); many-few > 15*datagrams {
			t.Errorf("9,900 sockets more cost %.0f allocations more", many-few)
		}
	})
}
