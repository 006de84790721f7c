package collector

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// names are labels of cgroups, which are units.
type names map[uint64]string

func (n names) Label(id uint64) string {
	if n[id] == "" {
		return owner.Unknown
	}
	return n[id]
}

func (n names) Owner(id uint64) owner.Owner {
	return owner.Owner{Kind: owner.KindUnit, Unit: n.Label(id)}
}

// owned makes sockets of texts as socket does, each with a cgroup before it, 0 for none. After it
// there may be inode=0, half open, or what time ago its last ACK came. Cookies are
// places in the list, from 1.
func owned(t testing.TB, texts ...string) []tcptable.Socket {
	t.Helper()
	var all []tcptable.Socket
	for i, text := range texts {
		cgroup, rest, _ := strings.Cut(text, " ")
		s := socket(rest)
		s.Cookie = uint64(i + 1)
		s.Cgroup, _ = strconv.ParseUint(cgroup, 10, 64)
		for _, word := range strings.Fields(rest)[4:] {
			switch word {
			case "inode=0":
				s.Inode = 0
			case "mini":
				s = mini(s)
			case "half":
				s.Kind, s.Inode = tcptable.Request, 0
			default:
				var err error
				if s.LastAck, err = time.ParseDuration(word); err != nil {
					t.Fatal(err)
				}
			}
		}
		all = append(all, s)
	}
	return all
}

// ownedWalks counts walks as both sources have them.
type ownedWalks struct {
	t      testing.TB
	pool   *kernelstat.Pool
	names  names
	source string
	tally  *tally.Tally
	owners *tally.Owners
}

// bySource calls f with the walks of each source.
func bySource(t *testing.T, limit int, n names, f func(t *testing.T, w *ownedWalks)) {
	for _, source := range []string{SourceProcfs, SourceNetlink} {
		t.Run(source, func(t *testing.T) {
			counted := tally.New(32, 128)
			counted.CountOwners()
			f(t, &ownedWalks{t, portsOf(t, 32768, 60999, ""), n, source, counted, tally.NewOwners(limit)})
		})
	}
}

// page counts a walk, and with /proc a dump that may have seen other sockets.
func (w *ownedWalks) page(now time.Time, rows, dump []tcptable.Socket) page {
	w.t.Helper()
	var listeners, table []tcptable.Socket
	for _, s := range rows {
		if s.State == tcptable.Listen {
			listeners = append(listeners, s)
		}
		if w.source == SourceProcfs {
			s.Cgroup, s.Cookie, s.LastAck = 0, 0, 0
		}
		table = append(table, s)
	}
	if err := w.tally.Count(yielded(table), w.pool, dumpOf(listeners...)); err != nil {
		w.t.Fatal(err)
	}
	ns := &snapshot.Namespace{Name: "test", Pool: w.pool, Sockets: w.tally.Snapshot(everything)}
	if w.source == SourceProcfs {
		dump = slices.DeleteFunc(slices.Clone(dump), func(s tcptable.Socket) bool { return s.Kind != tcptable.Full })
		if err := w.tally.CountLive(yielded(dump)); err != nil {
			w.t.Fatal(err)
		}
	}
	ns.Owners = w.owners.Snapshot(now, w.tally, ns.Sockets, w.names)
	p := gather(w.t, constant(samplesOf(ns, new(snapshot.Node))))
	// All owners together are all sockets.
	for d := range snapshot.NumDirections {
		for state := range d.States() {
			labels := []string{"direction", d.String(), "state", state.String()}
			if all, want := p.sum("tcp_owner_connections", labels...), p.sum("tcp_connections", labels...); all != want {
				w.t.Errorf("owners have %v %v %v, all are %v", all, d, state, want)
			}
		}
	}
	return p
}

// lines are the samples of metrics of owners, as name, labels without the namespace, and value.
func (p page) lines(t testing.TB, of ...string) string {
	var all []string
	for line := range strings.Lines(p.text(t)) {
		for _, name := range of {
			if rest, ok := strings.CutPrefix(line, name+"{"); ok {
				rest = strings.NewReplacer(`netns="test",`, "", `"`, "", "{", "", "}", "").Replace(rest)
				all = append(all, rest)
			}
		}
	}
	return strings.Join(all, "")
}

