package diagnosis

import (
	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// finWait2 finds peers that do not close. The limit of TIME_WAITs covers closed FIN_WAIT2s
// as well.
func (l *look) finWait2() {
	n := float64(l.of(snapshot.Inbound, tcptable.FinWait2) + l.of(snapshot.Outbound, tcptable.FinWait2))
	most, ok := l.kernel(timeWaitLimit)
	if !ok || most == 0 || n <= finWait2*most {
		return
	}
	f := l.find("TCPFinWait2Accumulating", Warning, "peers do not close: %s connections are in FIN_WAIT2", number(n))
	f.Cause = "This host has closed its side and waits for the peers'. The fault is likely a leak over there: CLOSE_WAIT on that host. Closed ones end after net.ipv4.tcp_fin_timeout, those that are only shut down never do."
	f.against("fin_wait2", n, most, "connections", "net.ipv4.tcp_max_tw_buckets")
	l.closingPeer(f, tcptable.FinWait2)
	f.remedy("Find and restart the leaking program on the peer. Costs what is under way there.")
	f.remedy("Here, let the program close() after shutdown(), with a timeout. Costs a change of code.")
}

// lastAck finds connections that this host has closed last and whose peers say nothing more.
func (l *look) lastAck() {
	n := float64(l.of(snapshot.Inbound, tcptable.LastAck) + l.of(snapshot.Outbound, tcptable.LastAck))
	most, ok := l.kernel(orphanLimit)
	source := "net.ipv4.tcp_max_orphans"
	if !ok {
		most, ok = l.kernel(timeWaitLimit)
		source = "net.ipv4.tcp_max_tw_buckets"
	}
	if !ok || most == 0 || n <= finWait2*most {
		return
	}
	f := l.find("TCPLastAckAccumulating", Warning, "%s connections are in LAST_ACK: their peers, or the path to them, have gone", number(n))
	f.Cause = "Both sides have closed, and the last FIN of this host is not acknowledged. It is sent again until net.ipv4.tcp_orphan_retries is over."
	f.against("last_ack", n, most, "connections", source)
	l.closingPeer(f, tcptable.LastAck)
	f.remedy("See whether those peers can be reached, and whether a firewall forgets connections before both ends have closed.")
}

// closingPeer names the remote with most connections in the state.
func (l *look) closingPeer(f *Finding, s tcptable.State) {
	var most uint64
	for d := range snapshot.NumDirections {
		if peer, n := l.largestRemote(d, s); n > most {
			f.Remote, most = peer, n
		}
	}
	if most > 0 {
		f.evidence(s.String()+"_of_the_largest_remote", float64(most), "connections", fromTable)
	}
}

var orphanLimit = kernelstat.Sysctl("net.ipv4.tcp_max_orphans")
