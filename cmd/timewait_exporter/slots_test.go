package main

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlots has scrapes wait, and one give up.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slots{free: 2}
		for range 2 {
			if !s.acquire(t.Context(), time.Time{}) {
				t.Fatal("there are two slots")
			}
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if s.acquire(ctx, start) {
			t.Error("given a slot though none is free")
		}
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("gave up after %v", waited)
		}

		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		for _, c := range []struct {
			name   string
			before time.Duration // 0: never
		}{
			{"again", 100 * time.Millisecond},
			{"new", 0},
			{"seldom", 15 * time.Second},
			{"newest", 0},
			{"again, later", 50 * time.Millisecond},
			{"more seldom", time.Minute},
		} {
			all.Go(func() {
				var before time.Time
				if c.before != 0 {
					before = time.Now().Add(-c.before)
				}
				if !s.acquire(t.Context(), before) {
					t.Error("not given a slot")
				}
				mu.Lock()
				order = append(order, c.name)
				mu.Unlock()
				s.release()
			})
			time.Sleep(time.Millisecond)
		}
		s.release()
		all.Wait()
		if want := []string{"more seldom", "seldom", "new", "newest", "again", "again, later"}; !slices.Equal(order, want) {
			t.Errorf("order %q, want %q", order, want)
		}
		s.release()
		if s.free != 2 || len(s.waiting) != 0 {
			t.Errorf("%d free, %d waiting", s.free, len(s.waiting))
		}
	})
}

// TestSlotsCanceled has many scrapes give up at the moment they are given a slot.
func TestSlotsCanceled(t *testing.T) {
	s := slots{free: 1}
	var all sync.WaitGroup
	for i := range 500 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
			defer cancel()
			if s.acquire(ctx, time.Time{}) {
				time.Sleep(50 * time.Microsecond)
				s.release()
			}
		})
	}
	all.Wait()
	if s.free != 1 || len(s.waiting) != 0 {
		t.Errorf("%d free, %d waiting", s.free, len(s.waiting))
	}
}