// TestOwners has one of each case.
func TestOwners(t *testing.T) {
	rows := owned(t,
		"5 tcp listen 0.0.0.0:80 0.0.0.0:0",
		"6 tcp listen 10.0.0.1:53 0.0.0.0:0",
		"7 tcp listen 10.0.0.2:53 0.0.0.0:0",
		"5 tcp listen 0.0.0.0:90 0.0.0.0:0", // SO_REUSEPORT
		"6 tcp listen 0.0.0.0:90 0.0.0.0:0",
		"5 tcp6 listen [::]:91 [::]:0",
		"6 tcp6 listen [::1]:91 [::]:0",
		"8 tcp listen 10.0.0.1:92 0.0.0.0:0", // of no known name
		"5 tcp6 listen [::]:93 [::]:0",
		"6 tcp listen 0.0.0.0:93 0.0.0.0:0",
		"5 tcp established 10.0.0.1:80 10.0.9.1:1000",
		"5 tcp established 10.0.0.1:80 10.0.9.1:1001 inode=0",
		"5 tcp close_wait 10.0.0.1:80 10.0.9.1:1002 inode=0 50s",
		"5 tcp close_wait 10.0.0.1:80 10.0.9.1:1003 50s",
		"5 tcp last_ack 10.0.0.1:80 10.0.9.1:1004 inode=0",
		"5 tcp fin_wait2 10.0.0.1:80 10.0.9.1:1005",
		"0 tcp fin_wait2 10.0.0.1:80 10.0.9.1:1006 mini",
		"0 tcp time_wait 10.0.0.1:80 10.0.9.1:1007",
		"0 tcp syn_recv 10.0.0.1:80 10.0.9.1:1008 half",
		"0 tcp time_wait 10.0.0.1:53 10.0.9.1:1009",
		"0 tcp time_wait 10.0.0.2:53 10.0.9.1:1010",
		"0 tcp time_wait 10.0.0.1:90 10.0.9.1:1011",
		"0 tcp6 time_wait [::1]:91 [::1]:1012",
		"0 tcp6 time_wait [::ffff:10.0.0.1]:91 10.0.9.1:1013",
		"0 tcp time_wait 10.0.0.1:92 10.0.9.1:1014",
		"0 tcp time_wait 10.0.0.1:93 10.0.9.1:1015",
		"7 tcp close_wait 10.0.0.1:40006 10.0.9.1:443 inode=0 9h", // of no program
		"7 tcp established 10.0.0.1:40007 10.0.9.1:443 inode=0",
		"6 tcp syn_sent 10.0.0.1:40000 10.0.9.1:443",
		"9 tcp established 10.0.0.1:40001 10.0.9.1:443", // the same unit, started again
		"7 tcp close_wait 10.0.0.1:40002 10.0.9.1:443 5m1s",
		"7 tcp close_wait 10.0.0.1:40003 10.0.9.1:443 2h",
		"0 tcp time_wait 10.0.0.1:40004 10.0.9.1:443",
		"0 tcp fin_wait2 10.0.0.1:40005 10.0.9.1:443 mini",
	)
	units := names{5: "web.service", 6: "dns.service", 9: "dns.service", 7: "a/b/c"}
	connections := `direction=inbound,owner=a/b/c,state=listen 1
direction=inbound,owner=a/b/c,state=time_wait 1
direction=inbound,owner=dns.service,state=listen 4
direction=inbound,owner=dns.service,state=time_wait 3
direction=inbound,owner=unknown,state=listen 1
direction=inbound,owner=unknown,state=time_wait 2
direction=inbound,owner=web.service,state=close_wait 2
direction=inbound,owner=web.service,state=established 2
direction=inbound,owner=web.service,state=fin_wait2 2
direction=inbound,owner=web.service,state=last_ack 1
direction=inbound,owner=web.service,state=listen 4
direction=inbound,owner=web.service,state=syn_recv 1
direction=inbound,owner=web.service,state=time_wait 2
direction=outbound,owner=a/b/c,state=close_wait 3
direction=outbound,owner=a/b/c,state=established 1
direction=outbound,owner=dns.service,state=established 1
direction=outbound,owner=dns.service,state=syn_sent 1
direction=outbound,owner=unknown,state=fin_wait2 1
direction=outbound,owner=unknown,state=time_wait 1
`
	closeWaits := `age=60,owner=a/b/c 2
age=600,owner=a/b/c 1
age=3600,owner=a/b/c 1
age=60,owner=web.service 0
age=600,owner=web.service 0
age=3600,owner=web.service 0
owner=a/b/c 7200
owner=web.service 50
`
	listeners := `local_ip=10.0.0.1,local_port=53,owner=dns.service 1
local_ip=10.0.0.2,local_port=53,owner=a/b/c 1
local_ip=0.0.0.0,local_port=80,owner=web.service 1
local_ip=0.0.0.0,local_port=90,owner=dns.service 1
local_ip=0.0.0.0,local_port=90,owner=web.service 1
local_ip=::,local_port=91,owner=web.service 1
local_ip=::1,local_port=91,owner=dns.service 1
local_ip=10.0.0.1,local_port=92,owner=unknown 1
local_ip=0.0.0.0,local_port=93,owner=dns.service 1
local_ip=::,local_port=93,owner=web.service 1
`
	compare := func(t *testing.T, p page, want string, of ...string) {
		t.Helper()
		got, wanted := strings.Split(p.lines(t, of...), "\n"), strings.Split(want, "\n")
		slices.Sort(got)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("%s\n got %s\nwant %s", of, strings.Join(got, "\n     "), strings.Join(wanted, "\n     "))
		}
	}
	bySource(t, 20, units, func(t *testing.T, w *ownedWalks) {
		p := w.page(time.Now(), rows, rows)
		compare(t, p, connections, "tcp_owner_connections")
		compare(t, p, closeWaits, "tcp_owner_close_wait_older_connections", "tcp_owner_close_wait_oldest_seconds")
		compare(t, p, listeners, "tcp_listener_owner_info")
		compare(t, p, "owner=web.service,state=established 1\nowner=web.service,state=close_wait 1\n", "tcp_owner_unaccepted_connections")
		p.want(t, 1, "tcp_owner_info", "owner", "a/b/c", "kind", "unit", "unit", "a/b/c")
		p.wantNone(t, "tcp_owner_info", "owner", owner.Unknown)
	})
	// Beyond the limit owners are one, ages too.
	bySource(t, 1, units, func(t *testing.T, w *ownedWalks) {
		p := w.page(time.Now(), rows, rows)
		compare(t, p, "owner=web.service 50\nowner=other 7200\n", "tcp_owner_close_wait_oldest_seconds")
		p.want(t, 14, "tcp_owner_connections", "owner", "web.service")
		p.want(t, 15, "tcp_owner_connections", "owner", owner.Other)
		p.want(t, 5, "tcp_owner_connections", "owner", owner.Unknown)
		p.wantNone(t, "tcp_owner_info", "owner", owner.Other)
	})
}

