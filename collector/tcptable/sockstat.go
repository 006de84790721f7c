package tcptable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"timewait_exporter/collector/kernelstat"
)

// sockstat is what the kernel counts of TCP sockets itself
// (sockstat_seq_show in net/ipv4/proc.c). All but allocated is of the network
// namespace. From the zero value, that of a kernel which does not count, nothing
// follows.
type sockstat struct {
	inUse     uint64 // AF_INET sockets that are in the table, without minisocks and request sockets
	inUse6    uint64 // AF_INET6 ones
	ipv6      bool   // whether the kernel has IPv6, and so inUse6
	timeWait  uint64 // minisocks of both families; before Linux 4.10 those of all namespaces
	allocated uint64 // sockets of all namespaces, in the table or not
}

// readSockstat reads sockstat and sockstat6 below dir, a net directory. A kernel
// without IPv6 has no sockstat6; without the other counts there are none.
func readSockstat(ctx context.Context, dir string) sockstat {
	tcp, err := kernelstat.ReadPairs(ctx, filepath.Join(dir, "sockstat"), "TCP", "inuse", "tw", "alloc")
	if err != nil || len(tcp) != 3 {
		return sockstat{}
	}
	s := sockstat{inUse: tcp["inuse"], timeWait: tcp["tw"], allocated: tcp["alloc"]}
	tcp6, err := kernelstat.ReadPairs(ctx, filepath.Join(dir, "sockstat6"), "TCP6", "inuse")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s
	case err != nil || len(tcp6) != 1:
		return sockstat{}
	}
	s.inUse6, s.ipv6 = tcp6["inuse"], true
	return s
}

// tcp6Empty reports whether tcp6 has no row but those of MPTCP: no AF_INET6 socket,
// and no minisock of either family. A request socket needs a listener, which counts.
func (s sockstat) tcp6Empty() bool { return s.ipv6 && s.inUse6 == 0 && s.timeWait == 0 }

// allInTable reports whether there is no socket outside the table, so none that is
// bound and idle. It can't tell when other namespaces have sockets.
func (s sockstat) allInTable() bool { return s.allocated > 0 && s.allocated == s.inUse+s.inUse6 }

// noMPTCP6 reports whether tcp6 surely has no subflow of MPTCP, which sockstat6 may
// not count: from Linux 5.12 until it was mended in 2026, their tcpv6_prot_override
// (net/mptcp/subflow.c) was copied before tcpv6_prot had its place among the counts.
//
// net/protocols counts the MPTCP sockets they belong to, but only since Linux 6.3.
// Whether a 0 there is a count, a counter tells that came with 6.8.
func noMPTCP6(ctx context.Context, dir string) bool {
	protocols, err := kernelstat.ReadFile(ctx, filepath.Join(dir, "protocols"))
	if err != nil || !bytes.HasPrefix(protocols, []byte("protocol ")) {
		return false
	}
	for line := range bytes.Lines(protocols) {
		// protocol  size sockets  memory press maxhdr  slab module ...
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != "MPTCPv6" {
			continue
		}
		if len(fields) < 3 || string(fields[2]) != "0" {
			return false
		}
		counters, err := kernelstat.ReadCounters(ctx, filepath.Join(dir, "netstat"), "MPTcpExt", "MPCurrEstab")
		return err == nil && len(counters) == 1
	}
	return true
}

// census counts the rows of a walk, to hold them against sockstat.
type census [NumTables][numKinds]uint64

func (c *census) add(s *Socket) { c[s.Table][s.Kind]++ }

// check fails when a walk has far fewer rows than sockstat below dir counted before
// it and counts now.
func (c *census) check(ctx context.Context, dir string, before sockstat) error {
	if c.compare(dir, before, before) == nil {
		return nil // whatever is counted now
	}
	after := readSockstat(ctx, dir)
	// Kernels before 4.10 count those in TIME_WAIT of all namespaces; this counter is
	// there until 4.12.
	old, err := kernelstat.ReadCounters(ctx, filepath.Join(dir, "netstat"), "TcpExt", "PAWSPassive")
	if err != nil || len(old) > 0 {
		before.timeWait, after.timeWait = 0, 0
	}
	return c.compare(dir, before, after)
}

// compare compares with both counts. The table changes during a walk, so it may differ
// from either; but not by a quarter of the lower one, unless that is a few sockets.
func (c *census) compare(dir string, before, after sockstat) error {
	// Sockets that have closed since are minisocks of the same table by now, which is
	// not known of those that were minisocks before.
	tcp, tcp6 := c[TCP][Full]+c[TCP][Mini], c[TCP6][Full]+c[TCP6][Mini]
	for _, e := range []ShortError{
		{Table: TCP.String(), Rows: tcp, Before: before.inUse, After: after.inUse},
		{Table: TCP6.String(), Rows: tcp6, Before: before.inUse6, After: after.inUse6},
		{Table: "tcp, tcp6", Rows: tcp + tcp6, Before: before.inUse + before.inUse6 + before.timeWait, After: after.inUse + after.inUse6 + after.timeWait},
	} {
		const few = 64
		least := min(e.Before, e.After)
		if e.Rows+few <= least && 4*e.Rows < 3*least {
			e.Dir = dir
			return &e
		}
	}
	return nil
}

// ShortError is a walk that has far fewer rows than the kernel counts: it saw a part
// of the table, or one that was emptied and filled again meanwhile.
type ShortError struct {
	Dir   string // the net directory that counts
	Table string // "tcp", "tcp6", or "tcp, tcp6"
	// Rows are those read, and Before and After what sockstat counted before the walk
	// and after it; request sockets are in none of them.
	Rows, Before, After uint64
}

func (e *ShortError) Error() string {
	return fmt.Sprintf("%s: %d sockets of %s were read, but sockstat counts %d before the walk and %d after it", e.Dir, e.Rows, e.Table, e.Before, e.After)
}
