package collector

import (
	"context"
	"errors"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

const (
	// watchPause is the time between two looks of a Watch, if that is watchShare times what
	// one takes, and snapshotPause that between two snapshots, which tell owners.
	watchPause    = 100 * time.Millisecond
	watchShare    = 20
	snapshotPause = time.Second
	// lookTimeout is how long a look may go on when the time is over.
	lookTimeout = 10 * time.Second
)

// Watch listens to connections that end until ctx does, and looks at those that are open
// meanwhile. With owners it takes snapshots too, so that the next one knows whose those were
// that have gone. It calls progress after each look with the closes so far.
//
// On more than one processor at a time (GOMAXPROCS) fewer closes are lost while it looks.
func (c *Collector) Watch(ctx context.Context, progress func(closes uint64)) *snapshot.Watch {
	begun := time.Now()
	w := &snapshot.Watch{Before: c.snapshotOf(ctx)}
	timeWait := kernelstat.TimeWaitLength
	if w.Before.Pool != nil {
		timeWait = w.Before.Pool.TimeWait
	}
	if w.Closes, w.Err = c.closes(ctx, timeWait, progress); w.Err != nil {
		w.Closes = nil
		<-ctx.Done() // what grows can be told nevertheless
	}
	w.Took = time.Since(begun)
	return w
}

func (c *Collector) closes(ctx context.Context, timeWait time.Duration, progress func(closes uint64)) (*snapshot.Closes, error) {
	if !c.hasDiag {
		return nil, errors.New("sock_diag does not answer for this network namespace")
	}
	diag, counted := tcptable.NewSockDiag(), tally.NewCloses()
	defer diag.Close() //nolint:errcheck // nothing was written
	// Listeners come before their connections.
	if err := counted.Look(diag.Live(ctx), timeWait); err != nil {
		return nil, err
	}
	events, err := tcptable.NewCloses()
	if err != nil {
		return nil, err
	}
	defer events.Close() //nolint:errcheck // nothing was written
	begun := time.Now()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	read := make(chan error, 1)
	go func() { read <- events.Read(reading, counted.Add) }()

	err = c.lookUntil(ctx, func(ctx context.Context) error {
		err := counted.Look(diag.Live(ctx), timeWait)
		progress(counted.Count())
		return err
	})
	stop()
	if readErr := <-read; readErr != nil || err != nil {
		return nil, errors.Join(err, readErr)
	}
	took := time.Since(begun)
	lost, err := events.Lost()
	if err != nil {
		return nil, err
	}
	last, done := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer done()
	// The oldest TIME_WAITs of the time may have gone; some s before that they can't be told apart.
	recent := min(took, timeWait-timeWait/6)
	if err := counted.Look(diag.Sockets(last), timeWait-recent); err != nil {
		return nil, err
	}
	found := counted.Snapshot(max(c.cfg.Destinations, c.cfg.Listeners), took, recent)
	found.Lost = lost
	return found, nil
}

// snapshotOf is whole though ctx ends meanwhile.
func (c *Collector) snapshotOf(ctx context.Context) *snapshot.Namespace {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer done()
	ns, _ := c.Snapshot(ctx)
	return ns
}

// lookUntil calls look again and again until ctx ends, and takes snapshots meanwhile if there
// are owners to tell.
func (c *Collector) lookUntil(ctx context.Context, look func(context.Context) error) error {
	var snapshotAt time.Time
	for {
		begun := time.Now()
		if err := look(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		if c.owners != nil && begun.After(snapshotAt) {
			c.snapshotOf(ctx)
			snapshotAt = time.Now().Add(max(snapshotPause, watchShare*time.Since(begun)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(watchPause, watchShare*time.Since(begun))):
		}
	}
}
