package dashboards

import (
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"iter"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var pictures = flag.String("pictures", "", "`folder` to draw the dashboards to, as SVG")

// TestPictures draws the host and destinations dashboards for the README: the same panels at the same places, from what Prometheus
// answers to their queries while a client fails to reuse its connections. It takes some minutes.
func TestPictures(t *testing.T) {
	if *pictures == "" {
		t.Skip("draws only with -pictures")
	}
	folder, err := filepath.Abs(*pictures)
	if err != nil {
		t.Fatal(err)
	}
	exporter, inside := inPrivateNetwork(t)
	if !inside {
		return
	}
	const ports = 2000
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", firstPort, firstPort+ports-1), 0); err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command(exporter, "--web.listen-address="+exporterAddress))
	waitFor(t, "http://"+exporterAddress+"/metrics")
	prometheus := startPrometheus(t, 9090, scrapeInterval, []map[string]any{{"targets": []string{exporterAddress}}})
	const healthy, broken = 60 * time.Second, 100 * time.Second
	tellStory(t, healthy, broken, ports)

	values := shown
	values["__rate_interval"] = "10s"
	// Each picture ends before the row that says least about the story.
	for uid, end := range map[string]string{
		"timewait-host":         "What does the kernel say?",
		"timewait-destinations": "Are these figures complete?",
	} {
		d := drawing{server: prometheus, values: values, span: healthy + broken, step: 2 * scrapeInterval}
		svg, err := d.draw(readBoards(t)[uid], end)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, uid+".svg"), []byte(svg), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tellStory is a service in good health, and then with a client that opens a connection for each request, one that never closes, and a
// listener that nobody serves.
func tellStory(t *testing.T, healthy, broken time.Duration, ports int) {
	l := &load{t: t}
	t.Cleanup(func() {
		for _, c := range l.held {
			c.Close()
		}
	})
	backend := l.serve("[::]:8080", func(c net.Conn) { l.untilPeerCloses(c) })
	closing := l.serve("127.0.0.1:8081", func(c net.Conn) { c.Close() })
	for n := range 60 {
		l.held = append(l.held, l.dial(fmt.Sprintf("127.0.0.%d", 21+n%6), fmt.Sprintf("127.0.0.%d:%d", 1+n%3, backend)))
	}
	for range 10 {
		l.held = append(l.held, l.dial("", fmt.Sprintf("[::1]:%d", backend)))
	}
	every(healthy, 250*time.Millisecond, func() { l.dial("", fmt.Sprintf("127.0.0.3:%d", backend)).Close() })
	l.overflow(l.listenStuck(8083))
	// 60 s of TIME_WAIT: so many closes a second hold nine tenths of the pool.
	pause := time.Minute / time.Duration(ports*9/10)
	n := 0
	every(broken, pause, func() {
		l.dial("", fmt.Sprintf("127.0.0.2:%d", backend)).Close()
		if n++; n%20 == 0 {
			l.held = append(l.held, l.dial("127.0.0.31", fmt.Sprintf("127.0.0.1:%d", closing)))
		}
	})
}

func every(total, pause time.Duration, do func()) {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for end := time.Now().Add(total); time.Now().Before(end); <-ticker.C {
		do()
	}
}

// Sizes and colours of the picture, after Grafana's dark theme.
const (
	column, line, gap = 60.0, 38.0, 8.0
	headline          = 46.0

	background, card, text, faint, grid = "#111217", "#181b1f", "#ccccdc", "#8e8e99", "#2c3235"
)

var classic = []string{"#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#D55E00", "#999999"}

// drawing turns a dashboard and the answers to its queries into SVG.
type drawing struct {
	server     *server
	values     selection
	span, step time.Duration
	out        strings.Builder
}

func (d *drawing) draw(b board, end string) (string, error) {
	bottom := 0
	b.Panels = b.Panels[:slices.IndexFunc(b.Panels, func(p panel) bool { return p.Title == end })]
	for _, p := range b.Panels {
		bottom = max(bottom, p.GridPos.Y+p.GridPos.H)
	}
	width, height := 24*column, headline+float64(bottom)*line
	fmt.Fprintf(&d.out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="Inter, Helvetica, Arial, sans-serif" font-size="12">`, width+gap, height+gap)
	d.rectangle(0, 0, width+gap, height+gap, background)
	d.label(gap+4, 28, 18, text, "start", b.Title)
	d.label(width, 28, 12, faint, "end",
		"Drawn from the dashboard's queries and a real Prometheus's answers, not a Grafana screenshot. A pool of 2,000 ports; alerts don't wait here.")
	for _, p := range b.Panels {
		g := p.GridPos
		f := frame{x: gap + float64(g.X)*column, y: headline + float64(g.Y)*line, w: float64(g.W)*column - gap, h: float64(g.H)*line - gap}
		if p.Type == "row" {
			d.label(f.x+4, f.y+20, 15, text, "start", "▾ "+p.Title)
			continue
		}
		if err := d.panel(p, f); err != nil {
			return "", fmt.Errorf("%s: %w", p.Title, err)
		}
	}
	d.out.WriteString("</svg>\n")
	return d.out.String(), nil
}

// frame is the place of something in the picture.
type frame struct{ x, y, w, h float64 }

// plot is one series with its name and colour.
type plot struct {
	name, colour string
	dash         string
	values       map[int]float64 // by step
	last         float64
}

func (d *drawing) panel(p panel, f frame) error {
	d.rectangle(f.x, f.y, f.w, f.h, card)
	d.label(f.x+10, f.y+20, 13, text, "start", p.Title)
	var answers []answer
	for _, target := range p.Targets {
		a, err := d.server.ask(d.values.in(target.Expr), target.Instant, d.span, d.step)
		if err != nil {
			return err
		}
		answers = append(answers, a)
	}
	inner := frame{f.x + 10, f.y + 30, f.w - 20, f.h - 38}
	if p.Type == "table" {
		d.table(p, inner, answers)
		return nil
	}
	plots := d.plots(p, answers)
	if len(plots) == 0 {
		d.label(f.x+f.w/2, f.y+f.h/2+10, 16, faint, "middle", "No data")
		return nil
	}
	switch p.Type {
	case "stat":
		d.stat(p, f, plots[0].last)
	case "bargauge":
		d.bars(p, inner, plots)
	case "heatmap":
		d.heatmap(inner, plots)
	default:
		d.lines(p, inner, plots)
	}
	return nil
}

// plots names and colours the series of a panel.
func (d *drawing) plots(p panel, answers []answer) []plot {
	var plots []plot
	now := float64(time.Now().Unix())
	for i, a := range answers {
		for _, s := range a.Result {
			name := legendLabel.ReplaceAllStringFunc(p.Targets[i].LegendFormat, func(label string) string {
				return s.Metric[legendLabel.FindStringSubmatch(label)[1]]
			})
			one := plot{name: name, colour: classic[len(plots)%len(classic)], last: s.last(), values: map[int]float64{}}
			if p.FieldConfig.Defaults.Color.FixedColor != "" {
				one.colour = p.FieldConfig.Defaults.Color.FixedColor
			}
			for _, o := range p.FieldConfig.Overrides {
				if !o.matches(name) {
					continue
				}
				for _, property := range o.Properties {
					switch property.ID {
					case "color":
						one.colour = property.Value.(map[string]any)["fixedColor"].(string)
					case "custom.lineStyle":
						one.dash = ` stroke-dasharray="6 5"`
					}
				}
			}
			for _, v := range s.Values {
				one.values[int(math.Round((v.time-now+d.span.Seconds())/d.step.Seconds()))] = v.value
			}
			plots = append(plots, one)
		}
	}
	return plots
}

func (o override) matches(name string) bool {
	if pattern, ok := strings.CutPrefix(o.Matcher.Options, "/"); ok {
		return regexp.MustCompile(strings.TrimSuffix(pattern, "/")).MatchString(name)
	}
	return o.Matcher.Options == name
}

func (d *drawing) stat(p panel, f frame, value float64) {
	shown, colour := p.format(value), p.colourOf(value)
	for _, m := range p.FieldConfig.Defaults.Mappings {
		if result, ok := m.of(value); ok {
			if result.Text != "" {
				shown = result.Text
			}
			if result.Color != "" {
				colour = result.Color
			}
		}
	}
	d.rectangle(f.x, f.y, f.w, f.h, colour)
	d.label(f.x+10, f.y+20, 13, "#ffffff", "start", p.Title)
	d.label(f.x+f.w/2, f.y+f.h/2+24, min(44, f.w/float64(len(shown))*1.4), "#ffffff", "middle", shown)
}

func (m mapping) of(value float64) (mapped, bool) {
	var result mapped
	if m.Type == "value" {
		raw, ok := m.Options[strconv.FormatFloat(value, 'f', -1, 64)]
		return result, ok && json.Unmarshal(raw, &result) == nil
	}
	least := math.Inf(-1)
	_ = json.Unmarshal(m.Options["from"], &least)
	return result, value >= least && json.Unmarshal(m.Options["result"], &result) == nil
}

// colourOf is that of the highest threshold that the value has reached.
func (p panel) colourOf(value float64) string {
	colour := classic[5]
	if thresholds := p.FieldConfig.Defaults.Thresholds; thresholds != nil {
		for _, step := range thresholds.Steps {
			if step.Value == nil || value >= *step.Value {
				colour = step.Color
			}
		}
	}
	return colour
}

func (p panel) format(value float64) string { return inUnit(p.FieldConfig.Defaults.Unit, value) }

func inUnit(unit string, value float64) string {
	short := func(v float64) string {
		switch {
		case math.Abs(v) >= 1e6:
			return strconv.FormatFloat(v/1e6, 'g', 3, 64) + " M"
		case math.Abs(v) >= 1e4:
			return strconv.FormatFloat(v/1e3, 'f', 0, 64) + " k"
		case v == math.Trunc(v):
			return strconv.FormatFloat(v, 'f', 0, 64)
		}
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	switch unit {
	case "percentunit":
		if value > 0 && value < 0.005 {
			return strconv.FormatFloat(value*100, 'f', 2, 64) + "%"
		}
		return strconv.FormatFloat(value*100, 'f', 0, 64) + "%"
	case "s":
		if value > 0 && value < 1 {
			return strconv.FormatFloat(value*1000, 'f', 0, 64) + " ms"
		}
		if value >= 120 {
			return strconv.FormatFloat(value/60, 'f', 1, 64) + " min"
		}
		return strconv.FormatFloat(value, 'g', 3, 64) + " s"
	case "bytes":
		return short(value) + "B"
	case "cps":
		return short(value) + " c/s"
	case "none":
		return strconv.FormatFloat(value, 'f', -1, 64)
	}
	return short(value)
}

func (d *drawing) bars(p panel, f frame, plots []plot) {
	most := 0.0
	for _, one := range plots {
		most = max(most, one.last)
	}
	if p.FieldConfig.Defaults.Max != nil {
		most = *p.FieldConfig.Defaults.Max
	}
	height := min(f.h/float64(len(plots)), 44)
	const names, values = 0.42, 0.16
	for i, one := range plots {
		y := f.y + float64(i)*height
		colour := one.colour
		if p.FieldConfig.Defaults.Color.Mode == "thresholds" {
			colour = p.colourOf(one.last)
		}
		d.label(f.x+f.w*names-8, y+height/2+4, 12, text, "end", one.name)
		d.rectangle(f.x+f.w*names, y+4, f.w*(1-names-values), height-8, grid)
		if most > 0 {
			d.rectangle(f.x+f.w*names, y+4, f.w*(1-names-values)*min(one.last/most, 1), height-8, colour)
		}
		d.label(f.x+f.w, y+height/2+4, 12, text, "end", p.format(one.last))
	}
}

// lines draws series over time, one on the other where the panel stacks them.
func (d *drawing) lines(p panel, f frame, plots []plot) {
	stacked := p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal"
	steps := int(d.span / d.step)
	plotArea := frame{f.x + 48, f.y + 4, f.w - 48, f.h - 24}
	if f.w > 500 {
		legend := min(330, f.w*0.42)
		plotArea.w -= legend + 12
		d.legend(p, frame{plotArea.x + plotArea.w + 12, f.y + 4, legend, f.h - 4}, plots)
	} else {
		legend := 15 * math.Ceil(float64(len(plots))/2)
		plotArea.h -= legend
		d.legendBelow(frame{f.x, f.y + f.h - legend, f.w, legend}, plots)
	}
	below := make([]float64, steps+1)
	most := 0.0
	for _, one := range plots {
		for step, v := range one.values {
			if step < 0 || step > steps {
				continue
			}
			if stacked {
				below[step] += v
				v = below[step]
			}
			most = max(most, v)
		}
	}
	var limits []float64
	colours := map[float64]string{}
	if t := p.FieldConfig.Defaults.Thresholds; t != nil && p.FieldConfig.Defaults.Custom.ThresholdsStyle.Mode == "line" {
		for _, step := range t.Steps[1:] {
			limits = append(limits, *step.Value)
			colours[*step.Value] = step.Color
		}
	}
	top := niceTop(most)
	if p.FieldConfig.Defaults.Max != nil {
		top = *p.FieldConfig.Defaults.Max
	}
	x := func(step int) float64 { return plotArea.x + plotArea.w*float64(step)/float64(steps) }
	y := func(v float64) float64 { return plotArea.y + plotArea.h*(1-v/top) }
	d.axes(p.FieldConfig.Defaults.Unit, plotArea, top)
	clear(below)
	for _, one := range plots {
		for run := range one.runs(steps) {
			var path, back strings.Builder
			pen := "M"
			for step := run[0]; step <= run[1]; step++ {
				v := below[step] + one.values[step]
				fmt.Fprintf(&path, "%s%.1f %.1f", pen, x(step), y(v))
				pen = "L"
			}
			if !stacked {
				fmt.Fprintf(&d.out, `<path d="%s" fill="none" stroke="%s" stroke-width="2"%s/>`, path.String(), one.colour, one.dash)
				continue
			}
			for step := run[1]; step >= run[0]; step-- {
				fmt.Fprintf(&back, "L%.1f %.1f", x(step), y(below[step]))
				below[step] += one.values[step]
			}
			fmt.Fprintf(&d.out, `<path d="%s%sZ" fill="%s" fill-opacity=".6" stroke="%s" stroke-width=".8"/>`, path.String(), back.String(), one.colour, one.colour)
		}
	}
	for _, limit := range limits {
		if limit <= top {
			fmt.Fprintf(&d.out, `<path d="M%.1f %.1fH%.1f" stroke="%s" stroke-width="1.5"/>`, plotArea.x, y(limit), plotArea.x+plotArea.w, colours[limit])
		}
	}
}

// runs are the first and last step of each stretch without a gap.
func (p plot) runs(steps int) iter.Seq[[2]int] {
	return func(yield func([2]int) bool) {
		for first := 0; first <= steps; first++ {
			last := first
			for ; last <= steps; last++ {
				if _, ok := p.values[last]; !ok {
					break
				}
			}
			if last > first && !yield([2]int{first, last - 1}) {
				return
			}
			first = last
		}
	}
}

func niceTop(most float64) float64 {
	if most <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	for _, factor := range []float64{1, 2, 3, 4, 5, 6, 8, 10} {
		if most <= factor*unit {
			return factor * unit
		}
	}
	return most
}

func (d *drawing) axes(unit string, f frame, top float64) {
	const rows = 4
	for i := range rows + 1 {
		y := f.y + f.h*float64(i)/rows
		fmt.Fprintf(&d.out, `<path d="M%.1f %.1fH%.1f" stroke="%s"/>`, f.x, y, f.x+f.w, grid)
		d.label(f.x-6, y+4, 11, faint, "end", inUnit(unit, top*float64(rows-i)/rows))
	}
	d.times(f)
}

func (d *drawing) times(f frame) {
	const every = 40 * time.Second
	for back := d.span.Truncate(every); back >= 0; back -= every {
		anchor := "middle"
		if back == 0 {
			anchor = "end"
		}
		at := "now"
		if back > 0 {
			at = "−" + strconv.Itoa(int(back.Seconds())) + " s"
		}
		d.label(f.x+f.w*(1-back.Seconds()/d.span.Seconds()), f.y+f.h+15, 11, faint, anchor, at)
	}
}

func (d *drawing) legend(p panel, f frame, plots []plot) {
	d.label(f.x+f.w-56, f.y+10, 11, faint, "end", "last")
	d.label(f.x+f.w, f.y+10, 11, faint, "end", "max")
	for i, one := range plots {
		y := f.y + 26 + float64(i)*17
		if y > f.y+f.h {
			break
		}
		most := math.Inf(-1)
		for _, v := range one.values {
			most = max(most, v)
		}
		d.rectangle(f.x, y-7, 12, 4, one.colour)
		d.label(f.x+18, y, 11.5, text, "start", fitting(one.name, f.w-140))
		d.label(f.x+f.w-56, y, 11.5, text, "end", p.format(one.last))
		d.label(f.x+f.w, y, 11.5, text, "end", p.format(most))
	}
}

func (d *drawing) legendBelow(f frame, plots []plot) {
	for i, one := range plots {
		x, y := f.x+f.w/2*float64(i%2), f.y+11+15*float64(i/2)
		d.rectangle(x, y-7, 12, 4, one.colour)
		d.label(x+18, y, 11.5, text, "start", fitting(one.name, f.w/2-20))
	}
}

// fitting cuts a text to a width in pixels.
func fitting(name string, width float64) string {
	runes := []rune(name)
	if most := int(width / 6.2); len(runes) > most && most > 1 {
		return string(runes[:most-1]) + "…"
	}
	return name
}

// heatmap draws each bucket's own share of every scrape: the series are cumulative.
func (d *drawing) heatmap(f frame, plots []plot) {
	bounds := map[float64]plot{}
	var sorted []float64
	for _, one := range plots {
		le, _ := strconv.ParseFloat(one.name, 64)
		bounds[le] = one
		sorted = append(sorted, le)
	}
	slices.Sort(sorted)
	area := frame{f.x + 48, f.y + 4, f.w - 48, f.h - 24}
	steps := int(d.span / d.step)
	most := 0.0
	own := func(i, step int) float64 {
		v := bounds[sorted[i]].values[step]
		if i > 0 {
			v -= bounds[sorted[i-1]].values[step]
		}
		return v
	}
	for i := range sorted {
		for step := range steps {
			most = max(most, own(i, step))
		}
	}
	height := area.h / float64(len(sorted))
	for i, le := range sorted {
		y := area.y + area.h - float64(i+1)*height
		name := strconv.FormatFloat(le, 'f', -1, 64) + " s"
		if math.IsInf(le, 1) {
			name = "more"
		}
		d.label(area.x-6, y+height/2+4, 11, faint, "end", name)
		for step := range steps {
			v := own(i, step)
			if v <= 0 {
				continue
			}
			x := area.x + area.w*float64(step)/float64(steps)
			fmt.Fprintf(&d.out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#E69F00" fill-opacity="%.2f"/>`,
				x, y+.5, area.w/float64(steps)-.5, height-1, 0.12+0.88*math.Sqrt(v/most))
		}
	}
	d.times(area)
}

