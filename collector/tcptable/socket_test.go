package tcptable

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
)

// none is what text leaves out.
var none = regexp.MustCompile(` (rx|tx|backlog|timer|unanswered|inode|device)=0\b| left=0s| (v6only|transparent)=false`)

// text is a socket as the tests write it down.
func text(s Socket) string {
	return none.ReplaceAllString(fmt.Sprintf("%v %v %s %v %v rx=%d tx=%d backlog=%d timer=%d unanswered=%d left=%v inode=%d device=%d v6only=%v transparent=%v",
		s.Table, s.State, [...]string{Full: "full", Mini: "mini", Request: "request", Bound: "bound"}[s.Kind],
		addrPort(s.Local), addrPort(s.Remote), s.RxQueue, s.TxQueue, s.Backlog, s.Timer, s.Unanswered, s.TimerLeft, s.Inode, s.Device, s.V6Only, s.Transparent), "")
}

func addrPort(e Endpoint) netip.AddrPort { return netip.AddrPortFrom(e.Addr.IP(), e.Port) }

func endpoint(s string) Endpoint {
	a := netip.MustParseAddrPort(s)
	return Endpoint{a.Addr().As16(), a.Port()}
}

// walk reads a table and calls each of after when the first row is there. The sockets it
// returns are those before the error.
func walk(table iter.Seq2[Socket, error], after ...func()) (sockets []Socket, err error) {
	for s, err := range table {
		if err != nil {
			return sockets, err
		}
		if sockets = append(sockets, s); len(sockets) == 1 {
			for _, f := range after {
				f()
			}
		}
	}
	return sockets, nil
}

func mustWalk(t *testing.T, source Source) []Socket {
	t.Helper()
	sockets, err := walk(source.Sockets(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

func wantSockets(t *testing.T, got, want []Socket) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("%d sockets, want %d: the next one is %s", len(got), len(want), text(want[i]))
		case i >= len(want):
			t.Fatalf("%d sockets, want %d: one too many is %s", len(got), len(want), text(got[i]))
		case got[i] != want[i]:
			t.Fatalf("socket %d of %d\ngot  %s\nwant %s", i, len(want), text(got[i]), text(want[i]))
		}
	}
}

// wantText compares lines with those of a file.
func wantText(t *testing.T, path string, lines ...string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines, "\n") + "\n"; got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func texts(sockets []Socket) (lines []string) {
	for _, s := range sockets {
		lines = append(lines, text(s))
	}
	return lines
}

// allocations counts those of a walk, which has so many rows at least.
func allocations(t *testing.T, source Source, least int) float64 {
	t.Helper()
	return testing.AllocsPerRun(5, func() {
		rows := 0
		for _, err := range source.Sockets(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			rows++
		}
		if rows < least {
			t.Fatalf("%d rows, want %d", rows, least)
		}
	})
}

// openFiles counts this process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func listenOn(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestStateString(t *testing.T) {
	for i, want := range strings.Fields("0 established syn_sent syn_recv fin_wait1 fin_wait2 time_wait close close_wait last_ack listen closing 12 255") {
		s := State(i)
		if want == "255" {
			s = 255
		}
		if '0' <= want[0] && want[0] <= '9' {
			want = "state " + want
		}
		if got := s.String(); got != want {
			t.Errorf("%d is %q, want %q", s, got, want)
		}
	}
}

func TestAddrIs4(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "::ffff:10.0.0.1": true, "::": false, "::10.0.0.1": false, "::1:ffff:a00:1": false, "::fffe:a00:1": false, "2001:db8::1": false,
	} {
		if got := Addr(netip.MustParseAddr(addr).As16()).Is4(); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
