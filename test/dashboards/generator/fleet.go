package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// fleetBoard finds the worst machines and destinations among all. Its queries read recorded series, or metrics with one series a
// namespace, so that a thousand machines stay cheap.
func fleetBoard() Board {
	return Board{
		UID:         "timewait-fleet",
		Title:       "TCP connections: fleet",
		Description: "All machines: which is worst, and which backend they run out of ports to. Needs the recording rules of timewait_exporter.rules.yml.",
		Alerts:      `count by (alertname, severity) (ALERTS{@firing,@jobs})`,
		Links:       []dashboard.DashboardLink{linkTo("timewait-host", "Host", false), linkTo("timewait-destinations", "Destinations and ports", false)},
		Variables: []cog.Builder[dashboard.VariableModel]{
			datasourceVariable(),
			labelVariable("job", "Job", `timewait_exporter_build_info`).Multi(true).IncludeAll(true).Current(dashboard.VariableOption{
				Selected: new(true),
				Text:     dashboard.StringOrArrayOfString{ArrayOfString: []string{"All"}},
				Value:    dashboard.StringOrArrayOfString{ArrayOfString: []string{"$__all"}},
			}),
			worstVariable("remote_ip", "Destination", `job_destination:tcp_destination_port_utilisation_ratio:max{job=~"$job"}`),
			worstVariable("remote_port", "Port", `job_destination:tcp_destination_port_utilisation_ratio:max{job=~"$job",remote_ip="$remote_ip"}`),
		},
		Sections: []Section{
			{"", []Panel{
				{
					Title: "Fullest port pool",
					Description: "The worst namespace of the whole fleet: the share of the ephemeral ports that its next connect() or bind() can't use. " +
						"The table below says which one it is.",
					Cure: "Open the machine from the table below. It helped when this falls.",
					Unit: "percentunit", Width: sixth, Height: 5,
					Draw:    bigNumber().Min(0).Max(1).Decimals(0),
					Queries: []Query{{Expr: `max(job_pool:tcp_ephemeral_port_utilisation_ratio:max{@jobs,pool=~"connect|bind"})`, Instant: true}},
					Limits:  []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
				},
				{
					Title:       "TIME_WAIT of its limit",
					Description: "The worst namespace of the whole fleet: TIME_WAIT sockets of net.ipv4.tcp_max_tw_buckets. The table below says which one it is.",
					Cure:        "Open the machine from the table below. It helped when this falls.",
					Unit:        "percentunit", Width: sixth, Height: 5,
					Draw:    bigNumber().Min(0).Max(1).Decimals(0),
					Queries: []Query{{Expr: `max(job:tcp_time_wait_limit_used:max{@jobs})`, Instant: true}},
					Limits:  []string{"TCPTimeWaitAccumulating", "TCPTimeWaitNearLimit"},
				},
				{
					Title:       "Machines with critical alerts",
					Description: "Machines where an alert fires now that hurts users, or is about to. Which alerts and which machines is at the bottom.",
					Cure:        "An alert stays for some minutes after its cause has gone: it helped when the figure falls that its text names, and then this.",
					Unit:        "none", Width: sixth, Height: 5,
					Draw:    noneIsGood(vermilion),
					Queries: []Query{{Expr: firing("critical"), Instant: true}},
				},
				{
					Title:       "Machines with warnings",
					Description: "Machines where an alert fires now about a cause that hurts nobody yet. Which alerts and which machines is at the bottom.",
					Cure:        "In the morning will do. It helped when this falls.",
					Unit:        "none", Width: sixth, Height: 5,
					Draw:    noneIsGood(orange),
					Queries: []Query{{Expr: firing("warning"), Instant: true}},
				},
				{
					Title:       "Exporters down",
					Description: "Machines that Prometheus knows and can't reach: nothing on this page is about them.",
					Cure:        "Start them, after a look whether the machine lives. It helped when this is 0.",
					Unit:        "none", Width: sixth, Height: 5,
					Draw:     noneIsGood(vermilion),
					Queries:  []Query{{Expr: `sum(1 - up{@jobs})`, Instant: true}},
					Runbooks: []string{"TimewaitExporterDown"},
				},
				{
					Title:       "Machines",
					Description: "Machines of the selected jobs that Prometheus knows, reached or not.",
					Unit:        "none", Width: sixth, Height: 5,
					Draw:    plainNumber(),
					Queries: []Query{{Expr: `count(up{@jobs})`, Instant: true}},
				},
			}},
			{"Which machine is worst?", []Panel{
				worstPanel("Fullest port pools",
					"The share of the ephemeral ports that the worst destination, or bind() on the worst local IP, can't use.",
					"percentunit",
					Column{
						Name: "in use", Limit: true,
						Expr: `topk(20, max by (job, instance, netns) (tcp_ephemeral_port_utilisation_ratio{@jobs,pool=~"connect|bind"}))`,
					},
					"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"),
				worstPanel("Who runs out of ports soonest?",
					"Only pools that are full (0 s), or fill now and would be full within a day, are here: no rows means that nobody is about to run out.",
					"s",
					Column{
						Name: "full in", Ascending: true,
						Expr: `bottomk(20, min by (job, instance, netns) (instance_netns_pool:tcp_ephemeral_port_exhaustion:seconds{@jobs,pool=~"connect|bind"}))`,
					}),
				worstPanel("Most TIME_WAITs of their limit",
					"TIME_WAIT sockets of net.ipv4.tcp_max_tw_buckets. Past 100 % the kernel drops new ones at once.",
					"percentunit",
					Column{Name: "of the limit", Limit: true, Expr: `topk(20, max by (job, instance, netns) (instance_netns:tcp_time_wait_limit_used:ratio{@jobs}))`},
					"TCPTimeWaitAccumulating", "TCPTimeWaitNearLimit"),
				worstPanel("Who turns clients away?",
					"The share of arriving connections, over 5 minutes, that met a full accept queue. Only machines where that happened are here: no rows is good.",
					"percentunit",
					Column{
						Name: "turned away", Limit: true,
						Expr: `topk(20, max by (job, instance, netns) (instance_netns:tcp_listen_overflows:ratio_rate5m{@jobs} > 0))`,
					},
					"TCPListenQueueOverflowing"),
			}},
			{"Which backend does everybody run out of ports to?", []Panel{
				fleetDestinationsPanel(),
				destinationMachinesPanel(),
			}},
			{"Who holds the connections?", []Panel{
				closeWaitMachinesPanel(),
				fleetRemotesPanel(),
			}},
			{"Since when?", []Panel{
				{
					Title:       "Fullest port pool by job",
					Description: "The worst namespace of each job, for connect(), for bind() on one local IP and for bind() on all (bind_any), with the limits of the alerts.",
					Cure:        "Look for what changed in that job where the line began to climb. It helped when it falls.",
					Unit:        "percentunit", Width: half, Height: 9,
					Draw:    wideNames(linesWithLimits().Max(1)),
					Queries: []Query{{Expr: `job_pool:tcp_ephemeral_port_utilisation_ratio:max{@jobs}`, Legend: "{{job}} {{pool}}"}},
					Limits:  []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
				},
				{
					Title:       "TIME_WAIT of its limit by job",
					Description: "The worst namespace of each job, with the limits of the alerts.",
					Cure:        "Look for what changed in that job where the line began to climb. It helped when it falls.",
					Unit:        "percentunit", Width: half, Height: 9,
					Draw:    wideNames(linesWithLimits()),
					Queries: []Query{{Expr: `job:tcp_time_wait_limit_used:max{@jobs}`, Legend: "{{job}}"}},
					Limits:  []string{"TCPTimeWaitAccumulating", "TCPTimeWaitNearLimit"},
				},
				{
					Title:       "Connections of the fleet by state",
					Description: "All machines together, without listeners. A state that grows everywhere at once has a common cause: a release, a backend, the network.",
					Unit:        "short", Width: half, Height: 9,
					Draw:    withStateColours(areas()),
					Queries: []Query{{Expr: `sum by (state) (job_state:tcp_connections:sum{@jobs,state!="listen"})`, Legend: "{{state}}"}},
				},
				{
					Title:       "TIME_WAITs started per second by job",
					Description: "The close rate of each job, averaged over 5 minutes. A jump without more traffic is a client that stopped reusing its connections.",
					Unit:        "cps", Width: half, Height: 9,
					Draw:    wideNames(lines()),
					Queries: []Query{{Expr: `job:tcp_time_wait_started:rate5m{@jobs}`, Legend: "{{job}}"}},
				},
			}},
			{"What fires?", []Panel{
				alertsPanel(),
				alertedMachinesPanel(),
			}},
		},
	}
}

