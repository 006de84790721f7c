package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// cgroups are those of a scenario, whose process goes from one to the other: a socket is of
// the one that its process was in.
type cgroups struct{ root, dir string }

// newCgroups skips where the kernel's v2 hierarchy may not be written.
func newCgroups(t *testing.T) cgroups {
	t.Helper()
	mounts, err := procfs.GetMounts()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(m *procfs.MountInfo) bool { return m.FSType == "cgroup2" })
	if i < 0 {
		t.Skip("no cgroup v2 hierarchy is mounted")
	}
	c := cgroups{mounts[i].MountPoint, filepath.Join(mounts[i].MountPoint, fmt.Sprint("owners-", os.Getpid()))}
	if err := os.Mkdir(c.dir, 0o755); errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		t.Skip("making cgroups needs the right to: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(c.dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			if e.IsDir() {
				c.remove(t, e.Name())
			}
		}
		c.remove(t, ".")
	})
	return c
}

// in calls f as a process of a cgroup, which it makes, "" for the root.
func (c cgroups) in(t *testing.T, name string, f func()) {
	t.Helper()
	dir := filepath.Join(c.dir, name)
	if name == "" {
		dir = c.root
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.join(t, dir)
	defer c.join(t, c.root)
	f()
}

func (c cgroups) join(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// start starts a process in a cgroup that may have so many files open.
func (c cgroups) start(t *testing.T, name string, files uint64, command ...string) {
	t.Helper()
	dir, err := os.Open(filepath.Join(c.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}, nil); err != nil {
		t.Fatal(err)
	}
}

func (c cgroups) remove(t *testing.T, name string) {
	t.Helper()
	if err := unix.Rmdir(filepath.Clean(filepath.Join(c.dir, name))); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// wantOwners compares connections, written "owner direction state=n", and their sums with all that
// there are.
func (p page) wantOwners(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	sums := make(map[string]float64)
	for _, m := range p.series("tcp_owner_connections") {
		label := make(map[string]string)
		for _, l := range m.GetLabel() {
			label[l.GetName()] = l.GetValue()
		}
		place := label["direction"] + " " + label["state"]
		got = append(got, fmt.Sprintf("%s %s=%v", label["owner"], place, number(m)))
		sums[place] += number(m)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, m := range p.series("tcp_connections") {
		place := ""
		for _, l := range m.GetLabel() {
			if l.GetName() == "direction" || l.GetName() == "state" {
				place = strings.TrimSpace(place + " " + l.GetValue())
			}
		}
		sums[place] -= number(m)
	}
	for place, left := range sums {
		if left != 0 {
			t.Errorf("owners have %v of %s more than there are", left, place)
		}
	}
}

// scrapeNamed scrapes until all listeners have a name, and a program, if any, is the worst of an owner: on a busy
// machine the first scrapes may not have had the time to look at all processes.
func (es exporters) scrapeNamed(t *testing.T, program string) (pages []page) {
	t.Helper()
	for _, e := range es {
		var p page
		netns.Eventually(t, func() bool {
			p = e.scrape(t)
			return p.sum("tcp_owner_connections", "owner", "unknown", "state", "listen") == 0 && (program == "" || len(p.series("tcp_owner_worst_process_max_fds", "program", program)) > 0)
		}, func() string {
			return fmt.Sprint(p.series("tcp_owner_connections", "owner", "unknown"), p.series("tcp_owner_worst_process_max_fds"))
		})
		pages = append(pages, p)
	}
	return pages
}

// TestOwners has one of each case, told by a program without any right.
func TestOwners(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		c := newCgroups(t)
		start := func(args ...string) (es exporters) {
			for _, source := range sources(t) {
				es = append(es, startExporterBy(t, nobody(t), append(args, "--collector.source="+source)...))
			}
			return es
		}
		es := start()
		var web, db, shared netns.Service
		c.in(t, "web.service", func() {
			web = netns.Serve(t, loopback4, 8080)
		})
		c.in(t, "db.service", func() { db = netns.Serve(t, loopback4, 8081) })
		c.start(t, "db.service", 50, "sleep", "60")
		c.start(t, "db.service", 10, "tail", "-f", "/dev/null")
		for _, name := range []string{"a.service", "b.service"} { // one port for two
			c.in(t, name, func() {
				l := netns.NewSocket(t, unix.AF_INET)
				l.Set(t, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
				l.Bind(t, netip.MustParseAddrPort("127.0.0.1:8082"))
				if err := unix.Listen(l.FD, 10); err != nil {
					t.Fatal(err)
				}
				shared = netns.Service{Listener: l, At: netip.MustParseAddrPort("127.0.0.1:8082"), Family: unix.AF_INET}
			})
		}
		c.in(t, "", func() { netns.Serve(t, loopback4, 8083) })
		for n, name := range []string{"a.service", "b.service", "c.service"} { // to one destination
			c.in(t, name, func() { web.MustConnect(t, n+1) })
		}
		c.in(t, "client.service", func() {
			for _, p := range web.MustConnectFrom(t, netip.MustParseAddr("127.0.0.2"), 2000, 3) {
				p.CloseServerFirst(t)
			}
			for _, p := range web.MustConnect(t, 4) {
				p.CloseClientFirst(t)
			}
			for _, p := range db.MustConnect(t, 2) { // the server forgets to close
				p.Client.Shutdown(t)
				p.Server.AwaitEOF(t)
			}
			orphan := web.MustConnect(t, 1)[0]
			orphan.Client.FillPeer(t)
			orphan.Client.Close(t)
			web.Fill(t, 2) // nobody accepts them
			client := netns.NewSocket(t, unix.AF_INET)
			client.Bind(t, netip.MustParseAddrPort("127.0.0.2:3000"))
			if err := client.TryConnect(shared.At); err != nil {
				t.Fatal(err)
			}
		})
		c.in(t, "gone.scope", func() { db.MustConnect(t, 1) })
		c.in(t, "ghost.scope", func() { db.MustConnect(t, 1) })
		c.remove(t, "ghost.scope")
		want := []string{
			"/ inbound listen=1", "a.service inbound listen=1", "b.service inbound listen=1", "web.service inbound listen=1", "db.service inbound listen=1",
			"a.service outbound established=1", "b.service outbound established=2", "c.service outbound established=3",
			"web.service inbound established=9", // 6 accepted by others, 2 not accepted, 1 of the orphan
			"client.service outbound established=3", "client.service outbound fin_wait1=1", "client.service outbound fin_wait2=2",
			"web.service inbound time_wait=3", "unknown outbound time_wait=4",
			"db.service inbound close_wait=2", "db.service inbound established=2",
			"gone.scope outbound established=1", "unknown outbound established=1",
		}
		accepting := "a.service inbound established=1" // which of the two is the kernel's choice
		for _, p := range es.scrapeNamed(t, "tail") {
			if p.sum("tcp_owner_connections", "owner", "b.service", "direction", "inbound", "state", "established") > 0 {
				accepting = "b.service inbound established=1"
			}
			p.wantOwners(t, append(slices.Clone(want), accepting)...)
			p.want(t, 2, "tcp_owner_unaccepted_connections", "owner", "web.service", "state", "established")
			for port, owners := range map[string][]string{"8080": {"web.service"}, "8081": {"db.service"}, "8082": {"a.service", "b.service"}, "8083": {"/"}} {
				for _, o := range owners {
					p.want(t, 1, "tcp_listener_owner_info", "local_port", port, "owner", o)
				}
				p.want(t, float64(len(owners)), "tcp_listener_owner_info", "local_port", port)
			}
			for o, n := range map[string]float64{"a.service": 1, "b.service": 2, "c.service": 3, "client.service": 3} {
				p.want(t, n, "tcp_destination_owner_connections", "remote_port", "8080", "owner", o)
			}
			p.want(t, 1, "tcp_owner_info", "owner", "db.service", "kind", "unit", "unit", "db.service", "program", "sleep")
			p.want(t, 10, "tcp_owner_worst_process_max_fds", "owner", "db.service", "program", "tail")
			if open := p.value(t, "tcp_owner_worst_process_open_fds", "owner", "db.service"); open < 4 || open > 6 {
				t.Errorf("tail has %v files open", open)
			}
			p.want(t, 1, "timewait_exporter_collector_success", "collector", "owners")
		}

		// A name stays known when the cgroup has gone, to who knew it. The owners beyond two are
		// one.
		c.remove(t, "gone.scope")
		for _, p := range es.scrape(t) {
			p.wantOwners(t, append(slices.Clone(want), accepting)...)
		}
		for _, p := range start("--collector.owners=2").scrapeNamed(t, "") {
			for o, n := range map[string]float64{"web.service": 13, "client.service": 6, "other": 15, "unknown": 6} {
				p.want(t, n, "tcp_owner_connections", "owner", o)
			}
			p.want(t, 40, "tcp_owner_connections")
		}
		off := startExporter(t, "--collector.owners=0").scrape(t)
		for name := range off {
			if strings.Contains(name, "owner") {
				t.Errorf("%s with --collector.owners=0", name)
			}
		}
		off.want(t, 0, "timewait_exporter_collector_success", "collector", "owners")
	})
}

// TestCloseWaitAge: keepalive probes don't make a connection young, and who starts later, or looks
// seldom, knows the age of one without.
func TestCloseWaitAge(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		c := newCgroups(t)
		es, seldom := startExporters(t), startExporters(t)
		seldom.scrape(t)
		var services [2]netns.Service
		for i := range services {
			c.in(t, fmt.Sprintf("%d.service", i), func() { services[i] = netns.Serve(t, loopback4, uint16(8080+i)) })
		}
		for i, s := range services {
			p := s.MustConnect(t, 1)[0]
			if i == 0 {
				p.Server.Set(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
				p.Server.Set(t, unix.SOL_TCP, unix.TCP_KEEPIDLE, 1)
				p.Server.Set(t, unix.SOL_TCP, unix.TCP_KEEPINTVL, 1)
			}
			p.Client.Shutdown(t)
			p.Server.AwaitEOF(t)
		}
		es.scrape(t)
		began := time.Now()
		time.Sleep(5 * time.Second)
		age := func(p page, i int) {
			t.Helper()
			got, want := p.value(t, "tcp_owner_close_wait_oldest_seconds", "owner", fmt.Sprintf("%d.service", i)), time.Since(began).Seconds()
			if got < want-1 || got > want+1 {
				t.Errorf("a CLOSE_WAIT of %.1f s is %v s old", want, got)
			}
		}
		for _, p := range es.scrapeNamed(t, "") {
			age(p, 0)
			age(p, 1)
			p.want(t, 0, "tcp_owner_close_wait_older_connections", "age", "60")
		}
		for _, p := range append(seldom, startExporters(t)...).scrapeNamed(t, "") {
			age(p, 1)
		}
	})
}

// TestWhoClosesMost has two that close at 70:30 and one that keeps connections to the same destination open.
func TestWhoClosesMost(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const (
			connections = 2000
			lifetime    = 25 * time.Millisecond
			pause       = time.Second / 300
		)
		c := newCgroups(t)
		es := startExporters(t)
		s := netns.Serve(t, loopback4, 8080)
		var clients []netns.Socket
		for name, n := range map[string]int{"often.service": connections * 7 / 10, "seldom.service": connections * 3 / 10} {
			c.in(t, name, func() {
				for range n {
					clients = append(clients, netns.NewSocket(t, unix.AF_INET))
				}
			})
		}
		c.in(t, "pool.service", func() { s.MustConnect(t, 20) })
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(clients), func(i, j int) { clients[i], clients[j] = clients[j], clients[i] })
		done := make(chan error, 1)
		go func() {
			var open []netns.Pair
			var err error
			for _, client := range clients {
				err = errors.Join(err, client.TryConnect(s.At))
				server, acceptErr := s.Listener.TryAccept()
				err = errors.Join(err, acceptErr)
				open = append(open, netns.Pair{Client: client, Server: server})
				time.Sleep(pause)
				if len(open) > int(lifetime/pause) {
					unix.Close(open[0].Client.FD)
					unix.Close(open[0].Server.FD)
					open = open[1:]
				}
			}
			done <- err
		}()
		var pages []page
		for closing := true; closing; {
			pages = es.scrape(t)
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				closing = false
			case <-time.After(100 * time.Millisecond):
			}
		}
		for _, p := range pages {
			share := func(owner string) float64 {
				return p.sum("tcp_destination_owner_share_ratio", "remote_port", "8080", "owner", owner)
			}
			n := p.value(t, "tcp_destination_owner_samples", "remote_port", "8080")
			t.Logf("often %.2f, seldom %.2f, pool %.2f of %v", share("often.service"), share("seldom.service"), share("pool.service"), n)
			if n < 100 || share("often.service") < 0.6 || share("often.service") > 0.8 || share("pool.service") > 0.01 {
				t.Errorf("of %s samples often has %v, pool %v", strconv.FormatFloat(n, 'f', -1, 64), share("often.service"), share("pool.service"))
			}
		}
	})
}

