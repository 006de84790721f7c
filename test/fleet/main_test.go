package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// The exporter says what docs/operations.md says of the number of series, by its
// table and by its formula.
func TestSeries(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, limits := range []struct{ remotes, destinations, listeners int }{{50, 20, 50}, {10, 5, 15}} {
		pages, err := scrapeMachines(t.Context(), options{checkout: "../..", exporterFlags: []string{
			fmt.Sprint("--collector.remotes=", limits.remotes),
			fmt.Sprint("--collector.destinations=", limits.destinations),
			fmt.Sprint("--collector.listeners=", limits.listeners),
		}}, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		worst := pages[len(pages)-1].series()
		if want := 248 + 16*limits.remotes + 9*limits.destinations + 115*limits.listeners; worst != want {
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
	pages, err := scrapeMachines(t.Context(), options{checkout: "../.."}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(pages[typical])
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
