package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"

	"timewait_exporter/test/program"
)

// BenchmarkFleet prints what the pages hold, and what the fleet took between the end of the warm-up and that of the run.
func BenchmarkFleet(b *testing.B) {
	pages := scrapeMachines(b, strings.Fields(*exporterFlags)...)
	fmt.Println("\n| Host | Series | Page | Page, gzip |\n|---|--:|--:|--:|")
	for _, p := range pages {
		fmt.Printf("| %s | %d | %.0f KiB | %.1f KiB |\n", p.machine.name, p.series(), float64(len(p.text))/1024, float64(p.gzipped)/1024)
	}
	if *hosts == 0 {
		return
	}
	server := httptest.NewServer(newFleet(pages[typical]))
	b.Cleanup(server.Close)
	prometheus := startPrometheus(b, strings.TrimPrefix(server.URL, "http://"))
	time.Sleep(*warmup + *duration)
	prometheus.report(b)
}

// A prometheus scrapes the fleet, and itself.
type prometheus struct{ url, data string }

// startPrometheus starts one with the README's configuration.
func startPrometheus(b *testing.B, target string) prometheus {
	b.Helper()
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var groups []group
	for i := range *hosts {
		groups = append(groups, group{[]string{target}, map[string]string{
			"__metrics_path__": "/" + strconv.Itoa(i),
			"instance":         fmt.Sprintf("host%05d:10793", i),
		}})
	}
	targets, err := json.Marshal(groups)
	if err != nil {
		b.Fatal(err)
	}
	rules, err := filepath.Abs(checkout + "/deploy/prometheus/timewait_exporter.*.yml")
	if err != nil {
		b.Fatal(err)
	}
	if !*withRules {
		rules = os.DevNull
	}
	address := fmt.Sprint("127.0.0.1:", program.FreePort(b))
	dir := b.TempDir()
	config := fmt.Sprintf(`global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files: [%q]
scrape_configs:
  - job_name: timewait_exporter
    file_sd_configs:
      - files: [targets.json]
  - job_name: prometheus
    static_configs:
      - targets: [%q]
`, rules, address)
	for name, content := range map[string]string{"targets.json": string(targets), "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	p := prometheus{"http://" + address, dir + "/data"}
	program.Start(b, exec.Command(*prometheusPath, "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+p.data,
		"--web.listen-address="+address, "--web.enable-admin-api", "--log.level=warn"))
	program.Get(b, p.url+"/-/ready")
	return p
}

// report asks Prometheus what it says of itself.
func (p prometheus) report(b *testing.B) {
	b.Helper()
	fmt.Printf("\n| %d hosts, a scrape every 15 s, %s after %s | |\n|---|--:|\n", *hosts, *duration, *warmup)
	over := strings.NewReplacer("@self", `{job="prometheus"}`, "@time", `{job="prometheus"}[`+strconv.Itoa(int(duration.Seconds()))+`s]`)
	row := func(what string, decimals int, value float64) { fmt.Printf("| %s | %.*f |\n", what, decimals, value) }
	for _, r := range []struct {
		what     string
		decimals int
		query    string
	}{
		{"Samples a second, recording rules included", 0, `sum(rate(prometheus_tsdb_head_samples_appended_total@time))`},
		{"Series in the head", 0, `prometheus_tsdb_head_series@self`},
		{"New series an hour", 0, `rate(prometheus_tsdb_head_series_created_total@time) * 3600`},
		{"Processor time of Prometheus, cores", 2, `rate(process_cpu_seconds_total@time)`},
		{"All groups of rules, seconds an evaluation", 2, `sum(rate(prometheus_rule_group_duration_seconds_sum@time)) * 15`},
		{"Evaluations missed", 0, `sum(increase(prometheus_rule_group_iterations_missed_total@time)) or vector(0)`},
		{"Resident memory, GiB", 2, `process_resident_memory_bytes@self / 2^30`},
		{"Go heap in use, GiB", 2, `go_memstats_heap_inuse_bytes@self / 2^30`},
		{"Write-ahead log, bytes a sample", 2, `delta(prometheus_tsdb_wal_storage_size_bytes@time) / on () sum(increase(prometheus_tsdb_head_samples_appended_total@time))`},
		{"Failed scrapes, at the end", 0, `count(up == 0) or vector(0)`},
	} {
		row(r.what, r.decimals, p.query(b, over.Replace(r.query)))
	}
	chunks, index, samples, series := p.snapshot(b)
	row("Block: chunks, bytes a sample", 2, float64(chunks)/float64(samples))
	row("Block: index, bytes a series", 0, float64(index)/float64(series))
}

// query returns the one value of an instant query.
func (p prometheus) query(b *testing.B, expr string) float64 {
	b.Helper()
	var answer struct {
		Data struct {
			Result model.Vector `json:"result"`
		} `json:"data"`
	}
	text := program.Get(b, p.url+"/api/v1/query?query="+url.QueryEscape(expr))
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Data.Result) != 1 {
		b.Fatalf("%s: want one value: %v\n%s", expr, err, text)
	}
	return float64(answer.Data.Result[0].Value)
}

// snapshot lets Prometheus write all it has as blocks, and returns the bytes of their chunks and indexes and what is in them.
func (p prometheus) snapshot(b *testing.B) (chunks, index, samples, series int64) {
	b.Helper()
	response, err := http.Post(p.url+"/api/v1/admin/tsdb/snapshot", "", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	size := func(pattern string) (bytes int64) {
		files, err := filepath.Glob(pattern)
		for _, file := range files {
			info, statErr := os.Stat(file)
			if err = errors.Join(err, statErr); err == nil {
				bytes += info.Size()
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		return bytes
	}
	blocks, err := filepath.Glob(p.data + "/snapshots/*/*/meta.json")
	for _, path := range blocks {
		text, readErr := os.ReadFile(path)
		var meta struct {
			Stats struct {
				Samples int64 `json:"numSamples"`
				Series  int64 `json:"numSeries"`
			} `json:"stats"`
		}
		err = errors.Join(err, readErr, json.Unmarshal(text, &meta))
		samples += meta.Stats.Samples
		series += meta.Stats.Series
	}
	if err != nil || samples == 0 {
		b.Fatalf("%d samples: %v", samples, err)
	}
	return size(p.data + "/snapshots/*/*/chunks/*"), size(p.data + "/snapshots/*/*/index"), samples, series
}
