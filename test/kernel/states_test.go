package kernel

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// A kind is one way a connection can look in the socket table.
type kind struct {
	state string
	// full tells a full socket from a minisock: a minisock is what is left
	// when nobody can read from or write to the connection any more.
	full bool
	// orphan is a full socket that its program has closed.
	orphan bool
	count  int
	timer  string // that runs for its full socket, if any
	steps  string // to it, in the words of reach
}

// kinds are those that an established connection can be brought to, in
// either direction. The counts differ so that no two can be mixed up.
var kinds = []kind{
	{"established", true, false, 7, "none", ""},
	{"established", true, false, 2, "none", "SENDS"},
	{"established", true, false, 1, "retransmit", "writes"},
	{"established", true, false, 2, "keepalive", "asks"},
	{"established", true, false, 3, "probe", "LACKS-ROOM writes"},
	{"fin_wait1", true, false, 1, "retransmit", "shuts-down"},
	{"fin_wait1", true, true, 3, "retransmit", "closes"},
	{"fin_wait2", true, false, 2, "none", "shuts-down GETS-FIN ACKS"},
	{"fin_wait2", true, false, 1, "keepalive", "asks shuts-down GETS-FIN ACKS"},
	// The kernel keeps a full socket while more than a minute is left.
	{"fin_wait2", true, true, 1, "keepalive", "lingers closes GETS-FIN ACKS"},
	{"fin_wait2", false, false, 3, "", "closes GETS-FIN ACKS"},
	{"time_wait", false, false, 5, "", "closes GETS-FIN ACKS FINISHES"},
	{"time_wait", false, false, 4, "", "closes FINISHES GETS-FIN ACKS"}, // by way of closing: both ends close at once
	{"close_wait", true, false, 4, "none", "FINISHES"},
	{"close_wait", true, false, 1, "retransmit", "FINISHES GETS-ACK writes"},
	{"last_ack", true, false, 1, "retransmit", "FINISHES GETS-ACK shuts-down"},
	{"last_ack", true, true, 2, "retransmit", "FINISHES GETS-ACK closes"},
	{"closing", true, false, 2, "retransmit", "shuts-down FINISHES"},
	{"closing", true, true, 4, "retransmit", "closes FINISHES"},
}

// reach brings a connection there. In capitals is what the far end does.
func (k kind) reach(t *testing.T, near netns.Socket, far *netns.FarEnd) {
	t.Helper()
	steps := map[string]func(){
		"writes":     func() { near.Write(t, make([]byte, 500)) },
		"shuts-down": func() { near.Shutdown(t) },
		"asks":       func() { near.KeepAlive(t, 1) },
		"lingers":    func() { near.Set(t, unix.SOL_TCP, unix.TCP_LINGER2, 100) },
		"closes":     func() { near.Close(t) },
		"SENDS":      func() { far.Send(t, netns.FlagACK|netns.FlagPSH, make([]byte, 1000)) },
		"LACKS-ROOM": func() {
			far.NoRoom = true
			far.Send(t, netns.FlagACK|netns.FlagPSH, []byte("x"))
		},
		"GETS-FIN": func() { far.Expect(t, netns.FlagFIN) },
		"GETS-ACK": func() { far.Expect(t, netns.FlagACK) },
		"ACKS":     func() { far.Confirm(t) },
		"FINISHES": func() { far.Finish(t) },
	}
	for step := range strings.FieldsSeq(k.steps) {
		steps[step]()
	}
}

// stack is one way of speaking IP: the same connections are built in each.
type stack struct {
	socket   int // AF_
	listener netip.Addr
	near     netip.Addr
	caller   netip.Addr // remote address of inbound connections
	server   netip.Addr // remote address of outbound connections
	port     uint16     // of its listener; two more listen on the next two
}

