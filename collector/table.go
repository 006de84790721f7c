package collector

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

const (
	// locals is how many local IPs are told one by one.
	locals = 20
	// targets are how many destinations of a namespace are in the sums of the node.
	targets = 32
	// netlinkPause is how long SourceAuto reads procfs after netlink has failed.
	netlinkPause = time.Minute
)

// table is the table of sockets, read from one source or the other. It may be walked by
// several at the same time.
type table struct {
	cfg        Config
	logger     log.Logger
	useNetlink bool        // it is a source of the table
	owners     bool        // are wanted, and can be told
	ages       atomic.Bool // are asked for in the walk

	netlinkAfter    atomic.Int64 // when SourceAuto tries netlink again, in ns of Unix time
	walkers         spare[*walker]
	rows, malformed [tcptable.NumTables]atomic.Uint64 // since the beginning
}

// walker walks the table. It is not for concurrent use, and keeps its memory.
type walker struct {
	tally           *tally.Tally
	procfs, netlink tcptable.Source // netlink is nil if it is not to be used
	live            *tcptable.SockDiag
}

func (t *table) newWalker() *walker {
	w := &walker{
		tally:  tally.New(t.cfg.RemotePrefixIPv4, t.cfg.RemotePrefixIPv6, t.cfg.RemoteGroups...),
		procfs: tcptable.NewProcNet(t.cfg.Namespace.Dir),
	}
	if t.useNetlink {
		w.netlink = tcptable.NewSockDiag()
	}
	if t.owners {
		w.tally.CountOwners()
		w.live = tcptable.NewSockDiag()
	}
	return w
}

// walked is a table that was read, with the walker, from which more can be had until it
// is put back. Where owners are told, whoever reads these puts it back.
type walked struct {
	*snapshot.Sockets
	*walker
	ages bool // netlink was asked for those of sockets
}

// countLive counts live sockets by cgroup, where the rows of the walk did not tell it, and how
// old those in CLOSE_WAIT are, where the walk was not asked for it.
func (w *walked) countLive(ctx context.Context) error {
	if w.Source == SourceProcfs {
		w.live.Ages = w.ages
		if err := w.tally.CountLive(w.live.Live(ctx)); err != nil {
			return fmt.Errorf("live sockets: %w", err)
		}
	}
	if !w.ages && w.tally.HasCloseWaits() {
		if err := w.tally.AgeCloseWaits(w.live.CloseWaits(ctx)); err != nil {
			return fmt.Errorf("sockets in CLOSE_WAIT: %w", err)
		}
	}
	return nil
}

// walk reads the socket table and counts it. A netlink that fails is tried once
// more before the walk fails or, with SourceAuto, procfs is read instead; and procfs
// once more if it had far fewer rows than the kernel counts.
func (t *table) walk(ctx context.Context, p *kernelstat.Pool, l *tally.Listening) (*walked, error) {
	w := t.walkers.take(t.newWalker)
	ages := t.ages.Load()
	if diag, ok := w.netlink.(*tcptable.SockDiag); ok {
		diag.Ages = ages
	}
	sockets, err := t.read(ctx, w, p, l)
	if err != nil || !t.owners {
		t.walkers.put(w)
	}
	if err != nil {
		return nil, err
	}
	return &walked{sockets, w, ages}, nil
}

func (t *table) read(ctx context.Context, w *walker, p *kernelstat.Pool, l *tally.Listening) (*snapshot.Sockets, error) {
	type attempt struct {
		name   string
		source tcptable.Source
	}
	attempts := []attempt{{SourceProcfs, w.procfs}}
	if t.useNetlink && time.Now().UnixNano() > t.netlinkAfter.Load() {
		attempts = []attempt{{SourceNetlink, w.netlink}, {SourceNetlink, w.netlink}}
		if t.cfg.Source == SourceAuto {
			attempts = append(attempts, attempt{SourceProcfs, w.procfs})
		}
	}
	for i, a := range attempts {
		err := t.count(ctx, w.tally, a.source, p, l)
		if _, short := errors.AsType[*tcptable.ShortError](err); short && a.name == SourceProcfs && ctx.Err() == nil {
			err = t.count(ctx, w.tally, a.source, p, l) // a table that changes fast may be whole all the same
		}
		if err == nil {
			if a.name == SourceNetlink && t.netlinkAfter.Swap(0) != 0 {
				level.Info(t.logger).Log("msg", "reading the socket table again", "source", a.name)
			}
			sockets := w.tally.Snapshot(t.limits())
			sockets.Source, sockets.Read = a.name, time.Now()
			return sockets, nil
		}
		if i == len(attempts)-1 || ctx.Err() != nil {
			return nil, err
		}
		next := attempts[i+1].name
		level.Warn(t.logger).Log("msg", "reading the socket table failed, trying again", "source", a.name, "next", next, "err", err)
		if next != a.name {
			t.netlinkAfter.Store(time.Now().Add(netlinkPause).UnixNano())
		}
	}
	return nil, errors.New("no source")
}

// limits are how many of each are told one by one.
func (t *table) limits() tally.Limits {
	n := tally.Limits{Remotes: t.cfg.Remotes, Destinations: t.cfg.Destinations, Listeners: t.cfg.Listeners, Locals: locals}
	if t.cfg.AllNamespaces || t.cfg.NATPorts > 0 {
		n.Targets = targets
	}
	return n
}

// count walks the table once, and counts what was read of it.
func (t *table) count(ctx context.Context, counted *tally.Tally, source tcptable.Source, p *kernelstat.Pool, l *tally.Listening) error {
	err := counted.Count(source.Sockets(ctx), p, l)
	for of, rows := range counted.Rows() {
		t.rows[of].Add(rows)
	}
	if row, ok := errors.AsType[*tcptable.RowError](err); ok {
		t.malformed[row.Table].Add(1)
	}
	return err
}
