package rules

import (
	"fmt"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"

	"timewait_exporter/collector"
)

// Names are those that a query may use: of metrics, each with the names of its labels. Which labels the series of a recording rule
// have is not known here: they are nil.
type Names map[string][]string

// KnownNames are what the exporter exports, what the file records, and what Prometheus itself has.
func KnownNames(recording File) Names {
	known := Names{"up": {}, "ALERTS": {"alertname", "alertstate", "severity", "netns"}, "timewait_exporter_build_info": {"version"}}
	for _, m := range collector.Metrics() {
		known[m.Name] = append([]string{}, m.Labels...)
	}
	for _, r := range recording.All() {
		known[r.Record] = nil
	}
	return known
}

// Check returns what a query asks for and nobody has: metrics, labels of a metric, and labels to group by or to match on that no
// metric below has.
func (known Names) Check(query string) []error {
	expr, err := Parser.ParseExpr(query)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", query, err)}
	}
	var wrong []error
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		var named []string
		switch n := node.(type) {
		case *parser.VectorSelector:
			labels, ok := known[n.Name]
			if !ok {
				wrong = append(wrong, fmt.Errorf("%s: nobody exports or records %s", query, n.Name))
			}
			for _, m := range n.LabelMatchers {
				if labels != nil && !slices.Contains(labels, m.Name) && !slices.Contains(target, m.Name) {
					wrong = append(wrong, fmt.Errorf("%s: %s has no label %s", query, n.Name, m.Name))
				}
			}
		case *parser.AggregateExpr:
			named = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				named = slices.Concat(n.VectorMatching.MatchingLabels, n.VectorMatching.Include)
			}
		}
		for _, label := range named {
			if labels, all := known.below(node); all && !slices.Contains(labels, label) {
				wrong = append(wrong, fmt.Errorf("%s: no metric in %s has the label %s", query, node, label))
			}
		}
		return nil
	})
	return wrong
}

// target are the labels that Prometheus itself gives to a series.
var target = []string{"job", "instance", model.MetricNameLabel}

// below are the labels of all series in a part of a query; all says whether those of each are known.
func (known Names) below(part parser.Node) (labels []string, all bool) {
	labels, all = slices.Clone(target), true
	parser.Inspect(part, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			all = all && known[n.Name] != nil
			labels = append(labels, known[n.Name]...)
		case *parser.Call:
			if n.Func.Name == "label_replace" {
				labels = append(labels, n.Args[1].(*parser.StringLiteral).Val)
			}
		}
		return nil
	})
	return labels, all
}
