package dashboards

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"timewait_exporter/test/e2e/rules"
)

func readAlerts(t *testing.T) map[string]rules.Rule {
	t.Helper()
	alerts, err := rules.ReadAlerts(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	return alerts
}

// TestImport checks what lets the JSON import into Grafana 9.1 and every later one.
func TestImport(t *testing.T) {
	uids := []string{"timewait-destinations", "timewait-fleet", "timewait-host", "timewait-namespaces"} // links and alerts name them
	boards := readBoards(t)
	if got := slices.Sorted(maps.Keys(boards)); !slices.Equal(got, uids) {
		t.Errorf("uids %q, want %q", got, uids)
	}
	core := []string{"row", "stat", "timeseries", "table", "heatmap", "bargauge"}
	for uid, b := range boards {
		if b.Title == "" || b.Description == "" {
			t.Errorf("%s: no title or no description", uid)
		}
		if b.SchemaVersion != 36 && b.SchemaVersion != 37 {
			t.Errorf("%s: schema version %d is not one of Grafana 9.1", uid, b.SchemaVersion)
		}
		if first := b.Templating.List[0]; first.Name != "datasource" || first.Type != "datasource" || first.Query != "prometheus" {
			t.Errorf("%s: the first variable is %+v, want a Prometheus data source", uid, first)
		}
		ids := map[int]bool{}
		for _, p := range b.Panels {
			if ids[p.ID] || p.ID == 0 {
				t.Errorf("%s: %q: id %d is taken or 0", uid, p.Title, p.ID)
			}
			ids[p.ID] = true
			if !slices.Contains(core, p.Type) {
				t.Errorf("%s: %q is of type %q", uid, p.Title, p.Type)
			}
			if p.Type != "row" && p.PluginVersion != "9.1.0" {
				t.Errorf("%s: %q: plugin version %q would be migrated as another", uid, p.Title, p.PluginVersion)
			}
		}
		if panels := slices.DeleteFunc(slices.Clone(b.Panels), func(p panel) bool { return p.Type == "row" }); len(panels) > 25 {
			t.Errorf("%s: %d panels, more than 25", uid, len(panels))
		}
		visit(readJSON(t, uid), uid, func(path string, value any) {
			object, _ := value.(map[string]any)
			asks := object["targets"] != nil || object["expr"] != nil || object["definition"] != nil
			if source := object["datasource"]; asks && !reflect.DeepEqual(source, map[string]any{"type": "prometheus", "uid": "${datasource}"}) {
				t.Errorf("%s has data source %v", path, source)
			}
			if object["__inputs"] != nil || object["libraryPanel"] != nil {
				t.Errorf("%s needs a hand to import", path)
			}
			if hidden, ok := object["panels"].([]any); ok && path != uid && len(hidden) > 0 {
				t.Errorf("%s hides panels from the tests", path)
			}
		})
	}
}

// TestWords checks that every panel says what it is, and how to read it.
func TestWords(t *testing.T) {
	for _, b := range readBoards(t) {
		titles := map[string]bool{}
		for _, p := range b.Panels {
			if titles[p.Title] || p.Title == "" {
				t.Errorf("%s: title %q is empty or taken", b.UID, p.Title)
			}
			titles[p.Title] = true
			if p.Type == "row" {
				continue
			}
			if len(strings.Fields(p.Description)) < 10 {
				t.Errorf("%s: %q: the description %q does not say how to read it", b.UID, p.Title, p.Description)
			}
			if strings.Contains(p.Description, "\n\nAlerts: ") && !regexp.MustCompile(`(?i)\bit helped when `).MatchString(p.Description) {
				t.Errorf("%s: %q does not say what to do and how to see that it helped", b.UID, p.Title)
			}
			if p.FieldConfig.Defaults.Unit == "" {
				t.Errorf("%s: %q has no unit", b.UID, p.Title)
			}
			if len(p.Targets) == 0 {
				t.Errorf("%s: %q asks nothing", b.UID, p.Title)
			}
		}
	}
}

// TestOneWordForAPool: a pool of ports that is used up is full. Elsewhere it would be empty, which reads like the opposite.
func TestOneWordForAPool(t *testing.T) {
	other := regexp.MustCompile(`(?i)\bpools? [^.;]*\bempt(y|ies)\b|\bempty in\b|\bnone (is )?left\b`)
	for _, text := range []string{"Until a pool is empty", "empty in", "none is left in 3m"} {
		if !other.MatchString(text) {
			t.Errorf("accepted: %q", text)
		}
	}
	check := func(where, text string) {
		if found := other.FindString(text); found != "" {
			t.Errorf("%s says %q of a pool that is full", where, found)
		}
	}
	for _, b := range readBoards(t) {
		for _, p := range b.Panels {
			where := b.UID + " / " + p.Title
			check(where, p.Title)
			check(where, p.Description)
			for _, transformation := range p.Transformations {
				for _, column := range transformation.Options.RenameByName {
					check(where, column)
				}
			}
		}
	}
	for name, alert := range readAlerts(t) {
		check(name, alert.Annotations["summary"])
		check(name, alert.Annotations["description"])
	}
	runbooks, err := filepath.Glob(root + "/docs/runbooks/*.md")
	if err != nil || len(runbooks) < 20 {
		t.Fatalf("%d runbooks: %v", len(runbooks), err)
	}
	for _, path := range runbooks {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		check(path, string(text))
	}
}

// TestLayout checks that the panels fill the grid: each cell of each line has exactly one.
func TestLayout(t *testing.T) {
	const width = 24
	for _, b := range readBoards(t) {
		cells := map[[2]int]string{}
		bottom := 0
		for _, p := range b.Panels {
			g := p.GridPos
			if g.W < 1 || g.H < 1 || g.X < 0 || g.Y < 0 || g.X+g.W > width {
				t.Errorf("%s: %q at %+v is off the grid", b.UID, p.Title, g)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other, taken := cells[[2]int{x, y}]; taken {
						t.Fatalf("%s: %q and %q overlap at column %d, line %d", b.UID, other, p.Title, x, y)
					}
					cells[[2]int{x, y}] = p.Title
				}
			}
			bottom = max(bottom, g.Y+g.H)
		}
		if len(cells) != width*bottom {
			t.Errorf("%s: %d of %d cells are empty", b.UID, width*bottom-len(cells), width*bottom)
		}
	}
}

