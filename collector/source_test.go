package collector

import (
	"context"
	"errors"
	"iter"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-kit/log"

	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// scripted is a source that does as it is told, one walk after the other; then all
// is well.
type scripted struct {
	walks    []func(yield func(tcptable.Socket, error) bool)
	sockets  []tcptable.Socket
	attempts atomic.Int32 // walks so far
}

func (s *scripted) Sockets(context.Context) iter.Seq2[tcptable.Socket, error] {
	return func(yield func(tcptable.Socket, error) bool) {
		if n := int(s.attempts.Add(1)); n <= len(s.walks) {
			s.walks[n-1](yield)
			return
		}
		s.yieldSockets(yield)
	}
}

func (s *scripted) yieldSockets(yield func(tcptable.Socket, error) bool) bool {
	for _, socket := range s.sockets {
		if !yield(socket, nil) {
			return false
		}
	}
	return true
}

// failThen has walks fail with errs, each after all sockets but the last.
func (s *scripted) failThen(errs ...error) {
	for _, err := range errs {
		s.walks = append(s.walks, func(yield func(tcptable.Socket, error) bool) {
			for _, socket := range s.sockets[:len(s.sockets)-1] {
				if !yield(socket, nil) {
					return
				}
			}
			yield(tcptable.Socket{}, err)
		})
	}
}

// Each source has connections of its own, so the page tells where it is from.
func newScripted(t *testing.T, source string) (c *Collector, netlink, procfs *scripted, out *lines) {
	t.Helper()
	cfg := fixture(t, writeProc(t))
	cfg.Source = SourceAuto // of a copy it is procfs
	c, out = newLogged(t, cfg)
	c.table.cfg.Source = source
	netlink = &scripted{sockets: sockets("tcp listen 0.0.0.0:80 0.0.0.0:0",
		"tcp established 10.0.0.1:80 10.0.0.2:4000", "tcp established 10.0.0.1:80 10.0.0.3:4000", "tcp established 10.0.0.1:80 10.0.0.4:4000")}
	procfs = &scripted{sockets: sockets("tcp established 10.0.0.1:4000 10.0.0.9:443")}
	c.table.useNetlink = source != SourceProcfs
	c.table.walkers.put(&walker{tally: tally.New(32, 128), netlink: netlink, procfs: procfs})
	return c, netlink, procfs, out
}

// wantSource scrapes and compares where the page is from, and what is logged.
func wantSource(t *testing.T, c *Collector, out *lines, source string, logged ...string) {
	t.Helper()
	p := gather(t, c.Read(t.Context()))
	connections := map[string]float64{SourceNetlink: 4, SourceProcfs: 1}
	if source == "" {
		p.want(t, 0, "timewait_exporter_collector_success", "collector", "sockets")
		p.wantNone(t, "timewait_exporter_source_info")
		p.wantNone(t, "tcp_connections")
		p.wantNone(t, "tcp_remote_connections")
	} else {
		p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
		p.want(t, 1, "timewait_exporter_source_info", "source", source)
		p.want(t, 1, "timewait_exporter_source_info")
		p.want(t, connections[source], "tcp_connections")
	}
	out.want(t, logged...)
}

var errOverrun = errors.New("sock_diag: overrun")

// TestSources has sources that fail, after so many walks of each.
func TestSources(t *testing.T) {
	type scrape []string // where its page is from, and what is logged
	f := func(source string, netlinkErrors, procfsErrors []error, netlinkWalks, procfsWalks int32, scrapes ...scrape) {
		t.Helper()
		c, netlink, procfs, out := newScripted(t, source)
		netlink.failThen(netlinkErrors...)
		procfs.failThen(procfsErrors...)
		for _, s := range scrapes {
			wantSource(t, c, out, s[0], s[1:]...)
		}
		if netlink.attempts.Load() != netlinkWalks || procfs.attempts.Load() != procfsWalks {
			t.Errorf("%s: %d walks by netlink and %d of procfs, want %d and %d", source, netlink.attempts.Load(), procfs.attempts.Load(), netlinkWalks, procfsWalks)
		}
	}
	const again, instead = "level=warn source=netlink next=netlink overrun", "level=warn source=netlink next=procfs overrun"
	once, twice, missing := []error{errOverrun}, []error{errOverrun, errOverrun}, []error{errors.New("tcp: no such table")}
	// The second walk is the page's, with nothing left of the first.
	f(SourceNetlink, once, nil, 3, 0, scrape{SourceNetlink, again}, scrape{SourceNetlink})
	f(SourceAuto, once, nil, 3, 0, scrape{SourceNetlink, again}, scrape{SourceNetlink})
	// Rather fail than read what nobody asked for, and try again with the next scrape.
	f(SourceNetlink, twice, nil, 3, 0, scrape{"", again, "level=error collector=sockets overrun"}, scrape{SourceNetlink})
	// No source is left.
	f(SourceAuto, twice, missing, 2, 2, scrape{"", again, instead, "level=error collector=sockets tcp: table"}, scrape{SourceProcfs})
	// A failure of procfs is not of the moment, but where the kernel counts far more
	// rows: only if it does again is the table no whole one.
	f(SourceProcfs, nil, missing, 0, 2, scrape{"", "level=error collector=sockets tcp: table"}, scrape{SourceProcfs})
	short := &tcptable.ShortError{Dir: "/proc/self/net", Table: "tcp", Rows: 10, Before: 900, After: 800}
	f(SourceProcfs, nil, []error{short, short, short}, 0, 5, scrape{"", "level=error collector=sockets tcp 10 900 800"}, scrape{SourceProcfs}, scrape{SourceProcfs})
}

// TestSourceFallsBack has a source that fails twice: procfs stands in for this
// scrape and for a while.
func TestSourceFallsBack(t *testing.T) {
	c, netlink, procfs, out := newScripted(t, SourceAuto)
	netlink.failThen(errOverrun, errOverrun, errOverrun, errOverrun)
	f := func() {
		t.Helper()
		attempts := netlink.attempts.Load()
		before := time.Now()
		wantSource(t, c, out, SourceProcfs, "level=warn source=netlink next=netlink overrun", "level=warn source=netlink next=procfs overrun")
		if netlink.attempts.Load() != attempts+2 {
			t.Errorf("%d walks by netlink, want 2", netlink.attempts.Load()-attempts)
		}
		if pause := time.Unix(0, c.table.netlinkAfter.Load()).Sub(before); pause < netlinkPause || pause > netlinkPause+10*time.Second {
			t.Errorf("netlink is left alone for %v, want %v", pause, netlinkPause)
		}
	}
	f()
	for range 3 {
		wantSource(t, c, out, SourceProcfs)
	}
	// The pause is over, but netlink is not well yet.
	c.table.netlinkAfter.Store(time.Now().Add(-time.Millisecond).UnixNano())
	f()
	wantSource(t, c, out, SourceProcfs)
	c.table.netlinkAfter.Store(time.Now().Add(-time.Millisecond).UnixNano())
	wantSource(t, c, out, SourceNetlink, "level=info source=netlink")
	for range 2 {
		wantSource(t, c, out, SourceNetlink)
	}
	if netlink.attempts.Load() != 4+3 || procfs.attempts.Load() != 6 {
		t.Errorf("%d walks by netlink and %d of procfs, want 7 and 6", netlink.attempts.Load(), procfs.attempts.Load())
	}
}

// TestSourceDeadline ends with the scrape: neither a second try nor procfs is for
// a scrape that nobody waits for any more, and netlink is not to blame.
func TestSourceDeadline(t *testing.T) {
	c, netlink, procfs, out := newScripted(t, SourceAuto)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	walked := make(chan struct{})
	netlink.walks = append(netlink.walks, func(yield func(tcptable.Socket, error) bool) {
		defer close(walked)
		<-ctx.Done() // a reading ends before
		yield(tcptable.Socket{}, context.DeadlineExceeded)
	})
	p := gather(t, c.Read(ctx))
	p.want(t, 0, "timewait_exporter_collector_success", "collector", "sockets")
	p.wantNone(t, "tcp_connections")
	<-walked
	if text := out.take(); strings.Contains(text, "next=") {
		t.Errorf("another try: %s", text)
	}
	wantSource(t, c, out, SourceNetlink)
	if netlink.attempts.Load() != 2 || procfs.attempts.Load() != 0 {
		t.Errorf("%d walks by netlink and %d of procfs, want 2 and 0", netlink.attempts.Load(), procfs.attempts.Load())
	}
}

// TestSourceRowErrors has a source other than procfs whose rows are not as they
// should be: it counts them like any.
func TestSourceRowErrors(t *testing.T) {
	c, netlink, _, out := newScripted(t, SourceAuto)
	broken := &tcptable.RowError{Table: tcptable.TCP6, File: "tcp6", Row: 3, Text: "x", Err: errors.New("odd")}
	netlink.failThen(broken)
	wantSource(t, c, out, SourceNetlink, "level=warn source=netlink next=netlink odd")
	p := gather(t, c.Read(t.Context()))
	p.want(t, 1, "timewait_exporter_malformed_rows_total", "table", "tcp6")
	p.want(t, 3+4+4, "timewait_exporter_rows_total", "table", "tcp")
}

// TestNewNetlink reads the kernel that the test runs on, by either source.
func TestNewNetlink(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{SourceAuto, SourceNetlink} {
		cfg := fixture(t, "/proc")
		cfg.Source = source
		out := new(lines)
		c, err := New(t.Context(), cfg, log.NewLogfmtLogger(out))
		if err != nil {
			if source == SourceNetlink {
				t.Skipf("this kernel has no sock_diag for TCP: %v", err)
			}
			t.Fatal(err)
		}
		if !c.hasDiag {
			continue // SourceNetlink says why
		}
		out.want(t, "owners", "source=netlink wanted="+source)
		p := gather(t, c.Read(t.Context()))
		p.want(t, 1, "timewait_exporter_source_info", "source", SourceNetlink)
		p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
		p.want(t, 1, "timewait_exporter_collector_success", "collector", "listeners")
		if p.sum("tcp_listener_accept_queue_limit", "local_ip", "127.0.0.1", "local_port", port) == 0 {
			t.Errorf("the listener on port %s has no limit", port)
		}
	}
}
