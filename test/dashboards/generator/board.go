package main

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"go.yaml.in/yaml/v3"

	"timewait_exporter/test/e2e/rules"
)

// Grafana 9.1 is the oldest that the dashboards are for. Later ones migrate a model by these two numbers: without pluginVersion
// some panels would be taken for ones of Grafana 6.
const (
	schemaVersion = 36
	pluginVersion = "9.1.0"
)

// datasource is the variable that every query goes to.
var datasource = common.DataSourceRef{Type: new("prometheus"), Uid: new("${datasource}")}

// Board is one dashboard, as its file in boards has it.
type Board struct {
	UID         string
	Title       string
	Description string
	// Alerts is the query whose series are drawn as annotations while they are above 0; @firing stands for those of one severity.
	Alerts string
	// Runbooks is where the alerts' runbooks are served, "" on a board that shows many instances at once.
	Runbooks  string
	Links     []BoardLink
	Variables []Variable
	Sections  []Section
}

// Section is a part of the dashboard. The widths of its panels fill whole lines.
type Section struct {
	// Title heads the section and folds it away; without one the panels are always in sight.
	Title  string
	Panels []Panel
}

// Panel is one question and what answers it.
type Panel struct {
	Title string
	// Description has paragraphs with an empty line between them.
	Description string
	// Cure is what to do, and how to see that it helped. A panel that alerts are about needs it.
	Cure string
	Unit string
	// Size is the width, of 24 columns, and the height in units of 30 pixels.
	Size [2]uint32
	// Draw is the visualization: a number, share, fact, list, table, heatmap, lines, areas or bars.
	Draw string
	// Legend is of lines: "" beside the picture, wide for long names, narrow where there is no room for numbers.
	Legend string
	// Max and Decimals are Grafana's own choice where they are nil.
	Max, Decimals *float64
	// Display is how a bar is called, where that is not the legend of its query.
	Display string
	// Otherwise is the colour of values that neither Values nor From nor a limit gives another.
	Otherwise Colour
	// Values are texts and colours of single values, From is that of a value and all above it.
	Values map[string]Result
	From   *struct {
		Least  float64
		Result `yaml:",inline"`
	}
	// States gives each series whose name ends in a state that state's colour.
	States bool
	// Colours gives series, by their legends and in the order of these, their colours.
	Colours []map[string]Colour
	// Dashed matches the names of the less urgent of two lines in the same colour.
	Dashed  string
	Queries []Query
	// Keys, Links and Columns are of a table: see rows.
	Keys    []string
	Links   map[string]CellLink
	Columns []Column
	// Limits names the alerts whose limit the panel colours or draws as a line.
	Limits []string
	// Horizon names the alert whose look-ahead is the panel's limit: less is worse.
	Horizon string
	// Runbooks names further alerts that the panel explains.
	Runbooks []string
}

// Result is how a value is shown; without a text it is itself.
type Result struct {
	Text   string
	Colour Colour
}

// Query is one PromQL expression of a panel.
type Query struct{ Expr, Legend string }

//go:embed boards
var boards embed.FS

