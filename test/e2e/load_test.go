package e2e

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"
)

// waitForPeer lets the peer close first: the TIME_WAIT is the peer's.
func waitForPeer(conn net.Conn) {
	_, _ = io.Copy(io.Discard, conn)
	_ = conn.Close()
}

// closeFirst closes at once: the TIME_WAIT is ours, as soon as the peer closes too.
func closeFirst(conn net.Conn) { _ = conn.Close() }

// every calls do as often a second as rate says for the time that has passed, until do fails or ctx ends.
func every(ctx context.Context, rate func(time.Duration) float64, do func() error) error {
	const tick = 20 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	start, due := time.Now(), 0.0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		for due += rate(time.Since(start)) * tick.Seconds(); due >= 1; due-- {
			if err := do(); err != nil {
				return err
			}
		}
	}
}

// connectAndClose is the client that opens a connection for each request and closes it.
func connectAndClose(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// flood is one remote host that opens connections which the server closes. It has the source ports of a host of its own, none
// of them in the range of the namespace.
func flood(from, to string) func() (net.Conn, error) {
	connect := connectFrom(from, to)
	return func() (net.Conn, error) {
		conn, err := connect()
		if err == nil {
			go waitForPeer(conn)
		}
		return conn, err
	}
}

// connectFrom connects from one port after the other, each used once.
func connectFrom(first, to string) func() (net.Conn, error) {
	next := netip.MustParseAddrPort(first)
	return func() (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(next)}
		next = netip.AddrPortFrom(next.Addr(), next.Port()+1)
		return dialer.Dial("tcp", to)
	}
}
