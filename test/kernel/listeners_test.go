package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// queueOf are the labels of a listener's queue.
func queueOf(at netip.AddrPort) []string {
	return []string{"local_ip", at.Addr().String(), "local_port", fmt.Sprint(at.Port())}
}

// listenShared makes n listeners of one address, each with a queue of its own.
func listenShared(t *testing.T, at netip.AddrPort, backlog, n int) []socket {
	t.Helper()
	var shared []socket
	for range n {
		s := newSocket(t, familyOf(at.Addr()))
		s.set(t, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		s.bind(t, at)
		if err := unix.Listen(s.fd, backlog); err != nil {
			t.Fatal(os.NewSyscallError("listen", err))
		}
		if err := unix.SetNonblock(s.fd, true); err != nil {
			t.Fatal(err)
		}
		shared = append(shared, s)
	}
	return shared
}

// drain accepts all that waits on listeners that don't block.
func drain(t *testing.T, listeners []socket) {
	t.Helper()
	for _, l := range listeners {
		for {
			_, err := l.tryAccept()
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				t.Fatal(os.NewSyscallError("accept4", err))
			}
		}
	}
}

// TestOneOfManyHangs has eight listeners on a port, of which one accepts nothing:
// its share of the clients is dropped when the fill is 1, and only then, though
// the other queues have room.
func TestOneOfManyHangs(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		bothSources(t)
		const sockets, backlog = 8, 3
		for port, ip := range map[uint16]netip.Addr{8000: loopback4, 8001: loopback6, 8002: netip.IPv6Unspecified()} {
			at, to := netip.AddrPortFrom(ip, port), netip.AddrPortFrom(ip, port)
			if ip.IsUnspecified() {
				to = netip.AddrPortFrom(loopback4, port)
			}
			listeners := listenShared(t, at, backlog, sockets)
			es := startExporters(t)
			queue := queueOf(at)
			dropped := func() float64 { t.Helper(); return es[0].scrape(t).value(t, "tcp_listen_overflows_total") }
			before, refused := dropped(), 0
			for range 300 {
				var length, fill float64
				for i, p := range es.scrape(t) {
					p.want(t, sockets, "tcp_listener_sockets", queue...)
					p.want(t, sockets*backlog, "tcp_listener_accept_queue_limit", queue...)
					length, fill = p.value(t, "tcp_listener_accept_queue", queue...), p.value(t, "tcp_listener_accept_queue_fill_ratio", queue...)
					if fill != length/(backlog+1) { // nothing waits on the others
						t.Fatalf("%s, source %d: the fullest queue is at %v with %v waiting on one socket", at, i, fill, length)
					}
					full := 0.
					if fill == 1 {
						full = 1
					}
					p.want(t, full, "tcp_listener_full_sockets", queue...)
				}
				client := newSocket(t, familyOf(to.Addr()))
				client.start(t, to)
				now := dropped()
				if now > before && fill < 1 {
					t.Fatalf("%s: a connection was dropped with %v of %v waiting", at, length, backlog)
				}
				if now > before {
					refused++
					client.close(t) // or it tries again and is counted again
				}
				if before = now; refused == 3 {
					break
				}
				drain(t, listeners[1:])
			}
			if refused < 3 {
				t.Errorf("%s: %d connections were dropped, the hanging socket never was full", at, refused)
			}
		}
	})
}