// table joins the queries' answers by their labels, as the panel's transformations do.
func (d *drawing) table(p panel, f frame, answers []answer) {
	var keys, columns []string
	for _, t := range p.Transformations {
		for field := range t.Options.IndexByName {
			if strings.HasPrefix(field, "Value") {
				columns = append(columns, field)
			} else {
				keys = append(keys, field)
			}
		}
		slices.SortFunc(keys, func(a, b string) int { return t.Options.IndexByName[a] - t.Options.IndexByName[b] })
		for i, field := range slices.Sorted(slices.Values(columns)) {
			columns[i] = t.Options.RenameByName[field]
		}
	}
	type row struct {
		names  []string
		values []*float64
	}
	var rows []*row
	if keys == nil { // one value each
		keys, columns = []string{""}, []string{""}
		for i, a := range answers {
			for _, s := range a.Result {
				rows = append(rows, &row{[]string{p.Targets[i].LegendFormat}, []*float64{new(s.last())}})
			}
		}
	} else {
		byName := map[string]*row{}
		for i, a := range answers {
			for _, s := range a.Result {
				var names []string
				for _, key := range keys {
					names = append(names, s.Metric[key])
				}
				id := strings.Join(names, "\x00")
				if byName[id] == nil {
					byName[id] = &row{names, make([]*float64, len(columns))}
					rows = append(rows, byName[id])
				}
				byName[id].values[i] = new(s.last())
			}
		}
		slices.SortStableFunc(rows, func(a, b *row) int { return int(math.Copysign(1, *b.values[0]-*a.values[0])) })
	}
	width := f.w / float64(len(keys)+len(columns))
	names := width
	if len(columns) == 1 {
		names = f.w * .82 / float64(len(keys))
		width = f.w * .18
	}
	left := func(i int) float64 {
		if i < len(keys) {
			return f.x + float64(i)*names
		}
		return f.x + float64(len(keys))*names + float64(i-len(keys))*width
	}
	for i, name := range append(slices.Clone(keys), columns...) {
		d.label(left(i), f.y+12, 11.5, "#6e9fff", "start", name)
	}
	for r, row := range rows {
		y := f.y + 34 + float64(r)*22
		if y > f.y+f.h {
			break
		}
		for i, name := range row.names {
			d.label(left(i), y, 12, text, "start", fitting(name, names))
		}
		for i, value := range row.values {
			d.cell(p, frame{left(len(keys) + i), y - 14, width - 8, 20}, columns[i], value)
		}
	}
}

