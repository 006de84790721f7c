package dashboards

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"

	"timewait_exporter/test/e2e/rules"
)

// Grafana takes JSON of the kinds here without a word and then draws it wrongly: each was seen so in 9.3. Every check is first held to a
// panel that has its fault.

// green is what says that all is well.
const green = "#009E73"

// TestNothingIsNull looks for nulls where Grafana expects a list or an object: it fails on them as it draws, and the panel stays blank.
// Only the base of thresholds has none, for minus infinity.
func TestNothingIsNull(t *testing.T) {
	nulls := func(raw any) (found []string) {
		visit(raw, "", func(path string, value any) {
			if value == nil && !strings.HasSuffix(path, ".thresholds.steps.0.value") {
				found = append(found, path)
			}
		})
		return found
	}
	if got := nulls(map[string]any{"overrides": []any{map[string]any{"properties": nil}}}); len(got) != 1 {
		t.Errorf("found %q, want the null", got)
	}
	for uid := range readBoards(t) {
		for _, path := range nulls(readJSON(t, uid)) {
			t.Errorf("%s: %s is null", uid, path)
		}
	}
}

// readJSON reads all of a dashboard.
func readJSON(t *testing.T, uid string) (all any) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dashboards, uid+".json"))
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// visit calls f for a JSON value and all that is in it.
func visit(value any, path string, f func(path string, value any)) {
	f(path, value)
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			visit(inner, path+"."+key, f)
		}
	case []any:
		for i, inner := range v {
			visit(inner, fmt.Sprintf("%s.%d", path, i), f)
		}
	}
}

// TestRangesAreClosed: a mapping of a range with an open end matches no value.
func TestRangesAreClosed(t *testing.T) {
	everyPanel(t, func(p panel) error {
		for _, m := range p.FieldConfig.Defaults.Mappings {
			if m.Type == "range" && (m.Options.From == nil || m.Options.To == nil || *m.Options.From >= *m.Options.To) {
				return errors.New("a mapping's range has no end")
			}
		}
		return nil
	}, `{"fieldConfig": {"defaults": {"mappings": [{"type": "range", "options": {"from": 86400, "to": null, "result": {"text": "not filling"}}}]}}}`)
}

// TestLabelsAreText: a label that looks like a number is formatted in the panel's unit, port 5432 as 543200 %.
func TestLabelsAreText(t *testing.T) {
	everyPanel(t, func(p panel) error {
		for _, column := range p.labelColumns() {
			if unit := p.unitOf(column); unit != "string" {
				return fmt.Errorf("the label %s has the unit %q", column, unit)
			}
		}
		return nil
	}, `{"fieldConfig": {"defaults": {"unit": "percentunit"}, "overrides": [{"matcher": {"id": "byName", "options": "remote_port"},
		"properties": [{"id": "custom.width", "value": 118}]}]},
		"transformations": [{"id": "organize", "options": {"indexByName": {"remote_port": 0, "Value #A": 1}}}]}`)
}

// unitOf is the unit of a table's column.
func (p panel) unitOf(column string) string {
	for _, o := range p.FieldConfig.Overrides {
		for _, property := range o.Properties {
			if o.Matcher.Options == column && property.ID == "unit" {
				return strings.Trim(string(property.Value), `"`)
			}
		}
	}
	return p.FieldConfig.Defaults.Unit
}

// TestNoDataIsNotGreen: without a mapping, what has no value takes the colour of the lowest threshold, which on most panels is the green
// of all being well; without thresholds Grafana's own, green too.
func TestNoDataIsNotGreen(t *testing.T) {
	everyPanel(t, func(p panel) error {
		if p.Type != "stat" {
			return nil
		}
		colour := green
		if thresholds := p.FieldConfig.Defaults.Thresholds; thresholds != nil {
			colour = thresholds.Steps[0].Color
		}
		for _, m := range p.FieldConfig.Defaults.Mappings {
			if m.Type == "special" && strings.HasPrefix(m.Options.Match, "null") {
				colour = m.Options.Result.Color
			}
		}
		if colour == green || colour == "green" || colour == "" {
			return fmt.Errorf("no data is %q", colour)
		}
		return nil
	}, `{"type": "stat", "fieldConfig": {"defaults": {"thresholds": {"steps": [{"value": null, "color": "#009E73"}, {"value": 0.85, "color": "#D55E00"}]}}}}`)
}

