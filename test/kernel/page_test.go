package kernel

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"timewait_exporter/test/netns"
)

// A contract is what dashboards and rules may rely on of a metric.
type contract struct {
	kind   dto.MetricType
	labels string // in alphabetical order
	// absent says that not every machine has the metric at every moment: its
	// labels depend on what is there to count, or an older kernel lacks it.
	absent bool
}

const (
	gauge   = dto.MetricType_GAUGE
	counter = dto.MetricType_COUNTER
)

var contracts = map[string]contract{
	"tcp_connections":                        {gauge, "direction family netns state", false},
	"tcp_remote_connections":                 {gauge, "direction netns remote_ip state", false},
	"tcp_remote_ips":                         {gauge, "direction netns", false},
	"tcp_remote_top_share_ratio":             {gauge, "direction netns state", false},
	"tcp_ephemeral_ports":                    {gauge, "netns", false},
	"tcp_ephemeral_ports_used":               {gauge, "netns", false},
	"tcp_ephemeral_port_range_low":           {gauge, "netns", false},
	"tcp_ephemeral_port_range_high":          {gauge, "netns", false},
	"tcp_ephemeral_port_utilisation_ratio":   {gauge, "netns pool", false},
	"tcp_destination_ports_used":             {gauge, "local_ip netns remote_ip remote_port state", false},
	"tcp_destination_port_utilisation_ratio": {gauge, "local_ip netns remote_ip remote_port", false},
	"tcp_destinations":                       {gauge, "netns", false},
	"tcp_local_ports_used":                   {gauge, "local_ip netns", false},
	"tcp_local_port_utilisation_ratio":       {gauge, "local_ip netns", false},
	"tcp_listener_connections":               {gauge, "local_port netns state", false},
	"tcp_listener_sockets":                   {gauge, "local_ip local_port netns", false},
	"tcp_listener_accept_queue":              {gauge, "local_ip local_port netns", false},
	"tcp_listener_accept_queue_limit":        {gauge, "local_ip local_port netns", true},
	"tcp_listener_accept_queue_fill_ratio":   {gauge, "local_ip local_port netns", true},
	"tcp_listener_full_sockets":              {gauge, "local_ip local_port netns", true},
	"tcp_listener_unaccepted_connections":    {gauge, "local_port netns state", false},
	"tcp_queue_bytes":                        {gauge, "direction netns queue", false},
	"tcp_orphan_connections":                 {gauge, "netns", false},
	"tcp_time_wait_remaining_connections":    {gauge, "direction netns remaining", false},

	"tcp_time_wait_limit":              {gauge, "netns", false},
	"tcp_time_wait_sockets":            {gauge, "netns", false},
	"tcp_time_wait_reuse_mode":         {gauge, "netns", false},
	"tcp_time_wait_recycle_enabled":    {gauge, "netns", true},
	"tcp_time_wait_duration_seconds":   {gauge, "netns", false},
	"tcp_fin_timeout_seconds":          {gauge, "netns", false},
	"tcp_time_wait_started_total":      {counter, "netns timer", false},
	"tcp_time_wait_reused_total":       {counter, "netns", false},
	"tcp_time_wait_overflows_total":    {counter, "netns", false},
	"tcp_active_opens_total":           {counter, "netns", false},
	"tcp_passive_opens_total":          {counter, "netns", false},
	"tcp_attempt_fails_total":          {counter, "netns", false},
	"tcp_established_resets_total":     {counter, "netns", false},
	"tcp_retransmitted_segments_total": {counter, "netns", false},
	"tcp_out_resets_total":             {counter, "netns", false},
	"tcp_listen_overflows_total":       {counter, "netns", false},
	"tcp_listen_drops_total":           {counter, "netns", false},
	"tcp_syn_cookies_sent_total":       {counter, "netns", false},
	"tcp_aborts_total":                 {counter, "netns reason", false},
	"tcp_abort_failures_total":         {counter, "netns", false},
	"tcp_orphans":                      {gauge, "", false},
	"tcp_orphan_limit":                 {gauge, "", true}, // the kernel shows it in its first network namespace only
	"tcp_memory_bytes":                 {gauge, "", false},
	"tcp_memory_limit_bytes":           {gauge, "level", true}, // likewise
	"kernel_file_handles":              {gauge, "", false},
	"kernel_file_handles_limit":        {gauge, "", false},
	"tcp_listen_backlog_limit":         {gauge, "netns", false},
	"tcp_syn_backlog_limit":            {gauge, "netns", false},

	"timewait_exporter_netns_info":                 {gauge, "netns path sysctls", false},
	"timewait_exporter_source_info":                {gauge, "netns source", false},
	"timewait_exporter_undercount_max":             {gauge, "by netns", false},
	"timewait_exporter_collector_success":          {gauge, "collector netns", false},
	"timewait_exporter_collector_duration_seconds": {gauge, "collector netns", false},
	"timewait_exporter_rows_total":                 {counter, "table", false},
	"timewait_exporter_malformed_rows_total":       {counter, "table", false},
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

		response, text, err := e.get("/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := response.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
			t.Errorf("Content-Type %q, want the text format 0.0.4", got)
		}
		p := mustParse(t, text)

		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range problems {
			t.Errorf("promlint: %s: %s", problem.Metric, problem.Text)
		}
		t.Run("contract", func(t *testing.T) { compareContract(t, p) })
		t.Run("always_there", func(t *testing.T) { compareAlwaysThere(t, p) })

		// The same numbers in the other formats. Those that differ between two
		// scrapes by nature are the program's own.
		t.Run("OpenMetrics", func(t *testing.T) {
			_, body, err := e.get("/metrics", http.Header{"Accept": {"application/openmetrics-text; version=1.0.0"}})
			if err != nil {
				t.Fatal(err)
			}
			compareValues(t, p, parseOpenMetrics(t, string(body)))
		})
		t.Run("protobuf", func(t *testing.T) {
			format := expfmt.NewFormat(expfmt.TypeProtoDelim)
			_, body, err := e.get("/metrics", http.Header{"Accept": {string(format)}})
			if err != nil {
				t.Fatal(err)
			}
			other := make(page)
			decoder := expfmt.NewDecoder(bytes.NewReader(body), format)
			for {
				var family dto.MetricFamily
				err := decoder.Decode(&family)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				other[family.GetName()] = &family
			}
			compareValues(t, p, other)
		})
	})
}

