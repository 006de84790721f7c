// Package collector turns the kernel's table of TCP sockets, its limits and its
// counters into Prometheus metrics.
package collector

import (
	"context"
	"errors"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/tcptable"
)

// Config says what to read and how much of it to name.
type Config struct {
	// ProcRoot is where the proc file system is mounted.
	ProcRoot  string
	Namespace Namespace
	// Remotes, Destinations and Listeners are how many of each get series of
	// their own. With 0 remotes no remote address is named.
	Remotes, Destinations, Listeners int
	// RemotePrefixIPv4 and RemotePrefixIPv6 fold remote addresses into blocks of
	// so many bits; 32 and 128 leave them whole.
	RemotePrefixIPv4, RemotePrefixIPv6 int
}

// locals is how many local IPs get series of their own.
const locals = 20

// Collector reads the kernel on every scrape. Scrapes may come at the same time:
// they share one read.
type Collector struct {
	cfg    Config
	logger log.Logger
	source tcptable.Source
	tally  *tally // belongs to the call that sockets has under way

	ports   flight[*pool]
	kernel  flight[samples]
	sockets flight[samples]

	rows, malformed *prometheus.CounterVec
}

// New returns the Collector of a network namespace. It reads nothing yet.
func New(cfg Config, logger log.Logger) *Collector {
	counter := func(m *Metric) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
	}
	c := &Collector{
		cfg:       cfg,
		logger:    logger,
		source:    tcptable.NewProcNet(cfg.Namespace.Dir),
		tally:     newTally(cfg.RemotePrefixIPv4, cfg.RemotePrefixIPv6),
		rows:      counter(rowsRead),
		malformed: counter(malformedRows),
	}
	for t := range tcptable.NumTables {
		c.rows.WithLabelValues(t.String())
		c.malformed.WithLabelValues(t.String())
	}
	return c
}

// WithContext returns the Collector as a prometheus.Collector whose reads end
// when ctx does.
func (c *Collector) WithContext(ctx context.Context) prometheus.Collector {
	return scrape{c, ctx}
}

type scrape struct {
	*Collector
	ctx context.Context
}

// Describe implements prometheus.Collector.
func (s scrape) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range Metrics() {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector. A part that fails has no metrics but
// its success of 0; why is in the log.
func (s scrape) Collect(ch chan<- prometheus.Metric) {
	var out samples
	ns := s.cfg.Namespace
	sysctls := "other"
	if ns.OwnSysctls {
		sysctls = "same"
	}
	out.add(netnsInfo, 1, ns.Name, ns.Dir, sysctls)

	var pool *pool
	if ns.OwnSysctls {
		s.part(&out, "ports", func() (samples, error) {
			var err error
			pool, err = s.ports.do(s.ctx, s.readPool)
			return nil, err
		})
	}
	s.part(&out, "kernel", func() (samples, error) {
		return s.Collector.kernel.do(s.ctx, kernel{s.cfg.ProcRoot, ns}.read)
	})
	s.part(&out, "sockets", func() (samples, error) {
		return s.sockets.do(s.ctx, func(ctx context.Context) (samples, error) { return s.walk(ctx, pool) })
	})
	for _, m := range out {
		ch <- m
	}
	s.rows.Collect(ch)
	s.malformed.Collect(ch)
}

// part adds what read returns, and how that went.
func (s scrape) part(out *samples, name string, read func() (samples, error)) {
	start := time.Now()
	part, err := read()
	success := 1.0
	if err != nil {
		success = 0
		level.Error(s.logger).Log("msg", "reading failed, its metrics are left out of this scrape", "collector", name, "netns", s.cfg.Namespace.Name, "err", err)
	}
	*out = append(*out, part...)
	out.add(collectorSuccess, success, s.cfg.Namespace.Name, name)
	out.add(collectorDuration, time.Since(start).Seconds(), s.cfg.Namespace.Name, name)
}

func (c *Collector) readPool(context.Context) (*pool, error) {
	return readPool(c.cfg.ProcRoot)
}

// walk reads the socket table once and counts it. Half a table would look like a
// quiet machine, so an error leaves nothing of it; a torn last row does not hide
// others.
func (c *Collector) walk(ctx context.Context, p *pool) (samples, error) {
	t := c.tally
	t.reset(p)
	defer func() {
		for table, rows := range t.rows {
			c.rows.WithLabelValues(tcptable.Table(table).String()).Add(float64(rows))
		}
	}()
	for s, err := range c.source.Sockets(ctx) {
		if err == nil {
			t.add(&s)
			continue
		}
		row, ok := errors.AsType[*tcptable.RowError](err)
		if !ok {
			return nil, err
		}
		c.malformed.WithLabelValues(row.Table.String()).Inc()
		if !row.Torn {
			return nil, err
		}
		level.Warn(c.logger).Log("msg", "the last row is left out", "err", err)
	}
	t.finish()
	return t.samples(c.cfg.Namespace.Name, exported{
		remotes: c.cfg.Remotes, destinations: c.cfg.Destinations, listeners: c.cfg.Listeners, locals: locals,
	}), nil
}