// TestListenAgain calls listen(2) with less than what waits already: a ratio all the same.
func TestListenAgain(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		bothSources(t)
		at := netip.AddrPortFrom(loopback4, 8000)
		listener := listen(t, at, 50)
		for range 30 {
			newSocket(t, unix.AF_INET).start(t, at)
		}
		es := startExporters(t)
		for _, p := range es.scrape(t) {
			p.want(t, 30./51, "tcp_listener_accept_queue_fill_ratio", queueOf(at)...)
			p.want(t, 0, "tcp_listener_full_sockets", queueOf(at)...)
		}
		if err := unix.Listen(listener.fd, 3); err != nil {
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
	inNamespace(t, func(t *testing.T) {
		const locals, named = 25, 20
		many := netip.AddrPortFrom(loopback4, 8000)
		ip := many.Addr()
		var last socket
		for range locals { // 127.0.0.1 and on
			last = listen(t, netip.AddrPortFrom(ip, many.Port()), 7)
			ip = ip.Next()
		}
		busy, quiet, tied := serve(t, loopback4, 8001), serve(t, loopback4, 8002), serve(t, loopback4, 8003)
		busy.mustConnect(t, 5)
		quiet.mustConnect(t, 1)
		tied.mustConnect(t, 1)
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
				p.want(t, 1, "tcp_listener_sockets", queueOf(busy.at)...)
				p.want(t, 0, "tcp_listener_accept_queue", queueOf(busy.at)...)
				p.want(t, 1, "tcp_listener_sockets", queueOf(quiet.at)...) // ties are broken by port
				p.want(t, 0, "tcp_listener_sockets", queueOf(tied.at)...)
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
		service{at: many, family: unix.AF_INET}.fill(t, 2) // of 127.0.0.1, for a place among the three
		f(0)
		to := last.local(t)
		service{at: to, family: unix.AF_INET}.fill(t, 3)
		f(3)
		for range 3 {
			last.accept(t).close(t)
		}
		f(0)
	})
}

// fill lets n connections wait for accept(2).
func (s service) fill(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := newSocket(t, s.family).tryConnect(s.at); err != nil {
			t.Fatalf("connect %s: %v", s.at, err)
		}
	}
}

// TestUnacceptedCloseWait has a server that stops accepting while its clients give up:
// no program holds their connections, until it accepts again and does not close.
func TestUnacceptedCloseWait(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		for port, ip := range map[uint16]netip.Addr{8080: loopback4, 8081: loopback6} {
			s := serve(t, ip, port)
			s.mustConnect(t, 30)
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
					p.want(t, unaccepted+1, "tcp_listener_accept_queue", queueOf(s.at)...)
				}
			}
			s.fill(t, 1) // one that waits patiently
			f(0, 0)
			for range 100 {
				c := newSocket(t, s.family)
				if err := c.tryConnect(s.at); err != nil {
					t.Fatal(err)
				}
				c.write(t, []byte("GET /"))
				c.close(t)
			}
			f(0, 100)
			s.listener.accept(t) // the patient one, and one more in its place
			s.fill(t, 1)
			for range 40 {
				s.listener.accept(t)
			}
			f(40, 60)
		}
	})
}

// TestHalfOpen tells clients that have finished their handshake, and find the accept
// queue full, from those that never do: both are SYN_RECV, but the queue of one is
// full and of the other empty.
func TestHalfOpen(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		w := newWire(t)
		const backlog, late = 10, 8
		slow, flooded := netip.AddrPortFrom(wireNear4.Addr(), 8443), netip.AddrPortFrom(wireNear4.Addr(), 8444)
		listener := listen(t, slow, backlog)
		listen(t, flooded, backlog)
		far := netip.MustParseAddrPort("10.9.0.2:1000")
		call := func(near netip.AddrPort) *farEnd {
			far = netip.AddrPortFrom(far.Addr(), far.Port()+1)
			return w.call(t, far, near)
		}
		var finished []*farEnd
		for range late {
			finished = append(finished, call(slow))
		}
		for range backlog + 1 {
			call(slow).confirm(t)
		}
		for range backlog {
			call(flooded)
		}
		es := startExporters(t)
		f := func(halfOpen, waiting, overflows float64) {
			t.Helper()
			eventually(t, func() bool {
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
			c.confirm(t)
		}
		f(late, backlog+1, late)
		for range backlog + 1 {
			listener.accept(t)
		}
		for _, c := range finished {
			c.confirm(t)
		}
		f(0, late, late)
	})
}
