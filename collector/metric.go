package collector

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/kernelstat"
)

// Metric describes one metric of the exporter.
type Metric struct {
	Name   string
	Type   string // gauge or counter
	Labels []string
	// Source is where in the kernel the values come from.
	Source string
	Help   string

	desc    *prometheus.Desc
	sorted  []int   // the places of Labels in order of their names
	numbers numbers // of the kernel, exported as they are
	unit    float64 // of these
	ofEach  bool    // they are read of every network namespace
}

func newMetric(name, kind, source, help string, labels ...string) *Metric {
	sorted := make([]int, len(labels))
	for i := range sorted {
		sorted[i] = i
	}
	slices.SortFunc(sorted, func(a, b int) int { return cmp.Compare(labels[a], labels[b]) })
	return &Metric{Name: name, Type: kind, Labels: labels, Source: source, Help: help,
		desc: prometheus.NewDesc(name, help, labels, nil), sorted: sorted}
}

// numbers are those of the kernel that are the samples of a metric, by the value of its
// label; by "" if it has none.
type numbers map[string]kernelstat.Number

func kernelGauge(name string, number kernelstat.Number, help string) *Metric {
	return newKernelMetric(name, "gauge", "", numbers{"": number}, help)
}

func kernelCounter(name string, number kernelstat.Number, help string) *Metric {
	return newKernelMetric(name, "counter", "", numbers{"": number}, help)
}

// newKernelMetric returns the metric of numbers that are told apart by a label, all of a
// namespace or all of the node.
func newKernelMetric(name, kind, label string, of numbers, help string) *Metric {
	var labels, sources []string
	for _, n := range slices.SortedFunc(maps.Values(of), func(a, b kernelstat.Number) int { return cmp.Compare(a.String(), b.String()) }) {
		if !n.OfNode() {
			labels = []string{"netns"}
		}
		source := n.String()
		if len(sources) > 0 { // of the same file
			source = source[strings.LastIndex(source, " ")+1:]
		}
		sources = append(sources, source)
	}
	if label != "" {
		labels = append(labels, label)
	}
	m := newMetric(name, kind, strings.Join(slices.Compact(sources), ", "), help, labels...)
	m.numbers, m.unit = of, 1
	return m
}

// inPages is of a metric in bytes that the kernel counts in pages.
func (m *Metric) inPages() *Metric {
	m.unit = float64(os.Getpagesize())
	return m
}

// everywhere is of a metric that each network namespace has.
func (m *Metric) everywhere() *Metric {
	m.ofEach = true
	return m
}
