package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.IPv6Loopback()
	// The same host under addresses that the kernel does not take for loopback.
	host4 = netip.MustParseAddr("10.5.0.1")
	host6 = netip.MustParseAddr("fd00:5::1")
)

// setPorts makes low to high, less reserved, the ephemeral ports.
func setPorts(t *testing.T, low, high int, reserved string) {
	t.Helper()
	netns.SetSysctl(t, "net/ipv4/ip_local_port_range", fmt.Sprintf("%d %d", low, high))
	netns.SetSysctl(t, "net/ipv4/ip_local_reserved_ports", reserved)
}

// exhaust repeats call until it fails with errno, and holds the gauge of the
// pool to that at every step: it is 1 when, and only when, the next call
// fails. It returns how many calls succeeded. The kernel may leave slack
// ports unused.
func exhaust(t *testing.T, es exporters, pool string, errno error, slack int, call func() error) int {
	t.Helper()
	for n := 0; ; n++ {
		pages := es.scrape(t)
		err := call()
		if err != nil && !errors.Is(err, errno) {
			t.Fatalf("call %d: %v, want %v", n+1, err, errno)
		}
		for _, p := range pages {
			ratio := p.value(t, "tcp_ephemeral_port_utilisation_ratio", "pool", pool)
			if err == nil && !(0 <= ratio && ratio < 1) {
				t.Fatalf("after %d calls the %s ratio is %v, but one more succeeds\n%s", n, pool, ratio, describePorts(p))
			}
			lowest := 1.0
			if slack > 0 {
				lowest -= float64(slack) / p.value(t, "tcp_ephemeral_ports")
			}
			if err != nil && !(lowest <= ratio && ratio <= 1) {
				t.Fatalf("after %d calls the next fails, but the %s ratio is %v, want %v to 1\n%s", n, pool, ratio, lowest, describePorts(p))
			}
		}
		if err != nil {
			return n
		}
		if n > 1000 {
			t.Fatalf("%d calls and no failure", n)
		}
	}
}

// exhaustService connects until there are no ports left.
func exhaustService(t *testing.T, es exporters, s netns.Service) int {
	t.Helper()
	return exhaust(t, es, "connect", unix.EADDRNOTAVAIL, 0, func() error {
		_, err := s.Connect(t)
		return err
	})
}

// describePorts is what the page says of ports, for the log of a failure.
func describePorts(p page) string {
	var text string
	for _, name := range []string{
		"tcp_ephemeral_ports", "tcp_ephemeral_ports_used", "tcp_ephemeral_port_utilisation_ratio", "tcp_destination_ports_used",
		"tcp_destination_port_utilisation_ratio", "tcp_local_ports_used", "tcp_local_port_utilisation_ratio", "tcp_connections",
		"timewait_exporter_source_info",
	} {
		for _, m := range p.series(name) {
			if number(m) != 0 {
				text += fmt.Sprintf("%s %v %v\n", name, m.GetLabel(), number(m))
			}
		}
	}
	return text
}

func wantCalls(t *testing.T, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%d calls succeeded, want %d", got, want)
	}
}

// destination is the labels of a triple.
func destination(local netip.Addr, remote netip.AddrPort) []string {
	return []string{"local_ip", local.String(), "remote_ip", remote.Addr().String(), "remote_port", fmt.Sprint(remote.Port())}
}

// alone has the ports from 40000 to high, less reserved ones and those of listeners, for
// one destination, which can have so many of them.
func alone(ip netip.Addr, high int, reserved string, want int, listeners ...string) func(t *testing.T) {
	return func(t *testing.T) {
		setPorts(t, 40000, high, reserved)
		for _, at := range listeners {
			netns.Listen(t, netip.MustParseAddrPort(at), 1)
		}
		s := netns.Serve(t, ip, 9000)
		es := startExporters(t)
		wantCalls(t, exhaustService(t, es, s), want)
		for _, p := range es.scrape(t) {
			p.want(t, float64(want+len(listeners)), "tcp_ephemeral_ports")
			if want > 0 {
				p.want(t, 1, "tcp_destination_port_utilisation_ratio", destination(ip, s.At)...)
			}
		}
	}
}

