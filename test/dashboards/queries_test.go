package dashboards

import (
	"fmt"
	"maps"
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

const (
	exporterAddress = "127.0.0.1:10793"
	scrapeInterval  = time.Second
)

// shown are the variables' values for the exporter in the private network. The destination is the worst once there is load.
var shown = selection{"job": job, "instance": exporterAddress, "netns": "self", "remote_ip": "127.0.0.2", "remote_port": "8080", "__rate_interval": "4s"}

// The kernel shows these limits only in the first network namespace, or no longer at all, and what is old takes its time. The simulated
// fleet has them.
var notInPrivateNetwork = []string{
	"timewait-host / How near is TCP memory pressure? / A", // net.ipv4.tcp_mem
	"timewait-host / Orphans of their limit / A",           // net.ipv4.tcp_max_orphans
	"timewait-host / Which limits are in force? / E",       // tcp_tw_recycle, until Linux 4.11
	// One namespace is read, and no NAT is known.
	"timewait-fleet / Which Kubernetes namespaces are worst? / A",
	"timewait-fleet / Which Kubernetes namespaces are worst? / B",
	"timewait-fleet / Which Kubernetes namespaces are worst? / C",
	"timewait-namespaces / Ports of the NAT / A",
	"timewait-namespaces / All processes seen / A",
	"timewait-namespaces / Where do the node's connections go to? / A",
	"timewait-namespaces / Tables read, unchanged and waiting / A",
	// The traffic is not ten minutes old.
	"timewait-fleet / Which owners have CLOSE_WAITs that are old? / A",
	"timewait-fleet / Which owners have CLOSE_WAITs that are old? / B",
}

// On a quiet machine these show no data, because there is nothing that could have a value. All others show one, mostly 0.
var quietWithoutData = append(slices.Clone(notInPrivateNetwork),
	// A column of a table: no row has anything in that state.
	"timewait-host / Which remotes hold the connections? / C",
	"timewait-host / Which remotes hold the connections? / D",
	"timewait-host / Which remotes hold the connections? / E",
	"timewait-host / Whose sockets are they? / C",
	"timewait-host / Whose sockets are they? / D",
	"timewait-host / Whose sockets are they? / E",
	"timewait-host / Whose sockets are they? / F",
	"timewait-host / Whose sockets are they? / G",
	"timewait-fleet / The largest owners across all machines / B",
	"timewait-fleet / The largest owners across all machines / C",
	"timewait-destinations / The worst destinations, and what holds their ports / B",
	"timewait-destinations / The worst destinations, and what holds their ports / D",
	"timewait-destinations / The worst destinations, and what holds their ports / E",
	"timewait-destinations / The worst destinations, and what holds their ports / F",
	"timewait-destinations / Connections that nobody answers / A",
	"timewait-destinations / Who opens the connections to the worst destinations? / B",
	"timewait-destinations / Connections per listening port, by state / C",
	"timewait-destinations / Connections per listening port, by state / D",
	"timewait-fleet / The worst destinations across all machines / B",
	"timewait-fleet / Which machines hold ports toward $remote_ip port $remote_port? / A",
	"timewait-fleet / Which machines hold ports toward $remote_ip port $remote_port? / B",
	"timewait-namespaces / Which namespaces have most CLOSE_WAITs? / A",
	"timewait-namespaces / Which namespaces have most CLOSE_WAITs? / B",
	"timewait-fleet / Most CLOSE_WAITs / A",
	"timewait-fleet / Most CLOSE_WAITs / B",
	// No pool fills, nobody is turned away, nothing fires.
	"timewait-fleet / Who runs out of ports soonest? / A",
	"timewait-fleet / Who turns clients away? / A",
	"timewait-fleet / Which alerts fire? / A",
	"timewait-fleet / Which alerts fire? / B",
	"timewait-fleet / Which machines have most alerts? / A",
	"timewait-fleet / annotation / Critical alerts",
	"timewait-fleet / annotation / Warnings",
	"timewait-host / annotation / Critical alerts",
	"timewait-host / annotation / Warnings",
	"timewait-namespaces / annotation / Critical alerts",
	"timewait-namespaces / annotation / Warnings",
	"timewait-destinations / annotation / Critical alerts",
	"timewait-destinations / annotation / Warnings",
)

func TestMain(m *testing.M) { program.Main(m, root) }

// TestQueries runs every query of every panel, annotation and variable on a quiet machine, and on one with traffic.
func TestQueries(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skipf("needs Prometheus: %v", err)
	}
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/ip_local_port_range", "40000 40499") // small, so that few connections use up much of it
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0")                  // on loopback the default takes TIME_WAITs over after a second
		program.Start(t, exec.Command(program.Path(), "--web.listen-address="+exporterAddress))
		program.Get(t, "http://"+exporterAddress+"/metrics")
		prometheus := startPrometheus(t, 9090, scrapeInterval, []map[string]any{{"targets": []string{exporterAddress}}})
		boards := readBoards(t)

		time.Sleep(8 * scrapeInterval)
		t.Run("quiet", func(t *testing.T) { prometheus.checkAll(t, boards, shown, quietWithoutData) })
		startLoad(t)
		time.Sleep(4 * scrapeInterval)
		t.Run("loaded", func(t *testing.T) {
			prometheus.checkAll(t, boards, shown, notInPrivateNetwork)
			// A heatmap has all its rows even when there is nothing in them.
			if a, err := prometheus.ask("sum(tcp_time_wait_remaining_connections) > 0", true, 0, time.Second); err != nil || len(a.Result) != 1 {
				t.Errorf("no TIME_WAIT has time left: %v", err)
			}
		})
		t.Run("variables", func(t *testing.T) { prometheus.checkVariables(t, boards, shown) })
		t.Run("fleet", func(t *testing.T) { checkFleet(t, boards) })
	})
}

