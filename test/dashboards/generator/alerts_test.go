package main

import (
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

func TestLimit(t *testing.T) {
	f := func(expr string, limit float64, ok bool) {
		t.Helper()
		got, err := parsed(t, expr).Limit("A")
		if got != limit || (err == nil) != ok {
			t.Errorf("%s: %v, %v, want %v", expr, got, err, limit)
		}
	}
	f(`a > 0.85`, 0.85, true)
	f(`(a / b > 0.5)`, 0.5, true)
	f(`a > 0.5 and on (job) b > 3`, 0.5, true)
	f(`sum(a > 7) / b > 0.25 unless c == 1`, 0.25, true)
	f(`a < 15 * 60`, 900, true)
	f(`a > b`, 0, false)
	f(`a > 0.5 * b`, 0, false)
	f(`sum(a > 7)`, 0, false)
}

func TestHorizon(t *testing.T) {
	f := func(expr string, horizon float64, ok bool) {
		t.Helper()
		got, err := parsed(t, expr).Horizon("A")
		if got != horizon || (err == nil) != ok {
			t.Errorf("%s: %v, %v, want %v", expr, got, err, horizon)
		}
	}
	f(`predict_linear(a[3m], 900) > 1`, 900, true)
	f(`predict_linear(a[3m], 15 * 60) > 1 and a > 0.3`, 900, true)
	f(`a > 1`, 0, false)
}

func parsed(t *testing.T, expr string) Alerts {
	t.Helper()
	e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Fatal(err)
	}
	return Alerts{"A": {Severity: "warning", Expr: e}}
}
