package e2e

import (
	"encoding/json"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"timewait_exporter/test/e2e/rules"
	"timewait_exporter/test/program"
)

// Prometheus and Alertmanager are those of the modules in tools/, which `make e2e` builds.
const (
	prometheusPath   = "../../.tools/bin/prometheus"
	alertmanagerPath = "../../.tools/bin/alertmanager"
)

// startStack starts the exporter, Prometheus and Alertmanager with the configuration of deploy/, made faster by factor,
// and waits until all are ready. The namespace is private, so they keep the ports that the configuration names.
func startStack(t *testing.T, factor int) {
	t.Helper()
	const deploy = "../../deploy/"
	dir := t.TempDir()
	fasterRules(t, dir, factor)
	for _, name := range []string{"prometheus/prometheus.yml", "alertmanager/alertmanager.yml"} {
		if err := rules.FasterConfig(deploy+name, filepath.Join(dir, filepath.Base(name)), factor); err != nil {
			t.Fatal(err)
		}
	}

	// Without owners: what they tell of CLOSE_WAIT is its age, and the kernel's clock is not made faster.
	program.Start(t, exec.Command(program.Path(), "--collector.owners=0", "--collector.namespaces=all"))
	program.Start(t, exec.Command(alertmanagerPath, "--config.file="+filepath.Join(dir, "alertmanager.yml"), "--storage.path="+filepath.Join(dir, "alertmanager"),
		"--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="))
	program.Get(t, "http://127.0.0.1:10793/-/ready")
	program.Get(t, "http://127.0.0.1:9093/-/ready")
	program.Start(t, exec.Command(prometheusPath, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "prometheus"),
		"--web.listen-address=127.0.0.1:9090"))
	program.Get(t, "http://127.0.0.1:9090/-/ready")
}

// fasterRules writes the rules of deploy/ to dir, made faster by factor.
func fasterRules(t *testing.T, dir string, factor int) {
	t.Helper()
	for _, name := range []string{"timewait_exporter.rules.yml", "timewait_exporter.alerts.yml"} {
		file, err := rules.Read("../../deploy/prometheus/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if file, err = file.Faster(factor); err != nil {
			t.Fatal(err)
		}
		if err := file.Write(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// alert is one alert of a notification, as Alertmanager's webhook sends it.
type alert struct {
	Status      string            `json:"status"` // firing or resolved
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`

	receiver string // the path that it was sent to
	at       time.Time
}

// webhook is the human at the end of the line.
type webhook struct {
	mu       sync.Mutex
	received []alert
}

// startWebhook listens where alertmanager.yml sends its notifications.
func startWebhook(t *testing.T) *webhook {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:9095")
	if err != nil {
		t.Fatal(err)
	}
	w := &webhook{}
	server := &http.Server{Handler: w, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // returns when it is closed
	t.Cleanup(func() { _ = server.Close() })
	return w
}

func (w *webhook) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	at := time.Now()
	var message struct {
		Alerts []alert `json:"alerts"`
	}
	if err := json.NewDecoder(request.Body).Decode(&message); err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range message.Alerts {
		a.receiver, a.at = request.URL.Path, at
		w.received = append(w.received, a)
	}
}

// first returns the first alert received of that name, status and labels.
func (w *webhook) first(name, status string, labels map[string]string) (alert, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
next:
	for _, a := range w.received {
		if a.Labels["alertname"] != name || a.Status != status {
			continue
		}
		for label, value := range labels {
			if a.Labels[label] != value {
				continue next
			}
		}
		return a, true
	}
	return alert{}, false
}

// wait returns the first such alert, which has to arrive within the time given.
func (w *webhook) wait(t *testing.T, name, status string, labels map[string]string, within time.Duration) alert {
	t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if a, ok := w.first(name, status, labels); ok {
			return a
		}
	}
	t.Fatalf("no %s %s %v within %s", name, status, labels, within)
	return alert{}
}

// inhibitedBy returns how many alerts keep Alertmanager from telling of that one.
func inhibitedBy(t *testing.T, name string) int {
	t.Helper()
	var alerts []struct {
		Status struct {
			InhibitedBy []string `json:"inhibitedBy"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(program.Get(t, "http://127.0.0.1:9093/api/v2/alerts?filter=alertname%3D"+name)), &alerts); err != nil {
		t.Fatal(err)
	}
	by := 0
	for _, a := range alerts {
		by += len(a.Status.InhibitedBy)
	}
	return by
}