// TestNamesExist checks that queries name only what the exporter, the recording rules or Prometheus itself have.
func TestNamesExist(t *testing.T) {
	recording, err := rules.Read(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	known := rules.KnownNames(recording)
	some := selection{"job": "j", "instance": "i", "netns": "n", "remote_ip": "r", "remote_port": "p", "__rate_interval": "1m"}
	checked := 0
	check := func(where any, expr string) {
		checked++
		for _, err := range known.Check(some.in(expr)) {
			t.Errorf("%s: %v", where, err)
		}
	}
	for _, b := range readBoards(t) {
		for _, q := range b.queries() {
			check(q, q.expr)
		}
		for _, v := range b.Templating.List[1:] {
			expr, err := v.expr()
			if err != nil {
				t.Errorf("%s: %v", b.UID, err)
			}
			check(b.UID+" / variable / "+v.Name, expr)
		}
	}
	if checked < 90 {
		t.Errorf("only %d queries were checked", checked)
	}
}

// TestAlerts holds each threshold of a panel to the alerts that the panel says it is about, and each such alert to the panel; whoever is
// woken finds what woke them.
func TestAlerts(t *testing.T) {
	alerts := readAlerts(t)
	shown := map[string]bool{}
	thresholds := 0
	for _, b := range readBoards(t) {
		for _, p := range b.Panels {
			_, notes, _ := strings.Cut(p.Description, "\n\nAlerts: ")
			var want []float64
			for note := range strings.SplitSeq(strings.TrimSuffix(notes, "."), ", ") {
				if note == "" {
					continue
				}
				name, where, _ := strings.Cut(note, " ")
				shown[name] = true
				alert, ok := alerts[name]
				if !ok {
					t.Errorf("%s: %q is about %q, which is no alert", b.UID, p.Title, name)
					continue
				}
				var limit float64
				var err error
				switch {
				case strings.HasPrefix(where, "past "):
					limit, err = alert.Limit()
				case strings.HasPrefix(where, "below "):
					limit, err = alert.Horizon()
				}
				if err != nil {
					t.Errorf("%s: %q: %v", b.UID, p.Title, err)
				}
				if where != "" {
					want = append(want, limit)
				}
				if runbook := "http://${instance}/runbooks/" + name; b.UID != "timewait-fleet" &&
					!slices.ContainsFunc(p.Links, func(l link) bool { return l.URL == runbook }) {
					t.Errorf("%s: %q has no link to %s", b.UID, p.Title, runbook)
				}
			}
			var got []float64
			if p.FieldConfig.Defaults.Thresholds != nil {
				for _, step := range p.FieldConfig.Defaults.Thresholds.Steps[1:] {
					got = append(got, *step.Value)
				}
			}
			slices.Sort(want)
			want = slices.Compact(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q has thresholds %v, its alerts %v", b.UID, p.Title, got, want)
			}
			thresholds += len(got)
		}
	}
	if thresholds < 15 {
		t.Errorf("only %d thresholds were checked", thresholds)
	}
	for name := range alerts {
		if !shown[name] {
			t.Errorf("no panel is about %s", name)
		}
	}
}

// TestLinks checks that links lead to dashboards that there are, with the data source: from one to the others, from rows of tables to
// machines, and from the alerts, which know no data source.
func TestLinks(t *testing.T) {
	boards := readBoards(t)
	toBoard := regexp.MustCompile(`^/d/([\w-]+)`)
	for _, b := range boards {
		links := slices.Clone(b.Links)
		for _, p := range b.Panels {
			own := p.dataLinks()
			links = append(links, own...)
			toMachine := func(l link) bool {
				return toBoard.MatchString(l.URL) && strings.Contains(l.URL, "&var-job=${__data.fields.job}&var-instance=${__data.fields.instance}")
			}
			if slices.Contains(p.labelColumns(), "instance") && !slices.ContainsFunc(own, toMachine) {
				t.Errorf("%s: %q names machines and links to none", b.UID, p.Title)
			}
			toMachines := func(l link) bool {
				return strings.Contains(l.URL, "&var-remote_ip=${__data.fields.remote_ip}&var-remote_port=${__data.fields.remote_port}")
			}
			if b.UID == "timewait-fleet" && slices.Contains(p.labelColumns(), "remote_port") && !slices.ContainsFunc(own, toMachines) {
				t.Errorf("%s: %q names destinations and does not lead to their machines", b.UID, p.Title)
			}
		}
		var targets []string
		for _, l := range links {
			match := toBoard.FindStringSubmatch(l.URL)
			if match == nil {
				continue // a runbook
			}
			if _, ok := boards[match[1]]; !ok {
				t.Errorf("%s: link to %q", b.UID, l.URL)
			}
			if !l.IncludeVars && !strings.Contains(l.URL, "?var-datasource=${datasource}") {
				t.Errorf("%s: the link to %q loses the data source", b.UID, l.URL)
			}
			targets = append(targets, match[1])
		}
		for other := range boards {
			if other != b.UID && !slices.Contains(targets, other) {
				t.Errorf("%s has no link to %s", b.UID, other)
			}
		}
	}
	for name, alert := range readAlerts(t) {
		match := toBoard.FindStringSubmatch(alert.Annotations["dashboard"])
		if match == nil {
			t.Errorf("alert %s leads to no dashboard", name)
		} else if _, ok := boards[match[1]]; !ok {
			t.Errorf("alert %s leads to dashboard %q", name, match[1])
		} else if match[1] != "timewait-destinations" && strings.Contains(alert.Annotations["description"], "tcp_listen") {
			t.Errorf("alert %s leads to %s, which does not show listeners one by one", name, match[1])
		}
	}
}

// TestAnnotations checks that the marks of alerts that fire have the colour of their severity, vermilion or orange, of which each has one.
func TestAnnotations(t *testing.T) {
	marks := map[string]string{"critical": "#D55E00", "warning": "#E69F00"}
	for name, alert := range readAlerts(t) {
		if severity := alert.Labels["severity"]; marks[severity] == "" {
			t.Errorf("%s has the severity %q", name, severity)
		}
	}
	for _, b := range readBoards(t) {
		colours := map[string]string{}
		for _, a := range b.Annotations.List {
			_, severity, _ := strings.Cut(a.Expr, `{alertstate="firing",severity="`)
			severity, _, _ = strings.Cut(severity, `",`)
			colours[severity] = a.IconColor
		}
		if !maps.Equal(colours, marks) || len(b.Annotations.List) != len(marks) {
			t.Errorf("%s: the marks of alerts are %v, want %v", b.UID, colours, marks)
		}
	}
}

// TestHonest checks that no query makes up a value where there is none, and that rates fit the scrape interval of the data source.
func TestHonest(t *testing.T) {
	window := regexp.MustCompile(`\b(?:i?rate|increase)\([^\[]*\[([^\]]+)\]`)
	rates := 0
	for _, b := range readBoards(t) {
		for _, q := range b.queries() {
			if strings.Contains(q.expr, "vector(") {
				t.Errorf("%s: %q: a made-up value hides an exporter that is gone", q, q.expr)
			}
			for _, match := range window.FindAllStringSubmatch(q.expr, -1) {
				rates++
				if match[1] != "$__rate_interval" {
					t.Errorf("%s: %q: a rate over %s", q, q.expr, match[1])
				}
			}
		}
		for _, p := range b.Panels {
			for _, target := range p.Targets {
				overTime := p.Type == "timeseries" || p.Type == "heatmap"
				if target.Instant == overTime || target.Range != overTime {
					t.Errorf("%s: %q: query %s is instant=%v range=%v: a last value from the past would pass for the present one",
						b.UID, p.Title, target.RefID, target.Instant, target.Range)
				}
			}
			if p.FieldConfig.Defaults.NoValue != nil {
				t.Errorf("%s: %q shows %q where there is no data", b.UID, p.Title, *p.FieldConfig.Defaults.NoValue)
			}
		}
	}
	if rates < 15 {
		t.Errorf("only %d rates were checked", rates)
	}
}

// TestColours checks that a state has one colour wherever it is drawn, and no other state has it.
func TestColours(t *testing.T) {
	state := regexp.MustCompile(`^(?:/\(\^\|\.\* \))?(established|syn_sent|syn_recv|fin_wait1|fin_wait2|time_wait|close_wait|close|last_ack|closing)(?:\$/)?$`)
	colours, owner := map[string]string{}, map[string]string{}
	for _, b := range readBoards(t) {
		for _, p := range b.Panels {
			for _, override := range p.FieldConfig.Overrides {
				match := state.FindStringSubmatch(override.Matcher.Options)
				if match == nil {
					continue
				}
				for _, property := range override.Properties {
					if property.ID != "color" {
						continue
					}
					var fixed struct {
						FixedColor string `json:"fixedColor"`
					}
					if err := json.Unmarshal(property.Value, &fixed); err != nil {
						t.Fatal(err)
					}
					colour := fixed.FixedColor
					if known, ok := colours[match[1]]; ok && known != colour {
						t.Errorf("%s: %q: %s is %s, elsewhere %s", b.UID, p.Title, match[1], colour, known)
					}
					if state, ok := owner[colour]; ok && state != match[1] {
						t.Errorf("%s: %q: %s and %s are both %s", b.UID, p.Title, match[1], state, colour)
					}
					colours[match[1]], owner[colour] = colour, match[1]
				}
			}
		}
	}
	if len(colours) != 10 {
		t.Errorf("colours of %d states, want 10: %v", len(colours), colours)
	}
}
