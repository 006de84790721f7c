package diagnosis

import (
	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// timeWaitLimit is at how many TIME_WAITs, and closed FIN_WAIT2s, the kernel drops further ones.
var timeWaitLimit = kernelstat.Sysctl("net.ipv4.tcp_max_tw_buckets")

// timeWaitTable finds a table of TIME_WAITs that fills up.
func (l *look) timeWaitTable() {
	held, most, ok := l.share(kernelstat.Sockstat("tw"), timeWaitLimit)
	if !ok && l.report.Input.Kind != "live" { // where nothing else counts, the table does
		most, ok = l.kernel(timeWaitLimit)
		ok = ok && most > 0
		held = float64(l.of(snapshot.Inbound, tcptable.TimeWait) + l.of(snapshot.Outbound, tcptable.TimeWait))
	}
	if !ok {
		l.unknown("TCPTimeWaitNearLimit", "net.ipv4.tcp_max_tw_buckets or the kernel's count of TIME_WAITs is not known")
		return
	}
	l.limit("time_wait_sockets", held, most, "sockets", "net.ipv4.tcp_max_tw_buckets")
	code, says := "TCPTimeWaitAccumulating", "are at "+percent(held/most)+" of what the kernel keeps"
	switch {
	case held >= most:
		code, says = "TCPTimeWaitOverflowing", "fill the kernel's table: further ones are dropped"
	case held > timeWaitNear*most:
		code = "TCPTimeWaitNearLimit"
	case held <= timeWaitHalf*most:
		return
	}
	if f := l.claims["outbound TIME_WAIT"]; f != nil {
		f.against("time_wait_sockets", held, most, "sockets", "net.ipv4.tcp_max_tw_buckets")
		return
	}
	f := l.find(code, Warning, "%s TIME_WAIT sockets %s", number(held), says)
	f.Cause = "Connections are opened for one request and closed, and this host closes first. Past the limit the kernel ends them without TIME_WAIT: the peer's last FIN gets a RST, and a late packet may reach a new connection."
	f.against("time_wait_sockets", held, most, "sockets", "net.ipv4.tcp_max_tw_buckets")
	for d := range snapshot.NumDirections {
		f.evidence("time_wait_"+d.String(), float64(l.of(d, tcptable.TimeWait)), "connections", fromTable)
		if peer, n := l.largestRemote(d, tcptable.TimeWait); 2*n > uint64(held) {
			f.Remote = peer
			f.evidence("of_the_largest_remote", float64(n), "connections", fromTable)
		}
	}
	if n, ok := l.kernel(kernelstat.Netstat("TCPTimeWaitOverflow")); ok && n > 0 {
		f.evidence("time_waits_dropped_since_boot", n, "connections", "net/netstat TcpExt TCPTimeWaitOverflow")
	}
	f.remedy("Keep connections open: let clients reuse them, or close first. Costs a change of code or settings.")
	f.remedy("Raise net.ipv4.tcp_max_tw_buckets. Costs about 300 bytes of memory for each.")
	l.claims["inbound TIME_WAIT"], l.claims["outbound TIME_WAIT"] = f, f
}

// timeWaitOfOne finds one remote that makes most of the TIME_WAITs, where they are a tenth of
// what the kernel keeps or, outbound, as many as a quarter of the local ports.
func (l *look) timeWaitOfOne() {
	for d := range snapshot.NumDirections {
		n := float64(l.of(d, tcptable.TimeWait))
		most, limited := l.kernel(timeWaitLimit)
		matters := limited && n > 0.1*most || d == snapshot.Outbound && l.ns.Pool != nil && n > 0.25*float64(l.ns.Pool.Size)
		share := l.ns.Sockets.TopShare[d][tcptable.TimeWait]
		if share <= timeWaitOneRemote || !matters {
			continue
		}
		peer, held := l.largestRemote(d, tcptable.TimeWait)
		if f := l.claims[d.String()+" TIME_WAIT"]; f != nil {
			f.evidence("of_the_largest_remote", share*n, "connections", fromTable)
			continue
		}
		who := peer
		if held == 0 {
			who = "one remote (not named)"
		}
		f := l.find("TCPTimeWaitOneRemote", Warning, "%s makes %s of the %s %s TIME_WAITs", who, percent(share), number(n), d)
		f.Remote = peer
		f.against("of_the_largest_remote", share*n, n, "connections", fromTable)
		if d == snapshot.Inbound {
			f.Cause = "This host closes first. They hold no ephemeral port here; they cost the peer, which can't use the same source port until they end, unless this host takes its new SYN."
			f.remedy("Let that client close first, or let both keep the connection (keep-alive, health checks on one connection). Costs a setting of the load balancer or server.")
		} else {
			f.Cause = "A program here opens a connection to it for each request. Each close holds a local port toward it, and connect() fails when they are used up."
			f.remedy("Give that program a connection pool. Costs a change of code or settings.")
		}
		l.claims[d.String()+" TIME_WAIT"] = f
	}
}

// recycle finds tcp_tw_recycle, which kernels have had until 4.12.
func (l *look) recycle() {
	if on, ok := l.kernel(kernelstat.Sysctl("net.ipv4.tcp_tw_recycle")); !ok || on == 0 {
		return
	}
	f := l.find("TCPTimeWaitRecycleEnabled", Warning, "net.ipv4.tcp_tw_recycle is on: clients behind NAT are dropped at random")
	f.Cause = "The kernel drops SYNs of clients that share an address whenever their timestamps go back, and says nothing."
	f.evidence("tcp_tw_recycle", 1, "mode", "net.ipv4.tcp_tw_recycle")
	f.remedy("sysctl -w net.ipv4.tcp_tw_recycle=0. Costs nothing.")
}

// harmlessTimeWaits says so of those that no finding is about, before somebody tunes them.
func (l *look) harmlessTimeWaits() {
	in, out := l.of(snapshot.Inbound, tcptable.TimeWait), l.of(snapshot.Outbound, tcptable.TimeWait)
	if in+out < leastHarmless || l.claims["inbound TIME_WAIT"] != nil || l.claims["outbound TIME_WAIT"] != nil {
		return
	}
	if l.ns.Pool == nil && out > 0 {
		return // whether ports are short is not known
	}
	f := l.find("TCPTimeWaitHarmless", Info, "%s TIME_WAITs are here and harm nobody: %s inbound, %s outbound", count(in+out), count(in), count(out))
	f.Cause = "TIME_WAIT is how TCP keeps late packets from new connections. Inbound ones hold no ephemeral port; outbound ones do, and these are far from what there is."
	f.evidence("time_wait_inbound", float64(in), "connections", fromTable)
	f.evidence("time_wait_outbound", float64(out), "connections", fromTable)
	if l.ns.Pool != nil && l.ns.Sockets.Ports != nil {
		f.against("ports_toward_the_worst_destination", float64(int(l.ns.Sockets.Ports.Connect*float64(l.ns.Pool.Size)+0.5)), float64(l.ns.Pool.Size), "ports", fromRange)
	}
	if held, most, ok := l.share(kernelstat.Sockstat("tw"), timeWaitLimit); ok {
		f.against("time_wait_sockets", held, most, "sockets", "net.ipv4.tcp_max_tw_buckets")
	}
	f.remedy("Nothing. tcp_fin_timeout does not shorten TIME_WAIT, tcp_tw_recycle breaks clients behind NAT, and a lower tcp_max_tw_buckets lets late packets in.")
}
