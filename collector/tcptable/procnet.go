package tcptable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"timewait_exporter/collector/kernelstat"
)

// ProcNet is the Source that parses net/tcp and net/tcp6 of a proc file system.
type ProcNet struct {
	dir    string
	tables [NumTables]tableReader
	asides chan struct{} // has a token for each aside that has not returned
}

// NewProcNet returns the Source for the tables in dir, for example
// /proc/self/net. It reads nothing yet.
func NewProcNet(dir string) *ProcNet {
	p := &ProcNet{dir: dir, asides: make(chan struct{}, 1)}
	for t := range NumTables {
		p.tables[t] = newTableReader(t, filepath.Join(dir, t.String()))
	}
	return p
}

// SetDir has later walks read the tables in another directory.
func (p *ProcNet) SetDir(dir string) {
	p.dir = dir
	for t := range NumTables {
		p.tables[t].path = filepath.Join(dir, t.String())
	}
}

// Sockets implements Source. Both files are opened anew in each walk: the
// kernel's iterator keeps a position in the hash table that is only good for
// reading on.
func (p *ProcNet) Sockets(ctx context.Context) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		stat := aside(ctx, p, func(ctx context.Context) sockstat { return readSockstat(ctx, p.dir) })
		tables, err := p.open(ctx, stat)
		if err != nil {
			yield(Socket{}, err)
			return
		}
		defer p.close()

		var rows census
		for _, r := range tables {
			for r.next(ctx) && r.socket.State == Listen {
				rows.add(&r.socket)
				if !yield(r.socket, nil) {
					return
				}
			}
		}
		for _, r := range tables {
			for ; r.ok; r.next(ctx) {
				rows.add(&r.socket)
				if !yield(r.socket, nil) {
					return
				}
			}
			if r.err != nil {
				yield(Socket{}, r.err)
				return
			}
		}
		if err := aside(ctx, p, func(ctx context.Context) error { return rows.check(ctx, p.dir, stat) }); err != nil {
			yield(Socket{}, err)
		}
	}
}

// open opens the tables that can have rows. A kernel without IPv6 has no tcp6.
func (p *ProcNet) open(ctx context.Context, stat sockstat) ([]*tableReader, error) {
	tcp, tcp6 := &p.tables[TCP], &p.tables[TCP6]
	if err := tcp.open(ctx); err != nil {
		return nil, err
	}
	// The walk of an empty table visits every hash bucket and, in them, every other
	// socket of the machine.
	if stat.tcp6Empty() && aside(ctx, p, func(ctx context.Context) bool { return noMPTCP6(ctx, p.dir) }) {
		return []*tableReader{tcp}, nil
	}
	switch err := tcp6.open(ctx); {
	case errors.Is(err, fs.ErrNotExist) && stat.inUse6 == 0:
		return []*tableReader{tcp}, nil
	case errors.Is(err, fs.ErrNotExist):
		p.close()
		return nil, fmt.Errorf("%w, but sockstat6 counts %d sockets", err, stat.inUse6)
	case err != nil:
		p.close()
		return nil, err
	}
	return []*tableReader{tcp, tcp6}, nil
}

// asideTimeout is how long a walk waits for what it can do without, which takes some
// 10 µs.
const asideTimeout = 200 * time.Millisecond

// aside returns what read returns of files beside the tables, or the zero value if
// that takes too long or an earlier one hangs: a file that hangs is no reason for a
// walk to.
func aside[T any](ctx context.Context, p *ProcNet, read func(context.Context) T) (value T) {
	select {
	case p.asides <- struct{}{}:
	default:
		return value
	}
	ctx, cancel := context.WithTimeout(ctx, asideTimeout)
	defer cancel()
	result := make(chan T, 1)
	go func() {
		value := read(ctx)
		<-p.asides // before the walk goes on to the next
		result <- value
	}()
	select {
	case value = <-result:
	case <-ctx.Done():
	}
	return value
}

func (p *ProcNet) close() {
	for t := range p.tables {
		p.tables[t].close()
	}
}

// RowError is a row that is not as the kernel writes it.
type RowError struct {
	// Table is the table and File the path it was read from.
	Table Table
	File  string
	// Row counts from 1, the header line is row 0.
	Row int
	// Text is the row as it was read, cut to maxRow bytes.
	Text string
	Err  error
}

func (e *RowError) Error() string {
	return fmt.Sprintf("%s: row %d: %v: %q", e.File, e.Row, e.Err, e.Text)
}

func (e *RowError) Unwrap() error { return e.Err }

// maxRow is more than the longest row that the widths of its fields allow: about
// 170 bytes in tcp and 220 in tcp6 (get_tcp4_sock in net/ipv4/tcp_ipv4.c,
// get_tcp6_sock in net/ipv6/tcp_ipv6.c).
const maxRow = 256

