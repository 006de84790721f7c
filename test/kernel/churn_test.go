package kernel

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"timewait_exporter/collector/tcptable"
	"timewait_exporter/test/netns"
)

// TestChurn scrapes while thousands of connections a second are opened and
// closed. A reader of /proc/net/tcp that goes on to the end of the file walks
// the table twice, lists what came in the meantime again, and may never end.
func TestChurn(t *testing.T) {
	for _, source := range []string{"procfs", "netlink"} {
		t.Run(source, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				if !slices.Contains(sources(t), source) {
					t.Skipf("this kernel has no source %s", source)
				}
				scrapeUnderChurn(t, startExporter(t, "--collector.source="+source))
			})
		})
	}
}

func scrapeUnderChurn(t *testing.T, e *exporter) {
	const (
		perSecond = 5000 // at most
		length    = 5 * time.Second
		deadline  = 5 * time.Second
	)
	closed, halt := startChurn(t, perSecond)
	defer halt()
	started, begun := time.Now(), closed.Load()

	header := http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"5"}}
	var scrapes int
	var rows, outside, seconds float64
	for ; time.Since(started) < length; scrapes++ {
		before := readSockstat(t).timeWait
		start := time.Now()
		response, body, err := e.get("/metrics", header)
		took := time.Since(start)
		after := readSockstat(t).timeWait
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("scrape: %v, %v", response, err)
		}
		if took > deadline {
			t.Errorf("a scrape took %v, the deadline is %v", took, deadline)
		}
		p := mustParse(t, body)
		p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")

		// None of them is old enough to go, so the count only rises. Sockets of
		// the kernel's tw are in FIN_WAIT2 for a moment.
		got := p.sum("tcp_connections", "state", "time_wait")
		if got < 0.99*float64(before) || got > 1.01*float64(after) {
			t.Errorf("%v TIME_WAITs, sockstat had %d before and %d after", got, before, after)
		}
		outside = max(outside, float64(before)-got, got-float64(after))
		rows += p.sum("tcp_connections")
		seconds += p.value(t, "timewait_exporter_collector_duration_seconds", "collector", "sockets")
	}
	elapsed := time.Since(started)
	halt()
	if scrapes == 0 {
		t.Error("no scrape ended in time")
	}
	t.Logf("%.0f closes/s; %d scrapes of %.0f rows each, %.0f ns a row; at most %.0f TIME_WAITs more or less than sockstat had before and after",
		float64(closed.Load()-begun)/elapsed.Seconds(), scrapes, rows/float64(scrapes), seconds/rows*1e9, outside)

	p := e.scrape(t)
	p.want(t, float64(readSockstat(t).timeWait), "tcp_connections", "state", "time_wait")
	t.Logf("at rest: %.0f rows, %.0f ns a row", p.sum("tcp_connections"),
		p.value(t, "timewait_exporter_collector_duration_seconds", "collector", "sockets")/p.sum("tcp_connections")*1e9)
}

// TestRepeatedRows walks the tables under churn and counts what a walk has twice.
// The kernel lists sockets twice when others come meanwhile; a Source drops nearly
// all of that, and the log says what is left.
func TestRepeatedRows(t *testing.T) {
	for name, source := range map[string]tcptable.Source{
		"procfs": tcptable.NewProcNet("/proc/self/net"), "netlink": tcptable.NewSockDiag(),
	} {
		t.Run(name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				if !slices.Contains(sources(t), name) {
					t.Skipf("this kernel has no source %s", name)
				}
				closed, halt := startChurn(t, 5000)
				defer halt()
				type ends struct{ local, remote tcptable.Endpoint }
				var walks, rows, repeated int
				for started := time.Now(); time.Since(started) < 5*time.Second; walks++ {
					seen := make(map[ends]bool)
					for s, err := range source.Sockets(t.Context()) {
						if err != nil {
							t.Fatal(err)
						}
						if s.State == tcptable.Listen {
							continue
						}
						if rows++; seen[ends{s.Local, s.Remote}] {
							repeated++
						}
						seen[ends{s.Local, s.Remote}] = true
					}
				}
				t.Logf("%d walks of %d rows each, %d connections closed meanwhile: %d rows counted twice, %.2g of all",
					walks, rows/walks, closed.Load(), repeated, float64(repeated)/float64(rows))
				if repeated > rows/100 {
					t.Errorf("%d of %d rows were given twice", repeated, rows)
				}
			})
		})
	}
}

// startChurn opens and closes at most so many connections a second until halt is
// called, and returns when there are TIME_WAITs enough to fill many reads.
func startChurn(t *testing.T, perSecond int) (closed *atomic.Int64, halt func()) {
	t.Helper()
	netns.SetSysctl(t, "net/ipv4/ip_local_port_range", "1024 65535")
	closed = new(atomic.Int64)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for worker := range 2 {
		// Past half of the ports to one destination connect() gets slow.
		var services []netns.Service
		for i := range 4 {
			services = append(services, netns.Serve(t, loopback4, uint16(100+10*worker+i)))
		}
		workers.Go(func() { churn(t, services, perSecond/2, closed, stop) })
	}
	halt = sync.OnceFunc(func() { close(stop); workers.Wait() })
	netns.Eventually(t, func() bool { return closed.Load() > 3000 },
		func() string { return fmt.Sprintf("only %d connections were closed", closed.Load()) })
	return closed, halt
}

// churn opens and closes connections, the client first, until stop is closed.
func churn(t *testing.T, services []netns.Service, perSecond int, closed *atomic.Int64, stop <-chan struct{}) {
	const burst = 8 // small: a reader that never ends could end in a pause
	tick := time.NewTicker(time.Second * burst / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for i := range burst {
			s := services[i%len(services)]
			if err := s.OpenAndClose(); err != nil {
				t.Errorf("churn: %v", err)
				return
			}
			closed.Add(1)
		}
	}
}
