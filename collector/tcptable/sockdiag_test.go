package tcptable

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// wantLive compares the live sockets with those of /proc: each has a cgroup and a cookie.
func wantLive(t *testing.T, d *SockDiag) {
	t.Helper()
	var want []Socket
	for _, s := range mustWalk(t, NewProcNet("/proc/self/net")) {
		if s.Kind == Full {
			want = append(want, s)
		}
	}
	var got, closeWaits []Socket
	cookies := make(map[uint64]bool)
	for s, err := range d.Live(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Cgroup == 0 || cookies[s.Cookie] {
			t.Errorf("cgroup %d, cookie %d: %s", s.Cgroup, s.Cookie, text(s))
		}
		cookies[s.Cookie] = true
		got = append(got, s)
	}
	if got, want := sorted(got), sorted(want); len(want) < 500 || !slices.Equal(got, want) {
		t.Errorf("%d sockets are live, /proc has %d", len(got), len(want))
	}
	for s, err := range d.CloseWaits(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		closeWaits = append(closeWaits, s)
	}
	if len(closeWaits) != 1 || closeWaits[0].State != CloseWait || !cookies[closeWaits[0].Cookie] {
		t.Errorf("in CLOSE_WAIT are %v, want 1", closeWaits)
	}
}

// TestSockDiagWalks leaves walks in all ways: the next one is whole again.
func TestSockDiagWalks(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		buildTable(t)
		client, _ := connectTo(t, listenOn(t, "tcp4", "127.0.0.1:0"), "tcp4")
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for acknowledged := false; !acknowledged; { // which may take 40 ms
			acknowledged = slices.ContainsFunc(mustWalk(t, NewProcNet("/proc/self/net")), func(s Socket) bool { return s.State == FinWait2 })
		}
		d := NewSockDiag()
		wantTable(t, d)
		wantTable(t, d)
		wantLive(t, d)
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
		wantLive(t, d)
		d.Ages = true
		wantTable(t, d)
		wantLive(t, d)

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
		f(d.Sockets(late), context.DeadlineExceeded, func() { <-late.Done() })
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
