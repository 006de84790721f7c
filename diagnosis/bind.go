package diagnosis

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"timewait_exporter/collector/snapshot"
)

// bind finds pools that bind(2) with port 0 has nothing left in: on one local address, or on
// all. A proxy with many destinations fills them and is healthy: plain connect(2) goes on.
func (l *look) bind() {
	pool, ports := l.ns.Pool, l.ns.Sockets.Ports
	if pool == nil || ports == nil {
		l.skip("TCPBindPortsNearExhaustion", "the port range is not known")
		return
	}
	size := float64(pool.Size)
	l.limit("ports_used_on_any_address", float64(ports.Used), size, "ports", fromRange)
	worst := max(ports.Bind, ports.BindAny)
	if worst <= bindNear {
		return
	}
	where, sockets := "on any address", ports.BindAny
	if ports.Bind > bindNear {
		where, sockets = "on all addresses", ports.Bind
		if len(ports.Locals) > 0 && ports.Locals[0].Gone >= ports.Bind {
			where = "on " + ports.Locals[0].IP.String()
		}
	}
	used := math.Round(sockets * size)
	// Where one destination or the listeners hold most of them, that is the cause.
	if f := l.claims["pool"]; f != nil {
		f.against("ports_used_for_bind", used, size, "ports", fromTable)
		return
	}
	level := Warning
	if ports.HeldForAll > 0 { // somebody does bind
		level = Critical
	}
	verb := "is about to fail"
	if sockets >= 1 {
		verb = "fails now"
	}
	f := l.find("TCPBindPortsNearExhaustion", level, "bind() to a free port %s %s: %s of %s ports are taken", where, verb, number(used), number(size))
	f.Cause = "bind() with port 0 wants a port that no socket has on that address, whatever it is connected to; so many destinations together fill it. Plain connect() goes on. " +
		"Where programs bind before they connect, which no table shows, connect() finds at most the rest: this is the upper bound of what is taken for it."
	f.against("ports_used", used, size, "ports", fromTable)
	f.against("ports_toward_the_worst_destination", math.Round(ports.Connect*size), size, "ports", fromTable)
	f.evidence("ports_held_for_all", float64(ports.HeldForAll), "ports", fromTable)
	f.remedy("Let clients set IP_BIND_ADDRESS_NO_PORT before bind(): connect() then chooses the port. Costs a change of code or settings.")
	f.remedy("Let servers listen on a fixed port outside the range. Costs a setting.")
	f.remedy("sysctl -w net.ipv4.ip_local_port_range=\"%d %d\" gives more ports. Buys time, cures nothing.", widestLow, widestHigh)
}

// listenersInside notes listeners whose port clients are given too: after a stop, the next
// start may find it taken.
func (l *look) listenersInside() {
	pool := l.ns.Pool
	if pool == nil {
		return
	}
	var f *Finding
	seen := make(map[uint16]bool)
	for _, q := range l.ns.Sockets.AcceptQueues {
		if !pool.Ports.Has(q.Port) || !looksFixed(q.Port) || seen[q.Port] {
			continue
		}
		seen[q.Port] = true
		if f == nil {
			f = l.find("TCPListenersInsidePortRange", Info, "")
			f.Listener = endpoint(q)
			f.Cause = "While the service is down, connect() of any program may be given its port. The service then can't start: \"Address already in use\"."
		}
		if len(f.Evidence) < 10 {
			f.evidence("listening_port", float64(q.Port), "port", fromTable)
		}
	}
	if f == nil {
		return
	}
	var ports []string
	for _, e := range f.Evidence {
		ports = append(ports, strconv.Itoa(int(e.Value)))
	}
	are := "port " + ports[0] + " of a listener is"
	if len(seen) > 1 {
		are = fmt.Sprintf("ports of %d listeners (%s) are", len(seen), ports[0]+" the first")
	}
	f.Title = fmt.Sprintf("%s inside the port range %d-%d and not reserved", are, pool.Low, pool.High)
	f.remedy("sysctl -w net.ipv4.ip_local_reserved_ports=%s, beside what is in it already. Costs as many ports of the range.", strings.Join(ports, ","))
}

// looksFixed reports whether somebody is likely to have chosen the port: 33060, 50051. That
// of listen(2) without bind(2) is any.
func looksFixed(port uint16) bool { return port%10 == 0 || port%1000 < 100 }

func endpoint(q snapshot.AcceptQueue) string {
	if !q.LocalIP.IsValid() {
		return fmt.Sprintf("*:%d", q.Port)
	}
	return netip.AddrPortFrom(q.LocalIP, q.Port).String()
}
