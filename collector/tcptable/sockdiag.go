package tcptable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// SockDiag is the Source that asks the kernel's sock_diag over netlink
// (man 7 sock_diag). It reads the network namespace the process is in when it is
// first used, and needs no privilege.
type SockDiag struct {
	// Ages is whether Sockets and Live tell a Socket's LastAck, which takes the kernel time
	// and some 300 bytes for each. CloseWaits always does.
	Ages bool

	conn   *socket.Conn
	buf    []byte
	seq    uint32
	split  bool // one dump for each family, because one for both does not work
	recent *recentRows
	rows   census // of the walk under way
	socket Socket // the row under way
}

// NewSockDiag returns the Source. It opens no socket yet.
func NewSockDiag() *SockDiag {
	// The kernel fills datagrams of up to 32 KiB when the buffer takes them
	// (netlink_recvmsg in net/netlink/af_netlink.c).
	return &SockDiag{buf: make([]byte, 32<<10), recent: newRecentRows()}
}

// Close closes the socket. The next walk opens a new one.
func (d *SockDiag) Close() error {
	if d.conn == nil {
		return nil
	}
	conn := d.conn
	d.conn = nil
	return conn.Close()
}

// ownNet is the net directory of the namespace sock_diag shows.
const ownNet = "/proc/self/net"

// datagramsPerTurn is to a dump, whose reads take some 100 µs each, what
// readsPerTurn is to a walk of /proc.
const datagramsPerTurn = 16

// errStopped ends a walk that nobody wants the rest of.
var errStopped = errors.New("stopped")

// Sockets implements Source. With the listeners it yields what /proc does not
// list: sockets that are bound and idle, where the kernel lists those.
func (d *SockDiag) Sockets(ctx context.Context) iter.Seq2[Socket, error] {
	return sequence(func(row func(*Socket) error) error { return d.walk(ctx, row) })
}

// Listeners yields the LISTEN rows only, which costs next to nothing: the table of
// connections is not walked.
func (d *SockDiag) Listeners(ctx context.Context) iter.Seq2[Socket, error] {
	return sequence(func(row func(*Socket) error) error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := d.read(ctx, dump{family: family, states: 1 << Listen}, row); err != nil {
				return err
			}
		}
		return nil
	})
}

// Live yields the sockets that are of a process's making: all but those in TIME_WAIT,
// half-open and bound idle ones. It does not compare them with what the kernel counts.
func (d *SockDiag) Live(ctx context.Context) iter.Seq2[Socket, error] {
	return sequence(func(row func(*Socket) error) error {
		d.rows = census{}
		return d.readAll(ctx, 1<<Listen, live&^(1<<Listen), func(s *Socket) error {
			if s.Kind == Mini || s.Kind == Request {
				return nil
			}
			return row(s)
		})
	})
}

// CloseWaits yields the sockets in CLOSE_WAIT. The table is walked for them.
func (d *SockDiag) CloseWaits(ctx context.Context) iter.Seq2[Socket, error] {
	return sequence(func(row func(*Socket) error) error {
		defer func(ages bool) { d.Ages = ages }(d.Ages)
		d.Ages, d.rows = true, census{}
		return d.readAll(ctx, 0, 1<<CloseWait, row)
	})
}

// sequence yields the sockets that read calls row with, and the error it ends with.
func sequence(read func(row func(*Socket) error) error) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		err := read(func(s *Socket) error {
			if !yield(*s, nil) {
				return errStopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(Socket{}, err)
		}
	}
}

// walk reads the whole table. The kernel dumps listeners first, and both families
// at once only when asked in the old way; where it knows that no more, each family
// costs a walk of its own.
func (d *SockDiag) walk(ctx context.Context, row func(*Socket) error) error {
	// To find idle sockets the kernel looks through all that hold a port, those in
	// TIME_WAIT included, which adds a fifth to a dump.
	stat := readSockstat(ctx, ownNet)
	first := uint32(listening)
	if stat.allInTable() {
		first = 1 << Listen
	}
	d.rows = census{}
	if err := d.readAll(ctx, first, connected, row); err != nil {
		return err
	}
	if err := d.rows.check(ctx, ownNet, stat); err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	return nil
}

// readAll reads the listeners, with all else that is to come first, and the
// connections in some states.
func (d *SockDiag) readAll(ctx context.Context, first, rest uint32, row func(*Socket) error) error {
	if !d.split {
		err := d.read(ctx, dump{unix.AF_UNSPEC, first | rest, d.Ages}, row)
		if _, refused := errors.AsType[refusalError](err); !refused || d.rows != (census{}) {
			return err
		}
	}
	for _, q := range []dump{
		{unix.AF_INET, first, d.Ages}, {unix.AF_INET6, first, d.Ages}, {unix.AF_INET, rest, d.Ages}, {unix.AF_INET6, rest, d.Ages},
	} {
		if err := d.read(ctx, q, row); err != nil {
			return err
		}
	}
	d.split = true
	return nil
}

// read asks for one dump and calls row with each socket of it. After an error the
// rest of the answer may still be on its way, so the socket is closed.
func (d *SockDiag) read(ctx context.Context, q dump, row func(*Socket) error) (err error) {
	defer func() {
		if err != nil {
			_ = d.Close() // err says more
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = context.Cause(ctx)
			}
			err = fmt.Errorf("sock_diag: %w", err)
		}
	}()
	if d.conn == nil {
		if d.conn, err = socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG, "netlink", nil); err != nil {
			return err
		}
	}
	conn, bare := d.conn, context.Background()
	release, err := endWith(ctx, conn)
	if err != nil {
		return err
	}
	defer release()
	d.seq++
	request := q.request(d.seq)
	if err := conn.Sendto(bare, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil { //nolint:contextcheck // see above
		return err
	}
	kind := binary.NativeEndian.Uint16(request[4:])
	d.recent.reset()
	for reads := 0; ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, _, flags, _, err := conn.Recvmsg(bare, d.buf, nil, 0) //nolint:contextcheck // see above
		if err != nil {
			return err
		}
		if flags&unix.MSG_TRUNC != 0 {
			return fmt.Errorf("a datagram of more than %d bytes", len(d.buf))
		}
		d.recent.nextRead()
		if reads++; reads%datagramsPerTurn == 0 {
			runtime.Gosched()
		}
		done, err := parseReply(d.buf[:n], kind, d.seq, func(diag []byte) error {
			s := &d.socket
			if err := parseDiag(diag, s); err != nil {
				return err
			}
			if s.State != Listen && s.Kind != Bound && d.recent.seen(diag[diagID:diagCookie]) {
				return nil
			}
			d.rows.add(s)
			return row(s)
		})
		if done || err != nil {
			return err
		}
	}
}

// endWith has the calls of a socket end with ctx, until release. A context given to a call
// costs a goroutine in each; this costs nothing unless ctx ends.
func endWith(ctx context.Context, conn *socket.Conn) (release func(), err error) {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
		close(ended)
	})
	return func() {
		if !stop() {
			<-ended // or else its deadline may be that of the calls to come
		}
	}, nil
}
