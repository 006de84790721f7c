package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/diagnosis"
	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// namespace is a network namespace with a process in it.
type namespace struct {
	pid   int
	inode uint64
}

func newNamespace(t *testing.T) namespace {
	t.Helper()
	process := program.Start(t, netns.Command(t.Context(), unix.CLONE_NEWNET, "sleep", "3600"))
	n := namespace{pid: process.Process.Pid}
	var stat unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/net/tcp", n.pid), &stat); err != nil {
		t.Fatal(err)
	}
	n.inode = stat.Ino
	return n
}

// do calls f on a thread in the namespace.
func (n namespace) do(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	enter := func(path string) (back func()) {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Fatal(os.NewSyscallError("setns", err))
			}
		}
	}
	back := enter("/proc/thread-self/ns/net")
	enter(fmt.Sprintf("/proc/%d/ns/net", n.pid))()
	defer back()
	f()
}

// name is the namespace's on a page: all names have inodes, as all processes are in one cgroup.
func (n namespace) name(t *testing.T, p page) string {
	t.Helper()
	for _, m := range p.series("timewait_exporter_netns_info") {
		for _, l := range m.GetLabel() {
			if l.GetName() == "netns" && strings.HasSuffix(l.GetValue(), strconv.FormatUint(n.inode, 10)) {
				return l.GetValue()
			}
		}
	}
	return ""
}

// startUnprivileged runs the program as a user without any right, where this one may become
// another user, and without capabilities in any case.
func startUnprivileged(t *testing.T, args ...string) *exporter {
	t.Helper()
	drop := []string{"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(users), "4294967295") {
		drop = append(drop, "--reuid=65534", "--regid=65534", "--clear-groups")
	}
	command := exec.Command("setpriv", append(append(drop, program.Path(), "--web.listen-address=127.0.0.1:0"), args...)...)
	e := run(t, command)
	address := e.Address(t)
	e.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	return e
}

const ownMachine = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID

// TestNamespaces has thirty namespaces with a different number of connections each.
func TestNamespaces(t *testing.T) {
	netns.RunWith(t, ownMachine, func(t *testing.T) {
		netns.MountProc(t, "")
		var all [30]namespace
		var services [len(all)]netns.Service
		const otherPool = 7
		for i := range all {
			all[i] = newNamespace(t)
			all[i].do(t, func() {
				if err := netns.LoopbackUp(); err != nil {
					t.Fatal(err)
				}
				if i == otherPool {
					setPorts(t, 20000, 20999, "")
				}
				services[i] = netns.Serve(t, netip.MustParseAddr("127.0.0.1"), 8000)
				services[i].MustConnect(t, i+1)
			})
		}
		e := startUnprivileged(t, "--collector.namespaces=all", "--collector.namespaces.budget=10ms")

		// The kernel's counts are all there at once.
		p := e.scrape(t)
		names := make(map[string]bool)
		for i, n := range all {
			name := n.name(t, p)
			if name == "" || names[name] {
				t.Fatalf("namespace %d is called %q", i, name)
			}
			names[name] = true
			p.want(t, float64(1+2*(i+1)), "tcp_sockets_in_use", "netns", name)
			p.want(t, float64(2*(i+1)), "tcp_current_established", "netns", name)
			p.want(t, float64(i+1), "tcp_passive_opens_total", "netns", name)
		}
		if n := len(p.series("timewait_exporter_netns_info")); n != len(all)+1 {
			t.Errorf("%d namespaces, want %d", n, len(all)+1)
		}
		p.want(t, 0, "timewait_exporter_host_visible") // PID 2 is no kernel thread here

		// The tables are, after some rounds.
		tables := func(p page) float64 {
			return p.sum("timewait_exporter_namespaces", "tables", "read") + p.sum("timewait_exporter_namespaces", "tables", "unchanged")
		}
		netns.Eventually(t, func() bool { p = e.scrape(t); return tables(p) == float64(len(all)+1) },
			func() string { return fmt.Sprintf("%v tables are read", tables(p)) })
		for i, n := range all {
			name := n.name(t, p)
			p.want(t, 1, "tcp_connections", "netns", name, "state", "listen")
			for _, direction := range []string{"inbound", "outbound"} {
				p.want(t, float64(i+1), "tcp_connections", "netns", name, "state", "established", "direction", direction)
				p.want(t, float64(i+1), "tcp_remote_connections", "netns", name, "state", "established", "direction", direction)
			}
			sysctls, ratio := "assumed", float64(i+1)/28232
			if i == otherPool {
				sysctls, ratio = "unknown", 0
			}
			p.want(t, 1, "timewait_exporter_netns_info", "netns", name, "sysctls", sysctls)
			p.want(t, ratio, "tcp_ephemeral_port_utilisation_ratio", "netns", name, "pool", "connect")
		}

		// So they are in the report.
		_, body, err := e.get("/report.json", nil)
		if err != nil {
			t.Fatal(err)
		}
		var report diagnosis.Report
		if err := json.Unmarshal(body, &report); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		for i, n := range all {
			want := diagnosis.StateRow{Netns: n.name(t, p), Family: "ipv4", Direction: "outbound", State: "established", Connections: uint64(i + 1)}
			if !slices.Contains(report.Tables.States, want) {
				t.Errorf("the report has no %v", want)
			}
		}

		// One ends, and is gone; another changes, and is read again.
		name := all[29].name(t, p)
		if err := unix.Kill(all[29].pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		changed := all[3].name(t, p)
		all[3].do(t, func() { services[3].MustConnect(t, 10) })
		netns.Eventually(t, func() bool {
			p = e.scrape(t)
			return all[29].name(t, p) == "" && p.sum("tcp_connections", "netns", changed, "state", "established") == 2*14
		}, func() string {
			return fmt.Sprintf("%s: %v; %s: %v", name, p.series("tcp_sockets_in_use", "netns", name), changed, p.series("tcp_connections", "netns", changed))
		})
		p.want(t, 0, "tcp_connections", "netns", name)
		if log := e.Log.String(); strings.Contains(log, "level=warn") || strings.Contains(log, "level=error") {
			t.Error(log)
		}
	})
}

// TestNamespacesHidden sees no other user's processes.
func TestNamespacesHidden(t *testing.T) {
	netns.RunWith(t, ownMachine, func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("processes are hidden from other users only")
		}
		netns.MountProc(t, "hidepid=2")
		newNamespace(t)
		p := startUnprivileged(t, "--collector.namespaces=all").scrape(t)
		p.want(t, 0, "timewait_exporter_host_visible")
		p.want(t, 1, "timewait_exporter_namespaces")
		if len(p.series("tcp_connections")) == 0 {
			t.Error("its own namespace is not read")
		}
	})
}

