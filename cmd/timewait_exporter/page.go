package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"timewait_exporter/collector"
	"timewait_exporter/diagnosis"
)

const (
	reportJSON = "/report.json"
	// fresh is how long a report serves everybody who asks for one.
	fresh = time.Second
	// contentPolicy lets the page have its own script and style, and nothing else: what a name
	// brings into it could do nothing.
	contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// reportPaths are where the report and what its page needs are served, beside /.
func reportPaths() []string { return []string{reportJSON, "/report.css", "/report.js"} }

// pages serve what a report says of this moment. It may be used concurrently.
type pages struct {
	host      string
	collector *collector.Collector
	links     []diagnosis.Link

	mu   sync.Mutex        // one reads, and one writes, for all
	last *diagnosis.Report // nil before the first
	read time.Time         // when it was done
}

func newPages(cfg *config, c *collector.Collector) *pages {
	p := &pages{collector: c}
	for _, link := range links(cfg) {
		p.links = append(p.links, diagnosis.Link{Address: "." + link.Address, Text: link.Text}) // a proxy may have all below another path
	}
	var host string
	if inTime(func() error {
		host = hostname(cfg.collector.ProcRoot)
		return nil
	}) == nil {
		p.host = host
	}
	return p
}

// serve adds the pages. Those that read the kernel have to be admitted.
func (p *pages) serve(mux *http.ServeMux, admitted *admission) {
	reports := func(contentType string, write func(*diagnosis.Report, io.Writer) error) http.Handler {
		return admitted.handler(guarded(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			p.mu.Lock()
			defer p.mu.Unlock()
			if err := write(p.report(r.Context()), w); err != nil { // it is memory
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}))
	}
	mux.Handle("/{$}", reports("text/html; charset=utf-8", func(r *diagnosis.Report, w io.Writer) error { return r.WriteHTML(w, p.links) }))
	mux.Handle(reportJSON, reports("application/json", func(r *diagnosis.Report, w io.Writer) error { return json.NewEncoder(w).Encode(r) }))
	for _, path := range reportPaths()[1:] {
		mux.Handle(path, guarded(http.FileServerFS(diagnosis.HTMLFiles()).ServeHTTP))
	}
}

// guarded has the browser do with an answer what the page needs, and keep none.
func guarded(next http.HandlerFunc) http.Handler {
	return gzhttp.GzipHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", contentPolicy)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next(w, r)
	}))
}

// report returns one that is a second old at most. The caller holds the lock.
func (p *pages) report(ctx context.Context) *diagnosis.Report {
	if p.last == nil || time.Since(p.read) > fresh {
		// It is for others too, whatever time this client gives.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), scrapeTimeout(nil))
		defer cancel()
		p.last = diagnosis.Diagnose(*now(ctx, p.host, p.collector))
		p.read = time.Now()
	}
	return p.last
}
