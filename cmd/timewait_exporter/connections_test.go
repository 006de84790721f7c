package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
)

// client is one end of a connection, whose other end is the server's.
type client struct {
	net.Conn
	ctx context.Context
}

func (c client) closed() bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func (c client) server() net.Conn { return c.ctx.Value(connectionKey{}).(net.Conn) }

// scrape begins a scrape, which has a slot or waits for one.
func (c client) scrape(all *connections, has bool) *connection {
	conn := all.connection(c.ctx)
	conn.queue()
	if has {
		conn.take(ours)
	}
	return conn
}

func connect(t *testing.T, c *connections) client {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	cl := client{far, withConnection(t.Context(), near)}
	c.changed(near, http.StateNew)
	time.Sleep(time.Second) // so that one is older than the other
	return cl
}

// wantOpen says which connections are to be open, by their order.
func wantOpen(t *testing.T, c *connections, clients []client, open ...bool) {
	t.Helper()
	n := 0
	for i, want := range open {
		if want {
			n++
		}
		if clients[i].closed() == want {
			t.Errorf("connection %d is closed: %v", i, want)
		}
	}
	if len(c.open) != n {
		t.Errorf("%d connections are counted, want %d", len(c.open), n)
	}
}

// TestConnectionsLimit closes the one that is idle for longest, whatever it has done
// before, and not one that is served.
func TestConnectionsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnections(3, log.NewNopLogger())
		var all []client
		for range 3 {
			all = append(all, connect(t, c))
		}
		wantOpen(t, c, all, true, true, true)

		first := all[0].scrape(c, true)
		time.Sleep(time.Second)
		c.changed(all[1].server(), http.StateActive)
		c.changed(all[1].server(), http.StateIdle)
		time.Sleep(time.Second)
		all = append(all, connect(t, c))
		wantOpen(t, c, all, true, true, false, true)
		all = append(all, connect(t, c))
		wantOpen(t, c, all, true, false, false, true, true)

		// Where everybody waits for the first time there is no place.
		all[3].scrape(c, false)
		fourth := all[4].scrape(c, false)
		all = append(all, connect(t, c))
		wantOpen(t, c, all, true, false, false, true, true, false)

		// Whoever scrapes again so soon has to give way.
		fourth.take(clients)
		all[4].scrape(c, false)
		all = append(all, connect(t, c))
		wantOpen(t, c, all, true, false, false, true, false, false, true)

		first.take(clients)
		all[6].scrape(c, true)
		all = append(all, connect(t, c))
		wantOpen(t, c, all, false, false, false, true, false, false, true, true)
		c.changed(all[0].server(), http.StateClosed) // as its goroutine says at its end
		c.changed(all[7].server(), http.StateClosed)
		if len(c.open) != 2 {
			t.Errorf("%d connections are counted, want 2", len(c.open))
		}
	})
}

// TestAnswers bounds what waits for slow readers: the slowest loses its answer, but
// nobody who has just been sent one.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnections(0, log.NewNopLogger())
		c.maxAnswers = 100
		var all []client
		for range 4 {
			all = append(all, connect(t, c))
		}
		hold := func(i, size int) (*connection, bool) {
			conn := all[i].scrape(c, true)
			conn.take(clients)
			return conn, conn.hold(size)
		}
		for i := range 2 {
			if _, ok := hold(i, 50); !ok {
				t.Fatalf("no room for answer %d", i)
			}
		}
		if _, ok := hold(2, 1); ok {
			t.Error("there is room for 101 bytes")
		}
		time.Sleep(2 * slowReader)
		conn, ok := hold(2, 60)
		if !ok || c.answers != 60 {
			t.Errorf("no room is made: %v, %d bytes", ok, c.answers)
		}
		wantOpen(t, c, all, false, false, true, true)
		if _, ok := hold(0, 1); ok {
			t.Error("an answer on a connection that was closed")
		}
		conn.release()
		if _, ok := hold(3, 100); !ok || c.answers != 100 {
			t.Errorf("an answer that was read takes room: %v, %d bytes", ok, c.answers)
		}
		if _, ok := hold(2, 101); ok {
			t.Error("there is room for more than there is")
		}
	})
}
