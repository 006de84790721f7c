package collector

import (
	"bytes"
	"cmp"
	"iter"
	"net/netip"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/tcptable"
)

// Metric describes one metric of the exporter.
type Metric struct {
	Name   string
	Type   string // gauge or counter
	Labels []string
	// Source is where in the kernel the values come from.
	Source string
	Help   string

	desc *prometheus.Desc
}

func newMetric(name, kind, source, help string, labels ...string) *Metric {
	return &Metric{Name: name, Type: kind, Labels: labels, Source: source, Help: help,
		desc: prometheus.NewDesc(name, help, labels, nil)}
}

// What Source says of metrics that come from the walk.
const (
	fromTable     = "net/tcp, net/tcp6"
	fromDump      = "sock_diag, LISTEN sockets only"
	fromListeners = fromDump + ", else " + fromTable
	fromPool      = "net/tcp, net/tcp6, ip_local_port_range, ip_local_reserved_ports"
	fromReuse     = fromPool + ", tcp_tw_reuse"
)

// The metrics. Collect makes them anew in each scrape.
var (
	connections = newMetric("tcp_connections", "gauge", fromTable,
		"Sockets in the TCP table by address family (::ffff: addresses count as ipv4), direction and state. Inbound: a listener holds the local port.",
		"netns", "family", "direction", "state")
	remoteConnections = newMetric("tcp_remote_connections", "gauge", fromTable,
		"Connections of the remote IPs that have most of them, and of all others as remote_ip=\"other\". Only what is not zero.",
		"netns", "remote_ip", "direction", "state")
	remoteIPs = newMetric("tcp_remote_ips", "gauge", fromTable,
		"Distinct remote IPs, or blocks of them when remotes are folded into blocks.",
		"netns", "direction")
	remoteTopShare = newMetric("tcp_remote_top_share_ratio", "gauge", fromTable,
		"Share of the connections in a state that the one remote IP with most of them holds. 0 when there are none.",
		"netns", "direction", "state")
	ephemeralPorts = newMetric("tcp_ephemeral_ports", "gauge", "ip_local_port_range, ip_local_reserved_ports",
		"Size of the ephemeral pool: the ports of the local port range that are not reserved.",
		"netns")
	ephemeralPortsUsed = newMetric("tcp_ephemeral_ports_used", "gauge", fromPool,
		"Ports of the pool that any socket holds toward anything: the upper bound of what connect() can't use.",
		"netns")
	ephemeralLow = newMetric("tcp_ephemeral_port_range_low", "gauge", "ip_local_port_range",
		"First port of the local port range.", "netns")
	ephemeralHigh = newMetric("tcp_ephemeral_port_range_high", "gauge", "ip_local_port_range",
		"Last port of the local port range.", "netns")
	ephemeralUtilisation = newMetric("tcp_ephemeral_port_utilisation_ratio", "gauge", fromReuse,
		"Share of the pool that is gone where it is worst: pool=\"connect\" for connect() to the worst destination, pool=\"bind\" for bind() with port 0 on the worst local IP, pool=\"bind_any\" for bind() with port 0 on :: and listen() without bind(), as of Java and Go. At 1 the next such call fails.",
		"netns", "pool")
	destinationPortsUsed = newMetric("tcp_destination_ports_used", "gauge", fromPool,
		"Ports of the pool held toward a destination, by state, for the destinations with most of the pool gone and, a quarter of them, most of it held. Only what is not zero.",
		"netns", "local_ip", "remote_ip", "remote_port", "state")
	destinationUtilisation = newMetric("tcp_destination_port_utilisation_ratio", "gauge", fromReuse,
		"Share of the pool that connect() to this destination can't use: ports held toward it, less those in TIME_WAIT that may be reused, and ports of listeners (with source netlink also of idle bound sockets).",
		"netns", "local_ip", "remote_ip", "remote_port")
	destinations = newMetric("tcp_destinations", "gauge", fromTable,
		"Distinct destinations: local IP, remote IP and remote port of outbound connections.",
		"netns")
	localPortsUsed = newMetric("tcp_local_ports_used", "gauge", fromPool,
		"Ports of the pool that any socket holds on this local IP or on all, for the local IPs with most of them.",
		"netns", "local_ip")
	localUtilisation = newMetric("tcp_local_port_utilisation_ratio", "gauge", fromPool,
		"Share of the pool that bind() with port 0 on this local IP can't use.",
		"netns", "local_ip")
	listenerConnections = newMetric("tcp_listener_connections", "gauge", fromTable,
		"Inbound connections of the local ports that have most of them, and of all others as local_port=\"other\". Only syn_recv and what is not zero.",
		"netns", "local_port", "state")
	listenerSockets = newMetric("tcp_listener_sockets", "gauge", fromListeners,
		"LISTEN sockets on a local IP and port: more than one with SO_REUSEPORT or SO_BINDTODEVICE. Those beyond 20 local IPs of a port are local_ip=\"other\".",
		"netns", "local_ip", "local_port")
	listenerAcceptQueue = newMetric("tcp_listener_accept_queue", "gauge", fromListeners,
		"Connections waiting for accept(), in the queues of all its sockets together.",
		"netns", "local_ip", "local_port")
	listenerAcceptQueueLimit = newMetric("tcp_listener_accept_queue_limit", "gauge", fromDump,
		"Backlogs of all its sockets together. Each queue takes one connection more than its own. Absent where the kernel has no sock_diag or another namespace is read.",
		"netns", "local_ip", "local_port")
	listenerAcceptQueueFill = newMetric("tcp_listener_accept_queue_fill_ratio", "gauge", fromDump,
		"How full the fullest of its queues is: length / (backlog + 1), at most 1. At 1 the next handshake that goes to that socket is dropped, whatever room the others have.",
		"netns", "local_ip", "local_port")
	listenerFullSockets = newMetric("tcp_listener_full_sockets", "gauge", fromDump,
		"Sockets whose queue is full.",
		"netns", "local_ip", "local_port")
	listenerUnaccepted = newMetric("tcp_listener_unaccepted_connections", "gauge", fromTable,
		"Connections in ESTABLISHED or CLOSE_WAIT that the kernel has accepted and the program has not: they hold no file descriptor.",
		"netns", "local_port", "state")
	queueBytes = newMetric("tcp_queue_bytes", "gauge", fromTable,
		"Bytes that the programs have not read (queue=\"receive\") or the peers have not acknowledged (queue=\"send\"), listeners excluded.",
		"netns", "direction", "queue")
	orphanConnections = newMetric("tcp_orphan_connections", "gauge", fromTable,
		"Connections that their program has closed and the kernel still works on, TIME_WAIT and its like excluded.",
		"netns")
	timeWaitRemaining = newMetric("tcp_time_wait_remaining_connections", "gauge", fromTable,
		"Connections in TIME_WAIT by the seconds they have left: up to remaining, and more than the next smaller one. Each starts with tcp_time_wait_duration_seconds: one scrape shows the closes of as many seconds, and their bursts.",
		"netns", "direction", "remaining")

	timeWaitSockets = newMetric("tcp_time_wait_sockets", "gauge", "net/sockstat TCP tw",
		"The kernel's own count of sockets in TIME_WAIT, with those of FIN_WAIT2 that their program has closed.",
		"netns")
	timeWaitLimit = newMetric("tcp_time_wait_limit", "gauge", "net.ipv4.tcp_max_tw_buckets",
		"Sockets in TIME_WAIT at which the kernel drops further ones at once.", "netns")
	timeWaitReuseMode = newMetric("tcp_time_wait_reuse_mode", "gauge", "net.ipv4.tcp_tw_reuse",
		"Whether connect() may reuse ports in TIME_WAIT: 0 no, 1 yes, 2 on loopback only.", "netns")
	timeWaitRecycle = newMetric("tcp_time_wait_recycle_enabled", "gauge", "net.ipv4.tcp_tw_recycle",
		"Whether connections in TIME_WAIT are recycled fast, which breaks clients behind NAT. Gone since Linux 4.12.", "netns")
	timeWaitDuration = newMetric("tcp_time_wait_duration_seconds", "gauge", "net.ipv4.tcp_tw_timeout",
		"How long TIME_WAIT lasts: 60, a constant of the kernel, or what the sysctl says that some vendors' kernels have. Absent where the net sysctls can't be seen.", "netns")
	finTimeout = newMetric("tcp_fin_timeout_seconds", "gauge", "net.ipv4.tcp_fin_timeout",
		"How long a closed connection stays in FIN_WAIT2. It does not change TIME_WAIT, see tcp_time_wait_duration_seconds.", "netns")
	timeWaitStarted = newMetric("tcp_time_wait_started_total", "counter", "net/netstat TcpExt TW, TWKilled",
		"TIME_WAIT timers started, FIN_WAIT2 of closed sockets included: timer=\"full\", or \"short\" with 4 s or less.",
		"netns", "timer")
	timeWaitReused = newMetric("tcp_time_wait_reused_total", "counter", "net/netstat TcpExt TWRecycled",
		"Ports in TIME_WAIT that connect() took over.", "netns")
	timeWaitOverflows = newMetric("tcp_time_wait_overflows_total", "counter", "net/netstat TcpExt TCPTimeWaitOverflow",
		"Connections that got no TIME_WAIT because tcp_time_wait_limit was reached.", "netns")
	activeOpens = newMetric("tcp_active_opens_total", "counter", "net/snmp Tcp ActiveOpens",
		"SYNs sent by connect(). One that finds no free port is not counted.", "netns")
	passiveOpens = newMetric("tcp_passive_opens_total", "counter", "net/snmp Tcp PassiveOpens",
		"Connections that came in.", "netns")
	attemptFails = newMetric("tcp_attempt_fails_total", "counter", "net/snmp Tcp AttemptFails",
		"Connections that failed before they were established.", "netns")
	establishedResets = newMetric("tcp_established_resets_total", "counter", "net/snmp Tcp EstabResets",
		"Connections reset in ESTABLISHED or CLOSE_WAIT.", "netns")
	retransmitted = newMetric("tcp_retransmitted_segments_total", "counter", "net/snmp Tcp RetransSegs",
		"Segments sent again.", "netns")
	outResets = newMetric("tcp_out_resets_total", "counter", "net/snmp Tcp OutRsts",
		"Resets sent.", "netns")
	listenOverflows = newMetric("tcp_listen_overflows_total", "counter", "net/netstat TcpExt ListenOverflows",
		"Handshakes dropped because an accept queue was full; a peer that tries again counts again.", "netns")
	listenDrops = newMetric("tcp_listen_drops_total", "counter", "net/netstat TcpExt ListenDrops",
		"Handshakes that a listener dropped for any reason, overflows included.", "netns")
	synCookiesSent = newMetric("tcp_syn_cookies_sent_total", "counter", "net/netstat TcpExt SyncookiesSent",
		"SYN cookies sent because a SYN queue was full.", "netns")
	aborts = newMetric("tcp_aborts_total", "counter", "net/netstat TcpExt TCPAbortOn*",
		"Connections that the kernel reset, by reason: data unread or come after close, close with data unread, memory (or too many orphans), timeout, linger.",
		"netns", "reason")
	abortFailures = newMetric("tcp_abort_failures_total", "counter", "net/netstat TcpExt TCPAbortFailed",
		"Resets that could not be sent (no memory, no route). Their connections are in tcp_aborts_total all the same.", "netns")
	listenBacklogLimit = newMetric("tcp_listen_backlog_limit", "gauge", "net.core.somaxconn",
		"Longest accept queue that listen() may ask for.", "netns")
	synBacklogLimit = newMetric("tcp_syn_backlog_limit", "gauge", "net.ipv4.tcp_max_syn_backlog",
		"Half-open connections per listener while SYN cookies are off.", "netns")
	orphans = newMetric("tcp_orphans", "gauge", "net/sockstat TCP orphan",
		"Orphaned connections of all network namespaces.")
	orphanLimit = newMetric("tcp_orphan_limit", "gauge", "net.ipv4.tcp_max_orphans",
		"Orphaned connections at which the kernel resets further ones.")
	memory = newMetric("tcp_memory_bytes", "gauge", "net/sockstat TCP mem",
		"Memory of TCP in all network namespaces.")
	memoryLimit = newMetric("tcp_memory_limit_bytes", "gauge", "net.ipv4.tcp_mem",
		"Memory of TCP below which it is not limited (low), from which it is (pressure), and at which connections are reset (high).",
		"level")
	fileHandles = newMetric("kernel_file_handles", "gauge", "fs.file-nr",
		"File handles in use on the node; a socket that a program has open needs one.")
	fileHandlesLimit = newMetric("kernel_file_handles_limit", "gauge", "fs.file-nr",
		"File handles the node allows.")

	netnsInfo = newMetric("timewait_exporter_netns_info", "gauge", "",
		"The network namespace that is read, the directory it is read from, and whether the net sysctls seen here belong to the same one (sysctls=\"same\"), to another (\"other\") or are hidden or not readable (\"none\"); unless they are the same, what needs them is left out. Always 1.",
		"netns", "path", "sysctls")
	sourceInfo = newMetric("timewait_exporter_source_info", "gauge", "",
		"What the socket table was read from in this scrape: source=\"procfs\" or \"netlink\". Always 1.",
		"netns", "source")
	collectorSuccess = newMetric("timewait_exporter_collector_success", "gauge", "",
		"Whether a part of this scrape succeeded. Where it is 0 its metrics are absent (of the sysctls those that failed) and the log says why.",
		"netns", "collector")
	collectorDuration = newMetric("timewait_exporter_collector_duration_seconds", "gauge", "",
		"How long a part of this scrape took; all are read at the same time.",
		"netns", "collector")
	undercountMax = newMetric("timewait_exporter_undercount_max", "gauge", "",
		"By how many connections any one remote, destination or local IP may be counted short in this scrape because there were too many different ones. 0: every count is exact. Totals always are.",
		"netns", "by")
	rowsRead = newMetric("timewait_exporter_rows_total", "counter", "",
		"Rows of the socket table read.", "table")
	malformedRows = newMetric("timewait_exporter_malformed_rows_total", "counter", "",
		"Rows of the socket table that were not as the kernel writes them.", "table")
)

