package diagnosis

import "timewait_exporter/collector/tcptable"

// capacity tells which limit of a destination binds first.
func (l *look) capacity(d *portsOf) {
	if len(l.report.Capacity) == maxCapacity || d.held == 0 {
		return
	}
	usable := max(d.size-float64(l.ns.Sockets.Ports.HeldForAll), 0)
	c := Capacity{Netns: l.ns.Name, LocalIP: d.LocalIP.String(), Remote: d.remote(), Limit: "pool", ClosesPerSecond: usable / timeWaitSeconds(l.ns.Pool)}
	if d.reusesTimeWaits {
		c.Limit, c.ClosesPerSecond = "reuse", usable/max(l.ns.Pool.ReuseDelay.Seconds(), 0.001)
	} else {
		now := float64(d.Held[tcptable.TimeWait]) / timeWaitSeconds(l.ns.Pool)
		c.NowPerSecond = &now
	}
	c.SlowFromPerSecond = c.ClosesPerSecond / 2
	// What is taken over leaves the table of TIME_WAITs as it comes in again, so that one
	// binds only if it has less room than the pool.
	if most, ok := l.kernel(timeWaitLimit); ok && most < usable {
		c.Limit, c.ClosesPerSecond = "tw_buckets", most/timeWaitSeconds(l.ns.Pool)
		c.SlowFromPerSecond = min(c.SlowFromPerSecond, c.ClosesPerSecond)
	}
	// A NAT keeps a port for the two minutes that it takes a closed connection to be forgotten
	// (nf_conntrack_tcp_timeout_time_wait), and others behind it take from the same.
	if nat := float64(l.facts.NATPorts) / 120; nat > 0 && nat < c.ClosesPerSecond {
		c.Limit, c.ClosesPerSecond, c.SlowFromPerSecond = "nat", nat, min(c.SlowFromPerSecond, nat)
	}
	l.report.Capacity = append(l.report.Capacity, c)
}

// maxCapacity is of how many destinations the capacity is told.
const maxCapacity = 10
