package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// fromNetSysctls are the metrics that need the namespace's own sysctls.
var fromNetSysctls = []string{
	"tcp_ephemeral_ports", "tcp_ephemeral_ports_used", "tcp_ephemeral_port_range_low", "tcp_ephemeral_port_range_high",
	"tcp_ephemeral_port_utilisation_ratio", "tcp_destination_ports_used", "tcp_destination_port_utilisation_ratio",
	"tcp_local_ports_used", "tcp_local_port_utilisation_ratio", "tcp_time_wait_limit", "tcp_time_wait_reuse_mode",
	"tcp_time_wait_duration_seconds", "tcp_fin_timeout_seconds", "tcp_listen_backlog_limit", "tcp_syn_backlog_limit",
}

// TestOwnNamespace reads /proc, however it is spelled: the namespace is the
// one the program runs in.
func TestOwnNamespace(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:8123"), 1)
		for _, args := range [][]string{nil, {"--path.procfs=/proc"}, {"--path.procfs=/proc/"}} {
			p := startExporter(t, args...).scrape(t)
			p.want(t, 1, "tcp_connections", "netns", "self")
			p.want(t, 1, "timewait_exporter_netns_info", "netns", "self", "sysctls", "same")
			if n := len(p.series("tcp_listener_accept_queue", "local_ip", "127.0.0.1", "local_port", "8123")); n != 1 {
				t.Errorf("%q: the listener has %d series, want 1", args, n)
			}
		}
	})
}

// TestHostProcfs is a container with a network namespace of its own that has
// the host's /proc mounted: the host is what to count, but the sysctls that
// the container sees there are its own.
func TestHostProcfs(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS, func(t *testing.T) {
		root := mountProc(t, "/proc", "", unix.MS_BIND|unix.MS_REC)
		s := netns.Serve(t, loopback4, 8123)
		s.MustConnect(t, 5)

		proc, err := procfs.NewFS(filepath.Join(root, "1"))
		if err != nil {
			t.Fatal(err)
		}
		// The host lives on meanwhile: count its listeners until two looks agree.
		e := startExporter(t, "--path.procfs="+root)
		var p page
		var before, after int
		netns.Eventually(t, func() bool {
			before = countListeners(t, proc)
			p = e.scrape(t)
			after = countListeners(t, proc)
			return before == after
		}, func() string { return "the host's listeners never rest" })

		p.want(t, float64(after), "tcp_connections", "netns", "host", "state", "listen")
		p.want(t, 0, "tcp_connections", "netns", "self")
		p.want(t, 0, "tcp_listener_connections", "local_port", "8123")
		p.want(t, 1, "timewait_exporter_netns_info", "netns", "host", "path", filepath.Join(root, "1/net"), "sysctls", "other")
		for _, name := range fromNetSysctls {
			if found := p.series(name); len(found) != 0 {
				t.Errorf("%s is of another namespace: %v", name, found)
			}
		}
		for _, name := range []string{"tcp_time_wait_sockets", "tcp_active_opens_total", "tcp_destinations", "tcp_remote_ips", "kernel_file_handles"} {
			if len(p.series(name)) == 0 {
				t.Errorf("%s is missing", name)
			}
		}
		for _, m := range p.series("tcp_listener_accept_queue_limit") {
			// sock_diag answers for the namespace of the socket, which is the program's own.
			t.Errorf("a limit of this namespace's listener is on the host's page: %s", m)
		}
		netns.Eventually(t, func() bool { return strings.Contains(e.log.String(), filepath.Join(root, "1/net")) },
			func() string { return "the log does not say what is read:\n" + e.log.String() })
	})
}

// TestContainerProcfs has another mount of the /proc whose PID 1 shares the
// program's network namespace: then the sysctls are the right ones.
func TestContainerProcfs(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID, func(t *testing.T) {
		root := mountProc(t, "proc", "proc", 0)
		setPorts(t, 40000, 40019, "")
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:8123"), 1)
		p := startExporter(t, "--path.procfs="+root).scrape(t)
		p.want(t, 1, "tcp_connections", "netns", "host")
		p.want(t, 20, "tcp_ephemeral_ports", "netns", "host")
		p.want(t, 1, "timewait_exporter_netns_info", "netns", "host", "path", filepath.Join(root, "1/net"), "sysctls", "same")
		if n := len(p.series("tcp_listener_accept_queue_limit")); n != 1 {
			t.Errorf("tcp_listener_accept_queue_limit has %d series, want 1", n)
		}
	})
}

