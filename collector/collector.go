// Package collector turns the kernel's table of TCP sockets, its limits and its
// counters into Prometheus metrics.
package collector

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// Collector reads the kernel on every scrape. Scrapes may come at the same time:
// they share one reading.
type Collector struct{ scraper }

// New returns the Collector of a network namespace. It asks the kernel whether
// sock_diag works, and fails if it does not and is the only source wanted.
func New(ctx context.Context, cfg Config, logger log.Logger) (*Collector, error) {
	c := &Collector{scraper{
		cfg:    cfg,
		logger: logger,
		kernel: kernelParts(cfg),
		table:  table{cfg: cfg, logger: logger, walkers: make(spare[*walker], 1)},
		diags:  make(spare[*tcptable.SockDiag], 1),
	}}
	if cfg.AllNamespaces {
		others, name, err := newNamespaces(ctx, &c.table)
		if err != nil {
			return nil, err
		}
		c.cfg.Namespace.Name = name
		c.others = make(chan *namespaces, 1)
		c.others <- others
	}
	ports := begin(ctx, minSmallTimeout, &c.ports, c.readPool)
	if err := c.probe(ctx); err != nil {
		if cfg.Source == SourceNetlink {
			return nil, err
		}
		level.Info(logger).Log("msg", "no limits of accept queues", "reason", err)
	} else {
		c.hasDiag = true
	}
	c.owners, c.ownerSource = findOwners(ctx, cfg, c.hasDiag, &c.table, logger)
	c.table.useNetlink = c.hasDiag && cfg.Source != SourceProcfs
	source := SourceProcfs
	if c.table.useNetlink {
		source = SourceNetlink
	}
	level.Info(logger).Log("msg", "reading the socket table", "source", source, "wanted", cfg.Source)
	if pool, _, err := ports.wait(ctx); cfg.Namespace.OwnSysctls && pool == nil && err == nil {
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

// Snapshot reads the namespace and the node. It returns when ctx ends, with what has been
// read by then: the namespace's Parts tell what is missing, and why.
func (c *Collector) Snapshot(ctx context.Context) (*snapshot.Namespace, *snapshot.Node) {
	return c.scrape(ctx, true)
}

// Read is Snapshot for Prometheus. A part that fails has a success of 0, and no metrics but
// those of the sysctls that did not fail; why is in the log. Where names are given and none of
// these metrics comes from the table of sockets, no table is read.
func (c *Collector) Read(ctx context.Context, names ...string) prometheus.Collector {
	ns, node := c.scrape(ctx, len(names) == 0 || slices.ContainsFunc(names, isOfTable))
	return read{ns, node}
}

// read is what one scrape has read. It becomes samples only when these are collected: they
// take much more memory.
type read struct {
	ns   *snapshot.Namespace
	node *snapshot.Node
}

// Describe implements prometheus.Collector.
func (read) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range Metrics() {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (r read) Collect(ch chan<- prometheus.Metric) {
	for _, m := range samplesOf(r.ns, r.node) {
		ch <- m
	}
}
