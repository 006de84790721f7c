package kernel

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// kernelFiles are the files of each part of a scrape.
var kernelFiles = map[string][]string{
	"net/tcp":                              {"sockets"},
	"net/tcp6":                             {"sockets"},
	"net/sockstat":                         {"sockstat"},
	"net/snmp":                             {"snmp"},
	"net/netstat":                          {"netstat"},
	"sys/fs/file-nr":                       {"file-nr"},
	"sys/net/core/somaxconn":               {"sysctls"},
	"sys/net/ipv4/tcp_max_tw_buckets":      {"sysctls"},
	"sys/net/ipv4/ip_local_port_range":     {"ports"},
	"sys/net/ipv4/ip_local_reserved_ports": {"ports"},
	"sys/net/ipv4/tcp_tw_reuse":            {"ports", "sysctls"},
}

// copyProc returns a copy of what the exporter reads below /proc, and of sockstat6.
func copyProc(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for file := range kernelFiles {
		copyFile(t, root, file)
	}
	copyFile(t, root, "net/sockstat6")
	return root
}

func copyFile(t *testing.T, root, file string) {
	t.Helper()
	from := filepath.Join("/proc", file)
	if !strings.HasPrefix(file, "sys/") {
		from = filepath.Join("/proc/self", file)
	}
	text, err := os.ReadFile(from)
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("this kernel has no %s", from)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scrapeWithin is a Prometheus that waits for so many seconds.
func (e *exporter) scrapeWithin(t *testing.T, seconds float64) page {
	t.Helper()
	start := time.Now()
	response, body, err := e.get("/metrics", http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {fmt.Sprint(seconds)}})
	if err != nil {
		t.Fatal(err)
	}
	const starved = 2 // seconds that a busy machine may add
	if took := time.Since(start); response.StatusCode != http.StatusOK || took.Seconds() > seconds+starved {
		t.Errorf("%s after %v, Prometheus waits %v s", response.Status, took, seconds)
	}
	return mustParse(t, body)
}

// wantOnlyFailed wants every part of the page but those that may fail.
func wantOnlyFailed(t *testing.T, p page, parts ...string) {
	t.Helper()
	failed := make(map[string]bool)
	for _, part := range parts {
		failed[part] = true
	}
	for _, part := range []string{"sockets", "ports", "sockstat", "snmp", "netstat", "conntrack", "sysctls", "file-nr"} {
		want := 1.
		if failed[part] {
			want = 0
		}
		if got := p.value(t, "timewait_exporter_collector_success", "collector", part); got != want {
			t.Errorf("%s: success %v, want %v", part, got, want)
		}
	}
	for part, metric := range map[string]string{
		"sockets": "tcp_connections", "sockstat": "tcp_orphans", "snmp": "tcp_active_opens_total", "netstat": "tcp_listen_drops_total", "file-nr": "kernel_file_handles",
	} {
		if got := len(p.series(metric)) > 0; got == failed[part] {
			t.Errorf("%s is there: %v", metric, got)
		}
	}
}

// TestBrokenFile has one file after the other that is not as the kernel writes it.
// Its part fails, the others are there, and the log quotes a little of it.
func TestBrokenFile(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		root := copyProc(t)
		e := startExporter(t, "--path.procfs="+root)
		wantOnlyFailed(t, e.scrapeWithin(t, 2))
		netns.Eventually(t, func() bool { return strings.Contains(e.Log.String(), "TLS is disabled") }, e.Log.String) // the last line of the start
		for _, c := range []struct{ file, text, part string }{
			{"net/snmp", "Tcp: ActiveOpens ActiveOpens\nTcp: 1 1\n", "snmp"},
			{"net/snmp", strings.Repeat("Tcp: ActiveOpens\nTcp: 1\n", 10_000), "snmp"},
			{"net/netstat", "TcpExt: TW TWRecycled\n", "netstat"},
			{"net/sockstat", "TCP: inuse 1 tw 1\nTCP: inuse 1 tw 1\n", "sockstat"},
			{"sys/fs/file-nr", "-1\t0\t9\n", "file-nr"},
			{"sys/net/ipv4/tcp_max_tw_buckets", "many\n", "sysctls"},
			{"sys/net/ipv4/ip_local_reserved_ports", strings.Repeat("1,", 200_000), "ports"},
			{"net/tcp", strings.Repeat("1", 1<<20), "sockets"},
		} {
			path := filepath.Join(root, c.file)
			if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			logged := len(e.Log.String()) // no more than 10 lines a second
			wantOnlyFailed(t, e.scrapeWithin(t, 2), c.part)
			told := func() string { return e.Log.String()[logged:] }
			netns.Eventually(t, func() bool { return strings.Contains(told(), "\n") }, func() string { return c.file + ": nothing is logged" })
			if line := told(); strings.Count(line, "\n") != 1 || !strings.Contains(line, path) || len(line) > 4000 {
				t.Errorf("%d bytes logged, want one short line that names %s: %.4000s", len(line), path, line)
			}
			copyFile(t, root, c.file)
		}
		// Endless ones.
		for _, c := range []struct{ file, part string }{{"net/snmp", "snmp"}, {"sys/fs/file-nr", "file-nr"}, {"net/tcp", "sockets"}} {
			path := filepath.Join(root, c.file)
			if err := errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)); err != nil {
				t.Fatal(err)
			}
			wantOnlyFailed(t, e.scrapeWithin(t, 2), c.part)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			copyFile(t, root, c.file)
		}
		p := e.scrapeWithin(t, 2)
		wantOnlyFailed(t, p)
		if memory := p.value(t, "process_resident_memory_bytes"); memory > 64<<20 {
			t.Errorf("%v bytes of memory", memory)
		}
	})
}