var stacks = []stack{
	{
		unix.AF_INET, netip.IPv4Unspecified(),
		netns.WireNear4.Addr(), netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.3"), 8000,
	},
	{
		unix.AF_INET6, netns.WireNear6.Addr(),
		netns.WireNear6.Addr(), netip.MustParseAddr("fd00:9::2"), netip.MustParseAddr("fd00:9::3"), 8010,
	},
	{ // dual-stack: IPv4 connections of AF_INET6 sockets
		unix.AF_INET6, netip.IPv6Unspecified(),
		netns.WireNear4.Addr(), netip.MustParseAddr("10.9.0.4"), netip.MustParseAddr("10.9.0.3"), 8020,
	},
}

// row is a line of the socket table as it was built.
type row struct {
	stack                  stack
	direction, state       string
	full, orphan, accepted bool
	local, remote          netip.AddrPort
	timer                  string // of a full socket that is connected, or about to be
}

// family is the label: that of the addresses, whichever table has the row.
func (r row) family() string {
	if r.local.Addr().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// rows is the account of everything a test has built.
type rows []row

func (rs rows) count(matches func(row) bool) (n int) {
	for _, r := range rs {
		if matches(r) {
			n++
		}
	}
	return n
}

// buildEveryKind builds every kind of row that a program can make, of each stack.
func buildEveryKind(t *testing.T) rows {
	t.Helper()
	// 0x2 server side on; 0x200 data in a SYN is taken without a cookie.
	netns.SetSysctl(t, "net/ipv4/tcp_fastopen", "514")
	w := netns.NewWire(t)
	var rs rows
	for _, s := range stacks {
		rs = append(rs, buildInbound(t, w, s)...)
		rs = append(rs, buildOutbound(t, w, s)...)
		rs = append(rs, buildUnaccepted(t, w, s)...)
		rs = append(rs, buildFastOpen(t, w, s)...)
	}
	rs = append(rs, buildSharedPort(t, w)...)
	rs.settle(t)
	return rs
}

// TestStates builds every kind of row that a program can make and compares
// each count with what was built and with the kernel's own, and the sources with
// each other.
func TestStates(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		rs := buildEveryKind(t)

		var pages []page
		for _, source := range sources(t) {
			t.Run(source, func(t *testing.T) {
				p := startExporter(t, "--collector.source="+source).scrape(t)
				p.want(t, 1, "timewait_exporter_source_info", "source", source)
				p.want(t, 1, "timewait_exporter_source_info")
				rs.compareTable(t, p)
				rs.compareRemotes(t, p)
				rs.comparePorts(t, p)
				rs.compareListeners(t, p)
				rs.compareQueues(t, p)
				rs.compareTimeWaits(t, p)
				rs.compareTimers(t, p)
				pages = append(pages, p)
			})
		}
		t.Run("sources_agree", func(t *testing.T) {
			bothSources(t)
			compareRows(t, rs)
			comparePages(t, pages[0], pages[1])
		})
		rs.compareUnanswered(t)
	})
}

// TestTableSizes scrapes tables of every length up to several pages: a reader
// that stops before the end of a file must know the end from the end of a page.
// Rows of TIME_WAIT are shorter than others, so pages are filled differently.
func TestTableSizes(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const steps = 120
		es := startExporters(t)
		services := []netns.Service{netns.Serve(t, loopback4, 9000), netns.Serve(t, loopback6, 9000)}
		rows := 1
		for step := range steps {
			for _, p := range es.scrape(t) {
				for _, family := range []string{"ipv4", "ipv6"} {
					if got := p.sum("tcp_connections", "family", family); got != float64(rows) {
						t.Fatalf("%v rows of %s, built were %d", got, family, rows)
					}
				}
			}
			for _, s := range services {
				p := s.MustConnectFrom(t, s.At.Addr(), uint16(20000+step), 1)[0]
				if step%2 == 0 {
					p.CloseServerFirst(t)
				}
			}
			rows += 1 + step%2
		}
	})
}

