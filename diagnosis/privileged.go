package diagnosis

import "timewait_exporter/collector/kernelstat"

// privileged finds the privileged source ports used up: the kernel's NFS client takes one for
// each mount, by number and whatever the destination (xs_bind in net/sunrpc/xprtsock.c).
func (l *look) privileged() {
	if l.ns.Sockets.HeldPorts == nil {
		l.skip("TCPPrivilegedPortsNearExhaustion", "which ports are held is counted in the exporter's own network namespace only")
		return
	}
	low, hasLow := l.kernel(kernelstat.SysctlOr("sunrpc.min_resvport", 665))
	high, hasHigh := l.kernel(kernelstat.SysctlOr("sunrpc.max_resvport", 1023))
	if !hasLow || !hasHigh || high < low || high > 65535 {
		l.unknown("TCPPrivilegedPortsNearExhaustion", "sunrpc.min_resvport and max_resvport are not known")
		return
	}
	held := 0.0
	for port := int(low); port <= int(high); port++ {
		if l.ns.Sockets.HeldPorts.Has(uint16(port)) {
			held++
		}
	}
	most := high - low + 1
	l.limit("privileged_source_ports", held, most, "ports", "sunrpc.min_resvport")
	if held <= privilegedNear*most {
		return
	}
	verb := "are about to fail"
	if held >= most {
		verb = "fail now"
	}
	f := l.find("TCPPrivilegedPortsNearExhaustion", Critical, "NFS mounts %s: %s of %s privileged source ports are taken", verb, number(held), number(most))
	f.Cause = "Each mount takes one of these ports, for all destinations, and its TIME_WAIT holds it for a minute more. At the limit the next mount, rsh or bindresvport() fails with \"Address already in use\"."
	f.against("privileged_ports_held", held, most, "ports", fromTable)
	l.claims["outbound TIME_WAIT"] = f
	f.remedy("Mount fewer at once, or keep mounts: autofs with a longer timeout. Costs memory on the server.")
	f.remedy("Mount with noresvport. Costs the server the check that a client is root.")
}
