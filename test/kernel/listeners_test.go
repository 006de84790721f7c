package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// queueOf are the labels of a listener's queue.
func queueOf(at netip.AddrPort) []string {
	return []string{"local_ip", at.Addr().String(), "local_port", fmt.Sprint(at.Port())}
}

// listenShared makes n listeners of one address, each with a queue of its own.
func listenShared(t *testing.T, at netip.AddrPort, backlog, n int) []netns.Socket {
	t.Helper()
	var shared []netns.Socket
	for range n {
		s := netns.NewSocket(t, netns.FamilyOf(at.Addr()))
		s.Set(t, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		s.Bind(t, at)
		if err := unix.Listen(s.FD, backlog); err != nil {
			t.Fatal(os.NewSyscallError("listen", err))
		}
		if err := unix.SetNonblock(s.FD, true); err != nil {
			t.Fatal(err)
		}
		shared = append(shared, s)
	}
	return shared
}

// drain accepts all that waits on listeners that don't block.
func drain(t *testing.T, listeners []netns.Socket) {
	t.Helper()
	for _, l := range listeners {
		for {
			_, err := l.TryAccept()
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				t.Fatal(os.NewSyscallError("accept4", err))
			}
		}
	}
}

// TestFullAcceptQueue has listeners that share a port, of which one accepts nothing, and one
// that is alone. It asks the kernel at every step: a client's connection is dropped when
// the fill is 1, and only then, though the other queues have room. Nothing is full after
// an accept.
func TestFullAcceptQueue(t *testing.T) {
	for _, ip := range []netip.Addr{loopback4, loopback6, netip.IPv6Unspecified()} {
		for _, sockets := range []int{1, 8} {
			t.Run(fmt.Sprintf("%d_on_%s", sockets, ip), func(t *testing.T) {
				netns.Run(t, func(t *testing.T) { fillAcceptQueue(t, ip, sockets) })
			})
		}
	}
}

func fillAcceptQueue(t *testing.T, ip netip.Addr, sockets int) {
	bothSources(t)
	const backlog = 3
	at, to := netip.AddrPortFrom(ip, 8000), netip.AddrPortFrom(ip, 8000)
	if ip.IsUnspecified() {
		to = netip.AddrPortFrom(loopback4, 8000)
	}
	listeners := listenShared(t, at, backlog, sockets)
	es := startExporters(t)
	queue := queueOf(at)
	fullest := func() (length, fill float64) {
		t.Helper()
		for i, p := range es.scrape(t) {
			p.want(t, float64(sockets), "tcp_listener_sockets", queue...)
			p.want(t, float64(sockets*backlog), "tcp_listener_accept_queue_limit", queue...)
			length, fill = p.value(t, "tcp_listener_accept_queue", queue...), p.value(t, "tcp_listener_accept_queue_fill_ratio", queue...)
			if fill != length/(backlog+1) { // nothing waits on the others
				t.Fatalf("source %d: the fullest queue is at %v with %v waiting on one socket", i, fill, length)
			}
			full := 0.
			if fill == 1 {
				full = 1
			}
			p.want(t, full, "tcp_listener_full_sockets", queue...)
		}
		return length, fill
	}
	dropped := func() float64 { return readCounters(t)["TcpExt.ListenOverflows"] }
	before, refused := dropped(), 0
	for n := 0; refused < 3; n++ {
		length, fill := fullest()
		client := netns.NewSocket(t, netns.FamilyOf(to.Addr()))
		client.Start(t, to)
		now := dropped()
		if now > before && fill < 1 || now == before && fill == 1 && sockets == 1 {
			t.Fatalf("%v of %v waiting, and %v connections were dropped", length, backlog, now-before)
		}
		if now > before {
			refused++
			client.Close(t) // or it tries again and is counted again
		}
		if before = now; n == 300 {
			t.Fatalf("%d connections were dropped, the hanging socket never was full", refused)
		}
		drain(t, listeners[1:])
	}
	listeners[0].Accept(t)
	if _, fill := fullest(); fill == 1 {
		t.Error("the queue is full after an accept")
	}
}

