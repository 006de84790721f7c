package collector

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// everything names more than any of these tests has.
var everything = tally.Limits{Remotes: 1000, Destinations: 1000, Listeners: 1000, Locals: 1000}

// tallied counts sockets and returns the metrics.
func tallied(t testing.TB, p *kernelstat.Pool, n tally.Limits, sockets ...tcptable.Socket) page {
	t.Helper()
	return tallyPage(t, tally.New(32, 128), p, n, nil, sockets...)
}

func tallyPage(t testing.TB, counted *tally.Tally, p *kernelstat.Pool, n tally.Limits, l *tally.Listening, sockets ...tcptable.Socket) page {
	t.Helper()
	if err := counted.Count(yielded(sockets), p, l); err != nil {
		t.Fatal(err)
	}
	return snapshotPage(t, p, counted.Snapshot(n))
}

func snapshotPage(t testing.TB, p *kernelstat.Pool, s *snapshot.Sockets) page {
	t.Helper()
	return gather(t, constant(samplesOf(&snapshot.Namespace{Name: "test", Pool: p, Sockets: s}, new(snapshot.Node))))
}

// yielded is a walk that goes well.
func yielded(sockets []tcptable.Socket) iter.Seq2[tcptable.Socket, error] {
	return func(yield func(tcptable.Socket, error) bool) {
		for i := range sockets {
			if !yield(sockets[i], nil) {
				return
			}
		}
	}
}

// constant is a collector of metrics that are there already.
type constant []prometheus.Metric

func (c constant) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c constant) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c {
		ch <- m
	}
}

// socket makes a socket of the text "tcp established 10.0.0.1:80 10.0.0.2:4000",
// one that a program has open.
func socket(text string) tcptable.Socket {
	fields := strings.Fields(text)
	s := tcptable.Socket{Local: endpoint(fields[2]), Remote: endpoint(fields[3]), Inode: 1}
	if fields[0] == "tcp6" {
		s.Table = tcptable.TCP6
	}
	for state := tcptable.Established; state < tcptable.NumStates; state++ {
		if state.String() == fields[1] {
			s.State = state
		}
	}
	if s.State == tcptable.TimeWait {
		s = mini(s)
	}
	return s
}

func mini(s tcptable.Socket) tcptable.Socket {
	s.Kind, s.Inode, s.TimerLeft = tcptable.Mini, 0, 30*time.Second
	return s
}

func sockets(texts ...string) []tcptable.Socket {
	var all []tcptable.Socket
	for _, text := range texts {
		all = append(all, socket(text))
	}
	return all
}

func endpoint(text string) tcptable.Endpoint {
	a := netip.MustParseAddrPort(text)
	zone, _ := strconv.ParseUint(a.Addr().Zone(), 10, 32) // 0 if there is none
	return tcptable.Endpoint{Addr: tcptable.Addr(a.Addr().As16()).WithZone(uint32(zone)), Port: a.Port()}
}

