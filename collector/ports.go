package collector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tcptable"
)

// portSet is a set of TCP ports.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(port uint16)      { s[port/64] |= 1 << (port % 64) }
func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

// addRange adds the ports from low to high.
func (s *portSet) addRange(low, high int) {
	const all = ^uint64(0)
	for i := low / 64; i <= high/64; i++ {
		s[i] |= all << max(low-64*i, 0) & (all >> max(64*i+63-high, 0))
	}
}

func (s *portSet) len() int {
	n := 0
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// pool is the ephemeral pool of a network namespace: the ports that connect(2)
// and bind(2) choose from, how long a connection in TIME_WAIT holds one, and the
// rules by which connect takes it over.
type pool struct {
	low, high int // the bounds of ip_local_port_range
	ports     portSet
	size      int

	timeWait   time.Duration // how long TIME_WAIT lasts
	reuseMode  uint64        // tcp_tw_reuse
	timestamps bool
	reuseDelay time.Duration
}

// readPool reads the sysctls of the pool below root/sys. It returns nil without
// an error where the kernel has no such sysctl.
//
// See Documentation/networking/ip-sysctl.rst.
func readPool(ctx context.Context, root string) (*pool, error) {
	const portRange = "net.ipv4.ip_local_port_range"
	bounds, err := kernelstat.ReadSysctl(ctx, root, portRange, 2)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if bounds[0] < 1 || bounds[1] > 65535 || bounds[0] > bounds[1] {
		return nil, fmt.Errorf("%s: %d is not a low and a high port", kernelstat.SysctlPath(root, portRange), bounds)
	}
	p := &pool{low: int(bounds[0]), high: int(bounds[1])}
	p.ports.addRange(p.low, p.high)
	reserved, err := readReservedPorts(ctx, kernelstat.SysctlPath(root, "net.ipv4.ip_local_reserved_ports"))
	if err != nil {
		return nil, err
	}
	for i := range p.ports {
		p.ports[i] &^= reserved[i]
	}
	p.size = p.ports.len()

	const timeWaitLength, longest = "net.ipv4.tcp_tw_timeout", 600
	var timeWait, timestamps, delay uint64
	for _, setting := range []struct {
		name     string
		value    *uint64
		fallback uint64
	}{
		{timeWaitLength, &timeWait, uint64(tcptable.TimeWaitLength.Seconds())}, // seconds, 1 to 600; of vendors' kernels only
		{"net.ipv4.tcp_tw_reuse", &p.reuseMode, 0},
		{"net.ipv4.tcp_timestamps", &timestamps, 1},
		{"net.ipv4.tcp_tw_reuse_delay", &delay, 1000}, // milliseconds; a constant before Linux 6.15
	} {
		switch values, err := kernelstat.ReadSysctl(ctx, root, setting.name, 1); {
		case errors.Is(err, fs.ErrNotExist):
			*setting.value = setting.fallback
		case err != nil:
			return nil, err
		default:
			*setting.value = values[0]
		}
	}
	if timeWait < 1 || timeWait > longest {
		return nil, fmt.Errorf("%s: %d is not a number of seconds from 1 to %d", kernelstat.SysctlPath(root, timeWaitLength), timeWait, longest)
	}
	p.timeWait = time.Duration(timeWait) * time.Second
	p.timestamps = timestamps != 0
	p.reuseDelay = time.Duration(min(delay, math.MaxInt32)) * time.Millisecond
	return p, nil
}

// readReservedPorts reads ip_local_reserved_ports; there are none where the kernel
// does not know it.
func readReservedPorts(ctx context.Context, path string) (*portSet, error) {
	list, err := kernelstat.ReadFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return new(portSet), nil
	}
	if err != nil {
		return nil, err
	}
	ports, err := parsePorts(string(list))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ports, nil
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
			return nil, fmt.Errorf("%.200q is neither a port nor a range of ports", item)
		}
		ports.addRange(int(low), int(high))
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
	// The age is below 0 where TIME_WAIT lasted longer when s came into it.
	return p.timeWait-s.TimerLeft > p.reuseDelay
}
