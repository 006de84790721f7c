package collector

import (
	"maps"
	"slices"

	"timewait_exporter/collector/kernelstat"
)

// What Source says of metrics that come from the walk.
const (
	fromTable     = "net/tcp, net/tcp6"
	fromDump      = "sock_diag, LISTEN sockets only"
	fromListeners = fromDump + ", else " + fromTable
	fromPool      = "net/tcp, net/tcp6, ip_local_port_range, ip_local_reserved_ports"
	fromReuse     = fromPool + ", tcp_tw_reuse"
	fromLive      = "sock_diag (INET_DIAG_CGROUP_ID), cgroup v2"
	fromAges      = fromLive + ", tcpi_last_ack_recv"
	fromCgroups   = "cgroup v2, /proc/PID/cgroup"
)

// other is the value of a label for all that are not named.
const other = "other"

// The metrics. Collect makes them anew in each scrape.
var (
	connections = newMetric("tcp_connections", "gauge", fromTable,
		"Sockets in the TCP table by address family (::ffff: addresses count as ipv4), direction and state. Inbound: a listener holds the local port, or held it at an earlier scrape and has left connections.",
		"netns", "family", "direction", "state")
	remoteConnections = newMetric("tcp_remote_connections", "gauge", fromTable,
		"Connections of the remote IPs that have most of them, of all remote groups by name, and of all others as remote_ip=\"other\". Only what is not zero.",
		"netns", "remote_ip", "direction", "state")
	remoteIPs = newMetric("tcp_remote_ips", "gauge", fromTable,
		"Distinct remote IPs, or blocks of them when remotes are folded into blocks; those in remote groups too.",
		"netns", "direction")
	remoteTopShare = newMetric("tcp_remote_top_share_ratio", "gauge", fromTable,
		"Share of the connections in a state that the one remote IP, or remote group, with most of them holds. 0 when there are none. Of further network namespaces only what is more than half.",
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
		"Ports of the pool held toward a destination, by state, for the destinations with most of the pool gone, a quarter of them most of it held, and up to a quarter most connections unanswered. Only what is not zero.",
		"netns", "local_ip", "remote_ip", "remote_port", "state")
	destinationUtilisation = newMetric("tcp_destination_port_utilisation_ratio", "gauge", fromReuse,
		"Share of the pool that connect() to this destination can't use: ports held toward it, less those in TIME_WAIT that may be reused, and ports of listeners (with source netlink also of idle bound sockets).",
		"netns", "local_ip", "remote_ip", "remote_port")
	destinationUnanswered = newMetric("tcp_destination_unanswered_connections", "gauge", fromTable,
		"Connections toward a destination that tcp_unanswered_connections counts, of the same destinations. Only what is not zero.",
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
	privilegedUtilisation = newMetric("tcp_privileged_port_utilisation_ratio", "gauge", fromTable+", sunrpc.min_resvport, max_resvport",
		"Share of the ports 665 to 1023, or what sunrpc.min_resvport and max_resvport say, that any socket holds on any local IP: the kernel's NFS client takes its source ports from these, and bindresvport() and rresvport() most of theirs. At 1 a mount fails.",
		"netns")
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
	listenerSynQueueFill = newMetric("tcp_listener_syn_queue_fill_ratio", "gauge", fromTable+", "+fromDump+", tcp_syncookies, tcp_max_syn_backlog",
		"How full the fullest SYN queue of a port is: half-open connections of a local IP / (backlog + 1), or with tcp_syncookies 0 / (tcp_max_syn_backlog - a quarter of it + 1) if that is less; the sum of all its sockets. At 1 new clients get SYN cookies, and with tcp_syncookies 0 they are refused, but for those the kernel knows. Absent where there is no tcp_listener_accept_queue_limit.",
		"netns", "local_port")
	queueBytes = newMetric("tcp_queue_bytes", "gauge", fromTable,
		"Bytes that the programs have not read (queue=\"receive\") or the peers have not acknowledged (queue=\"send\"), listeners excluded.",
		"netns", "direction", "queue")
	timerConnections = newMetric("tcp_timer_connections", "gauge", fromTable,
		"Connections, half-open ones, orphans and minisocks excluded, by the timer that runs: none, and only the program or a word of the peer ends it; retransmit, a SYN, data or FIN is not acknowledged yet; keepalive; probe, data waits for room at the peer, or for a route.",
		"netns", "direction", "timer")
	halfClosedConnections = newMetric("tcp_half_closed_connections", "gauge", fromTable,
		"Connections in FIN_WAIT2 that a program still holds: shutdown() and no close(). Each costs an open file and has no timer; the rest of fin_wait2 ends by tcp_fin_timeout.",
		"netns", "direction")
	unansweredConnections = newMetric("tcp_unanswered_connections", "gauge", fromTable,
		"Connections, half-open ones and orphans excluded, whose last three or more retransmissions or probes nobody answered: the peer, or the path to it, is gone. established always, syn_sent outbound always, of other states only what is not zero.",
		"netns", "direction", "state")
	orphanConnections = newMetric("tcp_orphan_connections", "gauge", fromTable,
		"Connections that their program has closed and the kernel still works on, TIME_WAIT and its like excluded.",
		"netns")
	socketsInUse = newMetric("tcp_sockets_in_use", "gauge", "net/sockstat TCP inuse, net/sockstat6 TCP6 inuse",
		"The kernel's own count of sockets that a program has open or that still send: all of the table but those in TIME_WAIT and its like, and half-open ones.",
		"netns")
	upperBound = newMetric("tcp_ephemeral_port_utilisation_upper_bound_ratio", "gauge", "net/sockstat, net/sockstat6, ip_local_port_range, ip_local_reserved_ports",
		"Sockets in use and in TIME_WAIT as a share of the pool, at most 1: what no destination's share can exceed, by counts that cost no walk of the table.",
		"netns")
	timeWaitRemaining = newMetric("tcp_time_wait_remaining_connections", "gauge", fromTable,
		"Connections in TIME_WAIT by the seconds they have left: up to remaining, and more than the next smaller one. Each starts with tcp_time_wait_duration_seconds: one scrape shows the closes of as many seconds, and their bursts.",
		"netns", "direction", "remaining")
	timeWaitDuration = newMetric("tcp_time_wait_duration_seconds", "gauge", "net.ipv4.tcp_tw_timeout",
		"How long TIME_WAIT lasts: 60, a constant of the kernel, or what the sysctl says that some vendors' kernels have. Absent where the net sysctls can't be seen.", "netns")

	ownerConnections = newMetric("tcp_owner_connections", "gauge", fromLive+", "+fromTable,
		"Sockets by owner: the unit, pod, container or session whose process made the socket; an accepted one is its listener's, whoever accepted it. Inbound in TIME_WAIT, FIN_WAIT2 or half open: the owner of the listener. owner=\"unknown\": what the kernel does not tell, as of outbound TIME_WAIT. owner=\"other\": the owners beyond --collector.owners. All together are tcp_connections. Only what is not zero.",
		"netns", "owner", "direction", "state")
	ownerUnaccepted = newMetric("tcp_owner_unaccepted_connections", "gauge", fromLive,
		"Connections of tcp_owner_connections that wait for accept() of their owner. Only what is not zero.",
		"netns", "owner", "state")
	listenerOwnerInfo = newMetric("tcp_listener_owner_info", "gauge", fromDump,
		"1 for each owner of the LISTEN sockets on a local IP and port, for joins with the metrics of accept queues.",
		"netns", "local_ip", "local_port", "owner")
	ownerCloseWaitOldest = newMetric("tcp_owner_close_wait_oldest_seconds", "gauge", fromAges,
		"Age of the oldest connection in CLOSE_WAIT that the owner's program has accepted or opened, and not closed. A lower bound where a connection that is older than the exporter answers keepalive probes. Absent where there is none.",
		"netns", "owner")
	ownerCloseWaitOlder = newMetric("tcp_owner_close_wait_older_connections", "gauge", fromAges,
		"Connections in CLOSE_WAIT that the owner's program has accepted or opened, and not closed, older than age=\"60\", \"600\" or \"3600\" seconds. Absent where none is in CLOSE_WAIT.",
		"netns", "owner", "age")
	destinationOwnerConnections = newMetric("tcp_destination_owner_connections", "gauge", fromLive,
		"Live connections toward a destination of tcp_destination_ports_used by owner, the five with most and owner=\"other\". Whoever keeps connections open has most, and need not make the TIME_WAITs.",
		"netns", "local_ip", "remote_ip", "remote_port", "owner")
	destinationOwnerShare = newMetric("tcp_destination_owner_share_ratio", "gauge", fromLive,
		"Who makes the TIME_WAITs of a destination, an estimate: share of an owner in the connections that scrapes saw alive and that have gone in the last 5 minutes, each counted once, the five with most and owner=\"other\". A connection that lives longer is likelier to be seen; of 100 samples the share is good to 10 points.",
		"netns", "local_ip", "remote_ip", "remote_port", "owner")
	destinationOwnerSamples = newMetric("tcp_destination_owner_samples", "gauge", fromLive,
		"Of how many connections tcp_destination_owner_share_ratio is.",
		"netns", "local_ip", "remote_ip", "remote_port")
	ownerOpenFDs = newMetric("tcp_owner_worst_process_open_fds", "gauge", "/proc/PID/fd",
		"Open files of the process of an owner that is nearest to its own limit of open files. Absent before Linux 6.2, unless the exporter may look into the process, and where the host's processes can't be seen.",
		"owner", "program")
	ownerMaxFDs = newMetric("tcp_owner_worst_process_max_fds", "gauge", "/proc/PID/limits",
		"The limit of open files (RLIMIT_NOFILE, soft) of that process.",
		"owner", "program")
	ownerInfo = newMetric("tcp_owner_info", "gauge", fromCgroups,
		"What is known of an owner. kind is unit, session, pod, container, vm, cgroup or root; program is the name of its oldest process, where the host's processes can be seen. Names of pods come from --path.pod-logs. Always 1, for joins.",
		"owner", "kind", "runtime", "unit", "namespace", "pod", "pod_uid", "container", "container_id", "program")
	ownerSourceInfo = newMetric("timewait_exporter_owner_source_info", "gauge", "",
		"Where the names of owners come from: source=\"pidfd\", \"cgroupfs\" or both; with source=\"none\" there are no metrics of owners, and reason says why. Else reason says what can't be known, if anything. Always 1, absent with --collector.owners=0.",
		"source", "reason")
	nodeDestinations = newMetric("tcp_node_destination_connections", "gauge", fromTable,
		"Outbound connections of all network namespaces that are read, by destination, for the destinations with most of them: how many ports the source NAT of the node, or one before it, needs for each. Of each namespace its 32 largest destinations count. Absent where only one namespace is read, unless --collector.nat-ports is set.",
		"remote_ip", "remote_port")
	natUtilisation = newMetric("tcp_nat_port_utilisation_ratio", "gauge", fromTable,
		"The largest tcp_node_destination_connections as a share of --collector.nat-ports, at most 1: at 1 the NAT has no port for the next connection. Absent without that flag.")
	netnsInfo = newMetric("timewait_exporter_netns_info", "gauge", "",
		"A network namespace that is read, the directory it is read from, whose it is, and whether the net sysctls seen here belong to the same one (sysctls=\"same\"), to another (\"other\") or are hidden or not readable (\"none\"). Of further namespaces the path is empty, and the sysctls are \"assumed\" to be those that each begins with, or \"unknown\" once connects have used ports outside of that range. What needs other, no or unknown ones is left out. Always 1.",
		"netns", "path", "sysctls", "namespace", "pod", "pod_uid", "container", "container_id", "unit")
	namespacesFound = newMetric("timewait_exporter_namespaces", "gauge", "",
		"Network namespaces, the own one included: tables=\"read\" in this scrape, \"unchanged\" by all counters since they were, \"waiting\" for their turn, or \"denied\" altogether.",
		"tables")
	hostVisible = newMetric("timewait_exporter_host_visible", "gauge", "",
		"Whether the processes of the host are seen. If not (hidepid, a PID namespace of its own) there may be network namespaces that are not.")
	sourceInfo = newMetric("timewait_exporter_source_info", "gauge", "",
		"What the socket table was read from in this scrape: source=\"procfs\" or \"netlink\". Always 1.",
		"netns", "source")
	collectorSuccess = newMetric("timewait_exporter_collector_success", "gauge", "",
		"Whether a part of this scrape succeeded. Where it is 0 its metrics are absent (of the sysctls those that failed) and the log says why.",
		"netns", "collector")
	collectorDuration = newMetric("timewait_exporter_collector_duration_seconds", "gauge", "",
		"How long a part of this scrape took; all are read at the same time.",
		"netns", "collector")
	tableRead = newMetric("timewait_exporter_table_read_timestamp_seconds", "gauge", "",
		"When the table was read that this namespace's metrics of it come from, in seconds since 1970.",
		"netns")
	undercountMax = newMetric("timewait_exporter_undercount_max", "gauge", "",
		"By how many connections any one remote, destination or local IP may be counted short in this scrape because there were too many different ones. 0: every count is exact. Totals always are.",
		"netns", "by")
	rowsRead = newMetric("timewait_exporter_rows_total", "counter", "",
		"Rows of the socket table read.", "table")
	malformedRows = newMetric("timewait_exporter_malformed_rows_total", "counter", "",
		"Rows of the socket table that were not as the kernel writes them.", "table")
)

// The numbers that more than one metric is made of.
var (
	inUse4      = kernelstat.Sockstat("inuse")
	inUse6      = kernelstat.Sockstat6("inuse")
	timeWaits   = kernelstat.Sockstat("tw")
	currEstab   = kernelstat.SNMP("CurrEstab")
	activeOpens = kernelstat.SNMP("ActiveOpens")
)

// kernelMetrics are numbers of the kernel that are exported as they are. What stands here
// is read, and inUse4 and inUse6, and nothing else of the kernel's files.
var kernelMetrics = []*Metric{
	kernelGauge("tcp_time_wait_sockets", timeWaits,
		"The kernel's own count of sockets in TIME_WAIT, with those of FIN_WAIT2 that their program has closed.").everywhere(),
	kernelGauge("tcp_time_wait_limit", kernelstat.Sysctl("net.ipv4.tcp_max_tw_buckets"),
		"Sockets in TIME_WAIT at which the kernel drops further ones at once."),
	kernelGauge("tcp_time_wait_reuse_mode", kernelstat.Sysctl("net.ipv4.tcp_tw_reuse"),
		"Whether connect() may reuse ports in TIME_WAIT: 0 no, 1 yes, 2 on loopback only."),
	kernelGauge("tcp_time_wait_recycle_enabled", kernelstat.Sysctl("net.ipv4.tcp_tw_recycle"),
		"Whether connections in TIME_WAIT are recycled fast, which breaks clients behind NAT. Gone since Linux 4.12."),
	kernelGauge("tcp_fin_timeout_seconds", kernelstat.Sysctl("net.ipv4.tcp_fin_timeout"),
		"How long a closed connection stays in FIN_WAIT2. It does not change TIME_WAIT, see tcp_time_wait_duration_seconds."),
	newKernelMetric("tcp_time_wait_started_total", "counter", "timer", numbers{
		"full":  kernelstat.Netstat("TW"),
		"short": kernelstat.Netstat("TWKilled"),
	}, "TIME_WAIT timers started, FIN_WAIT2 of closed sockets included: timer=\"full\", or \"short\" with 4 s or less.").everywhere(),
	kernelCounter("tcp_time_wait_reused_total", kernelstat.Netstat("TWRecycled"),
		"Ports in TIME_WAIT that connect() took over."),
	kernelCounter("tcp_time_wait_overflows_total", kernelstat.Netstat("TCPTimeWaitOverflow"),
		"Connections that got no TIME_WAIT because tcp_time_wait_limit was reached.").everywhere(),
	kernelGauge("tcp_current_established", currEstab,
		"The kernel's own count of connections in ESTABLISHED and CLOSE_WAIT.").everywhere(),
	kernelCounter("tcp_active_opens_total", activeOpens,
		"SYNs sent by connect(). One that finds no free port is not counted.").everywhere(),
	kernelCounter("tcp_passive_opens_total", kernelstat.SNMP("PassiveOpens"),
		"Connections that came in.").everywhere(),
	kernelCounter("tcp_attempt_fails_total", kernelstat.SNMP("AttemptFails"),
		"Connections that failed before they were established.").everywhere(),
	kernelCounter("tcp_established_resets_total", kernelstat.SNMP("EstabResets"),
		"Connections reset in ESTABLISHED or CLOSE_WAIT."),
	kernelCounter("tcp_retransmitted_segments_total", kernelstat.SNMP("RetransSegs"),
		"Segments sent again.").everywhere(),
	kernelCounter("tcp_out_resets_total", kernelstat.SNMP("OutRsts"),
		"Resets sent."),
	kernelCounter("tcp_listen_overflows_total", kernelstat.Netstat("ListenOverflows"),
		"Handshakes dropped because an accept queue was full; a peer that tries again counts again.").everywhere(),
	kernelCounter("tcp_listen_drops_total", kernelstat.Netstat("ListenDrops"),
		"Handshakes that a listener dropped for any reason, overflows included.").everywhere(),
	kernelGauge("tcp_syn_cookies_mode", kernelstat.Sysctl("net.ipv4.tcp_syncookies"),
		"SYN cookies: 0 never, 1 when a SYN queue is full, 2 always. With 0 a listener whose SYN queue is full refuses new clients."),
	kernelCounter("tcp_syn_cookies_sent_total", kernelstat.Netstat("SyncookiesSent"),
		"SYN cookies sent because a SYN queue was full."),
	newKernelMetric("tcp_aborts_total", "counter", "reason", numbers{
		"data":    kernelstat.Netstat("TCPAbortOnData"),
		"close":   kernelstat.Netstat("TCPAbortOnClose"),
		"memory":  kernelstat.Netstat("TCPAbortOnMemory"),
		"timeout": kernelstat.Netstat("TCPAbortOnTimeout"),
		"linger":  kernelstat.Netstat("TCPAbortOnLinger"),
	}, "Connections that the kernel reset, by reason: data unread or come after close, close with data unread, memory (or too many orphans), timeout, linger."),
	kernelCounter("tcp_abort_failures_total", kernelstat.Netstat("TCPAbortFailed"),
		"Resets that could not be sent (no memory, no route). Their connections are in tcp_aborts_total all the same."),
	kernelGauge("tcp_listen_backlog_limit", kernelstat.Sysctl("net.core.somaxconn"),
		"Longest accept queue that listen() may ask for."),
	kernelGauge("tcp_syn_backlog_limit", kernelstat.Sysctl("net.ipv4.tcp_max_syn_backlog"),
		"Half-open connections per listener while SYN cookies are off."),
	kernelGauge("conntrack_entries", kernelstat.Conntrack("entries"),
		"Connections of any protocol that conntrack follows.").everywhere(),
	kernelGauge("conntrack_limit", kernelstat.Sysctl("net.netfilter.nf_conntrack_max"),
		"Entries that a network namespace may have; packets of further connections are dropped."),
	kernelCounter("conntrack_insert_failed_total", kernelstat.Conntrack("insert_failed"),
		"Entries that could not be made because another one had their addresses and ports: source NAT found no port that is free, or two packets came at once.").everywhere(),
	kernelCounter("conntrack_drops_total", kernelstat.Conntrack("drop"),
		"Packets dropped because there was no entry for them: the limit is reached, or there was no memory.").everywhere(),
	kernelCounter("conntrack_early_drops_total", kernelstat.Conntrack("early_drop"),
		"Entries of connections without an answer that gave way to new ones because the limit was reached.").everywhere(),
	kernelGauge("tcp_orphans", kernelstat.Sockstat("orphan"),
		"Orphaned connections of all network namespaces."),
	kernelGauge("tcp_orphan_limit", kernelstat.Sysctl("net.ipv4.tcp_max_orphans"),
		"Orphaned connections at which the kernel resets further ones."),
	kernelGauge("tcp_memory_bytes", kernelstat.Sockstat("mem"),
		"Memory of TCP in all network namespaces.").inPages(),
	newKernelMetric("tcp_memory_limit_bytes", "gauge", "level", numbers{
		"low":      kernelstat.SysctlPlace("net.ipv4.tcp_mem", 0, 3),
		"pressure": kernelstat.SysctlPlace("net.ipv4.tcp_mem", 1, 3),
		"high":     kernelstat.SysctlPlace("net.ipv4.tcp_mem", 2, 3),
	}, "Memory of TCP below which it is not limited (low), from which it is (pressure), and at which connections are reset (high).").inPages(),
	kernelGauge("kernel_file_handles", kernelstat.SysctlPlace("fs.file-nr", 0, 3),
		"File handles in use on the node; a socket that a program has open needs one."),
	kernelGauge("kernel_file_handles_limit", kernelstat.SysctlPlace("fs.file-nr", 2, 3),
		"File handles the node allows."),
}

// The source ports of the kernel's NFS client (RPC_DEF_MIN_RESVPORT and
// RPC_DEF_MAX_RESVPORT in include/linux/sunrpc/xprtsock.h).
var (
	privilegedLow  = kernelstat.SysctlOr("sunrpc.min_resvport", 665)
	privilegedHigh = kernelstat.SysctlOr("sunrpc.max_resvport", 1023)
)

// Metrics returns all metrics of this package, in the order of the documentation.
func Metrics() []*Metric {
	return slices.Concat([]*Metric{
		connections, remoteConnections, remoteIPs, remoteTopShare,
		ephemeralPorts, ephemeralPortsUsed, ephemeralLow, ephemeralHigh, ephemeralUtilisation,
		destinationPortsUsed, destinationUtilisation, destinationUnanswered, destinations, localPortsUsed, localUtilisation, privilegedUtilisation,
		listenerConnections, listenerSockets, listenerAcceptQueue, listenerAcceptQueueLimit, listenerAcceptQueueFill, listenerFullSockets, listenerUnaccepted, listenerSynQueueFill,
		queueBytes, timerConnections, unansweredConnections, halfClosedConnections, orphanConnections, timeWaitRemaining, timeWaitDuration,
		ownerConnections, ownerUnaccepted, listenerOwnerInfo, ownerCloseWaitOldest, ownerCloseWaitOlder, ownerInfo,
		destinationOwnerConnections, destinationOwnerShare, destinationOwnerSamples, ownerOpenFDs, ownerMaxFDs,
		nodeDestinations, natUtilisation,
		socketsInUse, upperBound,
	}, kernelMetrics, []*Metric{
		netnsInfo, namespacesFound, hostVisible, sourceInfo, ownerSourceInfo, collectorSuccess, collectorDuration, tableRead, undercountMax, rowsRead, malformedRows,
	})
}

// isOfTable reports whether a metric comes from the table of sockets: all of this package
// do, but for the kernel's own counts and what is said of the exporter.
func isOfTable(name string) bool {
	named := func(m *Metric) bool { return m.Name == name }
	others := slices.Concat(kernelMetrics, []*Metric{
		socketsInUse, upperBound, timeWaitDuration,
		netnsInfo, namespacesFound, hostVisible, ownerSourceInfo, collectorSuccess, collectorDuration, rowsRead, malformedRows,
	})
	return slices.ContainsFunc(Metrics(), named) && !slices.ContainsFunc(others, named)
}

// numbersOfEach are those that are read of every network namespace.
func numbersOfEach() []kernelstat.Number {
	all := []kernelstat.Number{inUse4, inUse6}
	for _, m := range kernelMetrics {
		if m.ofEach {
			all = slices.AppendSeq(all, maps.Values(m.numbers))
		}
	}
	return all
}
