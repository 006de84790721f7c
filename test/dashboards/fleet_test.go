package dashboards

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"timewait_exporter/test/program"
)

// machines is the size of the simulated fleet.
const machines = 200

// fleet serves what so many exporters would say: the text of the real one, with values that differ from machine to machine and from
// scrape to scrape.
type fleet struct {
	text    string
	scrapes [machines]atomic.Int64
}

// What the machine here does not have: limits that the kernel shows only in the first network namespace, an old leak, and a pod.
const elsewhere = `
tcp_node_destination_connections{remote_ip="192.0.2.20",remote_port="5432"} 900
tcp_nat_port_utilisation_ratio 0.03
timewait_exporter_host_visible 1
timewait_exporter_namespaces{tables="read"} 2
timewait_exporter_netns_info{netns="shop/cart-0",namespace="shop",pod="cart-0",sysctls="assumed"} 1
tcp_ephemeral_port_utilisation_upper_bound_ratio{netns="shop/cart-0"} 0.04
tcp_ephemeral_port_utilisation_ratio{netns="shop/cart-0",pool="connect"} 0.03
tcp_active_opens_total{netns="shop/cart-0"} 7000
tcp_time_wait_started_total{netns="shop/cart-0",timer="full"} 6000
tcp_connections{netns="shop/cart-0",family="ipv4",direction="outbound",state="close_wait"} 30
tcp_owner_close_wait_older_connections{netns="self",owner="shop.service",age="600"} 3
tcp_owner_close_wait_oldest_seconds{netns="self",owner="shop.service"} 700
tcp_orphan_limit 131072
tcp_memory_limit_bytes{level="low"} 6.3e+08
tcp_memory_limit_bytes{level="pressure"} 8.4e+08
tcp_memory_limit_bytes{level="high"} 1.26e+09
tcp_time_wait_recycle_enabled{netns="self"} 0
`

// ServeHTTP answers for the machine whose number is the path. Machine 0 is the one that was captured, the last has half of its ratios;
// in each scrape counters go on and ratios rise a little.
func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	machine, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || machine < 0 || machine >= machines {
		http.NotFound(w, r)
		return
	}
	scrape := float64(f.scrapes[machine].Add(1))
	var out bytes.Buffer
	for line := range strings.Lines(f.text) {
		name, _, _ := strings.Cut(line, "{")
		space := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[space+1:]), 64)
		switch {
		case line[0] == '#' || err != nil:
			out.WriteString(line)
			continue
		case strings.HasSuffix(name, "_total"):
			value += scrape * float64(machine%7)
		case strings.HasSuffix(name, "utilisation_ratio"):
			value *= (1 - 0.5*float64(machine)/machines) * (0.9 + 0.01*scrape)
		}
		fmt.Fprintf(&out, "%s %v\n", line[:space], value)
	}
	_, _ = w.Write(out.Bytes())
}

// checkFleet runs every query against the simulated fleet and prints what it costs.
func checkFleet(t *testing.T, boards map[string]board) {
	const interval = 5 * time.Second
	server := httptest.NewServer(&fleet{text: program.Get(t, "http://"+exporterAddress+"/metrics") + elsewhere})
	t.Cleanup(server.Close)
	var targets []map[string]any
	for machine := range machines {
		targets = append(targets, map[string]any{
			"targets": []string{strings.TrimPrefix(server.URL, "http://")},
			"labels":  map[string]string{"instance": instance(machine), "__metrics_path__": "/" + strconv.Itoa(machine)},
		})
	}
	prometheus := startPrometheus(t, 9091, interval, targets)
	time.Sleep(6 * interval)

	const span, step = 20 * time.Second, 5 * time.Second
	values := maps.Clone(shown)
	values["instance"] = instance(0)
	values["__rate_interval"] = "20s"
	t.Logf("%d machines: time, samples that one evaluation touches, series shown", machines)
	for _, uid := range slices.Sorted(maps.Keys(boards)) {
		for _, q := range boards[uid].queries() {
			a, err := prometheus.ask(values.in(q.expr), q.instant, span, step)
			if err != nil || len(a.Result) == 0 {
				t.Errorf("%s: no data: %v", q, err)
				continue
			}
			if err := q.check(a.Result); err != nil {
				t.Errorf("%s: %v", q, err)
			}
			samples := a.Stats.Samples.TotalQueryableSamples
			if !q.instant {
				samples /= int(span/step) + 1
			}
			t.Logf("%-85s %6.1f ms %5d samples %4d series", q, a.Stats.Timings.ExecTotalTime*1000, samples, len(a.Result))
			if most := q.budget(); samples > most {
				t.Errorf("%s touches %d samples, more than %d", q, samples, most)
			}
		}
	}
	prometheus.checkVariables(t, boards, values)
}

// budget is how many samples one evaluation of a query may touch. What is about one machine must not depend on how many there are;
// what is about all of them may touch a handful of series of each, or as many as it has alerts.
func (q query) budget() int {
	switch {
	case q.board != "timewait-fleet":
		return 500
	case strings.Contains(q.expr, "ALERTS"):
		return 25 * machines
	}
	return 3 * 2 * machines // each has two namespaces
}

func instance(machine int) string { return fmt.Sprintf("machine-%d:10793", machine) }
