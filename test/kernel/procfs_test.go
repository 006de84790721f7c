package kernel

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// TestHostProcfs is a container with a network namespace of its own that has
// the host's /proc mounted: the host is what to count, but the sysctls that
// the container sees there are its own.
func TestHostProcfs(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS, func(t *testing.T) {
		root := mountProc(t, "/proc", "", unix.MS_BIND|unix.MS_REC)
		s := netns.Serve(t, loopback4, 8123)
		s.MustConnect(t, 5)

		// The host lives on meanwhile: count its listeners until two looks agree.
		e := startExporter(t, "--path.procfs="+root)
		var p page
		var before, after int
		netns.Eventually(t, func() bool {
			before = countListeners(t, filepath.Join(root, "1"))
			p = e.scrape(t)
			after = countListeners(t, filepath.Join(root, "1"))
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
		netns.Eventually(t, func() bool { return strings.Contains(e.Log.String(), filepath.Join(root, "1/net")) },
			func() string { return "the log does not say what is read:\n" + e.Log.String() })
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

func countListeners(t *testing.T, process string) (n int) {
	t.Helper()
	for _, l := range readTableOf(t, process) {
		if l.state == "listen" {
			n++
		}
	}
	return n
}
