// Package dashboards tests the Grafana dashboards: what their JSON says, and what each of their queries answers in a real Prometheus
// that scraped the real exporter.
package dashboards

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The project's folders, seen from this one.
const (
	root       = "../.."
	dashboards = root + "/dashboards"
	alertsFile = root + "/deploy/prometheus/timewait_exporter.alerts.yml"
	rulesFile  = root + "/deploy/prometheus/timewait_exporter.rules.yml"
)

// board is the part of Grafana's dashboard model that the tests look at.
type board struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	Description   string `json:"description"`
	SchemaVersion int    `json:"schemaVersion"`
	Links         []link `json:"links"`
	Templating    struct {
		List []variable `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []annotation `json:"list"`
	} `json:"annotations"`
	Panels []panel `json:"panels"`
}

type link struct {
	Title       string `json:"title"`
	URL         string `json:"url"`
	IncludeVars bool   `json:"includeVars"`
}

type variable struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	Query      any    `json:"query"`
	Definition string `json:"definition"`
	Regex      string `json:"regex"`
}

type annotation struct {
	Name      string `json:"name"`
	Expr      string `json:"expr"`
	IconColor string `json:"iconColor"`
}

type panel struct {
	ID            int    `json:"id"`
	Type          string `json:"type"`
	Title         string `json:"title"`
	Description   string `json:"description"`
	PluginVersion string `json:"pluginVersion"`
	GridPos       struct {
		X int `json:"x"`
		Y int `json:"y"`
		W int `json:"w"`
		H int `json:"h"`
	} `json:"gridPos"`
	Links   []link   `json:"links"`
	Targets []target `json:"targets"`
	Options struct {
		Legend legend `json:"legend"`
	} `json:"options"`
	FieldConfig struct {
		Defaults struct {
			Unit       string    `json:"unit"`
			NoValue    *string   `json:"noValue"`
			Mappings   []mapping `json:"mappings"`
			Thresholds *struct {
				Steps []struct {
					Value *float64 `json:"value"`
					Color string   `json:"color"`
				} `json:"steps"`
			} `json:"thresholds"`
		} `json:"defaults"`
		Overrides []override `json:"overrides"`
	} `json:"fieldConfig"`
	Transformations []transformation `json:"transformations"`
}

type legend struct {
	DisplayMode string   `json:"displayMode"`
	Placement   string   `json:"placement"`
	Calcs       []string `json:"calcs"`
}

type override struct {
	Matcher struct {
		Options string `json:"options"`
	} `json:"matcher"`
	Properties []struct {
		ID    string          `json:"id"`
		Value json.RawMessage `json:"value"`
	} `json:"properties"`
}

// dataLinks are the links of a table's cells.
func (p panel) dataLinks() []link {
	var all []link
	for _, o := range p.FieldConfig.Overrides {
		for _, property := range o.Properties {
			var links []link
			if property.ID == "links" && json.Unmarshal(property.Value, &links) == nil {
				all = append(all, links...)
			}
		}
	}
	return all
}

// mapping turns values into texts and colours.
type mapping struct {
	Type    string `json:"type"`
	Options struct {
		// of a range
		From *float64 `json:"from"`
		To   *float64 `json:"to"`
		// of a special value
		Match  string `json:"match"`
		Result struct {
			Color string `json:"color"`
		} `json:"result"`
	} `json:"options"`
}

type transformation struct {
	ID      string `json:"id"`
	Options struct {
		IndexByName  map[string]int    `json:"indexByName"`
		RenameByName map[string]string `json:"renameByName"`
	} `json:"options"`
}

// target is a query as Grafana has it.
type target struct {
	RefID        string `json:"refId"`
	Expr         string `json:"expr"`
	LegendFormat string `json:"legendFormat"`
	Format       string `json:"format"`
	Instant      bool   `json:"instant"`
	Range        bool   `json:"range"`
}

// readBoards reads all dashboards, by uid.
func readBoards(t *testing.T) map[string]board {
	t.Helper()
	paths, err := filepath.Glob(dashboards + "/*.json")
	if err != nil {
		t.Fatal(err)
	}
	boards := map[string]board{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var b board
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, ok := boards[b.UID]; ok {
			t.Errorf("%s: uid %q is taken", path, b.UID)
		}
		if want := b.UID + ".json"; filepath.Base(path) != want {
			t.Errorf("%s: the file should be named %s after its uid", path, want)
		}
		boards[b.UID] = b
	}
	if len(boards) == 0 {
		t.Fatalf("%s: no dashboard", dashboards)
	}
	return boards
}

// query is one expression of a dashboard and where it stands.
type query struct {
	board, panel, ref string
	expr              string
	// shape
	kind    string // the panel's type, "annotation" or "variable"
	instant bool
	// labels are those that each series must have: the columns that a table is keyed by, or what the legend names.
	labels []string
	// keyed says that they are a table's columns: there must be no other label, and each column is filled by some query.
	keyed bool
}

func (q query) String() string { return fmt.Sprintf("%s / %s / %s", q.board, q.panel, q.ref) }

var legendLabel = regexp.MustCompile(`{{\s*(\w+)\s*}}`)

// queries lists all expressions of the panels and annotations.
func (b board) queries() []query {
	var all []query
	for _, p := range b.Panels {
		for _, target := range p.Targets {
			q := query{board: b.UID, panel: p.Title, ref: target.RefID, expr: target.Expr, kind: p.Type, instant: target.Instant}
			for _, match := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				q.labels = append(q.labels, match[1])
			}
			for _, transformation := range p.Transformations {
				for field := range transformation.Options.IndexByName {
					if !strings.HasPrefix(field, "Value") {
						q.labels, q.keyed = append(q.labels, field), true
					}
				}
			}
			all = append(all, q)
		}
	}
	for _, a := range b.Annotations.List {
		all = append(all, query{board: b.UID, panel: "annotation", ref: a.Name, expr: a.Expr, kind: "annotation", labels: []string{"alertname"}})
	}
	return all
}

var (
	labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	queryResult = regexp.MustCompile(`^query_result\((.+)\)$`)
)

// expr is an expression of what a variable offers.
func (v variable) expr() (string, error) {
	if match := labelValues.FindStringSubmatch(v.Definition); match != nil {
		return "count by (" + match[2] + ") (" + match[1] + ")", nil
	}
	if match := queryResult.FindStringSubmatch(v.Definition); match != nil {
		return match[1], nil
	}
	return "", fmt.Errorf("variable %s: definition %q", v.Name, v.Definition)
}

// selection are the values of a dashboard's variables.
type selection map[string]string

// in puts the values into an expression as Grafana does.
func (s selection) in(expr string) string {
	var pairs []string
	for name, value := range s {
		pairs = append(pairs, "$"+name, value)
	}
	return strings.NewReplacer(pairs...).Replace(expr)
}
