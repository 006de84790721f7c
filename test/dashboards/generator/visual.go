package main

import (
	"cmp"
	"fmt"
	"math"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// lastValue reduces an instant query's answer, one sample a series, to that sample.
func lastValue() *common.ReduceDataOptionsBuilder {
	return common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}).Fields("").Values(false)
}

// draw is the panel's visualization, without what all have in common.
func (p Panel) draw() (cog.Builder[dashboard.Panel], error) {
	switch p.Draw {
	case "number":
		return p.number(), nil
	case "share":
		return p.number().Min(0).Max(1).Decimals(0), nil
	case "fact": // neither good nor bad
		return p.number().ColorMode(common.BigValueColorModeNone), nil
	case "list":
		return oneValueEach(), nil
	case "table":
		return p.rows(), nil
	case "heatmap":
		return bucketsOverTime(), nil
	case "lines":
		return p.lines(), nil
	case "areas": // that add up to a whole
		return p.lines().
			LineWidth(0). // else the edge of a state of which there are none lies on top of the others
			FillOpacity(60).
			Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal).Group("A")), nil
	case "bars":
		return p.bars(), nil
	}
	return nil, fmt.Errorf("there is no visualization %q", p.Draw)
}

// fields fills in what panels of any kind say about their values and series.
func (p Panel) fields(config *dashboard.FieldConfigSource) {
	defaults := &config.Defaults
	defaults.Unit = &p.Unit
	defaults.Max = cmp.Or(p.Max, defaults.Max)
	defaults.Decimals = cmp.Or(p.Decimals, defaults.Decimals)
	if p.Display != "" {
		defaults.DisplayName = &p.Display
	}
	if p.Otherwise != "" {
		defaults.Thresholds = &dashboard.ThresholdsConfig{Mode: dashboard.ThresholdsModeAbsolute, Steps: []dashboard.Threshold{{Color: string(p.Otherwise)}}}
	}
	if p.Values != nil {
		results := map[string]dashboard.ValueMappingResult{}
		for value, result := range p.Values {
			results[value] = result.build()
		}
		defaults.Mappings = append(defaults.Mappings,
			dashboard.ValueMapping{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: results}})
	}
	if p.From != nil {
		defaults.Mappings = append(defaults.Mappings, dashboard.ValueMapping{RangeMap: &dashboard.RangeMap{
			Type:    dashboard.MappingTypeRangeToText,
			Options: dashboard.DashboardRangeMapOptions{From: &p.From.Least, To: new(math.MaxFloat64), Result: p.From.build()},
		}})
	}
	override := func(matcher, series string, property dashboard.DynamicConfigValue) {
		config.Overrides = append(config.Overrides, dashboard.DashboardFieldConfigSourceOverrides{
			Matcher: dashboard.MatcherConfig{Id: matcher, Options: series}, Properties: []dashboard.DynamicConfigValue{property},
		})
	}
	if p.States {
		for _, state := range stateColour {
			override("byRegexp", "/(^|.* )"+state.state+"$/", fixed(state.colour))
		}
	}
	for _, pair := range p.Colours {
		for series, colour := range pair {
			override("byName", series, fixed(colour))
		}
	}
	if p.Dashed != "" {
		override("byRegexp", p.Dashed, dashboard.DynamicConfigValue{Id: "custom.lineStyle", Value: map[string]any{"fill": "dash", "dash": []int{10, 10}}})
	}
}

func (r Result) build() dashboard.ValueMappingResult {
	var result dashboard.ValueMappingResult
	if r.Text != "" {
		result.Text = &r.Text
	}
	if r.Colour != "" {
		result.Color = new(string(r.Colour))
	}
	return result
}

func fixed(colour Colour) dashboard.DynamicConfigValue {
	return dashboard.DynamicConfigValue{Id: "color", Value: map[string]string{"mode": "fixed", "fixedColor": string(colour)}}
}

// number can be read from across the room: the whole panel takes the colour of its limit. What nobody knows is grey, where Grafana gives
// it the colour of the lowest limit, here the green of all being well.
func (p Panel) number() *stat.PanelBuilder {
	text := common.BigValueTextModeValue
	if len(p.Queries) > 1 {
		text = common.BigValueTextModeValueAndName
	}
	return stat.NewPanelBuilder().
		ReduceOptions(lastValue()).
		ColorMode(common.BigValueColorModeBackground).
		GraphMode(common.BigValueGraphModeNone).
		JustifyMode(common.BigValueJustifyModeCenter).
		TextMode(text).
		Orientation(common.VizOrientationAuto).
		Mappings([]dashboard.ValueMapping{{SpecialValueMap: &dashboard.SpecialValueMap{
			Type: dashboard.MappingTypeSpecialValue,
			Options: dashboard.DashboardSpecialValueMapOptions{
				Match: dashboard.SpecialValueMatchNullAndNan, Result: Result{"No data", grey}.build(),
			},
		}}}).
		ColorScheme(byLimit())
}

