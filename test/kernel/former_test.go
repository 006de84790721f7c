package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestListenerGone has servers that close their listener, in the ways that deploys do, while
// clients are connected: both ends are in the table, so as many connections come in as go out,
// before and after.
func TestListenerGone(t *testing.T) {
	const n, port = 30, 8080
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, v := range []struct {
		name   string
		at, to netip.Addr
		// deploy is called with the listener gone.
		deploy func(t *testing.T, at netip.AddrPort, pairs []netns.Pair)
		states map[string]float64 // of inbound connections, afterwards
	}{
		{"draining", loopback4, loopback4, func(*testing.T, netip.AddrPort, []netns.Pair) {}, map[string]float64{"established": n}},
		{"closes_first", any4, loopback4, func(t *testing.T, _ netip.AddrPort, pairs []netns.Pair) {
			for _, p := range pairs[:20] {
				p.CloseServerFirst(t)
			}
		}, map[string]float64{"established": n - 20, "time_wait": 20}},
		{"crash_with_clients_that_hang", loopback6, loopback6, func(t *testing.T, _ netip.AddrPort, pairs []netns.Pair) {
			for _, p := range pairs {
				p.Server.Close(t)
			}
			inFinWait2 := 0 // the clients' kernel acknowledges in its own time
			netns.Eventually(t, func() bool {
				inFinWait2 = 0
				for _, r := range readTable(t) {
					if r.state == "fin_wait2" {
						inFinWait2++
					}
				}
				return inFinWait2 == n
			}, func() string { return fmt.Sprint(inFinWait2, " of ", n, " are in FIN_WAIT2") })
		}, map[string]float64{"fin_wait2": n}},
		{"dual_stack", any6, loopback4, func(t *testing.T, _ netip.AddrPort, pairs []netns.Pair) {
			for _, p := range pairs {
				p.CloseServerFirst(t)
			}
		}, map[string]float64{"time_wait": n}},
		{"restart_without_SO_REUSEADDR", loopback4, loopback4, func(t *testing.T, at netip.AddrPort, pairs []netns.Pair) {
			for _, p := range pairs {
				p.CloseServerFirst(t)
			}
			if err := netns.NewSocket(t, unix.AF_INET).TryBind(at); !errors.Is(err, unix.EADDRINUSE) {
				t.Fatalf("bind: %v", err)
			}
		}, map[string]float64{"time_wait": n}},
		{"moves_to_another_port", loopback4, loopback4, func(t *testing.T, at netip.AddrPort, pairs []netns.Pair) {
			netns.Serve(t, at.Addr(), at.Port()+1)
			pairs[0].CloseServerFirst(t)
		}, map[string]float64{"established": n - 1, "time_wait": 1}},
		{"moves_to_another_stack", loopback4, loopback4, func(t *testing.T, at netip.AddrPort, pairs []netns.Pair) {
			netns.Serve(t, any6, at.Port())
		}, map[string]float64{"established": n}},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				server := netns.Serve(t, v.at, port)
				server.Family = netns.FamilyOf(v.to)
				server.At = netip.AddrPortFrom(v.to, port)
				pairs := server.MustConnect(t, n)
				es := startExporters(t)
				f := func(states map[string]float64) {
					t.Helper()
					for _, p := range es.scrape(t) {
						p.want(t, min(1, n-states["time_wait"]), "tcp_destinations") // clients of those have gone
						for state, rows := range states {
							p.want(t, rows, "tcp_connections", "direction", "inbound", "state", state)
							p.want(t, rows, "tcp_listener_connections", "local_port", fmt.Sprint(port), "state", state)
							p.want(t, rows, "tcp_remote_connections", "direction", "inbound", "state", state)
						}
					}
				}
				f(map[string]float64{"established": n})
				server.Listener.Close(t)
				f(map[string]float64{"established": n})
				v.deploy(t, netip.AddrPortFrom(v.at, port), pairs)
				f(v.states)
				f(v.states) // by what is remembered of a listener that the last scrape did not see
				again := startExporter(t).scrape(t)
				if again.sum("tcp_listener_sockets", "local_port", fmt.Sprint(port)) == 0 && again.sum("tcp_destinations") < n {
					t.Error("an exporter that has just begun knows of a listener that is gone")
				}
			})
		})
	}
}

