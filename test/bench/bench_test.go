package main

import (
	"bytes"
	"context"
	"math"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"timewait_exporter/test/netns"
)

// TestMain is main for the processes that the program starts as itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"measure", "walk", "hold", "churn"}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestCountRows(t *testing.T) {
	f := func(name, text string, want rowCounts) {
		t.Helper()
		if got := countRows(procRows([]byte(text))); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	const (
		header      = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
		listen      = "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 656080 1 000000008872fc7d 100 0 0 10 0\n"
		timeWait    = "   1: 0100007F:1F40 0200007F:8984 06 00000000:00000000 03:0000176A 00000000     0        0 0 3 000000007463c3f0\n"
		established = "   2: 0100007F:1F40 0200007F:8985 01 00000000:00000000 00:00000000 00000000     0        0 656085 2 00000000b25b2413 20 0 0 11 -1\n"
	)
	f("empty", header, rowCounts{})
	f("each once", header+listen+timeWait+established, rowCounts{timeWait: 1})
	f("a row listed twice", header+timeWait+established+timeWait, rowCounts{timeWait: 2, twice: 1})
	f("closed between the two", header+established+strings.Replace(established, " 01 ", " 06 ", 1), rowCounts{timeWait: 1, twice: 1})
	f("listeners that share a port", header+listen+listen, rowCounts{})
	f("cut", header+timeWait+"   2: 0100007F:1F", rowCounts{timeWait: 1})
}

func TestMedian(t *testing.T) {
	f := func(v []float64, want float64) {
		t.Helper()
		if got := median(v); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("median(%v) = %v, want %v", v, got, want)
		}
	}
	f(nil, math.NaN())
	f([]float64{3}, 3)
	f([]float64{3, 1, 2}, 2)
	f([]float64{4, 1, 3, 2}, 2.5)
}

func TestMiss(t *testing.T) {
	f := func(before, counted, after int, want float64) {
		t.Helper()
		r := reading{before: tableCount{minisocks: before}, after: tableCount{minisocks: after}, rowCounts: rowCounts{timeWait: counted}}
		if got := r.miss(); got != want {
			t.Errorf("%d counted, %d before and %d after: %v, want %v", counted, before, after, got, want)
		}
	}
	f(100, 100, 100, 0)
	f(100, 110, 120, 0)
	f(120, 110, 100, 0)
	f(100, 150, 120, 0.25)
	f(100, 75, 120, -0.25)
}

func TestSumTimeWait(t *testing.T) {
	f := func(page string, want int, wantErr bool) {
		t.Helper()
		got, err := sumTimeWait([]byte(page), "tcp_connections")
		if got != want || (err != nil) != wantErr {
			t.Errorf("%q: %d, %v", page, got, err)
		}
	}
	f(`tcp_connections{direction="inbound",state="time_wait"} 7`+"\n"+`tcp_connections{direction="outbound",state="time_wait"} 1e+06`+"\n", 1_000_007, false)
	f(`tcp_connections{state="established"} 7`+"\n", 0, false)
	f(`other{state="time_wait"} 7`+"\n", 0, true)
	f(`tcp_connections{state="time_wait"} seven`+"\n", 0, true)
}

// TestMeasure runs the whole on a small table of every mix: each reader that is there must finish
// and count what the kernel counts. A connection that comes or goes during the walk may make it one off.
func TestMeasure(t *testing.T) {
	// The thread that starts a child with Pdeathsig has to outlive it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, mix := range []string{"time_wait", "established", "half"} {
		t.Run(mix, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			command := inNamespace(ctx, []string{
				"measure", "-mix", mix, "-sockets", "400", "-remotes", "30", "-rounds", "2", "-churn", "1", "-churn-rounds", "1",
				"-exporter", "/nonexistent", "-node-exporter", "/nonexistent",
			})
			var report, stderr bytes.Buffer
			command.Stdout, command.Stderr = &report, &stderr
			if err := command.Start(); netns.Refused(err) {
				t.Skipf("no user namespaces here: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			if err := command.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			for _, want := range []string{
				`## 400 sockets, ` + mix,
				`The table had 40\d to 4\d\d rows and 60 remote addresses`,
				`\| bare read of tcp \|( \d+\.\d+ \|){4} 1.00 \|( \d+\.\d+ \|)`,
				`\| bare read of tcp, tcp6 \| 1 of 1 \| 4\d\d \|.*\| \d \| -?0\.\d\d \|`,
				`\| bare netlink dump \| 1 of 1 \| 4\d\d \|.*\| \d \| -?0\.\d\d \|`,
				`\| procfs.NetTCP \| 1 of 1 \|`,
				`\| cat /proc/net/tcp \| 1 of 1 \|`,
				`\| timewait_exporter, procfs \| not measured: .*no such file or directory \|`,
			} {
				if !regexp.MustCompile(want).Match(report.Bytes()) {
					t.Errorf("no %q in\n%s", want, report.String())
				}
			}
		})
	}
}