// TestOwnersInContainers sees less than the host's hierarchy, or none of its processes.
func TestOwnersInContainers(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		c := newCgroups(t)
		c.in(t, "web.service", func() { netns.Serve(t, loopback4, 8080) })
		hybrid := "web.service"
		if own, err := os.ReadFile("/proc/self/cgroup"); err != nil {
			t.Fatal(err)
		} else if strings.Count(string(own), "\n") > 1 {
			hybrid = "unknown" // whether the unit is a container's of v1 only its processes could tell
			c.start(t, "web.service", 50, "sleep", "60")
		}
		for _, tt := range []struct {
			name, unshare, mount string // what is mounted where --path.cgroupfs is
			source, reason       string // their beginnings
			owner, program       string // empty if there are none
		}{
			{"of a namespace", "-mC", "-t cgroup2 none", "none", "at ", "", ""},
			{"the host's, and its processes", "-m", "--bind " + c.root, "pidfd,cgroupfs", "", "web.service", "sleep"},
			{"the host's alone", "-mpf", "--bind " + c.root, "pidfd,cgroupfs", "", hybrid, ""},
			{"none", "-m", "-t tmpfs none", "none", "", "", ""},
		} {
			dir, err := os.MkdirTemp("", "") // not t.TempDir(), which others may not enter
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			script := "mount --make-rprivate / && mount " + tt.mount + " " + dir + ` && { [ $$ != 1 ] || mount -t proc proc /proc; } && exec "$@"`
			var e *exporter
			c.in(t, "app", func() {
				e = startExporterBy(t, slices.Concat([]string{"unshare", tt.unshare, "/bin/sh", "-c", script, "sh"}, nobody(t)), "--path.cgroupfs="+dir)
				e.scrape(t)
			})
			p := e.scrape(t)
			var source string
			for _, m := range p.series("timewait_exporter_owner_source_info") {
				source = m.String()
			}
			if len(p.series("timewait_exporter_owner_source_info", "source", tt.source)) != 1 || !strings.Contains(source, tt.reason) {
				t.Errorf("%s: %s, want %s because of %q", tt.name, source, tt.source, tt.reason)
			}
			if tt.owner == "" {
				for name := range p {
					if strings.HasPrefix(name, "tcp_owner") || strings.HasPrefix(name, "tcp_listener_owner") {
						t.Errorf("%s: there is %s", tt.name, name)
					}
				}
				continue
			}
			p.want(t, 1, "tcp_owner_connections", "owner", tt.owner, "state", "listen")
			if tt.owner == "web.service" {
				p.want(t, 1, "tcp_owner_info", "owner", tt.owner, "program", tt.program)
			}
		}
	})
}
