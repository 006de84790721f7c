package collector

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
)

// go test ./collector -update writes what the tests compare with: read the
// difference before it is kept.
var update = flag.Bool("update", false, "write testdata/*/metrics.prom and docs/metrics.md anew")

// fixture returns what to collect of a copy of a proc file system: as much as the
// program does by default.
func fixture(t testing.TB, root string) Config {
	t.Helper()
	ns, err := FindNamespace(root)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		ProcRoot: root, Namespace: ns, Source: SourceProcfs,
		Remotes: 50, Destinations: 20, Listeners: 50, Owners: 20, RemotePrefixIPv4: 32, RemotePrefixIPv6: 128,
	}
}

// machines returns the captured ones. All are of little-endian kernels.
func machines(t testing.TB) []string {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		t.Skip("this machine is big-endian, and the kernel prints addresses in its own byte order")
	}
	roots, err := filepath.Glob("testdata/*/proc")
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) == 0 {
		t.Fatal("no machines")
	}
	for i := range roots {
		roots[i] = filepath.Base(filepath.Dir(roots[i]))
	}
	return roots
}

// machine is a captured one. Of one with its kernel's own processes, all namespaces are
// read.
func machine(t testing.TB, name string) Config {
	t.Helper()
	cfg := fixture(t, filepath.Join("testdata", name, "proc"))
	_, err := os.Stat(filepath.Join(cfg.ProcRoot, "2"))
	cfg.AllNamespaces = err == nil
	cfg.Budget = time.Minute
	if cfg.AllNamespaces {
		cfg.NATPorts = 1000
	}
	cfg.PodLogs = filepath.Join("testdata", name, "log")
	return cfg
}

func newCollector(t testing.TB, cfg Config) *Collector {
	t.Helper()
	c, err := New(t.Context(), cfg, log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// page is what a scrape gives.
type page []*dto.MetricFamily

// gather collects with a registry that checks every metric against its
// description. No share is more than the whole.
func gather(t testing.TB, c prometheus.Collector) page {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if strings.HasSuffix(f.GetName(), "_ratio") && !(0 <= value(m) && value(m) <= 1) {
				t.Errorf("%s is %v: %v", f.GetName(), value(m), m)
			}
		}
	}
	return families
}

func scrapeOf(t testing.TB, cfg Config) page {
	t.Helper()
	return gather(t, newCollector(t, cfg).Read(t.Context()))
}

func (p page) family(name string) []*dto.Metric {
	for _, f := range p {
		if f.GetName() == name {
			return f.GetMetric()
		}
	}
	return nil
}

// series returns those of a metric that have the labels, given as names and
// values in turn.
func (p page) series(name string, labels ...string) []*dto.Metric {
	var found []*dto.Metric
	for _, m := range p.family(name) {
		has := make(map[string]string)
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		matches := true
		for i := 0; i < len(labels); i += 2 {
			matches = matches && has[labels[i]] == labels[i+1]
		}
		if matches {
			found = append(found, m)
		}
	}
	return found
}

func value(m *dto.Metric) float64 { return m.GetGauge().GetValue() + m.GetCounter().GetValue() }

// sum adds the series up.
func (p page) sum(name string, labels ...string) float64 {
	var sum float64
	for _, m := range p.series(name, labels...) {
		sum += value(m)
	}
	return sum
}

