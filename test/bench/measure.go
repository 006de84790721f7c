package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// scrapeTimeout is Prometheus's default: who takes longer has no answer.
const scrapeTimeout = 10 * time.Second

// A contender is one line of the tables.
type contender struct {
	name   string
	does   string // what is measured, for the legend
	reads  reader
	failed error // why it is not measured (any more)

	quiet, churned results
}

// results are the readings of one table, one a round.
type results struct {
	readings   []reading
	unfinished int // rounds
}

// The contenders that ratios are to.
const (
	bareRead = 0
	bareDump = 1
	tcpstat  = 6
)

// contenders are in the order of the round.
func contenders(o options) []*contender {
	exporter := func(address string, flags ...string) reader {
		return &daemon{path: o.exporter, address: address, family: "tcp_connections", flags: flags}
	}
	// All listen on an IPv4 address, so that nothing is in tcp6.
	return []*contender{
		bareRead: {
			name: "bare read", reads: readFiles(),
			does: "`/proc/net/tcp` and `/proc/net/tcp6`, which has no rows here, read into one buffer until the first short read, nothing parsed",
		},
		bareDump: {
			name: "bare netlink dump", reads: dump(),
			does: "one sock_diag dump of both families into one buffer, nothing parsed",
		},
		{
			name: "timewait_exporter, procfs", reads: exporter("127.0.0.1:10793"),
			does: "scraped over HTTP, as Prometheus does, with default flags",
		},
		{
			name: "timewait_exporter, netlink", reads: exporter("127.0.0.1:10794", "--collector.source=netlink"),
			does: "the same with `--collector.source=netlink`",
		},
		{
			name: "procfs, no owners", reads: exporter("127.0.0.1:10795", "--collector.owners=0"),
			does: "timewait_exporter with `--collector.owners=0`",
		},
		{
			name: "netlink, no owners", reads: exporter("127.0.0.1:10796", "--collector.source=netlink", "--collector.owners=0"),
			does: "the same with `--collector.source=netlink`",
		},
		tcpstat: {
			name: "node_exporter tcpstat", reads: &daemon{
				path: o.nodeExporter, address: "127.0.0.1:9100", family: "node_tcp_connection_states",
				flags: []string{"--collector.disable-defaults", "--collector.tcpstat", "--web.disable-exporter-metrics"},
			},
			does: "scraped over HTTP, `--collector.disable-defaults --collector.tcpstat --web.disable-exporter-metrics`",
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
	if err != nil {
		return err
	}
	progress("%d sockets built in %v", o.sockets[0], time.Since(start).Round(time.Millisecond))

	all := contenders(o)
	defer func() {
		for _, c := range all {
			c.reads.stop()
		}
	}()
	// The first round, which starts the daemons, does not count.
	if err := readRounds(ctx, t, all, 1, func(*contender) *results { return new(results) }); err != nil {
		return err
	}
	if err := readRounds(ctx, t, all, o.rounds, func(c *contender) *results { return &c.quiet }); err != nil {
		return err
	}
	if err := writeQuiet(out, o, all); err != nil || o.churn == 0 {
		return err
	}

	churning, stop := context.WithCancel(ctx)
	defer stop()
	made, ended := 0, make(chan error, 1)
	start = time.Now()
	go func() {
		var err error
		made, err = churn(churning, o)
		ended <- err
	}()
	err = readRounds(ctx, t, all, o.churnRounds, func(c *contender) *results { return &c.churned })
	rate := time.Since(start)
	stop()
	if err := cmp.Or(<-ended, err); err != nil {
		return err
	}
	return writeChurn(out, o, all, int(float64(made)/rate.Seconds()))
}

// readRounds goes round-robin, so that whatever else the machine does hits all alike.
func readRounds(ctx context.Context, t *table, all []*contender, rounds int, of func(*contender) *results) error {
	for round := range rounds {
		progress("round %d of %d", round+1, rounds)
		for _, c := range all {
			if c.failed != nil {
				continue
			}
			if err := t.fill(); err != nil {
				return err
			}
			within, cancel := context.WithTimeout(ctx, scrapeTimeout)
			r, err := c.reads.read(within)
			cancel()
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, errNotFinished):
				of(c).unfinished++
			case err != nil:
				c.failed = err
				progress("%s: %v", c.name, err)
			default:
				of(c).readings = append(of(c).readings, r)
			}
		}
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
