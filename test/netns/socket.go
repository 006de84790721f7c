package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Socket is a TCP socket of the test's. It is a bare file descriptor: package
// net retries, sets options and hides which call failed. A test leaves its
// sockets open; they end with the process of its namespace.
type Socket struct {
	FD     int
	family int // AF_INET or AF_INET6
}

// NewSocket returns a TCP socket of AF_INET or AF_INET6.
func NewSocket(t *testing.T, family int) Socket {
	t.Helper()
	s, err := OpenSocket(family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// NewSocketOn returns a TCP socket that is bound to a device.
func NewSocketOn(t *testing.T, family int, device string) Socket {
	t.Helper()
	s := NewSocket(t, family)
	if err := unix.BindToDevice(s.FD, device); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
	return s
}

// OpenSocket is socket(2).
func OpenSocket(family, kind, protocol int) (Socket, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	return Socket{fd, family}, os.NewSyscallError("socket", err)
}

// FamilyOf is the family of the plain socket for an address.
func FamilyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Sockaddr is a as the socket's family writes it: an AF_INET6 socket names
// an IPv4 address ::ffff:a.b.c.d. A zone is the number of a link.
func (s Socket) Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	zone, _ := strconv.Atoi(a.Addr().Zone()) // 0 if there is none
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(zone)}
}

// Set is setsockopt(2).
func (s Socket) Set(t *testing.T, level, option, value int) {
	t.Helper()
	if err := unix.SetsockoptInt(s.FD, level, option, value); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
}

// KeepAlive lets the kernel ask the peer of an idle connection every so many seconds.
func (s Socket) KeepAlive(t *testing.T, seconds int) {
	t.Helper()
	s.Set(t, unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds)
	s.Set(t, unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds)
	s.Set(t, unix.SOL_TCP, unix.TCP_KEEPCNT, 100)
	s.Set(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

// TryBind is bind(2).
func (s Socket) TryBind(to netip.AddrPort) error {
	return unix.Bind(s.FD, s.Sockaddr(to))
}

// Bind is a TryBind that must succeed.
func (s Socket) Bind(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if err := s.TryBind(to); err != nil {
		t.Fatalf("bind %s: %v", to, err)
	}
}

// Listen makes a listener with the given backlog.
func Listen(t *testing.T, at netip.AddrPort, backlog int) Socket {
	t.Helper()
	s := NewSocket(t, FamilyOf(at.Addr()))
	s.Set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	s.Bind(t, at)
	if err := unix.Listen(s.FD, backlog); err != nil {
		t.Fatalf("listen %s: %v", at, err)
	}
	return s
}

// TryAccept is accept4(2).
func (s Socket) TryAccept() (Socket, error) {
	fd, _, err := unix.Accept4(s.FD, unix.SOCK_CLOEXEC)
	return Socket{fd, s.family}, err
}

// Accept is a TryAccept that must succeed.
func (s Socket) Accept(t *testing.T) Socket {
	t.Helper()
	accepted, err := s.TryAccept()
	if err != nil {
		t.Fatal(os.NewSyscallError("accept4", err))
	}
	return accepted
}

// TryConnect is connect(2).
func (s Socket) TryConnect(to netip.AddrPort) error {
	return unix.Connect(s.FD, s.Sockaddr(to))
}

// TryStart begins a connect and does not wait for the answer.
func (s Socket) TryStart(to netip.AddrPort) error {
	if err := unix.SetNonblock(s.FD, true); err != nil {
		return err
	}
	if err := s.TryConnect(to); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

// Start is a TryStart that must succeed.
func (s Socket) Start(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if err := s.TryStart(to); err != nil {
		t.Fatalf("connect %s: %v", to, err)
	}
}

// Local is the socket's own address, an IPv4-mapped one as IPv4.
func (s Socket) Local(t *testing.T) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	if sa, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	}
	sa6 := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(sa6.Addr).Unmap(), uint16(sa6.Port))
}

// Write sends all of b.
func (s Socket) Write(t *testing.T, b []byte) {
	t.Helper()
	if n, err := unix.Write(s.FD, b); n != len(b) || err != nil {
		t.Fatalf("write: %d of %d bytes, %v", n, len(b), err)
	}
}

// FillPeer sends until the other end, which does not read, has no room left.
func (s Socket) FillPeer(t *testing.T) {
	t.Helper()
	if err := unix.SetNonblock(s.FD, true); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := unix.Write(s.FD, make([]byte, 1<<16))
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			t.Fatal(os.NewSyscallError("write", err))
		}
	}
}

// AwaitEOF waits until the other end's FIN has arrived.
func (s Socket) AwaitEOF(t *testing.T) {
	t.Helper()
	if n, err := unix.Read(s.FD, make([]byte, 1)); n != 0 || err != nil {
		t.Fatalf("read: %d bytes, %v; want the end of the stream", n, err)
	}
}

