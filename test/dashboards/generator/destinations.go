package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// destinationsBoard says which destination, port and listener it is.
func destinationsBoard() Board {
	return Board{
		UID:         "timewait-destinations",
		Title:       "TCP connections: destinations and ports",
		Description: "Which destination runs out of ephemeral ports, what holds them, and whether our own listeners keep up.",
		Alerts:      `max by (alertname, severity, netns) (ALERTS{@firing,@instance})`,
		Runbooks:    "http://${instance}/runbooks/",
		Links:       []dashboard.DashboardLink{linkTo("timewait-host", "Host", true), linkTo("timewait-fleet", "Fleet", false)},
		Variables:   instanceVariables(),
		Sections: []Section{
			{"", []Panel{
				{
					Title: "Worst destination",
					Description: "The share of the ephemeral ports that a new connect() to the worst destination can't use. \"At least\" is exact when no client binds a port before it connects. " +
						"\"At most\" is right when all do: such a port is kept from every destination. At 100 % connect() fails with \"Cannot assign requested address\".\n\n" +
						"It fails, and \"at least\" is low? The runbook of TCPBindPortsNearExhaustion tells how to prove who binds first.",
					Cure: "Slow down the clients of that destination and let them reuse connections. The graph below tells since when; it helped when this falls, once the TIME_WAITs that are there have ended.",
					Unit: "percentunit", Width: quarter, Height: 5,
					Draw: bigNumber().Min(0).Max(1).Decimals(0).TextMode(common.BigValueTextModeValueAndName).OverrideByName("at most", colour(grey)),
					Queries: []Query{
						{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns,pool="connect"}`, Legend: "at least", Instant: true},
						{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns,pool="bind_any"}`, Legend: "at most", Instant: true},
					},
					Limits:   []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
					Runbooks: []string{"TCPBindPortsNearExhaustion"},
				},
				{
					Title: "Ports a destination can have",
					Description: "The ephemeral pool: net.ipv4.ip_local_port_range less ip_local_reserved_ports. Each pair of local IP and destination has the whole pool for itself: " +
						"a second local IP, or a second address or port of the backend, doubles what is possible.",
					Unit: "none", Width: quarter, Height: 5,
					Draw:    plainNumber(),
					Queries: []Query{{Expr: `tcp_ephemeral_ports{@netns}`, Instant: true}},
				},
				{
					Title: "Closes a destination bears",
					Description: "Connections per second that this machine can open to one destination and close itself, for ever: each holds a port as long as its TIME_WAIT lasts (60 s on most kernels). " +
						"Beyond that the pool fills up however short the connections are. Compare with the close rate on the host dashboard.",
					Unit: "cps", Width: quarter, Height: 5,
					Draw:    plainNumber().Decimals(0),
					Queries: []Query{{Expr: `tcp_ephemeral_ports{@netns} / tcp_time_wait_duration_seconds{@netns}`, Instant: true}},
				},
				{
					Title: "Destinations in use",
					Description: "Distinct outbound triples of local IP, remote IP and remote port, all of them. The panels below show the worst of them " +
						"(--collector.destinations).",
					Unit: "none", Width: quarter, Height: 5,
					Draw:    plainNumber(),
					Queries: []Query{{Expr: `tcp_destinations{@netns}`, Instant: true}},
				},
				destinationsPanel(),
				{
					Title: "Ports in use per destination",
					Description: "The same destinations over time, with the limits of the alerts. A steady climb is a rate of closes the pool can't bear; " +
						"a step is a burst that is over when its TIME_WAITs end, in 60 s on most kernels; a plateau of established connections is a pool of clients that never lets go.",
					Cure: "Look for what changed where the climb began, and slow down those clients. It helped when the line falls, once the TIME_WAITs that are there have ended.",
					Unit: "percentunit", Width: half, Height: 10,
					Draw: wideNames(linesWithLimits().Max(1)),
					Queries: []Query{{
						Expr:   `tcp_destination_port_utilisation_ratio{@netns}`,
						Legend: "{{remote_ip}} port {{remote_port}} from {{local_ip}}",
					}},
					Limits:   []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
					Runbooks: []string{"TCPEphemeralPortsExhaustionPredicted"},
				},
			}},
			{"How many ports are held, and by what?", []Panel{
				{
					Title: "Both pools, lower and upper bound",
					Description: "connect(): between \"worst destination\" (no client binds before it connects) and \"held by anything\" (all do). The kernel does not tell which clients bind. " +
						"bind(ip, 0): \"worst local IP\" is exact. bind(::, 0) and listen() without bind() need a port that is not held by anything.\n\nA gap between the bounds is harmless as long as clients just connect.",
					Cure: "Widen net.ipv4.ip_local_port_range, which works at once, and let programs that bind first use IP_BIND_ADDRESS_NO_PORT. It helped when the line falls.",
					Unit: "percentunit", Width: half, Height: 9,
					Draw: withColours(wideNames(linesWithLimits().Max(1)), named{"worst destination (lower bound)", blue}, named{"worst local IP (bind)", purple},
						named{"held by anything (upper bound)", sky}),
					Queries: []Query{
						{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns,pool="connect"}`, Legend: "worst destination (lower bound)"},
						{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns,pool="bind_any"}`, Legend: "held by anything (upper bound)"},
						{Expr: `tcp_ephemeral_port_utilisation_ratio{@netns,pool="bind"}`, Legend: "worst local IP (bind)"},
					},
					Limits: []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
				},
				{
					Title: "Ports held toward the worst destinations, by state",
					Description: "Mostly time_wait: connections are opened and closed for each request, reuse them. Mostly established: a pool without a limit, or a slow backend. " +
						"Mostly close_wait: the backend closed and our program did not. Mostly syn_sent: the backend does not answer.",
					Cure: "It helped when the band falls, once the TIME_WAITs that are there have ended.",
					Unit: "short", Width: half, Height: 9,
					Draw:     withStateColours(areas()),
					Queries:  []Query{{Expr: `sum by (state) (tcp_destination_ports_used{@netns})`, Legend: "{{state}}"}},
					Runbooks: []string{"TCPTimeWaitReuseNotWorking"},
				},
				{
					Title: "Ports in use per local IP",
					Description: "What a bind(ip, 0) on each local IP competes for: ports with any socket on them, whatever the destination. " +
						"At 100 % it fails with \"Address already in use\". Clients that set a source address bind; IP_BIND_ADDRESS_NO_PORT spares them this.",
					Cure: "Stop binding to an address that routing would choose anyway, or add a local address. It helped when the bar falls.",
					Unit: "percentunit", Width: half, Height: 8,
					Draw:    bars().Max(1).ColorScheme(byLimit()).DisplayName("${__field.labels.local_ip}"),
					Queries: []Query{{Expr: `sort_desc(tcp_local_port_utilisation_ratio{@netns})`, Legend: "{{local_ip}}", Instant: true}},
					Limits:  []string{"TCPBindPortsNearExhaustion"},
				},
				{
					Title: "Bytes in the sockets' queues",
					Description: "Receive: data that our programs have not read. Send: data that peers have not confirmed. " +
						"A receive queue that grows is a program that stalls; a send queue that grows is a peer or a path that does.",
					Unit: "bytes", Width: half, Height: 8,
					Draw: withColours(wideNames(lines()), named{"inbound receive", sky}, named{"inbound send", blue}, named{"outbound receive", yellow},
						named{"outbound send", orange}),
					Queries: []Query{{Expr: `tcp_queue_bytes{@netns}`, Legend: "{{direction}} {{queue}}"}},
				},
			}},
			{"Do our own listeners keep up?", []Panel{
				listenersPanel(),
				{
					Title: "Accept queues",
					Description: "How full the fullest queue of each listener is (with SO_REUSEPORT each socket has its own). At 100 % the kernel drops the next handshake that comes to it. " +
						"A queue that is not empty for long is a program that does not call accept() fast enough.",
					Cure: "Restart the program if it hangs, else take load off it. It helped when the line is back at 0.",
					Unit: "percentunit", Width: half, Height: 9,
					Draw:     wideNames(lines().Max(1)),
					Queries:  []Query{{Expr: `tcp_listener_accept_queue_fill_ratio{@netns}`, Legend: "{{local_ip}} port {{local_port}}"}},
					Runbooks: []string{"TCPAcceptQueueNotDrained", "TCPListenQueueOverflowing"},
				},
				{
					Title: "Accepted by the kernel, not by the program",
					Description: "Connections per listening port that are established for the client while no program has taken them. " +
						"The client waits for an answer that nobody works on; close_wait: it has given up. They hold no file descriptor.",
					Cure: "Restart the program if it hangs, else take load off it. It helped when the line is back at 0.",
					Unit: "short", Width: third, Height: 8,
					Draw:     narrow(lines()),
					Queries:  []Query{{Expr: `tcp_listener_unaccepted_connections{@netns}`, Legend: "port {{local_port}} {{state}}"}},
					Runbooks: []string{"TCPAcceptQueueNotDrained"},
				},
				portsPanel(),
				{
					Title: "Handshakes dropped per second",
					Description: "Overflows: the accept queue was full. Drops: any handshake thrown away, those included. A client's retry counts again. " +
						"Both count for the whole namespace: the table says which listener it is.",
					Cure: "A queue is full: restart or relieve that program. None is: a flood, have it stopped upstream. It helped when both are 0.",
					Unit: "cps", Width: third, Height: 8,
					Draw: withColours(narrow(lines()), named{"overflows", vermilion}, named{"drops", yellow}),
					Queries: []Query{
						{Expr: `rate(tcp_listen_overflows_total{@netns}[$__rate_interval])`, Legend: "overflows"},
						{Expr: `rate(tcp_listen_drops_total{@netns}[$__rate_interval])`, Legend: "drops"},
					},
					Runbooks: []string{"TCPListenQueueOverflowing", "TCPSynFlood"},
				},
			}},
			{"Are these figures complete?", []Panel{
				{
					Title: "Connections a count may be short by",
					Description: "0 says that every count on this dashboard is exact. More appears when there were more distinct remotes, destinations or local IPs than are counted one by one: " +
						"then any single one may have that many connections more than shown.",
					Unit: "short", Width: half, Height: 6,
					Draw:    bars(),
					Queries: []Query{{Expr: `timewait_exporter_undercount_max{@netns}`, Legend: "{{by}}", Instant: true}},
				},
				{
					Title: "Time a scrape takes",
					Description: "Seconds each part of a scrape needed; all are read at the same time, so the longest one counts. The socket walk grows with the sockets of the whole machine, not of this namespace alone. " +
						"When it comes near the scrape timeout, raise that or scrape less often.",
					Cure: "--collector.source=netlink takes less than half. It helped when the longest one falls.",
					Unit: "s", Width: half, Height: 6,
					Draw:    linesWithLimits(),
					Queries: []Query{{Expr: `max by (collector) (timewait_exporter_collector_duration_seconds{@instance})`, Legend: "{{collector}}"}},
					Limits:  []string{"TimewaitExporterSlow"},
				},
			}},
		},
	}
}