// TestAcceptQueueLimit compares limits with what listen(2) was told, with any
// source of the table.
func TestAcceptQueueLimit(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		bothSources(t)
		netns.SetSysctl(t, "net/core/somaxconn", "50")
		es := startExporters(t)
		f := func(at netip.AddrPort, want float64) {
			t.Helper()
			for _, p := range es.scrape(t) {
				p.want(t, want, "tcp_listener_accept_queue_limit", queueOf(at)...)
				p.want(t, 0, "tcp_listener_accept_queue", queueOf(at)...)
			}
		}
		port := uint16(8000)
		for _, ip := range []netip.Addr{loopback4, netip.IPv4Unspecified(), loopback6, netip.IPv6Unspecified()} {
			for backlog, want := range map[int]float64{0: 0, 1: 1, 7: 7, 49: 49, 50: 50, 51: 50, 4096: 50, -1: 50, 1 << 30: 50} {
				port++
				at := netip.AddrPortFrom(ip, port)
				netns.Listen(t, at, backlog)
				f(at, want)
			}
		}

		at := netip.MustParseAddrPort("127.0.0.1:9000")
		listener := netns.Listen(t, at, 4096)
		f(at, 50)
		// The sysctl is for those that call listen() after it was changed.
		netns.SetSysctl(t, "net/core/somaxconn", "100")
		f(at, 50)
		for backlog, want := range map[int]float64{80: 80, 4096: 100, 5: 5} {
			if err := unix.Listen(listener.FD, backlog); err != nil {
				t.Fatal(os.NewSyscallError("listen", err))
			}
			f(at, want)
		}

		// Listeners that share an address are one series.
		at = netip.MustParseAddrPort("[::1]:9001")
		listenShared(t, at, 10, 1)
		listenShared(t, at, 20, 1)
		f(at, 30)

		// No limit without a listener, no listener without a limit.
		listener.Close(t)
		for _, p := range es.scrape(t) {
			if n, m := len(p.series("tcp_listener_accept_queue")), len(p.series("tcp_listener_accept_queue_limit")); n != m || n < 30 {
				t.Errorf("%d listeners with a queue, %d with a limit", n, m)
			}
		}
	})
}

// TestListenAgain calls listen(2) with less than what waits already: a ratio all the same.
func TestListenAgain(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		bothSources(t)
		at := netip.AddrPortFrom(loopback4, 8000)
		listener := netns.Listen(t, at, 50)
		for range 30 {
			netns.NewSocket(t, unix.AF_INET).Start(t, at)
		}
		es := startExporters(t)
		for _, p := range es.scrape(t) {
			p.want(t, 30./51, "tcp_listener_accept_queue_fill_ratio", queueOf(at)...)
			p.want(t, 0, "tcp_listener_full_sockets", queueOf(at)...)
		}
		if err := unix.Listen(listener.FD, 3); err != nil {
			t.Fatal(os.NewSyscallError("listen", err))
		}
		for _, p := range es.scrape(t) {
			p.want(t, 30, "tcp_listener_accept_queue", queueOf(at)...)
			p.want(t, 3, "tcp_listener_accept_queue_limit", queueOf(at)...)
			p.want(t, 1, "tcp_listener_accept_queue_fill_ratio", queueOf(at)...)
			p.want(t, 1, "tcp_listener_full_sockets", queueOf(at)...)
		}
	})
}

// TestNamedListeners has more ports than are named, and a port with more local IPs: a
// queue that fills and empties brings no series and takes none away.
func TestNamedListeners(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const locals, named = 25, 20
		many := netip.AddrPortFrom(loopback4, 8000)
		ip := many.Addr()
		var last netns.Socket
		for range locals { // 127.0.0.1 and on
			last = netns.Listen(t, netip.AddrPortFrom(ip, many.Port()), 7)
			ip = ip.Next()
		}
		busy, quiet, tied := netns.Serve(t, loopback4, 8001), netns.Serve(t, loopback4, 8002), netns.Serve(t, loopback4, 8003)
		busy.MustConnect(t, 5)
		quiet.MustConnect(t, 1)
		tied.MustConnect(t, 1)
		limits := len(sources(t)) > 1
		es := startExporters(t, "--collector.listeners=3")
		series := func(p page) (names []string) {
			for _, name := range []string{
				"tcp_listener_sockets", "tcp_listener_accept_queue", "tcp_listener_accept_queue_limit", "tcp_listener_accept_queue_fill_ratio", "tcp_listener_full_sockets",
			} {
				for _, m := range p.series(name) {
					names = append(names, fmt.Sprint(name, m.GetLabel()))
				}
			}
			return names
		}
		var first []string
		f := func(waiting float64) {
			t.Helper()
			for _, p := range es.scrape(t) {
				p.want(t, 1, "tcp_listener_sockets", queueOf(busy.At)...)
				p.want(t, 0, "tcp_listener_accept_queue", queueOf(busy.At)...)
				p.want(t, 1, "tcp_listener_sockets", queueOf(quiet.At)...) // ties are broken by port
				p.want(t, 0, "tcp_listener_sockets", queueOf(tied.At)...)
				p.want(t, 0, "tcp_listener_connections", "state", "syn_recv", "local_port", "8001")
				p.want(t, 1, "tcp_listener_connections", "state", "established", "local_port", "other")
				p.want(t, 1, "tcp_listener_sockets", queueOf(many)...)
				p.want(t, locals-named, "tcp_listener_sockets", "local_ip", "other", "local_port", "8000")
				p.want(t, waiting, "tcp_listener_accept_queue", "local_ip", "other", "local_port", "8000")
				if limits {
					p.want(t, 7*(locals-named), "tcp_listener_accept_queue_limit", "local_ip", "other", "local_port", "8000")
					p.want(t, waiting/8, "tcp_listener_accept_queue_fill_ratio", "local_ip", "other", "local_port", "8000")
				}
				got := series(p)
				if first == nil {
					first = got
				}
				if fmt.Sprint(got) != fmt.Sprint(first) {
					t.Errorf("the series are\n%q, at first\n%q", got, first)
				}
			}
		}
		netns.Service{At: many, Family: unix.AF_INET}.Fill(t, 2) // of 127.0.0.1, for a place among the three
		f(0)
		to := last.Local(t)
		netns.Service{At: to, Family: unix.AF_INET}.Fill(t, 3)
		f(3)
		for range 3 {
			last.Accept(t).Close(t)
		}
		f(0)
	})
}

