package main

import (
	"context"
	stdlog "log"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"

	"timewait_exporter/collector"
	"timewait_exporter/docs/runbooks"
)

const (
	// defaultScrapeTimeout is Prometheus's own, for clients that don't say.
	defaultScrapeTimeout = 10 * time.Second
	// minScrapeTimeout is enough for the table of an ordinary host, and less than any
	// Prometheus waits.
	minScrapeTimeout = 250 * time.Millisecond
	maxScrapeTimeout = time.Minute
	// stopTimeout leaves requests under way the time to end; all is over within
	// 5 s of the signal.
	stopTimeout = 4 * time.Second
)

type server struct {
	http  *http.Server
	ready atomic.Bool
}

func newServer(cfg *config, registry *prometheus.Registry, c *collector.Collector, logger log.Logger) (*server, error) {
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name:        name,
		Description: "Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports",
		Version:     version.Info(),
		Profiling:   "false",
		Links: []web.LandingLinks{
			{Address: cfg.telemetryPath, Text: "Metrics"},
			{Address: runbooks.Path, Text: "Runbooks"},
			{Address: "/-/healthy", Text: "Health"},
			{Address: "/-/ready", Text: "Readiness"},
		},
	})
	if err != nil {
		return nil, err
	}
	books, err := runbooks.Handler()
	if err != nil {
		return nil, err
	}
	s := &server{}
	errorLog := newErrorLog(logger)
	mux := http.NewServeMux()
	mux.Handle("/{$}", landing)
	mux.Handle(cfg.telemetryPath, promhttp.InstrumentMetricHandler(registry,
		limitRequests(cfg.maxRequests, metricsHandler(registry, c, errorLog))))
	mux.Handle(runbooks.Path, books)
	mux.HandleFunc("/-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "healthy", http.StatusOK)
	})
	mux.HandleFunc("/-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		http.Error(w, "ready", http.StatusOK)
	})
	s.http = &http.Server{
		Handler:           mux,
		ErrorLog:          errorLog,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      maxScrapeTimeout + 10*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	return s, nil
}

// serve answers requests until ctx is done.
func (s *server) serve(ctx context.Context, flags *web.FlagConfig, logger *slog.Logger) error {
	s.ready.Store(true)
	served := make(chan error, 1)
	go func() { served <- web.ListenAndServe(s.http, flags, logger) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.ready.Store(false)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		return s.http.Close()
	}
	return <-served
}

// metricsHandler answers a scrape with the metrics of registry and those that c
// reads for it.
func metricsHandler(registry *prometheus.Registry, c *collector.Collector, errorLog *stdlog.Logger) http.Handler {
	// What is wrong with one metric is no reason to show none.
	opts := promhttp.HandlerOpts{ErrorLog: errorLog, ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A client that has sent all it has to say may close its half of the connection,
		// which net/http takes for a client that has gone (golang.org/issue/18527).
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), scrapeTimeout(r.Header))
		defer cancel()
		// The context has no other way to the collector than a registry of its own.
		scrape := prometheus.NewRegistry()
		scrape.MustRegister(c.WithContext(ctx))
		promhttp.HandlerFor(prometheus.Gatherers{registry, scrape}, opts).ServeHTTP(w, r)
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

// limitRequests refuses requests beyond limit at the same time; 0 is no limit.
// promhttp's own limit counts per handler, and each scrape has its own.
func limitRequests(limit int, next http.Handler) http.Handler {
	if limit == 0 {
		return next
	}
	running := make(chan struct{}, limit)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
			next.ServeHTTP(w, r)
		default:
			http.Error(w, "Limit of concurrent requests reached ("+strconv.Itoa(limit)+"), try again later.", http.StatusServiceUnavailable)
		}
	})
}