func destinationsPanel() Panel {
	keys := []string{"local_ip", "remote_ip", "remote_port"}
	held := func(matchers string) string {
		return `sum by (local_ip, remote_ip, remote_port) (tcp_destination_ports_used{@netns` + matchers + `})`
	}
	draw, queries := rowsOf(keys, nil,
		Column{Name: "in use", Expr: `max by (local_ip, remote_ip, remote_port) (tcp_destination_port_utilisation_ratio{@netns})`, Limit: true},
		Column{Name: "time_wait", Expr: held(`,state="time_wait"`), Unit: "none", Colour: orange, Sparse: true},
		Column{Name: "established", Expr: held(`,state="established"`), Unit: "none", Colour: blue, Sparse: true},
		Column{Name: "close_wait", Expr: held(`,state="close_wait"`), Unit: "none", Colour: vermilion, Sparse: true},
		Column{Name: "syn_sent", Expr: held(`,state="syn_sent"`), Unit: "none", Colour: yellow, Sparse: true},
	)
	return Panel{
		Title: "The worst destinations, and what holds their ports",
		Description: "\"In use\" is what a new connect() can't have: the ports held, less the TIME_WAITs that it may take over, plus those that are blocked for all. " +
			"The other columns count ports by state.\n\ntime_wait: reuse connections. established: bound the client's pool. close_wait: close what the backend closed.",
		Cure: "It helped when \"in use\" falls, once the TIME_WAITs that are there have ended.",
		Unit: "percentunit", Width: half, Height: 10,
		Draw: draw, Queries: queries,
		Limits: []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsNearExhaustion"},
	}
}

