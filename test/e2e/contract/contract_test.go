// Package contract holds rules, runbooks and tests to the exporter and to each other.
package contract

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"timewait_exporter/test/e2e/rules"
)

const (
	root       = "../../../"
	alertsFile = root + "deploy/prometheus/timewait_exporter.alerts.yml"
	rulesFile  = root + "deploy/prometheus/timewait_exporter.rules.yml"
	testsDir   = root + "deploy/prometheus/tests/"
	runbookDir = root + "docs/runbooks/"
)

func read(t *testing.T, path string) rules.File {
	t.Helper()
	f, err := rules.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.All()) == 0 {
		t.Fatalf("%s: no rules", path)
	}
	return f
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func alerts(t *testing.T) map[string]rules.Rule {
	t.Helper()
	byName, err := rules.ReadAlerts(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	return byName
}

func TestRulesNameOnlyWhatIsExported(t *testing.T) {
	known := rules.KnownNames(read(t, rulesFile))
	for _, path := range []string{rulesFile, alertsFile} {
		for _, r := range read(t, path).All() {
			for _, query := range r.Queries() {
				for _, err := range known.Check(query) {
					t.Errorf("%s%s: %v", r.Alert, r.Record, err)
				}
			}
		}
	}
}

// A user may copy the alerts without the recording rules.
func TestAlertsNeedNoRecordingRule(t *testing.T) {
	for name, r := range alerts(t) {
		for _, query := range r.Queries() {
			if strings.Contains(query, ":tcp_") {
				t.Errorf("%s: %s uses a recording rule", name, query)
			}
		}
	}
}

// TestAlertsHoldOnFreshLooks: tables of other network namespaces are read in turns. What an alert makes of such a table has to be of a
// look that is less than a minute old, or of something that the exporter's own namespace alone has.
func TestAlertsHoldOnFreshLooks(t *testing.T) {
	const fresh = "unless on (job, instance, netns) " +
		"(timestamp(timewait_exporter_table_read_timestamp_seconds) - timewait_exporter_table_read_timestamp_seconds >= 60)"
	table := regexp.MustCompile(`\btcp_(connections|destination_|remote_|local_|listener_|ephemeral_port_utilisation_ratio)`)
	own := regexp.MustCompile(`/ max_over_time\(tcp_time_wait_limit|tcp_time_wait_reuse_mode|tcp_half_closed_connections|tcp_syn_cookies|sysctls="same"`)
	looks := 0
	for name, r := range alerts(t) {
		if !table.MatchString(r.Expr) {
			continue
		}
		looks++
		if !own.MatchString(r.Expr) && !strings.Contains(strings.Join(strings.Fields(r.Expr), " "), fresh) {
			t.Errorf("%s is about a table and may be of an old look:\n%s", name, r.Expr)
		}
	}
	if looks < 12 {
		t.Errorf("only %d alerts are about a table", looks)
	}
}

// The dashboards draw the thresholds: a number alone on the right of the first comparison.
func TestThresholdIsOneNumber(t *testing.T) {
	for _, r := range alerts(t) {
		if _, err := r.Limit(); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryAlertHasARunbook(t *testing.T) {
	byName := alerts(t)
	for name, r := range byName {
		text := readText(t, runbookDir+name+".md")
		if !strings.HasPrefix(text, "# "+name+"\n") {
			t.Errorf("%s.md: the heading is not the alert's name", name)
		}
		if want := "http://{{ $labels.instance }}/runbooks/" + name; r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %q, want %q", name, r.Annotations["runbook_url"], want)
		}
		page := "http://{{ $labels.instance }}/"
		if strings.HasPrefix(name, "TimewaitExporter") { // which may have none to show
			page = ""
		}
		if got := r.Annotations["report_url"]; got != page {
			t.Errorf("%s: report_url %q, want %q", name, got, page)
		}
	}
	files, err := filepath.Glob(runbookDir + "*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		if _, ok := byName[name]; !ok && name != "README" {
			t.Errorf("%s: no alert of that name", file)
		}
	}
}

// TestTextsAnswer holds what somebody who is woken reads to the rule: since when, whether a cure helped, and how long the alert stays
// after it.
func TestTextsAnswer(t *testing.T) {
	var titles []string
	boards, err := filepath.Glob(root + "dashboards/*.json")
	if err != nil || len(boards) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	for _, path := range boards {
		for _, match := range regexp.MustCompile(`"title": ("(?:[^"\\]|\\.)*")`).FindAllStringSubmatch(readText(t, path), -1) {
			titles = append(titles, match[1])
		}
	}
	for name, rule := range alerts(t) {
		minutes := func(d model.Duration) string { return strconv.Itoa(int(time.Duration(d).Minutes())) }
		description := rule.Annotations["description"]
		if !regexp.MustCompile(`\b` + minutes(rule.For) + ` minutes\b`).MatchString(description) {
			t.Errorf("%s does not say that it has been so for %s minutes", name, minutes(rule.For))
		}
		if !strings.Contains(strings.ToLower(description), "it helped when ") {
			t.Errorf("%s does not say how to see that a cure helped", name)
		}
		runbook := readText(t, runbookDir+name+".md")
		_, since, _ := strings.Cut(runbook, "\n**Since when.** ")
		since, _, _ = strings.Cut(since, "\n")
		if !strings.HasPrefix(since, "For at least "+minutes(rule.For)+" minutes when the alert comes. ") {
			t.Errorf("runbook %s: since when: %q, the rule waits %s minutes", name, since, minutes(rule.For))
		}
		for _, panel := range regexp.MustCompile(`"[^"]+"`).FindAllString(strings.ReplaceAll(since, "`", ""), -1) {
			if strings.Contains(since, panel+" on the ") && !slices.Contains(titles, panel) {
				t.Errorf("runbook %s names the panel %s, there is none", name, panel)
			}
		}
		_, helped, _ := strings.Cut(runbook, "\n## Did it help?\n")
		helped, _, _ = strings.Cut(helped, "\n## ")
		if !regexp.MustCompile(`\b`+minutes(rule.KeepFiringFor)+` more( minutes)?\.`).MatchString(helped) || !strings.Contains(helped, "```") {
			t.Errorf("runbook %s: did it help: %q has no query, or does not say that the alert stays for %s more minutes", name, helped, minutes(rule.KeepFiringFor))
		}
	}
}

// The index tells the pages from the tickets.
func TestIndexTellsSeverity(t *testing.T) {
	_, text, _ := strings.Cut(readText(t, runbookDir+"README.md"), "## Alerts\n")
	page, ticket, ok := strings.Cut(text, "| Ticket")
	if !ok {
		t.Fatal("README.md: no table of tickets")
	}
	for name, r := range alerts(t) {
		where := map[string]string{"critical": page, "warning": ticket}[r.Labels["severity"]]
		if !strings.Contains(where, "\n| ["+name+"]("+name+".md) |") {
			t.Errorf("README.md: %s (%s) is not in the table of its severity", name, r.Labels["severity"])
		}
	}
}

// codeRE matches the blocks of code in Markdown.
var codeRE = regexp.MustCompile("(?s)\n```\n(.*?)\n```\n")

func TestRunbooksNameOnlyWhatIsExported(t *testing.T) {
	known := rules.KnownNames(read(t, rulesFile))
	for name := range alerts(t) {
		queries := 0
		for _, block := range codeRE.FindAllStringSubmatch(readText(t, runbookDir+name+".md"), -1) {
			if strings.Contains(block[1], "{instance") || strings.Contains(block[1], "{job") {
				for _, err := range known.Check(block[1]) {
					t.Errorf("%s.md: %v", name, err)
				}
				queries++
			}
		}
		if queries == 0 && name != "TCPTimeWaitRecycleEnabled" { // one sysctl says it all
			t.Errorf("%s.md: no query", name)
		}
	}
}

// promtoolTests is as much of a file of promtool's unit tests as is needed here.
type promtoolTests struct {
	Tests []struct {
		Name           string `yaml:"name"`
		AlertRuleTests []struct {
			Alertname string `yaml:"alertname"`
			ExpAlerts []struct {
				Annotations map[string]string `yaml:"exp_annotations"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
		ExprTests []struct {
			Expr string `yaml:"expr"`
		} `yaml:"promql_expr_test"`
	} `yaml:"tests"`
}

func readTests(t *testing.T, path string) promtoolTests {
	t.Helper()
	var tests promtoolTests
	if err := yaml.NewDecoder(bytes.NewReader([]byte(readText(t, path)))).Decode(&tests); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return tests
}

func TestEveryAlertIsTested(t *testing.T) {
	for name, r := range alerts(t) {
		path := testsDir + name + ".yml"
		fires, silent := 0, 0
		for _, test := range readTests(t, path).Tests {
			expected := 0
			for _, check := range test.AlertRuleTests {
				if check.Alertname != name {
					t.Errorf("%s: %s: tests %s", path, test.Name, check.Alertname)
				}
				for _, alert := range check.ExpAlerts {
					expected++
					for annotation := range r.Annotations {
						if alert.Annotations[annotation] == "" {
							t.Errorf("%s: %s: the text of %s is not tested", path, test.Name, annotation)
						}
					}
				}
			}
			if expected > 0 {
				fires++
			} else {
				silent++
			}
		}
		if fires == 0 || silent == 0 {
			t.Errorf("%s: %d tests in which it fires and %d in which it is silent: want both", path, fires, silent)
		}
	}
}

func TestEveryRecordingRuleIsTested(t *testing.T) {
	var tested strings.Builder
	for _, test := range readTests(t, testsDir+"recording_rules.yml").Tests {
		for _, check := range test.ExprTests {
			tested.WriteString(check.Expr + "\n")
		}
	}
	for _, r := range read(t, rulesFile).All() {
		if !strings.Contains(tested.String(), r.Record) {
			t.Errorf("%s is not tested", r.Record)
		}
	}
}

// alertnameRE matches what Alertmanager's configuration compares the name of an alert with.
var alertnameRE = regexp.MustCompile(`alertname=~?"([^"]+)"`)

// inhibitions returns which alerts keep which other ones quiet, as "source > target" with the labels that have to be equal.
func inhibitions(t *testing.T) map[string][]string {
	t.Helper()
	var config struct {
		Rules []struct {
			Source []string `yaml:"source_matchers"`
			Target []string `yaml:"target_matchers"`
			Equal  []string
		} `yaml:"inhibit_rules"`
	}
	if err := yaml.Unmarshal([]byte(readText(t, root+"deploy/alertmanager/alertmanager.yml")), &config); err != nil {
		t.Fatal(err)
	}
	byAlerts := make(map[string][]string)
	for _, rule := range config.Rules {
		source, target := alertnameRE.FindStringSubmatch(rule.Source[0]), alertnameRE.FindStringSubmatch(rule.Target[0])
		if source == nil || target == nil {
			t.Fatalf("%v > %v: no names of alerts come first", rule.Source, rule.Target)
		}
		for by := range strings.SplitSeq(source[1], "|") {
			for quiet := range strings.SplitSeq(target[1], "|") {
				byAlerts[by+" > "+quiet] = rule.Equal
			}
		}
	}
	return byAlerts
}

// TestInhibitions names alerts that there are and labels that both of them have, and has the cause speak for what it explains.
func TestInhibitions(t *testing.T) {
	byName, all := alerts(t), inhibitions(t)
	for pair, equal := range all {
		for name := range strings.SplitSeq(pair, " > ") {
			r, ok := byName[name]
			if !ok {
				t.Errorf("alertmanager.yml: no alert %s", name)
			}
			if slices.Contains(equal, "netns") && !strings.Contains(r.Annotations["summary"], "$labels.netns") {
				t.Errorf("alertmanager.yml: %s compares netns, which %s has not", pair, name)
			}
		}
	}
	for _, pair := range []string{
		"TCPSynQueueFull > TCPSynFlood", "TCPSynQueueFull > TCPListenDrops", "TCPListenQueueOverflowing > TCPListenDrops",
		"TCPPeerNotAnswering > TCPEphemeralPortsHalfUsed", "TCPListenQueueOverflowing > TCPPeerNotAnswering", "TCPSynQueueFull > TCPPeerNotAnswering", "TCPCloseWaitLeak > TCPHalfClosedLeak",
	} {
		if want := []string{"job", "instance", "netns"}; !slices.Equal(all[pair], want) {
			t.Errorf("%s where %v are equal, want %v", pair, all[pair], want)
		}
	}
}
