package collector

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// maxHung is how many calls of one part may hang at the same time.
	maxHung = 16
	// graceful is how long a call that is to end may take to say what it was at.
	graceful = 100 * time.Millisecond
)

// hung are the calls of a part that were given up and have not returned. A read of a
// file system that hangs can't be interrupted, and may never end.
type hung struct {
	mu       sync.Mutex
	calls    int
	until    time.Time // when another call may be tried
	returned time.Time // when the last call began that returned in time
}

// check returns an error if no other call should be tried now: the more hang, the
// longer is the pause after the last one.
func (h *hung) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.calls == maxHung || time.Now().Before(h.until) {
		return fmt.Errorf("%d reads that began earlier have not returned", h.calls)
	}
	return nil
}

// call is a read under way, or what became of it.
type call[T any] struct {
	begun time.Time
	done  chan struct{} // closed when value, err and took are set
	value T
	err   error
	took  time.Duration

	logged sync.Once
}

// begin calls read. The call is done when read returns, or is given up soon after
// the timeout or the end of ctx, whatever read does then.
func begin[T any](ctx context.Context, timeout time.Duration, h *hung, read func(context.Context) (T, error)) *call[T] {
	c := &call[T]{begun: time.Now(), done: make(chan struct{})}
	var none T
	if err := h.check(); err != nil {
		c.end(none, err)
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-c.done:
			return
		case <-time.After(graceful):
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if c.end(none, fmt.Errorf("given up after %v: %w", time.Since(c.begun).Round(time.Millisecond), context.Cause(ctx))) {
			h.calls++
			if c.begun.After(h.returned) { // else the next one was well already
				h.until = time.Now().Add(time.Second << h.calls)
			}
		}
	})
	go func() {
		defer cancel()
		value, err := read(ctx)
		stop()
		h.mu.Lock()
		defer h.mu.Unlock()
		if c.end(value, err) {
			h.returned = c.begun
			return
		}
		h.calls--
		h.until = time.Time{}
	}()
	return c
}

// end sets what became of the call, and reports whether that was open. It is called
// with hung locked.
func (c *call[T]) end(value T, err error) bool {
	select {
	case <-c.done:
		return false
	default:
	}
	c.value, c.err, c.took = value, err, time.Since(c.begun)
	close(c.done)
	return true
}

// wait returns what became of the call and how long it took. It returns when ctx is
// done, whatever the call does.
func (c *call[T]) wait(ctx context.Context) (value T, took time.Duration, err error) {
	select {
	case <-c.done:
		return c.value, c.took, c.err
	default:
	}
	select {
	case <-c.done:
		return c.value, c.took, c.err
	case <-ctx.Done():
		took = time.Since(c.begun)
		return value, took, fmt.Errorf("not done after %v: %w", took.Round(time.Millisecond), context.Cause(ctx))
	}
}

// result waits for the call and returns its value. That of no call is the zero one.
func (c *call[T]) result() (value T) {
	if c == nil {
		return value
	}
	<-c.done
	return c.value
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
