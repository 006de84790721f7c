package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// states are those of the kernel's include/net/tcp_states.h that a table can
// show, by the number they have there.
var states = map[uint64]string{
	1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait1", 5: "fin_wait2", 6: "time_wait",
	7: "close", 8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing",
}

// directions are those in which a state is possible.
func directions(state string) []string {
	switch state {
	case "listen", "syn_recv":
		return []string{"inbound"}
	case "syn_sent":
		return []string{"outbound"}
	default:
		return []string{"inbound", "outbound"}
	}
}

// line is a socket as /proc/net/tcp and tcp6 list it, read by another
// program's parser.
type line struct {
	table                   int // AF_
	state                   string
	local, remote           netip.AddrPort
	sendQueue, receiveQueue uint64
}

// readTable lists the sockets of the namespace.
func readTable(t *testing.T) []line {
	t.Helper()
	return readTableOf(t, procfs.DefaultMountPoint)
}

// readTableOf lists the sockets of a process's namespace. In one where nothing happens,
// reading up to the end of the file lists every socket once.
func readTableOf(t *testing.T, process string) []line {
	t.Helper()
	fs, err := procfs.NewFS(process)
	if err != nil {
		t.Fatal(err)
	}
	lines4, err := fs.NetTCP()
	if err != nil {
		t.Fatal(err)
	}
	lines6, err := fs.NetTCP6()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var lines []line
	for _, l := range lines4 {
		lines = append(lines, line{unix.AF_INET, states[l.St], addrPort(l.LocalAddr, l.LocalPort), addrPort(l.RemAddr, l.RemPort), l.TxQueue, l.RxQueue})
	}
	for _, l := range lines6 {
		lines = append(lines, line{unix.AF_INET6, states[l.St], addrPort(l.LocalAddr, l.LocalPort), addrPort(l.RemAddr, l.RemPort), l.TxQueue, l.RxQueue})
	}
	return lines
}

func addrPort(ip net.IP, port uint64) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), uint16(port))
}

// sockstat is the kernel's own count of full sockets and of minisocks.
type sockstat struct{ inUse4, inUse6, timeWait int }

func readSockstat(t *testing.T) sockstat {
	t.Helper()
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		t.Fatal(err)
	}
	v4, err := fs.NetSockstat()
	if err != nil {
		t.Fatal(err)
	}
	v6, err := fs.NetSockstat6()
	if err != nil {
		t.Fatal(err)
	}
	var s sockstat
	for _, p := range v4.Protocols {
		if p.Protocol == "TCP" {
			s.inUse4, s.timeWait = p.InUse, *p.TW
		}
	}
	for _, p := range v6.Protocols {
		if p.Protocol == "TCP6" {
			s.inUse6 = p.InUse
		}
	}
	return s
}
