package kernel

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestDevices has one destination with and without a device: connects on the device
// lack the ports of both, those on none only their own.
func TestDevices(t *testing.T) {
	f := func(name string, scenario func(t *testing.T, s netns.Service, es exporters)) {
		t.Run(name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				bothSources(t)
				setPorts(t, 40000, 40009, "")
				scenario(t, netns.Serve(t, loopback4, 9000), startExporters(t))
			})
		})
	}
	f("device_last", func(t *testing.T, s netns.Service, es exporters) {
		s.MustConnect(t, 6)
		wantCalls(t, exhaust(t, es, "connect", unix.EADDRNOTAVAIL, 0, func() error {
			_, err := s.Join(t, netns.NewSocketOn(t, unix.AF_INET, "lo"))
			return err
		}), 4)
	})
	f("device_first", func(t *testing.T, s netns.Service, es exporters) {
		onDevice, all := make(map[uint16]bool), make(map[uint16]bool)
		for range 6 {
			p, err := s.Join(t, netns.NewSocketOn(t, unix.AF_INET, "lo"))
			if err != nil {
				t.Fatal(err)
			}
			port := p.Client.Local(t).Port()
			onDevice[port], all[port] = true, true
		}
		for n := range 11 {
			pages := es.scrape(t)
			ratios := map[string]float64{"netlink": float64(len(all)) / 10, "procfs": min(float64(len(onDevice)+n)/10, 1)}
			for i, source := range sources(t) {
				pages[i].want(t, ratios[source], "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
				pages[i].want(t, ratios[source], "tcp_destination_port_utilisation_ratio", destination(loopback4, s.At)...)
				pages[i].want(t, 1, "tcp_destinations")
				pages[i].want(t, float64(len(all)), "tcp_ephemeral_ports_used")
				if source == "netlink" {
					pages[i].want(t, float64(len(all)), "tcp_destination_ports_used", destination(loopback4, s.At)...)
				}
			}
			// The ratio is that of the device.
			probe := netns.NewSocketOn(t, unix.AF_INET, "lo")
			if err := unix.SetsockoptLinger(probe.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				t.Fatal(os.NewSyscallError("setsockopt", err))
			}
			q, err := s.Join(t, probe)
			if full := len(all) == 10; full != errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("%d of 10 ports are held for the device, and connect: %v", len(all), err)
			}
			if err == nil {
				q.Client.Close(t) // with a RST, which leaves nothing
				q.Server.Close(t)
			}
			p, err := s.Connect(t)
			if full := n == 10; full != errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("%d of 10 ports are held for no device, and connect: %v", n, err)
			}
			if err == nil {
				all[p.Client.Local(t).Port()] = true
			}
		}
	})
}

// TestLinkLocal connects to one link-local address on two links: two peers, each with
// a pool of its own.
func TestLinkLocal(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		bothSources(t)
		setPorts(t, 42000, 42099, "")
		near, far := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::9")
		links := netns.AddLinks(t, near, far)
		netns.Listen(t, netip.AddrPortFrom(near.WithZone(links[0]), 9000), 7)
		connect := func(link string, n int) {
			t.Helper()
			for range n {
				netns.NewSocket(t, unix.AF_INET6).Start(t, netip.AddrPortFrom(far.WithZone(link), 179))
			}
		}
		connect(links[0], 60)
		connect(links[1], 60)
		es := startExporters(t)
		pages := es.scrape(t)
		for i, source := range sources(t) {
			p := pages[i]
			// The queues come from sock_diag in any case.
			p.want(t, 7, "tcp_listener_accept_queue_limit", "local_ip", "fe80::1%"+links[0], "local_port", "9000")
			p.want(t, 1, "tcp_listener_sockets", "local_ip", "fe80::1%"+links[0], "local_port", "9000")
			if source == "procfs" { // which can't see the link, and may take two for one that is listed twice
				p.want(t, 1, "tcp_destination_port_utilisation_ratio", "local_ip", "fe80::1", "remote_ip", "fe80::9", "remote_port", "179")
				p.want(t, 1, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
				if n := p.sum("tcp_remote_connections", "remote_ip", "fe80::9"); n <= 100 || n > 120 {
					t.Errorf("%v connections to fe80::9", n)
				}
				continue
			}
			p.want(t, 120, "tcp_connections", "state", "syn_sent")
			for _, link := range links {
				p.want(t, 0.6, "tcp_destination_port_utilisation_ratio", "local_ip", "fe80::1%"+link, "remote_ip", "fe80::9%"+link, "remote_port", "179")
				p.want(t, 60, "tcp_destination_ports_used", "remote_ip", "fe80::9%"+link, "state", "syn_sent")
				p.want(t, 60, "tcp_remote_connections", "remote_ip", "fe80::9%"+link, "state", "syn_sent")
				p.want(t, 60, "tcp_local_ports_used", "local_ip", "fe80::1%"+link)
			}
			p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
			p.want(t, 2, "tcp_destinations")
		}
		// A 61st on either link, and a 100th; not a 101st.
		connect(links[0], 40)
		connect(links[1], 1)
		if err := netns.NewSocket(t, unix.AF_INET6).TryStart(netip.AddrPortFrom(far.WithZone(links[0]), 179)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("connect: %v, want EADDRNOTAVAIL", err)
		}
		p := es[1].scrape(t)
		p.want(t, 1, "tcp_destination_port_utilisation_ratio", "remote_ip", "fe80::9%"+links[0])
		p.want(t, 0.61, "tcp_destination_port_utilisation_ratio", "remote_ip", "fe80::9%"+links[1])
	})
}
