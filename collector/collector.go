// Package collector turns the kernel's table of TCP sockets, its limits and its
// counters into Prometheus metrics.
package collector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/tcptable"
)

// The ways to read the socket table.
const (
	SourceProcfs  = "procfs"
	SourceNetlink = "netlink"
	// SourceAuto is netlink as long as it works, else procfs.
	SourceAuto = "auto"
)

// Config says what to read and how much of it to name.
type Config struct {
	// ProcRoot is where the proc file system is mounted.
	ProcRoot  string
	Namespace Namespace
	// Source is one of the constants above.
	Source string
	// Remotes, Destinations and Listeners are how many of each get series of
	// their own. With 0 remotes no remote address is named.
	Remotes, Destinations, Listeners int
	// RemotePrefixIPv4 and RemotePrefixIPv6 fold remote addresses into blocks of
	// so many bits; 32 and 128 leave them whole.
	RemotePrefixIPv4, RemotePrefixIPv6 int
}

const (
	// locals is how many local IPs get series of their own.
	locals = 20
	// probeTimeout bounds the try at start whether sock_diag works.
	probeTimeout = 2 * time.Second
	// netlinkPause is how long SourceAuto reads procfs after netlink has failed.
	netlinkPause = time.Minute
)

// Collector reads the kernel on every scrape. Scrapes may come at the same time:
// they share one read.
type Collector struct {
	cfg    Config
	logger log.Logger

	ports     flight[*pool]
	kernel    []kernelPart
	kernels   []flight[samples] // one for each of them
	listeners flight[*listening]
	sockets   flight[samples]

	// diag is nil where sock_diag does not work or shows another namespace; it
	// belongs to the call that listeners has under way.
	diag *tcptable.SockDiag
	// What belongs to the call that sockets has under way.
	tally        *tally
	procfs       tcptable.Source
	netlink      tcptable.Source // nil if it is not to be used
	netlinkAfter time.Time

	rows, malformed *prometheus.CounterVec
}

// New returns the Collector of a network namespace. It asks the kernel whether
// sock_diag works, and fails if it does not and is the only source wanted.
func New(ctx context.Context, cfg Config, logger log.Logger) (*Collector, error) {
	counter := func(m *Metric) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
	}
	c := &Collector{
		cfg:       cfg,
		logger:    logger,
		tally:     newTally(cfg.RemotePrefixIPv4, cfg.RemotePrefixIPv6),
		procfs:    tcptable.NewProcNet(cfg.Namespace.Dir),
		kernel:    kernel{cfg.ProcRoot, cfg.Namespace}.parts(),
		rows:      counter(rowsRead),
		malformed: counter(malformedRows),
	}
	c.kernels = make([]flight[samples], len(c.kernel))
	for t := range tcptable.NumTables {
		c.rows.WithLabelValues(t.String())
		c.malformed.WithLabelValues(t.String())
	}
	if err := c.probe(ctx); err != nil {
		if cfg.Source == SourceNetlink {
			return nil, err
		}
		level.Info(logger).Log("msg", "no limits of accept queues", "reason", err)
	}
	if c.diag != nil && cfg.Source != SourceProcfs {
		c.netlink = tcptable.NewSockDiag()
	}
	source := SourceProcfs
	if c.netlink != nil {
		source = SourceNetlink
	}
	level.Info(logger).Log("msg", "reading the socket table", "source", source, "wanted", cfg.Source)
	if pool, err := c.readPool(ctx); cfg.Namespace.OwnSysctls && pool == nil && err == nil {
		level.Warn(logger).Log("msg", "no net sysctls can be seen here, so limits and port utilisation are left out; is ProcSubset=pid set, or do they not exist in this sandbox?", "path", filepath.Join(cfg.ProcRoot, "sys/net"))
	}
	return c, nil
}

