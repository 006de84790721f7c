package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"

	"timewait_exporter/collector/tcptable"
	"timewait_exporter/test/netns"
)

// bothSources skips the test where there is only one.
func bothSources(t *testing.T) {
	t.Helper()
	if len(sources(t)) < 2 {
		t.Skip("this kernel has no sock_diag for TCP")
	}
}

// within repeats f, which on a busy machine may take longer than it should.
func within(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	netns.Eventually(t, func() bool {
		start := time.Now()
		f()
		took = time.Since(start)
		return took < limit
	}, func() string { return fmt.Sprintf("it takes %v, never less than %v", took, limit) })
}

// compareRows compares the sources row by row, in all that both know.
func compareRows(t *testing.T, rs rows) {
	diag := tcptable.NewSockDiag()
	defer diag.Close()
	type ends struct {
		table         tcptable.Table
		local, remote tcptable.Endpoint
		inode         uint64 // tells listeners apart
	}
	read := func(source tcptable.Source) map[ends]tcptable.Socket {
		found := make(map[ends]tcptable.Socket)
		for s, err := range source.Sockets(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			found[ends{s.Table, s.Local, s.Remote, s.Inode}] = s
		}
		if len(found) != len(rs) {
			t.Fatalf("%T has %d rows, built were %d", source, len(found), len(rs))
		}
		return found
	}
	var fromProc, fromDiag map[ends]tcptable.Socket
	within(t, time.Second, func() { fromProc, fromDiag = read(tcptable.NewProcNet("/proc/self/net")), read(diag) })
	kinds := make(map[string]int)
	for e, p := range fromProc {
		d, ok := fromDiag[e]
		if !ok {
			t.Errorf("only /proc has %+v", p)
			continue
		}
		kinds[fmt.Sprint(p.State, p.Kind)]++
		if off := p.TimerLeft - d.TimerLeft; off.Abs() > time.Second {
			t.Errorf("the timer of %+v is off by %v", p, off)
		}
		if p.State == tcptable.TimeWait && p.TimerLeft < 40*time.Second {
			t.Errorf("the timer of %+v, which is seconds old", p)
		}
		if p.State == tcptable.Listen && d.Backlog != 100 {
			t.Errorf("the backlog of %+v is 100", d)
		}
		if off := int(p.Unanswered) - int(d.Unanswered); off < -1 || off > 1 { // one is sent again at any moment
			t.Errorf("%+v is unanswered by %d more than /proc says", p, -off)
		}
		d.TimerLeft, d.Unanswered = p.TimerLeft, p.Unanswered
		d.Backlog, d.V6Only, d.Transparent, d.Cgroup, d.Cookie, d.LastAck = 0, false, false, 0, 0, 0 // /proc does not tell those
		if d != p {
			t.Errorf("/proc has\n%+v, sock_diag\n%+v", p, d)
		}
	}
	for _, kind := range []string{
		fmt.Sprint(tcptable.FinWait2, tcptable.Full), fmt.Sprint(tcptable.FinWait2, tcptable.Mini), fmt.Sprint(tcptable.TimeWait, tcptable.Mini),
		fmt.Sprint(tcptable.SynRecv, tcptable.Request), fmt.Sprint(tcptable.SynRecv, tcptable.Full), fmt.Sprint(tcptable.Listen, tcptable.Full),
	} {
		if kinds[kind] == 0 {
			t.Errorf("no row of state and kind %s among %v", kind, kinds)
		}
	}
}

// isOfTheNode reports whether a metric counts what all network namespaces have
// together, or tells of processes, for whose names a busy machine takes a scrape or two. So
// it may differ between any two scrapes.
func isOfTheNode(name string) bool {
	return slices.Contains([]string{"tcp_orphans", "tcp_memory_bytes", "kernel_file_handles"}, name) || strings.Contains(name, "_owner_")
}

// isOfTheMoment reports whether a metric may differ between two scrapes of the
// same sockets.
func isOfTheMoment(name string) bool {
	return strings.HasSuffix(name, "_total") || isOfTheNode(name) || name == "tcp_time_wait_remaining_connections" ||
		strings.HasSuffix(name, "_unanswered_connections")
}

