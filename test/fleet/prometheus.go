package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

type prometheus struct {
	cmd       *exec.Cmd
	url, data string
}

// startPrometheus starts one that scrapes the fleet as the README's configuration does.
func startPrometheus(ctx context.Context, o options, dir, target string) (*prometheus, error) {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var groups []group
	for i := range o.hosts {
		groups = append(groups, group{[]string{target}, map[string]string{
			"__metrics_path__": "/" + strconv.Itoa(i),
			"instance":         fmt.Sprintf("host%05d:10793", i),
		}})
	}
	targets, err := json.Marshal(groups)
	if err != nil {
		return nil, err
	}
	rules := os.DevNull
	if o.rules {
		rules, err = filepath.Abs(filepath.Join(o.checkout, "deploy/prometheus/timewait_exporter.*.yml"))
		if err != nil {
			return nil, err
		}
	}
	config := fmt.Sprintf(`global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files: [%q]
scrape_configs:
  - job_name: timewait_exporter
    file_sd_configs:
      - files: [targets.json]
`, rules)
	for name, content := range map[string]string{"targets.json": string(targets), "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p := &prometheus{url: "http://" + address, data: filepath.Join(dir, "data")}
	p.cmd, err = start(ctx, o.prometheus, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+p.data,
		"--web.listen-address="+address, "--web.enable-admin-api", "--log.level=warn")
	if err != nil {
		return nil, err
	}
	if err := waitReady(ctx, p.url+"/-/ready"); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *prometheus) stop() {
	_ = p.cmd.Cancel() // it may have ended, which Wait finds
	_ = p.cmd.Wait()
}

// A reading is what Prometheus says of itself.
type reading struct {
	at      time.Time
	metrics map[string]float64 // by name, summed over labels
	up      float64            // targets
}

func (r reading) sum(name string) float64 { return r.metrics[name] }

func (p *prometheus) read(ctx context.Context) (reading, error) {
	text, err := fetch(ctx, http.MethodGet, p.url+"/metrics", "identity")
	if err != nil {
		return reading{}, err
	}
	r := reading{at: time.Now(), metrics: map[string]float64{}}
	for line := range strings.Lines(string(text)) {
		end := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[end+1:]), 64)
		if strings.HasPrefix(line, "#") || err != nil {
			continue
		}
		name, _, _ := strings.Cut(line[:end], "{")
		r.metrics[name] += value
	}
	r.up, err = p.query(ctx, "sum(up)")
	return r, err
}

// query returns the one value of an instant query.
func (p *prometheus) query(ctx context.Context, expr string) (float64, error) {
	body, err := fetch(ctx, http.MethodGet, p.url+"/api/v1/query?query="+expr, "identity")
	if err != nil {
		return 0, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, err
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("%s: %d results", expr, len(answer.Data.Result))
	}
	return strconv.ParseFloat(fmt.Sprint(answer.Data.Result[0].Value[1]), 64)
}

// A block is one that Prometheus has written to disk.
type block struct {
	chunks, index   int64 // bytes
	samples, series int64
}

// snapshot lets Prometheus write all it has as a block.
func (p *prometheus) snapshot(ctx context.Context) (block, error) {
	if _, err := fetch(ctx, http.MethodPost, p.url+"/api/v1/admin/tsdb/snapshot", "identity"); err != nil {
		return block{}, err
	}
	metas, err := filepath.Glob(filepath.Join(p.data, "snapshots/*/*/meta.json"))
	if err != nil {
		return block{}, err
	}
	var b block
	for _, path := range metas {
		text, err := os.ReadFile(path)
		if err != nil {
			return block{}, err
		}
		var meta struct {
			Stats struct {
				Samples int64 `json:"numSamples"`
				Series  int64 `json:"numSeries"`
			} `json:"stats"`
		}
		if err := json.Unmarshal(text, &meta); err != nil {
			return block{}, err
		}
		b.samples += meta.Stats.Samples
		b.series += meta.Stats.Series
		dir := filepath.Dir(path)
		chunks, err := filepath.Glob(filepath.Join(dir, "chunks/*"))
		if err != nil {
			return block{}, err
		}
		for _, file := range chunks {
			info, err := os.Stat(file)
			if err != nil {
				return block{}, err
			}
			b.chunks += info.Size()
		}
		info, err := os.Stat(filepath.Join(dir, "index"))
		if err != nil {
			return block{}, err
		}
		b.index += info.Size()
	}
	return b, nil
}
