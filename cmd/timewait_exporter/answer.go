package main

import (
	"bytes"
	"context"
	"maps"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"timewait_exporter/collector"
)

const (
	// defaultScrapeTimeout is Prometheus's own, for clients that don't say.
	defaultScrapeTimeout = 10 * time.Second
	// minScrapeTimeout is enough for the table of an ordinary host, and less than any
	// Prometheus waits.
	minScrapeTimeout = 250 * time.Millisecond
	maxScrapeTimeout = time.Minute
	// slotWait is how long a scrape waits for others to end.
	slotWait = time.Second
	// answerTimeout is how long a client may take to read its answer.
	answerTimeout = 10 * time.Second
)

// admission bounds the requests that read the kernel.
//
// A request has one of the slots while its answer is written into memory. It has given it
// back when its client begins to read, so no client can keep one by reading slowly.
type admission struct {
	connections *connections
	slots       slots
	maxRequests int
	logger      log.Logger
}

func newAdmission(maxRequests int, conns *connections, logger log.Logger) *admission {
	free := maxRequests
	if free == 0 {
		free = math.MaxInt
	}
	return &admission{connections: conns, slots: slots{free: free}, maxRequests: maxRequests, logger: logger}
}

// handler has next answer requests, when there is a slot. Their contexts end when a
// scrape has to.
func (a *admission) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := a.connections.connection(r.Context())
		answer, ok := a.answer(next, r, conn)
		if !ok {
			http.Error(w, "Limit of concurrent requests reached ("+strconv.Itoa(a.maxRequests)+"), try again later.", http.StatusServiceUnavailable)
			return
		}
		if !conn.hold(answer.body.Cap()) {
			http.Error(w, "Too many answers wait for clients that don't read them, try again later.", http.StatusServiceUnavailable)
			return
		}
		defer conn.release()
		if err := answer.write(w); err != nil {
			level.Debug(a.logger).Log("msg", "the client has gone", "client", r.RemoteAddr, "err", err)
		}
	})
}

// answer returns the answer to a request, unless there is no slot for it.
func (a *admission) answer(next http.Handler, r *http.Request, conn *connection) (*answer, bool) {
	timeout := scrapeTimeout(r.Header)
	// A client that has sent all it has to say may close its half of the connection,
	// which net/http takes for a client that has gone (golang.org/issue/18527).
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
	defer cancel()
	wait, stop := context.WithTimeout(r.Context(), min(slotWait, timeout/2))
	defer stop()
	defer conn.take(clients)
	if !a.slots.acquire(wait, conn.queue()) {
		return nil, false
	}
	defer a.slots.release()
	conn.take(ours)
	in := &answer{header: make(http.Header)}
	next.ServeHTTP(in, r.WithContext(ctx))
	return in, true
}

// metrics answers a scrape with the metrics of registry and those that c reads for it.
func metrics(registry *prometheus.Registry, c *collector.Collector, logger log.Logger) http.Handler {
	errorLog := newErrorLog(logger)
	var encoding sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := c.Read(r.Context(), r.URL.Query()["name[]"]...)
		// The page of a node of a thousand network namespaces takes 20 MB to make.
		encoding.Lock()
		defer encoding.Unlock()
		scrape := prometheus.NewRegistry()
		scrape.MustRegister(read)
		promhttp.HandlerFor(prometheus.Gatherers{registry, scrape}, promhttp.HandlerOpts{
			ErrorLog:          errorLog,
			ErrorHandling:     promhttp.ContinueOnError, // what is wrong with one metric is no reason to show none
			EnableOpenMetrics: true,
		}).ServeHTTP(w, r)
	})
}

// scrapeTimeout returns how long a scrape may read: what Prometheus says it waits,
// less a part of it for the answer's way.
func scrapeTimeout(header http.Header) time.Duration {
	timeout := defaultScrapeTimeout
	if seconds, err := strconv.ParseFloat(header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64); err == nil && seconds > 0 {
		timeout = time.Duration(min(seconds, maxScrapeTimeout.Seconds()) * float64(time.Second))
	}
	return max(minScrapeTimeout, timeout-min(timeout/10, 500*time.Millisecond))
}

// answer is an http.ResponseWriter that keeps everything in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// write hands the answer on.
func (a *answer) write(w http.ResponseWriter) error {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)) // else that of the server
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	_, err := w.Write(a.body.Bytes()) //nolint:gosec // handlers escape what they write, see html/template
	return err
}