// buildInbound makes connections from the wire to a listener that accepts.
func buildInbound(t *testing.T, w *netns.Wire, s stack) (rs rows) {
	at := netip.AddrPortFrom(s.listener, s.port)
	listener := netns.Listen(t, at, 100)
	rs = append(rs, row{stack: s, direction: "inbound", state: "listen", full: true, accepted: true, local: at})

	near := netip.AddrPortFrom(s.near, s.port)
	far := netip.AddrPortFrom(s.caller, 1000)
	next := func() netip.AddrPort {
		far = netip.AddrPortFrom(far.Addr(), far.Port()+1)
		return far
	}
	for _, k := range kinds {
		for range k.count {
			f := w.Call(t, next(), near)
			f.Confirm(t)
			k.reach(t, listener.Accept(t), f)
			rs = append(rs, row{s, "inbound", k.state, k.full, k.orphan, true, near, far, k.timer})
		}
	}
	for range 6 {
		w.Call(t, next(), near)
		rs = append(rs, row{s, "inbound", "syn_recv", false, false, false, near, far, ""})
	}
	return rs
}

// buildOutbound makes connections from the namespace to the wire.
func buildOutbound(t *testing.T, w *netns.Wire, s stack) (rs rows) {
	far := netip.AddrPortFrom(s.server, 443)
	for _, k := range kinds {
		for range k.count + 1 {
			so := netns.NewSocket(t, s.socket)
			so.Start(t, far)
			near := so.Local(t)
			k.reach(t, so, w.Answer(t, near, far))
			rs = append(rs, row{s, "outbound", k.state, k.full, k.orphan, true, near, far, k.timer})
		}
	}
	for range 5 {
		so := netns.NewSocket(t, s.socket)
		so.Start(t, far)
		rs = append(rs, row{s, "outbound", "syn_sent", true, false, true, so.Local(t), far, "retransmit"})
	}
	return rs
}

// buildUnaccepted makes connections that the kernel has accepted and the
// program has not. One of them the far end resets: it leaves the table, but
// not the queue.
func buildUnaccepted(t *testing.T, w *netns.Wire, s stack) (rs rows) {
	at := netip.AddrPortFrom(s.listener, s.port+1)
	netns.Listen(t, at, 100)
	rs = append(rs, row{stack: s, direction: "inbound", state: "listen", full: true, accepted: true, local: at})

	near := netip.AddrPortFrom(s.near, s.port+1)
	for i, state := range []string{"established", "established", "established", "close_wait", "close_wait", "close"} {
		f := w.Call(t, netip.AddrPortFrom(s.caller, uint16(2000+i)), near)
		f.Confirm(t)
		switch state {
		case "close_wait":
			f.Finish(t)
		case "close":
			f.Send(t, netns.FlagRST, nil)
			continue
		}
		rs = append(rs, row{s, "inbound", state, true, false, false, near, f.Far, "none"})
	}
	return rs
}

// buildFastOpen makes a connection whose SYN carried data: half open like a
// request socket, but already a full socket that accept() would return.
func buildFastOpen(t *testing.T, w *netns.Wire, s stack) rows {
	at := netip.AddrPortFrom(s.listener, s.port+2)
	listener := netns.Listen(t, at, 100)
	listener.Set(t, unix.SOL_TCP, unix.TCP_FASTOPEN, 10)

	near := netip.AddrPortFrom(s.near, s.port+2)
	f := &netns.FarEnd{Wire: w, Near: near, Far: netip.AddrPortFrom(s.caller, 3000), Seq: 1000}
	f.Send(t, netns.FlagSYN, []byte("hello"))
	f.Expect(t, netns.FlagSYN|netns.FlagACK)
	return rows{
		{stack: s, direction: "inbound", state: "listen", full: true, accepted: true, local: at},
		{s, "inbound", "syn_recv", true, false, false, near, f.Far, ""},
	}
}

// buildSharedPort makes an outbound connection from a port on which somebody
// listens, but on another address.
func buildSharedPort(t *testing.T, w *netns.Wire) rows {
	s := stacks[0]
	at := netip.MustParseAddrPort("127.0.0.1:8030")
	near := netip.AddrPortFrom(s.near, at.Port())
	far := netip.AddrPortFrom(s.server, 444)
	netns.Listen(t, at, 100)
	so := netns.NewSocket(t, s.socket)
	so.Bind(t, near)
	so.Start(t, far)
	w.Answer(t, near, far)
	return rows{
		{stack: s, direction: "inbound", state: "listen", full: true, accepted: true, local: at},
		{s, "outbound", "established", true, false, true, near, far, "none"},
	}
}