func listenersPanel() Panel {
	draw, queries := rowsOf([]string{"local_ip", "local_port"}, nil,
		Column{Name: "waiting", Expr: `max by (local_ip, local_port) (tcp_listener_accept_queue{@netns})`, Unit: "none"},
		Column{Name: "limit", Expr: `max by (local_ip, local_port) (tcp_listener_accept_queue_limit{@netns})`, Unit: "none"},
		Column{Name: "sockets", Expr: `max by (local_ip, local_port) (tcp_listener_sockets{@netns})`, Unit: "none"},
		Column{Name: "full", Expr: `max by (local_ip, local_port) (tcp_listener_accept_queue_fill_ratio{@netns})`, Colour: vermilion, Max: 1},
	)
	return Panel{
		Title: "Which listener lets its clients wait?",
		Description: "Connections that wait for accept(), of how many the listener allows: the smaller of what the program passed to listen() and of net.core.somaxconn at that moment. " +
			"Several sockets on one port (SO_REUSEPORT) are summed; \"full\" is the fullest of them, as a hanging one loses its share of the clients whatever room the others have. " +
			"Limit and \"full\" are empty where the kernel does not tell them (no sock_diag).\n\nA larger limit helps against bursts, not against a program that is too slow.",
		Cure: "Restart the program if it hangs, else take load off it. It helped when nothing waits.",
		Unit: "percentunit", Width: half, Height: 9,
		Draw: draw, Queries: queries,
		Runbooks: []string{"TCPAcceptQueueNotDrained"},
	}
}

func portsPanel() Panel {
	on := func(matchers string) string {
		return `sum by (local_port) (tcp_listener_connections{@netns` + matchers + `})`
	}
	draw, queries := rowsOf([]string{"local_port"}, nil,
		Column{Name: "all", Expr: on(``), Colour: blue},
		Column{Name: "established", Expr: on(`,state="established"`), Sparse: true},
		Column{Name: "close_wait", Expr: on(`,state="close_wait"`), Sparse: true},
		Column{Name: "time_wait", Expr: on(`,state="time_wait"`), Sparse: true},
		Column{Name: "syn_recv", Expr: on(`,state="syn_recv"`), Sparse: true},
	)
	return Panel{
		Title: "Connections per listening port, by state",
		Description: "Which of our services it is: all states together, and the ones that matter. Many close_wait: the program behind that port does not close. " +
			"\"other\" is exactly the rest (--collector.listeners).",
		Unit: "short", Width: third, Height: 8,
		Draw: draw, Queries: queries,
	}
}
