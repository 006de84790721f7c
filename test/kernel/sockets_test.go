package kernel

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// socket is a TCP socket of the test's. It is a bare file descriptor: package
// net retries, sets options and hides which call failed. A test leaves its
// sockets open; they end with the process of its namespace.
type socket struct {
	fd     int
	family int // AF_INET or AF_INET6
}

func newSocket(t *testing.T, family int) socket {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	return socket{fd, family}
}

// familyOf is the family of the plain socket for an address.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr is a as the socket's family writes it: an AF_INET6 socket names
// an IPv4 address ::ffff:a.b.c.d.
func (s socket) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (s socket) set(t *testing.T, level, option, value int) {
	t.Helper()
	if err := unix.SetsockoptInt(s.fd, level, option, value); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
}

func (s socket) tryBind(to netip.AddrPort) error {
	return unix.Bind(s.fd, s.sockaddr(to))
}

func (s socket) bind(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if err := s.tryBind(to); err != nil {
		t.Fatalf("bind %s: %v", to, err)
	}
}

// listen makes a listener with the given backlog.
func listen(t *testing.T, at netip.AddrPort, backlog int) socket {
	t.Helper()
	s := newSocket(t, familyOf(at.Addr()))
	s.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	s.bind(t, at)
	if err := unix.Listen(s.fd, backlog); err != nil {
		t.Fatalf("listen %s: %v", at, err)
	}
	return s
}

func (s socket) tryAccept() (socket, error) {
	fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
	return socket{fd, s.family}, err
}

func (s socket) accept(t *testing.T) socket {
	t.Helper()
	accepted, err := s.tryAccept()
	if err != nil {
		t.Fatal(os.NewSyscallError("accept4", err))
	}
	return accepted
}

func (s socket) tryConnect(to netip.AddrPort) error {
	return unix.Connect(s.fd, s.sockaddr(to))
}

// tryStart begins a connect and does not wait for the answer.
func (s socket) tryStart(to netip.AddrPort) error {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	if err := s.tryConnect(to); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

func (s socket) start(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if err := s.tryStart(to); err != nil {
		t.Fatalf("connect %s: %v", to, err)
	}
}

// local is the socket's own address, an IPv4-mapped one as IPv4.
func (s socket) local(t *testing.T) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	if sa, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	}
	sa6 := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(sa6.Addr).Unmap(), uint16(sa6.Port))
}

func (s socket) write(t *testing.T, b []byte) {
	t.Helper()
	if n, err := unix.Write(s.fd, b); n != len(b) || err != nil {
		t.Fatalf("write: %d of %d bytes, %v", n, len(b), err)
	}
}

// awaitEOF waits until the other end's FIN has arrived.
func (s socket) awaitEOF(t *testing.T) {
	t.Helper()
	if n, err := unix.Read(s.fd, make([]byte, 1)); n != 0 || err != nil {
		t.Fatalf("read: %d bytes, %v; want the end of the stream", n, err)
	}
}

func (s socket) shutdown(t *testing.T) {
	t.Helper()
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		t.Fatal(os.NewSyscallError("shutdown", err))
	}
}

func (s socket) close(t *testing.T) {
	t.Helper()
	if err := unix.Close(s.fd); err != nil {
		t.Fatal(os.NewSyscallError("close", err))
	}
}

// service is a listener and the way its clients come to it.
type service struct {
	listener socket
	at       netip.AddrPort
	family   int        // of the clients' sockets
	from     netip.Addr // the clients' address, if it is not the kernel's choice
}

// serve listens with room for all clients that a test may have waiting.
func serve(t *testing.T, ip netip.Addr, port uint16) service {
	t.Helper()
	at := netip.AddrPortFrom(ip, port)
	return service{listener: listen(t, at, 4096), at: at, family: familyOf(ip)}
}

// A pair is both ends of a connection.
type pair struct{ client, server socket }

// connect opens one more connection; the error is connect()'s.
func (s service) connect(t *testing.T) (pair, error) {
	t.Helper()
	client := newSocket(t, s.family)
	if s.from.IsValid() {
		client.set(t, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		client.bind(t, netip.AddrPortFrom(s.from, 0))
	}
	return s.join(t, client)
}

// join connects a socket that the caller has made.
func (s service) join(t *testing.T, client socket) (pair, error) {
	t.Helper()
	if err := client.tryConnect(s.at); err != nil {
		client.close(t)
		return pair{}, err
	}
	return pair{client, s.listener.accept(t)}, nil
}

// mustConnect opens n connections.
func (s service) mustConnect(t *testing.T, n int) []pair {
	t.Helper()
	var pairs []pair
	for range n {
		p, err := s.connect(t)
		if err != nil {
			t.Fatalf("connect %s: %v", s.at, err)
		}
		pairs = append(pairs, p)
	}
	return pairs
}

// mustConnectFrom opens n connections from bound ports: port and those after it.
func (s service) mustConnectFrom(t *testing.T, ip netip.Addr, port uint16, n int) []pair {
	t.Helper()
	var pairs []pair
	for i := range n {
		client := newSocket(t, s.family)
		client.bind(t, netip.AddrPortFrom(ip, port+uint16(i)))
		p, err := s.join(t, client)
		if err != nil {
			t.Fatalf("connect %s: %v", s.at, err)
		}
		pairs = append(pairs, p)
	}
	return pairs
}

// closeClientFirst leaves the client's TIME_WAIT and nothing else.
func (p pair) closeClientFirst(t *testing.T) {
	t.Helper()
	p.client.close(t)
	p.server.awaitEOF(t)
	p.server.close(t)
}

// closeServerFirst leaves the server's TIME_WAIT and nothing else.
func (p pair) closeServerFirst(t *testing.T) {
	t.Helper()
	p.server.close(t)
	p.client.awaitEOF(t)
	p.client.close(t)
}