// comparePages compares what two scrapes say of the same sockets.
func comparePages(t *testing.T, a, b page) {
	t.Helper()
	read := func(p page) map[string]float64 {
		values := make(map[string]float64)
		for name, family := range p {
			if !strings.HasPrefix(name, "tcp_") || isOfTheMoment(name) {
				continue
			}
			for _, m := range family.GetMetric() {
				values[fmt.Sprint(name, m.GetLabel())] = number(m)
			}
		}
		return values
	}
	valuesA, valuesB := read(a), read(b)
	if len(valuesA) < 150 {
		t.Errorf("only %d series are compared", len(valuesA))
	}
	all := maps.Clone(valuesA)
	maps.Copy(all, valuesB)
	for series := range all {
		valueA, inA := valuesA[series]
		valueB, inB := valuesB[series]
		if inA != inB || valueA != valueB {
			t.Errorf("%s is %v and %v; is it there: %v and %v", series, valueA, valueB, inA, inB)
		}
	}
}

// TestMPTCP has no AF_INET6 sockets but those of MPTCP, as a Go program's listeners
// are: with both sources they are there, whatever sockstat6 counts of them.
func TestMPTCP(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		at := netip.MustParseAddrPort("[::]:9000")
		open := func() netns.Socket {
			t.Helper()
			s, err := netns.OpenSocket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
			if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
				t.Skipf("this kernel has no MPTCP, or it is off: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		listener := open()
		listener.Bind(t, at)
		if err := unix.Listen(listener.FD, 5); err != nil {
			t.Fatal(os.NewSyscallError("listen", err))
		}
		es := startExporters(t)
		for _, p := range es.scrape(t) {
			p.want(t, 1, "tcp_connections", "family", "ipv6", "state", "listen")
			p.want(t, 1, "tcp_connections")
			p.want(t, 1, "timewait_exporter_rows_total", "table", "tcp6")
		}
		// One that speaks MPTCP, and one that does not.
		for _, client := range []netns.Socket{open(), netns.NewSocket(t, unix.AF_INET6)} {
			if err := client.TryConnect(netip.AddrPortFrom(loopback6, at.Port())); err != nil {
				t.Fatalf("connect: %v", err)
			}
			listener.Accept(t)
		}
		for _, p := range es.scrape(t) {
			p.want(t, 2, "tcp_connections", "family", "ipv6", "direction", "inbound", "state", "established")
			p.want(t, 2, "tcp_connections", "family", "ipv6", "direction", "outbound", "state", "established")
			p.want(t, 5, "tcp_connections")
		}
	})
}

