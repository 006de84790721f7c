package diagnosis

import (
	"net/netip"

	"timewait_exporter/collector/tcptable"
)

// unanswered finds destinations that most connections toward get no answer from: the third
// retransmission or probe in a row, while they look established.
func (l *look) unanswered() {
	if l.ns.Sockets.Ports == nil {
		l.skip("TCPPeerNotAnswering", "the port range is not known, by which destinations are told apart")
		return
	}
	for _, to := range l.ns.Sockets.Ports.Destinations {
		live := to.Held[tcptable.Established] + to.Held[tcptable.SynSent] + to.Held[tcptable.CloseWait]
		if to.Unanswered < leastUnanswered || float64(to.Unanswered) <= peerNotAnswering*float64(live) {
			continue
		}
		remote := netip.AddrPortFrom(to.RemoteIP, to.RemotePort).String()
		if f := l.claims["remote "+remote]; f != nil {
			f.against("unanswered", float64(to.Unanswered), float64(live), "connections", fromTable)
			continue
		}
		f := l.find("TCPPeerNotAnswering", Critical, "%s does not answer: %s of %s connections to it from %s hang", remote, count(to.Unanswered), count(max(live, to.Unanswered)), to.LocalIP)
		f.Remote = remote
		f.Cause = "That host, or the path to it, has gone. Each of these has sent three times or more for nothing. Reads and writes hang until the kernel gives up, after some 15 minutes (net.ipv4.tcp_retries2)."
		f.against("unanswered", float64(to.Unanswered), float64(max(live, to.Unanswered)), "connections", fromTable)
		f.remedy("See whether it can be reached: nc -zv %s %d. Take it out of the pool, and restart the programs that hang. Costs what is under way.", to.RemoteIP, to.RemotePort)
		f.remedy("Let programs give up earlier: TCP_USER_TIMEOUT, timeouts on reads, keep-alive. Costs a change of code or settings.")
		l.claims["remote "+remote] = f
	}
}
