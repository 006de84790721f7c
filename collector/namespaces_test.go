package collector

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/netns"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// looked returns a view whose table was read in a round, with so many CLOSE_WAITs and so
// much of the pool gone.
func looked(name string, turn int, ago time.Duration, closeWaits uint64, gone float64) *view {
	v := &view{Namespace: &netns.Namespace{Name: name}, turn: turn}
	v.sockets = &snapshot.Sockets{Read: time.Now().Add(-ago), Ports: &snapshot.Ports{Connect: gone}}
	v.sockets.Connections[snapshot.IPv4][snapshot.Inbound][tcptable.CloseWait] = closeWaits
	v.then = counts{inUse: 30_000, established: 1000} // so many that the look is what counts
	v.now = v.then
	return v
}

// since has more connections since the look.
func (v *view) since(opened, established uint64) *view {
	v.now.opened += opened
	v.now.established += established
	return v
}

// TestOrder has the namespaces in the order in which their tables are to be read.
func TestOrder(t *testing.T) {
	unseen := func(name string, inUse uint64) *view {
		return &view{Namespace: &netns.Namespace{Name: name}, now: counts{inUse: inUse}}
	}
	all := []*view{
		looked("unchanged", 1, time.Minute, 0, 0),
		looked("unchanged for long", 4, 5*time.Minute, 0, 0),
		looked("changed lately", 8, time.Minute, 0, 0).since(1, 0),
		looked("changed", 7, time.Minute, 0, 0).since(1, 0),
		looked("unchanged, lately", 2, time.Minute, 0, 0),
		unseen("unseen, few", 5), unseen("unseen, more", 50),
		unseen("unseen, many", 10_000),
		looked("full", 9, time.Minute, 0, 0.3),
		looked("half full, and connects", 5, time.Minute, 0, 0.2).since(2000, 0),
		looked("leaks", 3, time.Minute, 100, 0),
		looked("grows", 6, time.Minute, 0, 0).since(0, 2000),
	}
	s := &namespaces{pool: kernelstat.DefaultPool()}
	f := func(rounds int, want ...string) {
		t.Helper()
		s.rounds = rounds
		var got []string
		for _, v := range s.order(all, time.Now()) {
			got = append(got, v.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("round %d:\n%q, want\n%q", rounds, got, want)
		}
	}
	rest := []string{"unseen, few", "unchanged for long", "changed", "changed lately", "unchanged", "unchanged, lately"}
	f(1, slices.Concat([]string{"unseen, many", "leaks", "unseen, more", "half full, and connects", "grows"}, rest[:1], []string{"full"}, rest[1:])...)
	f(2, slices.Concat([]string{"unseen, many", "unseen, more", "leaks", "half full, and connects"}, rest[:1], []string{"grows", "full"}, rest[1:])...)
	f(3, slices.Concat([]string{"unseen, more", "unseen, many", "leaks"}, rest[:1], []string{"half full, and connects", "grows"}, rest[1:2], []string{"full"}, rest[2:])...)
	all = all[7:9]
	f(3, "unseen, many", "full")
	all = all[:0]
	f(3)
}

// TestUrgent has what an alert may be about in the next minute, though ports are free.
func TestUrgent(t *testing.T) {
	f := func(want int, what string, change func(*snapshot.Sockets)) {
		t.Helper()
		v := looked(what, 1, time.Minute, 0, 0)
		change(v.sockets)
		if got := v.class(kernelstat.DefaultPool(), time.Now()); got != want {
			t.Errorf("%s: class %d, want %d", what, got, want)
		}
	}
	f(unchanged, "nothing", func(*snapshot.Sockets) {})
	f(urgent, "a queue", func(s *snapshot.Sockets) { s.AcceptQueues = []snapshot.AcceptQueue{{Port: 80}, {Port: 443, Length: 1}} })
	f(unchanged, "a queue that is empty", func(s *snapshot.Sockets) { s.AcceptQueues = []snapshot.AcceptQueue{{Port: 80}} })
	f(urgent, "a peer that is gone", func(s *snapshot.Sockets) { s.Unanswered[snapshot.Outbound][tcptable.Established] = 2 })
	f(unchanged, "a loss", func(s *snapshot.Sockets) { s.Unanswered[snapshot.Outbound][tcptable.SynSent] = 1 })
	oneRemote := func(inbound uint64, share float64) func(*snapshot.Sockets) {
		return func(s *snapshot.Sockets) {
			s.Connections[snapshot.IPv6][snapshot.Inbound][tcptable.Established] = inbound
			s.TopShare[snapshot.Inbound][tcptable.Established] = share
		}
	}
	f(urgent, "a remote with many", oneRemote(1500, 0.3))
	f(unchanged, "a remote with few", oneRemote(1000, 1))
	f(unchanged, "many remotes", oneRemote(15000, 0.1))
}

// TestPoolOfOthers has ports outside of the pool that is assumed: of listeners and of
// those that a program chose itself they tell nothing.
func TestPoolOfOthers(t *testing.T) {
	s := newOthers(t)
	v := &view{Namespace: &netns.Namespace{}}
	look := func(want snapshot.Sysctls, listen []uint16, from ...uint16) {
		t.Helper()
		var rows []tcptable.Socket
		for _, port := range listen {
			rows = append(rows, tcptable.Socket{Local: tcptable.Endpoint{Port: port}, State: tcptable.Listen})
		}
		for _, port := range from {
			rows = append(rows, tcptable.Socket{Local: tcptable.Endpoint{Port: port}, Remote: tcptable.Endpoint{Port: 443}, State: tcptable.Established})
		}
		if err := s.tally.Count(func(yield func(tcptable.Socket, error) bool) {
			for _, row := range rows {
				if !yield(row, nil) {
					return
				}
			}
		}, s.pool, nil); err != nil {
			t.Fatal(err)
		}
		v.judge(s.tally, s.pool)
		if got := v.sysctls(); got != want {
			t.Errorf("listening on %d, connected from %d: %s, want %s", listen, from, got, want)
		}
	}
	look(snapshot.SysctlsAssumed, nil, 33000, 33001, 33002, 33003, 33004, 60999)
	look(snapshot.SysctlsAssumed, nil, 665, 700, 800, 900, 1000, 1023)
	look(snapshot.SysctlsAssumed, []uint16{8080}, 2000, 2001, 2002, 2003)
	look(snapshot.SysctlsAssumed, []uint16{2003}, 2000, 2000, 2001, 2002) // a listener's now
	look(snapshot.SysctlsAssumed, nil, 8080, 2003)                        // and once
	look(snapshot.SysctlsAssumed, nil, 2004)
	look(snapshot.SysctlsUnknown, nil, 61000)
	look(snapshot.SysctlsUnknown, []uint16{2000, 2001})
}

// newOthers returns what reads the namespaces of the machine node but its host's.
func newOthers(t *testing.T) *namespaces {
	t.Helper()
	c := newCollector(t, machine(t, "node"))
	return <-c.others
}

// TestBudget reads one table a scrape without a budget, all after as many scrapes, and
// then those again that were read longest ago. What ends is gone at the next scrape.
func TestBudget(t *testing.T) {
	s := newOthers(t)
	s.table.cfg.Budget = 0
	want := func(read, unchanged, waiting int) {
		t.Helper()
		all, err := s.read(t.Context(), true)
		if err != nil || all.Read != read || all.Unchanged != unchanged || all.Waiting != waiting || all.Denied != 0 {
			t.Errorf("%d read, %d unchanged, %d waiting, %d denied: %v; want %d, %d, %d", all.Read, all.Unchanged, all.Waiting, all.Denied, err, read, unchanged, waiting)
		}
		for _, ns := range all.Others {
			if ns.Kernel[activeOpens] == 0 && ns.Kernel[kernelstat.SNMP("PassiveOpens")] == 0 {
				t.Errorf("%s has no counters", ns.Name)
			}
		}
	}
	want(1, 0, 3)
	want(1, 1, 2)
	want(1, 2, 1)
	for range 3 {
		want(1, 3, 0)
	}
	s.table.cfg.Budget = time.Minute
	want(4, 0, 0)
}

// TestNamesAsked reads no table where no metric that is asked for comes from one.
func TestNamesAsked(t *testing.T) {
	c := newCollector(t, machine(t, "node"))
	f := func(tables bool, names ...string) {
		t.Helper()
		before := gather(t, c.Read(t.Context(), "timewait_exporter_rows_total")).sum("timewait_exporter_rows_total")
		p := gather(t, c.Read(t.Context(), names...))
		if read := p.sum("timewait_exporter_rows_total") > before; read != tables {
			t.Errorf("for %q tables are read: %v", names, read)
		}
		if there := len(p.series("tcp_connections", "netns", "host")) > 0; there != tables {
			t.Errorf("for %q there are connections: %v", names, there)
		}
		p.want(t, 5, "timewait_exporter_namespaces")
		if n := len(p.family("tcp_active_opens_total")); n != 5 {
			t.Errorf("for %q counters of %d namespaces", names, n)
		}
	}
	f(true)
	f(false, "tcp_active_opens_total", "tcp_sockets_in_use", "timewait_exporter_collector_success", "go_goroutines", "no_such_metric")
	f(true, "tcp_active_opens_total", "tcp_destinations")
	f(true, "timewait_exporter_source_info")
}

// TestNAT has the connections of all namespaces toward one destination as a share of what
// a NAT has room for.
func TestNAT(t *testing.T) {
	cfg := machine(t, "node")
	cfg.NATPorts = 0
	p := scrapeOf(t, cfg)
	var largest float64
	for _, m := range p.family("tcp_node_destination_connections") {
		largest = max(largest, value(m))
	}
	if n := len(p.family("tcp_node_destination_connections")); largest == 0 || n == 0 || n > cfg.Destinations {
		t.Errorf("%d destinations, the largest with %v connections", n, largest)
	}
	p.wantNone(t, "tcp_nat_port_utilisation_ratio")
	f := func(ports int, want float64) {
		t.Helper()
		cfg.NATPorts = ports
		scrapeOf(t, cfg).want(t, want, "tcp_nat_port_utilisation_ratio")
	}
	f(int(2*largest), 0.5)
	f(1, 1)
	cfg.Remotes, cfg.Destinations = 0, 0 // no addresses
	f(int(4*largest), 0.25)
	scrapeOf(t, cfg).wantNone(t, "tcp_node_destination_connections")
	cfg = machine(t, "quiet_host")
	cfg.NATPorts = 0
	scrapeOf(t, cfg).wantNone(t, "tcp_node_destination_connections")
	f(100, 0.03)
}

// TestManyNamespaces bounds the page and the memory of a node of many network namespaces,
// each with a thousand destinations.
func TestManyNamespaces(t *testing.T) {
	s := newOthers(t)
	f := func(namespaces, lines int, memory uint64) {
		t.Helper()
		before := heap()
		var all []*view
		for i := range namespaces {
			v := looked(fmt.Sprintf("namespace-%d/pod-%d", i%20, i), s.rounds, 0, 0, 0)
			v.kernel = make(kernelstat.Numbers)
			for _, n := range numbersOfEach() {
				v.kernel[n] = uint64(i)
			}
			if err := s.tally.Count(busyPod(i), s.pool, nil); err != nil {
				t.Fatal(err)
			}
			v.sockets = s.tally.Snapshot(s.table.limits())
			v.sockets.HeldPorts = nil
			v.memory = s.tally.Remember()
			all = append(all, v)
		}
		var out snapshot.Namespaces
		s.describe(&out, all)
		host := &snapshot.Namespace{Name: "host"}
		p := gather(t, read{host, &snapshot.Node{Namespaces: &out}})
		used, n := (heap()-before)>>20, strings.Count(p.text(t), "\n")
		t.Logf("%d namespaces: %d lines, %d MiB", namespaces, n, used)
		if used > memory || n > lines {
			t.Errorf("%d MiB and %d lines are allowed", memory, lines)
		}
		if got, want := p.sum("tcp_remote_connections"), float64(namespaces*1250); got != want {
			t.Errorf("%v connections by remote, want %v", got, want)
		}
		if n := len(p.family("tcp_destination_port_utilisation_ratio")); n != s.table.cfg.Destinations {
			t.Errorf("%d destinations are named", n)
		}
		runtime.KeepAlive(all)
	}
	f(200, 12_000, 16)
	f(1000, 50_000, 64)
}

// busyPod has the rows of a pod with two listeners, 250 clients and 1000 destinations.
func busyPod(i int) iter.Seq2[tcptable.Socket, error] {
	at := func(net, host int, port uint16) tcptable.Endpoint {
		return tcptable.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(net), byte(host >> 8), byte(host)}).As16(), Port: port}
	}
	return func(yield func(tcptable.Socket, error) bool) {
		row := tcptable.Socket{State: tcptable.Listen}
		for _, port := range []uint16{8080, 9090} {
			row.Local.Port = port
			_ = yield(row, nil)
		}
		out := []tcptable.State{tcptable.Established, tcptable.TimeWait, tcptable.TimeWait, tcptable.CloseWait, tcptable.FinWait2, tcptable.SynSent}
		for n := range 1000 {
			row := tcptable.Socket{State: out[n%len(out)], Local: at(0, i, uint16(33_000+n)), Remote: at(1+i%4, n+i, 443), Inode: 1}
			_ = yield(row, nil)
		}
		for n := range 250 {
			row := tcptable.Socket{State: out[n%4], Local: at(0, i, []uint16{8080, 9090}[n%2]), Remote: at(9, n, 40_000), Inode: 1}
			_ = yield(row, nil)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestNamespaceErrors has a namespace that can't be read, wholly or in part: it takes nothing of
// the others.
func TestNamespaceErrors(t *testing.T) {
	tree := func(t *testing.T) string {
		t.Helper()
		root := writeProc(t)
		for _, pid := range []string{"1", "7", "8", "9"} {
			if err := os.CopyFS(filepath.Join(root, pid, "net"), os.DirFS(filepath.Join(root, "net"))); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(root, pid, "cgroup"), "0::/system.slice/s"+pid+".service\n")
			writeFile(t, filepath.Join(root, pid, "stat"), pid+" (s) S"+strings.Repeat(" 0", 50)+"\n")
		}
		return root
	}
	f := func(name string, breakIt func(net string) error, failed, logged string, want func(t *testing.T, p page)) {
		t.Run(name, func(t *testing.T) {
			root := tree(t)
			if err := breakIt(filepath.Join(root, "8/net")); err != nil {
				t.Fatal(err)
			}
			cfg := fixture(t, root)
			cfg.AllNamespaces, cfg.Budget = true, time.Minute
			c, out := newLogged(t, cfg)
			s := <-c.others
			var all *snapshot.Namespaces
			var err error
			withoutCapabilities(t, func() { all, err = s.read(t.Context(), true) })
			if (failed != "") != (err != nil) || err != nil && !strings.Contains(err.Error(), failed) {
				t.Errorf("failed with %v, want %q", err, failed)
			}
			if log := out.take(); (logged != "") != (log != "") || !strings.Contains(log, logged) {
				t.Errorf("logged %s, want %q", log, logged)
			}
			p := gather(t, read{&snapshot.Namespace{Name: "host"}, &snapshot.Node{Namespaces: all}})
			want(t, p)
			for _, netns := range []string{"s7.service", "s9.service"} {
				p.want(t, 1, "tcp_connections", "netns", netns, "state", "listen")
				if n := len(p.series("tcp_active_opens_total", "netns", netns)); n != 1 {
					t.Errorf("%s has %d counters", netns, n)
				}
			}
		})
	}
	f("denied", func(net string) error { return os.Chmod(filepath.Join(net, "snmp"), 0) }, "", "", func(t *testing.T, p page) {
		t.Helper()
		p.want(t, 1, "timewait_exporter_namespaces", "tables", "denied")
		p.want(t, 2, "timewait_exporter_namespaces", "tables", "read")
		p.wantNone(t, "timewait_exporter_netns_info", "netns", "s8.service")
	})
	f("a file", func(net string) error { return os.WriteFile(filepath.Join(net, "snmp"), []byte("lots\n"), 0o600) }, "s8.service: snmp: ", "", func(t *testing.T, p page) {
		t.Helper()
		p.wantNone(t, "tcp_active_opens_total", "netns", "s8.service")
		p.want(t, 6, "tcp_sockets_in_use", "netns", "s8.service")
		p.want(t, 1, "tcp_connections", "netns", "s8.service")
	})
	f("a table", func(net string) error { return os.Truncate(filepath.Join(net, "tcp"), 200) }, "", "netns=s8.service", func(t *testing.T, p page) {
		t.Helper()
		p.want(t, 2, "timewait_exporter_namespaces", "tables", "read")
		p.want(t, 6, "tcp_sockets_in_use", "netns", "s8.service")
		p.wantNone(t, "tcp_connections", "netns", "s8.service")
		p.wantNone(t, "timewait_exporter_table_read_timestamp_seconds", "netns", "s8.service")
	})
	f("no file", func(net string) error { return os.Remove(filepath.Join(net, "netstat")) }, "", "", func(t *testing.T, p page) {
		t.Helper()
		p.wantNone(t, "tcp_listen_drops_total", "netns", "s8.service")
		p.want(t, 1, "tcp_connections", "netns", "s8.service")
	})
}

// ending is a context that is done once its end was asked for so many times.
type ending struct {
	context.Context
	left int
}

func (e *ending) Err() error {
	if e.left--; e.left < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// TestNamespacesDeadline leaves out what there was no time for: namespaces, with an error, or
// only tables.
func TestNamespacesDeadline(t *testing.T) {
	const findAndCount = 5 // of one process in 64, and for each of the four
	for left := range findAndCount + 2 {
		all, err := newOthers(t).read(&ending{t.Context(), left}, true)
		switch {
		case left == 0:
			if err == nil || all != nil {
				t.Errorf("without any time: %v, %v", all, err)
			}
		case left < findAndCount:
			if n := len(all.Others); !errors.Is(err, context.DeadlineExceeded) || n != left-1 || all.Read != 0 {
				t.Errorf("%d asked: %d namespaces, %d tables, %v", left, n, all.Read, err)
			}
		default:
			if n := len(all.Others); err != nil || n != 4 || all.Read > 1 {
				t.Errorf("%d asked: %d namespaces, %d tables, %v", left, n, all.Read, err)
			}
		}
	}
}

// TestUnchanged has a namespace change when a count of TCP does, and by nothing of conntrack.
func TestUnchanged(t *testing.T) {
	s := newOthers(t)
	for _, n := range numbersOfEach() {
		before := kernelstat.Numbers{}
		for _, all := range numbersOfEach() {
			before[all] = 7
		}
		after := maps.Clone(before)
		after[n]++
		if changed := s.countsOf(before) != s.countsOf(after); changed != (n.Part() != "conntrack") {
			t.Errorf("%s changes it: %v", n, changed)
		}
	}
}
