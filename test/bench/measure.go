package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// scrapeTimeout is Prometheus's default: who takes longer has no answer.
const scrapeTimeout = 10 * time.Second

// An entry is one contender's line in the tables.
type entry struct {
	name       string
	does       string // what is measured, for the legend
	reads      contender
	failed     error     // why it is not measured (any more)
	quiet      []reading // one a round
	churned    []reading // one a round that it finished
	unfinished int       // rounds under churn that it did not
}

const (
	bareRead = 0 // the entries that ratios are to
	bareDump = 2
	tcpstat  = 5
)

// entries are in the order of the round. The two that may not end under churn come last.
func entries(o options) []*entry {
	exporter := func(address, source string) *daemon {
		d := &daemon{path: o.exporter, address: address, family: "tcp_connections"}
		if source != "" {
			d.flags = []string{"--collector.source=" + source}
		}
		return d
	}
	// All listen on an IPv4 address, so that nothing is in tcp6.
	return []*entry{
		bareRead: {
			name: "bare read of tcp", reads: &walker{walk: "tcp"},
			does: "`/proc/net/tcp` read into one buffer until the first short read, nothing parsed",
		},
		{
			name: "bare read of tcp, tcp6", reads: &walker{walk: "tcp+tcp6"},
			does: "the same with `/proc/net/tcp6`, which has no rows here",
		},
		bareDump: {
			name: "bare netlink dump", reads: &walker{walk: "netlink"},
			does: "one sock_diag dump of both families into one buffer, nothing parsed",
		},
		{
			name: "timewait_exporter, procfs", reads: exporter("127.0.0.1:10793", ""),
			does: "scraped over HTTP, as Prometheus does, with default flags",
		},
		{
			name: "timewait_exporter, netlink", reads: exporter("127.0.0.1:10794", "netlink"),
			does: "the same with `--collector.source=netlink`",
		},
		tcpstat: {
			name: "node_exporter tcpstat", reads: &daemon{
				path: o.nodeExporter, address: "127.0.0.1:9100", family: "node_tcp_connection_states",
				flags: []string{"--collector.disable-defaults", "--collector.tcpstat", "--web.disable-exporter-metrics"},
			},
			does: "scraped over HTTP, `--collector.disable-defaults --collector.tcpstat --web.disable-exporter-metrics`",
		},
		{
			name: "procfs.NetTCP", reads: &walker{walk: "procfs.NetTCP"},
			does: "the parser of `github.com/prometheus/procfs`, tcp only",
		},
		{
			name: "cat /proc/net/tcp", reads: new(cat),
			does: "to `/dev/null`, with the start of the process; under churn into a pipe",
		},
	}
}

// measure is the part that runs in the namespace: it builds the table and writes the report of it.
func measure(ctx context.Context, o options, out io.Writer) error {
	if err := openNamespace(); err != nil {
		return err
	}
	start := time.Now()
	t, err := buildTable(o)
	defer t.stop()
	if err != nil {
		return err
	}
	progress("%d sockets built in %v", o.sockets[0], time.Since(start).Round(time.Millisecond))

	all := entries(o)
	defer func() {
		for _, e := range all {
			e.reads.stop()
		}
	}()
	warmUp(ctx, all, false)
	rows, err := measureQuiet(ctx, o, t, all)
	if err != nil {
		return err
	}
	if err := writeQuiet(out, o, all, rows); err != nil {
		return err
	}
	if o.churn == 0 {
		return nil
	}
	warmUp(ctx, all, true)
	made, err := measureChurn(ctx, o, t, all)
	if err != nil {
		return err
	}
	return writeChurn(out, o, all, made)
}

// warmUp has each contender read once as it will later.
func warmUp(ctx context.Context, all []*entry, count bool) {
	for _, e := range all {
		if e.failed != nil {
			continue
		}
		if _, err := e.read(ctx, count); err != nil {
			e.failed = err
			progress("%s: %v", e.name, err)
		}
	}
}

func (e *entry) read(ctx context.Context, count bool) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	return e.reads.read(ctx, count)
}

// span is the least and the most of a count.
type span struct{ low, high int }

func (s *span) include(n int) { s.low, s.high = min(s.low, n), max(s.high, n) }

// measureQuiet goes round-robin, so that whatever else the machine does hits all alike. The span is
// of the table's rows.
func measureQuiet(ctx context.Context, o options, t *table, all []*entry) (span, error) {
	rows := span{low: math.MaxInt}
	for round := range o.rounds {
		progress("round %d of %d", round+1, o.rounds)
		for _, e := range all {
			if e.failed != nil {
				continue
			}
			if err := t.fill(); err != nil {
				return rows, err
			}
			r, err := e.read(ctx, false)
			if ctx.Err() != nil {
				return rows, ctx.Err()
			}
			if err != nil {
				e.failed = err
				continue
			}
			rows.include(r.before.rows)
			rows.include(r.after.rows)
			e.quiet = append(e.quiet, r)
		}
	}
	return rows, nil
}

// measureChurn is the same while another process opens and closes connections; it returns how many
// of them a second that process made.
func measureChurn(ctx context.Context, o options, t *table, all []*entry) (rate int, err error) {
	churn, err := startPart("churn", fmt.Sprintf("%d,%d,%d", o.churn, churnPort, o.remotes))
	if err != nil {
		return 0, err
	}
	defer churn.stop()
	start := time.Now()
	for round := range o.churnRounds {
		progress("round %d of %d under churn", round+1, o.churnRounds)
		for _, e := range all {
			if e.failed != nil {
				continue
			}
			if err := t.fill(); err != nil {
				return 0, err
			}
			r, err := e.read(ctx, true)
			switch {
			case ctx.Err() != nil:
				return 0, ctx.Err()
			case errors.Is(err, errNotFinished):
				e.unfinished++
			case err != nil:
				e.failed = err
			default:
				e.churned = append(e.churned, r)
			}
		}
	}
	answer, err := churn.ask("stop", time.Now().Add(scrapeTimeout))
	if err != nil {
		return 0, fmt.Errorf("churn: %w", err)
	}
	made, err := strconv.Atoi(strings.TrimSpace(answer))
	return int(float64(made) / time.Since(start).Seconds()), err
}

// rows is how many the table had at that time: the mean of before and after.
func (r reading) rows() float64 { return float64(r.before.rows+r.after.rows) / 2 }

// miss is how far the TIME_WAITs that it counted lie outside of what the kernel said before and
// after, as a ratio; 0 between the two.
func (r reading) miss() float64 {
	low, high := min(r.before.minisocks, r.after.minisocks), max(r.before.minisocks, r.after.minisocks)
	nearest := min(max(r.timeWait, low), high)
	return float64(r.timeWait-nearest) / float64(max(nearest, 1))
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
