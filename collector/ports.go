package collector

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"timewait_exporter/collector/tcptable"
)

// portSet is a set of TCP ports.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(port uint16)      { s[port/64] |= 1 << (port % 64) }
func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

func (s *portSet) len() int {
	n := 0
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// pool is the ephemeral pool of a network namespace: the ports that connect(2)
// and bind(2) choose from, and the rules by which connect takes a port over from
// a connection in TIME_WAIT.
type pool struct {
	low, high int // the bounds of ip_local_port_range
	ports     portSet
	size      int

	reuseMode  int // tcp_tw_reuse
	timestamps bool
	reuseDelay time.Duration
}

// readPool reads the sysctls of the pool below root/sys. It returns nil without
// an error where the kernel has no such sysctl.
//
// See Documentation/networking/ip-sysctl.rst.
func readPool(root string) (*pool, error) {
	proc, err := procfs.NewFS(root)
	if err != nil {
		return nil, err
	}
	bounds, err := sysctlInts(proc, "net.ipv4.ip_local_port_range")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bounds) != 2 || bounds[0] < 1 || bounds[1] > 65535 || bounds[0] > bounds[1] {
		return nil, fmt.Errorf("net.ipv4.ip_local_port_range: %v is not a low and a high port", bounds)
	}
	p := &pool{low: bounds[0], high: bounds[1]}
	for port := p.low; port <= p.high; port++ {
		p.ports.add(uint16(port))
	}
	reserved, err := readReservedPorts(filepath.Join(root, "sys/net/ipv4/ip_local_reserved_ports"))
	if err != nil {
		return nil, err
	}
	for i := range p.ports {
		p.ports[i] &^= reserved[i]
	}
	p.size = p.ports.len()

	var timestamps, delay int
	for _, setting := range []struct {
		name     string
		value    *int
		fallback int
	}{
		{"net.ipv4.tcp_tw_reuse", &p.reuseMode, 0},
		{"net.ipv4.tcp_timestamps", &timestamps, 1},
		{"net.ipv4.tcp_tw_reuse_delay", &delay, 1000}, // milliseconds; a constant before Linux 6.15
	} {
		if *setting.value, err = sysctlInt(proc, setting.name); errors.Is(err, fs.ErrNotExist) {
			*setting.value = setting.fallback
		} else if err != nil {
			return nil, err
		}
	}
	p.timestamps = timestamps != 0
	p.reuseDelay = time.Duration(delay) * time.Millisecond
	return p, nil
}

// sysctlInts reads the numbers of a sysctl. An error names it, which those of
// procfs don't all do.
func sysctlInts(proc procfs.FS, name string) ([]int, error) {
	values, err := proc.SysctlInts(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return values, nil
}

func sysctlInt(proc procfs.FS, name string) (int, error) {
	values, err := sysctlInts(proc, name)
	if err != nil {
		return 0, err
	}
	if len(values) != 1 {
		return 0, fmt.Errorf("%s: %v is not one number", name, values)
	}
	return values[0], nil
}

// readReservedPorts reads ip_local_reserved_ports. The kernel gives it to the
// first read(2) only, and only as much as fits (proc_do_large_bitmap in
// kernel/sysctl.c), so what fills the buffer is read again with a larger one.
func readReservedPorts(path string) (*portSet, error) {
	for size := 4 << 10; ; size *= 8 {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return new(portSet), nil
		}
		if err != nil {
			return nil, err
		}
		buf := make([]byte, size)
		n, err := f.Read(buf)
		f.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n == size {
			continue
		}
		ports, err := parsePorts(string(buf[:n]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return ports, nil
	}
}

// parsePorts parses a list such as "1,3,5-9"; it may be empty.
func parsePorts(list string) (*portSet, error) {
	ports := new(portSet)
	list = strings.TrimSpace(list)
	if list == "" {
		return ports, nil
	}
	for item := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(item, "-")
		if !isRange {
			to = from
		}
		low, err1 := strconv.ParseUint(from, 10, 16)
		high, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || low > high {
			return nil, fmt.Errorf("%q is neither a port nor a range of ports", item)
		}
		for port := low; port <= high; port++ {
			ports.add(uint16(port))
		}
	}
	return ports, nil
}

// reusable reports whether connect(2) may take the port of s over right now for
// a connection between the same ends, as tcp_twsk_unique in net/ipv4/tcp_ipv4.c
// decides. Whether timestamps were on when s was connected is not in the table,
// so the sysctl of today stands for it; nor is whether s was bound to the
// loopback device.
func (p *pool) reusable(s *tcptable.Socket) bool {
	if s.State != tcptable.TimeWait || !p.timestamps {
		return false
	}
	switch p.reuseMode {
	case 1:
	case 2:
		if !s.Local.Addr.IP().IsLoopback() && !s.Remote.Addr.IP().IsLoopback() {
			return false
		}
	default:
		return false
	}
	return tcptable.TimeWaitLength-s.TimerLeft > p.reuseDelay
}
