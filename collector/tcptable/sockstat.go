package tcptable

import (
	"fmt"
	"path/filepath"

	"github.com/prometheus/procfs"
)

// sockstat is what the kernel counts of TCP sockets itself
// (sockstat_seq_show in net/ipv4/proc.c). All but allocated is of the network
// namespace.
type sockstat struct {
	inUse, inUse6 int // AF_INET and AF_INET6 sockets that are in the table, without minisocks
	timeWait      int // minisocks of both families
	allocated     int // sockets of all namespaces, in the table or not
}

// readSockstat reads sockstat6 and sockstat below dir, a net directory.
func readSockstat(dir string) (sockstat, error) {
	proc, err := procfs.NewFS(filepath.Dir(dir))
	if err != nil {
		return sockstat{}, err
	}
	stat6, err := proc.NetSockstat6()
	if err != nil {
		return sockstat{}, err
	}
	stat, err := proc.NetSockstat()
	if err != nil {
		return sockstat{}, err
	}
	for _, p6 := range stat6.Protocols {
		for _, p := range stat.Protocols {
			if p6.Protocol == "TCP6" && p.Protocol == "TCP" && p.TW != nil && p.Alloc != nil {
				return sockstat{inUse: p.InUse, inUse6: p6.InUse, timeWait: *p.TW, allocated: *p.Alloc}, nil
			}
		}
	}
	return sockstat{}, fmt.Errorf("%s: sockstat and sockstat6 do not count TCP", dir)
}

// tcp6Empty reports whether tcp6 has no row: no AF_INET6 socket, and no minisock of
// either family. A request socket needs a listener, which counts.
func (s sockstat) tcp6Empty() bool { return s.inUse6 == 0 && s.timeWait == 0 }

// allInTable reports whether there is no socket outside the table, so none that is
// bound and idle. It can't tell when other namespaces have sockets.
func (s sockstat) allInTable() bool { return s.allocated == s.inUse+s.inUse6 }