// Metrics returns all metrics of this package, in the order of the documentation.
func Metrics() []*Metric {
	return []*Metric{
		connections, remoteConnections, remoteIPs, remoteTopShare,
		ephemeralPorts, ephemeralPortsUsed, ephemeralLow, ephemeralHigh, ephemeralUtilisation,
		destinationPortsUsed, destinationUtilisation, destinations, localPortsUsed, localUtilisation,
		listenerConnections, listenerSockets, listenerAcceptQueue, listenerAcceptQueueLimit, listenerAcceptQueueFill, listenerFullSockets, listenerUnaccepted,
		queueBytes, orphanConnections, timeWaitRemaining,

		timeWaitSockets, timeWaitLimit, timeWaitReuseMode, timeWaitRecycle, timeWaitDuration, finTimeout,
		timeWaitStarted, timeWaitReused, timeWaitOverflows,
		activeOpens, passiveOpens, attemptFails, establishedResets, retransmitted, outResets,
		listenOverflows, listenDrops, synCookiesSent, aborts, abortFailures, listenBacklogLimit, synBacklogLimit,
		orphans, orphanLimit, memory, memoryLimit, fileHandles, fileHandlesLimit,

		netnsInfo, sourceInfo, collectorSuccess, collectorDuration, undercountMax, rowsRead, malformedRows,
	}
}