// settle waits until the kernel shows what was built, and checks the
// bookkeeping by the kernel's own counters.
func (rs rows) settle(t *testing.T) {
	t.Helper()
	type place struct {
		table int // AF_
		state string
	}
	want := make(map[place]int)
	for _, r := range rs {
		want[place{r.stack.socket, r.state}]++
	}
	var have map[place]int
	netns.Eventually(t, func() bool {
		have = make(map[place]int)
		for _, r := range readTable(t) {
			have[place{r.table, r.state}]++
		}
		return maps.Equal(have, want)
	}, func() string { return fmt.Sprintf("the kernel lists %v, built were %v", have, want) })

	s := readSockstat(t)
	for _, c := range []struct {
		name       string
		have, want int
	}{
		{"sockstat TCP inuse", s.inUse4, rs.count(func(r row) bool { return r.full && r.stack.socket == unix.AF_INET })},
		{"sockstat6 TCP6 inuse", s.inUse6, rs.count(func(r row) bool { return r.full && r.stack.socket == unix.AF_INET6 })},
		{"sockstat tw", s.timeWait, rs.count(func(r row) bool { return !r.full && r.state != "syn_recv" })},
		{"snmp CurrEstab", int(readCounters(t)["Tcp.CurrEstab"]), rs.count(func(r row) bool { return r.state == "established" || r.state == "close_wait" })},
	} {
		if c.have != c.want {
			t.Fatalf("%s = %d, built were %d", c.name, c.have, c.want)
		}
	}
}

func (rs rows) compareTable(t *testing.T, p page) {
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, state := range states {
			for _, direction := range directions(state) {
				n := rs.count(func(r row) bool {
					return r.family() == family && r.direction == direction && r.state == state
				})
				if n == 0 && state != "close" {
					t.Errorf("no %s %s %s was built", family, direction, state)
				}
				if got := p.value(t, "tcp_connections", "family", family, "direction", direction, "state", state); got != float64(n) {
					t.Errorf("tcp_connections{%s %s %s} = %v, built were %d", family, direction, state, got, n)
				}
			}
		}
	}
	p.want(t, float64(len(rs)), "tcp_connections")
	p.want(t, float64(rs.count(func(r row) bool { return r.orphan })), "tcp_orphan_connections")
}

func (rs rows) compareRemotes(t *testing.T, p page) {
	type key struct{ remote, direction, state string }
	want := make(map[key]float64)
	remotes := make(map[string]map[netip.Addr]bool)
	for _, r := range rs {
		if r.state == "listen" {
			continue
		}
		want[key{r.remote.Addr().String(), r.direction, r.state}]++
		if remotes[r.direction] == nil {
			remotes[r.direction] = make(map[netip.Addr]bool)
		}
		remotes[r.direction][r.remote.Addr()] = true
	}
	for k, n := range want {
		p.want(t, n, "tcp_remote_connections", "remote_ip", k.remote, "direction", k.direction, "state", k.state)
	}
	p.want(t, float64(rs.count(func(r row) bool { return r.state != "listen" })), "tcp_remote_connections")
	for direction, ips := range remotes {
		p.want(t, float64(len(ips)), "tcp_remote_ips", "direction", direction)
	}

	for _, state := range []string{"established", "time_wait", "close_wait", "syn_recv"} {
		for _, direction := range directions(state) {
			var largest, all float64
			for k, n := range want {
				if k.direction == direction && k.state == state {
					largest, all = max(largest, n), all+n
				}
			}
			got := p.value(t, "tcp_remote_top_share_ratio", "direction", direction, "state", state)
			if math.Abs(got-largest/all) > 1e-9 {
				t.Errorf("tcp_remote_top_share_ratio{%s %s} = %v, want %v of %v", direction, state, got, largest, all)
			}
		}
	}
}

