package main

import (
	"math"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// lastValue reduces an instant query's answer, one sample a series, to that sample.
func lastValue() *common.ReduceDataOptionsBuilder {
	return common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}).Fields("").Values(false)
}

// bigNumber is a value that can be read from across the room: the whole panel takes the colour of its limit.
func bigNumber() *stat.PanelBuilder {
	return stat.NewPanelBuilder().
		ReduceOptions(lastValue()).
		ColorMode(common.BigValueColorModeBackground).
		GraphMode(common.BigValueGraphModeNone).
		JustifyMode(common.BigValueJustifyModeCenter).
		TextMode(common.BigValueTextModeValue).
		Orientation(common.VizOrientationAuto).
		Mappings(mapped()).
		ColorScheme(byLimit())
}

// mapped adds values that have a text or colour of their own to the one which nobody knows: that is grey, where Grafana gives it the
// colour of the lowest limit, here the green of all being well.
func mapped(values ...dashboard.ValueMapping) []dashboard.ValueMapping {
	absent := dashboard.ValueMapping{SpecialValueMap: &dashboard.SpecialValueMap{
		Type: dashboard.MappingTypeSpecialValue,
		Options: dashboard.DashboardSpecialValueMapOptions{
			Match: dashboard.SpecialValueMatchNullAndNan, Result: dashboard.ValueMappingResult{Text: new("No data"), Color: new(grey)},
		},
	}}
	return append([]dashboard.ValueMapping{absent}, values...)
}

// byLimit colours a value by the limits that it is past.
func byLimit() *dashboard.FieldColorBuilder {
	return dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdThresholds)
}

// plainNumber is a big number that is a fact, neither good nor bad.
func plainNumber() *stat.PanelBuilder {
	return bigNumber().
		ColorMode(common.BigValueColorModeNone).
		Thresholds(always(blue))
}

// always is one colour for all values that no mapping gives another.
func always(colour string) *dashboard.ThresholdsConfigBuilder {
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps([]dashboard.Threshold{{Color: colour}})
}

// noneIsGood is a number of things of which there should be none.
func noneIsGood(otherwise string) *stat.PanelBuilder {
	return bigNumber().
		Thresholds(always(otherwise)).
		Mappings(exactly(map[string]dashboard.ValueMappingResult{"0": {Text: new("0"), Color: new(green)}}))
}

// lines are series over time. Gaps stay gaps: a scrape that failed has no value.
func lines() *timeseries.PanelBuilder {
	return timeseries.NewPanelBuilder().
		DrawStyle(common.GraphDrawStyleLine).
		LineInterpolation(common.LineInterpolationLinear).
		LineWidth(2).
		FillOpacity(0).
		ShowPoints(common.VisibilityModeNever).
		Min(0).
		ColorScheme(dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdPaletteClassic)).
		Legend(common.NewVizLegendOptionsBuilder().
			ShowLegend(true).
			DisplayMode(common.LegendDisplayModeTable).
			Placement(common.LegendPlacementRight).
			Calcs([]string{"lastNotNull", "max"})).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
}

// linesWithLimits draws the alerts' limits into the picture.
func linesWithLimits() *timeseries.PanelBuilder {
	return lines().ThresholdsStyle(thresholdLines())
}

func thresholdLines() *common.GraphThresholdsStyleConfigBuilder {
	return common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeLine)
}

// areas are series over time that add up to a whole.
func areas() *timeseries.PanelBuilder {
	return lines().
		LineWidth(0). // else the edge of a state of which there are none lies on top of the others
		FillOpacity(60).
		Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal).Group("A"))
}

// wideNames puts the legend below the picture, the largest first: names that are long leave no room for the picture beside them.
func wideNames(builder *timeseries.PanelBuilder) *timeseries.PanelBuilder {
	return builder.Legend(common.NewVizLegendOptionsBuilder().
		ShowLegend(true).
		DisplayMode(common.LegendDisplayModeTable).
		Placement(common.LegendPlacementBottom).
		Calcs([]string{"lastNotNull", "max"}).
		SortBy("Last *").SortDesc(true))
}

// narrow is for a panel that has no room for a legend's numbers: the names are below the picture.
func narrow(builder *timeseries.PanelBuilder) *timeseries.PanelBuilder {
	return builder.Legend(common.NewVizLegendOptionsBuilder().
		ShowLegend(true).
		DisplayMode(common.LegendDisplayModeList).
		Placement(common.LegendPlacementBottom))
}

// dashed is how the less urgent of two lines in the same colour looks.
var dashed = []dashboard.DynamicConfigValue{{Id: "custom.lineStyle", Value: map[string]any{"fill": "dash", "dash": []int{10, 10}}}}

