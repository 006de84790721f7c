package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
)

const (
	// maxAnswers bounds the answers that wait for slow readers, in bytes.
	maxAnswers = 32 << 20
	// slowReader is how long an answer has been waiting when it may be dropped for another.
	slowReader = 250 * time.Millisecond
	// buffers bounds what the kernel keeps of a connection each way, in bytes, which is
	// accounted to the program. It would keep megabytes of what nobody reads.
	buffers = 32 << 10
)

// connections bounds what clients can hold: open connections, and answers that they
// don't read. Who comes when all is taken gets the place of another. It may be used
// concurrently.
type connections struct {
	limit      int // 0 for none
	maxAnswers int
	logger     log.Logger

	mu      sync.Mutex
	open    map[net.Conn]*connection
	answers int // bytes, in all
}

type connection struct {
	of   *connections
	conn net.Conn

	turn    turn
	since   time.Time     // its turn, or when it was last heard of
	scraped time.Time     // its last scrape, zero before the first one
	pause   time.Duration // between that and the one before, zero if there is none
	answer  int           // bytes of an answer that its client may not have read
}

// turn is whose it is to do something.
type turn int

const (
	clients turn = iota // it has yet to send a request, all of it, or to read its answer
	queued              // its scrape waits for others
	ours
)

func newConnections(limit int, logger log.Logger) *connections {
	return &connections{limit: limit, maxAnswers: maxAnswers, logger: logger, open: make(map[net.Conn]*connection)}
}

type connectionKey struct{}

// withConnection is for http.Server.ConnContext.
func withConnection(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// changed is for http.Server.ConnState. For a new connection it runs before the next
// one is accepted.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		bound(conn)
		if c.add(conn) {
			// The one that was closed has a goroutine, which ends before more come.
			runtime.Gosched()
		}
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		defer c.mu.Unlock()
		if o := c.open[conn]; o != nil {
			c.forget(o)
		}
	default:
		c.mu.Lock()
		defer c.mu.Unlock()
		if o := c.open[conn]; o != nil {
			o.since = time.Now()
		}
	}
}

// add adds a connection, and reports whether one was closed for it: the one that has
// been idle for longest; where all have scrapes, the one that scrapes most often; where
// that can't be told, the new one.
func (c *connections) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	full := c.limit > 0 && len(c.open) >= c.limit
	var victim *connection
	if full {
		victim = c.first(
			func(o *connection) bool { return o.turn == clients },
			func(a, b *connection) int { return a.since.Compare(b.since) })
	}
	if full && victim == nil {
		victim = c.first(
			func(o *connection) bool { return o.turn == queued && o.pause > 0 },
			func(a, b *connection) int { return cmp.Compare(a.pause, b.pause) })
	}
	o := &connection{of: c, conn: conn, since: time.Now()}
	c.open[conn] = o
	if full {
		c.close(cmp.Or(victim, o), "--web.max-connections")
	}
	return full
}

// first returns the first of the eligible connections in some order, nil if there is
// none. The caller holds the lock, as for all below.
func (c *connections) first(eligible func(*connection) bool, compare func(a, b *connection) int) *connection {
	var first *connection
	for _, o := range c.open {
		if eligible(o) && (first == nil || compare(o, first) < 0) {
			first = o
		}
	}
	return first
}

func (c *connections) close(o *connection, reason string) {
	level.Warn(c.logger).Log("msg", "closing a connection for another", "reason", reason,
		"client", o.conn.RemoteAddr(), "idle", time.Since(o.since).Round(time.Millisecond))
	c.forget(o)
	// Not the one of TLS, which would write to a client that may not read.
	_ = plain(o.conn).Close() // gone already
}

func (c *connections) forget(o *connection) {
	c.answers -= o.answer
	o.answer = 0
	delete(c.open, o.conn)
}

// connection returns the one that a request came on.
func (c *connections) connection(ctx context.Context) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn, _ := ctx.Value(connectionKey{}).(net.Conn)
	return cmp.Or(c.open[conn], &connection{of: c, conn: conn}) // the latter if it was closed meanwhile
}

// queue says that a scrape of the client waits for others. It returns when the one
// before was, zero if there was none.
func (o *connection) queue() (before time.Time) {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	before, now := o.scraped, time.Now()
	if !before.IsZero() {
		o.pause = now.Sub(before)
	}
	o.turn, o.since, o.scraped = queued, now, now
	return before
}

// take gives the turn to somebody.
func (o *connection) take(t turn) {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.turn, o.since = t, time.Now()
}

// hold makes room for an answer of so many bytes, and reports whether there is; the
// slowest reader may lose its own for it. release is to be called when it is over.
func (o *connection) hold(size int) bool {
	c := o.of
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.answers+size > c.maxAnswers {
		slowest := c.first(
			func(o *connection) bool { return o.answer > 0 && time.Since(o.since) > slowReader },
			func(a, b *connection) int { return a.since.Compare(b.since) })
		if slowest == nil {
			return false
		}
		c.close(slowest, "bytes of answers that nobody reads")
	}
	if c.open[o.conn] != o {
		return false
	}
	o.answer = size
	c.answers += size
	return true
}

func (o *connection) release() {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.of.answers -= o.answer
	o.answer = 0
}

// bound sets the buffers of a connection.
func bound(conn net.Conn) {
	if sized, ok := plain(conn).(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		_ = sized.SetReadBuffer(buffers) // else the kernel's
		_ = sized.SetWriteBuffer(buffers)
	}
}

// plain returns the connection below TLS.
func plain(conn net.Conn) net.Conn {
	if secure, ok := conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return conn
}
