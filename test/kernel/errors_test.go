package kernel

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestErrors asks the kernel for what docs/runbooks/README.md tells apart: the errors of
// exhausted ports where there are ports. The page says so.
func TestErrors(t *testing.T) {
	const port = 40004 // connect() takes those of the low end's parity first
	at := netip.AddrPortFrom(loopback4, port)
	// bindService is a service's bind(), with the option that every service sets.
	bindService := func(t *testing.T) error {
		s := netns.NewSocket(t, unix.AF_INET)
		s.Set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		return s.TryBind(at)
	}
	for _, v := range []struct {
		name string
		want error
		call func(t *testing.T) error
	}{
		{"connect_without_a_local_address", unix.EADDRNOTAVAIL, func(t *testing.T) error {
			netns.SetSysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
			return netns.NewSocket(t, unix.AF_INET6).TryConnect(netip.AddrPortFrom(loopback6, 9000))
		}},
		{"bind_to_an_address_of_another_host", unix.EADDRNOTAVAIL, func(t *testing.T) error {
			return netns.NewSocket(t, unix.AF_INET).TryBind(netip.AddrPortFrom(host4, 0))
		}},
		{"service_on_a_client's_port", unix.EADDRINUSE, func(t *testing.T) error {
			connectFromPool(t, at)
			return bindService(t)
		}},
		{"service_on_a_client's_TIME_WAIT", unix.EADDRINUSE, func(t *testing.T) error {
			connectFromPool(t, at).CloseClientFirst(t)
			return bindService(t)
		}},
		{"service_on_its_own_TIME_WAIT", nil, func(t *testing.T) error {
			s := netns.Serve(t, loopback4, port)
			s.MustConnectFrom(t, loopback4, 20000, 1)[0].CloseServerFirst(t)
			s.Listener.Close(t)
			return bindService(t)
		}},
		{"service_on_a_reserved_port", nil, func(t *testing.T) error {
			netns.SetSysctl(t, "net/ipv4/ip_local_reserved_ports", "40004")
			return bindService(t)
		}},
		{"service_on_the_port_of_a_connection_to_itself", unix.EADDRINUSE, func(t *testing.T) error {
			client := netns.NewSocket(t, unix.AF_INET)
			netns.Eventually(t, func() bool {
				err := client.TryConnect(at) // refused as long as the kernel takes another port for it
				if err != nil {
					client.Close(t)
					client = netns.NewSocket(t, unix.AF_INET)
				}
				return err == nil
			}, func() string { return "no connect() came upon its own port" })
			client.Write(t, []byte("x"))
			if n, err := unix.Read(client.FD, make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("%d bytes and %v of what was sent to itself", n, err)
			}
			return bindService(t)
		}},
		{"connect_of_UDP", unix.EAGAIN, func(t *testing.T) error {
			return exhaustUDP(t).TryConnect(netip.AddrPortFrom(loopback4, 53))
		}},
		{"sendto_of_UDP", unix.EAGAIN, func(t *testing.T) error {
			s := exhaustUDP(t)
			return unix.Sendto(s.FD, []byte("x"), 0, s.Sockaddr(netip.AddrPortFrom(loopback4, 53)))
		}},
		{"bind_of_UDP", unix.EADDRINUSE, func(t *testing.T) error {
			return exhaustUDP(t).TryBind(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
		}},
		{"full_queue_of_a_unix_socket", unix.EAGAIN, func(t *testing.T) error {
			at := &unix.SockaddrUnix{Name: "@full"}
			open := func() int {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					t.Fatal(os.NewSyscallError("socket", err))
				}
				return fd
			}
			listener := open()
			if err := errors.Join(unix.Bind(listener, at), unix.Listen(listener, 1)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := unix.Connect(open(), at); err != nil {
					t.Fatal(os.NewSyscallError("connect", err))
				}
			}
			return unix.Connect(open(), at)
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				setPorts(t, 40000, 40009, "")
				if err := v.call(t); !errors.Is(err, v.want) {
					t.Errorf("%v, want %v", err, v.want)
				}
				for _, p := range startExporters(t).scrape(t) {
					for _, pool := range []string{"connect", "bind"} {
						if ratio := p.value(t, "tcp_ephemeral_port_utilisation_ratio", "pool", pool); ratio > 0.5 {
							t.Errorf("the %s ratio is %v\n%s", pool, ratio, describePorts(p))
						}
					}
				}
				netns.Serve(t, loopback4, 9000).MustConnect(t, 1)
			})
		})
	}
}

// connectFromPool opens a connection for which the kernel chooses from.
func connectFromPool(t *testing.T, from netip.AddrPort) netns.Pair {
	t.Helper()
	s := netns.Serve(t, loopback4, 9001)
	setPorts(t, int(from.Port()), int(from.Port()), "")
	defer setPorts(t, 40000, 40009, "")
	return s.MustConnect(t, 1)[0]
}

// exhaustUDP takes all ports for UDP and returns one socket more.
func exhaustUDP(t *testing.T) netns.Socket {
	t.Helper()
	for n := 0; ; n++ {
		s, err := netns.OpenSocket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			t.Fatal(err)
		}
		if n == 10 {
			return s
		}
		if err := s.TryConnect(netip.AddrPortFrom(loopback4, 53)); err != nil {
			t.Fatal(os.NewSyscallError("connect", err))
		}
	}
}

// TestClientsOfFullAcceptQueue has clients that were on their way when the queue filled:
// they connect and send, and are reset when the kernel has given up its SYN-ACKs.
func TestClientsOfFullAcceptQueue(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const backlog = 4
		netns.SetSysctl(t, "net/ipv4/tcp_synack_retries", "1")
		at := netip.AddrPortFrom(loopback4, 9000)
		listener := netns.Listen(t, at, backlog)
		// Loopback has no way on which to be: with this option a connection waits for its
		// first data instead, half open here and established there.
		listener.Set(t, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
		open := func() netns.Socket {
			client := netns.NewSocket(t, unix.AF_INET)
			if err := client.TryConnect(at); err != nil {
				t.Fatal(os.NewSyscallError("connect", err))
			}
			return client
		}
		for range backlog {
			open().Write(t, []byte("x"))
		}
		last, reset, gone := open(), open(), open() // into the one place that is left
		for _, client := range []netns.Socket{last, reset, gone} {
			client.Write(t, []byte("x"))
		}
		gone.Close(t)

		for _, p := range startExporters(t).scrape(t) {
			p.want(t, backlog+1, "tcp_listener_accept_queue", "local_port", "9000")
			p.want(t, 2, "tcp_connections", "family", "ipv4", "direction", "inbound", "state", "syn_recv")
			p.want(t, backlog+2, "tcp_destination_ports_used", append(destination(loopback4, at), "state", "established")...)
			p.want(t, 1, "tcp_destination_ports_used", append(destination(loopback4, at), "state", "fin_wait1")...)
		}
		if err := unix.SetsockoptTimeval(reset.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Read(reset.FD, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read: %v, want %v", err, unix.ECONNRESET)
		}
	})
}