// TestNamespacesSoak makes and ends twenty namespaces a second under scrapes: without an
// error, and without files or memory that stay. SOAK is for how long.
func TestNamespacesSoak(t *testing.T) {
	netns.RunWith(t, ownMachine, func(t *testing.T) {
		soak := time.Minute
		if text := os.Getenv("SOAK"); text != "" {
			var err error
			if soak, err = time.ParseDuration(text); err != nil {
				t.Fatal(err)
			}
		}
		netns.MountProc(t, "")
		e := startUnprivileged(t, "--collector.namespaces=all", "--collector.namespaces.budget=5ms")
		ctx, cancel := context.WithCancel(t.Context())
		made := make(chan int)
		go func() {
			defer close(made)
			n := 0
			for ; ctx.Err() == nil; n++ {
				// Of various lives, so that others have their numbers while they are read.
				command := netns.Command(ctx, unix.CLONE_NEWNET, "sleep", strconv.FormatFloat(float64(n%40)/20, 'f', 2, 64))
				if err := command.Start(); err != nil {
					t.Error(err)
					break
				}
				go command.Wait() // it ends by itself, or with the test
				time.Sleep(50 * time.Millisecond)
			}
			made <- n
		}()
		var files, memory [2]int // in the first tenth, and in the last
		scrapes, most, start := 0, 0., time.Now()
		for ; time.Since(start) < soak; scrapes++ {
			p := e.scrape(t)
			most = max(most, p.sum("timewait_exporter_namespaces"))
			files[1], memory[1] = openFiles(t, e.Process.Process.Pid), residentMemory(t, e.Process.Process.Pid)
			if time.Since(start) < soak/10 {
				files[0], memory[0] = max(files[0], files[1]), max(memory[0], memory[1])
			}
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
		n := <-made
		t.Logf("%d namespaces in %v, %v at a time, %d scrapes; files %d, memory %d KiB at first and at last", n, soak, most, scrapes, files, memory)
		if most < 10 || float64(n) < soak.Seconds()*5 {
			t.Error("there were too few namespaces to tell anything")
		}
		if files[1] > files[0]+20 || memory[1] > memory[0]+memory[0]/4 {
			t.Error("files or memory grow")
		}
		if log := e.Log.String(); strings.Contains(log, "level=warn") || strings.Contains(log, "level=error") {
			t.Error(log)
		}
	})
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func residentMemory(t *testing.T, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
