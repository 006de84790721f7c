package collector

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlightShares gives callers that come while a call is under way its result.
func TestFlightShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[int]
		calls := 0
		slow := func(context.Context) (int, error) {
			calls++
			time.Sleep(time.Second)
			return calls, nil
		}
		got := make(chan int, 10)
		for range 5 {
			go func() {
				v, err := fl.do(t.Context(), slow)
				if err != nil {
					t.Error(err)
				}
				got <- v
			}()
			time.Sleep(100 * time.Millisecond)
		}
		start := time.Now()
		for range 5 {
			if v := <-got; v != 1 {
				t.Errorf("the result of call %d", v)
			}
		}
		if calls != 1 || time.Since(start) != 500*time.Millisecond {
			t.Errorf("%d calls, done after %v", calls, time.Since(start))
		}
		// A result is not kept: the next caller wants the kernel as it is now.
		if v, err := fl.do(t.Context(), slow); v != 2 || err != nil {
			t.Errorf("%d and %v", v, err)
		}
	})
}

func TestFlightSharesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[int]
		broken := errors.New("broken")
		errs := make(chan error)
		for range 3 {
			go func() {
				_, err := fl.do(t.Context(), func(context.Context) (int, error) {
					time.Sleep(time.Second)
					return 0, broken
				})
				errs <- err
			}()
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, broken) {
				t.Error(err)
			}
		}
	})
}

// TestFlightDeadlines ends one caller's wait and not the other's.
func TestFlightDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[string]
		read := func(ctx context.Context) (string, error) {
			select {
			case <-time.After(10 * time.Second):
				return "whole", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		start := time.Now()
		hasty := make(chan error)
		for _, timeout := range []time.Duration{time.Second, 3 * time.Second} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				_, err := fl.do(ctx, read)
				if time.Since(start) != timeout {
					t.Errorf("returned after %v, the deadline was at %v", time.Since(start), timeout)
				}
				hasty <- err
			}()
		}
		patient := make(chan error)
		go func() {
			v, err := fl.do(t.Context(), read)
			if v != "whole" || time.Since(start) != 10*time.Second {
				t.Errorf("%q after %v", v, time.Since(start))
			}
			patient <- err
		}()
		for range 2 {
			if err := <-hasty; !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if err := <-patient; err != nil {
			t.Error(err)
		}
	})
}

// TestFlightAbandoned cancels the call when its last caller is gone. Who comes
// before it has ended gets a call of his own.
func TestFlightAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[int]
		calls, canceled := 0, false
		read := func(ctx context.Context) (int, error) {
			calls++
			if calls == 1 {
				<-ctx.Done()
				canceled = true
				time.Sleep(time.Second) // until a read(2) comes back
				return 0, ctx.Err()
			}
			return calls, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := fl.do(ctx, read); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if !canceled {
			t.Error("the call goes on though nobody waits for it")
		}
		if v, err := fl.do(t.Context(), read); v != 2 || err != nil {
			t.Errorf("%d and %v, want the result of the second call", v, err)
		}
	})
}

// TestFlightHangs never has two calls at a time, however often it is tried while
// the first one hangs.
func TestFlightHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[int]
		calls, release := 0, make(chan struct{})
		hang := func(context.Context) (int, error) {
			calls++
			<-release // whatever the context says
			return calls, nil
		}
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, err := fl.do(ctx, hang)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			cancel()
		}
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
		close(release)
		synctest.Wait()
		if v, err := fl.do(t.Context(), hang); v != 2 || err != nil {
			t.Errorf("%d and %v after it has come back", v, err)
		}
	})
}

// TestFlightCause says why a caller gave up.
func TestFlightCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fl flight[int]
		reason := errors.New("the client has gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel(reason)
		}()
		_, err := fl.do(ctx, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if !errors.Is(err, reason) {
			t.Error(err)
		}
	})
}
