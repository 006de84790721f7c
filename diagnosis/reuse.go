package diagnosis

import (
	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tcptable"
)

// reuse finds destinations whose TIME_WAITs connect(2) should take over, and does not: their
// connections had no timestamps, which no table shows. Where reuse works, connect takes ports
// of the first half over before it looks at the second one.
func (l *look) reuse() {
	pool, ports := l.ns.Pool, l.ns.Sockets.Ports
	if pool == nil || ports == nil || pool.Size == 0 {
		return
	}
	for _, to := range ports.Destinations {
		d := l.portsToward(to)
		share := float64(d.held) / d.size
		if !d.reusesTimeWaits || share <= reuseNotWorking || d.Gone >= portsHalfUsed ||
			float64(d.Held[tcptable.TimeWait]) <= reuseMostlyTimeWait*float64(d.held) {
			continue
		}
		f := l.find("TCPTimeWaitReuseNotWorking", Critical, "connect() from %s to %s fails though tcp_tw_reuse is on: %s of the %s local ports toward it are held",
			d.LocalIP, d.remote(), percent(min(share, 1)), number(d.size))
		f.Remote = d.remote()
		f.Cause = "The TIME_WAITs are not taken over: their connections had no TCP timestamps, which the peer has to speak too, or the client binds its port first. So they hold their ports for their whole length."
		f.against("ports_held", float64(d.held), d.size, "ports", fromTable)
		f.evidence("ports_held_time_wait", float64(d.Held[tcptable.TimeWait]), "ports", fromTable)
		f.evidence("tcp_tw_reuse", float64(pool.ReuseMode), "mode", "net.ipv4.tcp_tw_reuse")
		if n, ok := l.kernel(kernelstat.Netstat("TWRecycled")); ok {
			f.evidence("taken_over_since_boot", n, "connections", "net/netstat TcpExt TWRecycled")
		}
		l.ownDestination(f, d)
		f.remedy("Let the program keep connections and use them again. Costs a change of code or settings.")
		f.remedy("Switch TCP timestamps on at the peer (Linux: net.ipv4.tcp_timestamps=1), or have what stands between leave that option in. Costs 12 bytes a packet.")
		l.rangeRemedy(f, d)
		l.claims["remote "+f.Remote] = f
		l.claims["remote "+d.RemoteIP.String()] = f
		l.claims["outbound TIME_WAIT"], l.claims["pool"] = f, f
	}
}