// values has "value=sum" of each value that a label of a metric has, in order.
func (p page) values(name, label string) []string {
	var all []string
	for _, m := range p.family(name) {
		for _, l := range m.GetLabel() {
			if l.GetName() == label {
				all = append(all, fmt.Sprintf("%s=%v", l.GetValue(), p.sum(name, label, l.GetValue())))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// wantWorst wants the largest of a metric's series, if any, to be so much.
func (p page) wantWorst(t *testing.T, want float64, name string) {
	t.Helper()
	worst := 0.
	for _, m := range p.family(name) {
		worst = max(worst, value(m))
	}
	if len(p.family(name)) > 0 && worst != want {
		t.Errorf("the worst of %s is at %v, want %v", name, worst, want)
	}
}

func (p page) want(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	if len(p.series(name, labels...)) == 0 {
		t.Errorf("there is no %s %q", name, labels)
	} else if got := p.sum(name, labels...); got != want {
		t.Errorf("%s %q is %v, want %v", name, labels, got, want)
	}
}

func (p page) wantNone(t *testing.T, name string, labels ...string) {
	t.Helper()
	if n := len(p.series(name, labels...)); n != 0 {
		t.Errorf("there are %d series of %s %q", n, name, labels)
	}
}

// text prints the page without the metrics that are named.
func (p page) text(t testing.TB, without ...string) string {
	t.Helper()
	var b bytes.Buffer
	for _, f := range p {
		if slices.Contains(without, f.GetName()) {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// compareFile compares text with a file, or writes that with -update.
func compareFile(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(text, "\n"), strings.Split(string(want), "\n")
	for _, line := range wantLines {
		if !slices.Contains(gotLines, line) {
			t.Errorf("%s: missing: %s", path, line)
		}
	}
	for _, line := range gotLines {
		if !slices.Contains(wantLines, line) {
			t.Errorf("%s: unwanted: %s", path, line)
		}
	}
	t.Errorf("%s is another text; -update writes it anew", path)
}

// TestMachines compares all metrics of captured machines, and keeps names, units and
// types to what Prometheus asks for.
func TestMachines(t *testing.T) {
	for _, name := range machines(t) {
		t.Run(name, func(t *testing.T) {
			p := scrapeOf(t, machine(t, name))
			problems, err := promlint.NewWithMetricFamilies(p).Lint()
			if err != nil || len(problems) > 0 {
				t.Errorf("%v and %v", problems, err)
			}
			text := p.text(t,
				"timewait_exporter_collector_duration_seconds", "timewait_exporter_table_read_timestamp_seconds",
				// In pages of the machine that the test runs on; see TestKernel.
				"tcp_memory_bytes", "tcp_memory_limit_bytes")
			compareFile(t, filepath.Join("testdata", name, "metrics.prom"), text)
		})
	}
}

// TestSumRule holds the remotes and listeners that are named, and the rest, to
// the totals, however many are named and however they are folded and grouped.
func TestSumRule(t *testing.T) {
	f := func(cfg Config, unaccepted float64) {
		t.Helper()
		p := scrapeOf(t, cfg)
		p.want(t, unaccepted, "tcp_listener_unaccepted_connections")
		for d := range snapshot.NumDirections {
			direction := d.String()
			for s := range d.States() {
				state := s.String()
				total := p.sum("tcp_connections", "direction", direction, "state", state)
				if state == "listen" {
					total = 0
				}
				if got := p.sum("tcp_remote_connections", "direction", direction, "state", state); got != total {
					t.Errorf("%s, %d remotes /%d /%d: %v in %s %s, want %v", cfg.ProcRoot, cfg.Remotes, cfg.RemotePrefixIPv4, cfg.RemotePrefixIPv6, got, direction, state, total)
				}
				if got := p.sum("tcp_listener_connections", "state", state); direction == "inbound" && got != total {
					t.Errorf("%s, %d listeners: %v in %s, want %v", cfg.ProcRoot, cfg.Listeners, got, state, total)
				}
			}
		}
		named := make(map[string]bool)
		for _, m := range p.family("tcp_remote_connections") {
			named[m.GetLabel()[2].GetValue()] = true
		}
		delete(named, "other")
		lists := 1
		if cfg.AllNamespaces {
			lists = 2 // the own one, and one of all others
		}
		if len(named) > lists*(cfg.Remotes+len(cfg.RemoteGroups)) {
			t.Errorf("%s: %d remotes are named, %d should be", cfg.ProcRoot, len(named), cfg.Remotes)
		}
	}
	for _, name := range machines(t) {
		cfg := machine(t, name)
		unaccepted := scrapeOf(t, cfg).sum("tcp_listener_unaccepted_connections")
		for _, n := range []int{0, 1, 2, 3, 7, 10_000} {
			cfg.Remotes, cfg.Listeners = n, n
			for _, prefixes := range [][2]int{{32, 128}, {24, 64}, {31, 127}, {8, 0}, {0, 0}, {32, 48}, {16, 128}} {
				cfg.RemotePrefixIPv4, cfg.RemotePrefixIPv6 = prefixes[0], prefixes[1]
				cfg.RemoteGroups = nil
				f(cfg, unaccepted)
				cfg.RemoteGroups = []tally.Group{{Name: "private", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fc00::/7")}},
					{Name: "loopback", Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/9"), netip.MustParsePrefix("::1/128")}}}
				f(cfg, unaccepted)
			}
		}
	}
}

// TestMetricsCollected finds every metric on some machine, and none that is not
// in Metrics.
func TestMetricsCollected(t *testing.T) {
	missing := make(map[string]bool)
	for _, m := range Metrics() {
		if missing[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		missing[m.Name] = true
	}
	// Only sock_diag tells these, and that of a copied proc file system nothing does.
	for _, m := range Metrics() {
		if strings.Contains(m.Source, "sock_diag") && !strings.Contains(m.Source, fromListeners) || strings.Contains(m.Source, "cgroup") || strings.Contains(m.Source, "PID") {
			delete(missing, m.Name)
		}
	}
	for _, name := range machines(t) {
		for _, f := range scrapeOf(t, machine(t, name)) {
			delete(missing, f.GetName())
			i := slices.IndexFunc(Metrics(), func(m *Metric) bool { return m.Name == f.GetName() })
			if i < 0 {
				t.Errorf("%s has %s", name, f.GetName())
				continue
			}
			m := Metrics()[i]
			if kind := strings.ToLower(f.GetType().String()); kind != m.Type || f.GetHelp() != m.Help {
				t.Errorf("%s is a %s, %q; documented as a %s, %q", m.Name, kind, f.GetHelp(), m.Type, m.Help)
			}
			for _, s := range f.GetMetric() {
				var labels []string
				for _, l := range s.GetLabel() {
					labels = append(labels, l.GetName())
				}
				if want := slices.Sorted(slices.Values(m.Labels)); !slices.Equal(labels, want) {
					t.Errorf("%s has labels %q; documented are %q", m.Name, labels, want)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		t.Errorf("no machine has %s", name)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
