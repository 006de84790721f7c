// Package collector turns the kernel's table of TCP sockets, its limits and its
// counters into Prometheus metrics.
package collector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
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
	// netlinkPause is how long SourceAuto reads procfs after netlink has failed.
	netlinkPause = time.Minute
)

// Collector reads the kernel on every scrape. Scrapes may come at the same time:
// they share one reading.
type Collector struct {
	cfg        Config
	logger     log.Logger
	kernel     []*kernelPart
	hasDiag    bool // sock_diag works and shows the namespace
	useNetlink bool // it is a source of the table

	mu      sync.Mutex
	reading *reading // under way, nil if none is

	netlinkAfter atomic.Int64 // when SourceAuto tries netlink again, in ns of Unix time

	ports, listeners, sockets hung // calls of those parts

	// What a call needs for itself, kept for the next one.
	diags   spare[*tcptable.SockDiag]
	walkers spare[*walker]

	rows, malformed *prometheus.CounterVec
}

// walker walks the table. It is not for concurrent use, and keeps its memory.
type walker struct {
	tally           *tally
	procfs, netlink tcptable.Source // netlink is nil if it is not to be used
}

func (c *Collector) newWalker() *walker {
	w := &walker{
		tally:  newTally(c.cfg.RemotePrefixIPv4, c.cfg.RemotePrefixIPv6),
		procfs: tcptable.NewProcNet(c.cfg.Namespace.Dir),
	}
	if c.useNetlink {
		w.netlink = tcptable.NewSockDiag()
	}
	return w
}

// spare keeps a value that is not in use, so that at most as many exist as are used
// at the same time.
type spare[T any] chan T

// take returns the spare value, or a new one.
func (s spare[T]) take(create func() T) T {
	select {
	case v := <-s:
		return v
	default:
		return create()
	}
}

// put gives a value back. One spare value is enough.
func (s spare[T]) put(v T) {
	select {
	case s <- v:
	default:
	}
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
		kernel:    kernel{cfg.ProcRoot, cfg.Namespace}.parts(),
		diags:     make(spare[*tcptable.SockDiag], 1),
		walkers:   make(spare[*walker], 1),
		rows:      counter(rowsRead),
		malformed: counter(malformedRows),
	}
	for t := range tcptable.NumTables {
		c.rows.WithLabelValues(t.String())
		c.malformed.WithLabelValues(t.String())
	}
	pool := begin(ctx, minSmallTimeout, &c.ports, c.readPool)
	if err := c.probe(ctx); err != nil {
		if cfg.Source == SourceNetlink {
			return nil, err
		}
		level.Info(logger).Log("msg", "no limits of accept queues", "reason", err)
	} else {
		c.hasDiag = true
	}
	c.useNetlink = c.hasDiag && cfg.Source != SourceProcfs
	source := SourceProcfs
	if c.useNetlink {
		source = SourceNetlink
	}
	level.Info(logger).Log("msg", "reading the socket table", "source", source, "wanted", cfg.Source)
	if pool, _, err := pool.wait(ctx); cfg.Namespace.OwnSysctls && pool == nil && err == nil {
		level.Warn(logger).Log("msg", "no net sysctls can be seen here, so limits and port utilisation are left out; is ProcSubset=pid set, or do they not exist in this sandbox?", "path", filepath.Join(cfg.ProcRoot, "sys/net"))
	}
	return c, nil
}

// probe asks whether sock_diag answers for the namespace.
func (c *Collector) probe(ctx context.Context) error {
	if !c.cfg.Namespace.Own {
		return fmt.Errorf("sock_diag shows the network namespace of this process, and %s is of another one", c.cfg.Namespace.Dir)
	}
	_, _, err := begin(ctx, smallTimeout, &c.listeners, c.readListening).wait(ctx)
	return err
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
	r := s.read(s.ctx)
	sysctls := "other"
	if r.ports != nil {
		sysctls = "same"
		if pool := add(s, &out, "ports", r.ports); pool != nil {
			out.add(timeWaitDuration, pool.timeWait.Seconds(), ns.Name)
		} else {
			sysctls = "none"
		}
	}
	out.add(netnsInfo, 1, ns.Name, ns.Dir, sysctls)
	if r.listeners != nil {
		add(s, &out, "listeners", r.listeners)
	}
	for i, part := range s.kernel {
		out = append(out, add(s, &out, part.name, r.kernel[i])...)
	}
	out = append(out, add(s, &out, "sockets", r.sockets)...)
	for _, m := range out {
		ch <- m
	}
	s.rows.Collect(ch)
	s.malformed.Collect(ch)
}

