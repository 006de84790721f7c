package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// Alert is what a panel needs of an alerting rule.
type Alert struct {
	Severity string
	Expr     parser.Expr
}

// Alerts are the rules of an alerts file, by name.
type Alerts map[string]Alert

// ReadAlerts reads a Prometheus rule file. The limits that panels draw come from it, so that a line on a dashboard and the alert
// about it can't disagree.
func ReadAlerts(path string) (Alerts, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert  string            `yaml:"alert"`
				Expr   string            `yaml:"expr"`
				Labels map[string]string `yaml:"labels"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	promql := parser.NewParser(parser.Options{})
	alerts := Alerts{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" {
				continue
			}
			expr, err := promql.ParseExpr(rule.Expr)
			if err != nil {
				return nil, fmt.Errorf("%s: alert %s: %q: %w", path, rule.Alert, rule.Expr, err)
			}
			alerts[rule.Alert] = Alert{Severity: rule.Labels["severity"], Expr: expr}
		}
	}
	if len(alerts) == 0 {
		return nil, fmt.Errorf("%s: no alerting rule", path)
	}
	return alerts, nil
}

// Limit is the number on the right of the alert's first comparison: 0.85 in `max(ratio) > 0.85 and on () up == 1`.
func (a Alerts) Limit(name string) (float64, error) {
	alert, ok := a[name]
	if !ok {
		return 0, fmt.Errorf("alert %s: no such rule", name)
	}
	limit, err := firstLimit(alert.Expr)
	if err != nil {
		return 0, fmt.Errorf("alert %s: %q: %w", name, alert.Expr, err)
	}
	return limit, nil
}

// firstLimit descends the left side of `and`, `or` and `unless` to the comparison that the rule is about.
func firstLimit(expr parser.Expr) (float64, error) {
	switch e := expr.(type) {
	case *parser.ParenExpr:
		return firstLimit(e.Expr)
	case *parser.BinaryExpr:
		if e.Op.IsSetOperator() {
			return firstLimit(e.LHS)
		}
		if e.Op.IsComparisonOperator() {
			return constant(e.RHS)
		}
	}
	return 0, errors.New("no comparison with a number")
}

// Horizon is how far ahead, in seconds, the alert's predict_linear looks.
func (a Alerts) Horizon(name string) (float64, error) {
	alert, ok := a[name]
	if !ok {
		return 0, fmt.Errorf("alert %s: no such rule", name)
	}
	horizon, err := 0.0, errors.New("no predict_linear")
	parser.Inspect(alert.Expr, func(node parser.Node, _ []parser.Node) error {
		if call, ok := node.(*parser.Call); ok && call.Func.Name == "predict_linear" {
			horizon, err = constant(call.Args[1])
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("alert %s: %q: %w", name, alert.Expr, err)
	}
	return horizon, nil
}

// constant is the value of a number literal or of a product of them, as in `15 * 60`.
func constant(expr parser.Expr) (float64, error) {
	switch e := expr.(type) {
	case *parser.NumberLiteral:
		return e.Val, nil
	case *parser.ParenExpr:
		return constant(e.Expr)
	case *parser.BinaryExpr:
		if e.Op == parser.MUL {
			left, err := constant(e.LHS)
			if err != nil {
				return 0, err
			}
			right, err := constant(e.RHS)
			return left * right, err
		}
	}
	return 0, fmt.Errorf("%q is not a number", expr)
}
