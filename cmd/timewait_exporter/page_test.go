package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector"
	"timewait_exporter/diagnosis"
)

// machine is one of the collector's fixtures.
func machine(t *testing.T, name string) (*config, *collector.Collector) {
	t.Helper()
	cfg, err := parseFlags([]string{"--path.procfs=../../collector/testdata/" + name + "/proc"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := collector.New(t.Context(), cfg.collector, log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	return cfg, c
}

// TestPage has the page of a machine that runs out of ports: it and all that it links to are served, with
// what keeps a browser from doing more, and small.
func TestPage(t *testing.T) {
	cfg, c := machine(t, "client_near_exhaustion")
	s, err := newServer(cfg, prometheus.NewRegistry(), c, log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &httptest.Server{Listener: listener, Config: s.http}
	web.Start()
	defer web.Close()
	get := func(path string) (http.Header, string) {
		t.Helper()
		r, err := web.Client().Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", path, r.Status, err)
		}
		return r.Header, string(body)
	}
	_, page := get("/")
	size := 0
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/report.json": "application/json", "/report.css": "text/css; charset=utf-8", "/report.js": "text/javascript; charset=utf-8",
	} {
		header, body := get(path)
		for name, want := range map[string]string{
			"Content-Type": contentType, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		} {
			if got := header.Get(name); got != want {
				t.Errorf("%s: %s: %q, want %q", path, name, got, want)
			}
		}
		if path != "/report.json" {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write([]byte(body))
			_ = w.Close()
			size += b.Len()
		}
	}
	if size > 20_000 {
		t.Errorf("the page takes %d bytes, compressed", size)
	}
	links := regexp.MustCompile(`(?:href|src)="([^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(links) < 6 {
		t.Errorf("there are only %d links", len(links))
	}
	for _, link := range links {
		target := path.Join("/", link[1])
		if strings.HasSuffix(link[1], "/") {
			target += "/"
		}
		if target == "/-/ready" {
			continue // it does not serve
		}
		get(target)
	}
	if strings.Contains(page, "style=") || strings.Contains(page, "<style") || strings.Contains(page, "</script><") {
		t.Error("it has a style or a script in it, which the policy forbids")
	}
	report := new(diagnosis.Report)
	_, text := get("/report.json")
	if err := json.Unmarshal([]byte(text), report); err != nil {
		t.Fatal(err)
	}
	if report.Verdict != diagnosis.Critical || !strings.Contains(page, report.Findings[0].Code) {
		t.Errorf("the verdict is %s: %s", report.Verdict, report.Summary)
	}
}

// TestReportIsShared has who asks within a second get the same report, and later ones another.
func TestReportIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPages(machine(t, "quiet_host"))
		first := p.report(t.Context())
		time.Sleep(900 * time.Millisecond)
		if p.report(t.Context()) != first {
			t.Error("within a second there are two")
		}
		time.Sleep(200 * time.Millisecond)
		if p.report(t.Context()) == first {
			t.Error("after a second it is still the same")
		}
	})
}