// readsPerTurn is after how many reads, of some 30 µs each, a walk yields to the
// scheduler. A goroutine that does not for 10 ms is taken for a hog, and its
// thread then made to wait at the end of one system call after the other, which
// costs a walk a tenth of its time.
const readsPerTurn = 64

// tableReader walks one table. Its memory is used again in the next walk.
type tableReader struct {
	table     Table
	path      string
	bigEndian bool
	pageSize  int

	file       *os.File
	stop       func() bool // the interrupt of file
	buf        []byte
	start, end int  // buf[start:end] is read and not yet parsed
	last       bool // no read is to follow
	row        int
	reads      int

	recent *recentRows

	socket Socket // the row next has read, while ok
	ok     bool
	err    error
}

func newTableReader(t Table, path string) tableReader {
	pageSize := os.Getpagesize()
	return tableReader{
		table:     t,
		path:      path,
		bigEndian: binary.NativeEndian.Uint16([]byte{0, 1}) == 1,
		pageSize:  pageSize,
		// A read returns at most a page; what a row needs beside it is the part
		// of it that the read before has left.
		buf:    make([]byte, 2*pageSize),
		recent: newRecentRows(),
	}
}

// open begins a walk. It reads nothing yet. Where the table is a FIFO, neither it nor
// the reads wait longer than ctx lasts.
func (r *tableReader) open(ctx context.Context) error {
	f, err := os.OpenFile(r.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	r.stop = kernelstat.Interrupt(ctx, f)
	r.file, r.start, r.end, r.last, r.row = f, 0, 0, false, -1
	r.ok, r.err = false, nil
	r.recent.reset()
	return nil
}

func (r *tableReader) close() {
	if r.file != nil {
		r.stop()
		r.file.Close() // nothing was written, so nothing can be lost
		r.file = nil
	}
}

// next reads the next row into r.socket and reports whether there was one; ok
// keeps the answer. At the end of the table r.err is nil.
func (r *tableReader) next(ctx context.Context) bool {
	r.ok = r.err == nil && r.advance(ctx)
	return r.ok
}

func (r *tableReader) advance(ctx context.Context) bool {
	for {
		line, err := r.line(ctx)
		if err != nil {
			r.err = err
			return false
		}
		if line == nil {
			return false
		}
		r.row++
		if r.row == 0 {
			if !bytes.HasPrefix(line, []byte("  sl  local_address ")) {
				r.err = r.rowError(line, errors.New("not the header of a TCP table"))
				return false
			}
			continue
		}
		ends, err := parseRow(line, r.table, r.bigEndian, &r.socket)
		if err != nil {
			r.err = r.rowError(line, err)
			return false
		}
		if r.socket.State != Listen && r.recent.seen(ends) {
			continue
		}
		return true
	}
}

// line returns the next line without its newline, nil at the end of the table.
// It is valid until the next call.
func (r *tableReader) line(ctx context.Context) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.start:r.end], '\n'); i >= 0 {
			line := r.buf[r.start : r.start+i]
			r.start += i + 1
			return line, nil
		}
		if r.last {
			return nil, r.checkEnd()
		}
		if err := r.read(ctx); err != nil {
			return nil, err
		}
	}
}

// checkEnd tells an end between two rows from one within a row, of which the kernel
// knows nothing: a read of a seq_file gives whole rows.
func (r *tableReader) checkEnd() error {
	switch {
	case r.start < r.end:
		r.row++
		return r.rowError(r.buf[r.start:r.end], errors.New("the file ends within the row"))
	case r.row < 0:
		return fmt.Errorf("%s: empty, not even a header", r.path)
	}
	return nil
}

// read reads once from the file, and knows the end of the table by the first
// short read.
//
// A read of a seq_file gives whole rows, at most a page of them, and ends early
// only when the next row doesn't fit (seq_read_iter in fs/seq_file.c). So a read
// with room left for another row was the last one. Reading on until EOF would be
// wrong: the kernel then looks for the position behind the last socket by walking
// the table again from its first bucket, which doubles the cost, lists sockets
// twice when others have come, and while they come fast never ends.
func (r *tableReader) read(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: after %d rows: %w", r.path, r.row, context.Cause(ctx))
	}
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	if len(r.buf)-r.end < r.pageSize {
		r.row++
		return r.rowError(r.buf[:r.end], fmt.Errorf("longer than %d bytes", r.end))
	}
	n, err := r.file.Read(r.buf[r.end:])
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s: after %d rows: %w", r.path, max(r.row, 0), context.Cause(ctx))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("after %d rows: %w", r.row, err)
	}
	r.end += n
	r.last = n+maxRow <= r.pageSize
	r.recent.nextRead()
	if r.reads++; r.reads%readsPerTurn == 0 {
		runtime.Gosched()
	}
	return nil
}

func (r *tableReader) rowError(line []byte, err error) *RowError {
	return &RowError{Table: r.table, File: r.path, Row: r.row, Text: string(line[:min(len(line), maxRow)]), Err: err}
}
