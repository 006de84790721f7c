package diagnosis

import (
	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// halfClosed finds programs that call shutdown() and not close(), as closeWaits does those
// that call neither.
func (l *look) halfClosed() {
	for d, held := range l.ns.Sockets.HalfClosed {
		d := snapshot.Direction(d)
		open := held + l.of(d, tcptable.Established)
		if !leaks(held, open, halfClosedLeak) {
			continue
		}
		f := l.find("TCPHalfClosedLeak", Warning, "a program shuts connections down and does not close them: %s of %s open %v ones", count(held), count(open), d)
		f.Cause = "It has called shutdown() and waits for its peers to close, which they do not. Each holds an open file, and net.ipv4.tcp_fin_timeout ends none of them: that is for those that a program has closed."
		f.against("half_closed", float64(held), float64(open), "connections", fromTable)
		l.growth(f, "half_closed", held, func(before *snapshot.Sockets) (uint64, bool) { return before.HalfClosed[d], true })
		if peer, n := l.largestRemote(d, tcptable.FinWait2); n > 0 {
			f.Remote = peer
			f.evidence("fin_wait2_of_the_largest_remote", float64(n), "connections", fromTable)
		}
		f.remedy("Find the program: ss -tnp state fin-wait-2. Restart it, or its peer, at a time you choose: that frees them all, and costs what is under way.")
		f.remedy("Read with a timeout after shutdown(), then close(); a proxy has a setting for it. Costs a change of code or settings.")
	}
}

// finWait2 finds peers that do not close. The limit of TIME_WAITs covers FIN_WAIT2s as
// well, but those that a program still holds.
func (l *look) finWait2() {
	var n float64
	for d, held := range l.ns.Sockets.HalfClosed {
		n += float64(l.of(snapshot.Direction(d), tcptable.FinWait2) - held)
	}
	most, ok := l.kernel(timeWaitLimit)
	if !ok || most == 0 || n <= finWait2*most {
		return
	}
	if f := l.claims["FIN_WAIT2"]; f != nil {
		f.against("fin_wait2", n, most, "connections", "net.ipv4.tcp_max_tw_buckets")
		return
	}
	f := l.find("TCPFinWait2Accumulating", Warning, "peers do not close: %s connections are in FIN_WAIT2", number(n))
	f.Cause = "This host has closed its side and waits for the peers'. The fault is likely a leak over there: CLOSE_WAIT on that host. Each ends after net.ipv4.tcp_fin_timeout, and new ones come as fast."
	f.against("fin_wait2", n, most, "connections", "net.ipv4.tcp_max_tw_buckets")
	l.closingPeer(f, tcptable.FinWait2)
	f.remedy("Find and restart the leaking program on the peer. Costs what is under way there.")
	f.remedy("Here, a shorter net.ipv4.tcp_fin_timeout lets those that come end sooner. Peers that are slower than it get a RST for the rest of their data.")
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
	if f := l.claims["LAST_ACK"]; f != nil {
		f.against("last_ack", n, most, "connections", source)
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