// TestOwnersUnderChurn has a dump of other sockets than the table: no owner has less than
// none, and all together are the table's.
func TestOwnersUnderChurn(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	bySource(t, 3, names{1: "a.service", 2: "b.service", 3: "c.service", 4: "d.service"}, func(t *testing.T, w *ownedWalks) {
		states := []string{"established", "close_wait", "fin_wait1", "syn_sent", "time_wait", "last_ack"}
		listeners := owned(t, "1 tcp listen 0.0.0.0:80 0.0.0.0:0", "2 tcp listen 0.0.0.0:81 0.0.0.0:0")
		for range 200 {
			some := func() []tcptable.Socket {
				rows := slices.Clone(listeners)
				for range random.IntN(40) {
					cgroup := random.IntN(6)
					state := states[random.IntN(len(states))]
					if state == "time_wait" {
						cgroup = 0
					}
					rows = append(rows, owned(t, fmt.Sprintf("%d tcp %s 10.0.0.1:%d 10.0.0.2:%d", cgroup, state, 80+random.IntN(4), random.IntN(5)))...)
				}
				return rows
			}
			rows := some()
			p := w.page(time.Now(), rows, some())
			for _, m := range p.family("tcp_owner_connections") {
				if n := value(m); n < 1 || n > float64(len(rows)) {
					t.Errorf("%v of %d rows: %v", n, len(rows), m)
				}
			}
		}
	})
}