// firing counts the machines with alerts of a severity; up makes none of them a 0 while Prometheus knows any machine.
func firing(severity string) string {
	return `count(count by (job, instance) (ALERTS{alertstate="firing",severity="` + severity + `",@jobs})) or 0 * max(up{@jobs})`
}

// worstPanel lists namespaces by one figure, each of them a link to its machine.
func worstPanel(title, description, unit string, column Column, limits ...string) Panel {
	draw, queries := rowsOf([]string{"instance", "netns", "job"}, map[string]dashboard.DashboardLink{"instance": machineLink("timewait-host", withNetns)}, column)
	return Panel{
		Title: title, Description: description, Unit: unit, Width: half, Height: 8,
		Cure: "Click a machine for its dashboard, which says who it is, since when and what to do. It helped when its row falls.",
		Draw: draw, Queries: queries, Limits: limits,
	}
}

// machineLink opens a dashboard of the machine that a table's row is about. The namespace is left to that dashboard where the row has none.
func machineLink(uid, netns string) dashboard.DashboardLink {
	return dashboard.DashboardLink{
		Title: "Dashboard of ${__data.fields.instance}", Tags: []string{},
		Url: new("/d/" + uid + "?var-datasource=${datasource}&var-job=${__data.fields.job}&var-instance=${__data.fields.instance}" +
			netns + "&${__url_time_range}"),
	}
}