// checkAll runs all queries and compares those without an answer with the list of those that should have none.
func (s *server) checkAll(t *testing.T, boards map[string]board, values selection, without []string) {
	var missing []string
	keys := map[string][]string{} // the labels that a panel's queries gave
	for _, uid := range slices.Sorted(maps.Keys(boards)) {
		for _, q := range boards[uid].queries() {
			a, err := s.ask(values.in(q.expr), q.instant, 15*time.Second, time.Second)
			if err != nil {
				t.Errorf("%s: %v", q, err)
				continue
			}
			if len(a.Result) == 0 {
				missing = append(missing, q.String())
				continue
			}
			if err := q.check(a.Result); err != nil {
				t.Errorf("%s: %s: %v", q, values.in(q.expr), err)
			}
			for label := range a.Result[0].Metric {
				keys[q.board+q.panel] = append(keys[q.board+q.panel], label)
			}
			t.Logf("%-90s %3d series, first %v %v", q, len(a.Result), a.Result[0].last(), a.Result[0].Metric)
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(boards)) {
		for _, q := range boards[uid].queries() {
			for _, label := range q.labels {
				if found := keys[q.board+q.panel]; q.keyed && found != nil && !slices.Contains(found, label) {
					t.Errorf("%s / %s: no query fills the column %s", q.board, q.panel, label)
				}
			}
		}
	}
	for _, name := range missing {
		if !slices.Contains(without, name) {
			t.Errorf("%s: no data", name)
		}
	}
	for _, name := range without {
		if !slices.Contains(missing, name) {
			t.Errorf("%s: data where none was expected", name)
		}
	}
}

// check says whether an answer has the shape that the panel needs.
func (q query) check(result []series) error {
	if q.kind == "stat" && len(result) != 1 {
		return fmt.Errorf("%d series, a stat has one", len(result))
	}
	if q.kind == "heatmap" {
		if err := checkBuckets(result); err != nil {
			return err
		}
	}
	for _, s := range result {
		if v := s.last(); q.instant && (math.IsNaN(v) || math.IsInf(v, 0)) {
			return fmt.Errorf("%v is %v", s.Metric, v)
		}
		own := maps.Clone(s.Metric)
		delete(own, "__name__")
		for _, label := range q.labels {
			if own[label] == "" && !q.keyed {
				return fmt.Errorf("%v has no label %s", s.Metric, label)
			}
			delete(own, label)
		}
		if q.keyed && len(own) > 0 {
			return fmt.Errorf("%v has other labels than the columns %q", s.Metric, q.labels)
		}
	}
	return nil
}

// checkBuckets checks that each row of a heatmap is a number, by which Grafana orders them.
func checkBuckets(result []series) error {
	bounds := map[float64]bool{}
	for _, s := range result {
		bound, err := strconv.ParseFloat(s.Metric["remaining"], 64)
		if err != nil {
			return fmt.Errorf("%v: %w", s.Metric, err)
		}
		bounds[bound] = true
	}
	if got := slices.Sorted(maps.Keys(bounds)); !slices.Equal(got, []float64{1, 5, 10, 20, 30, 40, 50, 60}) {
		return fmt.Errorf("buckets %v", got)
	}
	return nil
}

// checkVariables checks that each variable offers the value that is selected, and that the one which begins with the worst begins with it.
func (s *server) checkVariables(t *testing.T, boards map[string]board, values selection) {
	for _, b := range boards {
		for _, v := range b.Templating.List[1:] {
			got, err := s.offered(v, values)
			if err != nil || !slices.Contains(got, values[v.Name]) {
				t.Errorf("%s: variable %s offers %q, want %q among them: %v", b.UID, v.Name, got, values[v.Name], err)
			} else if v.Regex != "" && got[0] != values[v.Name] {
				t.Errorf("%s: variable %s offers %q, want %q first", b.UID, v.Name, got, values[v.Name])
			}
		}
	}
}

// offered are the values that a variable gives to choose from, in Grafana's order.
func (s *server) offered(v variable, values selection) ([]string, error) {
	if match := labelValues.FindStringSubmatch(v.Definition); match != nil {
		return s.values(values.in(match[1]), match[2])
	}
	expr, err := v.expr()
	if err != nil {
		return nil, err
	}
	answer, err := s.ask(values.in(expr), true, 0, 0)
	if err != nil {
		return nil, err
	}
	regex, err := regexp.Compile(strings.Trim(v.Regex, "/"))
	if err != nil {
		return nil, err
	}
	var offered []string
	for _, series := range answer.Result {
		// Grafana 9 writes a series so: {remote_ip="127.0.0.2"} 0.6 1700000000123
		text := "{"
		for name, value := range series.Metric {
			text += fmt.Sprintf("%s=%q,", name, value)
		}
		if match := regex.FindStringSubmatch(strings.TrimSuffix(text, ",") + "} " + fmt.Sprint(series.last())); match != nil {
			offered = append(offered, match[1])
		}
	}
	return offered, nil
}
