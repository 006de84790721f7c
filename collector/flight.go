package collector

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// flight lets callers that come while a call is under way share its result, so
// that there is never more than one call.
type flight[T any] struct {
	mu   sync.Mutex
	call *call[T]
}

type call[T any] struct {
	started   time.Time
	done      chan struct{} // closed when value and err are set
	value     T
	err       error
	waiters   int
	abandoned bool
	cancel    context.CancelFunc
}

// do returns what f returns, called now or by another caller a moment ago. It
// returns when ctx is done, whatever f does: a read of a file that hangs can't be
// interrupted. The context that f gets is canceled when nobody waits any more.
func (fl *flight[T]) do(ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	for {
		c := fl.join(ctx, f)
		select {
		case <-c.done:
			if c.abandoned && errors.Is(c.err, context.Canceled) && ctx.Err() == nil {
				continue // it was given up before this caller came
			}
			return c.value, c.err
		case <-ctx.Done():
			fl.leave(c)
			var none T
			return none, fmt.Errorf("not done after %v: %w", time.Since(c.started).Round(time.Millisecond), context.Cause(ctx))
		}
	}
}

func (fl *flight[T]) join(ctx context.Context, f func(context.Context) (T, error)) *call[T] {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	c := fl.call
	if c == nil {
		callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &call[T]{started: time.Now(), done: make(chan struct{}), cancel: cancel}
		fl.call = c
		go fl.run(callCtx, c, f)
	}
	c.waiters++
	return c
}

func (fl *flight[T]) run(ctx context.Context, c *call[T], f func(context.Context) (T, error)) {
	defer c.cancel()
	value, err := f(ctx)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	c.value, c.err = value, err
	fl.call = nil
	close(c.done)
}

func (fl *flight[T]) leave(c *call[T]) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if c.waiters--; c.waiters == 0 {
		c.abandoned = true
		c.cancel()
	}
}
