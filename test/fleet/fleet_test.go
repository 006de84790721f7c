// Package fleet holds the exporter to the number of series that docs/operations.md promises, and measures what a fleet of exporters
// costs a Prometheus: it serves the pages of many hosts on loopback, lets a real Prometheus scrape them with the rules of
// deploy/prometheus, and prints, as Markdown, what that took.
//
//	go -C test test ./fleet -run '^$' -bench . -benchtime 1x -timeout 1h -hosts 1000 -duration 5m
package fleet

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"timewait_exporter/test/program"
)

const checkout = "../.."

var (
	hosts          = flag.Int("hosts", 0, "number of hosts; 0 prints only what a page holds")
	warmup         = flag.Duration("warmup", 2*time.Minute, "time before the measurement begins")
	duration       = flag.Duration("duration", 5*time.Minute, "time that is measured, a minute or more")
	withRules      = flag.Bool("rules", true, "evaluate the rules of deploy/prometheus")
	prometheusPath = flag.String("prometheus", checkout+"/.tools/bin/prometheus", "Prometheus to run, as make e2e-tools builds it")
	exporterFlags  = flag.String("exporter-flags", "", "flags of the exporter, separated by spaces")
)

func TestMain(m *testing.M) { program.Main(m, checkout) }

// The exporter says what docs/operations.md says of the number of series, by its
// table and by its formula.
func TestSeries(t *testing.T) {
	text, err := os.ReadFile(checkout + "/docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, limits := range []struct{ remotes, destinations, listeners int }{{50, 20, 50}, {10, 5, 15}} {
		pages := scrapeMachines(t,
			fmt.Sprint("--collector.remotes=", limits.remotes),
			fmt.Sprint("--collector.destinations=", limits.destinations),
			fmt.Sprint("--collector.listeners=", limits.listeners))
		worst := pages[len(pages)-1].series()
		if want := 280 + 16*limits.remotes + 10*limits.destinations + 116*limits.listeners; worst != want {
			t.Errorf("%+v: %d series, not %d", limits, worst, want)
		}
		if limits.remotes != 50 { // the default, which the table is of
			continue
		}
		for _, p := range pages {
			if row := fmt.Sprintf("| %s | %d |", p.machine.name, p.series()); !strings.Contains(string(text), row) {
				t.Errorf("docs/operations.md lacks %q", row)
			}
		}
	}
}

// The pages are ones that Prometheus takes for a host's: no series twice, and counters never fall.
func TestPages(t *testing.T) {
	f := newFleet(machines()[typical].scrape(t, nil))
	for n := range uint64(20) {
		seen := map[string]bool{}
		for line := range strings.Lines(string(f.render(7, n))) {
			series := line[:strings.LastIndexByte(line, ' ')]
			if seen[series] && !strings.HasPrefix(line, "#") {
				t.Fatalf("scrape %d has %s twice", n, series)
			}
			seen[series] = true
		}
	}
	for _, l := range f.lines {
		random, last := rand.New(rand.NewPCG(7, 0)), 0.0
		for n := range uint64(20) {
			value := l.at(n, random)
			if l.kind == counter && value < last {
				t.Fatalf("%s fell from %v to %v", l.before, last, value)
			}
			last = value
		}
	}
}
