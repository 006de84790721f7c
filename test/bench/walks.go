package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"unsafe"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A walk reads the whole socket table once. With keep, and only then, rows tells what it read.
type walk interface {
	read(keep bool) error
	rows() iter.Seq[row]
}

// A row is one line of the table: its two addresses and ports in whatever form, and its state as
// in the kernel's include/net/tcp_states.h.
type row struct {
	ends  string
	state byte
}

const (
	stateTimeWait = unix.BPF_TCP_TIME_WAIT
	stateListen   = unix.BPF_TCP_LISTEN
)

// The walks of this program by name. Each runs in a process of its own.
func newWalk(name string) (walk, error) {
	switch name {
	case "tcp":
		return &procRead{paths: []string{"/proc/net/tcp"}}, nil
	case "tcp+tcp6":
		return &procRead{paths: []string{"/proc/net/tcp", "/proc/net/tcp6"}}, nil
	case "netlink":
		return newDump()
	case "procfs.NetTCP":
		fs, err := procfs.NewDefaultFS()
		return &netTCP{fs: fs}, err
	}
	return nil, fmt.Errorf("walk %q: no such", name)
}

// serveWalks answers each line of in with one line. "read" walks and forgets, "keep" walks and
// keeps the rows, "count" answers their figures.
func serveWalks(in io.Reader, out io.Writer, name string) error {
	w, err := newWalk(name)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer := "done"
		switch command := lines.Text(); command {
		case "read", "keep":
			if err := w.read(command == "keep"); err != nil {
				return err
			}
		case "count":
			c := countRows(w.rows())
			answer = fmt.Sprint(c.timeWait, c.twice)
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

type rowCounts struct {
	timeWait int
	twice    int // rows whose connection was listed before
}

// countRows leaves out listeners: several may share one address and port.
func countRows(rows iter.Seq[row]) rowCounts {
	var c rowCounts
	seen := make(map[string]struct{})
	for r := range rows {
		if r.state == stateTimeWait {
			c.timeWait++
		}
		if r.state == stateListen {
			continue
		}
		if _, ok := seen[r.ends]; ok {
			c.twice++
		}
		seen[r.ends] = struct{}{}
	}
	return c
}

// readBare is read(2) as a C program does it, unknown to Go's scheduler: that one wakes other threads
// while a system call lasts, which is a tenth of the CPU time of a walk where CPUs are idle.
func readBare(fd int, buffer []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// procRead is the barest read of /proc/net/tcp{,6} that ends: nothing is parsed.
type procRead struct {
	paths  []string
	buffer []byte
	kept   []byte
}

func (p *procRead) read(keep bool) error {
	p.kept = p.kept[:0]
	for _, path := range p.paths {
		if err := p.readFile(path, keep); err != nil {
			return err
		}
	}
	return nil
}

// readFile stops at the first read that had room for one more line, and not at the end of the
// file: net/ipv4/tcp_ipv4.c walks the whole table again to find out that there is none.
func (p *procRead) readFile(path string, keep bool) error {
	const longestLine = 256 // 220 bytes, by the widths of tcp6's columns
	if p.buffer == nil {
		p.buffer = make([]byte, max(64<<10, os.Getpagesize()))
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		n, err := readBare(fd, p.buffer)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if keep {
			p.kept = append(p.kept, p.buffer[:n]...)
		}
		// A read gives as many whole lines as fit in one page, fs/seq_file.c.
		if n+longestLine <= os.Getpagesize() {
			return nil
		}
	}
}

func (p *procRead) rows() iter.Seq[row] { return procRows(p.kept) }

// procRows finds the rows in the text of /proc/net/tcp{,6}:
//
//	sl  local_address rem_address   st ...
//	 0: 0100007F:1F40 00000000:0000 0A ...
func procRows(text []byte) iter.Seq[row] {
	return func(yield func(row) bool) {
		for line := range bytes.Lines(text) {
			columns := bytes.Fields(line)
			if len(columns) < 4 || columns[0][0] == 's' { // the header, or a row cut by a timeout
				continue
			}
			state, err := strconv.ParseUint(string(columns[3]), 16, 8)
			if err != nil {
				continue
			}
			if !yield(row{string(columns[1]) + string(columns[2]), byte(state)}) {
				return
			}
		}
	}
}

// netTCP is the parser of github.com/prometheus/procfs.
type netTCP struct {
	fs    procfs.FS
	table procfs.NetTCP
}

func (t *netTCP) read(keep bool) error {
	table, err := t.fs.NetTCP()
	if keep {
		t.table = table
	}
	return err
}

func (t *netTCP) rows() iter.Seq[row] {
	return func(yield func(row) bool) {
		for _, s := range t.table {
			ends := fmt.Sprint(s.LocalAddr, s.LocalPort, s.RemAddr, s.RemPort)
			if !yield(row{ends, byte(s.St)}) {
				return
			}
		}
	}
}

// A dump is the barest read by sock_diag(7): both families in one walk, nothing parsed.
type dump struct {
	fd      int
	request []byte
	buffer  []byte
	kept    []byte
}

const (
	tcpdiagGetsock = 18 // linux/inet_diag.h: the request that predates SOCK_DIAG_BY_FAMILY
	sizeofDone     = unix.SizeofNlMsghdr + 4
)

func newDump() (*dump, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("socket NETLINK_SOCK_DIAG: %w", err)
	}
	// struct nlmsghdr, then struct inet_diag_req: 4 bytes, a sockid of 48, the states' bits, 4 bytes.
	request := make([]byte, unix.SizeofNlMsghdr+60)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], tcpdiagGetsock)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[unix.SizeofNlMsghdr+52:], 0xFFFFFFFF)
	// The kernel fills datagrams of 32 KiB when the buffer has room for them.
	return &dump{fd: fd, request: request, buffer: make([]byte, 64<<10)}, nil
}

