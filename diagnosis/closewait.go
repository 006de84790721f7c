package diagnosis

import (
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// closeWaits finds programs that leak connections: 10 or more that they have accepted, and
// that are more than a tenth of the open ones. One look can't see them grow.
func (l *look) closeWaits() {
	for i := range l.ns.Sockets.Listeners {
		li := &l.ns.Sockets.Listeners[i]
		leaked := li.States[tcptable.CloseWait] - li.Unaccepted[tcptable.CloseWait]
		open := leaked + li.States[tcptable.Established] - li.Unaccepted[tcptable.Established]
		if !leaks(leaked, open, closeWaitLeak) {
			continue
		}
		f := l.find("TCPCloseWaitLeak", Warning, "the server on port %d does not close: %s of its %s open connections are in CLOSE_WAIT", li.Port, count(leaked), count(open))
		f.Listener = l.listenerOf(li.Port)
		f.Cause = "The clients have closed these connections and the server has not: a worker hangs, or a path of the code forgets the socket. Each holds an open file until the server closes it, or fails with \"Too many open files\"."
		f.against("close_wait", float64(leaked), float64(open), "connections", fromTable)
		l.growth(f, "close_wait", leaked, func(before *snapshot.Sockets) (uint64, bool) {
			for i := range before.Listeners {
				if then := &before.Listeners[i]; then.Port == li.Port {
					return then.States[tcptable.CloseWait] - then.Unaccepted[tcptable.CloseWait], true
				}
			}
			return 0, false
		})
		l.closeWaitPeer(f, snapshot.Inbound)
		l.leakEvidence(f, l.ownListener(f, li.Port))
		f.remedy("Find the program: ss -tlnp sport = :%d. Take a thread dump to see where it hangs, then restart it at a time you choose. That frees them all, and costs what is under way.", li.Port)
		f.remedy("Close on every path (try-with-resources, defer, with), and put a timeout on every read. Costs a change of code.")
		l.claims["inbound CLOSE_WAIT"] = f
	}

	leaked := l.of(snapshot.Outbound, tcptable.CloseWait)
	open := leaked + l.of(snapshot.Outbound, tcptable.Established)
	if !leaks(leaked, open, closeWaitLeak) {
		return
	}
	if f := l.claims["outbound CLOSE_WAIT"]; f != nil {
		f.against("close_wait", float64(leaked), float64(open), "connections", fromTable)
		l.growthOf(f, snapshot.Outbound, tcptable.CloseWait)
		return
	}
	f := l.find("TCPCloseWaitLeak", Warning, "")
	l.growthOf(f, snapshot.Outbound, tcptable.CloseWait)
	l.closeWaitPeer(f, snapshot.Outbound)
	toward := ""
	if f.Remote != "" {
		toward = ", most toward " + f.Remote
	}
	f.Title = "a client here does not close: " + count(leaked) + " of " + count(open) + " open outbound connections are in CLOSE_WAIT" + toward
	f.Cause = "The servers have closed these connections and a program here has not: it does not read or close responses, or its pool keeps what the server's idle timeout has ended. Each holds an open file and a local port."
	f.Evidence = append([]Evidence{{Name: "close_wait", Value: float64(leaked), Limit: new(float64(open)), Unit: "connections", Source: fromTable}}, f.Evidence...)
	l.ownLeak(f, snapshot.Outbound)
	l.claims["outbound CLOSE_WAIT"] = f
	f.remedy("Find the program: ss -tnp state close-wait. Restart it at a time you choose: that frees them all, and costs what is under way.")
	f.remedy("Close responses on every path, and let the pool's idle timeout be shorter than the server's. Costs a change of code or settings.")
}

func leaks(leaked, open uint64, threshold float64) bool {
	return leaked >= leastLeaked && float64(leaked) > threshold*float64(open)
}

// closeWaitPeer names the remote with most of them.
func (l *look) closeWaitPeer(f *Finding, d snapshot.Direction) {
	peer, n := l.largestRemote(d, tcptable.CloseWait)
	if n == 0 {
		return
	}
	f.Remote = peer
	f.against("of_the_largest_remote", float64(n), float64(l.of(d, tcptable.CloseWait)), "connections", fromTable)
}

// listenerOf names the listener of a port, the first of several.
func (l *look) listenerOf(port uint16) string {
	for _, q := range l.ns.Sockets.AcceptQueues {
		if q.Port == port {
			return endpoint(q)
		}
	}
	return endpoint(snapshot.AcceptQueue{Port: port})
}