// samples are the values of one part of a scrape.
type samples []prometheus.Metric

func (s *samples) add(m *Metric, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Type == "counter" {
		kind = prometheus.CounterValue
	}
	*s = append(*s, prometheus.MustNewConstMetric(m.desc, kind, value, labels...))
}

// exported bounds how many series name a remote, a destination, a listener or a
// local address.
type exported struct {
	remotes, destinations, listeners, locals int
}

const other = "other"

// samples turns the counts into metrics of a network namespace. Of accept queues the
// table has lengths alone, which are used without queues.
func (t *tally) samples(netns string, n exported, queues *acceptQueues) samples {
	var out samples
	t.addConnections(&out, netns)
	t.addRemotes(&out, netns, n.remotes)
	t.addListeners(&out, netns, n.listeners, queues)
	t.addTimeWait(&out, netns)
	out.add(destinations, t.destinations.distinct(), netns)
	if t.pool != nil {
		t.addPool(&out, netns, n)
	}
	out.add(undercountMax, float64(max(t.remotes[inbound].shortfall, t.remotes[outbound].shortfall)), netns, "remote")
	out.add(undercountMax, float64(max(t.destinations.shortfall, t.devices.counts.shortfall)), netns, "destination")
	return out
}

// states yields the states that connections of a direction can have.
func states(d direction) iter.Seq[tcptable.State] {
	return func(yield func(tcptable.State) bool) {
		for s := tcptable.Established; s < tcptable.NumStates; s++ {
			listening := s == tcptable.Listen || s == tcptable.SynRecv
			if d == outbound && listening || d == inbound && s == tcptable.SynSent {
				continue
			}
			if !yield(s) {
				return
			}
		}
	}
}

