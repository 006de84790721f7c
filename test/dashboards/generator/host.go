package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// hostBoard answers for one machine, in the order in which one asks at night.
func hostBoard() Board {
	return Board{
		UID:         "timewait-host",
		Title:       "TCP connections: host",
		Description: "One machine's TCP connections: is anything wrong, since when, who is doing it, and how long is there left.",
		Alerts:      `max by (alertname, severity, netns) (ALERTS{@firing,@instance})`,
		Runbooks:    "http://${instance}/runbooks/",
		Links:       []dashboard.DashboardLink{linkTo("timewait-destinations", "Destinations and ports", true), linkTo("timewait-fleet", "Fleet", false)},
		Variables:   instanceVariables(),
		Sections: []Section{
			{"", []Panel{
				{
					Title: "Fullest port pool",
					Description: "The share of the ephemeral ports that a new connect() to the worst destination, or a new bind() on the worst local IP, " +
						"can't use. At 100 % that call fails with \"Cannot assign requested address\" or \"Address already in use\".\n\n" +
						"Past the first limit connect() is already slow. See below which remote it is, and the destinations dashboard for the port it is on.",
					Cure: "Slow down the clients of the worst destination and let them reuse connections. The graph of ports in use below tells since when; it helped when this falls, once the TIME_WAITs that are there have ended.",
					Unit: "percentunit", Width: quarter, Height: 4,
					Draw:     bigNumber().Min(0).Max(1).Decimals(0),
					Queries:  []Query{{Expr: `max(tcp_ephemeral_port_utilisation_ratio{@netns,pool=~"connect|bind"})`, Instant: true}},
					Limits:   []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
					Runbooks: []string{"TCPBindPortsNearExhaustion"},
				},
				{
					Title: "CLOSE_WAIT of the open connections",
					Description: "Connections that the peer has closed and our program, which had accepted them, has not, of the established ones and these, in the worse direction: " +
						"the least of 5 minutes, so that a close which takes a moment does not count.\n\n" +
						"High or growing: a program leaks connections, and each costs it an open file.",
					Cure: "Restart the program: the table below says toward whom, ss -tnp state close-wait which one. The graph of states tells since when; it helped when this falls and stays low.",
					Unit: "percentunit", Width: quarter, Height: 4,
					Draw: bigNumber().Min(0).Max(1).Decimals(0),
					Queries: []Query{{
						Expr: `max(sum by (direction) (min_over_time(tcp_connections{@netns,state="close_wait"}[5m])` +
							` or -label_replace(max_over_time(tcp_listener_unaccepted_connections{@netns,state="close_wait"}[5m]), "direction", "inbound", "", "")) / ` +
							`clamp_min(sum by (direction) (max_over_time(tcp_connections{@netns,state=~"close_wait|established"}[5m])), 1))`,
						Instant: true,
					}},
					Limits: []string{"TCPCloseWaitLeak"},
				},
				{
					Title: "Fullest accept queue",
					Description: "Connections that wait for the program's accept(), of what its listen() allows, at the fullest listening socket: with SO_REUSEPORT each has a queue of its own. " +
						"At 100 % the kernel drops the next handshake that comes to it.\n\n" +
						"Seldom empty: the program is too slow. The destinations dashboard names the listener.",
					Cure: "Restart the program if it hangs, else take load off it. The destinations dashboard names the listener and tells since when; it helped when this is near 0.",
					Unit: "percentunit", Width: quarter, Height: 4,
					Draw:     bigNumber().Min(0).Max(1).Decimals(0).Thresholds(always(green)).Mappings(from(1, dashboard.ValueMappingResult{Color: new(vermilion)})),
					Queries:  []Query{{Expr: `max(tcp_listener_accept_queue_fill_ratio{@netns})`, Instant: true}},
					Runbooks: []string{"TCPAcceptQueueNotDrained", "TCPListenQueueOverflowing"},
				},
				{
					Title: "TIME_WAIT of its limit",
					Description: "TIME_WAIT sockets, as the kernel counts them, of net.ipv4.tcp_max_tw_buckets. Past it the kernel drops new ones at once: " +
						"a late segment of the old connection then meets a reset, or a new connection.\n\n" +
						"Look at who holds them before raising the limit.",
					Cure: "Let those who hold them keep their connections open, or raise the limit if so many closes are right. The graph of TIME_WAIT below tells since when; it helped when this falls, once those that are there have ended.",
					Unit: "percentunit", Width: quarter, Height: 4,
					Draw:     bigNumber().Min(0).Max(1).Decimals(0),
					Queries:  []Query{{Expr: `tcp_time_wait_sockets{@netns} / tcp_time_wait_limit{@netns}`, Instant: true}},
					Limits:   []string{"TCPTimeWaitAccumulating", "TCPTimeWaitNearLimit"},
					Runbooks: []string{"TCPTimeWaitOverflowing", "TCPTimeWaitOneRemote"},
				},
				{
					Title: "File handles of their limit",
					Description: "Open file handles of the whole machine, of fs.file-max. At 100 % nobody can open a socket or a file: \"Too many open files in system\".\n\n" +
						"A process has a limit of its own besides (ulimit -n), which is usually met first.",
					Cure: "Raise fs.file-max, which works at once, then restart the program that leaks. It helped when this falls.",
					Unit: "percentunit", Width: third, Height: 4,
					Draw:    bigNumber().Min(0).Max(1).Decimals(0),
					Queries: []Query{{Expr: `kernel_file_handles{@instance} / kernel_file_handles_limit{@instance}`, Instant: true}},
					Limits:  []string{"FileHandlesNearLimit"},
				},
				{
					Title: "Alerts that fire",
					Description: "Alerts about this machine that fire now, in all its network namespaces. The markers in the graphs below say which and since when; " +
						"the icon of a panel leads to the runbooks of the alerts that the panel is about.",
					Cure: "An alert stays for some minutes after its cause has gone: it helped when the figure falls that its text names, and then this.",
					Unit: "none", Width: third, Height: 4,
					Draw: noneIsGood(vermilion),
					// up is there whenever Prometheus knows the machine, so no alert shows as 0 and no exporter as no data.
					Queries: []Query{{Expr: `count(count by (alertname) (ALERTS{alertstate="firing",@instance})) or 0 * max(up{@instance})`, Instant: true}},
				},
				{
					Title: "Can these figures be trusted?",
					Description: "\"yes\" when Prometheus reached the exporter and every collector of this namespace read all it should. " +
						"\"no\" when it is down or read only a part: its metrics are then absent, not zero. No data means that Prometheus does not know it.\n\n" +
						"The exporter's log says why in one line.",
					Cure: "Read the log and start the exporter if it is down. It helped when this says yes.",
					Unit: "none", Width: third, Height: 4,
					Draw: bigNumber().
						Thresholds(always(vermilion)).
						Mappings(exactly(map[string]dashboard.ValueMappingResult{
							"0": {Text: new("no"), Color: new(vermilion)},
							"1": {Text: new("yes"), Color: new(green)},
						})),
					Queries:  []Query{{Expr: `min(up{@instance} or timewait_exporter_collector_success{@netns})`, Instant: true}},
					Runbooks: []string{"TimewaitExporterDown", "TimewaitExporterScrapeFailing", "TimewaitExporterSlow"},
				},
			}},
			{"Since when?", []Panel{
				{
					Title: "Connections by state, TIME_WAIT apart",
					Description: "Every connection of the namespace, both families, without listeners and TIME_WAIT. A CLOSE_WAIT band that grows and never drains is a program " +
						"that does not close its sockets; SYN_SENT is connects that nobody answers; SYN_RECV is half-open clients.",
					Cure: "CLOSE_WAIT: restart that program. SYN_SENT: see whether the destination is alive. SYN_RECV: look at the accept queues. FIN_WAIT2: the peers do not close. It helped when the band falls.",
					Unit: "short", Width: half, Height: 9,
					Draw:     withStateColours(areas()),
					Queries:  []Query{{Expr: `sum by (state) (tcp_connections{@netns,state!~"time_wait|listen"})`, Legend: "{{state}}"}},
					Runbooks: []string{"TCPCloseWaitLeak", "TCPFinWait2Accumulating", "TCPSynFlood"},
				},
				{
					Title: "TIME_WAIT by direction",
					Description: "Outbound TIME_WAITs hold one of our ephemeral ports each, as long as they last (60 s on most kernels): they are what exhaustion is made of. " +
						"Inbound ones hold none, they cost memory and room below the limit; there it is the clients' ports that run out.",
					Cure: "Outbound: let our clients reuse connections. Inbound: keep connections open longer, so that the clients close first. It helped when this falls, once those that are there have ended.",
					Unit: "short", Width: half, Height: 9,
					Draw:     withColours(areas(), named{"outbound", orange}, named{"inbound", sky}),
					Queries:  []Query{{Expr: `sum by (direction) (tcp_connections{@netns,state="time_wait"})`, Legend: "{{direction}}"}},
					Runbooks: []string{"TCPTimeWaitAccumulating"},
				},
			}},
			{"Who, and which way?", []Panel{
				remotesPanel(),
				{
					Title: "Inbound or outbound?",
					Description: "Inbound is what our listeners accepted, outbound what our programs opened. It decides who must change: outbound TIME_WAIT is cured in our client code " +
						"(reuse connections), inbound TIME_WAIT costs the peers.",
					Unit: "short", Width: quarter, Height: 10,
					Draw: withStateColours(bars()),
					Queries: []Query{{
						Expr:    `sum by (direction, state) (tcp_connections{@netns,state=~"established|time_wait|close_wait"})`,
						Legend:  "{{direction}} {{state}}",
						Instant: true,
					}},
				},
				{
					Title: "Share of the largest remote",
					Description: "How much of a state one single remote IP holds; inbound is dashed. Behind a load balancer that is fair this stays low; near 100 % one remote is the " +
						"whole story. It says little while there are few connections: compare with the table.",
					Cure: "Outbound: give the client of that remote a pool. Inbound: bring idle balancers back, or limit that client. It helped when the share falls.",
					Unit: "percentunit", Width: quarter, Height: 10,
					Draw: withStateColours(narrow(linesWithLimits().Max(1))).OverrideByRegexp("/^inbound /", dashed),
					Queries: []Query{{
						Expr:   `tcp_remote_top_share_ratio{@netns}`,
						Legend: "{{direction}} {{state}}",
					}},
					Limits: []string{"TCPTimeWaitOneRemote", "TCPOneRemoteDominates"},
				},
			}},
			{"How long have I got?", []Panel{
				{
					Title: "Ports in use, against the alerts' limits",
					Description: "\"connect\" is the worst destination, \"bind\" the worst local IP, \"bind_any\" all local IPs together. At 100 % the next such call fails: " +
						"bind_any is for bind(::, 0) and listen() without bind(), and the upper bound of connect for clients that bind first.\n\n" +
						"Half is a limit of its own: from there the kernel searches through the used ports and connect() gets 50 to 300 times slower.",
					Cure: "Slow down the clients of the worst destination; a wider net.ipv4.ip_local_port_range gains time at once. It helped when the line falls, once the TIME_WAITs that are there have ended.",
					Unit: "percentunit", Width: fullWidth - quarter, Height: 8,
					Draw:     withColours(linesWithLimits().Max(1), named{"connect", blue}, named{"bind", purple}, named{"bind_any", sky}),
					Queries:  []Query{{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns}`, Legend: "{{pool}}"}},
					Limits:   []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
					Runbooks: []string{"TCPBindPortsNearExhaustion"},
				},
				{
					Title: "Until a pool is full",
					Description: "When the fuller pool, connect or bind, will be full if it goes on as in the last 3 minutes; 0 s: it is, and connect() or bind() fails now. " +
						"A pool that does not fill, or only within more than a day, reads \"not filling\".",
					Cure: "Stop what leaks or closes connections. It helped when this grows, or says \"not filling\", 3 minutes later.",
					Unit: "s", Width: quarter, Height: 8,
					Draw: bigNumber().Decimals(0).Mappings(from(day, dashboard.ValueMappingResult{Text: new("not filling"), Color: new(green)})),
					// A pool that stands still or drains would be full after an endless time; the smallest slope keeps that a number.
					Queries: []Query{{
						Expr: `min(clamp_max((1 - max_over_time(tcp_ephemeral_port_utilisation_ratio{@netns,pool=~"connect|bind"}[1m])) / ` +
							`clamp_min(deriv(tcp_ephemeral_port_utilisation_ratio{@netns,pool=~"connect|bind"}[3m]), 1e-12), 86400))`,
						Instant: true,
					}},
					Horizon: "TCPEphemeralPortsExhaustionPredicted",
				},
			}},
			{"What shape is the churn?", []Panel{
				{
					Title: "Time left of the TIME_WAITs",
					Description: "Each column is one scrape: how many seconds the TIME_WAIT sockets still have, at most. An even column is a steady rate of closes; " +
						"a dark cell that sinks towards zero is a burst, and its age says when it was.",
					Unit: "short", Width: half, Height: 9,
					Draw: bucketsOverTime("s"),
					Queries: []Query{{
						Expr:   `sum by (remaining) (tcp_time_wait_remaining_connections{@netns})`,
						Legend: "{{remaining}}",
					}},
				},
				{
					Title: "TIME_WAITs started and reused per second",
					Description: "The true close rate, also of connections that came and went between two scrapes. \"full\" lasts as long as TIME_WAIT does (60 s on most kernels); \"short\" are orphans of a small tcp_fin_timeout; " +
						"\"reused\" are those that a new connect() took over (tcp_tw_reuse). Started less reused, times that, is how many there will be.",
					Unit: "cps", Width: half, Height: 9,
					Draw: withColours(lines(), named{"full", orange}, named{"short", green}, named{"reused", blue}),
					Queries: []Query{
						{Expr: `rate(tcp_time_wait_started_total{@netns}[$__rate_interval])`, Legend: "{{timer}}"},
						{Expr: `rate(tcp_time_wait_reused_total{@netns}[$__rate_interval])`, Legend: "reused"},
					},
				},
			}},
			{"What does the kernel say?", []Panel{
				{
					Title: "Dropped, refused and aborted per second",
					Description: "Everything but zero is a client or a service that noticed. Listen overflows: an accept queue was full. Listen drops: any handshake thrown away, those included. " +
						"TIME_WAIT overflows: the limit was met. SYN cookies: the queue of half-open clients was full.",
					Cure: "The runbook of the line that rises says what to do. It helped when the line is back at 0.",
					Unit: "cps", Width: half, Height: 9,
					Draw: withColours(wideNames(lines()), named{"TIME_WAIT overflows", orange}, named{"listen overflows", vermilion}, named{"listen drops", yellow},
						named{"SYN cookies sent", purple}).OverrideByRegexp("/^aborts: /", dashed),
					Queries: []Query{
						{Expr: `rate(tcp_time_wait_overflows_total{@netns}[$__rate_interval])`, Legend: "TIME_WAIT overflows"},
						{Expr: `rate(tcp_listen_overflows_total{@netns}[$__rate_interval])`, Legend: "listen overflows"},
						{Expr: `rate(tcp_listen_drops_total{@netns}[$__rate_interval])`, Legend: "listen drops"},
						{Expr: `rate(tcp_syn_cookies_sent_total{@netns}[$__rate_interval])`, Legend: "SYN cookies sent"},
						{Expr: `rate(tcp_aborts_total{@netns}[$__rate_interval])`, Legend: "aborts: {{reason}}"},
						{Expr: `rate(tcp_abort_failures_total{@netns}[$__rate_interval])`, Legend: "resets not sent"},
					},
					Runbooks: []string{"TCPTimeWaitOverflowing", "TCPListenQueueOverflowing", "TCPSynFlood", "TCPConnectionsAbortedForMemory"},
				},
				{
					Title: "Opened, failed and reset per second",
					Description: "Opens we started and accepted, attempts that failed, connections that were reset, segments sent again. " +
						"A connect() that finds no port is in none of these: the kernel does not count it.",
					Unit: "cps", Width: half, Height: 9,
					Draw: withColours(wideNames(lines()), named{"opened by us", blue}, named{"accepted", sky}, named{"attempts failed", vermilion},
						named{"established, then reset", orange}, named{"resets sent", purple}, named{"segments sent again", yellow}),
					Queries: []Query{
						{Expr: `rate(tcp_active_opens_total{@netns}[$__rate_interval])`, Legend: "opened by us"},
						{Expr: `rate(tcp_passive_opens_total{@netns}[$__rate_interval])`, Legend: "accepted"},
						{Expr: `rate(tcp_attempt_fails_total{@netns}[$__rate_interval])`, Legend: "attempts failed"},
						{Expr: `rate(tcp_established_resets_total{@netns}[$__rate_interval])`, Legend: "established, then reset"},
						{Expr: `rate(tcp_out_resets_total{@netns}[$__rate_interval])`, Legend: "resets sent"},
						{Expr: `rate(tcp_retransmitted_segments_total{@netns}[$__rate_interval])`, Legend: "segments sent again"},
					},
				},
				{
					Title: "How near is TCP memory pressure?",
					Description: "Memory of all sockets of the machine, of the second value of net.ipv4.tcp_mem. Past 100 % the kernel shrinks buffers and prunes queues; " +
						"past the third value it kills connections. Queues that nobody reads, and many connections, fill it.",
					Cure: "Restart the program that does not read its sockets; raise the limits if there is memory. It helped when the line falls: pressure ends only at the first value, the low one.",
					Unit: "percentunit", Width: quarter, Height: 8,
					Draw: withColours(narrow(linesWithLimits()), named{"memory", blue}),
					Queries: []Query{{
						Expr:   `tcp_memory_bytes{@instance} / ignoring (level) tcp_memory_limit_bytes{@instance,level="pressure"}`,
						Legend: "memory",
					}},
					Limits:   []string{"TCPMemoryPressure"},
					Runbooks: []string{"TCPConnectionsAbortedForMemory"},
				},
				{
					Title: "Orphans of their limit",
					Description: "Connections that no program owns any more but whose data or FIN the peer has not yet confirmed, of net.ipv4.tcp_max_orphans. " +
						"Past it the kernel resets them. Many orphans mean peers that vanished or do not read.",
					Cure: "Block a peer that never reads; raise the limit if there is memory. It helped when the line falls.",
					Unit: "percentunit", Width: quarter, Height: 8,
					Draw:    withColours(narrow(linesWithLimits()), named{"orphans", purple}),
					Queries: []Query{{Expr: `tcp_orphans{@instance} / tcp_orphan_limit{@instance}`, Legend: "orphans"}},
					Limits:  []string{"TCPOrphansNearLimit"},
				},
				sysctlsPanel(),
			}},
		},
	}
}

// day is, in seconds, where "Until a pool is full" stops counting.
const day = 86400.0

func remotesPanel() Panel {
	remote := func(matchers string) string {
		return `sum by (remote_ip, direction) (tcp_remote_connections{@netns` + matchers + `})`
	}
	draw, queries := rowsOf([]string{"remote_ip", "direction"}, nil,
		Column{Name: "connections", Expr: remote(``), Colour: blue},
		Column{Name: "established", Expr: remote(`,state="established"`), Colour: blue, Sparse: true},
		Column{Name: "time_wait", Expr: remote(`,state="time_wait"`), Colour: orange, Sparse: true},
		Column{Name: "close_wait", Expr: remote(`,state="close_wait"`), Colour: vermilion, Sparse: true},
		Column{Name: "half open", Expr: remote(`,state=~"syn_sent|syn_recv"`), Colour: purple, Sparse: true},
	)
	return Panel{
		Title: "Which remotes hold the connections?",
		Description: "The remote IPs with the most connections, each way; \"other\" is exactly the rest. An IPv4 client of a dual-stack listener is here by its IPv4 address.\n\n" +
			"Many time_wait outbound: our client does not reuse its connections to that remote. Many close_wait: our program does not close them.",
		Cure: "It helped when the number of that remote falls, once the TIME_WAITs that are there have ended.",
		Unit: "short", Width: half, Height: 10,
		Draw: draw, Queries: queries,
		Runbooks: []string{"TCPTimeWaitOneRemote"},
	}
}

func sysctlsPanel() Panel {
	queries := []Query{
		{Expr: `tcp_ephemeral_port_range_low{@netns}`, Legend: "ip_local_port_range: first ephemeral port"},
		{Expr: `tcp_ephemeral_port_range_high{@netns}`, Legend: "ip_local_port_range: last ephemeral port"},
		{Expr: `tcp_time_wait_limit{@netns}`, Legend: "tcp_max_tw_buckets: more TIME_WAITs are dropped"},
		{Expr: `tcp_time_wait_reuse_mode{@netns}`, Legend: "tcp_tw_reuse: connect() may take over a TIME_WAIT: 0 no, 1 yes, 2 on loopback"},
		{Expr: `tcp_time_wait_recycle_enabled{@netns}`, Legend: "tcp_tw_recycle: must be 0; kernels from 4.12 on do not have it"},
		{Expr: `tcp_time_wait_duration_seconds{@netns}`, Legend: "tcp_tw_timeout, or the kernel's constant: seconds of TIME_WAIT"},
		{Expr: `tcp_fin_timeout_seconds{@netns}`, Legend: "tcp_fin_timeout: seconds of an orphaned FIN_WAIT2, not of TIME_WAIT"},
		{Expr: `tcp_listen_backlog_limit{@netns}`, Legend: "somaxconn: largest accept queue a listen() can have"},
		{Expr: `tcp_syn_backlog_limit{@netns}`, Legend: "tcp_max_syn_backlog: half-open clients a listener keeps"},
	}
	for i := range queries {
		queries[i].Instant = true
	}
	return Panel{
		Title: "Which limits are in force?",
		Description: "The sysctls of this namespace that decide about the above, with what each one does. " +
			"How long TIME_WAIT lasts is a constant of the kernel, 60 s; only some vendors' kernels have a sysctl for it.",
		Cure: "Set tcp_tw_recycle to 0 where it is not. Where rows are missing the exporter can't see the sysctls. It helped when the next scrape shows the value.",
		Unit: "none", Width: half, Height: 8,
		Draw: oneValueEach(), Queries: queries,
		Runbooks: []string{"TCPTimeWaitRecycleEnabled", "TimewaitExporterSysctlsMissing"},
	}
}
