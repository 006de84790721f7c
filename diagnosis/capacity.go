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
	if files, ok := l.filesPerSecond(d); ok && files < c.ClosesPerSecond {
		c.Limit, c.ClosesPerSecond, c.SlowFromPerSecond = "nofile", files, min(c.SlowFromPerSecond, files)
	}
	l.report.Capacity = append(l.report.Capacity, c)
}

// filesPerSecond is how many connections a second whoever closes most toward a destination has
// open files for. Each holds one as long as it is open: as many as are open on average, by those
// closed a second (Little's law).
func (l *look) filesPerSecond(d *portsOf) (perSecond float64, ok bool) {
	if d.closing == nil || d.closing.OpenMean == 0 {
		return 0, false
	}
	of := l.destinationOwners(d)
	if of == nil || len(of.Gone) == 0 {
		return 0, false
	}
	o := l.owner(of.Gone[0].Name)
	if o == nil {
		return 0, false
	}
	used, most, known := files(o)
	lifetime := d.closing.OpenMean / d.closing.ClosesPerSecond
	return max(most-used+d.closing.OpenMean, 0) / lifetime, known
}

// maxCapacity is of how many destinations the capacity is told.
const maxCapacity = 10
