package diagnosis

import "timewait_exporter/collector/tcptable"

// windowsPorts finds the dynamic ports of Windows near their end. Windows gives a port to one
// connection of a local address at a time, whatever the destination; where that fails, programs
// say "No buffer space available" (10055, WSAENOBUFS) or "Only one usage of each socket
// address" (10048).
func (l *look) windowsPorts() {
	pool, ports := l.ns.Pool, l.ns.Sockets.Ports
	size, used := float64(pool.Size), float64(ports.Used)
	l.limit("dynamic_ports", used, size, "ports", fromDynamic)
	if used <= portsHalfUsed*size {
		return
	}
	level, verb := Warning, "are used up by half and more"
	switch {
	case used >= size:
		level, verb = Critical, "are gone: new connections fail"
	case used > portsNear*size:
		level, verb = Critical, "are nearly gone"
	}
	f := l.find("WindowsDynamicPortsNearExhaustion", level, "the dynamic ports of this machine %s: %s of %s are taken", verb, number(used), number(size))
	f.Cause = "Windows gives each outbound connection a port of its own, whatever the destination, and keeps it through TIME_WAIT. Then programs say \"No buffer space available\" or \"Only one usage of each socket address\"."
	f.against("dynamic_ports_used", used, size, "ports", fromDynamic)
	l.claims["outbound TIME_WAIT"], l.claims["pool"] = f, f
	if len(ports.Destinations) > 0 {
		d := l.portsToward(ports.Destinations[0])
		f.Remote = d.remote()
		f.against("ports_toward_the_largest_destination", float64(d.held), used, "ports", fromTable)
		for state, n := range d.Held {
			if n > 0 {
				f.evidence("ports_held_"+tcptable.State(state).String(), float64(n), "ports", fromTable)
			}
		}
		l.claims["remote "+f.Remote], l.claims["remote "+d.RemoteIP.String()] = f, f
	}
	f.remedy("Let the program keep connections and use them again. Costs a change of code or settings.")
	f.remedy("netsh int ipv4 set dynamicport tcp start=10000 num=55535, and the same for ipv6: works at once. Buys time, cures nothing.")
	f.remedy("TcpTimedWaitDelay (DWORD, 30 to 300 s) below HKLM\\SYSTEM\\CurrentControlSet\\Services\\Tcpip\\Parameters shortens TIME_WAIT. Costs a restart of Windows.")
}

const fromDynamic = "netsh int ipv4 show dynamicport tcp"
