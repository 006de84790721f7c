package contract

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"timewait_exporter/diagnosis"
)

// What an alert sees and one look does not, or not under the alert's name.
var noFinding = map[string]string{
	"TCPListenDrops":                 "a rate of drops: one look has none, and counters is not_checked",
	"ConntrackInsertFailing":         "a rate of failures: one look has none",
	"TCPNATPortsNearExhaustion":      "a sum over the network namespaces of a node: a report is of one",
	"TimewaitExporterDown":           "it is about the exporter as a server",
	"TimewaitExporterSlow":           "it is about the exporter as a server",
	"TimewaitExporterScrapeFailing":  "what can't be read is not_checked",
	"TimewaitExporterSysctlsMissing": "what can't be read is not_checked",
}

// TestEveryAlertHasItsFinding holds the codes and thresholds of reports to the alerts.
func TestEveryAlertHasItsFinding(t *testing.T) {
	byName := alerts(t)
	codes := make(map[string]diagnosis.Code)
	for _, code := range diagnosis.Codes() {
		codes[code.Name] = code
	}
	for name, rule := range byName {
		code, ok := codes[name]
		if reason := noFinding[name]; ok == (reason != "") {
			t.Errorf("%s: a finding: %v, a reason why there is none: %q", name, ok, reason)
		}
		limit, err := rule.Limit()
		if err != nil {
			t.Error(err)
		} else if ok && code.Threshold != 0 && code.Threshold != limit {
			t.Errorf("%s: the alert's threshold is %v, the report's %v", name, limit, code.Threshold)
		}
	}
	for _, code := range diagnosis.Codes() {
		if !strings.Contains(readText(t, runbookDir+code.Runbook()+".md"), "`timewait_exporter report`") {
			t.Errorf("%s: the runbook %s does not name the command", code.Name, code.Runbook())
		}
	}
	for name := range noFinding {
		if _, ok := byName[name]; !ok {
			t.Errorf("no alert %s", name)
		}
	}
}

// TestReportSchema holds the reports that tests compare with to the schema.
func TestReportSchema(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile(root + "docs/report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	reports, err := filepath.Glob(root + "diagnosis/testdata/*.json")
	if err != nil || len(reports) == 0 {
		t.Fatalf("%d reports: %v", len(reports), err)
	}
	for _, path := range reports {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		report, err := jsonschema.UnmarshalJSON(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(report); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
