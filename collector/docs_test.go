package collector

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"testing"

	"timewait_exporter/collector/tally"
)

// TestMetricsDoc holds docs/metrics.md to the code: a row for each metric, in the order of
// Metrics, and bounds as they are. What else it says is written there.
func TestMetricsDoc(t *testing.T) {
	const file, head = "../docs/metrics.md", "| Metric | Type | Labels | Source | Meaning |\n|---|---|---|---|---|\n"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, _, found := strings.Cut(string(doc), head)
	if !found {
		t.Fatalf("%s has no table", file)
	}
	for _, bound := range []string{
		fmt.Sprintf("more than %d remotes in a direction, %d destinations or %d local IPs", tally.MaxRemotes, tally.MaxDestinations, tally.MaxLocals),
		fmt.Sprintf("more than %d local addresses and ports that are listened on", tally.MaxEndpoints),
	} {
		if !strings.Contains(text, bound) {
			t.Errorf("%s does not say %q", file, bound)
		}
	}
	b := new(strings.Builder)
	b.WriteString(text + head)
	cell := func(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
	for _, m := range Metrics() {
		var labels []string
		for _, label := range m.Labels {
			labels = append(labels, "`"+label+"`")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type,
			cmp.Or(strings.Join(labels, ", "), "-"), cell(cmp.Or(m.Source, "the exporter itself")), cell(m.Help))
	}
	compareFile(t, file, b.String())
}