func (t *tally) addConnections(out *samples, netns string) {
	for d := range numDirections {
		for f := range numFamilies {
			for s := range states(d) {
				out.add(connections, float64(t.connections[f][d][s]), netns, f.String(), d.String(), s.String())
			}
		}
		out.add(queueBytes, float64(t.received[d]), netns, d.String(), "receive")
		out.add(queueBytes, float64(t.unsent[d]), netns, d.String(), "send")
	}
	out.add(orphanConnections, float64(t.orphans), netns)
}

// addTimeWait has a bucket above the kernel's own 60 s only where TIME_WAIT lasts
// longer: where a sysctl says so, or said so when a connection came into it.
func (t *tally) addTimeWait(out *samples, netns string) {
	above := len(timeWaitBounds)
	longer := t.pool != nil && t.pool.timeWait > tcptable.TimeWaitLength
	for _, w := range t.timeWait {
		longer = longer || w[above] > 0
	}
	for d, w := range t.timeWait {
		d := direction(d).String()
		for i, bound := range timeWaitBounds {
			out.add(timeWaitRemaining, float64(w[i]), netns, d, strconv.Itoa(int(bound.Seconds())))
		}
		if longer {
			out.add(timeWaitRemaining, float64(w[above]), netns, d, "600")
		}
	}
}