// serverSide has connections to a port in TIME_WAIT on the side of the server, which take
// so many ports of the pool.
func serverSide(port uint16, taken int) func(t *testing.T) {
	return func(t *testing.T) {
		setPorts(t, 40000, 40009, "")
		for _, p := range netns.Serve(t, loopback4, port).MustConnectFrom(t, loopback4, 20000, 30) {
			p.CloseServerFirst(t)
		}
		es := startExporters(t)
		for _, p := range es.scrape(t) {
			p.want(t, 30, "tcp_connections", "direction", "inbound", "state", "time_wait")
			p.want(t, float64(taken), "tcp_ephemeral_ports_used")
			p.want(t, float64(taken)/10, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
		}
		wantCalls(t, exhaustService(t, es, netns.Serve(t, loopback4, 9001)), 10-taken)
	}
}

// TestConnectExhaustion asks the kernel at every step: does connect() fail
// when the gauge is 1, and only then?
func TestConnectExhaustion(t *testing.T) {
	for _, v := range []struct {
		name     string
		scenario func(t *testing.T)
	}{
		{"one_destination", func(t *testing.T) {
			setPorts(t, 40000, 40039, "")
			first, second := netns.Serve(t, loopback4, 9000), netns.Serve(t, loopback4, 9001)
			es := startExporters(t)
			wantCalls(t, exhaustService(t, es, first), 40)
			second.MustConnect(t, 10)

			for _, p := range es.scrape(t) {
				p.want(t, 40, "tcp_destination_ports_used", append(destination(loopback4, first.At), "state", "established")...)
				p.want(t, 1, "tcp_destination_port_utilisation_ratio", destination(loopback4, first.At)...)
				p.want(t, 0.25, "tcp_destination_port_utilisation_ratio", destination(loopback4, second.At)...)
				p.want(t, 40, "tcp_ephemeral_ports_used")
				p.want(t, 2, "tcp_destinations")
			}
		}},
		{"IPv6", alone(loopback6, 40019, "", 20)},
		{"reserved_ports", alone(loopback4, 40019, "80,40003,40010-40014,50000-50100", 14)},
		{"every_port_reserved", alone(loopback4, 40001, "40000-40001", 0)},
		{"one_port", alone(loopback4, 40000, "", 1)},
		{"listeners_inside", alone(loopback4, 40019, "", 17, "127.0.0.77:40005", "[::1]:40006", "0.0.0.0:40007")},
		{"listeners_on_every_port", alone(loopback4, 40001, "", 0, "127.0.0.1:40000", "127.0.0.1:40001")},
		{"another_local_IP", func(t *testing.T) {
			setPorts(t, 40000, 40009, "")
			s := netns.Serve(t, loopback4, 9000)
			es := startExporters(t)
			wantCalls(t, exhaustService(t, es, s), 10)
			other := s
			other.From = netip.MustParseAddr("127.0.0.2")
			other.MustConnect(t, 5)
			for _, p := range es.scrape(t) {
				p.want(t, 0.5, "tcp_destination_port_utilisation_ratio", destination(other.From, s.At)...)
				p.want(t, 1, "tcp_destination_port_utilisation_ratio", destination(loopback4, s.At)...)
			}
		}},
		{"odd_range", func(t *testing.T) {
			// The kernel's search rounds the size of the range down to an even
			// number (__inet_hash_connect), so it may miss one port.
			setPorts(t, 40000, 40020, "")
			s := netns.Serve(t, loopback4, 9000)
			n := exhaust(t, startExporters(t), "connect", unix.EADDRNOTAVAIL, 1, func() error {
				_, err := s.Connect(t)
				return err
			})
			if n != 20 && n != 21 {
				t.Errorf("%d calls succeeded, want 20 or 21", n)
			}
		}},
		{"SYN_SENT", func(t *testing.T) {
			netns.NewWire(t) // nobody answers
			setPorts(t, 40000, 40009, "")
			n := exhaust(t, startExporters(t), "connect", unix.EADDRNOTAVAIL, 0, func() error {
				return netns.NewSocket(t, unix.AF_INET).TryStart(netip.MustParseAddrPort("10.9.0.2:9000"))
			})
			wantCalls(t, n, 10)
		}},
		{"dual_stack_clients", func(t *testing.T) {
			// AF_INET6 sockets connecting to ::ffff:127.0.0.1 take from the same ports.
			setPorts(t, 40000, 40019, "")
			s := netns.Serve(t, loopback4, 9000)
			n := exhaust(t, startExporters(t), "connect", unix.EADDRNOTAVAIL, 0, func() error {
				s.Family ^= unix.AF_INET ^ unix.AF_INET6
				_, err := s.Connect(t)
				return err
			})
			wantCalls(t, n, 20)
		}},
		{"dual_stack_server", func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			s := netns.Serve(t, netip.IPv6Unspecified(), 9000)
			s.At, s.Family = netip.MustParseAddrPort("127.0.0.1:9000"), unix.AF_INET
			es := startExporters(t)
			wantCalls(t, exhaustService(t, es, s), 20)
			for _, p := range es.scrape(t) {
				p.want(t, 20, "tcp_connections", "family", "ipv4", "direction", "inbound", "state", "established")
				p.want(t, 20, "tcp_connections", "family", "ipv4", "direction", "outbound", "state", "established")
			}
		}},
		{"server_side_TIME_WAIT", serverSide(9000, 0)},
		{"server_side_TIME_WAIT_inside", serverSide(40005, 1)},
		{"every_closing_state", func(t *testing.T) {
			// None of them gives its port back before TIME_WAIT is over.
			setPorts(t, 40000, 40019, "")
			w := netns.NewWire(t)
			far := netip.AddrPortFrom(stacks[0].server, 443)
			for _, k := range kinds {
				so := netns.NewSocket(t, unix.AF_INET)
				so.Start(t, far)
				k.reach(t, so, w.Answer(t, so.Local(t), far))
			}
			n := exhaust(t, startExporters(t), "connect", unix.EADDRNOTAVAIL, 0, func() error {
				return netns.NewSocket(t, unix.AF_INET).TryStart(far)
			})
			wantCalls(t, n, 20-len(kinds))
		}},
		{"bound_clients", func(t *testing.T) {
			// A port taken by bind() before connect() is lost to every other
			// destination too, which the table does not show: the ratio is a lower
			// bound then, and the ports used are the upper one.
			setPorts(t, 40000, 40009, "")
			first, second := netns.Serve(t, loopback4, 9000), netns.Serve(t, loopback4, 9001)
			for range 5 {
				client := netns.NewSocket(t, unix.AF_INET)
				client.Bind(t, netip.AddrPortFrom(loopback4, 0))
				if _, err := first.Join(t, client); err != nil {
					t.Fatalf("connect %s: %v", first.At, err)
				}
			}
			second.MustConnect(t, 5)
			if _, err := second.Connect(t); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("connect: %v, want EADDRNOTAVAIL", err)
			}
			for _, p := range startExporters(t).scrape(t) {
				p.want(t, 0.5, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
				p.want(t, 10, "tcp_ephemeral_ports_used")
				p.want(t, 10, "tcp_ephemeral_ports")
			}
		}},
		{"bound_clients_of_many_destinations", func(t *testing.T) {
			// Nobody can connect to anything, and no destination has more than one port.
			setPorts(t, 40000, 40009, "")
			for port := range uint16(10) {
				client := netns.NewSocket(t, unix.AF_INET)
				client.Bind(t, netip.AddrPortFrom(loopback4, 0))
				if _, err := netns.Serve(t, loopback4, 9000+port).Join(t, client); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range []netns.Service{netns.Serve(t, loopback4, 9100), netns.Serve(t, loopback6, 9100), netns.Serve(t, netip.MustParseAddr("127.0.0.2"), 9100)} {
				if _, err := s.Connect(t); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Errorf("connect %s: %v, want EADDRNOTAVAIL", s.At, err)
				}
			}
			for _, p := range startExporters(t).scrape(t) {
				p.want(t, 0.1, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
				p.want(t, 1, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind_any")
			}
		}},
	} {
		t.Run(v.name, func(t *testing.T) { netns.Run(t, v.scenario) })
	}
}

// exhaustBind binds to the service's address, and connects, until there are no ports left.
func exhaustBind(t *testing.T, es exporters, s netns.Service) int {
	t.Helper()
	return exhaust(t, es, "bind", unix.EADDRINUSE, 0, func() error {
		client := netns.NewSocket(t, s.Family)
		if err := client.TryBind(netip.AddrPortFrom(s.At.Addr(), 0)); err != nil {
			return err
		}
		_, err := s.Join(t, client)
		return err
	})
}

// v6Only listens on all IPv6 addresses and no IPv4 one.
func v6Only(t *testing.T, port uint16) {
	t.Helper()
	s := netns.NewSocket(t, unix.AF_INET6)
	s.Set(t, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	s.Bind(t, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err := unix.Listen(s.FD, 1); err != nil {
		t.Fatal(os.NewSyscallError("listen", err))
	}
}

// v6OnlyListeners takes six ports of the pool from all but IPv4 addresses.
func v6OnlyListeners(t *testing.T, _ netns.Service) {
	bothSources(t) // /proc alone does not tell them from dual-stack ones
	for port := uint16(40000); port < 40006; port++ {
		v6Only(t, port)
	}
	for _, p := range startExporters(t).scrape(t) {
		for _, pool := range []string{"connect", "bind", "bind_any"} {
			p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", pool)
		}
	}
}

// TestBindExhaustion does the same for bind(ip, 0), which wants a port that
// nobody uses on that address, whatever the destination.
func TestBindExhaustion(t *testing.T) {
	for _, v := range []struct {
		name    string
		ip      netip.Addr
		want    int
		prepare func(t *testing.T, s netns.Service)
	}{
		{"empty", host4, 10, func(*testing.T, netns.Service) {}},
		{"loopback", loopback4, 10, func(*testing.T, netns.Service) {}},
		{"IPv6", host6, 10, func(*testing.T, netns.Service) {}},
		{"wildcard_listener", host4, 9, func(t *testing.T, _ netns.Service) {
			netns.Listen(t, netip.MustParseAddrPort("0.0.0.0:40004"), 1)
		}},
		{"dual_stack_listener", host4, 9, func(t *testing.T, _ netns.Service) {
			netns.Listen(t, netip.MustParseAddrPort("[::]:40004"), 1)
		}},
		{"wildcard_listener_of_IPv6", host6, 9, func(t *testing.T, _ netns.Service) {
			netns.Listen(t, netip.MustParseAddrPort("[::]:40004"), 1)
		}},
		{"wildcard_listeners_on_every_port", host4, 0, func(t *testing.T, _ netns.Service) {
			for port := uint16(40000); port < 40010; port++ {
				netns.Listen(t, netip.AddrPortFrom(netip.IPv4Unspecified(), port), 1)
			}
		}},
		{"listener_on_another_IP", host4, 10, func(t *testing.T, _ netns.Service) {
			netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:40004"), 1)
		}},
		{"IPv6-only_listeners", host4, 10, v6OnlyListeners},
		{"IPv6-only_listeners_and_IPv6", host6, 4, v6OnlyListeners},
		{"connected_before", host4, 6, func(t *testing.T, s netns.Service) {
			s.MustConnect(t, 4)
		}},
		{"connected_from_another_IP", host4, 10, func(t *testing.T, s netns.Service) {
			s.From = loopback4
			s.MustConnect(t, 4)
		}},
		{"TIME_WAIT", host4, 6, func(t *testing.T, s netns.Service) {
			// tcp_tw_reuse does not help bind().
			netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "1")
			for _, p := range s.MustConnect(t, 4) {
				p.CloseClientFirst(t)
			}
			time.Sleep(1500 * time.Millisecond) // tcp_tw_reuse_delay, and what the kernel's clocks may differ by
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				netns.AddLoopbackAddresses(t, host4, host6)
				setPorts(t, 40000, 40009, "")
				s := netns.Serve(t, v.ip, 9000)
				v.prepare(t, s)
				es := startExporters(t)
				wantCalls(t, exhaustBind(t, es, s), v.want)
				if v.want == 0 {
					return // no socket has the address, and it is lost to all others too
				}
				for _, p := range es.scrape(t) {
					p.want(t, 10, "tcp_local_ports_used", "local_ip", v.ip.String())
					p.want(t, 1, "tcp_local_port_utilisation_ratio", "local_ip", v.ip.String())
				}
				other := netip.MustParseAddr("127.0.0.9")
				netns.NewSocket(t, unix.AF_INET).Bind(t, netip.AddrPortFrom(other, 0))
			})
		})
	}
}

// TestBindAnyExhaustion does it for bind(::, 0), which wants a port that nobody
// uses on any address of either family.
func TestBindAnyExhaustion(t *testing.T) {
	for _, v := range []struct {
		name    string
		want    int
		prepare func(t *testing.T)
	}{
		{"empty", 10, func(*testing.T) {}},
		{"half_the_pool_on_each_of_two_IPs", 0, func(t *testing.T) {
			for i, ip := range []string{"127.0.0.1", "127.0.0.2"} {
				s := netns.Serve(t, netip.MustParseAddr(ip), 9000)
				s.MustConnectFrom(t, s.At.Addr(), uint16(40000+5*i), 5)
			}
			for _, p := range startExporters(t).scrape(t) {
				p.want(t, 0.5, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
			}
		}},
		{"connected_from_one_IP", 6, func(t *testing.T) { netns.Serve(t, loopback4, 9000).MustConnect(t, 4) }},
		{"connected_over_IPv6", 6, func(t *testing.T) { netns.Serve(t, loopback6, 9000).MustConnect(t, 4) }},
		{"listeners", 7, func(t *testing.T) {
			netns.Listen(t, netip.MustParseAddrPort("127.0.0.77:40000"), 1)
			netns.Listen(t, netip.MustParseAddrPort("[::1]:40001"), 1)
			v6Only(t, 40002)
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				setPorts(t, 40000, 40009, "")
				v.prepare(t)
				n := exhaust(t, startExporters(t), "bind_any", unix.EADDRINUSE, 0, func() error {
					// As a server does that listens on any free port.
					s := netns.NewSocket(t, unix.AF_INET6)
					if err := s.TryBind(netip.AddrPortFrom(netip.IPv6Unspecified(), 0)); err != nil {
						return err
					}
					return unix.Listen(s.FD, 1)
				})
				wantCalls(t, n, v.want)
				if err := unix.Listen(netns.NewSocket(t, unix.AF_INET6).FD, 1); v.want == 0 && !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("listen() without bind(): %v, want EADDRINUSE", err)
				}
			})
		})
	}
}

