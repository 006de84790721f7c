package kernel

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestServerSideTimeWait is what a host behind a load balancer looks like
// whose server closes first: thousands of TIME_WAITs, one remote address, and
// not a single ephemeral port of this host's.
func TestServerSideTimeWait(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const connections = 3000
		balancer := netip.MustParseAddr("127.0.0.2")
		s := netns.Serve(t, loopback4, 9000)
		// From ports of their own, so that none comes back to one that the server
		// still has in TIME_WAIT: the kernel would give that up for the new one.
		for _, p := range s.MustConnectFrom(t, balancer, 2000, connections) {
			p.CloseServerFirst(t)
		}

		for _, p := range startExporters(t).scrape(t) {
			p.want(t, connections, "tcp_connections", "family", "ipv4", "direction", "inbound", "state", "time_wait")
			p.want(t, 0, "tcp_connections", "direction", "outbound")
			p.want(t, connections, "tcp_remote_connections", "remote_ip", balancer.String(), "direction", "inbound", "state", "time_wait")
			p.want(t, connections, "tcp_remote_connections")
			p.want(t, 1, "tcp_remote_ips", "direction", "inbound")
			p.want(t, 1, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "time_wait")
			p.want(t, 0, "tcp_remote_top_share_ratio", "direction", "outbound", "state", "time_wait")
			p.want(t, connections, "tcp_listener_connections", "local_port", "9000", "state", "time_wait")
			p.want(t, 0, "tcp_ephemeral_ports_used")
			p.want(t, 0, "tcp_destinations")
			p.want(t, 0, "tcp_ephemeral_port_utilisation_ratio")
			p.want(t, connections, "tcp_time_wait_sockets")
			p.want(t, connections, "tcp_time_wait_started_total", "timer", "full")
		}
	})
}

// TestTimeWaitLimit makes more TIME_WAITs than tcp_max_tw_buckets allows.
func TestTimeWaitLimit(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "20")
		s := netns.Serve(t, loopback4, 9000)
		for _, p := range s.MustConnect(t, 50) {
			p.CloseClientFirst(t)
		}
		for _, p := range startExporters(t).scrape(t) {
			p.want(t, 20, "tcp_time_wait_limit")
			p.want(t, 20, "tcp_time_wait_sockets")
			p.want(t, 20, "tcp_connections", "state", "time_wait")
			p.want(t, 30, "tcp_time_wait_overflows_total")
		}
	})
}

// TestCounters moves the kernel's counters and compares every one.
func TestCounters(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/tcp_fin_timeout", "3")
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "1")
		s := netns.Serve(t, loopback4, 9000)

		// TW, TWKilled: a FIN_WAIT2 of 3 s is armed with a short timer.
		for _, p := range s.MustConnect(t, 3) {
			p.CloseClientFirst(t)
		}
		for _, p := range s.MustConnect(t, 2) {
			p.Client.Close(t)
			p.Server.AwaitEOF(t)
		}
		// TCPAbortOnClose: closed with unread data. TCPAbortOnData: data after close.
		pairs := s.MustConnect(t, 3)
		pairs[0].Client.Write(t, []byte("unread"))
		pairs[0].Server.Close(t)
		pairs[1].Client.Close(t)
		pairs[1].Server.Write(t, []byte("late"))
		// EstabResets, OutRsts, TCPAbortOnData: SO_LINGER with no time.
		if err := unix.SetsockoptLinger(pairs[2].Client.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			t.Fatal(err)
		}
		pairs[2].Client.Close(t)
		// AttemptFails: nobody listens there.
		if err := netns.NewSocket(t, unix.AF_INET).TryConnect(netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connect to a port without listener: %v, want ECONNREFUSED", err)
		}
		// ListenOverflows, ListenDrops: backlog 0 holds one connection.
		full := netip.MustParseAddrPort("127.0.0.1:9100")
		netns.Listen(t, full, 0)
		for range 4 {
			netns.NewSocket(t, unix.AF_INET).Start(t, full)
		}

		e := startExporter(t)
		// SYNs to the full listener are sent again, so the counters may move
		// between two looks at them: compare when they did not.
		var p page
		var before, after map[string]float64
		netns.Eventually(t, func() bool {
			before = readCounters(t)
			p = e.scrape(t)
			after = readCounters(t)
			return maps.Equal(before, after)
		}, func() string { return "the kernel's counters never rest" })

		for _, c := range []struct {
			kernel  string
			minimum float64
			metric  string
			labels  []string
		}{
			{"Tcp.ActiveOpens", 9, "tcp_active_opens_total", nil},
			{"Tcp.PassiveOpens", 9, "tcp_passive_opens_total", nil},
			{"Tcp.AttemptFails", 1, "tcp_attempt_fails_total", nil},
			{"Tcp.EstabResets", 1, "tcp_established_resets_total", nil},
			{"Tcp.RetransSegs", 0, "tcp_retransmitted_segments_total", nil},
			{"Tcp.OutRsts", 1, "tcp_out_resets_total", nil},
			{"TcpExt.TW", 3, "tcp_time_wait_started_total", []string{"timer", "full"}},
			{"TcpExt.TWKilled", 2, "tcp_time_wait_started_total", []string{"timer", "short"}},
			{"TcpExt.TWRecycled", 0, "tcp_time_wait_reused_total", nil},
			{"TcpExt.TCPTimeWaitOverflow", 0, "tcp_time_wait_overflows_total", nil},
			{"TcpExt.ListenOverflows", 1, "tcp_listen_overflows_total", nil},
			{"TcpExt.ListenDrops", 1, "tcp_listen_drops_total", nil},
			{"TcpExt.SyncookiesSent", 0, "tcp_syn_cookies_sent_total", nil},
			{"TcpExt.TCPAbortOnData", 1, "tcp_aborts_total", []string{"reason", "data"}},
			{"TcpExt.TCPAbortOnClose", 1, "tcp_aborts_total", []string{"reason", "close"}},
			{"TcpExt.TCPAbortOnMemory", 0, "tcp_aborts_total", []string{"reason", "memory"}},
			{"TcpExt.TCPAbortOnTimeout", 0, "tcp_aborts_total", []string{"reason", "timeout"}},
			{"TcpExt.TCPAbortOnLinger", 0, "tcp_aborts_total", []string{"reason", "linger"}},
			{"TcpExt.TCPAbortFailed", 0, "tcp_abort_failures_total", nil},
		} {
			value, ok := after[c.kernel]
			if !ok {
				t.Errorf("the kernel has no %s", c.kernel)
				continue
			}
			if value < c.minimum {
				t.Errorf("%s is %v, the test made at least %v", c.kernel, value, c.minimum)
			}
			if got := p.value(t, c.metric, c.labels...); got != value {
				t.Errorf("%s%v = %v, %s is %v", c.metric, c.labels, got, c.kernel, value)
			}
		}
	})
}

// readCounters reads what is of TCP in net/snmp and net/netstat: a line of names, then
// one of values.
func readCounters(t *testing.T) map[string]float64 {
	t.Helper()
	counters := make(map[string]float64)
	for _, file := range []string{"/proc/self/net/snmp", "/proc/self/net/netstat"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			if !strings.HasPrefix(names[0], "Tcp") {
				continue
			}
			for j := 1; j < len(names); j++ {
				value, err := strconv.ParseFloat(values[j], 64)
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				counters[strings.TrimSuffix(names[0], ":")+"."+names[j]] = value
			}
		}
	}
	return counters
}