func (d *dump) read(keep bool) error {
	d.kept = d.kept[:0]
	if err := unix.Sendto(d.fd, d.request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sock_diag request: %w", err)
	}
	for {
		n, err := readBare(d.fd, d.buffer)
		if err != nil {
			return fmt.Errorf("sock_diag reply: %w", err)
		}
		datagram := d.buffer[:n]
		if n < sizeofDone {
			return fmt.Errorf("sock_diag reply: %d bytes", n)
		}
		if keep {
			d.kept = append(d.kept, datagram...)
		}
		// The last message has no socket and ends the last datagram.
		switch messageType(datagram) {
		case unix.NLMSG_ERROR:
			return fmt.Errorf("sock_diag reply: error % x", datagram)
		case unix.NLMSG_DONE:
			return doneError(datagram)
		}
		if last := datagram[n-sizeofDone:]; messageType(last) == unix.NLMSG_DONE && binary.NativeEndian.Uint32(last) == sizeofDone {
			return doneError(last)
		}
	}
}

func messageType(message []byte) uint16 { return binary.NativeEndian.Uint16(message[4:]) }

// doneError tells an empty table from a kernel without tcp_diag: the latter says -ENOENT.
func doneError(message []byte) error {
	if code := int32(binary.NativeEndian.Uint32(message[unix.SizeofNlMsghdr:])); code < 0 {
		return fmt.Errorf("sock_diag reply: %w", unix.Errno(-code))
	}
	return nil
}

// rows finds struct inet_diag_msg in each message: family, state, timer, retrans, then the sockid,
// which begins with both ports and addresses.
func (d *dump) rows() iter.Seq[row] {
	return func(yield func(row) bool) {
		for rest := d.kept; len(rest) >= unix.SizeofNlMsghdr; {
			message := rest[:binary.NativeEndian.Uint32(rest)]
			rest = rest[len(message):]
			if messageType(message) == unix.NLMSG_DONE {
				return
			}
			body := message[unix.SizeofNlMsghdr:]
			if !yield(row{string(body[4:40]), body[1]}) {
				return
			}
		}
	}
}