// TestFormerPort has connections of clients on the port of a listener that is gone.
func TestFormerPort(t *testing.T) {
	for _, v := range []struct {
		name     string
		scenario func(t *testing.T)
	}{
		{"another_local_IP", func(t *testing.T) { // which the listener was not for
			server, other := netns.Serve(t, loopback4, 8080), netns.Serve(t, loopback4, 9000)
			server.MustConnect(t, 3)
			from := netip.MustParseAddr("127.0.0.9")
			other.MustConnectFrom(t, from, 8080, 1)
			es := startExporters(t)
			f := func() {
				t.Helper()
				for _, p := range es.scrape(t) {
					p.want(t, 3, "tcp_listener_connections", "local_port", "8080", "state", "established")
					p.want(t, 1+3, "tcp_connections", "direction", "outbound", "state", "established")
				}
			}
			f()
			server.Listener.Close(t)
			f()
			f()
		}},
		{"after_TIME_WAITs_alone", func(t *testing.T) {
			server, other := netns.Serve(t, loopback4, 8080), netns.Serve(t, loopback4, 9000)
			pairs := server.MustConnect(t, 3)
			es := startExporters(t)
			es.scrape(t)
			server.Listener.Close(t)
			for _, p := range pairs {
				p.CloseServerFirst(t)
			}
			es.scrape(t)
			client := netns.NewSocket(t, unix.AF_INET)
			client.Set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			client.Bind(t, netip.AddrPortFrom(loopback4, 8080))
			if _, err := other.Join(t, client); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for _, p := range es.scrape(t) {
					p.want(t, 3, "tcp_listener_connections", "local_port", "8080", "state", "time_wait")
					p.want(t, 1, "tcp_connections", "direction", "outbound", "state", "established")
				}
			}
		}},
		{"once_nothing_was_left", func(t *testing.T) {
			server, other := netns.Serve(t, loopback4, 8080), netns.Serve(t, loopback4, 9000)
			pairs := server.MustConnect(t, 3)
			es := startExporters(t)
			es.scrape(t)
			server.Listener.Close(t)
			for _, p := range pairs {
				p.CloseClientFirst(t)
			}
			es.scrape(t)
			other.MustConnectFrom(t, loopback4, 8080, 1)
			for _, p := range es.scrape(t) {
				p.want(t, 1, "tcp_connections", "direction", "outbound", "state", "established")
				p.want(t, 1, "tcp_connections", "direction", "inbound", "state", "established")
			}
		}},
		{"in_the_pool", func(t *testing.T) { // connect() gets it for no destination
			setPorts(t, 40000, 40019, "")
			inside, closes, other := netns.Serve(t, loopback4, 40004), netns.Serve(t, loopback4, 40005), netns.Serve(t, loopback4, 9000)
			inside.MustConnectFrom(t, loopback4, 20000, 3)
			pairs := closes.MustConnectFrom(t, loopback4, 20100, 3)
			es := startExporters(t)
			es.scrape(t)
			inside.Listener.Close(t)
			closes.Listener.Close(t)
			for _, p := range pairs {
				p.CloseServerFirst(t)
			}
			wantCalls(t, exhaustService(t, es, other), 18)
			for _, p := range es.scrape(t) {
				p.want(t, 3+18, "tcp_connections", "direction", "inbound", "state", "established")
				p.want(t, 3, "tcp_connections", "direction", "inbound", "state", "time_wait")
			}
		}},
		{"in_the_pool_and_gone", func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			inside, other := netns.Serve(t, loopback4, 40004), netns.Serve(t, loopback4, 9000)
			pairs := inside.MustConnectFrom(t, loopback4, 20000, 3)
			es := startExporters(t)
			es.scrape(t)
			inside.Listener.Close(t)
			for _, p := range pairs {
				p.CloseClientFirst(t)
			}
			wantCalls(t, exhaustService(t, es, other), 20)
		}},
	} {
		t.Run(v.name, func(t *testing.T) { netns.Run(t, v.scenario) })
	}
}
