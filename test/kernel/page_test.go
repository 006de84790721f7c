package kernel

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"timewait_exporter/collector"
	"timewait_exporter/test/netns"
)

// notEverywhere are the metrics that not every machine has at every moment: an older
// kernel, or one of another namespace, lacks them.
var notEverywhere = []string{
	"tcp_listener_accept_queue_limit", "tcp_listener_accept_queue_fill_ratio", "tcp_listener_full_sockets", "tcp_listener_syn_queue_fill_ratio", // of sock_diag
	"tcp_time_wait_recycle_enabled",              // until Linux 4.11
	"tcp_orphan_limit", "tcp_memory_limit_bytes", // in the kernel's first network namespace
	"tcp_destination_unanswered_connections", "tcp_owner_unaccepted_connections", "tcp_owner_close_wait_oldest_seconds", "tcp_owner_close_wait_older_connections",
	"tcp_destination_owner_share_ratio", "tcp_owner_worst_process_open_fds", "tcp_owner_worst_process_max_fds", // of sockets that this one has not, and Linux 6.2
	"tcp_owner_info",                                                                                                                       // on a busy machine not at the first scrape
	"tcp_node_destination_connections", "tcp_nat_port_utilisation_ratio", "timewait_exporter_namespaces", "timewait_exporter_host_visible", // by a flag
}

// TestPage checks the metrics page as Prometheus, promlint and people see it.
func TestPage(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		s := netns.Serve(t, loopback4, 9000)
		s.MustConnect(t, 3)
		for _, p := range s.MustConnect(t, 2) {
			p.CloseClientFirst(t)
		}
		e := startExporter(t)

		text, values := scrapeAs(t, e, "text/plain; version=0.0.4")
		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range problems {
			t.Errorf("promlint: %s: %s", problem.Metric, problem.Text)
		}
		compareContract(t, mustParse(t, text))

		// The same numbers in the other formats.
		for _, format := range []string{
			"application/openmetrics-text; version=1.0.0",
			"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
		} {
			if _, got := scrapeAs(t, e, format); !maps.Equal(got, values) {
				t.Errorf("%s:\n%v\n, in text\n%v", format, got, values)
			}
		}
	})
}

// scrapeAs returns the page in a format, and what Prometheus takes of it: the series of
// sockets, for others differ between two scrapes by nature.
func scrapeAs(t *testing.T, e *exporter, format string) ([]byte, map[string]float64) {
	t.Helper()
	response, body, err := e.get("/metrics", http.Header{"Accept": {format}})
	if err != nil {
		t.Fatal(err)
	}
	got := response.Header.Get("Content-Type")
	if !strings.HasPrefix(got, format) {
		t.Errorf("Content-Type %q, want %q", got, format)
	}
	parser, err := textparse.New(body, got, labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		var series labels.Labels
		parser.Labels(&series)
		if name := series.Get(model.MetricNameLabel); strings.HasPrefix(name, "tcp_") && !isOfTheNode(name) {
			_, _, values[series.String()] = parser.Series()
		}
	}
	if len(values) < 100 {
		t.Errorf("%s: only %d series", format, len(values))
	}
	return body, values
}

func mustParse(t *testing.T, text []byte) page {
	t.Helper()
	p, err := parsePage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// compareContract holds the page to the metrics that are documented.
func compareContract(t *testing.T, p page) {
	t.Helper()
	for _, m := range collector.Metrics() {
		family := p[m.Name]
		if family == nil {
			if !slices.Contains(notEverywhere, m.Name) {
				t.Errorf("%s is missing", m.Name)
			}
			continue
		}
		if got := strings.ToLower(family.GetType().String()); got != m.Type {
			t.Errorf("%s is a %s, want a %s", m.Name, got, m.Type)
		}
		for _, series := range family.GetMetric() {
			var names []string
			for _, l := range series.GetLabel() {
				names = append(names, l.GetName())
			}
			if want := slices.Sorted(slices.Values(m.Labels)); !slices.Equal(slices.Sorted(slices.Values(names)), want) {
				t.Errorf("%s has the labels %q, want %q", m.Name, names, want)
			}
		}
	}
	for _, name := range []string{"timewait_exporter_build_info", "go_goroutines", "process_resident_memory_bytes", "promhttp_metric_handler_requests_total"} {
		if p[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for name := range p {
		ours := strings.HasPrefix(name, "tcp_") || strings.HasPrefix(name, "kernel_") || strings.HasPrefix(name, "timewait_exporter_")
		if ours && name != "timewait_exporter_build_info" && !slices.ContainsFunc(collector.Metrics(), func(m *collector.Metric) bool { return m.Name == name }) {
			t.Errorf("%s is not documented", name)
		}
	}
}
