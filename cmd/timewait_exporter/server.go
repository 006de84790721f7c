package main

import (
	"context"
	"log/slog"
	"net/http"
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
	// stopTimeout leaves requests under way the time to end; all is over within
	// 5 s of the signal.
	stopTimeout = 4 * time.Second
	// bodyTimeout is how long a client that was refused may go on sending.
	bodyTimeout = time.Second
)

type server struct {
	http  *http.Server
	ready atomic.Bool
}

func newServer(cfg *config, registry *prometheus.Registry, c *collector.Collector, logger log.Logger) (*server, error) {
	books, err := runbooks.Handler()
	if err != nil {
		return nil, err
	}
	s := &server{}
	conns := newConnections(cfg.maxConnections, logger)
	mux := http.NewServeMux()
	admitted := newAdmission(cfg.maxRequests, conns, logger)
	mux.Handle(cfg.telemetryPath, promhttp.InstrumentMetricHandler(registry, admitted.handler(metrics(registry, c, logger))))
	if cfg.pages {
		newPages(cfg, c).serve(mux, admitted)
	} else {
		landing, err := newLanding(cfg)
		if err != nil {
			return nil, err
		}
		mux.Handle("/{$}", landing)
	}
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
	// HTTP/2 would be of no use to a scrape, and to a flood: streams are no connections.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler:                      readOnly(mux),
		DisableGeneralOptionsHandler: true,
		Protocols:                    &protocols,
		ConnContext:                  withConnection,
		ConnState:                    conns.changed,
		ErrorLog:                     newErrorLog(logger),
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 maxScrapeTimeout + answerTimeout,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               16 << 10,
	}
	return s, nil
}

// links are the other pages.
func links(cfg *config) []web.LandingLinks {
	return []web.LandingLinks{
		{Address: cfg.telemetryPath, Text: "Metrics"},
		{Address: runbooks.Path, Text: "Runbooks"},
		{Address: "/-/healthy", Text: "Health"},
		{Address: "/-/ready", Text: "Readiness"},
	}
}

// newLanding returns the page of links alone.
func newLanding(cfg *config) (http.Handler, error) {
	return web.NewLandingPage(web.LandingConfig{
		Name:        name,
		Description: "Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports",
		Version:     version.Info(),
		Profiling:   "false",
		Links:       links(cfg),
	})
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

// readOnly refuses a request that wants to do more than read. Its connection ends, and
// what it would send is not waited for.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if read && r.ContentLength == 0 { // -1: in chunks
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		// net/http reads on after its answer, lest a reset overtakes that.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // else that of the request
		if !read {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "Only GET and HEAD are allowed.", http.StatusMethodNotAllowed)
			return
		}
		http.Error(w, "A request with a body is not allowed.", http.StatusBadRequest)
	})
}
