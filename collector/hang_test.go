package collector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// parts has a metric of each part of a copied proc file system.
func parts() map[string]string {
	return map[string]string{
		"ports": "tcp_ephemeral_ports", "sockets": "tcp_connections", "sockstat": "tcp_orphans", "snmp": "tcp_active_opens_total",
		"netstat": "tcp_aborts_total", "conntrack": "conntrack_entries", "sysctls": "tcp_time_wait_limit", "file-nr": "kernel_file_handles",
	}
}

// wantParts wants all parts to have succeeded but one, and the metrics of all others.
func wantParts(t *testing.T, p page, failed string) {
	t.Helper()
	for name, metric := range parts() {
		success, there := 1., true
		if name == failed {
			success, there = 0, false
		}
		p.want(t, success, "timewait_exporter_collector_success", "collector", name)
		if failed == "sockets" && name == "ports" {
			there = false // it is of use with the sockets only
		}
		if got := len(p.family(metric)) > 0; got != there {
			t.Errorf("%q failed: is %s of %s there? %v", failed, metric, name, got)
		}
	}
	if n := len(p.series("timewait_exporter_collector_duration_seconds")); n != len(parts()) {
		t.Errorf("%d durations", n)
	}
}

// hang puts a FIFO that nobody writes to in place of a file. Somebody could, so who
// reads it waits.
func hang(t *testing.T, path string) *os.File {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { writer.Close() })
	return writer
}

// scrapeWithin scrapes with a deadline and wants the page before it or, if all of the
// time is needed, at once after.
func scrapeWithin(t *testing.T, c *Collector, timeout time.Duration) page {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	start := time.Now()
	p := gather(t, c.Read(ctx))
	const starved = 2 * time.Second // a busy machine may add so much
	if took := time.Since(start); took > timeout+starved {
		t.Errorf("the scrape took %v, its deadline was after %v", took, timeout)
	}
	return p
}

// TestHang has each file hang: its part fails by the deadline and takes no other
// along, the log names the file, and when the file is right again so is the page.
func TestHang(t *testing.T) {
	f := func(part, file string) {
		t.Run(part+"_"+filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			root := writeProc(t)
			path := filepath.Join(root, file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, out := newLogged(t, fixture(t, root))
			hang(t, path)
			for range 2 {
				p := scrapeWithin(t, c, 1500*time.Millisecond)
				if part == "sysctls" {
					p.wantNone(t, "tcp_syn_backlog_limit")
					p.want(t, 0, "timewait_exporter_collector_success", "collector", part)
					p.want(t, float64(len(parts())-1), "timewait_exporter_collector_success")
				} else {
					wantParts(t, p, part)
				}
				out.want(t, "level=error deadline exceeded "+path)
			}
			os.Remove(path)
			writeFile(t, path, string(text))
			wantParts(t, scrapeWithin(t, c, time.Second), "")
			out.want(t)
		})
	}
	f("sockets", "net/tcp")
	f("sockets", "net/tcp6")
	f("ports", "sys/net/ipv4/ip_local_port_range")
	f("ports", "sys/net/ipv4/ip_local_reserved_ports")
	f("ports", "sys/net/ipv4/tcp_timestamps")
	f("sockstat", "net/sockstat")
	f("snmp", "net/snmp")
	f("netstat", "net/netstat")
	f("conntrack", "net/stat/nf_conntrack")
	f("sysctls", "sys/net/ipv4/tcp_max_syn_backlog")
	f("file-nr", "sys/fs/file-nr")
}

// TestHangUninterrupted has a read that does not end when it should, as those of file
// systems that hang do: the part is given up, tried anew, and well again when the
// next read is, whether or not the others ever return.
func TestHangUninterrupted(t *testing.T) {
	for _, name := range []string{"sockstat", "snmp", "netstat", "conntrack", "sysctls", "file-nr"} {
		synctest.Test(t, func(t *testing.T) {
			c, out := newLogged(t, fixture(t, writeProc(t)))
			part := c.kernel[slices.IndexFunc(c.kernel, func(k *kernelPart) bool { return k.name == name })]
			read, release := part.read, make(chan struct{})
			defer synctest.Wait()
			defer close(release)
			part.read = func(context.Context) (kernelstat.Numbers, error) { <-release; return nil, nil }
			wantParts(t, scrapeWithin(t, c, 10*time.Second), name)
			out.want(t, "given up after 2.1s")
			// It is too early for another try, so this scrape has not to wait.
			start := time.Now()
			wantParts(t, scrapeWithin(t, c, 10*time.Second), name)
			if took := time.Since(start); took != 0 {
				t.Errorf("the scrape took %v", took)
			}
			out.want(t, "1 reads that began earlier have not returned")
			part.read = read
			time.Sleep(2 * time.Second)
			for range 2 {
				wantParts(t, scrapeWithin(t, c, time.Second), "")
			}
		})
	}
}

