package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestTransparent has what TPROXY leaves behind: connections whose local address is
// not the host's, and on whose port nobody listens. They come of a transparent
// listener that is closed again, the bit being the same; a connection of a transparent
// proxy's own has it too.
func TestTransparent(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const children, mark = 5, "192.0.2.77"
		setPorts(t, 40000, 40009, "")
		netns.AddLoopbackAddresses(t, host4)
		netns.AddLocalRoute(t, netip.MustParsePrefix("192.0.2.0/24"))
		transparent := func() netns.Socket {
			s := netns.NewSocket(t, unix.AF_INET)
			s.Set(t, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			return s
		}

		intercepted := netns.Service{Listener: transparent(), At: netip.MustParseAddrPort("192.0.2.5:80"), Family: unix.AF_INET}
		intercepted.Listener.Bind(t, intercepted.At)
		if err := unix.Listen(intercepted.Listener.FD, 100); err != nil {
			t.Fatal(os.NewSyscallError("listen", err))
		}
		// The clients are elsewhere in truth: here they end at once, to leave no row.
		var held []netns.Socket
		for _, p := range intercepted.MustConnectFrom(t, host4, 20000, children) {
			p.Client.Close(t)
			p.Server.AwaitEOF(t)
			held = append(held, p.Server)
		}
		intercepted.Listener.Close(t)

		// The proxy goes on to the server with the client's address.
		server := netns.Serve(t, host4, 8000)
		own := transparent()
		own.Bind(t, netip.AddrPortFrom(netip.MustParseAddr(mark), 0))
		if _, err := server.Join(t, own); err != nil {
			t.Fatal(err)
		}

		for i, p := range startExporters(t, "--collector.destinations=1").scrape(t) {
			inbound, outbound := float64(children), 0.0
			if sources(t)[i] == "procfs" { // which can't see it
				inbound, outbound = outbound, inbound
			}
			p.want(t, inbound, "tcp_connections", "direction", "inbound", "state", "close_wait")
			p.want(t, inbound, "tcp_listener_connections", "local_port", "80", "state", "close_wait")
			p.want(t, outbound, "tcp_connections", "direction", "outbound", "state", "close_wait")
			// The proxy's own is a destination with either source, and the one to be named.
			p.want(t, 1, "tcp_connections", "direction", "outbound", "state", "established")
			p.want(t, 1, "tcp_destination_ports_used", "local_ip", mark, "remote_ip", host4.String(), "remote_port", "8000")
			p.want(t, 0.1, "tcp_destination_port_utilisation_ratio", destination(netip.MustParseAddr(mark), server.At)...)
			if n := len(p.series("tcp_destination_port_utilisation_ratio")); n != 1 {
				t.Errorf("%d destinations are named, want 1", n)
			}
		}
		for _, s := range held {
			if _, err := unix.Getpeername(s.FD); err != nil {
				t.Error(fmt.Errorf("a connection ended: %w", err))
			}
		}
	})
}
