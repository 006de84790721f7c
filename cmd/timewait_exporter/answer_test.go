package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector"
)

// twice is a collector with two samples of one series.
type twice struct{ desc *prometheus.Desc }

func (c twice) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c twice) Collect(ch chan<- prometheus.Metric) {
	for range 2 {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1)
	}
}

// TestBadMetric has a metric that can't be shown: all others are, and the log says
// which it is.
func TestBadMetric(t *testing.T) {
	const root = "../../collector/testdata/quiet_host/proc"
	ns, err := collector.FindNamespace(root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := collector.New(t.Context(), collector.Config{ProcRoot: root, Namespace: ns, Source: collector.SourceProcfs}, log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(twice{prometheus.NewDesc("bad_metric", "Twice.", nil, nil)})
	var logged strings.Builder
	answer := httptest.NewRecorder()
	metrics(registry, c, log.NewLogfmtLogger(&logged)).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if page := answer.Body.String(); answer.Code != http.StatusOK || !strings.Contains(page, "\ntcp_connections{") || !strings.Contains(page, "\nkernel_file_handles ") {
		t.Errorf("%d\n%s", answer.Code, page)
	}
	if !strings.Contains(logged.String(), "bad_metric") {
		t.Errorf("logged: %s", &logged)
	}
}

// TestScrapeTimeout has what Prometheus sends, and what it would not.
func TestScrapeTimeout(t *testing.T) {
	f := func(header string, want time.Duration) {
		t.Helper()
		if got := scrapeTimeout(http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {header}}); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
	f("1", 900*time.Millisecond)
	f("15", 14500*time.Millisecond)
	f("1e300", maxScrapeTimeout-500*time.Millisecond)
	for _, odd := range []string{"", "ten", "-1", "0", "NaN"} {
		f(odd, defaultScrapeTimeout-500*time.Millisecond)
	}
	f("0.000001", minScrapeTimeout)
}