// readBoard reads one of the boards' files. A field that it does not know is an error.
func readBoard(name string) (Board, error) {
	text, err := boards.ReadFile("boards/" + name + ".yaml")
	if err != nil {
		return Board{}, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	var b Board
	if err := decoder.Decode(&b); err != nil {
		return Board{}, fmt.Errorf("board %s: %w", name, err)
	}
	return b, nil
}

// selectors stand in the expressions for what the variables select.
var selectors = strings.NewReplacer(
	"@netns", `job="$job",instance="$instance",netns="$netns"`,
	"@instance", `job="$job",instance="$instance"`,
	"@jobs", `job=~"$job"`,
)

// model is the dashboard with the fields of annotations that the SDK does not know.
type model struct {
	dashboard.Dashboard
	Annotations annotations `json:"annotations"`
}

type annotations struct {
	List []alertAnnotation `json:"list"`
}

type alertAnnotation struct {
	dashboard.AnnotationQuery
	TitleFormat string `json:"titleFormat"`
	TextFormat  string `json:"textFormat"`
	TagKeys     string `json:"tagKeys"`
}

// Build turns the board into Grafana's JSON model.
func (b Board) Build(alerts map[string]rules.Rule) (any, error) {
	builder := dashboard.NewDashboardBuilder(b.Title).
		Uid(b.UID).
		Description(b.Description).
		Tags([]string{"timewait_exporter", "tcp"}).
		Time("now-1h", "now").
		Refresh("30s").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	for _, v := range b.Variables {
		builder.WithVariable(v.build())
	}
	id := uint32(0)
	for _, section := range b.Sections {
		if section.Title != "" {
			id++
			builder.WithRow(dashboard.NewRowBuilder(section.Title).Id(id))
		}
		for _, panel := range section.Panels {
			id++
			builder.WithPanel(placedPanel{panel, id, alerts, b.Runbooks})
		}
	}
	built, err := builder.Build()
	if err != nil {
		return nil, err
	}
	built.SchemaVersion = schemaVersion
	for _, link := range b.Links {
		built.Links = append(built.Links, link.build())
	}
	return model{built, annotations{b.annotations()}}, nil
}

// annotations mark when alerts fired, each severity in its colour: a query has one.
func (b Board) annotations() []alertAnnotation {
	var list []alertAnnotation
	for _, s := range severities {
		firing := strings.Replace(b.Alerts, "@firing", `alertstate="firing",severity="`+s.severity+`"`, 1)
		list = append(list, alertAnnotation{
			AnnotationQuery: dashboard.AnnotationQuery{
				Name:       s.alerts,
				Datasource: &datasource,
				Enable:     true,
				IconColor:  s.colour,
				Expr:       new(selectors.Replace(firing)),
			},
			TitleFormat: "{{alertname}}",
			TextFormat:  "{{severity}} {{netns}}",
			TagKeys:     "alertname,severity",
		})
	}
	return list
}

// placedPanel is a panel with its number on the board and the alerts that its limits come from.
type placedPanel struct {
	Panel
	id       uint32
	alerts   map[string]rules.Rule
	runbooks string
}

// Build fills in what all panels have in common.
func (p placedPanel) Build() (dashboard.Panel, error) {
	builder, err := p.draw()
	if err != nil {
		return dashboard.Panel{}, cog.MakeBuildErrors(fmt.Sprintf("panel %q", p.Title), err)
	}
	panel, err := builder.Build()
	if err != nil {
		return panel, err
	}
	if p.Cure == "" && len(p.about()) > 0 {
		return panel, cog.MakeBuildErrors(fmt.Sprintf("panel %q", p.Title), errors.New("it is about alerts and says no cure"))
	}
	steps, notes, err := p.limits()
	if err != nil {
		return panel, cog.MakeBuildErrors(fmt.Sprintf("panel %q", p.Title), err)
	}
	panel.Id = &p.id
	panel.Title = &p.Title
	panel.Description = new(p.description() + notes)
	panel.PluginVersion = new(pluginVersion)
	panel.Datasource = &datasource
	panel.GridPos = &dashboard.GridPos{W: p.Size[0], H: p.Size[1]}
	if panel.FieldConfig == nil {
		panel.FieldConfig = dashboard.NewFieldConfigSource()
	}
	p.fields(panel.FieldConfig)
	if steps != nil {
		panel.FieldConfig.Defaults.Thresholds = &dashboard.ThresholdsConfig{Mode: dashboard.ThresholdsModeAbsolute, Steps: steps}
	}
	if p.runbooks != "" {
		for _, name := range p.about() {
			panel.Links = append(panel.Links, dashboard.DashboardLink{
				Title: "Runbook " + name, Type: dashboard.DashboardLinkTypeLink, Url: new(p.runbooks + name), TargetBlank: true, Tags: []string{},
			})
		}
	}
	for i, query := range p.Queries {
		panel.Targets = append(panel.Targets, p.target(query, i))
	}
	for i, column := range p.Columns {
		panel.Targets = append(panel.Targets, p.target(Query{Expr: column.Expr}, i))
	}
	return panel, nil
}

// target is a query as Grafana has it. Panels that are not over time ask for the present value alone, so that an exporter which is gone
// shows as "No data" and not as the last value it gave.
func (p Panel) target(q Query, i int) prometheus.Dataquery {
	overTime := slices.Contains([]string{"lines", "areas", "heatmap"}, p.Draw)
	format := prometheus.PromQueryFormatTimeSeries
	if p.Draw == "table" {
		format = prometheus.PromQueryFormatTable
	}
	return prometheus.Dataquery{
		Expr:         selectors.Replace(strings.ReplaceAll(q.Expr, "@keys", strings.Join(p.Keys, ", "))),
		Instant:      new(!overTime),
		Range:        &overTime,
		Format:       &format,
		LegendFormat: new(cmp.Or(q.Legend, "__auto")),
		EditorMode:   new(prometheus.QueryEditorModeCode),
		RefId:        new(string(rune('A' + i))),
		Datasource:   &datasource,
	}
}

func (p Panel) description() string {
	return strings.TrimSpace(strings.ReplaceAll(p.Description+"\n"+p.Cure, "\n", "\n\n"))
}

// limits are the panel's thresholds and the end of its description, which says where they come from.
func (p placedPanel) limits() ([]dashboard.Threshold, string, error) {
	var steps []dashboard.Threshold
	var notes []string
	base := green
	for _, name := range p.about() {
		alert, ok := p.alerts[name]
		colour := severityColour(alert.Labels["severity"])
		if !ok || colour == "" {
			return nil, "", fmt.Errorf("alert %s: no such rule, or no colour for severity %q", name, alert.Labels["severity"])
		}
		switch {
		case slices.Contains(p.Limits, name):
			limit, err := alert.Limit()
			if err != nil {
				return nil, "", err
			}
			steps = append(steps, dashboard.Threshold{Value: &limit, Color: colour})
			notes = append(notes, fmt.Sprintf("%s past %s", name, p.inUnit(limit)))
		case name == p.Horizon:
			horizon, err := alert.Horizon()
			if err != nil {
				return nil, "", err
			}
			base = colour
			steps = append(steps, dashboard.Threshold{Value: &horizon, Color: green})
			notes = append(notes, fmt.Sprintf("%s below %s", name, p.inUnit(horizon)))
		default:
			notes = append(notes, name)
		}
	}
	slices.SortFunc(steps, func(a, b dashboard.Threshold) int { return cmp.Compare(*a.Value, *b.Value) })
	steps = slices.CompactFunc(steps, func(a, b dashboard.Threshold) bool { return *a.Value == *b.Value && a.Color == b.Color })
	if steps != nil {
		steps = slices.Insert(steps, 0, dashboard.Threshold{Color: base})
	}
	text := ""
	if notes != nil {
		text = "\n\nAlerts: " + strings.Join(notes, ", ") + "."
	}
	return steps, text, nil
}

// about names all alerts that the panel shows something of.
func (p Panel) about() []string {
	names := slices.Clone(p.Limits)
	if p.Horizon != "" {
		names = append(names, p.Horizon)
	}
	return append(names, p.Runbooks...)
}

// inUnit writes a limit as the panel's axis does.
func (p Panel) inUnit(limit float64) string {
	switch {
	case p.Unit == "percentunit":
		return fmt.Sprint(limit*100, " %")
	case p.Unit == "s" && limit >= 60:
		return fmt.Sprint(limit/60, " min")
	case p.Unit == "s":
		return fmt.Sprint(limit, " s")
	}
	return fmt.Sprint(limit)
}
