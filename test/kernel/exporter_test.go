package kernel

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) {
	// The tests wait most of the time, each in a namespace of its own.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	program.Main(m, "../..")
}

// exporter is the running program under test.
type exporter struct {
	*program.Process
	client *http.Client
}

// startExporter runs the program behind a Unix socket that it inherits as
// from systemd: then neither the program nor the scrape has a row in the
// tables it counts. Nothing needs to be waited for: the socket listens already.
func startExporter(t *testing.T, args ...string) *exporter {
	t.Helper()
	return startExporterBy(t, nil, args...)
}

// nobody runs a command as a user that has no capability and can get none.
func nobody(t *testing.T) []string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("to be another user needs root")
	}
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL"}
}

// startExporterBy has a command run the program.
func startExporterBy(t *testing.T, by []string, args ...string) *exporter {
	t.Helper()
	// Not t.TempDir(): a Unix socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "exporter")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// As sd_listen_fds(3) says. LISTEN_PID is the program's own pid, which only a shell
	// that becomes the program knows.
	words := slices.Concat(by, []string{"/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`, program.Path(), "--web.systemd-socket"}, args)
	command := exec.Command(words[0], words[1:]...)
	command.ExtraFiles = []*os.File{file}
	e := run(t, command)
	e.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return e
}

// exporters are programs that read the same namespace from different sources.
type exporters []*exporter

// startExporters runs a program for each source of the socket table.
func startExporters(t *testing.T, args ...string) exporters {
	t.Helper()
	var es exporters
	for _, source := range sources(t) {
		es = append(es, startExporter(t, append(args, "--collector.source="+source)...))
	}
	return es
}

func (es exporters) scrape(t *testing.T) []page {
	t.Helper()
	var pages []page
	for _, e := range es {
		pages = append(pages, e.scrape(t))
	}
	return pages
}

// sources are those that this kernel has.
func sources(t *testing.T) []string {
	t.Helper()
	if err := netns.SockDiag(); err != nil {
		t.Logf("this kernel has no sock_diag for TCP: %v", err)
		return []string{"procfs"}
	}
	return []string{"procfs", "netlink"}
}

// startListening runs the program on an address of its own.
func startListening(t *testing.T, address string, args ...string) *exporter {
	t.Helper()
	e := run(t, exec.Command(program.Path(), append([]string{"--web.listen-address=" + address}, args...)...))
	e.Address(t)
	return e
}

func run(t *testing.T, command *exec.Cmd) *exporter {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	return &exporter{program.Start(t, command), client}
}

// get returns the answer's status, header and body.
func (e *exporter) get(path string, header http.Header) (*http.Response, []byte, error) {
	request, err := http.NewRequest(http.MethodGet, "http://exporter"+path, nil)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(request.Header, header)
	response, err := e.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, body, err
}

// scrape returns the page and fails the test when any collector failed, or a share is
// more than the whole.
func (e *exporter) scrape(t *testing.T) page {
	t.Helper()
	p, err := e.tryScrape()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range p["timewait_exporter_collector_success"].GetMetric() {
		if m.GetGauge().GetValue() != 1 {
			t.Fatalf("collector failed: %s\n%s", m, e.Log)
		}
	}
	for name := range p {
		for _, m := range p.series(name) {
			if strings.HasSuffix(name, "_ratio") && !(0 <= number(m) && number(m) <= 1) {
				t.Fatalf("%s is %v: %v", name, number(m), m)
			}
		}
	}
	return p
}

func (e *exporter) tryScrape() (page, error) {
	response, body, err := e.get("/metrics", nil)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s: %s", response.Status, body)
	}
	return parsePage(bytes.NewReader(body))
}

// page is one scrape's metric families by name.
type page map[string]*dto.MetricFamily

func parsePage(r io.Reader) (page, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err == nil && len(families) == 0 {
		err = errors.New("empty metrics page")
	}
	return families, err
}

// series returns the metrics of a family that have all the given labels,
// written name, value, name, value...
func (p page) series(name string, labels ...string) []*dto.Metric {
	var found []*dto.Metric
	for _, m := range p[name].GetMetric() {
		values := make(map[string]string)
		for _, l := range m.GetLabel() {
			values[l.GetName()] = l.GetValue()
		}
		matches := true
		for pair := range slices.Chunk(labels, 2) {
			matches = matches && values[pair[0]] == pair[1]
		}
		if matches {
			found = append(found, m)
		}
	}
	return found
}

// sum adds up the series that have the given labels; 0 where there are none.
func (p page) sum(name string, labels ...string) float64 {
	var total float64
	for _, m := range p.series(name, labels...) {
		total += number(m)
	}
	return total
}

// value is the one series that has the given labels.
func (p page) value(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	found := p.series(name, labels...)
	if len(found) != 1 {
		t.Fatalf("%s{%s}: %d series, want 1: %v", name, strings.Join(labels, " "), len(found), found)
	}
	return number(found[0])
}

// want compares the sum of the series that have the given labels.
func (p page) want(t *testing.T, value float64, name string, labels ...string) {
	t.Helper()
	if got := p.sum(name, labels...); got != value {
		t.Errorf("%s{%s} = %v, want %v; series: %v", name, strings.Join(labels, " "), got, value, p.series(name, labels...))
	}
}

func number(m *dto.Metric) float64 {
	switch {
	case m.Gauge != nil:
		return m.GetGauge().GetValue()
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	default:
		return m.GetUntyped().GetValue()
	}
}
