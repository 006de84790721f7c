package collector

import (
	"context"
	"time"
)

const (
	// smallTimeout is how long a part other than the table may take, at most half of
	// the scrape's time but no less than minSmallTimeout. None needs a millisecond.
	smallTimeout    = 2 * time.Second
	minSmallTimeout = 500 * time.Millisecond
	// shareFor is how old a reading may be that a scrape shares: else what hangs
	// would keep all else as it was.
	shareFor = 5 * time.Second
	// maxReading is how long a reading may take if no scrape has a deadline.
	maxReading = time.Minute
	// early is how long before the last deadline a reading ends, so that its parts
	// can say what they were at.
	early = 50 * time.Millisecond
)

// reading is one set of parts, read at the same time. No part waits for another,
// but the walk of the table for those that say how to judge a row, and for these not
// long.
type reading struct {
	begun time.Time
	ends  time.Time
	end   *time.Timer // cancels all parts

	ports     *call[*pool]      // nil if the sysctls are of another namespace
	listeners *call[*listening] // nil without sock_diag
	kernel    []*call[samples]  // one of each of Collector.kernel
	sockets   *call[samples]

	done []<-chan struct{} // of all of them
}

// isDone reports whether all parts are done.
func (r *reading) isDone() bool {
	for _, done := range r.done {
		select {
		case <-done:
		default:
			return false
		}
	}
	return true
}

// read returns the reading that is under way or, if there is none to share, a new
// one. It goes on until the last deadline of those who share it, whoever of them has
// gone: the next may want it.
func (c *Collector) read(ctx context.Context) *reading {
	ends := time.Now().Add(maxReading)
	if deadline, ok := ctx.Deadline(); ok {
		ends = deadline.Add(-min(early, time.Until(deadline)/4))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading == nil || !c.reading.share(ends) {
		c.reading = c.newReading(context.WithoutCancel(ctx), ends)
	}
	return c.reading
}

// share has the reading go on until ends, and reports whether it can.
func (r *reading) share(ends time.Time) bool {
	if r.isDone() || time.Since(r.begun) > shareFor || !r.end.Stop() {
		return false
	}
	if ends.After(r.ends) {
		r.ends = ends
	}
	r.end.Reset(time.Until(r.ends))
	return true
}

func (c *Collector) newReading(ctx context.Context, ends time.Time) *reading {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &reading{begun: time.Now(), ends: ends}
	left := time.Until(ends)
	r.end = time.AfterFunc(left, func() { cancel(context.DeadlineExceeded) })
	small := min(smallTimeout, max(minSmallTimeout, left/2))

	if c.cfg.Namespace.OwnSysctls {
		r.ports = begin(ctx, small, &c.ports, c.readPool)
		r.done = append(r.done, r.ports.done)
	}
	if c.hasDiag {
		r.listeners = begin(ctx, small, &c.listeners, c.readListening)
		r.done = append(r.done, r.listeners.done)
	}
	for _, p := range c.kernel {
		part := begin(ctx, small, &p.hung, p.read)
		r.kernel = append(r.kernel, part)
		r.done = append(r.done, part.done)
	}
	r.sockets = begin(ctx, maxReading, &c.sockets, func(ctx context.Context) (samples, error) {
		return c.walk(ctx, r.ports.result(), r.listeners.result())
	})
	r.done = append(r.done, r.sockets.done)
	go func() {
		for _, done := range r.done {
			<-done
		}
		r.end.Stop()
		cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.reading == r {
			c.reading = nil // what it has read is of no more use
		}
	}()
	return r
}
