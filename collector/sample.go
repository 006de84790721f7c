package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// sample is a prometheus.Metric whose labels are those of other samples too. A page of a node
// with a thousand network namespaces has so many that those of client_golang, with
// labels of their own, take three times the memory.
type sample struct {
	of     *Metric
	value  float64
	labels []*dto.LabelPair // in order of their names
}

// Desc implements prometheus.Metric.
func (s *sample) Desc() *prometheus.Desc { return s.of.desc }

// Write implements prometheus.Metric.
func (s *sample) Write(out *dto.Metric) error {
	out.Label = s.labels
	if s.of.Type == "counter" {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

type pair struct{ name, value string }

// samples are those of one scrape.
type samples struct {
	netns  string   // the first label of metrics that are of a namespace
	sparse bool     // counts of the table that are 0 are left out
	values []string // of the labels of the sample that is added
	pairs  map[pair]*dto.LabelPair
	all    []prometheus.Metric
}

func (s *samples) add(m *Metric, value float64, labels ...string) {
	s.values = s.values[:0]
	if len(m.Labels) > len(labels) {
		s.values = append(s.values, s.netns)
	}
	s.values = append(s.values, labels...)
	out := &sample{of: m, value: value, labels: make([]*dto.LabelPair, len(m.Labels))}
	for i, label := range m.sorted {
		out.labels[i] = s.pair(m.Labels[label], s.values[label])
	}
	s.all = append(s.all, out)
}

// pair returns the one pair of a label's name and value that all samples share.
func (s *samples) pair(name, value string) *dto.LabelPair {
	p := s.pairs[pair{name, value}]
	if p == nil {
		p = &dto.LabelPair{Name: &name, Value: &value}
		if s.pairs == nil {
			s.pairs = make(map[pair]*dto.LabelPair)
		}
		s.pairs[pair{name, value}] = p
	}
	return p
}

// addCount is add for what is left out where it is 0 and the samples are sparse.
func (s *samples) addCount(m *Metric, value float64, labels ...string) {
	if value > 0 || !s.sparse {
		s.add(m, value, labels...)
	}
}
