package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A reader reads the whole socket table when told to.
type reader interface {
	// read reads it once. When ctx ends first the error is errNotFinished.
	read(ctx context.Context) (reading, error)
	stop()
}

var errNotFinished = errors.New("not finished in time")

// A reading is what it cost to read the table once.
type reading struct {
	cpu, wall      time.Duration
	peak, resident float64 // bytes, VmHWM and VmRSS; NaN of a bare reader, which has one buffer
	before, after  int     // rows, as the kernel said
}

// timed takes the time of work and what the table had before and after it.
func timed(work func() error) (reading, error) {
	before, err := countRows()
	if err != nil {
		return reading{}, err
	}
	start := time.Now()
	if err := work(); err != nil {
		return reading{}, err
	}
	wall := time.Since(start)
	after, err := countRows()
	return reading{wall: wall, before: before, after: after, peak: math.NaN(), resident: math.NaN()}, err
}

// cpuTime is what a CPU clock shows, in nanoseconds of the scheduler.
func cpuTime(clock int32) (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(clock, &t)
	return time.Duration(t.Nano()), err
}

// bare reads as a C program would and looks at nothing; it returns how many bytes it read. It is a thread of this process, whose
// CPU clock is its own.
type bare func(context.Context) (int, error)

func (walk bare) read(ctx context.Context) (reading, error) {
	const leastRow = 80 // bytes: a line has 150, a message 88, and sockets that close are in neither
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cpu time.Duration
	var size int
	r, err := timed(func() error {
		before, err := cpuTime(unix.CLOCK_THREAD_CPUTIME_ID)
		if err != nil {
			return err
		}
		if size, err = walk(ctx); err != nil {
			return err
		}
		after, err := cpuTime(unix.CLOCK_THREAD_CPUTIME_ID)
		cpu = after - before
		return err
	})
	if rows := min(r.before, r.after); err == nil && size < leastRow*rows {
		return r, fmt.Errorf("%d bytes read of %d rows", size, rows)
	}
	r.cpu = cpu
	return r, err
}

func (bare) stop() {}

// readBare is read(2) as a C program does it, unknown to Go's scheduler: that one wakes other threads
// while a system call lasts, which is a tenth of the CPU time of a walk where CPUs are idle.
func readBare(ctx context.Context, fd int, buffer []byte) (int, error) {
	if ctx.Err() != nil {
		return 0, errNotFinished
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// readFiles is the barest read of /proc/net/tcp and tcp6 that ends.
func readFiles() bare {
	buffer := make([]byte, max(64<<10, os.Getpagesize()))
	return func(ctx context.Context) (size int, err error) {
		for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			n, err := readFile(ctx, path, buffer)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			size += n
		}
		return size, nil
	}
}

// readFile stops at the first read that had room for one more line, and not at the end of the
// file: net/ipv4/tcp_ipv4.c walks the whole table again to find out that there is none.
func readFile(ctx context.Context, path string, buffer []byte) (size int, err error) {
	const longestLine = 256 // 220 bytes, by the widths of tcp6's columns
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		n, err := readBare(ctx, fd, buffer)
		size += n
		// A read gives as many whole lines as fit in one page, fs/seq_file.c.
		if err != nil || n+longestLine <= os.Getpagesize() {
			return size, err
		}
	}
}

const (
	tcpdiagGetsock = 18 // linux/inet_diag.h: the request that predates SOCK_DIAG_BY_FAMILY
	sizeofDone     = unix.SizeofNlMsghdr + 4
)

// dump is the barest read by sock_diag(7): both families in one walk.
func dump() bare {
	// struct nlmsghdr, then struct inet_diag_req: 4 bytes, a sockid of 48, the states' bits, 4 bytes.
	request := make([]byte, unix.SizeofNlMsghdr+60)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], tcpdiagGetsock)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[unix.SizeofNlMsghdr+52:], 0xFFFFFFFF)
	// The kernel fills datagrams of 32 KiB when the buffer has room for them.
	buffer := make([]byte, 64<<10)
	return func(ctx context.Context) (size int, err error) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return 0, fmt.Errorf("socket NETLINK_SOCK_DIAG: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return 0, fmt.Errorf("sock_diag request: %w", err)
		}
		for {
			n, err := readBare(ctx, fd, buffer)
			if err != nil {
				return 0, fmt.Errorf("sock_diag reply: %w", err)
			}
			size += n
			if done, err := lastDatagram(buffer[:n]); done || err != nil {
				return size, err
			}
		}
	}
}

