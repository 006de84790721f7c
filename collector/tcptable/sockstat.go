package tcptable

import (
	"context"
	"fmt"
	"path/filepath"

	"timewait_exporter/collector/kernelstat"
)

// sockstat is what the kernel counts of TCP sockets itself
// (sockstat_seq_show in net/ipv4/proc.c). All but allocated is of the network
// namespace.
type sockstat struct {
	inUse, inUse6 uint64 // AF_INET and AF_INET6 sockets that are in the table, without minisocks
	timeWait      uint64 // minisocks of both families
	allocated     uint64 // sockets of all namespaces, in the table or not
}

// readSockstat reads sockstat6 and sockstat below dir, a net directory.
func readSockstat(ctx context.Context, dir string) (sockstat, error) {
	tcp6, err := kernelstat.ReadPairs(ctx, filepath.Join(dir, "sockstat6"), "TCP6", "inuse")
	if err != nil {
		return sockstat{}, err
	}
	tcp, err := kernelstat.ReadPairs(ctx, filepath.Join(dir, "sockstat"), "TCP", "inuse", "tw", "alloc")
	if err != nil {
		return sockstat{}, err
	}
	if len(tcp6)+len(tcp) != 4 {
		return sockstat{}, fmt.Errorf("%s: sockstat and sockstat6 do not count TCP", dir)
	}
	return sockstat{inUse: tcp["inuse"], inUse6: tcp6["inuse"], timeWait: tcp["tw"], allocated: tcp["alloc"]}, nil
}

// tcp6Empty reports whether tcp6 has no row: no AF_INET6 socket, and no minisock of
// either family. A request socket needs a listener, which counts.
func (s sockstat) tcp6Empty() bool { return s.inUse6 == 0 && s.timeWait == 0 }

// allInTable reports whether there is no socket outside the table, so none that is
// bound and idle. It can't tell when other namespaces have sockets.
func (s sockstat) allInTable() bool { return s.allocated == s.inUse+s.inUse6 }