// add waits for a part, adds how that went, and returns what was read. What went
// wrong is logged once, however many scrapes share it.
func add[T any](s scrape, out *samples, name string, part *call[T]) T {
	value, took, err := part.wait(s.ctx)
	success := 1.0
	if err != nil {
		success = 0
		at := level.Error
		if errors.Is(err, context.Canceled) { // whoever asked has gone: nothing is wrong here
			at = level.Debug
		}
		tell := func() {
			at(s.logger).Log("msg", "reading failed, its metrics are left out of this scrape", "collector", name, "netns", s.cfg.Namespace.Name, "err", err)
		}
		if s.ctx.Err() == nil {
			part.logged.Do(tell)
		} else {
			tell()
		}
	}
	out.add(collectorSuccess, success, s.cfg.Namespace.Name, name)
	out.add(collectorDuration, took.Seconds(), s.cfg.Namespace.Name, name)
	return value
}

func (c *Collector) readPool(ctx context.Context) (*pool, error) {
	return readPool(ctx, c.cfg.ProcRoot)
}

func (c *Collector) readListening(ctx context.Context) (*listening, error) {
	diag := c.diags.take(tcptable.NewSockDiag)
	defer c.diags.put(diag)
	return readListening(ctx, diag)
}

// walk reads the socket table and counts it. A netlink that fails is tried once
// more before the walk fails or, with SourceAuto, procfs is read instead; and procfs
// once more if it had far fewer rows than the kernel counts.
func (c *Collector) walk(ctx context.Context, p *pool, l *listening) (samples, error) {
	w := c.walkers.take(c.newWalker)
	defer c.walkers.put(w)
	if l == nil {
		l = new(listening)
	}
	type try struct {
		name   string
		source tcptable.Source
	}
	tries := []try{{SourceProcfs, w.procfs}}
	if c.useNetlink && time.Now().UnixNano() > c.netlinkAfter.Load() {
		tries = []try{{SourceNetlink, w.netlink}, {SourceNetlink, w.netlink}}
		if c.cfg.Source == SourceAuto {
			tries = append(tries, try{SourceProcfs, w.procfs})
		}
	}
	for i, t := range tries {
		err := c.count(ctx, w.tally, t.source, p, l)
		if _, short := errors.AsType[*tcptable.ShortError](err); short && t.name == SourceProcfs && ctx.Err() == nil {
			err = c.count(ctx, w.tally, t.source, p, l) // a table that changes fast may be whole all the same
		}
		if err == nil {
			if t.name == SourceNetlink && c.netlinkAfter.Swap(0) != 0 {
				level.Info(c.logger).Log("msg", "reading the socket table again", "source", t.name)
			}
			var out samples
			out.add(sourceInfo, 1, c.cfg.Namespace.Name, t.name)
			return append(out, w.tally.samples(c.cfg.Namespace.Name, exported{
				remotes: c.cfg.Remotes, destinations: c.cfg.Destinations, listeners: c.cfg.Listeners, locals: locals,
			}, l.queues)...), nil
		}
		if i == len(tries)-1 || ctx.Err() != nil {
			return nil, err
		}
		next := tries[i+1].name
		level.Warn(c.logger).Log("msg", "reading the socket table failed, trying again", "source", t.name, "next", next, "err", err)
		if next != t.name {
			c.netlinkAfter.Store(time.Now().Add(netlinkPause).UnixNano())
		}
	}
	return nil, errors.New("no source")
}

// count walks the table once. Half of it would look like a quiet machine, so an
// error leaves nothing.
func (c *Collector) count(ctx context.Context, t *tally, source tcptable.Source, p *pool, l *listening) error {
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