// TestIdleBoundSockets has sockets that are bound and idle in the pool: they are in no
// table of /proc, and connect() and bind() agree with netlink.
func TestIdleBoundSockets(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		bothSources(t)
		if olderThan(t, 6, 8) {
			t.Skip("sock_diag lists bound sockets since Linux 6.8")
		}
		setPorts(t, 40000, 40019, "")
		s := netns.Serve(t, loopback4, 9000)
		s.MustConnect(t, 2)
		es := startExporters(t)
		f := func(procfs, netlink float64) {
			t.Helper()
			for i, p := range es.scrape(t) {
				want := []float64{procfs, netlink}[i]
				p.want(t, want, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
				p.want(t, want, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
				p.want(t, want, "tcp_destination_port_utilisation_ratio", destination(loopback4, s.At)...)
				p.want(t, want, "tcp_local_port_utilisation_ratio", "local_ip", loopback4.String())
				p.want(t, want*20, "tcp_ephemeral_ports_used")
				// They are no connections.
				p.want(t, 5, "tcp_connections")
				p.want(t, 0, "tcp_connections", "state", "close")
				p.want(t, 2, "tcp_destination_ports_used")
				p.want(t, 0, "tcp_orphan_connections")
			}
		}
		f(0.1, 0.1)
		for range 8 {
			netns.NewSocket(t, unix.AF_INET).Bind(t, netip.AddrPortFrom(loopback4, 0))
		}
		f(0.1, 0.5)
		for range 9 {
			netns.NewSocket(t, unix.AF_INET).Bind(t, netip.AddrPortFrom(loopback4, 0))
		}
		f(0.1, 0.95)
		wantCalls(t, exhaustService(t, es[1:], s), 1)
		es[1].scrape(t).want(t, 1, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
		if err := netns.NewSocket(t, unix.AF_INET).TryBind(netip.AddrPortFrom(loopback4, 0)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("bind with no port left: %v, want %v", err, unix.EADDRINUSE)
		}
	})
}

// TestNoNetlink runs the program where it may not make netlink sockets, as
// container runtimes and systemd's RestrictAddressFamilies do.
func TestNoNetlink(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		s := netns.Serve(t, loopback4, 9000)
		s.MustConnect(t, 3)
		s.MustConnect(t, 2)[0].CloseClientFirst(t)
		want := sockstat{inUse4: 9, timeWait: 1} // the listener, and both ends of four connections
		netns.Eventually(t, func() bool { return readSockstat(t) == want },
			func() string { return fmt.Sprintf("%+v, built were %+v", readSockstat(t), want) })
		forbidNetlink(t)

		for _, args := range [][]string{{"--collector.source=auto"}, {"--collector.source=procfs"}, nil} {
			e := startExporter(t, args...)
			p := e.scrape(t)
			p.want(t, 1, "timewait_exporter_source_info", "source", "procfs")
			p.want(t, 1, "timewait_exporter_source_info")
			p.want(t, 10, "tcp_connections")
			p.want(t, 1, "tcp_connections", "state", "time_wait")
			p.want(t, 0, "tcp_listener_accept_queue", "local_ip", "127.0.0.1", "local_port", "9000")
			p.want(t, 1, "tcp_listener_sockets", "local_ip", "127.0.0.1", "local_port", "9000")
			for _, name := range []string{"tcp_listener_accept_queue_limit", "tcp_listener_accept_queue_fill_ratio", "tcp_listener_full_sockets", "tcp_listener_syn_queue_fill_ratio"} {
				if n := len(p.series(name)); n != 0 {
					t.Errorf("%q: %d series of %s without sock_diag", args, n, name)
				}
			}
			if found := p.series("timewait_exporter_collector_success", "collector", "listeners"); len(found) != 0 {
				t.Errorf("%q: %v, but nothing was tried", args, found)
			}
			wantCleanExit(t, e) // now the log is all there
			wanted := "procfs"
			if len(args) > 0 {
				wanted = strings.TrimPrefix(args[0], "--collector.source=")
			}
			for _, part := range []string{"source=procfs wanted=" + wanted, "limits of accept queues", "operation not permitted"} {
				if !strings.Contains(e.Log.String(), part) {
					t.Errorf("%q: the log lacks %q:\n%s", args, part, e.Log)
				}
			}
		}

		code, output := runToEnd(t, "--web.listen-address=127.0.0.1:10793", "--collector.source=netlink")
		if code != 1 || !strings.Contains(output, "level=error") || !strings.Contains(output, "sock_diag: socket: operation not permitted") {
			t.Errorf("exit code %d, want 1 and what failed:\n%s", code, output)
		}
	})
}

// forbidNetlink makes socket(AF_NETLINK) fail with EPERM in the programs that this
// goroutine starts from now on. A filter is a thread's, and the threads and programs
// that it starts inherit it (man 2 seccomp); the thread ends with the goroutine.
func forbidNetlink(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{
			Action: seccomp.ActionErrno | seccomp.Action(unix.EPERM),
			NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "socket", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.Equal, Value: unix.AF_NETLINK}}},
			},
		}},
	}})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
		t.Skipf("this kernel or container has no seccomp filters: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG); !errors.Is(err, unix.EPERM) {
		t.Fatalf("netlink under the filter: %v, want %v", err, unix.EPERM)
	}
}
