// Package rules reads Prometheus rule files, tells what the rules in them compare and name, and writes copies of them in which time
// runs faster.
package rules

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// File is a rule file.
type File struct {
	Groups []Group `yaml:"groups"`
}

// Group is a group of rules that are evaluated one after the other.
type Group struct {
	Name     string         `yaml:"name"`
	Interval model.Duration `yaml:"interval,omitempty"`
	Rules    []Rule         `yaml:"rules"`
}

// Rule is a recording rule, with Record, or an alert, with Alert.
type Rule struct {
	Record        string            `yaml:"record,omitempty"`
	Alert         string            `yaml:"alert,omitempty"`
	Expr          string            `yaml:"expr"`
	For           model.Duration    `yaml:"for,omitempty"`
	KeepFiringFor model.Duration    `yaml:"keep_firing_for,omitempty"`
	Labels        map[string]string `yaml:"labels,omitempty"`
	Annotations   map[string]string `yaml:"annotations,omitempty"`
}

// Read reads a rule file. A field that it does not know is an error.
func Read(path string) (File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return File{}, err
	}
	var f File
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Write writes a rule file.
func (f File) Write(path string) error {
	text, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// All returns the rules of all groups.
func (f File) All() []Rule {
	var all []Rule
	for _, g := range f.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// ReadAlerts reads a rule file that has nothing but alerts and returns them by name.
func ReadAlerts(path string) (map[string]Rule, error) {
	f, err := Read(path)
	if err != nil {
		return nil, err
	}
	alerts := map[string]Rule{}
	for _, r := range f.All() {
		if _, twice := alerts[r.Alert]; twice || r.Alert == "" {
			return nil, fmt.Errorf("%s: alert %q is there twice, or no alert: %s", path, r.Alert, r.Expr)
		}
		alerts[r.Alert] = r
	}
	if len(alerts) == 0 {
		return nil, fmt.Errorf("%s: no alerts", path)
	}
	return alerts, nil
}

// Limit is the number on the right of the rule's first comparison: 0.85 in `max(ratio) > 0.85 and on () up == 1`.
func (r Rule) Limit() (float64, error) {
	expr, err := Parser.ParseExpr(r.Expr)
	if err != nil {
		return 0, fmt.Errorf("%s%s: %w", r.Alert, r.Record, err)
	}
	for {
		switch e := expr.(type) {
		case *parser.ParenExpr:
			expr = e.Expr
			continue
		case *parser.BinaryExpr:
			if e.Op.IsSetOperator() { // the rule is about what is left of it
				expr = e.LHS
				continue
			}
			if number, ok := e.RHS.(*parser.NumberLiteral); ok && e.Op.IsComparisonOperator() {
				return number.Val, nil
			}
		}
		return 0, fmt.Errorf("%s%s: %s is no comparison with a number", r.Alert, r.Record, expr)
	}
}

// Horizon is how far ahead, in seconds, the rule's predict_linear looks.
func (r Rule) Horizon() (float64, error) {
	expr, err := Parser.ParseExpr(r.Expr)
	if err != nil {
		return 0, fmt.Errorf("%s%s: %w", r.Alert, r.Record, err)
	}
	horizon, err := 0.0, fmt.Errorf("%s%s: no predict_linear", r.Alert, r.Record)
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if call, ok := node.(*parser.Call); ok && call.Func.Name == "predict_linear" {
			horizon, err = product(call.Args[1])
		}
		return nil
	})
	return horizon, err
}

// product is the value of a number or of a product of them, as in `15 * 60`.
func product(expr parser.Expr) (float64, error) {
	switch e := expr.(type) {
	case *parser.NumberLiteral:
		return e.Val, nil
	case *parser.BinaryExpr:
		left, err := product(e.LHS)
		right, err2 := product(e.RHS)
		if e.Op == parser.MUL {
			return left * right, errors.Join(err, err2)
		}
	}
	return 0, fmt.Errorf("%s is not a number", expr)
}