// TestHangTable has walks that do not end. Each has a tally of its own.
func TestHangTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, procfs, out := newScripted(t, SourceProcfs)
		release := make(chan struct{})
		procfs.walks = append(procfs.walks, func(yield func(tcptable.Socket, error) bool) {
			procfs.yieldSockets(yield)
			<-release
			procfs.yieldSockets(yield)
		})
		wantParts(t, scrapeWithin(t, c, time.Second), "sockets")
		out.want(t, "given up after 975ms")
		time.Sleep(3 * time.Second) // the pause
		c.table.walkers.put(&walker{tally: tally.New(32, 128), procfs: procfs})
		p := scrapeWithin(t, c, time.Second)
		wantParts(t, p, "")
		p.want(t, 1, "tcp_connections")
		close(release)
		synctest.Wait()
		scrapeWithin(t, c, time.Second).want(t, 1, "tcp_connections")
	})
}

// TestHangAtStart has New end though what it reads does not, and before that if the
// program is to end.
func TestHangAtStart(t *testing.T) {
	root := writeProc(t)
	cfg := fixture(t, root)
	hang(t, filepath.Join(root, "sys/net/ipv4/ip_local_port_range"))
	start := time.Now()
	c, err := New(t.Context(), cfg, log.NewNopLogger())
	if took := time.Since(start); err != nil || took > smallTimeout+time.Second {
		t.Fatalf("%v after %v", err, took)
	}
	wantParts(t, scrapeWithin(t, c, 2*time.Second), "ports")

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start = time.Now()
	if _, err := New(ctx, cfg, log.NewNopLogger()); err != nil || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// TestHangCanceled has whoever scrapes go while the table hangs: no error, so no
// error in the log.
func TestHangCanceled(t *testing.T) {
	root := writeProc(t)
	var out lines
	c, err := New(t.Context(), fixture(t, root), level.NewFilter(log.NewLogfmtLogger(&out), level.AllowInfo()))
	if err != nil {
		t.Fatal(err)
	}
	hang(t, filepath.Join(root, "net/tcp"))
	out.take()
	deadline, end := context.WithTimeout(t.Context(), time.Second)
	defer end()
	ctx, cancel := context.WithCancel(deadline)
	time.AfterFunc(50*time.Millisecond, cancel)
	gather(t, c.Read(ctx)).want(t, 0, "timewait_exporter_collector_success", "collector", "sockets")
	out.want(t)
}

// TestOneReading has a scrape that joins another: both have the same parts, whatever
// has become of the files meanwhile.
func TestOneReading(t *testing.T) {
	const ports = "sys/net/ipv4/ip_local_port_range"
	f := func(before, after, failed string, logged ...string) {
		t.Helper()
		root := writeProc(t)
		c, out := newLogged(t, fixture(t, root))
		table := hang(t, filepath.Join(root, "net/tcp"))
		writeFile(t, filepath.Join(root, ports), before)
		pages := make(chan page)
		scrape := func() { pages <- scrapeWithin(t, c, 10*time.Second) }
		go scrape()
		time.Sleep(100 * time.Millisecond) // for it to wait for the table
		writeFile(t, filepath.Join(root, ports), after)
		for range 2 {
			go scrape()
		}
		time.Sleep(100 * time.Millisecond)
		if _, err := table.WriteString(tableHeader + oneListener); err != nil {
			t.Fatal(err)
		}
		first := <-pages
		wantParts(t, first, failed)
		for range 2 {
			if got, want := (<-pages).text(t), first.text(t); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		}
		out.want(t, logged...)
	}
	f("40000\t40009\n", "broken\n", "")
	f("broken\n", "40000\t40009\n", "ports", "collector=ports broken")
}

// TestReadingDeadlines has a scrape that can wait share what one began that can't,
// and one that comes when nobody can wait any more begin anew.
func TestReadingDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, procfs, _ := newScripted(t, SourceProcfs)
		slow := func(took time.Duration) func(func(tcptable.Socket, error) bool) {
			return func(yield func(tcptable.Socket, error) bool) {
				time.Sleep(took)
				procfs.yieldSockets(yield)
			}
		}
		procfs.walks = append(procfs.walks, slow(3*time.Second), slow(30*time.Second))
		hasty := make(chan page)
		go func() { hasty <- scrapeWithin(t, c, time.Second) }()
		time.Sleep(500 * time.Millisecond)
		start := time.Now()
		wantParts(t, scrapeWithin(t, c, 10*time.Second), "")
		if took := time.Since(start); took != 2500*time.Millisecond || procfs.attempts.Load() != 1 {
			t.Errorf("%v, %d walks, want the one that was under way", took, procfs.attempts.Load())
		}
		wantParts(t, <-hasty, "sockets")

		wantParts(t, scrapeWithin(t, c, time.Second), "sockets")
		time.Sleep(3 * time.Second)
		wantParts(t, scrapeWithin(t, c, time.Second), "")
		if procfs.attempts.Load() != 2 {
			t.Errorf("%d walks of the first walker", procfs.attempts.Load())
		}
		time.Sleep(time.Minute) // until it is over
	})
}