// TestUnacceptedCloseWait has a server that stops accepting while its clients give up:
// no program holds their connections, until it accepts again and does not close.
func TestUnacceptedCloseWait(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		for port, ip := range map[uint16]netip.Addr{8080: loopback4, 8081: loopback6} {
			s := netns.Serve(t, ip, port)
			s.MustConnect(t, 30)
			es := startExporters(t)
			at := []string{"local_port", fmt.Sprint(port)}
			family := "ipv4"
			if ip.Is6() {
				family = "ipv6"
			}
			f := func(held, unaccepted float64) {
				t.Helper()
				for _, p := range es.scrape(t) {
					p.want(t, held+unaccepted, "tcp_connections", "family", family, "state", "close_wait", "direction", "inbound")
					p.want(t, unaccepted, "tcp_listener_unaccepted_connections", append(at, "state", "close_wait")...)
					p.want(t, 1, "tcp_listener_unaccepted_connections", append(at, "state", "established")...)
					p.want(t, unaccepted+1, "tcp_listener_accept_queue", queueOf(s.At)...)
				}
			}
			s.Fill(t, 1) // one that waits patiently
			f(0, 0)
			for range 100 {
				c := netns.NewSocket(t, s.Family)
				if err := c.TryConnect(s.At); err != nil {
					t.Fatal(err)
				}
				c.Write(t, []byte("GET /"))
				c.Close(t)
			}
			f(0, 100)
			s.Listener.Accept(t) // the patient one, and one more in its place
			s.Fill(t, 1)
			for range 40 {
				s.Listener.Accept(t)
			}
			f(40, 60)
		}
	})
}