// olderThan compares the running kernel's version.
func olderThan(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(os.NewSyscallError("uname", err))
	}
	var m, n int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &m, &n); err != nil {
		t.Fatal(err)
	}
	return m < major || m == major && n < minor
}

// TestTimeWaitReuse fills the range with TIME_WAITs and asks the kernel which
// of them connect() takes over.
func TestTimeWaitReuse(t *testing.T) {
	const (
		mode       = "net/ipv4/tcp_tw_reuse"
		delay      = "net/ipv4/tcp_tw_reuse_delay" // milliseconds, since Linux 6.14
		timestamps = "net/ipv4/tcp_timestamps"
	)
	const pastDelay = 1500 * time.Millisecond // of the default, 1 s
	type sysctls map[string]string
	for _, v := range []struct {
		name    string
		sysctls sysctls
		from    netip.Addr
		to      netip.Addr
		family  int
		age     time.Duration
		want    int
	}{
		{"0_old", sysctls{mode: "0"}, loopback4, loopback4, unix.AF_INET, pastDelay, 0},
		{"1_young", sysctls{mode: "1", delay: "30000"}, loopback4, loopback4, unix.AF_INET, 0, 0},
		{"1_old", sysctls{mode: "1"}, loopback4, loopback4, unix.AF_INET, pastDelay, 10},
		{"1_old_off_loopback", sysctls{mode: "1"}, host4, host4, unix.AF_INET, pastDelay, 10},
		{"1_old_IPv6", sysctls{mode: "1"}, host6, host6, unix.AF_INET6, pastDelay, 10},
		{"1_old_FIN_WAIT2", sysctls{mode: "1"}, loopback4, loopback4, unix.AF_INET, pastDelay, 0},
		{"1_no_timestamps", sysctls{mode: "1", timestamps: "0"}, loopback4, loopback4, unix.AF_INET, pastDelay, 0},
		{"1_short_delay", sysctls{mode: "1", delay: "100"}, host4, host4, unix.AF_INET, 500 * time.Millisecond, 10},
		{"1_long_delay", sysctls{mode: "1", delay: "30000"}, host4, host4, unix.AF_INET, pastDelay, 0},
		{"2_young", sysctls{mode: "2", delay: "30000"}, loopback4, loopback4, unix.AF_INET, 0, 0},
		{"2_old", sysctls{mode: "2"}, loopback4, loopback4, unix.AF_INET, pastDelay, 10},
		{"2_old_off_loopback", sysctls{mode: "2"}, host4, host4, unix.AF_INET, pastDelay, 0},
		{"2_old_from_loopback", sysctls{mode: "2"}, loopback4, host4, unix.AF_INET, pastDelay, 10},
		{"2_old_to_loopback", sysctls{mode: "2"}, host4, loopback4, unix.AF_INET, pastDelay, 10},
		{"2_old_IPv6", sysctls{mode: "2"}, loopback6, loopback6, unix.AF_INET6, pastDelay, 10},
		{"2_old_IPv6_off_loopback", sysctls{mode: "2"}, host6, host6, unix.AF_INET6, pastDelay, 0},
		{"2_old_dual_stack", sysctls{mode: "2"}, loopback4, loopback4, unix.AF_INET6, pastDelay, 10},
		{"2_old_dual_stack_off_loopback", sysctls{mode: "2"}, host4, host4, unix.AF_INET6, pastDelay, 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				netns.AddLoopbackAddresses(t, host4, host6)
				setPorts(t, 40000, 40009, "")
				for name, value := range v.sysctls {
					netns.SetSysctl(t, name, value)
				}
				s := netns.Serve(t, v.to, 9000)
				s.From, s.Family = v.from, v.family
				state := "time_wait"
				for _, p := range s.MustConnect(t, 10) {
					if v.name == "1_old_FIN_WAIT2" {
						state = "fin_wait2"
						p.Client.Close(t)
						p.Server.AwaitEOF(t)
					} else {
						p.CloseClientFirst(t)
					}
				}
				time.Sleep(v.age)
				es := startExporters(t)
				for _, p := range es.scrape(t) {
					p.want(t, 10, "tcp_connections", "direction", "outbound", "state", state)
				}
				wantCalls(t, exhaustService(t, es, s), v.want)
				for _, p := range es.scrape(t) {
					p.want(t, float64(v.want), "tcp_time_wait_reused_total")
				}
			})
		})
	}

	t.Run("old_and_young", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			setPorts(t, 40000, 40009, "")
			netns.SetSysctl(t, mode, "1")
			netns.SetSysctl(t, delay, "3000")
			s := netns.Serve(t, loopback4, 9000)
			pairs := s.MustConnect(t, 10)
			for _, p := range pairs[:4] {
				p.CloseClientFirst(t)
			}
			time.Sleep(3500 * time.Millisecond)
			for _, p := range pairs[4:] {
				p.CloseClientFirst(t)
			}
			es := startExporters(t)
			for _, p := range es.scrape(t) {
				p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
			}
			wantCalls(t, exhaustService(t, es, s), 4)
		})
	})

	// The far end has no timestamps, so nothing is reused, whatever the sysctl says. No
	// table shows that: the ports are all held, in TIME_WAIT, the ratio takes them for
	// reusable, and the destination is named among those that have more of them gone.
	t.Run("1_old_peer_without_timestamps", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			netns.SetSysctl(t, mode, "1")
			w := netns.NewWire(t)
			setPorts(t, 40000, 40009, "")
			far := netip.AddrPortFrom(stacks[0].server, 443)
			closing := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.state == "time_wait" })]
			for range 10 {
				so := netns.NewSocket(t, unix.AF_INET)
				so.Start(t, far)
				closing.reach(t, so, w.Answer(t, so.Local(t), far))
			}
			for port := range uint16(5) {
				netns.Serve(t, loopback4, 9000+port).MustConnect(t, 3)
			}
			time.Sleep(pastDelay)
			es := startExporters(t, "--collector.destinations=2")
			if err := netns.NewSocket(t, unix.AF_INET).TryStart(far); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("connect %s: %v, want EADDRNOTAVAIL", far, err)
			}
			for _, p := range es.scrape(t) {
				to := destination(netns.WireNear4.Addr(), far)
				p.want(t, 10, "tcp_destination_ports_used", append(to, "state", "time_wait")...)
				p.want(t, 10, "tcp_destination_ports_used", to...)
				if ratio := p.value(t, "tcp_destination_port_utilisation_ratio", to...); ratio != 0 {
					t.Errorf("the ratio is %v", ratio)
				}
				p.want(t, 10, "tcp_ephemeral_ports")
				p.want(t, 1, "tcp_time_wait_reuse_mode")
				p.want(t, 0, "tcp_time_wait_reused_total")
				p.want(t, 0.3, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
			}
		})
	})
}

