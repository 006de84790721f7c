package main

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// seldom is less than what a Prometheus waits before it scrapes again, and more than
// who does nothing else can wait (slotWait).
const seldom = 2 * slotWait

// slots bounds how many scrapes are under way. In a flood others wait, and if they
// took turns everybody would be too late. So first come those who ask seldom, then new
// clients, last those who ask all the time. It may be used concurrently.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting []*waiter
}

type waiter struct {
	came, before time.Time     // before: the last time, zero if there was none
	given        chan struct{} // closed when it has its slot
}

func (w *waiter) class() int {
	switch {
	case w.before.IsZero():
		return 1
	case w.came.Sub(w.before) < seldom:
		return 2
	}
	return 0
}

func (w *waiter) compare(other *waiter) int {
	return cmp.Or(cmp.Compare(w.class(), other.class()), w.before.Compare(other.before))
}

// acquire takes a slot for a client that asked for one before at the given time, if it
// did. It reports false when ctx is done before there is one.
func (s *slots) acquire(ctx context.Context, before time.Time) bool {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return true
	}
	w := &waiter{came: time.Now(), before: before, given: make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()

	select {
	case <-w.given:
		return true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.remove(w) // if it is not there any more, it has just been given its slot
}

// release hands a slot on.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.free++
		return
	}
	// The first of equal ones, which is the one that came first.
	next := slices.MinFunc(s.waiting, (*waiter).compare)
	s.remove(next)
	close(next.given)
}

func (s *slots) remove(w *waiter) bool {
	i := slices.Index(s.waiting, w)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}