// TestOwnersFail: what is wrong with owners is their part's alone, and once in the log.
func TestOwnersFail(t *testing.T) {
	var logged lines
	c, err := New(t.Context(), fixture(t, "/proc"), log.NewLogfmtLogger(&logged))
	if err != nil {
		t.Fatal(err)
	}
	if c.owners == nil {
		t.Skip("nothing tells owners here: ", c.ownerSource.Reason)
	}
	gather(t, c.Read(t.Context())).want(t, 1, "timewait_exporter_collector_success", "collector", "owners")
	state := <-c.owners.state // as if a read of it hung
	p := gather(t, c.Read(t.Context()))
	p.want(t, 0, "timewait_exporter_collector_success", "collector", "owners")
	p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
	p.wantNone(t, "tcp_owner_connections")
	if len(c.table.walkers) != 1 {
		t.Errorf("%d walkers are spare, want 1", len(c.table.walkers))
	}
	c.owners.hung.calls = maxHung // nor is another one tried
	gather(t, c.Read(t.Context())).want(t, 0, "timewait_exporter_collector_success", "collector", "owners")
	if len(c.table.walkers) != 1 {
		t.Errorf("%d walkers are spare, want 1", len(c.table.walkers))
	}
	c.owners.hung.calls = 0
	c.owners.state.put(state)
	gather(t, c.Read(t.Context())).want(t, 1, "timewait_exporter_collector_success", "collector", "owners")

	logged.want(t, "owners of sockets", "reading the socket table", "earlier read has not returned", "have not returned")
	for _, err := range []error{nil, os.ErrPermission, os.ErrPermission, nil, os.ErrPermission} {
		state.tell(err, log.NewLogfmtLogger(&logged))
	}
	logged.want(t, "no name", "no name")
}

// TestOwnersSilentKernel: a kernel from before Linux 5.8 tells no cgroup of any socket.
func TestOwnersSilentKernel(t *testing.T) {
	var logged lines
	c, err := New(t.Context(), fixture(t, "/proc"), log.NewLogfmtLogger(&logged))
	if err != nil {
		t.Fatal(err)
	}
	if c.owners == nil {
		t.Skip("nothing tells owners here: ", c.ownerSource.Reason)
	}
	logged.take()
	w := c.table.newWalker()
	rows := owned(t, "0 tcp listen 0.0.0.0:80 0.0.0.0:0", "0 tcp established 10.0.0.1:80 10.0.9.1:1000")
	if err := w.tally.Count(yielded(rows), nil, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if found, err := c.owners.read(t.Context(), &walked{&snapshot.Sockets{Source: SourceNetlink}, w, true}); found != nil || err != nil {
			t.Errorf("owners %v, error %v", found, err)
		}
		if <-c.table.walkers != w {
			t.Error("another walker")
		}
	}
	logged.want(t, "no owners of sockets "+"Linux 5.8")
	p := gather(t, c.Read(t.Context()))
	p.want(t, 1, "timewait_exporter_owner_source_info", "source", owner.SourceNone, "reason", silence)
	p.wantNone(t, "tcp_owner_connections")
}

