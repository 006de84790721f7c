package diagnosis

import "timewait_exporter/collector/kernelstat"

// conntrack finds the firewall's table of connections nearly full.
func (l *look) conntrack() {
	held, most, ok := l.share(kernelstat.Conntrack("entries"), kernelstat.Sysctl("net.netfilter.nf_conntrack_max"))
	if !ok {
		l.unknown("ConntrackNearLimit", "the kernel shows no table of connections: conntrack is not in use, or is hidden")
		return
	}
	l.limit("conntrack_entries", held, most, "entries", "net.netfilter.nf_conntrack_max")
	if held <= conntrackNear*most {
		return
	}
	level, verb := Warning, "is nearly full"
	if held >= most {
		level, verb = Critical, "is full: packets of new connections are dropped"
	}
	f := l.find("ConntrackNearLimit", level, "the firewall's table of connections %s: %s of %s entries", verb, number(held), number(most))
	f.Cause = "Each connection through the firewall or NAT has an entry, and keeps it for minutes after it was closed. In the log the kernel says \"nf_conntrack: table full, dropping packet\"."
	f.against("conntrack_entries", held, most, "entries", "net.netfilter.nf_conntrack_max")
	if n, ok := l.kernel(kernelstat.Conntrack("insert_failed")); ok && n > 0 {
		f.evidence("conntrack_insert_failed_since_boot", n, "entries", "net/stat/nf_conntrack insert_failed")
	}
	f.remedy("sysctl -w net.netfilter.nf_conntrack_max=%.0f, and as many buckets (nf_conntrack.hashsize). Costs about 320 bytes of memory for each.", 2*most)
	f.remedy("Keep connections open instead of opening one for each request; shorten net.netfilter.nf_conntrack_tcp_timeout_time_wait.")
}
