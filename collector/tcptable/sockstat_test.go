package tcptable

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadSockstat(t *testing.T) {
	const (
		testSockstat  = "sockets: used 188\nTCP: inuse 21 orphan 294 tw 6 alloc 362 mem 356\nUDP: inuse 4 mem 3\n"
		testSockstat6 = "TCP6: inuse 42\nUDP6: inuse 3\nFRAG6: inuse 0 memory 0\n"
	)
	f := func(want sockstat, files map[string]string) {
		t.Helper()
		if got := readSockstat(t.Context(), writeNet(t, files)); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	f(sockstat{inUse: 21, inUse6: 42, ipv6: true, timeWait: 6, allocated: 362}, map[string]string{"sockstat": testSockstat, "sockstat6": testSockstat6})
	f(sockstat{inUse: 21, timeWait: 6, allocated: 362}, map[string]string{"sockstat": testSockstat}) // IPv6 is not compiled in

	// Files that do not say what is needed: no count is taken for 0.
	f(sockstat{}, nil)
	f(sockstat{}, map[string]string{"sockstat6": testSockstat6})
	for _, text := range []string{
		"", "TCP: inuse 1 orphan 0 alloc 1 mem 1\n", "TCP: inuse 1 orphan 0 tw 1 mem 1\n", "UDP: inuse 4 mem 3\n",
		"TCP: inuse x orphan 0 tw 1 alloc 1 mem 1\n", "TCP: inuse\n", "TCP\n",
	} {
		f(sockstat{}, map[string]string{"sockstat": text, "sockstat6": testSockstat6})
	}
	for _, text6 := range []string{"", "UDP6: inuse 3\n", "TCP6: inuse -\n"} {
		f(sockstat{}, map[string]string{"sockstat": testSockstat, "sockstat6": text6})
	}
}

// TestSockstat draws conclusions from counts: only those that hold.
func TestSockstat(t *testing.T) {
	f := func(s sockstat, tcp6Empty, allInTable bool) {
		t.Helper()
		if got := s.tcp6Empty(); got != tcp6Empty {
			t.Errorf("%+v: tcp6 is empty: %v, want %v", s, got, tcp6Empty)
		}
		if got := s.allInTable(); got != allInTable {
			t.Errorf("%+v: all sockets are in the table: %v, want %v", s, got, allInTable)
		}
	}
	f(sockstat{}, false, false)
	f(sockstat{ipv6: true, inUse: 5, allocated: 5}, true, true)
	f(sockstat{ipv6: true, inUse: 5, allocated: 6}, true, false)
	f(sockstat{ipv6: true, inUse: 5, inUse6: 2, allocated: 7}, false, true)
	f(sockstat{ipv6: true, inUse6: 1, allocated: 1}, false, true)
	f(sockstat{ipv6: true, inUse: 5, inUse6: 2, allocated: 5}, false, false)
	// Without sockstat6 nothing says that there are none.
	f(sockstat{inUse: 5, allocated: 5}, false, true)
	// A minisock may be of either family, and is not in the other counts.
	f(sockstat{ipv6: true, inUse: 5, timeWait: 1, allocated: 5}, false, true)
}

// TestNoMPTCP6 takes a 0 of net/protocols for a count only where it is one.
func TestNoMPTCP6(t *testing.T) {
	const (
		protocols = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n" +
			"MPTCPv6   2064      0      60   no       0   yes  kernel      y  y  y  n  y  y  y  y  y  y  y  y  n  n  y  y  y  n\n" +
			"TCPv6     2432      7      60   no     192   yes  kernel      y  y  y  y  y  y  y  y  y  y  y  y  n  y  y  y  y  y\n"
		counting  = "MPTcpExt: MPCapableSYNRX RcvWndConflict MPCurrEstab Blackhole\nMPTcpExt: 0 0 0 0\n"
		uncounted = "MPTcpExt: MPCapableSYNRX RcvWndConflict\nMPTcpExt: 0 0\n"
	)
	f := func(want bool, files map[string]string) {
		t.Helper()
		if got := noMPTCP6(t.Context(), writeNet(t, files)); got != want {
			t.Errorf("%v of %q", got, files)
		}
	}
	f(true, map[string]string{"protocols": protocols, "netstat": counting})
	f(false, map[string]string{"protocols": strings.Replace(protocols, "     0 ", "     1 ", 1), "netstat": counting})
	// Before Linux 6.3 it is 0 whatever there is.
	f(false, map[string]string{"protocols": protocols, "netstat": uncounted})
	f(false, map[string]string{"protocols": protocols})
	// A kernel without MPTCP, or without IPv6 for it.
	f(true, map[string]string{"protocols": strings.Replace(protocols, "MPTCPv6", "MPTCP  ", 1), "netstat": uncounted})
	f(true, map[string]string{"protocols": "protocol  size sockets\n"})
	// What can't be read proves nothing.
	f(false, map[string]string{"netstat": counting})
	f(false, map[string]string{"protocols": "", "netstat": counting})
	f(false, map[string]string{"protocols": "garbage\n", "netstat": counting})
	for _, cut := range []string{"MPTCPv6\n", "MPTCPv6   2064\n"} {
		f(false, map[string]string{"protocols": "protocol  size sockets\n" + cut, "netstat": counting})
	}
}

// TestCensus fails walks that are far below what the kernel counts, and only those.
func TestCensus(t *testing.T) {
	dir := writeNet(t, nil)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("netstat", "TcpExt: TW TWRecycled TWKilled PAWSActive\nTcpExt: 1 2 3 4\n")
	// tcp, tcp6, TIME_WAIT: of a walk, and what was counted before and after it.
	type counts [3]uint64
	f := func(rows, before, after counts, want string) {
		t.Helper()
		var c census
		c[TCP] = [numKinds]uint64{Full: rows[0], Mini: rows[2] / 2, Request: 1000, Bound: 1000}
		c[TCP6] = [numKinds]uint64{Full: rows[1], Mini: rows[2] - rows[2]/2, Request: 1000, Bound: 1000}
		write("sockstat", fmt.Sprintf("TCP: inuse %d orphan 0 tw %d alloc 1 mem 1\n", after[0], after[2]))
		write("sockstat6", fmt.Sprintf("TCP6: inuse %d\n", after[1]))
		err := c.check(t.Context(), dir, sockstat{inUse: before[0], inUse6: before[1], timeWait: before[2]})
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasSuffix(err.Error(), want) || !strings.Contains(err.Error(), dir)) {
			t.Errorf("%v of %v and %v: %v, want %q", rows, before, after, err, want)
		}
	}
	f(counts{}, counts{}, counts{}, "")
	f(counts{1000, 1000, 1000}, counts{1000, 1000, 1000}, counts{1000, 1000, 1000}, "")
	f(counts{9999, 9999, 9999}, counts{1, 1, 1}, counts{2, 2, 2}, "")

	// Each of the tables, and both with what is in TIME_WAIT.
	const counted = " were read, but sockstat counts "
	f(counts{749, 1000, 0}, counts{1000, 1000, 0}, counts{1000, 1000, 0}, "749 sockets of tcp"+counted+"1000 before the walk and 1000 after it")
	f(counts{1000, 749, 0}, counts{1001, 1001, 0}, counts{1000, 1000, 0}, "749 sockets of tcp6"+counted+"1001 before the walk and 1000 after it")
	f(counts{100, 100, 500}, counts{100, 100, 1000}, counts{100, 100, 1100}, "700 sockets of tcp, tcp6"+counted+"1200 before the walk and 1300 after it")
	f(counts{750, 750, 750}, counts{1000, 1000, 1000}, counts{1000, 1000, 1000}, "")

	// The lower of both counts: sockets have come, or gone, during the walk.
	f(counts{100, 0, 0}, counts{100, 0, 0}, counts{1000, 0, 0}, "")
	f(counts{100, 0, 0}, counts{1000, 0, 0}, counts{100, 0, 0}, "")
	f(counts{0, 0, 1000}, counts{1000, 0, 0}, counts{0, 0, 1000}, "")
	f(counts{0, 0, 0}, counts{1000, 0, 0}, counts{1000, 0, 0}, "0 sockets of tcp"+counted+"1000 before the walk and 1000 after it")
	// They have closed, and others have come since.
	f(counts{500, 500, 1000}, counts{1000, 1000, 0}, counts{1000, 1000, 0}, "")

	// A few are nothing to go by.
	f(counts{0, 0, 0}, counts{63, 0, 0}, counts{63, 0, 0}, "")
	f(counts{0, 0, 0}, counts{64, 0, 0}, counts{64, 0, 0}, "0 sockets of tcp"+counted+"64 before the walk and 64 after it")

	// Before Linux 4.10 those in TIME_WAIT are counted of all namespaces.
	write("netstat", "TcpExt: TW TWRecycled TWKilled PAWSPassive PAWSActive\nTcpExt: 1 2 3 4 5\n")
	f(counts{100, 100, 500}, counts{100, 100, 1000}, counts{100, 100, 1000}, "")
	write("netstat", "")
	f(counts{100, 100, 500}, counts{100, 100, 1000}, counts{100, 100, 1000}, "")
	f(counts{50, 0, 0}, counts{200, 0, 9000}, counts{200, 0, 9000}, "50 sockets of tcp"+counted+"200 before the walk and 200 after it")

	// A kernel that does not count, or no more.
	c := census{}
	if err := c.check(t.Context(), dir, sockstat{}); err != nil {
		t.Error(err)
	}
	if err := c.check(t.Context(), writeNet(t, nil), sockstat{inUse: 1000}); err != nil {
		t.Error(err)
	}
}

// TestReadSockstatOfThisKernel counts sockets of a namespace of its own.
func TestReadSockstatOfThisKernel(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		read := func() sockstat {
			t.Helper()
			s := readSockstat(t.Context(), ownNet)
			if !s.ipv6 {
				t.Skip("this kernel has no IPv6")
			}
			return s
		}
		if s := read(); s.inUse != 0 || s.inUse6 != 0 || s.timeWait != 0 || !s.tcp6Empty() {
			t.Errorf("%+v in a new namespace", s)
		}
		bound(t, unix.AF_INET, 9000)
		if s := read(); s.inUse != 0 || s.allInTable() {
			t.Errorf("%+v with an idle socket", s)
		}
		closeMany(t, 3)
		l := listenOn(t, "tcp4", "127.0.0.1:0")
		connectTo(t, l, "tcp4")
		listenOn(t, "tcp6", "[::1]:0")
		// The listener of closeMany is open as long as the test.
		if s := read(); s.inUse != 4 || s.inUse6 != 1 || s.timeWait != 3 || s.allocated < 6 || s.tcp6Empty() {
			t.Errorf("%+v, want 4 and 1 in use, 3 in TIME_WAIT and at least 6", s)
		}
	})
}