// withNetns is for rows that are about one namespace of a machine.
const withNetns = "&var-netns=${__data.fields.netns}"

func fleetDestinationsPanel() Panel {
	// max by drops the recorded series' names: rows of different names are not merged.
	row := func(expr string) string { return `max by (job, remote_ip, remote_port) (` + expr + `)` }
	worst := row(`topk(20, job_destination:tcp_destination_port_utilisation_ratio:max{@jobs})`)
	// The same dashboard, with the destination selected: the table beside this one is about it.
	machines := dashboard.DashboardLink{
		Title: "Machines that hold ports toward ${__data.fields.remote_ip} port ${__data.fields.remote_port}", Tags: []string{},
		Url: new("/d/timewait-fleet?var-datasource=${datasource}&${job:queryparam}" +
			"&var-remote_ip=${__data.fields.remote_ip}&var-remote_port=${__data.fields.remote_port}&${__url_time_range}"),
	}
	draw, queries := rowsOf([]string{"remote_ip", "remote_port", "job"}, map[string]dashboard.DashboardLink{"remote_ip": machines},
		Column{Name: "worst", Expr: worst, Limit: true},
		Column{
			Name: "over half", Unit: "none", Sparse: true,
			Expr: row(`job_destination:tcp_destination_port_utilisation_ratio:count_over_half{@jobs}`) + ` and ` + worst,
		},
		Column{Name: "ports held", Expr: row(`job_destination:tcp_destination_ports_used:sum{@jobs}`) + ` and ` + worst, Unit: "none"},
	)
	return Panel{
		Title: "The worst destinations across all machines",
		Description: "\"Worst\" is the share of its ports that the worst machine can't use toward that destination; \"over half\" counts the namespaces which have used half of theirs; " +
			"\"ports held\" is of all machines together. Click a destination for its machines, beside.\n\n" +
			"One machine over half is that machine's client: let it reuse connections. Many are a backend that is slow, or one address where there should be more.",
		Cure: "It helped when \"worst\" falls, once the TIME_WAITs that are there have ended.",
		Unit: "percentunit", Width: half, Height: 10,
		Draw: draw, Queries: queries,
		Limits: []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
	}
}

func destinationMachinesPanel() Panel {
	toward := `{@jobs,remote_ip="$remote_ip",remote_port="$remote_port"}`
	worst := `topk(20, max by (job, instance, netns) (tcp_destination_port_utilisation_ratio` + toward + `))`
	draw, queries := rowsOf([]string{"instance", "netns", "job"},
		map[string]dashboard.DashboardLink{"instance": machineLink("timewait-destinations", withNetns)},
		Column{Name: "in use", Expr: worst, Limit: true},
		Column{Name: "ports held", Expr: `sum by (job, instance, netns) (tcp_destination_ports_used` + toward + `) and ` + worst, Unit: "none"},
	)
	return Panel{
		Title: "Which machines hold ports toward $remote_ip port $remote_port?",
		Description: "The machines that have used most of their ports toward the destination that is selected above: the worst one, or the one that was clicked beside. " +
			"Click a machine for what holds them, and since when.",
		Cure: "Slow down the clients on the worst of them. It helped when its row falls, once the TIME_WAITs that are there have ended.",
		Unit: "percentunit", Width: half, Height: 10,
		Draw: draw, Queries: queries,
		Limits: []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
	}
}

