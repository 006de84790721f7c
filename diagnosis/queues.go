package diagnosis

import (
	"fmt"
	"math"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const fromDump = "sock_diag LISTEN"

// halfFull is how full an accept queue is that is told of though one look can't know whether
// it drains.
const halfFull = 0.5

// acceptQueues finds listeners whose program does not accept, or not fast enough.
func (l *look) acceptQueues() {
	sockets := l.ns.Sockets
	if !sockets.HasBacklogs && len(sockets.AcceptQueues) > 0 {
		l.unknown("TCPListenQueueOverflowing", "how long accept queues may be: only sock_diag of one's own namespace tells")
	}
	fullest := -1
	for i, q := range sockets.AcceptQueues {
		if fullest < 0 || q.Fill > sockets.AcceptQueues[fullest].Fill {
			fullest = i
		}
		gaveUp := l.listener(q.Port).Unaccepted[tcptable.CloseWait]
		switch {
		case sockets.HasBacklogs && q.Full > 0:
			l.fullQueue(q, gaveUp)
		case q.Length > 0 && gaveUp > 0, sockets.HasBacklogs && q.Fill > halfFull:
			f := l.find("TCPAcceptQueueNotDrained", Warning, "%s connections to %s wait for accept()", count(q.Length), endpoint(q))
			f.Listener = endpoint(q)
			f.Cause = "The kernel has connected these clients, and they get no answer: the program hangs, is too slow, has forgotten the listener, or is at its limit of open files."
			l.queueEvidence(f, q, gaveUp)
		}
	}
	if fullest >= 0 && sockets.HasBacklogs {
		q := sockets.AcceptQueues[fullest]
		name := "fullest_accept_queue_" + endpoint(q)
		if q.Sockets == 1 {
			l.limit(name, float64(q.Length), float64(q.Limit+1), "connections", fromDump)
		} else { // the sums say little of the one
			l.limit(name, math.Round(100*q.Fill), 100, "percent", fromDump)
		}
	}
}

func (l *look) fullQueue(q snapshot.AcceptQueue, gaveUp uint64) {
	f := l.find("TCPListenQueueOverflowing", Critical, "%s drops new clients: its accept queue is full, %s wait for accept()", endpoint(q), count(q.Length))
	f.Listener = endpoint(q)
	f.Cause = "The program behind it does not accept, or too slowly. A handshake that meets a full queue is dropped: clients try again for a while, or are reset after they have sent."
	if q.Sockets > 1 {
		f.Title = fmt.Sprintf("%d of the %d sockets on %s drop new clients: their accept queues are full", q.Full, q.Sockets, endpoint(q))
		f.Cause = "Several sockets share the port (SO_REUSEPORT), and each client goes to one of them, full or not. The program of the full one hangs, or is too slow."
		f.against("full_sockets", float64(q.Full), float64(q.Sockets), "sockets", fromDump)
	}
	l.claims[fmt.Sprintf("port %d", q.Port)] = f
	l.queueEvidence(f, q, gaveUp)
	f.remedy("A longer backlog (listen(), net.core.somaxconn) helps only against bursts. Costs a restart of the program.")
}

func (l *look) queueEvidence(f *Finding, q snapshot.AcceptQueue, gaveUp uint64) {
	o := l.ownListener(f, q.Port)
	if l.ns.Sockets.HasBacklogs {
		f.against("accept_queue", float64(q.Length), float64(q.Limit+q.Sockets), "connections", fromDump)
	} else {
		f.evidence("accept_queue", float64(q.Length), "connections", fromTable)
	}
	if gaveUp > 0 {
		f.evidence("clients_that_gave_up", float64(gaveUp), "connections", fromTable)
	}
	if o != nil {
		if used, most, ok := files(o); ok {
			f.against("open_files", used, most, "files", "/proc/PID/fd")
			l.claims["files of "+o.Name] = f // at its limit accept() fails
		}
	}
	f.remedy("Find the program: ss -tlnp sport = :%d. Take a thread dump, then restart it if it hangs. Costs the clients that wait.", q.Port)
}

// listener returns what is connected to a port.
func (l *look) listener(port uint16) snapshot.Listener {
	for _, li := range l.ns.Sockets.Listeners {
		if li.Port == port {
			return li
		}
	}
	return snapshot.Listener{}
}

// synQueues finds ports whose queue is full of handshakes that nobody finishes. Beside a full
// accept queue they are those of clients that have finished.
func (l *look) synQueues() {
	sockets := l.ns.Sockets
	if !sockets.HasBacklogs && l.of(snapshot.Inbound, tcptable.SynRecv) > 0 {
		l.unknown("TCPSynFlood", "how many half-open connections listeners have room for: only sock_diag of one's own namespace tells")
	}
	cookies, known := l.kernel(kernelstat.Sysctl("net.ipv4.tcp_syncookies"))
	refuses := known && cookies == 0
	for i := range sockets.Listeners {
		li := &sockets.Listeners[i]
		halfOpen := li.States[tcptable.SynRecv]
		if !li.HasSynFill || li.SynFill <= synFlood {
			continue
		}
		if f := l.claims[fmt.Sprintf("port %d", li.Port)]; f != nil {
			f.evidence("half_open", float64(halfOpen), "connections", fromTable)
			continue
		}
		f := l.find("TCPSynFlood", Warning, "port %d has %s half-open connections, %s of its room: a SYN flood, or clients that the answers do not reach", li.Port, count(halfOpen), percent(li.SynFill))
		f.Cause = "Handshakes are begun and not finished. SYN cookies still let real clients in, with less than they asked for."
		if refuses && li.SynFill > synQueueFull {
			verb := "is about to refuse"
			if li.SynFill >= 1 {
				verb = "refuses"
			}
			f.Code, f.Level, f.Runbook = "TCPSynQueueFull", Critical, "/runbooks/TCPSynQueueFull"
			f.Title = fmt.Sprintf("port %d %s new clients: %s half-open connections fill its SYN queue, and SYN cookies are off", li.Port, verb, count(halfOpen))
			f.Cause = "Handshakes are begun and not finished, and the kernel drops the SYN of every client that it does not know. The accept queue has room, so the program is not the cause."
		}
		f.Listener = l.listenerOf(li.Port)
		l.claims[fmt.Sprintf("port %d", li.Port)] = f
		f.against("half_open", float64(halfOpen), math.Round(float64(halfOpen)/li.SynFill), "connections", fromDump)
		if peer, n := l.largestRemote(snapshot.Inbound, tcptable.SynRecv); n > 0 {
			f.Remote = peer
			f.evidence("of_the_largest_remote", float64(n), "connections", fromTable)
		}
		if n, ok := l.kernel(kernelstat.Netstat("SyncookiesSent")); ok {
			f.evidence("syn_cookies_sent_since_boot", n, "cookies", "net/netstat TcpExt SyncookiesSent")
		}
		if refuses {
			f.remedy("sysctl -w net.ipv4.tcp_syncookies=1 works at once. Costs window scaling of the connections made meanwhile, where clients have no timestamps.")
		}
		f.remedy("Have a flood stopped upstream; source addresses may be forged.")
	}
}