// TestPortChangesOwner: who listens now has not made the TIME_WAITs of who listened before.
func TestPortChangesOwner(t *testing.T) {
	units := names{1: "a.service", 2: "b.service", 3: "a.service"}
	bySource(t, 20, units, func(t *testing.T, w *ownedWalks) {
		now := time.Now()
		step := func(after time.Duration, want string, listeners ...string) {
			t.Helper()
			now = now.Add(after)
			rows := owned(t, append(listeners, "0 tcp time_wait 10.0.0.1:80 10.0.0.9:1", "0 tcp syn_recv 10.0.0.1:80 10.0.0.9:2 half")...)
			p := w.page(now, rows, rows)
			for _, m := range p.series("tcp_owner_connections", "state", "time_wait") {
				if got := m.GetLabel()[2].GetValue(); got != want {
					t.Errorf("after %v of %q: %s, want %s", after, listeners, got, want)
				}
			}
			if units[1] != "" && len(listeners) == 1 {
				p.wantNone(t, "tcp_owner_connections", "state", "syn_recv", "owner", owner.Unknown)
			}
		}
		const a, b, again = "1 tcp listen 0.0.0.0:80 0.0.0.0:0", "2 tcp listen 0.0.0.0:80 0.0.0.0:0", "3 tcp listen 10.0.0.1:80 0.0.0.0:0"
		step(0, "a.service", a)
		step(time.Hour, "a.service", again) // the unit has a new cgroup
		step(time.Second, owner.Unknown, b)
		step(time.Minute, owner.Unknown, b)
		step(time.Second, "b.service", b)
		step(time.Second, owner.Unknown) // nobody listens
		step(time.Minute, owner.Unknown, a)
		step(61*time.Second, "a.service", a)
		step(time.Second, owner.Unknown, a, b)
		step(61*time.Second, owner.Unknown, a, b)
		step(time.Second, owner.Unknown, a)
		step(61*time.Second, "a.service", a)
		// That it gets a name changes nothing.
		units[1] = ""
		step(61*time.Second, owner.Unknown, a)
		units[1] = "a.service"
		step(time.Second, "a.service", a)
	})
}

// TestCloseWaitAge: keepalive probes make the last ACK young, and not the connection.
func TestCloseWaitAge(t *testing.T) {
	bySource(t, 20, names{1: "a.service"}, func(t *testing.T, w *ownedWalks) {
		now := time.Now()
		step := func(after time.Duration, want float64, ack string) {
			t.Helper()
			now = now.Add(after)
			rows := owned(t, "1 tcp close_wait 10.0.0.1:40000 10.0.0.9:80 "+ack)
			if want < 0 {
				rows = nil
			}
			p := w.page(now, rows, rows)
			if got := p.sum("tcp_owner_close_wait_oldest_seconds"); want >= 0 && got != want || want < 0 && len(p.family("tcp_owner_close_wait_oldest_seconds")) > 0 {
				t.Errorf("the oldest is of %v s, want %v", got, want)
			}
		}
		step(0, 20, "20s")
		step(10*time.Second, 30, "30s")
		step(10*time.Second, 40, "1s")
		step(time.Hour, 3640, "15s")
		step(time.Second, 7200, "2h") // the kernel knows best
		step(0, -1, "")
		step(time.Second, 3, "3s")
	})
}

// TestDestinationOwners counts a socket once, when it has gone: 20 that a pool keeps make no
// TIME_WAIT.
func TestDestinationOwners(t *testing.T) {
	units := names{1: "often.service", 2: "seldom.service", 3: "pool.service", 10: "c10", 11: "c11", 12: "c12", 13: "c13", 14: "c14"}
	bySource(t, 20, units, func(t *testing.T, w *ownedWalks) {
		now, cookie := time.Now(), uint64(1000)
		var p page
		step := func(after time.Duration, port int, sockets map[uint64]int) {
			t.Helper()
			now = now.Add(after)
			var rows []tcptable.Socket
			for cgroup, n := range sockets {
				for i := range n {
					s := owned(t, fmt.Sprintf("%d tcp established 10.0.0.1:%d 10.0.0.9:%d", cgroup, 40000+len(rows), port))[0]
					if s.Cookie = uint64(i + 1); cgroup != 3 {
						cookie++
						s.Cookie = cookie
					}
					rows = append(rows, s)
				}
			}
			p = w.page(now, rows, rows)
		}
		want := func(samples float64, shares ...string) {
			t.Helper()
			p.want(t, samples, "tcp_destination_owner_samples", "remote_port", "443")
			if got := p.values("tcp_destination_owner_share_ratio", "owner"); !slices.Equal(got, shares) {
				t.Errorf("shares are %q, want %q", got, shares)
			}
		}
		alive := map[uint64]int{1: 7, 2: 3, 3: 20}
		for range 13 {
			step(15*time.Second, 443, alive)
		}
		want(120, "often.service=0.7", "seldom.service=0.3")
		if got := p.values("tcp_destination_owner_connections", "owner"); !slices.Equal(got, []string{"often.service=7", "pool.service=20", "seldom.service=3"}) {
			t.Errorf("live %q", got)
		}
		// The pool is closed, all at once; who stopped is out of it after five minutes.
		step(15*time.Second, 443, map[uint64]int{2: 3})
		want(150, "often.service="+fmt.Sprint(91./150), "pool.service="+fmt.Sprint(20./150), "seldom.service=0.26")
		step(290*time.Second, 443, map[uint64]int{2: 3})
		step(10*time.Second, 443, nil)
		p.wantNone(t, "tcp_destination_owner_samples") // no destination
		step(time.Second, 443, map[uint64]int{2: 1})
		want(3, "seldom.service=1")
		// Where another destination was told meanwhile nothing has been seen to go.
		step(time.Second, 80, map[uint64]int{1: 1})
		step(time.Second, 443, map[uint64]int{1: 1})
		want(3, "seldom.service=1")
		// Six owners are five and the others.
		many := map[uint64]int{1: 6, 10: 5, 11: 4, 12: 3, 13: 2, 14: 1, 2: 1}
		step(10*time.Minute, 443, many)
		step(time.Second, 443, nil)
		step(time.Second, 443, many)
		if got := p.values("tcp_destination_owner_connections", "owner"); !slices.Equal(got, []string{"c10=5", "c11=4", "c12=3", "c13=2", "often.service=6", "other=2"}) {
			t.Errorf("live %q", got)
		}
	})
}

