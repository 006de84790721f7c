package rules

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
)

func TestFaster(t *testing.T) {
	f := func(expr, want string) {
		t.Helper()
		file := File{Groups: []Group{{Rules: []Rule{{Alert: "A", Expr: expr}}}}}
		faster, err := file.Faster(30)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
		} else if got := faster.Groups[0].Rules[0].Expr; got != want {
			t.Errorf("%s: got %s, want %s", expr, got, want)
		}
		if file.Groups[0].Rules[0].Expr != expr {
			t.Errorf("%s: the original has changed to %s", expr, file.Groups[0].Rules[0].Expr)
		}
	}
	f(`up == 0`, `up == 0`)
	f(`rate(a_total[5m]) > 0`, `rate(a_total[10s]) > 0`)
	f(`max_over_time(a[1m] offset 15m)`, `max_over_time(a[2s] offset 30s)`)
	f(`a offset 15m`, `a offset 30s`)
	f(`max_over_time(rate(a[1m])[5m:30s] offset 1h)`, `max_over_time(rate(a[2s])[10s:1s] offset 2m)`)
	f(`predict_linear(a[3m], 15 * 60) > 1`, `predict_linear(a[6s], (15 * 60) / 30) > 1`)

	rule := Rule{
		Alert: "A", Expr: "a", For: model.Duration(2 * time.Minute), KeepFiringFor: model.Duration(5 * time.Minute),
		Annotations: map[string]string{"description": `[note] {{ query "max_over_time(a[5m])" }}`},
	}
	faster, err := File{Groups: []Group{{Interval: model.Duration(time.Minute), Rules: []Rule{rule}}}}.Faster(30)
	if err != nil {
		t.Fatal(err)
	}
	if interval := faster.Groups[0].Interval; interval != model.Duration(2*time.Second) {
		t.Errorf("interval %s, want 2s", interval)
	}
	got := faster.All()[0]
	if got.For != model.Duration(4*time.Second) || got.KeepFiringFor != model.Duration(10*time.Second) {
		t.Errorf("for %s, keep_firing_for %s, want 4s and 10s", got.For, got.KeepFiringFor)
	}
	if want := `[note] {{ query "max_over_time(a[10s])" }}`; got.Annotations["description"] != want {
		t.Errorf("annotation %q, want %q", got.Annotations["description"], want)
	}

	if _, err := (File{Groups: []Group{{Rules: []Rule{{Alert: "Broken", Expr: "rate("}}}}}).Faster(30); err == nil || !strings.Contains(err.Error(), "Broken") {
		t.Errorf("an expression that does not parse: error %v, want one that names the alert", err)
	}
}

func TestLimitAndHorizon(t *testing.T) {
	for _, c := range []struct {
		expr           string
		limit, horizon float64 // 0: it has none
	}{
		{`a > 0.85`, 0.85, 0},
		{`(a / b > 0.5)`, 0.5, 0},
		{`a > 0.5 and on (job) b > 3`, 0.5, 0},
		{`sum(a > 7) / b > 0.25 unless c == 1`, 0.25, 0},
		{`predict_linear(a[3m], 900) > 1`, 1, 900},
		{`predict_linear(a[3m], 15 * 60) > 1 and a > 0.3`, 1, 900},
		{`a > b`, 0, 0},
		{`a > 0.5 * b`, 0, 0},
		{`sum(a > 7)`, 0, 0},
		{`a > (`, 0, 0},
	} {
		rule := Rule{Alert: "A", Expr: c.expr}
		if got, err := rule.Limit(); got != c.limit || (err == nil) != (c.limit != 0) {
			t.Errorf("%s: limit %v, %v, want %v", c.expr, got, err, c.limit)
		}
		if got, err := rule.Horizon(); got != c.horizon || (err == nil) != (c.horizon != 0) {
			t.Errorf("%s: horizon %v, %v, want %v", c.expr, got, err, c.horizon)
		}
	}
}

func TestNames(t *testing.T) {
	known := Names{"a": {"x"}, "b": {"y"}, "recorded": nil, "up": {}}
	for query, wrong := range map[string]string{
		`a{x="1",job="j"} and on (x) b`:                  "",
		`sum by (x, instance) (rate(a[5m]))`:             "",
		`sum by (y) (a) / sum by (y) (b)`:                "has the label y",
		`sum by (z) (label_replace(a, "z", "", "", ""))`: "",
		`sum by (anything) (recorded)`:                   "",
		`a * on (x) group_left (z) b`:                    "has the label z",
		`a{y="1"}`:                                       "a has no label y",
		`c`:                                              "exports or records c",
		`rate(`:                                          "parse error",
	} {
		err := errors.Join(known.Check(query)...)
		if (err != nil) != (wrong != "") || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: %v, want %q", query, err, wrong)
		}
	}
}

func TestQueries(t *testing.T) {
	rule := Rule{Expr: "a > 1", Annotations: map[string]string{
		"description": `{{ with query (printf "topk(1, b{instance=%q,pool=\"connect\"}[2m])" $labels.instance) }}{{ end }}`,
	}}
	got := rule.Queries()
	if len(got) != 2 || got[0] != "a > 1" || got[1] != `topk(1, b{instance="x",pool="connect"}[2m])` {
		t.Errorf("got %q", got)
	}
}

func TestFasterConfig(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.yml"), filepath.Join(dir, "to.yml")
	config := "global:\n    scrape_interval: 15s # often\nroute:\n    routes:\n        - group_wait: 5s\n          receiver: pager\n"
	if err := os.WriteFile(from, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := FasterConfig(from, to, 30); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("15s", "500ms", "5s", "166ms").Replace(config)
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