func mustParse(t *testing.T, text []byte) page {
	t.Helper()
	p, err := parsePage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// isOurs tells the exporter's metrics from those of client_golang.
func isOurs(name string) bool {
	return strings.HasPrefix(name, "tcp_") || strings.HasPrefix(name, "kernel_") || strings.HasPrefix(name, "timewait_exporter_")
}

func compareContract(t *testing.T, p page) {
	for name, family := range p {
		if !isOurs(name) || name == "timewait_exporter_build_info" {
			continue
		}
		c, ok := contracts[name]
		if !ok {
			t.Errorf("%s is in no contract", name)
			continue
		}
		if family.GetType() != c.kind {
			t.Errorf("%s is a %s, want a %s", name, family.GetType(), c.kind)
		}
		for _, m := range family.GetMetric() {
			if got := strings.Join(labelNames(m), " "); got != c.labels {
				t.Errorf("%s has the labels %q, want %q", name, got, c.labels)
			}
		}
	}
	for name, c := range contracts {
		if !c.absent && p[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for _, name := range []string{"timewait_exporter_build_info", "go_goroutines", "process_resident_memory_bytes", "promhttp_metric_handler_requests_total"} {
		if p[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

func labelNames(m *dto.Metric) []string {
	var names []string
	for _, l := range m.GetLabel() {
		names = append(names, l.GetName())
	}
	slices.Sort(names)
	return names
}

// timeWaitBuckets are the buckets of tcp_time_wait_remaining_connections, in order.
var timeWaitBuckets = strings.Fields("1 5 10 20 30 40 50 60")

// compareAlwaysThere looks for the series that may never vanish: an alert on
// a series that is not there never fires.
func compareAlwaysThere(t *testing.T, p page) {
	series := 0
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, state := range states {
			for _, direction := range directions(state) {
				p.value(t, "tcp_connections", "family", family, "direction", direction, "state", state)
				series++
			}
		}
	}
	if n := len(p.series("tcp_connections")); n != series {
		t.Errorf("tcp_connections has %d series, want %d", n, series)
	}
	for _, state := range []string{"established", "time_wait", "close_wait", "syn_recv"} {
		for _, direction := range directions(state) {
			p.value(t, "tcp_remote_top_share_ratio", "direction", direction, "state", state)
		}
	}
	for _, direction := range []string{"inbound", "outbound"} {
		p.value(t, "tcp_remote_ips", "direction", direction)
		p.value(t, "tcp_queue_bytes", "direction", direction, "queue", "receive")
		p.value(t, "tcp_queue_bytes", "direction", direction, "queue", "send")
		for _, remaining := range timeWaitBuckets {
			p.value(t, "tcp_time_wait_remaining_connections", "direction", direction, "remaining", remaining)
		}
	}
	for _, pool := range []string{"connect", "bind", "bind_any"} {
		p.value(t, "tcp_ephemeral_port_utilisation_ratio", "pool", pool)
	}
	for _, state := range []string{"established", "close_wait"} {
		p.value(t, "tcp_listener_unaccepted_connections", "local_port", "9000", "state", state)
	}
	p.value(t, "tcp_listener_connections", "local_port", "9000", "state", "syn_recv")
	for _, by := range []string{"remote", "destination", "local_ip"} {
		if got := p.value(t, "timewait_exporter_undercount_max", "by", by); got != 0 {
			t.Errorf("timewait_exporter_undercount_max{%s} = %v in a small namespace", by, got)
		}
	}
	for _, collector := range []string{"sockets", "ports", "listeners", "sockstat", "snmp", "netstat", "sysctls", "file-nr"} {
		if got := p.value(t, "timewait_exporter_collector_success", "collector", collector); got != 1 {
			t.Errorf("timewait_exporter_collector_success{%s} = %v", collector, got)
		}
		p.value(t, "timewait_exporter_collector_duration_seconds", "collector", collector)
	}
	for _, table := range []string{"tcp", "tcp6"} {
		p.value(t, "timewait_exporter_rows_total", "table", table)
		p.value(t, "timewait_exporter_malformed_rows_total", "table", table)
	}
}

// parseOpenMetrics checks what tells OpenMetrics from the text format: a
// counter's family is named without the _total of its samples, every sample
// belongs to the family declared before it, and the last line says that nothing
// is missing. Then it reads the page as text, in which families have their
// samples' names.
func parseOpenMetrics(t *testing.T, body string) page {
	t.Helper()
	if !strings.HasSuffix(body, "\n# EOF\n") {
		t.Fatalf("the page ends with %q, not with # EOF", body[max(0, len(body)-100):])
	}
	var family, kind string
	for line := range strings.Lines(strings.TrimSuffix(body, "# EOF\n")) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		switch {
		case fields[0] != "#":
			name := line[:strings.IndexAny(line, "{ ")]
			suffix, belongs := strings.CutPrefix(name, family)
			if !belongs || kind == "counter" && suffix != "_total" && suffix != "_created" {
				t.Errorf("sample %q is not of the %s %s", name, kind, family)
			}
		case len(fields) == 4 && fields[1] == "TYPE":
			family, kind = fields[2], fields[3]
			if kind == "counter" && strings.HasSuffix(family, "_total") {
				t.Errorf("counter family %q ends in _total", family)
			}
		case len(fields) < 3 || fields[1] != "HELP" && fields[1] != "UNIT":
			t.Errorf("unexpected comment %q", line)
		}
	}
	return mustParse(t, counterFamily.ReplaceAll([]byte(body), []byte("# HELP ${1}_total $2\n# TYPE ${1}_total counter\n")))
}

var counterFamily = regexp.MustCompile(`(?m)^# HELP (\S+) (.*)\n# TYPE \S+ counter\n`)

// compareValues compares two scrapes of a quiet namespace in two formats.
func compareValues(t *testing.T, a, b page) {
	t.Helper()
	names := slices.Sorted(maps.Keys(a))
	for _, name := range names {
		if !strings.HasPrefix(name, "tcp_") || isOfTheNode(name) {
			continue
		}
		if len(a.series(name)) != len(b.series(name)) || a.sum(name) != b.sum(name) {
			t.Errorf("%s: %d series and a sum of %v, in the other format %d and %v",
				name, len(a.series(name)), a.sum(name), len(b.series(name)), b.sum(name))
		}
	}
}