// remote is a remote IP, or block, with its entries in both directions; one of
// them may be nil.
type remote struct {
	key     tcptable.Addr
	entries [numDirections]*entry[tcptable.Addr]
	rows    uint64
}

func (t *tally) allRemotes() iter.Seq[remote] {
	return func(yield func(remote) bool) {
		for d := range numDirections {
			for i := range t.remotes[d].entries {
				e := &t.remotes[d].entries[i]
				r := remote{key: e.key, rows: uint64(e.rows)}
				r.entries[d] = e
				if opposite := t.remotes[1-d].lookup(&e.key); opposite != nil {
					if d == outbound {
						continue // seen as inbound
					}
					r.entries[1-d] = opposite
					r.rows += uint64(opposite.rows)
				}
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (t *tally) addRemotes(out *samples, netns string, n int) {
	var rest [numDirections][tcptable.NumStates]uint64
	for d := range numDirections {
		for f := range numFamilies {
			for s := range states(d) {
				rest[d][s] += t.connections[f][d][s]
			}
		}
		rest[d][tcptable.Listen] = 0
	}
	t.addTopShare(out, netns, &rest)

	// Equal ones are kept apart by address, so that they don't take turns.
	top := largest(t.allRemotes(), n, func(a, b remote) int {
		return cmp.Or(cmp.Compare(b.rows, a.rows), bytes.Compare(a.key[:], b.key[:]))
	})
	for _, r := range top {
		name := t.remoteName(r.key)
		for d, e := range r.entries {
			if e == nil {
				continue
			}
			d := direction(d)
			for state, rows := range t.remotes[d].labels(e) {
				rest[d][state] -= uint64(rows)
				out.add(remoteConnections, float64(rows), netns, name, d.String(), tcptable.State(state).String())
			}
		}
	}
	for d := range numDirections {
		for s, rows := range rest[d] {
			if rows > 0 {
				out.add(remoteConnections, float64(rows), netns, other, d.String(), tcptable.State(s).String())
			}
		}
	}
}

func (t *tally) addTopShare(out *samples, netns string, totals *[numDirections][tcptable.NumStates]uint64) {
	for d, remotes := range t.remotes {
		d := direction(d)
		out.add(remoteIPs, remotes.distinct(), netns, d.String())

		var most [tcptable.NumStates]uint32
		for i := range remotes.entries {
			for state, rows := range remotes.labels(&remotes.entries[i]) {
				most[state] = max(most[state], rows)
			}
		}
		for s := range states(d) {
			switch s {
			case tcptable.Established, tcptable.TimeWait, tcptable.CloseWait, tcptable.SynRecv:
				out.add(remoteTopShare, ratio(uint64(most[s]), totals[d][s]), netns, d.String(), s.String())
			}
		}
	}
}

// heldDestination is a destination with the ports of the pool that are held toward
// it, and of these the blocked ones: that connect can't use, and no listener has.
type heldDestination struct {
	*entry[destination]
	on            *entry[deviceDestination] // nil: on no device
	held, blocked uint64
}

// ports yields the labels of the ports that are held toward a destination on a device,
// or on none if that is nil, and how many each adds to what came before.
func (t *tally) ports(to *entry[destination], on *entry[deviceDestination]) iter.Seq2[uint8, int] {
	return func(yield func(uint8, int) bool) {
		for label, rows := range t.destinations.labels(to) {
			if label&(unpooled|onDevice) == 0 && !yield(label, int(rows)) {
				return
			}
		}
		if on == nil {
			return
		}
		for label, rows := range t.devices.counts.labels(on) {
			n := int(rows)
			if label&common != 0 {
				n = -n
			}
			if !yield(label&^common, n) {
				return
			}
		}
	}
}

func (t *tally) held(to *entry[destination], on *entry[deviceDestination]) heldDestination {
	held, blocked := 0, 0
	for label, n := range t.ports(to, on) {
		held += n
		if label&^stateBits == 0 {
			blocked += n
		}
	}
	return heldDestination{to, on, uint64(max(held, 0)), uint64(max(blocked, 0))}
}

// allDestinations yields each destination, on the device where it is worst.
func (t *tally) allDestinations() iter.Seq[heldDestination] {
	return func(yield func(heldDestination) bool) {
		for i := range t.destinations.entries {
			e := &t.destinations.entries[i]
			if !yield(t.held(e, t.devices.worst[e])) {
				return
			}
		}
	}
}

func byBlocked(a, b heldDestination) int {
	if a.blocked != b.blocked {
		return cmp.Compare(b.blocked, a.blocked)
	}
	return byHeld(a, b)
}

func byHeld(a, b heldDestination) int {
	if a.held != b.held { // as most are, and the rest takes time
		return cmp.Compare(b.held, a.held)
	}
	return cmp.Or(
		bytes.Compare(a.key.remote[:], b.key.remote[:]),
		cmp.Compare(a.key.port, b.key.port),
		bytes.Compare(a.key.local[:], b.key.local[:]),
	)
}

// worstDestinations returns the n destinations to name, the worst one first. A
// quarter of the places is for those that hold most ports, whether connect may take
// them over or not: where it then doesn't (tcp_tw_reuse, and a peer without
// timestamps) they are the ones that nothing can be connected to.
func (t *tally) worstDestinations(n int) []heldDestination {
	blocked := ranking[heldDestination]{n: n - (n+2)/4, compare: byBlocked}
	held := ranking[heldDestination]{n: n, compare: byHeld}
	for d := range t.allDestinations() {
		blocked.add(d)
		held.add(d)
	}
	worst := blocked.elements
	named := make(map[*entry[destination]]bool, n)
	for _, d := range worst {
		named[d.entry] = true
	}
	for _, d := range held.elements {
		if len(worst) < n && !named[d.entry] {
			worst = append(worst, d)
		}
	}
	return worst
}

func (t *tally) addPool(out *samples, netns string, n exported) {
	out.add(ephemeralPorts, float64(t.pool.size), netns)
	used := t.locals.total()
	out.add(ephemeralPortsUsed, float64(used), netns)
	out.add(ephemeralUtilisation, t.utilisation(uint64(used)), netns, "bind_any")
	out.add(ephemeralLow, float64(t.pool.low), netns)
	out.add(ephemeralHigh, float64(t.pool.high), netns)

	// A port is counted toward a destination or as a listener's, never as both:
	// the labels keep them apart. A destination nobody talks to yet still lacks
	// the listeners' ports.
	heldForAll := uint64(t.heldPorts.len())
	var blocked uint64
	for i, d := range t.worstDestinations(max(n.destinations, 1)) {
		blocked = max(blocked, d.blocked)
		if i < n.destinations {
			t.addDestination(out, netns, d, heldForAll)
		}
	}
	out.add(ephemeralUtilisation, t.utilisation(blocked+heldForAll), netns, "connect")

	type local struct {
		addr netip.Addr
		used int
	}
	locals := func(yield func(local) bool) {
		for addr, used := range t.locals.all() {
			if !yield(local{addr, used}) {
				return
			}
		}
	}
	most := 0
	for f := range numFamilies {
		shared := t.locals.shared(f)
		most = max(most, unionLen(shared, shared))
	}
	for _, l := range largest(locals, n.locals, func(a, b local) int {
		return cmp.Or(cmp.Compare(b.used, a.used), a.addr.Compare(b.addr))
	}) {
		most = max(most, l.used)
		out.add(localPortsUsed, float64(l.used), netns, l.addr.String())
		out.add(localUtilisation, t.utilisation(uint64(l.used)), netns, l.addr.String())
	}
	out.add(ephemeralUtilisation, t.utilisation(uint64(most)), netns, "bind")
	out.add(undercountMax, float64(t.locals.missed), netns, "local_ip")
}

func (t *tally) addDestination(out *samples, netns string, d heldDestination, heldForAll uint64) {
	labels := []string{netns, d.key.local.IP().String(), d.key.remote.IP().String(), strconv.Itoa(int(d.key.port))}
	var held [tcptable.NumStates]int
	for label, n := range t.ports(d.entry, d.on) {
		held[label&stateBits] += n
	}
	for s, ports := range held {
		if ports > 0 {
			out.add(destinationPortsUsed, float64(ports), append(labels, tcptable.State(s).String())...)
		}
	}
	out.add(destinationUtilisation, t.utilisation(d.blocked+heldForAll), labels...)
}

// utilisation returns the share of the pool that so many ports are. Of an empty
// pool every call fails. Ports that are held once on each of several devices, which
// /proc does not show, may count as more than there are.
func (t *tally) utilisation(ports uint64) float64 {
	if t.pool.size == 0 {
		return 1
	}
	return min(ratio(ports, uint64(t.pool.size)), 1)
}

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