// TestRowsMerge: Grafana merges the rows of a table's queries by the labels that all of them have. One more, such as the name of a
// recorded series, makes a row of its own of each value.
func TestRowsMerge(t *testing.T) {
	everyPanel(t, func(p panel) error {
		columns := p.labelColumns()
		if columns == nil {
			return nil
		}
		if p.Transformations[0].ID != "merge" {
			return fmt.Errorf("the first transformation is %q", p.Transformations[0].ID)
		}
		var first []string
		for _, target := range p.Targets {
			if !target.Instant || target.Format != "table" {
				return fmt.Errorf("query %s: instant=%v, format %q", target.RefID, target.Instant, target.Format)
			}
			expr, err := rules.Parser.ParseExpr(shown.in(target.Expr))
			if err != nil {
				return err
			}
			labels, err := resultLabels(expr)
			if err != nil {
				return fmt.Errorf("query %s: %q: %w", target.RefID, target.Expr, err)
			}
			if first == nil {
				first = labels
			}
			for _, label := range labels {
				if !slices.Contains(columns, label) {
					return fmt.Errorf("query %s has the label %s, the table has %q", target.RefID, label, columns)
				}
			}
			for _, label := range first {
				if !slices.Contains(labels, label) {
					return fmt.Errorf("query %s lacks the label %s of the first", target.RefID, label)
				}
			}
		}
		return nil
	}, `{"targets": [
		{"refId": "A", "instant": true, "format": "table", "expr": "topk(20, job_destination:tcp_destination_port_utilisation_ratio:max)"},
		{"refId": "B", "instant": true, "format": "table", "expr": "job_destination:tcp_destination_ports_used:sum and topk(20, job_destination:tcp_destination_port_utilisation_ratio:max)"}],
		"transformations": [{"id": "merge"}, {"id": "organize", "options": {"indexByName": {"remote_ip": 0, "Value #A": 1}}}]}`)
}

// longest are texts as long as labels get: of addresses as long as IPv6 ones usually are.
var longest = map[string]string{
	"state": "established", "direction": "outbound", "queue": "receive", "pool": "bind_any", "timer": "retransmit", "reason": "timeout",
	"collector": "listeners", "job": "timewait_exporter", "remote_ip": "2001:db8:85a3::8a2e:370:7", "local_ip": "2001:db8:85a3::8a2e:370:7",
	"remote_port": "65535", "local_port": "65535", "netns": "shop/recommendations-7d9f8b6c5-x2k8p", "tables": "unchanged",
}

// TestLegendsFit: in a window of 1280 pixels a legend beside the picture leaves most of the panel to it, and one below is not cut.
func TestLegendsFit(t *testing.T) {
	const (
		page         = 1280 - 56 - 2*16 // less Grafana's menu and margins
		letter, mark = 6.5, 24          // of the legend's font, the colour before a name
		number       = 55
	)
	everyPanel(t, func(p panel) error {
		if p.Type != "timeseries" {
			return nil
		}
		legend, room := p.Options.Legend, page*float64(p.GridPos.W)/24
		if legend.Placement == "right" {
			room *= 0.4
		}
		for _, target := range p.Targets {
			var unknown error
			name := legendLabel.ReplaceAllStringFunc(target.LegendFormat, func(label string) string {
				text, ok := longest[legendLabel.FindStringSubmatch(label)[1]]
				if !ok {
					unknown = fmt.Errorf("how long is %s?", label)
				}
				return text
			})
			if unknown != nil {
				return unknown
			}
			width := mark + letter*float64(len(name))
			if legend.DisplayMode == "table" {
				width += number * float64(len(legend.Calcs))
			}
			if width > room {
				return fmt.Errorf("%q needs %.0f pixels in a legend that is %s and may take %.0f", name, width, legend.Placement, room)
			}
		}
		return nil
	}, `{"type": "timeseries", "gridPos": {"w": 12}, "options": {"legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]}},
		"targets": [{"legendFormat": "{{remote_ip}} port {{remote_port}} from {{local_ip}}"}]}`)
}

// resultLabels are the labels of what an expression gives. Only an aggregation says which they are: a series as it is has those of its
// target too, and a name.
func resultLabels(expr parser.Expr) ([]string, error) {
	switch e := expr.(type) {
	case *parser.ParenExpr:
		return resultLabels(e.Expr)
	case *parser.AggregateExpr:
		if e.Op == parser.TOPK || e.Op == parser.BOTTOMK {
			return resultLabels(e.Expr)
		}
		if !e.Without {
			return e.Grouping, nil
		}
	case *parser.BinaryExpr:
		_, constant := e.RHS.(*parser.NumberLiteral)
		if e.Op == parser.LAND || e.Op == parser.LUNLESS || e.Op.IsComparisonOperator() && constant {
			return resultLabels(e.LHS)
		}
		if e.VectorMatching != nil && e.VectorMatching.On && e.VectorMatching.Card == parser.CardOneToOne {
			return e.VectorMatching.MatchingLabels, nil
		}
	}
	return nil, fmt.Errorf("%q is not aggregated by labels", expr)
}

// labelColumns are the labels that a table of merged queries shows; nil for any other panel.
func (p panel) labelColumns() []string {
	for _, transformation := range p.Transformations {
		if index := transformation.Options.IndexByName; index != nil {
			return slices.DeleteFunc(slices.Sorted(maps.Keys(index)), func(field string) bool { return strings.HasPrefix(field, "Value") })
		}
	}
	return nil
}

// everyPanel holds a check to a panel that it must not accept, and all panels to the check.
func everyPanel(t *testing.T, check func(panel) error, broken string) {
	t.Helper()
	var p panel
	if err := json.Unmarshal([]byte(broken), &p); err != nil {
		t.Fatal(err)
	}
	if err := check(p); err == nil {
		t.Errorf("accepted: %s", broken)
	}
	for _, b := range readBoards(t) {
		for _, p := range b.Panels {
			if err := check(p); err != nil {
				t.Errorf("%s: %q: %v", b.UID, p.Title, err)
			}
		}
	}
}