// comparePorts looks at the ephemeral ports: those of outbound rows, here.
func (rs rows) comparePorts(t *testing.T, p page) {
	low, high := p.value(t, "tcp_ephemeral_port_range_low"), p.value(t, "tcp_ephemeral_port_range_high")
	type triple struct {
		local  netip.Addr
		remote netip.AddrPort
	}
	type key struct {
		triple
		state string
	}
	want := make(map[key]float64)
	destinations := make(map[triple]bool)
	used := make(map[uint16]bool)
	for _, r := range rs {
		if r.direction == "outbound" {
			destinations[triple{r.local.Addr(), r.remote}] = true
		}
		if port := float64(r.local.Port()); low <= port && port <= high {
			want[key{triple{r.local.Addr(), r.remote}, r.state}]++
			used[r.local.Port()] = true
		}
	}
	p.want(t, high-low+1, "tcp_ephemeral_ports")
	p.want(t, float64(len(used)), "tcp_ephemeral_ports_used")
	p.want(t, float64(len(destinations)), "tcp_destinations")
	var sum float64
	for k, n := range want {
		sum += n
		p.want(t, n, "tcp_destination_ports_used", "local_ip", k.local.String(),
			"remote_ip", k.remote.Addr().String(), "remote_port", fmt.Sprint(k.remote.Port()), "state", k.state)
	}
	p.want(t, sum, "tcp_destination_ports_used")
}

func (rs rows) compareListeners(t *testing.T, p page) {
	type key struct{ port, state string }
	connections := make(map[key]float64)
	unaccepted := make(map[key]float64)
	for _, r := range rs {
		if r.direction != "inbound" || r.state == "listen" {
			continue
		}
		port := fmt.Sprint(r.local.Port())
		connections[key{port, r.state}]++
		if !r.accepted && r.state != "syn_recv" {
			unaccepted[key{port, r.state}]++
		}
	}
	var sum float64
	for k, n := range connections {
		sum += n
		p.want(t, n, "tcp_listener_connections", "local_port", k.port, "state", k.state)
	}
	p.want(t, sum, "tcp_listener_connections")
	for _, s := range stacks {
		// accepted; three and two and the one that was reset; fast open.
		for i, queue := range []float64{0, 6, 1} {
			port := fmt.Sprint(int(s.port) + i)
			for _, state := range []string{"established", "close_wait"} {
				p.want(t, unaccepted[key{port, state}], "tcp_listener_unaccepted_connections", "local_port", port, "state", state)
			}
			p.want(t, 1, "tcp_listener_sockets", "local_ip", s.listener.String(), "local_port", port)
			if got := p.value(t, "tcp_listener_accept_queue", "local_ip", s.listener.String(), "local_port", port); got != queue {
				t.Errorf("tcp_listener_accept_queue{%s:%s} = %v, want %v", s.listener, port, got, queue)
			}
			if len(sources(t)) > 1 {
				p.want(t, 100, "tcp_listener_accept_queue_limit", "local_ip", s.listener.String(), "local_port", port)
				p.want(t, queue/101, "tcp_listener_accept_queue_fill_ratio", "local_ip", s.listener.String(), "local_port", port)
			}
		}
	}
}

// compareQueues reads the sums off the table: a FIN or SYN takes one byte of
// the sequence space, so the columns are no round numbers.
func (rs rows) compareQueues(t *testing.T, p page) {
	local := make(map[netip.AddrPort]string)
	for _, r := range rs {
		local[r.local] = r.direction
	}
	type key struct{ direction, queue string }
	want := make(map[key]float64)
	for _, r := range readTable(t) {
		if r.state != "listen" {
			want[key{local[r.local], "receive"}] += float64(r.receiveQueue)
			want[key{local[r.local], "send"}] += float64(r.sendQueue)
		}
	}
	for _, direction := range []string{"inbound", "outbound"} {
		for _, queue := range []string{"receive", "send"} {
			p.want(t, want[key{direction, queue}], "tcp_queue_bytes", "direction", direction, "queue", queue)
		}
	}
	// What the kinds with data hold in the three stacks, at the least.
	if n := want[key{"inbound", "receive"}]; n < 3*2*1000 {
		t.Errorf("inbound receive queues hold %v bytes, want at least 6000", n)
	}
	if n := want[key{"outbound", "send"}]; n < 3*2*500 {
		t.Errorf("outbound send queues hold %v bytes, want at least 3000", n)
	}
}