// TestCopiedProcfs reads plain files: a copy that somebody took of a machine
// whose namespace this kernel knows nothing of.
func TestCopiedProcfs(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:8123"), 1)
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "net/tcp"), []byte(oneListener), 0o644); err != nil {
			t.Fatal(err)
		}
		p := startExporter(t, "--path.procfs="+root).scrape(t)
		p.want(t, 1, "tcp_connections")
		p.want(t, 1, "timewait_exporter_netns_info", "path", filepath.Join(root, "net"))
		if n := len(p.series("tcp_listener_accept_queue", "local_ip", "127.0.0.1", "local_port", "8000")); n != 1 {
			t.Errorf("the copy's listener has %d series, want 1", n)
		}
		if found := p.series("tcp_listener_accept_queue_limit"); len(found) != 0 {
			t.Errorf("a limit of this kernel's listener is on the copy's page: %v", found)
		}
	})
}

// TestCutTable reads copies of the kernel's files of one moment: the whole table
// is read, and one that ends somewhere in the middle is no smaller machine.
func TestCutTable(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0") // or a later connect takes the port of an earlier one
		for i, ip := range []netip.Addr{loopback4, loopback6} {
			s := netns.Serve(t, ip, 9000)
			s.MustConnect(t, 300)
			for _, p := range s.MustConnect(t, 100*(1+i)) {
				p.CloseClientFirst(t)
			}
		}
		want := sockstat{inUse4: 601, inUse6: 601, timeWait: 300}
		netns.Eventually(t, func() bool { return readSockstat(t) == want },
			func() string { return fmt.Sprintf("%+v, built were %+v", readSockstat(t), want) })

		root := t.TempDir()
		write := func(name string, lines []string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(root, "net", name), []byte(strings.Join(lines, "")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(root, "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		files := make(map[string][]string)
		for _, name := range []string{"tcp", "tcp6", "sockstat", "sockstat6", "protocols", "netstat", "snmp"} {
			text, err := os.ReadFile(filepath.Join("/proc/self/net", name))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = strings.SplitAfter(string(text), "\n")
			write(name, files[name])
		}
		e := startExporter(t, "--path.procfs="+root)
		e.scrape(t).want(t, float64(want.inUse4+want.inUse6+want.timeWait), "tcp_connections")

		// Each at the end of a row, then within one.
		for name, rows := range map[string]int{"tcp": 701, "tcp6": 801} {
			half := slices.Clone(files[name][:1+rows/2])
			for _, lines := range [][]string{half, append(half, files[name][1+rows/2][:40]), files[name][:1]} {
				write(name, lines)
				p, err := e.tryScrape()
				if err != nil {
					t.Fatal(err)
				}
				p.want(t, 0, "timewait_exporter_collector_success", "collector", "sockets")
				if n := len(p.series("tcp_connections")); n != 0 {
					t.Errorf("%s of %d lines: tcp_connections has %d series", name, len(lines), n)
				}
			}
			write(name, files[name])
			e.scrape(t).want(t, 1502, "tcp_connections")
		}
		for _, part := range []string{"sockets of tcp were read, but sockstat counts 601 before the walk and 601 after it", "0 sockets of tcp6 were read", "the file ends within the row"} {
			netns.Eventually(t, func() bool { return strings.Contains(e.log.String(), part) },
				func() string { return "the log does not say: " + part + "\n" + e.log.String() })
		}
		if err := os.Remove(filepath.Join(root, "net/tcp6")); err != nil {
			t.Fatal(err)
		}
		p, err := e.tryScrape()
		if err != nil {
			t.Fatal(err)
		}
		p.want(t, 0, "timewait_exporter_collector_success", "collector", "sockets")
		netns.Eventually(t, func() bool { return strings.Contains(e.log.String(), "but sockstat6 counts 601 sockets") },
			func() string { return "the log does not say why tcp6 must be there:\n" + e.log.String() })
	})
}

// mountProc mounts a proc file system below a temporary directory.
func mountProc(t *testing.T, source, kind string, flags uintptr) string {
	t.Helper()
	// A mount namespace starts as a copy whose mounts still reach the original.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	root := t.TempDir()
	err := unix.Mount(source, root, kind, flags, "")
	if errors.Is(err, unix.EPERM) {
		t.Skipf("this container does not let %s be mounted on %s: %v", source, root, err)
	}
	if err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(os.NewSyscallError("umount2", err))
		}
	})
	return root
}

func countListeners(t *testing.T, proc procfs.FS) int {
	t.Helper()
	v4, err := proc.NetTCP()
	if err != nil {
		t.Fatal(err)
	}
	v6, err := proc.NetTCP6()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	n := 0
	for _, l := range append(v4, v6...) {
		if states[l.St] == "listen" {
			n++
		}
	}
	return n
}
