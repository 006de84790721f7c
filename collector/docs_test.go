package collector

import (
	"cmp"
	"fmt"
	"strings"
	"testing"

	"timewait_exporter/collector/tally"
)

// TestMetricsDoc holds docs/metrics.md to the code: a row for each metric, in the
// order of Metrics.
func TestMetricsDoc(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, metricsIntro, tally.MaxRemotes, tally.MaxDestinations, tally.MaxLocals, tally.MaxEndpoints)
	cell := func(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
	for _, m := range Metrics() {
		var labels []string
		for _, label := range m.Labels {
			labels = append(labels, "`"+label+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type,
			cmp.Or(strings.Join(labels, ", "), "-"), cell(cmp.Or(m.Source, "the exporter itself")), cell(m.Help))
	}
	compareFile(t, "../docs/metrics.md", b.String())
}

const metricsIntro = `# Metrics

Written from the code by ` + "`make docs`" + `; a test holds it to the code. Beside these, ` + "`/metrics`" + ` has
` + "`timewait_exporter_build_info`, and the `go_*`, `process_*` and `promhttp_*` metrics of the Prometheus client library." + `

## Words

* **netns** is the network namespace that is read: ` + "`host`" + ` when it is that of PID 1 in the proc file system in use, else
  ` + "`self`" + `. Metrics without this label are of the whole node.
* **family** is ` + "`ipv4` or `ipv6`" + `, by the addresses: ` + "`::ffff:a.b.c.d` is `a.b.c.d`" + `, and so one peer is one ` + "`remote_ip`" + `,
  whether a program talks to it by an IPv4 socket or a dual-stack one.
* **state** is the kernel's, in lower case: ` + "`established`, `syn_sent`, `syn_recv`, `fin_wait1`, `fin_wait2`, `time_wait`, `close`,\n  `close_wait`, `last_ack`, `listen`, `closing`" + `. ` + "`tcp_connections`" + ` has every state a direction can have, zero included; other
  metrics leave out what is zero where that is said.
* **direction** is ` + "`inbound`" + ` for a listener, a half-open connection, and a connection whose local port a listener holds, on its
  local IP or on all; else, and in SYN_SENT whoever holds the port, ` + "`outbound`" + `. The listener has to be in the same of the kernel's two tables, that of AF_INET or of AF_INET6
  sockets, as the one that takes a connection always is. An inbound TIME_WAIT holds no ephemeral port of this host. When a listener
  is closed, the connections that it took become outbound. With source netlink a connection of a transparent socket (TPROXY) whose port is not of the pool is inbound too.
* The **ephemeral pool** is the ports of ` + "`net.ipv4.ip_local_port_range`" + ` less ` + "`net.ipv4.ip_local_reserved_ports`" + `. It is used in three
  ways. ` + "`pool=\"connect\"`: `connect()`" + ` needs a port that is free toward its destination. ` + "`pool=\"bind\"`: `bind()`" + ` with port 0 needs
  a port that no socket holds on its local IP, whatever the destination; programs that choose their source IP do that.
  ` + "`pool=\"bind_any\"`: `bind()` with port 0 on `::`, and `listen()`" + ` without ` + "`bind()`" + `, as of Java and Go, need a port that no socket holds on any IP.
* A **destination** is what ` + "`connect()`" + ` needs a free port for: local IP, remote IP and remote port of an outbound connection.
* A **remote group** is remote IPs that are counted as one remote, under a name: ` + "`--collector.remote-group=lb=10.0.0.0/24,2001:db8::/64` gives `remote_ip=\"lb\"`" + `. Groups have
  series beside those of the largest remotes, come before blocks, and stay without remote IPs. ` + "`tcp_remote_ips`" + ` and destinations are as without them.
* **other** is the exact remainder of those that are not named: ` + "`remote_ip=\"other\"`, `local_port=\"other\"`" + `. A sum over all
  series of ` + "`tcp_remote_connections`" + ` is the number of connections, listeners excluded.

## How many series

Remotes, destinations and listening ports have series of their own for those with most connections only: 50, 20 and 50, by
` + "`--collector.remotes`, `--collector.destinations` and `--collector.listeners`" + `; local IPs for the 20 with most ports. So a page
has a bounded length, whatever happens in the network.

The accept queues are those of the same listening ports, whatever is in them, so that no series comes and goes with its queue: of each port
20 local IPs in order of address, and the rest as ` + "`local_ip=\"other\"`" + `, in sum, and of the fill the highest. Sockets that share an address and port
(` + "`SO_REUSEPORT`" + `) have a queue each: lengths and limits are summed, ` + "`tcp_listener_accept_queue_fill_ratio`" + ` is that of the fullest.

## What is approximate

* ` + "`tcp_destination_port_utilisation_ratio`, and `pool=\"connect\"`, are" + ` a lower bound where programs bind to a port 0 before they
  connect: such a port is kept from all destinations, and ` + "`/proc`" + ` does not tell. ` + "`tcp_ephemeral_ports_used` is the upper bound, and `pool=\"bind_any\"`" + ` its share.
  They are exact where nobody does that. Of a range with an odd number of ports the kernel may leave one unused.
* The same local IP, remote IP and ports may be in use once on each device: sockets bound to one (SO_BINDTODEVICE), a VRF, one link-local address on two links. Source netlink knows
  the device: link-local addresses have it in every label (` + "`fe80::9%%3`" + `), of other destinations the worst device is shown, with the ports of sockets on no device, each port once. (In a VRF these count
  only with ` + "`net.ipv4.tcp_l3mdev_accept=1`" + `, so there it is an upper bound.) ` + "`/proc`" + ` does not tell: such ports count several times, the ratios stop at 1 and may do so too early, and
  a few of such rows are taken for ones listed twice.
* A program may give its sockets a smaller range of ports (` + "`IP_LOCAL_PORT_RANGE`" + `, Linux 6.3), and run out of that while the pool has ports. No table shows it.
* ` + "`pool=\"bind_any\"`" + ` is exact for a dual-stack ` + "`::`" + `, and an upper bound for ` + "`0.0.0.0`" + ` and for a ` + "`::`" + ` with IPV6_V6ONLY, which clash with fewer sockets.
  Listeners on ` + "`::`" + ` with IPV6_V6ONLY take no port of an IPv4 address; without sock_diag nothing tells them from dual-stack ones, and they count as those.
* Connections that TPROXY or a ` + "`sk_lookup`" + ` program gave to a listener on another port have a local port that nobody listens on, and look like outbound ones.
  Source netlink knows those of TPROXY by IP_TRANSPARENT, but not once they are in TIME_WAIT, and takes for one of them what a transparent proxy connected itself from a
  client's port that is not of the pool. Those that look outbound rank behind all that hold a port of the pool, by name and for memory.
* A walk of the table is no snapshot: a socket that comes or goes meanwhile may be in it or not.
* The kernel fires the timers of TIME_WAIT up to two seconds late, in which they show as 0.
* With more than %d remotes in a direction, %d destinations or %d local IPs at once (three quarters of these destinations, for those that hold no port of the pool, and of these remotes, for those in groups), the small ones are not counted one by one.
  ` + "`timewait_exporter_undercount_max`" + ` then says by how many connections any one may be short, the numbers of distinct ones are
  estimates good to about 1 %%, and totals stay exact.
* With more than %d local addresses and ports that are listened on, the queues of the others are in their port's ` + "`local_ip=\"other\"`" + `, and
  connections of these ports count as inbound on any address.

Where the kernel has no such file or counter, a metric is absent. Where there is one and it can't be read,
` + "`timewait_exporter_collector_success`" + ` is 0, and the metrics of that part are absent: 0 never means "not collected".

## All of them

| Metric | Type | Labels | Source | Meaning |
|---|---|---|---|---|
`