func (rs rows) compareTimers(t *testing.T, p page) {
	for _, timer := range []string{"none", "retransmit", "keepalive", "probe"} {
		for _, direction := range []string{"inbound", "outbound"} {
			n := rs.count(func(r row) bool { return r.direction == direction && r.timer == timer && !r.orphan })
			if n == 0 {
				t.Errorf("nothing %s was built with timer %s", direction, timer)
			}
			if got := p.value(t, "tcp_timer_connections", "direction", direction, "timer", timer); got != float64(n) {
				t.Errorf("tcp_timer_connections{%s %s} = %v, built were %d", direction, timer, got, n)
			}
		}
	}
	p.want(t, float64(rs.count(func(r row) bool { return r.timer != "" && !r.orphan })), "tcp_timer_connections")
	for _, direction := range []string{"inbound", "outbound"} {
		n := rs.count(func(r row) bool { return r.direction == direction && r.state == "fin_wait2" && r.full && !r.orphan })
		if got := p.value(t, "tcp_half_closed_connections", "direction", direction); got != float64(n) {
			t.Errorf("tcp_half_closed_connections{%s} = %v, built were %d", direction, got, n)
		}
	}
}

// compareUnanswered waits until the far end, which answers nothing, has left each
// connection with a timer alone three times.
func (rs rows) compareUnanswered(t *testing.T) {
	type destination struct {
		local  netip.Addr
		remote netip.AddrPort
	}
	type key struct{ direction, state string }
	states := map[key]float64{{"inbound", "established"}: 0, {"outbound", "established"}: 0, {"outbound", "syn_sent"}: 0}
	destinations := make(map[destination]float64)
	var sum float64
	for _, r := range rs {
		if r.orphan || r.timer == "" || r.timer == "none" {
			continue
		}
		sum++
		states[key{r.direction, r.state}]++
		if r.direction == "outbound" {
			destinations[destination{r.local.Addr(), r.remote}]++
		}
	}
	for _, e := range startExporters(t) {
		var p page
		netns.Eventually(t, func() bool {
			p = e.scrape(t)
			return p.sum("tcp_unanswered_connections") >= sum
		}, func() string {
			return fmt.Sprintf("of %v connections these are unanswered: %v", sum, p.series("tcp_unanswered_connections"))
		})
		p.want(t, sum, "tcp_unanswered_connections")
		for k, n := range states {
			p.want(t, n, "tcp_unanswered_connections", "direction", k.direction, "state", k.state)
		}
		for d, n := range destinations {
			p.want(t, n, "tcp_destination_unanswered_connections", "local_ip", d.local.String(),
				"remote_ip", d.remote.Addr().String(), "remote_port", fmt.Sprint(d.remote.Port()))
		}
		if got := len(p.series("tcp_destination_unanswered_connections")); got != len(destinations) {
			t.Errorf("%d destinations do not answer, want %d", got, len(destinations))
		}
	}
}

func (rs rows) compareTimeWaits(t *testing.T, p page) {
	p.want(t, float64(readSockstat(t).timeWait), "tcp_time_wait_sockets")
	for _, direction := range []string{"inbound", "outbound"} {
		n := rs.count(func(r row) bool { return r.direction == direction && r.state == "time_wait" })
		p.want(t, float64(n), "tcp_time_wait_remaining_connections", "direction", direction)
		// They are seconds old, of TCP_TIMEWAIT_LEN = 60 s.
		recent := 0.0
		for _, remaining := range []string{"50", "60"} {
			recent += p.value(t, "tcp_time_wait_remaining_connections", "direction", direction, "remaining", remaining)
		}
		if recent != float64(n) {
			t.Errorf("%s: %v of %d TIME_WAITs have more than 40 s left", direction, recent, n)
		}
	}
}