// bars compare a few present values with each other.
func bars() *bargauge.PanelBuilder {
	return bargauge.NewPanelBuilder().
		ReduceOptions(lastValue()).
		DisplayMode(common.BarGaugeDisplayModeBasic).
		Orientation(common.VizOrientationHorizontal).
		ShowUnfilled(true).
		Min(0).
		ColorScheme(dashboard.NewFieldColorBuilder().Mode(dashboard.FieldColorModeIdFixed).FixedColor(blue))
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

// bucketsOverTime shows gauges as the rows of a heatmap, in the order of their names, which are numbers: the upper bounds of buckets. Each
// column is one moment.
func bucketsOverTime(unit string) heatmapPanel {
	return heatmapPanel{heatmap.NewPanelBuilder().
		Calculate(false).
		Color(heatmap.NewHeatmapColorOptionsBuilder().
			Mode(heatmap.HeatmapColorModeScheme).Scheme("Oranges").Fill("dark-orange").
			Scale(heatmap.HeatmapColorScaleExponential).Exponent(0.5).Steps(64)).
		RowsFrame(heatmap.NewRowsHeatmapOptionsBuilder().Layout(common.HeatmapCellLayoutLe)).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit(unit).AxisPlacement(common.AxisPlacementLeft)).
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
	Colour string
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

// rowsOf is a table with a row for each combination of the key labels, and its queries. The first column has a value in every row, and
// the rows are sorted by it.
func rowsOf(keys []string, links map[string]dashboard.DashboardLink, columns ...Column) (*table.PanelBuilder, []Query) {
	builder := table.NewPanelBuilder().
		ShowHeader(true).
		Filterable(true).
		MinWidth(60).
		Align(common.FieldTextAlignmentAuto).
		Footer(noFooter()).
		SortBy([]cog.Builder[common.TableSortByFieldState]{common.NewTableSortByFieldStateBuilder().DisplayName(columns[0].Name).Desc(!columns[0].Ascending)})
	order := map[string]int{}
	for i, key := range keys {
		order[key] = i
		// A label is a text: without its own unit Grafana formats one that looks like a number, such as a port, by the panel's.
		properties := []dashboard.DynamicConfigValue{{Id: "unit", Value: "string"}}
		if link, ok := links[key]; ok {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "links", Value: []dashboard.DashboardLink{link}})
		}
		if width, ok := keyWidth[key]; ok {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "custom.width", Value: width})
		}
		builder.OverrideByName(key, properties)
	}
	// With one query answered, Grafana calls its column "Value"; with more, "Value #A" and so on. The first is answered whenever
	// any is.
	rename := map[string]string{"Value": columns[0].Name}
	var queries []Query
	for i, column := range columns {
		field := "Value #" + string(rune('A'+i))
		rename[field] = column.Name
		order[field] = len(keys) + i
		queries = append(queries, Query{Expr: column.Expr, Instant: true, Format: prometheus.PromQueryFormatTable})
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
		}}), queries
}

// keyWidth are the widths, in pixels, of labels whose values are all about as long.
var keyWidth = map[string]int{"remote_ip": 125, "local_ip": 110, "direction": 95, "remote_port": 118, "local_port": 108, "alertname": 230, "netns": 75, "state": 100, "severity": 90}

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
			dashboard.DynamicConfigValue{Id: "color", Value: map[string]string{"mode": "fixed", "fixedColor": c.Colour}})
	}
	return properties
}

// exactly maps single values to texts and colours.
func exactly(results map[string]dashboard.ValueMappingResult) []dashboard.ValueMapping {
	return mapped(dashboard.ValueMapping{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: results}})
}

// from maps a value and all above it.
func from(least float64, result dashboard.ValueMappingResult) []dashboard.ValueMapping {
	return mapped(dashboard.ValueMapping{RangeMap: &dashboard.RangeMap{
		Type:    dashboard.MappingTypeRangeToText,
		Options: dashboard.DashboardRangeMapOptions{From: &least, To: new(math.MaxFloat64), Result: result},
	}})
}

func colour(hex string) []dashboard.DynamicConfigValue {
	return []dashboard.DynamicConfigValue{{Id: "color", Value: map[string]string{"mode": "fixed", "fixedColor": hex}}}
}

// overridable is any of the SDK's panel builders.
type overridable[B any] interface {
	OverrideByRegexp(pattern string, properties []dashboard.DynamicConfigValue) B
}

// withStateColours gives each series whose name ends in a state that state's colour.
func withStateColours[B overridable[B]](builder B) B {
	for _, state := range stateColour {
		builder.OverrideByRegexp("/(^|.* )"+state.state+"$/", colour(state.colour))
	}
	return builder
}

// named is a series by its legend, and its colour.
type named struct{ series, colour string }

// withColours gives each named series its colour, in the order of the legend.
func withColours(builder *timeseries.PanelBuilder, series ...named) *timeseries.PanelBuilder {
	for _, s := range series {
		builder.OverrideByName(s.series, colour(s.colour))
	}
	return builder
}