func (d *drawing) cell(p panel, f frame, column string, value *float64) {
	unit, colour, most, bar := p.FieldConfig.Defaults.Unit, "", 0.0, false
	empty := ""
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.Options != column {
			continue
		}
		for _, property := range o.Properties {
			switch property.ID {
			case "unit":
				unit = property.Value.(string)
			case "noValue":
				empty = property.Value.(string)
			case "max":
				most = property.Value.(float64)
			case "custom.displayMode":
				bar = true
			case "color":
				colour, _ = property.Value.(map[string]any)["fixedColor"].(string)
			}
		}
	}
	if value == nil {
		d.label(f.x+f.w, f.y+14, 12, text, "end", empty)
		return
	}
	if colour == "" {
		colour = p.colourOf(*value)
	}
	shown := inUnit(unit, *value)
	if bar {
		if most == 0 {
			most = d.largest(p, column)
		}
		d.rectangle(f.x, f.y+2, f.w-48, f.h-6, grid)
		d.rectangle(f.x, f.y+2, (f.w-48)*min(*value/max(most, 1e-9), 1), f.h-6, colour)
	}
	d.label(f.x+f.w, f.y+14, 12, text, "end", shown)
}

// largest is the value that fills a cell of a column without a limit.
func (d *drawing) largest(p panel, column string) float64 {
	most := 0.0
	for i, target := range p.Targets {
		field := "Value #" + string(rune('A'+i))
		for _, t := range p.Transformations {
			if t.Options.RenameByName[field] != column {
				continue
			}
			a, err := d.server.ask(d.values.in(target.Expr), true, 0, 0)
			if err != nil {
				return 0
			}
			for _, s := range a.Result {
				most = max(most, s.last())
			}
		}
	}
	return most
}

func (d *drawing) rectangle(x, y, w, h float64, colour string) {
	fmt.Fprintf(&d.out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2" fill="%s"/>`, x, y, w, h, colour)
}

func (d *drawing) label(x, y, size float64, colour, anchor, content string) {
	fmt.Fprintf(&d.out, `<text x="%.1f" y="%.1f" font-size="%.3g" fill="%s" text-anchor="%s">%s</text>`, x, y, size, colour, anchor, html.EscapeString(content))
}