// lastDatagram reports whether a datagram ends a dump: with a message that has no socket, alone or behind others.
func lastDatagram(datagram []byte) (bool, error) {
	if len(datagram) < sizeofDone {
		return false, fmt.Errorf("sock_diag reply: %d bytes", len(datagram))
	}
	kind := func(message []byte) uint16 { return binary.NativeEndian.Uint16(message[4:]) }
	last := datagram[len(datagram)-sizeofDone:]
	switch {
	case kind(datagram) == unix.NLMSG_ERROR:
		return false, fmt.Errorf("sock_diag reply: error % x", datagram)
	case kind(datagram) == unix.NLMSG_DONE:
		last = datagram
	case kind(last) != unix.NLMSG_DONE || binary.NativeEndian.Uint32(last) != sizeofDone:
		return false, nil
	}
	// An empty table, or a kernel without tcp_diag: the latter says -ENOENT.
	if code := int32(binary.NativeEndian.Uint32(last[unix.SizeofNlMsghdr:])); code < 0 {
		return false, fmt.Errorf("sock_diag reply: %w", unix.Errno(-code))
	}
	return true, nil
}

// A daemon is an exporter, scraped over HTTP. It starts with its first reading and dies with this process.
type daemon struct {
	path    string
	address string // what it is to listen on
	family  string // that its page must have
	flags   []string
	command *exec.Cmd
	stderr  bytes.Buffer  // to be read when it has ended
	ended   chan struct{} // closed then
}

// settle is how long a daemon may work on after its answer, at its own cost: the garbage collector of a Go program does.
const settle = 20 * time.Millisecond

func (d *daemon) start(ctx context.Context) error {
	d.command = exec.Command(d.path, append(d.flags, "--web.listen-address="+d.address)...)
	d.command.Stderr = &d.stderr
	d.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.command.Start(); err != nil {
		d.command = nil
		return err
	}
	d.ended = make(chan struct{})
	go func() {
		_ = d.command.Wait() // that it ended is told by ended, the reason by stderr
		close(d.ended)
	}()
	for {
		if d.scrape(ctx) == nil {
			return nil
		}
		select {
		case <-d.ended:
			lines := strings.Split(strings.TrimSpace(d.stderr.String()), "\n")
			return fmt.Errorf("exit: %q", lines[len(lines)-1])
		case <-ctx.Done():
			return errNotFinished
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *daemon) stop() {
	if d.command != nil {
		_ = d.command.Process.Kill()
		<-d.ended
	}
}

// read adds to a timed scrape the CPU time that the process, all of its threads, spends meanwhile, and its memory afterwards.
func (d *daemon) read(ctx context.Context) (reading, error) {
	if d.command == nil {
		if err := d.start(ctx); err != nil {
			return reading{}, err
		}
	}
	// The clock that clock_getcpuclockid(3) names; /proc/PID/stat counts in ticks of 10 ms.
	const cpuclockSched = 2 // include/linux/posix-timers.h
	clock := int32(^d.command.Process.Pid<<3 | cpuclockSched)
	before, err := cpuTime(clock)
	if err != nil {
		return reading{}, fmt.Errorf("CPU clock of %s: %w", d.command, err)
	}
	r, err := timed(func() error { return d.scrape(ctx) })
	if err != nil {
		return r, err
	}
	time.Sleep(settle)
	after, err := cpuTime(clock)
	if err != nil {
		return r, fmt.Errorf("CPU clock of %s: %w", d.command, err)
	}
	r.cpu = after - before
	proc, err := procfs.NewProc(d.command.Process.Pid)
	if err != nil {
		return r, err
	}
	status, err := proc.NewStatus()
	if err != nil {
		return r, err
	}
	r.peak, r.resident = float64(status.VmHWM), float64(status.VmRSS)
	return r, nil
}

// scrape asks as Prometheus does, for a page that has the family.
func (d *daemon) scrape(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.address+"/metrics", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2")
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(scrapeTimeout.Seconds(), 'f', -1, 64))
	response, err := http.DefaultClient.Do(request)
	if err == nil {
		defer func() { _ = response.Body.Close() }()
		var page []byte
		if page, err = io.ReadAll(response.Body); err == nil && !bytes.Contains(page, []byte("\n"+d.family+"{")) {
			err = fmt.Errorf("%s: %s, no %s", request.URL, response.Status, d.family)
		}
	}
	if ctx.Err() != nil {
		return errNotFinished
	}
	return err
}
