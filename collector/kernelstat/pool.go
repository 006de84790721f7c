package kernelstat

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// PortSet is a set of TCP ports.
type PortSet [1 << 16 / 64]uint64

// Add puts a port into the set.
func (s *PortSet) Add(port uint16) { s[port/64] |= 1 << (port % 64) }

// Has reports whether the set has a port.
func (s *PortSet) Has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

// Remove takes a port out of the set.
func (s *PortSet) Remove(port uint16) { s[port/64] &^= 1 << (port % 64) }

// Union returns the ports that are in either set.
func (s *PortSet) Union(other *PortSet) *PortSet {
	union := *s
	for i, word := range other {
		union[i] |= word
	}
	return &union
}

// All yields the ports in the set in ascending order.
func (s *PortSet) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, word := range s {
			for ; word != 0; word &= word - 1 {
				if !yield(uint16(64*i + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// addRange adds the ports from low to high.
func (s *PortSet) addRange(low, high int) {
	const all = ^uint64(0)
	for i := low / 64; i <= high/64; i++ {
		s[i] |= all << max(low-64*i, 0) & (all >> max(64*i+63-high, 0))
	}
}

// Len returns how many ports are in the set.
func (s *PortSet) Len() int {
	n := 0
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// Used returns the share, from 0 to 1, of the ports from low to high that are in the set.
// Of no ports at all it is 1: there is none to be had.
func (s *PortSet) Used(low, high uint64) float64 {
	n := 0
	for port := low; port <= min(high, math.MaxUint16); port++ {
		if s.Has(uint16(port)) {
			n++
		}
	}
	if low > high {
		return 1
	}
	return float64(n) / float64(high-low+1)
}

// Pool is the ephemeral pool of a network namespace: the ports that connect(2)
// and bind(2) choose from, how long a connection in TIME_WAIT holds one, and the
// rules by which connect takes it over. It does not change once it is read.
type Pool struct {
	Low, High int     // the bounds of ip_local_port_range
	Ports     PortSet // those that are not in ip_local_reserved_ports
	Size      int     // how many these are

	TimeWait   time.Duration // how long TIME_WAIT lasts
	ReuseMode  uint64        // tcp_tw_reuse: 0 never, 1 always, 2 on loopback only
	Timestamps bool          // tcp_timestamps
	ReuseDelay time.Duration // tcp_tw_reuse_delay
}

const (
	// TimeWaitLength is how long the kernel keeps a connection in TIME_WAIT
	// (TCP_TIMEWAIT_LEN in include/net/tcp.h). It is a constant, but for the sysctl
	// net.ipv4.tcp_tw_timeout that some vendors' kernels have.
	TimeWaitLength = 60 * time.Second
	// LongestTimeWait is the most that sysctl takes.
	LongestTimeWait = 600 * time.Second
)

// DefaultPool returns the pool that a network namespace begins with, whatever the host's
// is (inet_init_net in net/ipv4/af_inet.c, tcp_sk_init in net/ipv4/tcp_ipv4.c).
func DefaultPool() *Pool {
	p := &Pool{Low: 32768, High: 60999, TimeWait: TimeWaitLength, ReuseMode: 2, Timestamps: true, ReuseDelay: time.Second}
	p.Ports.addRange(p.Low, p.High)
	p.Size = p.Ports.Len()
	return p
}

// The sysctls of the pool.
const (
	portRange     = "net.ipv4.ip_local_port_range"
	reservedPorts = "net.ipv4.ip_local_reserved_ports"
	timeWaitTime  = "net.ipv4.tcp_tw_timeout"
	reuseMode     = "net.ipv4.tcp_tw_reuse"
	reuseDelay    = "net.ipv4.tcp_tw_reuse_delay"
	timestamps    = "net.ipv4.tcp_timestamps"
)

// PoolSysctls returns the names of those that ReadPool reads, first the one that there is
// no pool without.
func PoolSysctls() []string {
	return []string{portRange, reservedPorts, timeWaitTime, reuseMode, reuseDelay, timestamps}
}

// ReadPool reads the sysctls of the pool. It returns nil without an error where the
// kernel has no such sysctl.
//
// See Documentation/networking/ip-sysctl.rst.
func ReadPool(ctx context.Context, from Sysctls) (*Pool, error) {
	bounds, err := ReadSysctl(ctx, from, portRange, 2)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if bounds[0] < 1 || bounds[1] > 65535 || bounds[0] > bounds[1] {
		return nil, fmt.Errorf("%s: %d is not a low and a high port", from.where(portRange), bounds)
	}
	p := &Pool{Low: int(bounds[0]), High: int(bounds[1])}
	p.Ports.addRange(p.Low, p.High)
	reserved, err := readReservedPorts(ctx, from)
	if err != nil {
		return nil, err
	}
	for i := range p.Ports {
		p.Ports[i] &^= reserved[i]
	}
	p.Size = p.Ports.Len()

	const longest = uint64(LongestTimeWait / time.Second)
	var timeWait, stamped, delay uint64
	for _, setting := range []struct {
		name     string
		value    *uint64
		fallback uint64
	}{
		{timeWaitTime, &timeWait, uint64(TimeWaitLength.Seconds())}, // seconds, 1 to 600; of vendors' kernels only
		{reuseMode, &p.ReuseMode, 0},
		{timestamps, &stamped, 1},
		{reuseDelay, &delay, 1000}, // milliseconds; a constant before Linux 6.15
	} {
		switch values, err := ReadSysctl(ctx, from, setting.name, 1); {
		case errors.Is(err, fs.ErrNotExist):
			*setting.value = setting.fallback
		case err != nil:
			return nil, err
		default:
			*setting.value = values[0]
		}
	}
	if timeWait < 1 || timeWait > longest {
		return nil, fmt.Errorf("%s: %d is not a number of seconds from 1 to %d", from.where(timeWaitTime), timeWait, longest)
	}
	p.TimeWait = time.Duration(timeWait) * time.Second
	p.Timestamps = stamped != 0
	p.ReuseDelay = time.Duration(min(delay, math.MaxInt32)) * time.Millisecond
	return p, nil
}

// readReservedPorts reads ip_local_reserved_ports; there are none where the kernel
// does not know it.
func readReservedPorts(ctx context.Context, from Sysctls) (*PortSet, error) {
	list, where, err := from.text(ctx, reservedPorts, usualFile)
	if errors.Is(err, fs.ErrNotExist) {
		return new(PortSet), nil
	}
	if err != nil {
		return nil, err
	}
	ports, err := parsePorts(string(list))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return ports, nil
}

// parsePorts parses a list such as "1,3,5-9"; it may be empty.
func parsePorts(list string) (*PortSet, error) {
	ports := new(PortSet)
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
