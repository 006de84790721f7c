package diagnosis

import (
	"fmt"
	"net/netip"

	"timewait_exporter/collector/tcptable"
)

// listen says whether a service can begin to listen on the port that was asked for, on any
// address, and who is in the way.
//
// bind(2) to all addresses fails where a socket that is bound to the port listens, or is one of
// a client: connect(2) was given the port. What a server has left behind is no obstacle to one
// that sets SO_REUSEADDR, as nearly all do (inet_csk_bind_conflict in
// net/ipv4/inet_connection_sock.c).
func (l *look) listen() {
	ask := l.facts.Listen
	if ask == nil || l.ns != l.facts.Namespaces[0] {
		return
	}
	var listener, client, left *tcptable.Socket
	var clients, lefts int
	for i := range ask.Holders {
		s := &ask.Holders[i]
		switch {
		case s.State == tcptable.Listen || s.Kind == tcptable.Bound:
			if listener == nil || listener.Kind == tcptable.Bound {
				listener = s
			}
		case l.ns.Pool != nil && l.ns.Pool.Ports.Has(ask.Port):
			clients++
			client = s
		default:
			lefts++
			left = s
		}
	}
	switch {
	case listener != nil:
		at := endpointOf(listener.Local)
		holds := "listens on"
		if listener.Kind == tcptable.Bound {
			holds = "is bound to"
		}
		f := l.find("TCPListenPortTaken", Critical, "no service can start on port %d: %s %s %s", ask.Port, l.who(listener), holds, at)
		f.Listener, f.Program = at, ask.Programs[listener.Inode]
		f.Cause = "listen() fails with \"Address already in use\" while another socket has the port, unless both set SO_REUSEPORT and are of one user, or each has its own address."
		f.evidence("sockets_on_the_port", float64(len(ask.Holders)), "sockets", fromTable)
		f.remedy("Stop that program, or give the service another port: ss -tlnp sport = :%d.", ask.Port)
	case client != nil:
		f := l.find("TCPListenPortTaken", Critical, "no service can start on port %d: %s has it as a client of %s", ask.Port, l.who(client), endpointOf(client.Remote))
		f.Listener, f.Program = fmt.Sprintf("0.0.0.0:%d", ask.Port), ask.Programs[client.Inode]
		f.Cause = "The port is inside net.ipv4.ip_local_port_range, so connect() gave it to a client. bind() fails with \"Address already in use\" until that connection, and its TIME_WAIT, have ended."
		f.evidence("clients_on_the_port", float64(clients), "connections", fromTable)
		f.remedy("sysctl -w net.ipv4.ip_local_reserved_ports=%d, beside what is in it already: no client is given it again. Costs one port of the range.", ask.Port)
		f.remedy("End that connection: ss -K dst %s dport = %d (needs root). Costs that client its connection.", client.Remote.Addr.IP(), client.Remote.Port)
	case left != nil:
		f := l.find("TCPListenPortFree", Info, "a service can start on port %d if it sets SO_REUSEADDR: %s connections of an earlier one are still there", ask.Port, count(lefts))
		f.Listener = fmt.Sprintf("0.0.0.0:%d", ask.Port)
		f.Cause = "Connections that a server has left behind, TIME_WAITs as a rule, keep the port from who does not set SO_REUSEADDR."
		f.evidence("connections_left", float64(lefts), "connections", fromTable)
		f.remedy("Set SO_REUSEADDR before bind(), as nearly all servers do.")
	default:
		f := l.find("TCPListenPortFree", Info, "a service can start on port %d: no socket has it", ask.Port)
		f.Listener = fmt.Sprintf("0.0.0.0:%d", ask.Port)
		f.Cause = "No TCP socket of this network namespace has the port. Ports below net.ipv4.ip_unprivileged_port_start also need CAP_NET_BIND_SERVICE."
		f.evidence("sockets_on_the_port", 0, "sockets", fromTable)
	}
}

// who names the program that has a socket.
func (l *look) who(s *tcptable.Socket) string {
	if program := l.facts.Listen.Programs[s.Inode]; program != "" && s.Inode != 0 {
		return program
	}
	return "another socket"
}

func endpointOf(e tcptable.Endpoint) string { return netip.AddrPortFrom(e.Addr.IP(), e.Port).String() }