// portsOf is a pool of the ports from low to high without those that are listed.
func portsOf(t testing.TB, low, high int, reserved string) *kernelstat.Pool {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{"ip_local_port_range": fmt.Sprintf("%d\t%d\n", low, high), "ip_local_reserved_ports": reserved + "\n"} {
		writeFile(t, filepath.Join(root, "sys/net/ipv4", name), text)
	}
	p, err := kernelstat.ReadPool(t.Context(), kernelstat.Sysctls{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDirection tells who connected to whom by the listeners of the same table.
func TestDirection(t *testing.T) {
	f := func(want snapshot.Direction, row string, listeners ...string) {
		t.Helper()
		rows := append(sockets(listeners...), socket(row))
		p := tallied(t, nil, everything, rows...)
		state := rows[len(rows)-1].State.String()
		p.want(t, 1, "tcp_connections", "state", state, "direction", want.String())
		p.want(t, 1, "tcp_remote_connections", "state", state, "direction", want.String())
		p.want(t, 1, "tcp_remote_ips", "direction", want.String())
		if want == snapshot.Inbound {
			p.want(t, 0, "tcp_destinations")
			p.want(t, 1, "tcp_listener_connections", "state", state)
		} else {
			p.want(t, 1, "tcp_destinations")
			p.wantNone(t, "tcp_listener_connections", "state", state)
		}
	}
	const row = "tcp established 10.0.0.1:8080 10.0.0.2:5555"
	f(snapshot.Outbound, row)
	f(snapshot.Inbound, row, "tcp listen 0.0.0.0:8080 0.0.0.0:0")
	f(snapshot.Inbound, row, "tcp listen 10.0.0.1:8080 0.0.0.0:0")
	f(snapshot.Inbound, row, "tcp listen 10.0.0.9:8080 0.0.0.0:0", "tcp listen 10.0.0.1:8080 0.0.0.0:0")
	f(snapshot.Outbound, row, "tcp listen 10.0.0.9:8080 0.0.0.0:0")
	f(snapshot.Outbound, row, "tcp listen 0.0.0.0:8081 0.0.0.0:0")
	f(snapshot.Outbound, row, "tcp listen 10.0.0.1:8081 0.0.0.0:0", "tcp listen 10.0.0.3:8080 0.0.0.0:0")
	// Connections of a dual-stack listener are in its own table.
	f(snapshot.Outbound, row, "tcp6 listen [::]:8080 [::]:0")
	f(snapshot.Inbound, "tcp6 established 10.0.0.1:8080 10.0.0.2:5555", "tcp6 listen [::]:8080 [::]:0")
	f(snapshot.Inbound, "tcp6 time_wait 10.0.0.1:8080 10.0.0.2:5555", "tcp6 listen 10.0.0.1:8080 [::]:0")
	f(snapshot.Outbound, "tcp6 established 10.0.0.1:8080 10.0.0.2:5555", "tcp listen 0.0.0.0:8080 0.0.0.0:0")
	f(snapshot.Inbound, "tcp6 established [2001:db8::1]:443 [2001:db8::2]:5555", "tcp6 listen [2001:db8::1]:443 [::]:0")
	f(snapshot.Outbound, "tcp6 established [2001:db8::1]:443 [2001:db8::2]:5555", "tcp6 listen [2001:db8::3]:443 [::]:0")
	f(snapshot.Inbound, "tcp6 established [2001:db8::1]:443 [2001:db8::2]:5555", "tcp6 listen [::]:443 [::]:0")
	// In every state.
	for s := range snapshot.Inbound.States() {
		if s != tcptable.Listen {
			f(snapshot.Inbound, "tcp "+s.String()+" 10.0.0.1:8080 10.0.0.2:5555", "tcp listen 0.0.0.0:8080 0.0.0.0:0")
		}
	}
	for s := range snapshot.Outbound.States() {
		f(snapshot.Outbound, "tcp "+s.String()+" 10.0.0.1:8080 10.0.0.2:5555")
	}
	// A half-open connection is inbound though its listener is gone.
	f(snapshot.Inbound, "tcp syn_recv 10.0.0.1:8080 10.0.0.2:5555")
	// Who sent the SYN is the one who connects, from a listener's port too
	// (SO_REUSEADDR).
	f(snapshot.Outbound, "tcp syn_sent 10.0.0.1:8080 10.0.0.2:5555", "tcp listen 0.0.0.0:8080 0.0.0.0:0")
	f(snapshot.Outbound, "tcp syn_sent 10.0.0.1:8080 10.0.0.2:5555", "tcp listen 10.0.0.1:8080 0.0.0.0:0")
	// Ports at the ends.
	f(snapshot.Inbound, "tcp established 10.0.0.1:65535 10.0.0.2:5555", "tcp listen 0.0.0.0:65535 0.0.0.0:0")
	f(snapshot.Inbound, "tcp established 10.0.0.1:1 10.0.0.2:5555", "tcp listen 0.0.0.0:1 0.0.0.0:0")
}

// TestTransparent tells what TPROXY handed to a listener from what a transparent
// proxy connected itself: by the port, which of the former is a service's.
func TestTransparent(t *testing.T) {
	ports := portsOf(t, 40000, 40009, "40009")
	f := func(want snapshot.Direction, p *kernelstat.Pool, text string, transparent bool) {
		t.Helper()
		s := socket(text)
		s.Transparent = transparent
		page := tallied(t, p, everything, socket("tcp listen 0.0.0.0:15001 0.0.0.0:0"), s)
		page.want(t, 1, "tcp_connections", "state", s.State.String(), "direction", want.String())
		if want == snapshot.Inbound {
			page.want(t, 0, "tcp_destinations")
			page.want(t, 1, "tcp_listener_connections", "local_port", "80")
		}
	}
	for s := range snapshot.Outbound.States() {
		child := fmt.Sprintf("tcp %v 192.0.2.5:80 10.0.0.2:50000", s)
		switch s {
		case tcptable.SynSent:
			f(snapshot.Outbound, ports, child, true)
		case tcptable.TimeWait: // a minisock does not tell
			f(snapshot.Outbound, ports, child, false)
		default:
			f(snapshot.Inbound, ports, child, true)
		}
		f(snapshot.Outbound, ports, child, false)
		f(snapshot.Outbound, nil, child, true) // whether the port is one of the pool is not known
		f(snapshot.Outbound, ports, fmt.Sprintf("tcp %v 10.0.0.2:40000 192.0.2.5:80", s), true)
	}
	f(snapshot.Outbound, ports, "tcp established 10.0.0.2:40009 192.0.2.5:80", false)
}

// TestUnpooledFlood has more connections of ports outside the pool than a tally keeps
// destinations, as of a sk_lookup program without a listener on that port: none of
// those that hold a port of the pool gives way, and no remote is lost.
func TestUnpooledFlood(t *testing.T) {
	var rows []tcptable.Socket
	const flood = 2 * tally.MaxDestinations
	for i := range flood {
		s := socket("tcp established 192.0.2.5:80 10.0.0.1:1024")
		s.Remote = bareEndpoint(theNet+uint32(i%200), uint16(1024+i/200))
		rows = append(rows, s)
		if i%(flood/64) == 0 { // few, from the first to the last
			rows = append(rows, socket(fmt.Sprintf("tcp established 10.0.0.1:%d 10.9.9.9:%d", 40000+i/(flood/64), 1+i/(flood/4))))
		}
	}
	p := tallied(t, portsOf(t, 40000, 40099, ""), tally.Limits{Destinations: 4, Remotes: 1000}, rows...)
	p.want(t, 0, "timewait_exporter_undercount_max")
	p.want(t, 64, "tcp_destination_ports_used", "remote_ip", "10.9.9.9")
	p.want(t, 0.16, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	p.want(t, 64, "tcp_remote_connections", "remote_ip", "10.9.9.9")
	p.want(t, flood+64, "tcp_remote_connections", "direction", "outbound")
	p.wantNone(t, "tcp_remote_connections", "remote_ip", "other")
}

// TestRemotePrefix folds remotes into blocks.
func TestRemotePrefix(t *testing.T) {
	rows := sockets(
		"tcp established 10.0.0.1:4001 192.0.2.1:80",
		"tcp established 10.0.0.1:4002 192.0.2.200:80",
		"tcp6 established 10.0.0.1:4003 192.0.3.1:80",
		"tcp6 established 10.0.0.1:4007 192.0.2.1:80", // one peer, whichever table lists it
		"tcp6 established [2001:db8::1]:4004 [2001:db8:1:1::2]:80",
		"tcp6 established [2001:db8::1]:4005 [2001:db8:1:1::3]:80",
		"tcp6 established [2001:db8::1]:4006 [2001:db8:1:2::3]:80",
	)
	f := func(bits4, bits6 int, want ...string) {
		t.Helper()
		p := tallyPage(t, tally.New(bits4, bits6), nil, everything, nil, rows...)
		if got := p.values("tcp_remote_connections", "remote_ip"); !slices.Equal(got, want) {
			t.Errorf("/%d /%d: %q, want %q", bits4, bits6, got, want)
		}
		p.want(t, float64(len(want)), "tcp_remote_ips", "direction", "outbound")
		p.want(t, 6, "tcp_destinations")
	}
	f(32, 128, "192.0.2.1=2", "192.0.2.200=1", "192.0.3.1=1", "2001:db8:1:1::2=1", "2001:db8:1:1::3=1", "2001:db8:1:2::3=1")
	f(24, 64, "192.0.2.0/24=3", "192.0.3.0/24=1", "2001:db8:1:1::/64=2", "2001:db8:1:2::/64=1")
	f(23, 48, "192.0.2.0/23=4", "2001:db8:1::/48=3")
	f(32, 32, "192.0.2.1=2", "192.0.2.200=1", "192.0.3.1=1", "2001:db8::/32=3")
	f(31, 128, "192.0.2.0/31=2", "192.0.2.200/31=1", "192.0.3.0/31=1", "2001:db8:1:1::2=1", "2001:db8:1:1::3=1", "2001:db8:1:2::3=1")
	f(0, 0, "0.0.0.0/0=4", "::/0=3")
}

// TestRemoteGroups counts remotes under the name of their group: before they are folded
// into blocks, and whether any is named or not.
func TestRemoteGroups(t *testing.T) {
	rows := sockets(
		"tcp6 listen [::]:80 [::]:0",
		"tcp6 established 10.0.0.1:80 192.0.2.0:4000",
		"tcp6 established 10.0.0.1:80 192.0.2.1:4000",
		"tcp6 close_wait 10.0.0.1:80 192.0.2.127:4000",
		"tcp6 established 10.0.0.1:80 192.0.2.128:4000",
		"tcp6 established [2001:db8::1]:80 [2001:db8:1::2]:4000",
		"tcp time_wait 10.0.0.1:4001 192.0.2.1:443",
		"tcp time_wait 10.0.0.1:4002 192.0.2.1:443",
		"tcp time_wait 10.0.0.1:4002 192.0.2.1:444",
		"tcp time_wait 10.0.0.1:4003 192.0.3.9:443",
		"tcp6 established [fe80::1%3]:4005 [fe80::9%3]:80",
	)
	f := func(remotes, bits4, bits6 int, remoteIPs float64, groups string, want ...string) {
		t.Helper()
		var all []tally.Group
		for group := range strings.FieldsSeq(groups) {
			name, cidrs, _ := strings.Cut(group, "=")
			all = append(all, tally.Group{Name: name})
			for cidr := range strings.SplitSeq(cidrs, ",") {
				all[len(all)-1].Prefixes = append(all[len(all)-1].Prefixes, netip.MustParsePrefix(cidr))
			}
		}
		counted := tally.New(bits4, bits6, all...)
		for range 2 { // with the memory of the first time
			p := tallyPage(t, counted, nil, tally.Limits{Remotes: remotes, Destinations: 9}, nil, rows...)
			got := slices.DeleteFunc(p.values("tcp_remote_connections", "remote_ip"), func(v string) bool { return v == "other=0" })
			if !slices.Equal(got, want) {
				t.Errorf("/%d /%d, %s: %q, want %q", bits4, bits6, groups, got, want)
			}
			if got := p.sum("tcp_remote_ips"); got != remoteIPs {
				t.Errorf("/%d /%d, %s: %v remote IPs, want %v", bits4, bits6, groups, got, remoteIPs)
			}
			p.want(t, 4, "tcp_destinations")
		}
	}
	f(9, 32, 128, 8, "", "192.0.2.0=1", "192.0.2.127=1", "192.0.2.128=1", "192.0.2.1=4", "192.0.3.9=1", "2001:db8:1::2=1", "fe80::9%3=1")
	f(9, 32, 128, 8, "lb=192.0.2.0/25", "192.0.2.128=1", "192.0.3.9=1", "2001:db8:1::2=1", "fe80::9%3=1", "lb=6")
	f(9, 24, 64, 5, "lb=192.0.2.0/25", "192.0.2.0/24=1", "192.0.3.0/24=1", "2001:db8:1::/64=1", "fe80::/64=1", "lb=6")
	f(9, 24, 64, 5, "a=192.0.2.0/32 b=192.0.2.1/32,192.0.2.127/32", "192.0.2.0/24=1", "192.0.3.0/24=1", "2001:db8:1::/64=1", "a=1", "b=5", "fe80::/64=1")
	f(1, 32, 128, 8, "lb=192.0.2.0/25", "192.0.2.128=1", "lb=6", "other=3")
	f(0, 32, 128, 8, "lb=192.0.2.0/25 none=198.51.100.0/24", "lb=6", "other=4")
	// One inside another, twice, next to each other, in no order.
	f(0, 32, 128, 8, "lb=192.0.2.127/32,192.0.2.0/24,192.0.2.0/24,192.0.2.1/32 cdn=192.0.3.0/24", "cdn=1", "lb=7", "other=2")
	// Of one family only, and with the zone of a link.
	f(0, 32, 128, 8, "v6=::/0", "other=8", "v6=2")
	f(0, 32, 128, 8, "v6=::/0 v4=0.0.0.0/0", "v4=8", "v6=2")
	f(0, 32, 128, 8, "link=fe80::/10 global=2000::/3", "global=1", "link=1", "other=8")

	p := tallyPage(t, tally.New(32, 128, tally.Group{Name: "lb", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}}), portsOf(t, 4000, 4099, ""), everything, nil, rows...)
	p.want(t, 0.5, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "established")
	p.want(t, 0.75, "tcp_remote_top_share_ratio", "direction", "outbound", "state", "time_wait")
	p.want(t, 2, "tcp_destination_ports_used", "remote_ip", "192.0.2.1", "remote_port", "443")
}

// TestRemotesTop names those with most connections of both directions together,
// and counts the rest exactly.
func TestRemotesTop(t *testing.T) {
	rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0")
	connect := func(remote, state string, in, out int) {
		for i := range in {
			rows = append(rows, socket(fmt.Sprintf("tcp %s 10.0.0.1:80 %s:%d", state, remote, 4000+i)))
		}
		for i := range out {
			rows = append(rows, socket(fmt.Sprintf("tcp %s 10.0.0.1:%d %s:443", state, 4000+i, remote)))
		}
	}
	connect("10.0.0.2", "established", 3, 4)
	connect("10.0.0.3", "established", 6, 0)
	connect("10.0.0.4", "established", 0, 5)
	connect("10.0.0.5", "time_wait", 2, 1)
	connect("10.0.0.6", "time_wait", 2, 1)

	f := func(remotes int, names ...string) {
		t.Helper()
		p := tallied(t, nil, tally.Limits{Remotes: remotes}, rows...)
		p.want(t, float64(len(rows)-1), "tcp_remote_connections")
		got := slices.DeleteFunc(p.values("tcp_remote_connections", "remote_ip"), func(v string) bool { return v == "other=0" })
		if !slices.Equal(got, names) {
			t.Errorf("top %d: %q, want %q", remotes, got, names)
		}
		p.want(t, 4, "tcp_remote_ips", "direction", "inbound")
		p.want(t, 4, "tcp_remote_ips", "direction", "outbound")
		p.want(t, 6./9, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "established")
		p.want(t, 5./9, "tcp_remote_top_share_ratio", "direction", "outbound", "state", "established")
		p.want(t, 0.5, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "time_wait")
		p.want(t, 0, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "close_wait")
	}
	f(0, "other=24")
	f(1, "10.0.0.2=7", "other=17")
	f(3, "10.0.0.2=7", "10.0.0.3=6", "10.0.0.4=5", "other=6")
	f(4, "10.0.0.2=7", "10.0.0.3=6", "10.0.0.4=5", "10.0.0.5=3", "other=3")
	f(5, "10.0.0.2=7", "10.0.0.3=6", "10.0.0.4=5", "10.0.0.5=3", "10.0.0.6=3")
	f(50, "10.0.0.2=7", "10.0.0.3=6", "10.0.0.4=5", "10.0.0.5=3", "10.0.0.6=3")
}

// TestPortRatios has what keeps connect(2) from ports of the pool, bind(2) with port 0 on a
// local IP, and bind(2) with port 0 on all: of ten, each once.
func TestPortRatios(t *testing.T) {
	pool := portsOf(t, 40000, 40011, "40010-40011")
	check := func(connect, bind, used int, rows ...tcptable.Socket) {
		t.Helper()
		for _, limits := range []tally.Limits{everything, {Locals: 1}} { // naming none must not hide the worst
			p := tallied(t, pool, limits, rows...)
			p.want(t, float64(connect)/10, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
			p.want(t, float64(bind)/10, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
			p.want(t, float64(used)/10, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind_any")
			p.want(t, float64(used), "tcp_ephemeral_ports_used")
			p.wantWorst(t, float64(connect)/10, "tcp_destination_port_utilisation_ratio")
			p.wantWorst(t, float64(bind)/10, "tcp_local_port_utilisation_ratio")
			if limits.Destinations == 0 {
				p.wantNone(t, "tcp_destination_ports_used")
				p.wantNone(t, "tcp_destination_port_utilisation_ratio")
			}
		}
	}
	f := func(connect, bind, used int, rows ...string) {
		t.Helper()
		check(connect, bind, used, sockets(rows...)...)
	}
	const one, six = "tcp established 10.0.0.1:40000 10.0.0.2:80", "tcp6 established [2001:db8::1]:40000 [2001:db8::2]:80"
	f(0, 0, 0)
	f(1, 1, 1, one)
	f(1, 1, 1, "tcp established 10.0.0.1:40009 10.0.0.2:80")
	// In every state.
	for s := range snapshot.Outbound.States() {
		f(1, 1, 1, "tcp "+s.String()+" 10.0.0.1:40000 10.0.0.2:80")
	}
	// For connect(2) not toward another IP, another port or from another IP.
	f(2, 2, 2, one, "tcp established 10.0.0.1:40001 10.0.0.2:80")
	f(1, 2, 2, one, "tcp established 10.0.0.1:40001 10.0.0.3:80")
	f(1, 2, 2, one, "tcp established 10.0.0.1:40001 10.0.0.2:81")
	// For bind(2) whatever the destination; each local IP has ports of its own.
	f(1, 1, 1, one, "tcp time_wait 10.0.0.1:40000 10.0.0.3:81")
	f(1, 1, 2, one, "tcp established 10.0.0.9:40001 10.0.0.2:80")
	f(1, 1, 1, one, "tcp established 10.0.0.9:40000 10.0.0.2:80")
	f(1, 1, 1, one, six)
	f(1, 1, 2, one, "tcp6 established [2001:db8::1]:40001 [2001:db8::2]:80")
	// IPv4 has one tuple space, whichever table lists it.
	f(2, 2, 2, one, "tcp6 established 10.0.0.1:40001 10.0.0.2:80")
	// Ports that are not in the pool: beside it, or reserved.
	f(1, 1, 1, one, "tcp established 10.0.0.1:39999 10.0.0.2:80", "tcp established 10.0.0.1:40012 10.0.0.2:80")
	f(0, 0, 0, "tcp established 10.0.0.1:39999 10.0.0.2:80", "tcp established 10.0.0.1:40010 10.0.0.2:80", "tcp listen 0.0.0.0:40011 0.0.0.0:0")
	// A listener costs its port toward all, any IP, any family; twice the same once.
	f(1, 1, 1, "tcp listen 127.0.0.1:40001 0.0.0.0:0")
	f(1, 1, 1, "tcp listen 0.0.0.0:40005 0.0.0.0:0")
	f(1, 1, 1, "tcp listen 10.0.0.77:40005 0.0.0.0:0", "tcp6 listen [::1]:40005 [::]:0")
	f(2, 2, 2, "tcp6 listen [::]:40005 [::]:0", one)
	f(1, 1, 1, "tcp6 listen [::]:40000 [::]:0", one)
	f(2, 2, 2, "tcp6 listen [::]:40000 [::]:0", one, "tcp established 10.0.0.1:40006 10.0.0.2:80")
	f(0, 0, 0, "tcp listen 0.0.0.0:80 0.0.0.0:0")
	// On all addresses it takes the port on each, but that of IPv4 none of an IPv6 address.
	f(2, 2, 2, "tcp listen 0.0.0.0:40001 0.0.0.0:0", one)
	f(1, 1, 1, "tcp listen 0.0.0.0:40000 0.0.0.0:0", one)
	f(2, 2, 2, "tcp listen 0.0.0.0:40001 0.0.0.0:0", "tcp6 listen [::]:40002 [::]:0")
	f(3, 3, 3, "tcp listen 0.0.0.0:40001 0.0.0.0:0", "tcp6 listen [::]:40002 [::]:0", one)
	f(2, 1, 2, "tcp listen 0.0.0.0:40001 0.0.0.0:0", six)
	f(2, 2, 2, "tcp6 listen [::]:40001 [::]:0", six)
	// What came in through a listener holds its port and no other.
	f(0, 0, 0, "tcp listen 0.0.0.0:80 0.0.0.0:0", "tcp time_wait 10.0.0.1:80 10.0.0.2:5555", "tcp time_wait 10.0.0.1:80 10.0.0.2:5556")
	f(1, 1, 1, "tcp listen 0.0.0.0:40005 0.0.0.0:0", "tcp time_wait 10.0.0.1:40005 10.0.0.2:5555", "tcp time_wait 10.0.0.1:40005 10.0.0.2:5556")
	f(1, 1, 1, "tcp listen 10.0.0.1:40001 0.0.0.0:0", "tcp established 10.0.0.1:40001 10.0.0.2:80", "tcp established 10.0.0.1:40001 10.0.0.2:81")
	// Full, and full for those only who bind to all.
	var all, half []string
	for i := range 10 {
		all = append(all, fmt.Sprintf("tcp time_wait 10.0.0.1:%d 10.0.0.2:80", 40000+i))
		half = append(half, fmt.Sprintf("tcp time_wait 127.0.0.%d:%d 127.0.0.1:80", 1+i%2, 40000+i))
	}
	f(10, 10, 10, all...)
	f(5, 5, 10, half...)

	// Bound and idle sockets, where a source shows them, are like listeners, and no
	// connections.
	idle := socket("tcp close 0.0.0.0:40003 0.0.0.0:0")
	idle.Kind = tcptable.Bound
	check(2, 2, 2, idle, socket(one), socket("tcp established 10.0.0.1:40003 10.0.0.2:80"))
	tallied(t, pool, everything, idle, socket(one)).want(t, 1, "tcp_connections")
}

// TestConnectRatioReuse takes off what connect(2) may reuse.
func TestConnectRatioReuse(t *testing.T) {
	pool := portsOf(t, 40000, 40009, "")
	pool.ReuseMode = 1
	old, young := socket("tcp time_wait 10.0.0.1:40000 10.0.0.2:80"), socket("tcp time_wait 10.0.0.1:40001 10.0.0.2:80")
	young.TimerLeft = 59500 * time.Millisecond
	p := tallied(t, pool, everything, old, young, socket("tcp established 10.0.0.1:40002 10.0.0.2:80"))
	p.want(t, 0.2, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	p.want(t, 0.2, "tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.2")
	// They are held all the same, and bind(2) never gets them.
	p.want(t, 2, "tcp_destination_ports_used", "state", "time_wait")
	p.want(t, 0.3, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
	// A listener on the port of a reusable one keeps it.
	p = tallied(t, pool, everything, socket("tcp6 listen [::]:40000 [::]:0"), old)
	p.want(t, 0.1, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	p.want(t, 1, "tcp_destination_ports_used", "state", "time_wait")
}

// TestBindRatioV6Only has sockets on :: that take no IPv4, whether their rows say so
// or a dump of listeners did.
func TestBindRatioV6Only(t *testing.T) {
	pool := portsOf(t, 40000, 40009, "")
	f := func(wantIPv4, wantIPv6 float64, l *tally.Listening, rows ...tcptable.Socket) {
		t.Helper()
		p := tallyPage(t, tally.New(32, 128), pool, everything, l, rows...)
		p.want(t, wantIPv4, "tcp_local_port_utilisation_ratio", "local_ip", "10.0.0.1")
		p.want(t, wantIPv6, "tcp_local_port_utilisation_ratio", "local_ip", "2001:db8::1")
		p.want(t, max(wantIPv4, wantIPv6), "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
		p.want(t, 0.3, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind_any")
		// connect() can use it for neither family.
		p.want(t, 0.2, "tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.2")
	}
	told := func(s tcptable.Socket) tcptable.Socket { s.V6Only = true; return s }
	idle := socket("tcp6 close [::]:40001 [::]:0")
	idle.Kind = tcptable.Bound
	listener := socket("tcp6 listen [::]:40001 [::]:0")
	four, six := socket("tcp established 10.0.0.1:40000 10.0.0.2:80"), socket("tcp6 established [2001:db8::1]:40002 [2001:db8::2]:80")
	dump := dumpOf(told(listener))
	f(0.2, 0.2, nil, listener, four, six)
	f(0.1, 0.2, nil, told(listener), four, six)
	f(0.1, 0.2, dump, listener, four, six)
	f(0.2, 0.2, nil, idle, four, six)
	f(0.1, 0.2, nil, told(idle), four, six)
	f(0.2, 0.2, dump, idle, four, six) // another socket's port
	f(0.2, 0.2, nil, told(listener), listener, four, six)
}

// TestPoolEmpty has a pool of no port: nothing connects.
func TestPoolEmpty(t *testing.T) {
	p := tallied(t, portsOf(t, 40000, 40009, "1-65535"), everything, sockets("tcp established 10.0.0.1:40000 10.0.0.2:80")...)
	p.want(t, 0, "tcp_ephemeral_ports")
	p.want(t, 0, "tcp_ephemeral_ports_used")
	for _, pool := range []string{"connect", "bind", "bind_any"} {
		p.want(t, 1, "tcp_ephemeral_port_utilisation_ratio", "pool", pool)
	}
}

// TestPoolUnknown leaves out what needs the pool, and nothing else.
func TestPoolUnknown(t *testing.T) {
	p := tallied(t, nil, everything, sockets("tcp established 10.0.0.1:40000 10.0.0.2:80")...)
	for _, f := range p {
		for _, word := range []string{"tcp_ephemeral", "tcp_destination_", "tcp_local"} {
			if strings.HasPrefix(f.GetName(), word) {
				t.Errorf("%s is there", f.GetName())
			}
		}
	}
	p.want(t, 1, "tcp_destinations")
	p.want(t, 1, "tcp_remote_connections")
}

// TestDestinationsTop names those that are worst off.
func TestDestinationsTop(t *testing.T) {
	pool := portsOf(t, 40000, 40099, "")
	pool.ReuseMode = 1
	var rows []tcptable.Socket
	connect := func(remote, state string, n int) {
		for i := range n {
			rows = append(rows, socket(fmt.Sprintf("tcp %s 10.0.0.1:%d %s:80", state, 40000+i, remote)))
		}
	}
	connect("10.0.0.2", "established", 5)
	connect("10.0.0.3", "established", 7)
	connect("10.0.0.4", "time_wait", 50) // all to be reused
	connect("10.0.0.5", "established", 6)
	f := func(n int, want ...string) {
		t.Helper()
		p := tallied(t, pool, tally.Limits{Destinations: n}, rows...)
		if got := p.values("tcp_destination_port_utilisation_ratio", "remote_ip"); !slices.Equal(got, want) {
			t.Errorf("top %d: %q, want %q", n, got, want)
		}
		p.want(t, 4, "tcp_destinations")
		p.want(t, 0.07, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	}
	f(1, "10.0.0.3=0.07")
	// A quarter, rounded, is for those that hold most, though all be reusable.
	f(2, "10.0.0.3=0.07", "10.0.0.4=0")
	f(3, "10.0.0.3=0.07", "10.0.0.4=0", "10.0.0.5=0.06")
	f(9, "10.0.0.2=0.05", "10.0.0.3=0.07", "10.0.0.4=0", "10.0.0.5=0.06")

	// Who holds no port of the pool comes last, with however many rows. Others count
	// without what they hold beside it.
	rows = append(rows, socket("tcp established 10.0.0.1:1023 10.0.0.3:80"))
	for i := range 100 {
		rows = append(rows, socket(fmt.Sprintf("tcp established 192.0.2.5:%d 10.0.0.1:5000", 100+i)))
	}
	for _, n := range []int{4, 5} {
		p := tallied(t, pool, tally.Limits{Destinations: n}, rows...)
		p.want(t, 5, "tcp_destinations")
		p.want(t, 7, "tcp_destination_ports_used", "remote_ip", "10.0.0.3")
		p.wantNone(t, "tcp_destination_ports_used", "remote_ip", "10.0.0.1")
		if got := len(p.series("tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.1")); got != n-4 {
			t.Errorf("top %d: it is named %d times", n, got)
		}
	}
}

// TestUnanswered counts connections by how often nobody has answered.
func TestUnanswered(t *testing.T) {
	rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0", "tcp6 listen [::]:80 [::]:0")
	add := func(text string, unanswered uint8, change func(*tcptable.Socket)) {
		s := socket(text)
		s.Timer, s.Unanswered = tcptable.TimerRetransmit, unanswered
		if change != nil {
			change(&s)
		}
		rows = append(rows, s)
	}
	ownerless := func(s *tcptable.Socket) { s.Inode = 0 }
	add("tcp established 10.0.0.1:40000 10.0.0.2:5432", 2, nil)
	add("tcp established 10.0.0.1:40001 10.0.0.2:5432", 3, nil)
	add("tcp syn_sent 10.0.0.1:40002 10.0.0.2:5432", 255, nil)
	add("tcp6 established 10.0.0.1:40003 10.0.0.2:5432", 3, func(s *tcptable.Socket) { s.Device = 2 })
	add("tcp last_ack 10.0.0.1:1023 10.0.0.2:5432", 3, nil)         // of no port of the pool
	add("tcp fin_wait1 10.0.0.1:40004 10.0.0.2:5432", 3, ownerless) // an orphan
	add("tcp6 close_wait [2001:db8::1]:81 [2001:db8::2]:80", 3, nil)
	add("tcp established 10.0.0.1:80 10.0.0.3:4000", 3, nil)
	add("tcp established 10.0.0.1:80 10.0.0.3:4001", 3, ownerless) // that nobody has accepted
	add("tcp syn_recv 10.0.0.1:80 10.0.0.3:4002", 3, ownerless)    // of TCP Fast Open
	p := tallied(t, portsOf(t, 40000, 40099, ""), everything, rows...)
	for _, want := range []struct {
		n                float64
		direction, state string
	}{
		{2, "inbound", "established"}, {2, "outbound", "established"}, {1, "outbound", "syn_sent"},
		{1, "outbound", "last_ack"}, {1, "outbound", "close_wait"},
	} {
		p.want(t, want.n, "tcp_unanswered_connections", "direction", want.direction, "state", want.state)
	}
	p.want(t, 7, "tcp_unanswered_connections")
	p.want(t, 4, "tcp_destination_unanswered_connections", "remote_ip", "10.0.0.2", "remote_port", "5432", "local_ip", "10.0.0.1")
	p.want(t, 5, "tcp_destination_unanswered_connections")
	for timer, n := range map[tcptable.Timer]float64{tcptable.TimerNone: 0, tcptable.TimerRetransmit: 8, tcptable.TimerKeepalive: 0, tcptable.TimerProbe: 0} {
		p.want(t, n, "tcp_timer_connections", "timer", timer.String())
	}
	// That nobody answers frees no port.
	p.want(t, 0.05, "tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.2")
	p.want(t, 3, "tcp_destination_ports_used", "remote_ip", "10.0.0.2", "state", "established")
}

// TestTimers counts what is connected, or about to be, by the timer that runs.
func TestTimers(t *testing.T) {
	rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0")
	add := func(text string, timer tcptable.Timer, inode uint64, kind tcptable.Kind) {
		s := socket(text)
		s.Timer, s.Inode, s.Kind = timer, inode, kind
		rows = append(rows, s)
	}
	for timer, n := range map[tcptable.Timer]int{tcptable.TimerNone: 1, tcptable.TimerRetransmit: 2, tcptable.TimerKeepalive: 3, tcptable.TimerProbe: 4, 5: 1} {
		for i := range n {
			add(fmt.Sprintf("tcp established 10.0.0.1:%d 10.0.0.2:80", 4000+i), timer, 1, tcptable.Full)
			add(fmt.Sprintf("tcp close_wait 10.0.0.1:80 10.0.0.2:%d", 4000+i), timer, uint64(i), tcptable.Full) // the first is not accepted
			add(fmt.Sprintf("tcp fin_wait2 10.0.0.1:80 10.0.0.2:%d", 4100+i), timer, 1, tcptable.Full)          // half closed
			// What is not.
			add(fmt.Sprintf("tcp fin_wait2 10.0.0.1:80 10.0.0.2:%d", 4200+i), timer, 0, tcptable.Full)
			add(fmt.Sprintf("tcp fin_wait2 10.0.0.1:80 10.0.0.2:%d", 4300+i), tcptable.TimerNone, 0, tcptable.Mini)
			add(fmt.Sprintf("tcp time_wait 10.0.0.1:80 10.0.0.2:%d", 4400+i), tcptable.TimerNone, 0, tcptable.Mini)
			add(fmt.Sprintf("tcp syn_recv 10.0.0.1:80 10.0.0.2:%d", 4500+i), timer, 0, tcptable.Full)
			add(fmt.Sprintf("tcp syn_recv 10.0.0.1:80 10.0.0.2:%d", 4600+i), tcptable.TimerNone, 0, tcptable.Request)
			add(fmt.Sprintf("tcp close 10.0.0.1:%d 10.0.0.2:80", 4700+i), timer, 1, tcptable.Full)
			add(fmt.Sprintf("tcp last_ack 10.0.0.1:%d 10.0.0.2:80", 4800+i), timer, 0, tcptable.Full)
		}
	}
	p := tallied(t, nil, everything, rows...)
	for timer, n := range map[string]float64{"none": 1, "retransmit": 2, "keepalive": 3, "probe": 4} {
		p.want(t, n, "tcp_timer_connections", "direction", "outbound", "timer", timer)
		p.want(t, 2*n, "tcp_timer_connections", "direction", "inbound", "timer", timer)
	}
	p.want(t, 11, "tcp_half_closed_connections", "direction", "inbound")
	p.want(t, 0, "tcp_half_closed_connections", "direction", "outbound")
	if n := len(p.family("tcp_timer_connections")); n != 8 {
		t.Errorf("%d series of timers, want 8", n)
	}
}

// TestDestinationsTopUnanswered names small destinations that are gone among many large
// ones that are not, and lose a few packets.
func TestDestinationsTopUnanswered(t *testing.T) {
	pool := portsOf(t, 40000, 41999, "")
	var rows []tcptable.Socket
	connect := func(remote string, n, unanswered int) {
		for i := range n {
			s := socket(fmt.Sprintf("tcp established 10.0.0.1:%d %s:80", 40000+i, remote))
			if i < unanswered {
				s.Unanswered = 3
			}
			rows = append(rows, s)
		}
	}
	for i := range 30 {
		connect(fmt.Sprintf("10.1.0.%d", i), 200+i, 20)
	}
	connect("10.2.0.1", 5, 3)
	connect("10.2.0.2", 3, 3)
	for n, want := range map[int]struct{ named, gone int }{0: {0, 0}, 1: {1, 0}, 3: {3, 0}, 4: {4, 1}, 8: {8, 2}, 20: {20, 2}, 50: {32, 2}} {
		p := tallied(t, pool, tally.Limits{Destinations: n}, rows...)
		gone := p.sum("tcp_destination_unanswered_connections", "remote_ip", "10.2.0.1") + p.sum("tcp_destination_unanswered_connections", "remote_ip", "10.2.0.2")
		named := len(p.family("tcp_destination_port_utilisation_ratio"))
		if named != want.named || gone != float64(3*want.gone) {
			t.Errorf("top %d: %d are named, with %v unanswered to those that are gone; want %d and %d", n, named, gone, want.named, 3*want.gone)
		}
		if n > 0 { // the worst is among them
			p.want(t, 229, "tcp_destination_ports_used", "remote_ip", "10.1.0.29")
		}
		p.want(t, 229./2000, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	}
}

// TestDestinationsTopHeld names a destination all of whose ports may be reused among
// thousands that have few.
func TestDestinationsTopHeld(t *testing.T) {
	pool := portsOf(t, 40000, 40099, "")
	pool.ReuseMode = 1
	var rows []tcptable.Socket
	for i := range 100 {
		rows = append(rows, socket(fmt.Sprintf("tcp time_wait 10.0.0.1:%d 10.0.0.9:80", 40000+i)))
	}
	for i := range 3000 {
		rows = append(rows, socket(fmt.Sprintf("tcp established 10.0.0.1:%d 10.1.%d.%d:80", 40000+i%100, i/250, i%250)))
	}
	for _, n := range []int{2, 3, 4, 20, 50} {
		p := tallied(t, pool, tally.Limits{Destinations: n}, rows...)
		p.want(t, 100, "tcp_destination_ports_used", "remote_ip", "10.0.0.9")
		p.want(t, 0, "tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.9")
		if got := len(p.family("tcp_destination_port_utilisation_ratio")); got != n {
			t.Errorf("%d are named, %d should be", got, n)
		}
		p.want(t, 0.01, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	}
}

// TestOrphans tells connections that their program has closed from those that it
// has not accepted yet.
func TestOrphans(t *testing.T) {
	f := func(orphans, unaccepted float64, row string) {
		t.Helper()
		s := socket(row)
		if s.Kind == tcptable.Full {
			s.Inode = 0
		}
		p := tallied(t, nil, everything, socket("tcp listen 0.0.0.0:80 0.0.0.0:0"), s)
		p.want(t, orphans, "tcp_orphan_connections")
		p.want(t, unaccepted, "tcp_listener_unaccepted_connections")
	}
	for _, state := range []string{"fin_wait1", "fin_wait2", "last_ack", "closing", "close"} {
		f(1, 0, "tcp "+state+" 10.0.0.1:80 10.0.0.2:5000")
		f(1, 0, "tcp "+state+" 10.0.0.1:4000 10.0.0.2:80")
	}
	for _, state := range []string{"established", "close_wait"} {
		f(0, 1, "tcp "+state+" 10.0.0.1:80 10.0.0.2:5000")
		f(1, 0, "tcp "+state+" 10.0.0.1:4000 10.0.0.2:80")
	}
	f(0, 0, "tcp syn_recv 10.0.0.1:80 10.0.0.2:5000") // TCP Fast Open
	f(0, 0, "tcp time_wait 10.0.0.1:80 10.0.0.2:5000")
	f(0, 0, "tcp time_wait 10.0.0.1:4000 10.0.0.2:80")

	// A minisock has no inode either, and is no orphan.
	p := tallied(t, nil, everything, mini(socket("tcp fin_wait2 10.0.0.1:4000 10.0.0.2:80")))
	p.want(t, 0, "tcp_orphan_connections")
	p.want(t, 0, "tcp_time_wait_remaining_connections") // FIN_WAIT2 is not TIME_WAIT
	p.want(t, 1, "tcp_connections", "state", "fin_wait2")
	// Nor is a connection that a program holds.
	p = tallied(t, nil, everything, socket("tcp fin_wait2 10.0.0.1:4000 10.0.0.2:80"))
	p.want(t, 0, "tcp_orphan_connections")
}

// TestQueueBytes adds the queues up by direction.
func TestQueueBytes(t *testing.T) {
	row := func(text string, rx, tx uint32) tcptable.Socket {
		s := socket(text)
		s.RxQueue, s.TxQueue = rx, tx
		return s
	}
	p := tallied(t, nil, everything,
		row("tcp listen 0.0.0.0:80 0.0.0.0:0", 128, 0),
		row("tcp established 10.0.0.1:80 10.0.0.2:5000", 100, 20),
		row("tcp close_wait 10.0.0.1:80 10.0.0.2:5001", 1, 4294967295),
		row("tcp established 10.0.0.1:4000 10.0.0.2:80", 4294967295, 7),
		row("tcp syn_sent 10.0.0.1:4001 10.0.0.2:80", 4294967295, 1),
	)
	p.want(t, 101, "tcp_queue_bytes", "direction", "inbound", "queue", "receive")
	p.want(t, 20+4294967295, "tcp_queue_bytes", "direction", "inbound", "queue", "send")
	p.want(t, 2*4294967295, "tcp_queue_bytes", "direction", "outbound", "queue", "receive")
	p.want(t, 8, "tcp_queue_bytes", "direction", "outbound", "queue", "send")
}

// TestTimeWaitRemaining puts timers into buckets that include their upper bound.
func TestTimeWaitRemaining(t *testing.T) {
	const remaining = "tcp_time_wait_remaining_connections"
	f := func(p *kernelstat.Pool, want string, timers ...time.Duration) {
		t.Helper()
		rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0")
		for i, left := range timers {
			s := socket(fmt.Sprintf("tcp time_wait 10.0.0.1:80 10.0.0.2:%d", 5000+i))
			s.TimerLeft = left
			rows = append(rows, s)
		}
		page := tallied(t, p, everything, rows...)
		page.want(t, 0, remaining, "direction", "outbound")
		wants := strings.Fields(want)
		slices.Sort(wants)
		if got := page.values(remaining, "remaining"); !slices.Equal(got, wants) {
			t.Errorf("got %q, want %q", got, wants)
		}
		page.want(t, float64(len(timers)), remaining)
	}
	timers := []time.Duration{0, time.Second, 1010 * time.Millisecond, 5 * time.Second, 10 * time.Second, 10010 * time.Millisecond,
		20 * time.Second, 30 * time.Second, 40 * time.Second, 50 * time.Second, 59940 * time.Millisecond, time.Minute}
	const counts = "1=2 5=2 10=1 20=2 30=1 40=1 50=1 60=2 "
	f(nil, counts, timers...)
	f(nil, "1=0 5=0 10=0 20=0 30=0 40=0 50=0 60=0")

	// Where TIME_WAIT lasts longer there is one more, with nothing in it too.
	long := portsOf(t, 40000, 40099, "")
	f(long, counts, timers...)
	long.TimeWait = 61 * time.Second
	f(long, counts+"600=0", timers...)
	long.TimeWait = 2 * time.Minute
	f(long, counts+"600=2", append(timers, 61*time.Second, 2*time.Minute)...)
	// Nobody knows the sysctl, or it is another one by now.
	f(nil, counts+"600=1", append(timers, 60010*time.Millisecond)...)
	long.TimeWait = 10 * time.Second
	f(long, counts+"600=1", append(timers, 10*time.Minute)...)
}

// TestTallyAgain counts other sockets with the memory of the first ones, whose snapshot
// stays what it was.
func TestTallyAgain(t *testing.T) {
	counted := tally.New(32, 128)
	random := rand.New(rand.NewPCG(5, 6))
	pools := []*kernelstat.Pool{portsOf(t, 40000, 40099, ""), nil, portsOf(t, 1, 65535, "80"), portsOf(t, 32768, 60999, "40000-50000")}
	var first *snapshot.Sockets
	var firstPage string
	for i := range 40 {
		rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0", "tcp6 listen [::]:41000 [::]:0")
		for range random.IntN(300) {
			rows = append(rows, socket(fmt.Sprintf("tcp %s 10.0.%d.1:%d 10.1.%d.%d:%d", []string{"established", "time_wait"}[random.IntN(2)], random.IntN(30),
				[]int{80, 40000 + random.IntN(200)}[random.IntN(2)], random.IntN(3), random.IntN(250), 1+random.IntN(3))))
		}
		p := pools[i%len(pools)]
		if err := counted.Count(yielded(rows), p, nil); err != nil {
			t.Fatal(err)
		}
		s := counted.Snapshot(everything)
		again := snapshotPage(t, p, s).text(t)
		if fresh := tallied(t, p, everything, rows...).text(t); again != fresh {
			t.Fatalf("round %d: got\n%s\nwant\n%s", i, again, fresh)
		}
		if first == nil {
			first, firstPage = s, again
		}
	}
	if got := snapshotPage(t, pools[0], first).text(t); got != firstPage {
		t.Errorf("the first is now\n%s\nand was\n%s", got, firstPage)
	}
}

// TestTallyAllocations counts rows without allocating, once there is room for
// their remotes and destinations.
func TestTallyAllocations(t *testing.T) {
	rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0")
	for i := range 10_000 {
		rows = append(rows, socket(fmt.Sprintf("tcp time_wait 10.0.0.1:%d 10.0.1.%d:443", 32768+i%20000, i%250)),
			socket(fmt.Sprintf("tcp established 10.0.0.1:80 10.0.2.%d:%d", i%250, 1024+i%50000)))
	}
	for i := range rows {
		if rows[i].Kind == tcptable.Full {
			rows[i].Cgroup, rows[i].Cookie = uint64(i%7), uint64(i)
		}
	}
	counted, p := tally.New(32, 128, tally.Group{Name: "half", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/25")}}), portsOf(t, 32768, 60999, "")
	counted.CountOwners()
	count := func() {
		if err := counted.Count(yielded(rows), p, nil); err != nil {
			t.Fatal(err)
		}
	}
	count()
	if n := testing.AllocsPerRun(5, count); n > 10 {
		t.Errorf("%v allocations for %d rows", n, len(rows))
	}
}

// TestReusable is the table of tcp_twsk_unique: what connect() may take over is not gone.
func TestReusable(t *testing.T) {
	ports := portsOf(t, 40000, 40009, "")
	lasts := kernelstat.TimeWaitLength
	f := func(want bool, mode uint64, timestamps bool, delay, age time.Duration, text string) {
		t.Helper()
		s := socket(text)
		s.TimerLeft = lasts - age
		ports.TimeWait, ports.ReuseMode, ports.Timestamps, ports.ReuseDelay = lasts, mode, timestamps, delay
		gone := 0.1
		if want {
			gone = 0
		}
		if got := tallied(t, ports, everything, s).sum("tcp_ephemeral_port_utilisation_ratio", "pool", "connect"); got != gone {
			t.Errorf("mode %d, timestamps %v, delay %v, age %v, %s: %v is gone", mode, timestamps, delay, age, text, got)
		}
	}
	const (
		ip       = "tcp time_wait 10.0.0.1:40000 10.0.0.2:80"
		ip6      = "tcp6 time_wait [2001:db8::1]:40000 [2001:db8::2]:80"
		loop     = "tcp time_wait 127.0.0.1:40000 127.9.9.9:80"
		fromLoop = "tcp time_wait 127.0.0.1:40000 10.0.0.2:80"
		toLoop   = "tcp time_wait 10.0.0.1:40000 127.0.0.1:80"
		loop6    = "tcp6 time_wait [::1]:40000 [::1]:80"
		mapped   = "tcp6 time_wait 127.0.0.1:40000 127.0.0.1:80"
		second   = time.Second
	)
	for _, text := range []string{ip, ip6, loop, loop6, mapped} {
		f(false, 0, true, second, 30*second, text)
		f(true, 1, true, second, 30*second, text)
		f(false, 1, false, second, 30*second, text)
		f(false, 3, true, second, 30*second, text)
	}
	f(false, 2, true, second, 30*second, ip)
	f(false, 2, true, second, 30*second, ip6)
	for _, text := range []string{loop, fromLoop, toLoop, loop6, mapped} {
		f(true, 2, true, second, 30*second, text)
		f(false, 2, false, second, 30*second, text)
		f(false, 2, true, second, second, text)
	}
	// The age has to be more than the delay.
	f(false, 1, true, second, 0, ip)
	f(false, 1, true, second, second, ip)
	f(true, 1, true, second, second+10*time.Millisecond, ip)
	f(true, 1, true, second, 62*second, ip) // fired late
	f(true, 1, true, time.Millisecond, 10*time.Millisecond, ip)
	f(false, 1, true, 30*second, 30*second, ip)
	// Its age follows from what is left of it.
	for _, lasts = range []time.Duration{time.Second, 10 * time.Second, 2 * time.Minute, 10 * time.Minute} {
		f(false, 1, true, second, 300*time.Millisecond, ip)
		f(true, 1, true, second/10, 300*time.Millisecond, ip)
		f(false, 1, true, second, -5*second, ip) // it lasted longer once
	}
	f(true, 1, true, second, 10*second, ip)
	lasts = kernelstat.TimeWaitLength
	// Only TIME_WAIT, though FIN_WAIT2 may be a minisock too.
	for s := range snapshot.Outbound.States() {
		if s != tcptable.TimeWait {
			f(false, 1, true, second, 30*second, "tcp "+s.String()+" 10.0.0.1:40000 10.0.0.2:80")
		}
	}
}