// probe sets diag if sock_diag answers for the namespace.
func (c *Collector) probe(ctx context.Context) error {
	if !c.cfg.Namespace.Own {
		return fmt.Errorf("sock_diag shows the network namespace of this process, and %s is of another one", c.cfg.Namespace.Dir)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	diag := tcptable.NewSockDiag()
	if _, err := readListening(ctx, diag); err != nil {
		return err
	}
	c.diag = diag
	return nil
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

// Collect implements prometheus.Collector. A part that fails has a success of 0, and
// no metrics but those of the sysctls that did not fail; why is in the log.
func (s scrape) Collect(ch chan<- prometheus.Metric) {
	var out samples
	ns := s.cfg.Namespace
	sysctls := "other"
	var pool *pool
	if ns.OwnSysctls {
		sysctls = "same"
		s.part(&out, "ports", func() (samples, error) {
			var err error
			pool, err = s.ports.do(s.ctx, s.readPool)
			if pool == nil {
				sysctls = "none"
				return nil, err
			}
			var told samples
			told.add(timeWaitDuration, pool.timeWait.Seconds(), ns.Name)
			return told, nil
		})
	}
	out.add(netnsInfo, 1, ns.Name, ns.Dir, sysctls)
	for i, k := range s.kernel {
		s.part(&out, k.name, func() (samples, error) { return s.kernels[i].do(s.ctx, k.read) })
	}
	l := new(listening)
	if s.diag != nil {
		s.part(&out, "listeners", func() (samples, error) {
			told, err := s.listeners.do(s.ctx, func(ctx context.Context) (*listening, error) { return readListening(ctx, s.diag) })
			if err == nil {
				l = told
			}
			return nil, err
		})
	}
	s.part(&out, "sockets", func() (samples, error) {
		return s.sockets.do(s.ctx, func(ctx context.Context) (samples, error) { return s.walk(ctx, pool, l) })
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
		at := level.Error
		if errors.Is(err, context.Canceled) { // whoever asked has gone: nothing is wrong here
			at = level.Debug
		}
		at(s.logger).Log("msg", "reading failed, its metrics are left out of this scrape", "collector", name, "netns", s.cfg.Namespace.Name, "err", err)
	}
	*out = append(*out, part...)
	out.add(collectorSuccess, success, s.cfg.Namespace.Name, name)
	out.add(collectorDuration, time.Since(start).Seconds(), s.cfg.Namespace.Name, name)
}

func (c *Collector) readPool(ctx context.Context) (*pool, error) {
	return readPool(ctx, c.cfg.ProcRoot)
}

// walk reads the socket table and counts it. A netlink that fails is tried once
// more before the walk fails or, with SourceAuto, procfs is read instead.
func (c *Collector) walk(ctx context.Context, p *pool, l *listening) (samples, error) {
	type try struct {
		name   string
		source tcptable.Source
	}
	tries := []try{{SourceProcfs, c.procfs}}
	if c.netlink != nil && time.Now().After(c.netlinkAfter) {
		tries = []try{{SourceNetlink, c.netlink}, {SourceNetlink, c.netlink}}
		if c.cfg.Source == SourceAuto {
			tries = append(tries, try{SourceProcfs, c.procfs})
		}
	}
	for i, t := range tries {
		err := c.count(ctx, t.source, p, l)
		if err == nil {
			if t.name == SourceNetlink && !c.netlinkAfter.IsZero() {
				c.netlinkAfter = time.Time{}
				level.Info(c.logger).Log("msg", "reading the socket table again", "source", t.name)
			}
			var out samples
			out.add(sourceInfo, 1, c.cfg.Namespace.Name, t.name)
			return append(out, c.tally.samples(c.cfg.Namespace.Name, exported{
				remotes: c.cfg.Remotes, destinations: c.cfg.Destinations, listeners: c.cfg.Listeners, locals: locals,
			}, l.queues)...), nil
		}
		if i == len(tries)-1 || ctx.Err() != nil {
			return nil, err
		}
		next := tries[i+1].name
		level.Warn(c.logger).Log("msg", "reading the socket table failed, trying again", "source", t.name, "next", next, "err", err)
		if next != t.name {
			c.netlinkAfter = time.Now().Add(netlinkPause)
		}
	}
	return nil, errors.New("no source")
}

// count walks the table once. Half of it would look like a quiet machine, so an
// error leaves nothing.
func (c *Collector) count(ctx context.Context, source tcptable.Source, p *pool, l *listening) error {
	t := c.tally
	t.reset(p)
	t.v6Only = l.v6Only
	defer func() {
		for table, rows := range t.rows {
			c.rows.WithLabelValues(tcptable.Table(table).String()).Add(float64(rows))
		}
	}()
	for s, err := range source.Sockets(ctx) {
		if err != nil {
			if row, ok := errors.AsType[*tcptable.RowError](err); ok {
				c.malformed.WithLabelValues(row.Table.String()).Inc()
			}
			return err
		}
		t.add(&s)
	}
	t.finish()
	return nil
}