// Shutdown ends the stream of what is sent.
func (s Socket) Shutdown(t *testing.T) {
	t.Helper()
	if err := unix.Shutdown(s.FD, unix.SHUT_WR); err != nil {
		t.Fatal(os.NewSyscallError("shutdown", err))
	}
}

// Close is close(2).
func (s Socket) Close(t *testing.T) {
	t.Helper()
	if err := unix.Close(s.FD); err != nil {
		t.Fatal(os.NewSyscallError("close", err))
	}
}

// Service is a listener and the way its clients come to it.
type Service struct {
	Listener Socket
	At       netip.AddrPort
	Family   int        // of the clients' sockets
	From     netip.Addr // the clients' address, if it is not the kernel's choice
}

// Serve listens with room for all clients that a test may have waiting.
func Serve(t *testing.T, ip netip.Addr, port uint16) Service {
	t.Helper()
	at := netip.AddrPortFrom(ip, port)
	return Service{Listener: Listen(t, at, 4096), At: at, Family: FamilyOf(ip)}
}

// A Pair is both ends of a connection.
type Pair struct{ Client, Server Socket }

// Connect opens one more connection; the error is connect()'s.
func (s Service) Connect(t *testing.T) (Pair, error) {
	t.Helper()
	client := NewSocket(t, s.Family)
	if s.From.IsValid() {
		client.Set(t, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		client.Bind(t, netip.AddrPortFrom(s.From, 0))
	}
	return s.Join(t, client)
}

// Join connects a socket that the caller has made.
func (s Service) Join(t *testing.T, client Socket) (Pair, error) {
	t.Helper()
	if err := client.TryConnect(s.At); err != nil {
		client.Close(t)
		return Pair{}, err
	}
	return Pair{client, s.Listener.Accept(t)}, nil
}

// MustConnect opens n connections.
func (s Service) MustConnect(t *testing.T, n int) []Pair {
	t.Helper()
	return s.must(t, n, func(int) (Pair, error) { return s.Connect(t) })
}

// MustConnectFrom opens n connections from bound ports: port and those after it.
func (s Service) MustConnectFrom(t *testing.T, ip netip.Addr, port uint16, n int) []Pair {
	t.Helper()
	return s.must(t, n, func(i int) (Pair, error) {
		client := NewSocket(t, s.Family)
		client.Bind(t, netip.AddrPortFrom(ip, port+uint16(i)))
		return s.Join(t, client)
	})
}

func (s Service) must(t *testing.T, n int, connect func(i int) (Pair, error)) []Pair {
	t.Helper()
	var pairs []Pair
	for i := range n {
		p, err := connect(i)
		if err != nil {
			t.Fatalf("connect %s: %v", s.At, err)
		}
		pairs = append(pairs, p)
	}
	return pairs
}

// Fill lets n connections wait for accept(2).
func (s Service) Fill(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := NewSocket(t, s.Family).TryConnect(s.At); err != nil {
			t.Fatalf("connect %s: %v", s.At, err)
		}
	}
}

// OpenAndClose leaves one TIME_WAIT of the client's. It runs beside the test,
// where testing.T may not be ended.
func (s Service) OpenAndClose() error {
	client, err := OpenSocket(s.Family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	if err := client.TryConnect(s.At); err != nil {
		unix.Close(client.FD)
		return err
	}
	server, err := s.Listener.TryAccept()
	if err != nil {
		unix.Close(client.FD)
		return err
	}
	defer unix.Close(server.FD)
	if err := unix.Close(client.FD); err != nil {
		return err
	}
	_, err = unix.Read(server.FD, make([]byte, 1))
	return err
}

// CloseClientFirst leaves the client's TIME_WAIT and nothing else.
func (p Pair) CloseClientFirst(t *testing.T) {
	t.Helper()
	p.Client.Close(t)
	p.Server.AwaitEOF(t)
	p.Server.Close(t)
}

// CloseServerFirst leaves the server's TIME_WAIT and nothing else.
func (p Pair) CloseServerFirst(t *testing.T) {
	t.Helper()
	p.Server.Close(t)
	p.Client.AwaitEOF(t)
	p.Client.Close(t)
}

// Handle accepts connections at an address until the test ends, hands each to handle in a
// goroutine of its own, and returns the port. A connection that handle leaves open stays so
// until then.
func Handle(t *testing.T, address string, handle func(net.Conn)) int {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		var kept []net.Conn // else the garbage collector would close what nobody reads
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				break
			}
			if err == nil {
				kept = append(kept, conn)
				go handle(conn)
			}
		}
		for _, conn := range kept {
			conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}