// TestReadingAge has scrapes that come again and again while the table hangs: what
// else they show is of no more than a few seconds ago.
func TestReadingAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, procfs, _ := newScripted(t, SourceProcfs)
		release := make(chan struct{})
		for range 100 {
			procfs.walks = append(procfs.walks, func(func(tcptable.Socket, error) bool) { <-release })
		}
		begun := time.Now()
		part := c.kernel[slices.IndexFunc(c.kernel, func(k *kernelPart) bool { return k.name == "file-nr" })]
		part.read = func(context.Context) (kernelstat.Numbers, error) {
			return kernelstat.Numbers{kernelstat.SysctlPlace("fs.file-nr", 0, 3): uint64(time.Since(begun).Seconds())}, nil
		}
		pages := make(chan float64)
		for i := range 20 {
			go func() {
				p := scrapeWithin(t, c, 10*time.Second)
				pages <- float64(3*i) - p.sum("kernel_file_handles")
			}()
			time.Sleep(3 * time.Second)
			c.table.walkers.put(&walker{tally: tally.New(32, 128), procfs: procfs})
		}
		for range 20 {
			if age := <-pages; age > shareFor.Seconds() {
				t.Errorf("of %v s ago", age)
			}
		}
		close(release)
	})
}

// TestCallPauses tries again while earlier calls hang, each time after a longer
// pause, and no more than so many hang.
func TestCallPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hung
		var calls atomic.Int32
		release := make(chan struct{})
		read := func(context.Context) (int, error) {
			calls.Add(1)
			<-release
			return 1, nil
		}
		begun := time.Now()
		var tries []time.Duration
		for time.Since(begun) < 100*24*time.Hour {
			before := calls.Load()
			_, _, err := begin(t.Context(), time.Millisecond, &h, read).wait(t.Context())
			if err == nil {
				t.Fatal("a call that hangs is done")
			}
			if calls.Load() > before {
				tries = append(tries, time.Since(begun).Round(time.Second))
			} else if !strings.Contains(err.Error(), fmt.Sprintf("%d reads that began earlier have not returned", before)) {
				t.Fatal(err)
			}
			time.Sleep(time.Second + time.Since(begun)/50)
		}
		if len(tries) != maxHung || tries[1] > 3*time.Second || tries[3] > time.Minute || tries[maxHung-1] < time.Hour {
			t.Errorf("tries after %v", tries)
		}
		close(release)
		synctest.Wait()
		if value, _, err := begin(t.Context(), time.Second, &h, read).wait(t.Context()); value != 1 || err != nil {
			t.Errorf("%v and %v after they have returned", value, err)
		}

		// One that hangs is no reason for a pause when a later one did not.
		release = make(chan struct{})
		first := begin(t.Context(), time.Second, &h, read)
		time.Sleep(time.Second / 2)
		well := func(context.Context) (int, error) { return 2, nil }
		for range 3 {
			if value, _, err := begin(t.Context(), time.Second, &h, well).wait(t.Context()); value != 2 || err != nil {
				t.Errorf("%v and %v", value, err)
			}
			time.Sleep(time.Second)
		}
		if _, _, err := first.wait(t.Context()); err == nil {
			t.Error("a call that hangs is done")
		}
		close(release)
	})
}

// TestCallEnds gives a call up, unless it says soon enough what it was at.
func TestCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := func(ctx context.Context, want string, after time.Duration, read func(context.Context) (int, error)) {
			t.Helper()
			begun := time.Now()
			c := begin(ctx, time.Second, new(hung), read)
			_, took, err := c.wait(context.WithoutCancel(ctx))
			if fmt.Sprint(err) != want || took != after || time.Since(begun) != after {
				t.Errorf("%v after %v, want %s after %v", err, took, want, after)
			}
			time.Sleep(time.Hour)
			if _, _, again := c.wait(context.WithoutCancel(ctx)); !errors.Is(again, err) {
				t.Errorf("%v, and then %v", err, again)
			}
		}
		after := func(d time.Duration, err error) func(context.Context) (int, error) {
			return func(ctx context.Context) (int, error) {
				<-ctx.Done()
				time.Sleep(d)
				return 0, err
			}
		}
		f(t.Context(), "broken", 0, func(context.Context) (int, error) { return 0, errors.New("broken") })
		f(t.Context(), "file: row 7", time.Second+graceful/2, after(graceful/2, errors.New("file: row 7")))
		f(t.Context(), "given up after 1.1s: context deadline exceeded", time.Second+graceful, after(time.Minute, errors.New("late")))
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second/2, func() { cancel(errors.New("over")) })
		f(ctx, "given up after 600ms: over", 600*time.Millisecond, after(time.Minute, nil))

		// Who waits may go before that.
		hasty, end := context.WithTimeout(t.Context(), time.Second/4)
		defer end()
		_, took, err := begin(t.Context(), time.Second, new(hung), after(0, nil)).wait(hasty)
		if took != time.Second/4 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
	})
}
