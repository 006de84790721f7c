package dashboards

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"timewait_exporter/test/e2e/rules"
	"timewait_exporter/test/program"
)

// server is a running Prometheus.
type server struct {
	t   *testing.T
	url string
}

// job is the name that the alerts on the exporter itself expect.
const job = "timewait_exporter"

// startPrometheus starts one that scrapes the targets, with the project's rules. In its alerts nothing waits: `for` would take longer
// than the test.
func startPrometheus(t *testing.T, port int, interval time.Duration, targets []map[string]any) *server {
	t.Helper()
	folder := t.TempDir()
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	config := map[string]any{
		"global":         map[string]any{"scrape_interval": interval.String(), "evaluation_interval": interval.String()},
		"rule_files":     []string{rules, impatientAlerts(t, folder)},
		"scrape_configs": []map[string]any{{"job_name": job, "static_configs": targets}},
	}
	raw, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder+"/prometheus.yml", raw, 0o600); err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:" + strconv.Itoa(port)
	program.Start(t, exec.Command("prometheus", "--config.file="+folder+"/prometheus.yml", "--storage.tsdb.path="+folder+"/data",
		"--web.listen-address="+address, "--log.level=warn"))
	s := &server{t: t, url: "http://" + address}
	program.Get(t, s.url+"/-/ready")
	return s
}

// impatientAlerts writes the project's alerts without their waiting times and returns the file.
func impatientAlerts(t *testing.T, folder string) string {
	t.Helper()
	file, err := rules.Read(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Groups {
		for i := range group.Rules {
			group.Rules[i].For, group.Rules[i].KeepFiringFor = 0, 0
		}
	}
	path := folder + "/alerts.yml"
	if err := file.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// answer is what Prometheus says to a query.
type answer struct {
	Result []series `json:"result"`
	Stats  struct {
		Timings struct {
			ExecTotalTime float64 `json:"execTotalTime"`
		} `json:"timings"`
		Samples struct {
			TotalQueryableSamples int `json:"totalQueryableSamples"`
		} `json:"samples"`
	} `json:"stats"`
}

type series struct {
	Metric map[string]string  `json:"metric"`
	Value  model.SamplePair   `json:"value"`
	Values []model.SamplePair `json:"values"`
}

// last is the newest value.
func (s series) last() float64 {
	if len(s.Values) > 0 {
		return float64(s.Values[len(s.Values)-1].Value)
	}
	return float64(s.Value.Value)
}

// ask runs an expression now, or over the time up to now.
func (s *server) ask(expr string, instant bool, span, step time.Duration) (answer, error) {
	now := time.Now()
	parameters := url.Values{"query": {expr}, "stats": {"all"}}
	path := "/api/v1/query"
	if !instant {
		path = "/api/v1/query_range"
		parameters.Set("start", unixSeconds(now.Add(-span)))
		parameters.Set("end", unixSeconds(now))
		parameters.Set("step", strconv.FormatFloat(step.Seconds(), 'f', -1, 64))
	}
	var a answer
	err := s.get(path, parameters, &a)
	return a, err
}

// values are those that a variable's label_values(series, label) offers.
func (s *server) values(series, label string) ([]string, error) {
	var values []string
	err := s.get("/api/v1/label/"+label+"/values", url.Values{"match[]": {series}}, &values)
	return values, err
}

func (s *server) get(path string, parameters url.Values, data any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path+"?"+parameters.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	reply := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &reply); err != nil {
		return fmt.Errorf("%s: %s: %w", path, response.Status, err)
	}
	if reply.Status != "success" {
		return fmt.Errorf("%s: %s", path, strings.TrimSpace(reply.Error))
	}
	return nil
}

func unixSeconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}