// Faster returns a copy in which everything happens factor times sooner: interval, for, keep_firing_for, ranges, offsets,
// and how far predict_linear looks ahead. Thresholds, which are shares, stay as they are.
func (f File) Faster(factor int) (File, error) {
	faster := File{Groups: make([]Group, len(f.Groups))}
	for i, g := range f.Groups {
		faster.Groups[i] = Group{Name: g.Name, Interval: g.Interval / model.Duration(factor), Rules: make([]Rule, len(g.Rules))}
		for j, r := range g.Rules {
			expr, err := fasterExpr(r.Expr, factor)
			if err != nil {
				return File{}, fmt.Errorf("%s%s: %w", r.Alert, r.Record, err)
			}
			r.Expr = expr
			r.For /= model.Duration(factor)
			r.KeepFiringFor /= model.Duration(factor)
			annotations := make(map[string]string, len(r.Annotations))
			for name, text := range r.Annotations {
				annotations[name], err = fasterText(text, factor)
				if err != nil {
					return File{}, fmt.Errorf("%s: annotation %s: %w", r.Alert, name, err)
				}
			}
			r.Annotations = annotations
			faster.Groups[i].Rules[j] = r
		}
	}
	return faster, nil
}

// Parser reads PromQL as Prometheus does without feature flags.
var Parser = parser.NewParser(parser.Options{})

func fasterExpr(text string, factor int) (string, error) {
	expr, err := Parser.ParseExpr(text)
	if err != nil {
		return "", err
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.MatrixSelector:
			n.Range /= time.Duration(factor)
		case *parser.SubqueryExpr:
			n.Range /= time.Duration(factor)
			n.Step /= time.Duration(factor)
			n.OriginalOffset /= time.Duration(factor)
		case *parser.VectorSelector:
			n.OriginalOffset /= time.Duration(factor)
		case *parser.Call:
			if n.Func.Name == "predict_linear" {
				n.Args[1] = &parser.BinaryExpr{
					Op:  parser.DIV,
					LHS: &parser.ParenExpr{Expr: n.Args[1]},
					RHS: &parser.NumberLiteral{Val: float64(factor)},
				}
			}
		}
		return nil
	})
	return expr.String(), nil
}

// FasterConfig writes a copy of a configuration of Prometheus or Alertmanager in which every interval and wait is factor times shorter.
func FasterConfig(from, to string, factor int) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var config yaml.Node
	if err := yaml.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if err := fasterNode(&config, factor); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	text, err = yaml.Marshal(&config)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

func fasterNode(node *yaml.Node, factor int) error {
	for i, value := range node.Content {
		if err := fasterNode(value, factor); err != nil {
			return err
		}
		if node.Kind != yaml.MappingNode || i%2 == 0 {
			continue
		}
		key := node.Content[i-1].Value
		if !strings.HasSuffix(key, "_interval") && !strings.HasSuffix(key, "_wait") {
			continue
		}
		d, err := model.ParseDuration(value.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		value.Value = (d / model.Duration(factor)).String()
	}
	return nil
}

// rangeRE matches the ranges of the queries inside a template.
var rangeRE = regexp.MustCompile(`\[([0-9]+[smhd])\]`)

func fasterText(text string, factor int) (string, error) {
	var failed error
	faster := rangeRE.ReplaceAllStringFunc(text, func(match string) string {
		d, err := model.ParseDuration(match[1 : len(match)-1])
		if err != nil {
			failed = err
		}
		return "[" + (d / model.Duration(factor)).String() + "]"
	})
	return faster, failed
}

// templateQueryRE matches the format of a query inside a template: {{ query (printf "..." ...) }}.
var templateQueryRE = regexp.MustCompile(`query \(printf "((?:[^"\\]|\\.)*)"`)

// templateText undoes the quoting of a Go string and puts "x" where printf puts a label's value.
var templateText = strings.NewReplacer(`\"`, `"`, `%q`, `"x"`)

// Queries returns the PromQL of a rule: its expression, and the queries in its annotations with "x" for what a template fills in.
func (r Rule) Queries() []string {
	queries := []string{r.Expr}
	for _, text := range r.Annotations {
		for _, match := range templateQueryRE.FindAllStringSubmatch(text, -1) {
			queries = append(queries, templateText.Replace(match[1]))
		}
	}
	return queries
}