// TestHungFileSystem has files on a file system that never answers, so that nothing
// ends a read: the kernel has calls wait for a FUSE server's first word.
func TestHungFileSystem(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS, func(t *testing.T) {
		netns.Listen(t, netip.MustParseAddrPort("[::1]:8123"), 1) // so that tcp6 is needed
		for file, parts := range kernelFiles {
			t.Run(strings.ReplaceAll(file, "/", "_"), func(t *testing.T) {
				t.Parallel()
				// One for each: who waits for a directory that another waits in can't be killed.
				hung := hangingFileSystem(t)
				root := copyProc(t)
				path := filepath.Join(root, file)
				e := startExporter(t, "--path.procfs="+root)
				wantOnlyFailed(t, e.scrapeWithin(t, 4))
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(filepath.Join(hung, "file"), path); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					wantOnlyFailed(t, e.scrapeWithin(t, 4), parts...)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				copyFile(t, root, file)
				netns.Eventually(t, func() bool {
					return e.scrapeWithin(t, 4).value(t, "timewait_exporter_collector_success", "collector", parts[0]) == 1
				}, func() string { return "the file is right again and its part is not:\n" + e.Log.String() })
				for range 2 {
					wantOnlyFailed(t, e.scrapeWithin(t, 4))
				}
				if took := e.Stop(t); took > 5*time.Second {
					t.Errorf("it took %v to end", took)
				}
			})
		}
	})
}

// TestHungStart starts the program when what it looks at first does not answer: it
// listens soon all the same, and ends at once when it is to.
func TestHungStart(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS, func(t *testing.T) {
		hung := hangingFileSystem(t)
		root := copyProc(t)
		path := filepath.Join(root, "sys/net/ipv4/ip_local_port_range")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(hung, "file"), path); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		e := startListening(t, "127.0.0.1:10793", "--path.procfs="+root)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it listens after %v", took)
		}
		wantCleanExit(t, e)

		e = run(t, exec.Command(program.Path(), "--web.listen-address=127.0.0.1:10794", "--path.procfs="+root))
		netns.Eventually(t, func() bool { return strings.Contains(e.Log.String(), "starting") }, e.Log.String)
		wantCleanExit(t, e)

		// Of a root that does not answer nothing can be told.
		code, output := runToEnd(t, "--path.procfs="+filepath.Join(hung, "proc"))
		if code != 2 || !strings.Contains(output, "--path.procfs") || strings.Count(output, "\n") > 2 {
			t.Errorf("exit code %d: %s", code, output)
		}
	})
}

// hangingFileSystem mounts a FUSE file system whose server says nothing.
func hangingFileSystem(t *testing.T) string {
	t.Helper()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENODEV) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// A mount namespace starts as a copy whose mounts still reach the original.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	dir := t.TempDir()
	err = unix.Mount("hung", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd()))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		t.Skipf("this container does not let FUSE be mounted: %v", err)
	}
	if err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	t.Cleanup(func() {
		device.Close() // ends all calls
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(os.NewSyscallError("umount2", err))
		}
	})
	return dir
}