// byLimit colours a value by the limits that it is past.
func byLimit() *dashboard.FieldColorBuilder {
	return dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdThresholds)
}

// lines are series over time. Gaps stay gaps: a scrape that failed has no value. The alerts' limits are drawn into the picture.
func (p Panel) lines() *timeseries.PanelBuilder {
	legend := common.NewVizLegendOptionsBuilder().ShowLegend(true)
	switch p.Legend {
	case "narrow":
		legend.DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom)
	case "wide": // the largest first
		legend.DisplayMode(common.LegendDisplayModeTable).Placement(common.LegendPlacementBottom).Calcs([]string{"lastNotNull", "max"}).
			SortBy("Last *").SortDesc(true)
	default:
		legend.DisplayMode(common.LegendDisplayModeTable).Placement(common.LegendPlacementRight).Calcs([]string{"lastNotNull", "max"})
	}
	builder := timeseries.NewPanelBuilder().
		DrawStyle(common.GraphDrawStyleLine).
		LineInterpolation(common.LineInterpolationLinear).
		LineWidth(2).
		FillOpacity(0).
		ShowPoints(common.VisibilityModeNever).
		Min(0).
		ColorScheme(dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdPaletteClassic)).
		Legend(legend).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	if p.Limits != nil {
		builder.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeLine))
	}
	return builder
}

// bars compare a few present values with each other.
func (p Panel) bars() *bargauge.PanelBuilder {
	colours := byLimit()
	if p.Limits == nil {
		colours = dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdFixed).FixedColor(blue)
	}
	return bargauge.NewPanelBuilder().
		ReduceOptions(lastValue()).
		DisplayMode(common.BarGaugeDisplayModeBasic).
		Orientation(common.VizOrientationHorizontal).
		ShowUnfilled(true).
		Min(0).
		ColorScheme(colours)
}

// heatmapPanel is one that every version shows a tooltip of.
type heatmapPanel struct {
	*heatmap.PanelBuilder
}

// Build adds the field by which Grafana before 10.3 shows the tooltip; later ones go by its mode.
func (p heatmapPanel) Build() (dashboard.Panel, error) {
	panel, err := p.PanelBuilder.Build()
	if err != nil {
		return panel, err
	}
	type tooltip struct {
		heatmap.HeatmapTooltip
		Show bool `json:"show"`
	}
	type options struct {
		*heatmap.Options
		Tooltip tooltip `json:"tooltip"`
	}
	own := panel.Options.(*heatmap.Options)
	panel.Options = options{own, tooltip{own.Tooltip, true}}
	return panel, nil
}

// bucketsOverTime shows gauges as the rows of a heatmap, in the order of their names, which are numbers: the upper bounds of buckets in
// seconds. Each column is one moment.
func bucketsOverTime() heatmapPanel {
	return heatmapPanel{heatmap.NewPanelBuilder().
		Calculate(false).
		Color(heatmap.NewHeatmapColorOptionsBuilder().
			Mode(heatmap.HeatmapColorModeScheme).Scheme("Oranges").Fill("dark-orange").
			Scale(heatmap.HeatmapColorScaleExponential).Exponent(0.5).Steps(64)).
		RowsFrame(heatmap.NewRowsHeatmapOptionsBuilder().Layout(common.HeatmapCellLayoutLe)).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit("s").AxisPlacement(common.AxisPlacementLeft)).
		CellValues(heatmap.NewCellValuesBuilder().Unit("short")).
		CellGap(1).
		ShowValue(common.VisibilityModeNever).
		Tooltip(heatmap.NewHeatmapTooltipBuilder().Mode(common.TooltipDisplayModeSingle).YHistogram(true))}
}

// Column is one column of numbers in a table.
type Column struct {
	Name string
	Expr string
	// Colour draws the numbers as bars of that colour; "" leaves them bare.
	Colour Colour
	// Limit draws the numbers as bars that take the colour of the panel's limits; 1 fills the cell.
	Limit bool
	// Unit is the panel's where "".
	Unit string
	// Max fills the cell; 0 is the largest number of all columns, as Grafana has it.
	Max float64
	// Sparse says that the exporter leaves out what is zero: a row without a value reads 0.
	Sparse bool
	// Ascending puts the smallest first, where the table is sorted by this column.
	Ascending bool
}

