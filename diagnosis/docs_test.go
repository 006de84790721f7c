package diagnosis

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestReportDoc holds the list of findings in docs/report.md to the code, each with the example
// of a scene. So each code has one.
func TestReportDoc(t *testing.T) {
	examples := make(map[string]string)
	for _, s := range scenes() {
		for _, f := range Diagnose(s.facts(t)).Findings {
			if examples[f.Code] == "" || f.Code == s.code {
				var example text
				example.finding(f)
				examples[f.Code] = strings.TrimSpace(example.String())
			}
		}
	}
	var list strings.Builder
	for _, c := range Codes() {
		if examples[c.Name] == "" {
			t.Errorf("no scene has %s", c.Name)
		}
		fmt.Fprintf(&list, "### %s\n\n%s%s.\n\n```\n%s\n```\n\n", c.Name, strings.ToUpper(c.Says[:1]), c.Says[1:], examples[c.Name])
	}
	const file, head = "../docs/report.md", "## Findings\n\n"
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	intro, _, _ := strings.Cut(string(got), head)
	compare(t, file, []byte(intro+head+strings.TrimSuffix(list.String(), "\n")))
}
