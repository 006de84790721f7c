package tcptable

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testSockstat = `sockets: used 188
TCP: inuse 21 orphan 294 tw 6 alloc 362 mem 356
UDP: inuse 4 mem 3
UDPLITE: inuse 0
RAW: inuse 0
FRAG: inuse 0 memory 0
`
	testSockstat6 = `TCP6: inuse 42
UDP6: inuse 3
UDPLITE6: inuse 0
RAW6: inuse 0
FRAG6: inuse 0 memory 0
`
)

func TestReadSockstat(t *testing.T) {
	got, err := readSockstat(t.Context(), writeNet(t, map[string]string{"sockstat": testSockstat, "sockstat6": testSockstat6}))
	if want := (sockstat{inUse: 21, inUse6: 42, timeWait: 6, allocated: 362}); err != nil || got != want {
		t.Errorf("%+v and %v, want %+v", got, err, want)
	}
}

// TestReadSockstatRefuses has files that do not say what is needed: no count is
// taken for 0.
func TestReadSockstatRefuses(t *testing.T) {
	f := func(want error, files map[string]string) {
		t.Helper()
		got, err := readSockstat(t.Context(), writeNet(t, files))
		if err == nil || want != nil && !errors.Is(err, want) || got != (sockstat{}) {
			t.Errorf("%+v and %v", got, err)
		}
	}
	f(fs.ErrNotExist, nil)
	f(fs.ErrNotExist, map[string]string{"sockstat": testSockstat}) // IPv6 is not compiled in
	f(fs.ErrNotExist, map[string]string{"sockstat6": testSockstat6})
	for _, sockstat := range []string{
		"", "TCP: inuse 1 orphan 0 alloc 1 mem 1\n", "TCP: inuse 1 orphan 0 tw 1 mem 1\n", "UDP: inuse 4 mem 3\n",
		"TCP: inuse x orphan 0 tw 1 alloc 1 mem 1\n", "TCP: inuse\n", "TCP\n",
	} {
		f(nil, map[string]string{"sockstat": sockstat, "sockstat6": testSockstat6})
	}
	for _, sockstat6 := range []string{"", "UDP6: inuse 3\n", "TCP6: inuse -\n"} {
		f(nil, map[string]string{"sockstat": testSockstat, "sockstat6": sockstat6})
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
	f(sockstat{}, true, true)
	f(sockstat{inUse: 5, allocated: 5}, true, true)
	f(sockstat{inUse: 5, allocated: 6}, true, false)
	f(sockstat{inUse: 5, inUse6: 2, allocated: 7}, false, true)
	f(sockstat{inUse6: 1, allocated: 1}, false, true)
	f(sockstat{inUse: 5, inUse6: 2, allocated: 5}, false, false)
	// A minisock may be of either family, and is not in the other counts.
	f(sockstat{inUse: 5, timeWait: 1, allocated: 5}, false, true)
}

// TestReadSockstatOfThisKernel counts sockets of a namespace of its own.
func TestReadSockstatOfThisKernel(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		read := func() sockstat {
			t.Helper()
			s, err := readSockstat(t.Context(), ownNet)
			if errors.Is(err, fs.ErrNotExist) {
				t.Skipf("this kernel has no IPv6: %v", err)
			}
			if err != nil {
				t.Fatal(err)
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