// TestSynQueueFull has clients that never finish their handshake, and asks the kernel at every
// step: a SYN is refused, or answered with a cookie, when the fill is 1 and only then.
func TestSynQueueFull(t *testing.T) {
	near4, near6 := netns.WireNear4.Addr(), netns.WireNear6.Addr()
	for _, v := range []struct {
		name    string
		cookies int
		at, to  netip.Addr
		backlog int
		room    int
		full    string // what the kernel counts at 1
	}{
		{"no_cookies", 0, netip.IPv4Unspecified(), near4, 4096, 13, "ListenDrops"},
		{"no_cookies_IPv6", 0, near6, near6, 4096, 13, "ListenDrops"},
		{"no_cookies_dual_stack", 0, netip.IPv6Unspecified(), near4, 4096, 13, "ListenDrops"},
		{"no_cookies_small_backlog", 0, near4, near4, 10, 11, "TCPReqQFullDrop"},
		{"cookies", 1, netip.IPv4Unspecified(), near4, 20, 21, "TCPReqQFullDoCookies"},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				bothSources(t)
				netns.SetSysctl(t, "net/core/somaxconn", "4096")
				netns.SetSysctl(t, "net/ipv4/tcp_max_syn_backlog", "16")
				netns.SetSysctl(t, "net/ipv4/tcp_syncookies", fmt.Sprint(v.cookies))
				w := netns.NewWire(t)
				listenShared(t, netip.AddrPortFrom(v.at, 8443), v.backlog, 1)
				listenShared(t, netip.AddrPortFrom(loopback4, 8443), 1, 1) // of others
				es := startExporters(t)
				halfOpen := func(remotes ...netip.AddrPort) (n int) {
					for _, l := range readTable(t) {
						if l.state == "syn_recv" && (len(remotes) == 0 || slices.Contains(remotes, l.remote)) {
							n++
						}
					}
					return n
				}
				full := func() float64 { return readCounters(t)["TcpExt."+v.full] }
				for port := range uint16(100) {
					var n int
					var pages []page
					netns.Eventually(t, func() bool { // a queue that is half full drops old ones early
						n = halfOpen()
						pages = es.scrape(t)
						return n == halfOpen()
					}, func() string { return "half-open connections come and go" })
					for _, p := range pages {
						p.want(t, min(1, float64(n)/float64(v.room)), "tcp_listener_syn_queue_fill_ratio", "local_port", "8443")
						p.want(t, float64(v.cookies), "tcp_syn_cookies_mode")
					}
					f := &netns.FarEnd{Wire: w, Near: netip.AddrPortFrom(v.to, 8443), Far: netip.AddrPortFrom(v.to.Next(), 1000+port), Seq: 1000}
					before := full()
					f.Send(t, netns.FlagSYN, nil)
					netns.Eventually(t, func() bool { return halfOpen(f.Far) == 1 || full() > before }, func() string { return "nothing came of a SYN" })
					refused := full() > before
					if refused && n < v.room || halfOpen() > v.room {
						t.Fatalf("%d half open of %d, and %s went from %v to %v", n, v.room, v.full, before, full())
					}
					if refused {
						return
					}
				}
				t.Fatal("the queue never was full")
			})
		})
	}
}

// TestHalfOpen tells clients that have finished their handshake, and find the accept
// queue full, from those that never do: both are SYN_RECV, but the queue of one is
// full and of the other empty.
func TestHalfOpen(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		w := netns.NewWire(t)
		const backlog, late = 10, 8
		slow, flooded := netip.AddrPortFrom(netns.WireNear4.Addr(), 8443), netip.AddrPortFrom(netns.WireNear4.Addr(), 8444)
		listener := netns.Listen(t, slow, backlog)
		netns.Listen(t, flooded, backlog)
		far := netip.MustParseAddrPort("10.9.0.2:1000")
		call := func(near netip.AddrPort) *netns.FarEnd {
			far = netip.AddrPortFrom(far.Addr(), far.Port()+1)
			return w.Call(t, far, near)
		}
		var finished []*netns.FarEnd
		for range late {
			finished = append(finished, call(slow))
		}
		for range backlog + 1 {
			call(slow).Confirm(t)
		}
		for range backlog {
			call(flooded)
		}
		es := startExporters(t)
		f := func(halfOpen, waiting, overflows float64) {
			t.Helper()
			netns.Eventually(t, func() bool {
				p := es[0].scrape(t)
				return p.sum("tcp_listener_accept_queue", queueOf(slow)...) == waiting && p.sum("tcp_listen_overflows_total") >= overflows &&
					p.sum("tcp_listener_connections", "local_port", "8443", "state", "syn_recv") == halfOpen
			}, func() string {
				return fmt.Sprintf("%v half open, %v waiting and %v overflows never were there", halfOpen, waiting, overflows)
			})
			for _, p := range es.scrape(t) {
				p.want(t, halfOpen, "tcp_listener_connections", "local_port", "8443", "state", "syn_recv")
				p.want(t, waiting, "tcp_listener_accept_queue", queueOf(slow)...)
				p.want(t, backlog, "tcp_listener_connections", "local_port", "8444", "state", "syn_recv")
				p.want(t, 0, "tcp_listener_accept_queue", queueOf(flooded)...)
				if len(es) > 1 {
					p.want(t, min(1, waiting/(backlog+1)), "tcp_listener_accept_queue_fill_ratio", queueOf(slow)...)
					p.want(t, 0, "tcp_listener_accept_queue_fill_ratio", queueOf(flooded)...)
				}
			}
		}
		f(late, backlog+1, 0)
		for _, c := range finished { // their last ACK finds no room
			c.Confirm(t)
		}
		f(late, backlog+1, late)
		for range backlog + 1 {
			listener.Accept(t)
		}
		for _, c := range finished {
			c.Confirm(t)
		}
		f(0, late, late)
	})
}