// CellLink is where a click on a cell of a table leads.
type CellLink struct {
	Title, URL string
	// Tab opens a new one.
	Tab bool
}

// rows is a table with a row for each combination of the key labels. The first column has a value in every row, and the rows are sorted
// by it. In the columns' expressions @keys are the labels.
func (p Panel) rows() *table.PanelBuilder {
	builder := table.NewPanelBuilder().
		ShowHeader(true).
		Filterable(true).
		MinWidth(60).
		Align(common.FieldTextAlignmentAuto).
		Footer(noFooter()).
		SortBy([]cog.Builder[common.TableSortByFieldState]{common.NewTableSortByFieldStateBuilder().DisplayName(p.Columns[0].Name).Desc(!p.Columns[0].Ascending)})
	order := map[string]int{}
	for i, key := range p.Keys {
		order[key] = i
		// A label is a text: without its own unit Grafana formats one that looks like a number, such as a port, by the panel's.
		properties := []dashboard.DynamicConfigValue{{Id: "unit", Value: "string"}}
		if link, ok := p.Links[key]; ok {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "links", Value: []dashboard.DashboardLink{
				{Title: link.Title, Url: &link.URL, TargetBlank: link.Tab, Tags: []string{}},
			}})
		}
		if width, ok := keyWidth[key]; ok {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "custom.width", Value: width})
		}
		builder.OverrideByName(key, properties)
	}
	// With one query answered, Grafana calls its column "Value"; with more, "Value #A" and so on. The first is answered whenever
	// any is.
	rename := map[string]string{"Value": p.Columns[0].Name}
	for i, column := range p.Columns {
		field := "Value #" + string(rune('A'+i))
		rename[field] = column.Name
		order[field] = len(p.Keys) + i
		if properties := column.properties(); properties != nil {
			builder.OverrideByName(column.Name, properties)
		}
	}
	return builder.
		WithTransformation(dashboard.DataTransformerConfig{Id: "merge", Options: map[string]any{}}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
			"excludeByName": map[string]bool{"Time": true},
			"indexByName":   order,
			"renameByName":  rename,
		}})
}

// keyWidth are the widths, in pixels, of labels whose values are all about as long.
var keyWidth = map[string]int{"remote_ip": 125, "local_ip": 110, "direction": 95, "remote_port": 118, "local_port": 108, "alertname": 230, "state": 100, "severity": 90}

func noFooter() *common.TableFooterOptionsBuilder {
	return common.NewTableFooterOptionsBuilder().Show(false).Reducer([]string{})
}

// oneValueEach is a table with a row for each query: its legend and its value. Grafana's versions differ in how they call the second
// column, so there is no header.
func oneValueEach() *table.PanelBuilder {
	return table.NewPanelBuilder().
		ShowHeader(false).
		Footer(noFooter()).
		Align(common.FieldTextAlignmentAuto).
		OverrideByRegexp("/^(Last|lastNotNull)/", []dashboard.DynamicConfigValue{{Id: "custom.width", Value: 80}}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "reduce", Options: map[string]any{"reducers": []string{"lastNotNull"}}})
}

func (c Column) properties() []dashboard.DynamicConfigValue {
	var properties []dashboard.DynamicConfigValue
	if c.Sparse {
		properties = append(properties, dashboard.DynamicConfigValue{Id: "noValue", Value: "0"})
	}
	if c.Unit != "" {
		properties = append(properties, dashboard.DynamicConfigValue{Id: "unit", Value: c.Unit})
	}
	if c.Colour != "" || c.Limit {
		// The display mode is how Grafana before 9.4 says it; later ones translate it.
		properties = append(properties,
			dashboard.DynamicConfigValue{Id: "custom.displayMode", Value: common.TableCellDisplayModeBasicGauge},
			dashboard.DynamicConfigValue{Id: "min", Value: 0})
	}
	if c.Max != 0 {
		properties = append(properties, dashboard.DynamicConfigValue{Id: "max", Value: c.Max})
	}
	switch {
	case c.Limit:
		properties = append(properties,
			dashboard.DynamicConfigValue{Id: "max", Value: 1},
			dashboard.DynamicConfigValue{Id: "color", Value: map[string]string{"mode": "thresholds"}})
	case c.Colour != "":
		properties = append(properties,
			dashboard.DynamicConfigValue{Id: "color", Value: map[string]string{"mode": "fixed", "fixedColor": string(c.Colour)}})
	}
	return properties
}
