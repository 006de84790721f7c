package dashboards

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// load is traffic in the private network that gives every panel something to show.
type load struct {
	t *testing.T
	// held are connections and listeners that stay until the end.
	held []net.Conn
}

// startLoad runs the traffic, spread over some seconds so that rates and slopes are seen, and leaves behind what should stay.
func startLoad(t *testing.T) {
	t.Helper()
	l := &load{t: t}
	t.Cleanup(func() {
		for _, c := range l.held {
			c.Close()
		}
	})
	// On every local address and both families, so an IPv4 client of it is in /proc/net/tcp6.
	clientClosesFirst := netns.Handle(t, "[::]:8080", func(c net.Conn) { _, _ = io.Copy(io.Discard, c); c.Close() })
	serverClosesFirst := netns.Handle(t, "127.0.0.1:8081", func(c net.Conn) { c.Close() })
	serverHoldsData := netns.Handle(t, "127.0.0.1:8082", func(c net.Conn) {})
	// Of a program that never calls accept() the queue holds backlog + 1 connections; of one that waits for a client's first bytes the
	// kernel leaves connections in SYN_RECV, tcp(7).
	stuck, patient := netip.MustParseAddrPort("127.0.0.1:8083"), netip.MustParseAddrPort("127.0.0.1:8084")
	netns.Listen(t, stuck, 4)
	netns.Listen(t, patient, 16).Set(t, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60)

	// The client that opens a connection for each request: TIME_WAITs of ours toward one destination, over half of the pool. Half of
	// the connections are there in some scrape.
	for range 10 {
		var open []net.Conn
		for range 30 {
			open = append(open, l.dial("", fmt.Sprintf("127.0.0.2:%d", clientClosesFirst)))
		}
		time.Sleep(500 * time.Millisecond)
		for _, c := range open {
			c.Close()
		}
	}
	// Clients from several addresses whose server closes first: TIME_WAITs inbound. What those clients never close is CLOSE_WAIT.
	for client := 11; client <= 15; client++ {
		for n := range 6 {
			c := l.dial(fmt.Sprintf("127.0.0.%d", client), fmt.Sprintf("127.0.0.1:%d", serverClosesFirst))
			if n < 3 {
				l.held = append(l.held, c)
				continue
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the server should have closed")
			}
			c.Close()
		}
	}
	// Established ones that stay, IPv6 among them, and data that nobody reads.
	for n := range 20 {
		address := fmt.Sprintf("127.0.0.%d:%d", 2+n%4, clientClosesFirst)
		if n%5 == 0 {
			address = fmt.Sprintf("[::1]:%d", clientClosesFirst)
		}
		l.held = append(l.held, l.dial("", address))
	}
	c := l.dial("", fmt.Sprintf("127.0.0.1:%d", serverHoldsData))
	if _, err := c.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	l.held = append(l.held, c)
	// A program that never closes what its client closed, and handshakes that are not over.
	l.dial("", fmt.Sprintf("127.0.0.1:%d", serverHoldsData)).Close()
	for range 3 {
		l.held = append(l.held, l.dial("", patient.String()))
	}
	// More often than the stuck one's queue is long. The last ones stay in SYN_SENT, and the kernel counts each of their handshakes that
	// it drops.
	for range 10 {
		netns.NewSocket(t, unix.AF_INET).Start(t, stuck)
	}
}

func (l *load) dial(from, to string) net.Conn {
	l.t.Helper()
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := dialer.Dial("tcp", to)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}