// TestPrivilegedPorts mounts as NFS does, until there is no port: the ratio is 1 then, and
// only then, while the ephemeral pool is untouched.
func TestPrivilegedPorts(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const low, high = 665, 1023
		server := netns.Serve(t, loopback4, 2049)
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.77:993"), 1)
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:664"), 1)
		mount := func() (err error) {
			client := netns.NewSocket(t, unix.AF_INET)
			for port := uint16(high); port >= low; port-- {
				if err = client.TryBind(netip.AddrPortFrom(netip.IPv4Unspecified(), port)); err == nil {
					pair, err := server.Join(t, client)
					if err == nil {
						pair.CloseClientFirst(t)
					}
					return err
				}
			}
			client.Close(t)
			return err
		}
		es := startExporters(t)
		for held := 1; ; held++ {
			const ports = high - low + 1
			if held%60 == 0 || held > ports-3 {
				for _, p := range es.scrape(t) {
					p.want(t, float64(held)/ports, "tcp_privileged_port_utilisation_ratio")
					p.want(t, 0, "tcp_ephemeral_port_utilisation_ratio") // whatever the pool
				}
			}
			err := mount()
			if (held == ports) != errors.Is(err, unix.EADDRINUSE) || held != ports && err != nil {
				t.Fatalf("with %d of %d ports held: %v", held, ports, err)
			}
			if err != nil {
				return
			}
		}
	})
}
