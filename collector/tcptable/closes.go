package tcptable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// Multicast groups of sock_diag that golang.org/x/sys/unix does not name
// (include/uapi/linux/sock_diag.h, since Linux 4.2).
const (
	groupTCPDestroy  = 1 // SKNLGRP_INET_TCP_DESTROY
	groupTCP6Destroy = 3 // SKNLGRP_INET6_TCP_DESTROY
)

// Offsets in a struct tcp_info (include/uapi/linux/tcp.h).
const (
	bytesAcked  = 120
	dataSegsIn  = 152
	dataSegsOut = 156
)

// Closed is a TCP connection that has come to its end: its program has closed it, and what is
// left of it, if anything, is a Mini.
type Closed struct {
	Local, Remote Endpoint
	Table         Table
	// SegmentsIn and SegmentsOut are those that had data (tcpi_data_segs_in and _out).
	SegmentsIn, SegmentsOut uint32
	// Acknowledged is whether the peer has acknowledged anything: a SYN, data, a FIN. If not,
	// an outbound connection never came about.
	Acknowledged bool
}

// Closes are the kernel's events of TCP sockets that are destroyed
// (sock_diag_broadcast_destroy in net/core/sock_diag.c), in the network namespace the
// process is in. They need no privilege, and cost the machine some 15 µs for each socket,
// as long as somebody listens.
//
// Both ends of a connection within the namespace have one each.
type Closes struct {
	conn *socket.Conn
	buf  []byte
}

// NewCloses begins to listen. It fails where the kernel has no such events.
func NewCloses() (*Closes, error) {
	conn, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG, "netlink", nil)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	// How many events the buffer has no room for Lost tells; with an error instead the
	// kernel would drop all further ones, until the buffer is empty.
	err = conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1)
	if err == nil {
		err = conn.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK}) // or it is not listed in /proc
	}
	for _, group := range []int{groupTCPDestroy, groupTCP6Destroy} {
		if err == nil {
			err = conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		_ = conn.Close() // err says more
		return nil, fmt.Errorf("the kernel tells no closes of TCP sockets (sock_diag multicast, Linux 4.2): %w", err)
	}
	_ = conn.SetReadBuffer(8 << 20) // some 13,000 events; the kernel gives what it allows, and Lost tells if that is too small
	return &Closes{conn: conn, buf: make([]byte, 4<<10)}, nil
}

// Close ends the listening.
func (c *Closes) Close() error { return c.conn.Close() }

// Read calls closed with each connection that ends, until ctx does. That is no error. What
// closed is called with is good until it returns.
func (c *Closes) Read(ctx context.Context, closed func(*Closed)) error {
	release, err := endWith(ctx, c.conn)
	if err != nil {
		return fmt.Errorf("close events: %w", err)
	}
	defer release()
	var event Closed
	for {
		n, _, err := c.conn.Recvfrom(context.Background(), c.buf, 0) //nolint:contextcheck // see endWith
		switch {
		case err != nil && ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("close events: %w", err)
		}
		// Each is a message, and a datagram, of its own.
		is, err := parseClosed(c.buf[:n], &event)
		if err != nil {
			return fmt.Errorf("close events: %w", err)
		}
		if is {
			closed(&event)
		}
	}
}

// parseClosed reads an event, and reports whether it is about a connection: listeners and idle
// sockets end as well.
func parseClosed(event []byte, c *Closed) (is bool, err error) {
	const header = unix.SizeofNlMsghdr
	if len(event) < header+diagLength || int(binary.NativeEndian.Uint32(event)) > len(event) {
		return false, replyError(event, "is too short for a socket")
	}
	if got := binary.NativeEndian.Uint16(event[4:]); got != unix.SOCK_DIAG_BY_FAMILY {
		return false, replyError(event, fmt.Sprintf("is of unknown type %d", got))
	}
	diag := event[header:]
	var s Socket
	if err := parseDiag(diag, &s); err != nil {
		return false, err
	}
	if s.Local.Port == 0 || s.Remote.Port == 0 {
		return false, nil
	}
	info := findAttr(diag[diagLength:], attrInfo)
	if len(info) < dataSegsOut+4 {
		return false, replyError(event, "has too short a tcp_info")
	}
	*c = Closed{
		Local: s.Local, Remote: s.Remote, Table: s.Table,
		SegmentsIn:   binary.NativeEndian.Uint32(info[dataSegsIn:]),
		SegmentsOut:  binary.NativeEndian.Uint32(info[dataSegsOut:]),
		Acknowledged: binary.NativeEndian.Uint64(info[bytesAcked:]) > 0,
	}
	return true, nil
}

// findAttr returns the payload of the first netlink attribute of a kind, nil if there is none.
func findAttr(attrs []byte, kind uint16) []byte {
	for len(attrs) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attrs))
		if length < unix.SizeofNlAttr || length > len(attrs) {
			return nil
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == kind {
			return attrs[unix.SizeofNlAttr:length]
		}
		attrs = attrs[min((length+3)&^3, len(attrs)):]
	}
	return nil
}

// Lost returns how many events there was no room for, because they were not read fast enough
// (the column Drops of /proc/net/netlink, net/netlink/af_netlink.c).
func (c *Closes) Lost() (uint64, error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stat unix.Stat_t
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &stat) }); err != nil || statErr != nil {
		return 0, errors.Join(err, statErr)
	}
	const file = ownNet + "/netlink"
	table, err := os.ReadFile(file) //nolint:forbidigo // it is not the table of TCP sockets
	if err != nil {
		return 0, err
	}
	inode := strconv.FormatUint(stat.Ino, 10)
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) < 10 || string(fields[9]) != inode {
			continue
		}
		lost, err := strconv.ParseUint(string(fields[8]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: the drops of %.200q: %w", file, line, err)
		}
		return lost, nil
	}
	return 0, fmt.Errorf("%s: no socket with inode %s", file, inode)
}