func closeWaitMachinesPanel() Panel {
	most := `topk(20, max by (job, instance, netns) (instance_netns_state:tcp_connections:sum{@jobs,state="close_wait"}) > 0)`
	draw, queries := rowsOf([]string{"instance", "netns", "job"}, map[string]dashboard.DashboardLink{"instance": machineLink("timewait-host", withNetns)},
		Column{Name: "close_wait", Expr: most, Unit: "short"},
		Column{
			Name: "of the open ones", Limit: true,
			Expr: most + ` / on (job, instance, netns) sum by (job, instance, netns) (instance_netns_state:tcp_connections:sum{@jobs,state=~"close_wait|established"})`,
		},
	)
	return Panel{
		Title: "Most CLOSE_WAITs",
		Description: "Connections that the peer has closed and a program of the machine has not; beside it their share of the open ones, established or close_wait. " +
			"Many, and more from hour to hour, are a leak that ends with \"Too many open files\". No rows: there is none.\n\n" +
			"Click a machine for the remote; ss -tnp state close-wait there names the program.",
		Cure: "Restart that program. It helped when the row falls and stays low.",
		Unit: "percentunit", Width: half, Height: 10,
		Draw: draw, Queries: queries,
		Limits: []string{"TCPCloseWaitLeak"},
	}
}

func fleetRemotesPanel() Panel {
	draw, queries := rowsOf([]string{"remote_ip", "direction", "state", "job"}, nil,
		Column{Name: "connections", Expr: `max by (job, remote_ip, direction, state) (topk(20, job_remote:tcp_remote_connections:sum{@jobs}))`, Colour: blue})
	return Panel{
		Title: "The largest remotes across all machines",
		Description: "Whom the connections of all machines together come from (inbound) or go to (outbound), by state. Sums of what each machine lists among its largest remotes: " +
			"one that is small everywhere is missing.",
		Unit: "short", Width: half, Height: 10,
		Draw: draw, Queries: queries,
	}
}

func alertsPanel() Panel {
	// One machine of each alert serves its runbook.
	draw, queries := rowsOf([]string{"severity", "alertname", "job", "instance"},
		map[string]dashboard.DashboardLink{
			"instance": machineLink("timewait-host", ""),
			"alertname": {
				Title:       "Runbook of ${__data.fields.alertname}",
				Url:         new("http://${__data.fields.instance}/runbooks/${__data.fields.alertname}"),
				TargetBlank: true,
				Tags:        []string{},
			},
		},
		Column{Name: "machines", Expr: `count by (severity, alertname, job) (count by (severity, alertname, job, instance) (ALERTS{alertstate="firing",@jobs}))`},
		Column{
			Name: "series there",
			Expr: `topk by (severity, alertname, job) (1, count by (severity, alertname, job, instance) (ALERTS{alertstate="firing",@jobs}))`,
		},
	)
	return Panel{
		Title: "Which alerts fire?",
		Description: "Each alert that fires, on how many machines, and one machine where most of it does. Click the alert for its runbook, the machine for its dashboard. " +
			"No rows: nothing fires.",
		Unit: "none", Width: half, Height: 8,
		Draw: draw, Queries: queries,
	}
}

func alertedMachinesPanel() Panel {
	draw, queries := rowsOf([]string{"instance", "job"}, map[string]dashboard.DashboardLink{"instance": machineLink("timewait-host", "")},
		Column{
			Name: "alerts", Colour: vermilion,
			Expr: `topk(20, count by (job, instance) (count by (job, instance, alertname) (ALERTS{alertstate="firing",@jobs})))`,
		})
	return Panel{
		Title: "Which machines have most alerts?",
		Description: "Machines by the number of their different alerts. Many on one machine usually have one cause: open its dashboard. " +
			"No rows: nothing fires.",
		Unit: "none", Width: half, Height: 8,
		Draw: draw, Queries: queries,
	}
}