// TestDestinationOwnersOfMany has more live sockets than are remembered: what stays has not gone, and what has gone counts by
// as much as is remembered.
func TestDestinationOwnersOfMany(t *testing.T) {
	var pool []tcptable.Socket
	for i := range 50_000 {
		s := socket(fmt.Sprintf("tcp established 10.0.0.1:%d 10.0.0.9:443", 40000+i%20000))
		s.Cgroup, s.Cookie = 3, uint64(i+1)
		pool = append(pool, s)
	}
	bySource(t, 20, names{3: "pool.service"}, func(t *testing.T, w *ownedWalks) {
		now := time.Now()
		var p page
		for _, n := range []int{1000, 50_000, 50_000, 1000, 1000} {
			now = now.Add(time.Second)
			p = w.page(now, pool[:n], pool[:n])
		}
		if got := p.sum("tcp_destination_owner_samples"); got < 24_000 || got > 25_000 {
			t.Errorf("%v samples of 49000 that have gone, half of which are remembered", got)
		}
	})
}

// TestNoOwners says why there are none.
func TestNoOwners(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		reason string // "" if nothing is said
	}{
		{func(cfg *Config) { cfg.Owners = 0 }, ""},
		{func(cfg *Config) { cfg.CgroupFS = "/nonexistent\xff" }, "/nonexistent\uFFFD is no cgroup v2 hierarchy"},
		{func(cfg *Config) { cfg.CgroupFS = t.TempDir() }, " is no cgroup v2 hierarchy"},
		{func(cfg *Config) { cfg.Namespace.Own = false }, "sock_diag shows another network namespace than is read"},
	} {
		cfg := fixture(t, "/proc")
		tt.change(&cfg)
		c := newCollector(t, cfg)
		if !c.hasDiag && cfg.Namespace.Own {
			t.Skip("this kernel has no sock_diag for TCP")
		}
		if c.owners != nil && c.ownerSource.Source == "pidfd" {
			continue // where processes tell all
		}
		p := gather(t, c.Read(t.Context()))
		p.wantNone(t, "tcp_owner_connections")
		p.wantNone(t, "timewait_exporter_collector_success", "collector", "owners")
		if tt.reason == "" {
			p.wantNone(t, "timewait_exporter_owner_source_info")
			continue
		}
		p.want(t, 1, "timewait_exporter_owner_source_info", "source", owner.SourceNone)
		if got := p.values("timewait_exporter_owner_source_info", "reason"); len(got) != 1 || !strings.Contains(got[0], tt.reason) {
			t.Errorf("because of %q, want %q", got, tt.reason)
		}
	}
}
