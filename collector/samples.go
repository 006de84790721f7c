package collector

import (
	"net/netip"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// samplesOf makes the samples of the exporter's namespace and the node, with all other
// namespaces if they are read.
func samplesOf(ns *snapshot.Namespace, node *snapshot.Node) []prometheus.Metric {
	out := samples{netns: ns.Name}
	for _, part := range ns.Parts {
		success := 1.0
		if part.Err != nil {
			success = 0
		}
		out.add(collectorSuccess, success, part.Name)
		out.add(collectorDuration, part.Took.Seconds(), part.Name)
	}
	if ns.Pool != nil {
		out.add(timeWaitDuration, ns.Pool.TimeWait.Seconds())
	}
	out.addNamespace(ns)
	if ns.Sockets != nil {
		out.addOwnSockets(ns, node)
	}
	if source := ns.OwnerSource; source != nil {
		out.add(ownerSourceInfo, 1, source.Source, source.Reason)
	}
	if ns.Owners != nil {
		out.addOwners(ns.Owners)
	}
	for of := range tcptable.NumTables {
		out.add(rowsRead, float64(ns.Rows[of]), of.String())
		out.add(malformedRows, float64(ns.MalformedRows[of]), of.String())
	}
	out.addKernel(node.Kernel, true)
	out.addTargets(node)
	if all := node.Namespaces; all != nil {
		out.addNamespaces(all, ns.Sockets != nil)
	}
	return out.all
}

// addTargets adds what a NAT before the node needs; nothing where it is not known.
func (s *samples) addTargets(node *snapshot.Node) {
	for _, to := range node.Targets {
		s.add(nodeDestinations, float64(to.Connections), to.IP.String(), portName(to.Port))
	}
	if node.NATUse != nil {
		s.add(natUtilisation, *node.NATUse)
	}
}

// addNamespaces adds all but the exporter's own.
func (s *samples) addNamespaces(all *snapshot.Namespaces, ownRead bool) {
	read, waiting := all.Read, all.Waiting
	if ownRead {
		read++
	} else {
		waiting++
	}
	s.add(namespacesFound, float64(read), "read")
	s.add(namespacesFound, float64(all.Unchanged), "unchanged")
	s.add(namespacesFound, float64(waiting), "waiting")
	s.add(namespacesFound, float64(all.Denied), "denied")
	visible := 0.0
	if all.HostVisible {
		visible = 1
	}
	s.add(hostVisible, visible)
	s.sparse = true
	for _, ns := range all.Others {
		s.netns = ns.Name
		s.addNamespace(ns)
	}
}

// addNamespace adds what every namespace has.
func (s *samples) addNamespace(ns *snapshot.Namespace) {
	o := &ns.Owner
	s.add(netnsInfo, 1, ns.Dir, string(ns.Sysctls), o.Namespace, o.Pod, o.PodUID, o.Container, o.ContainerID, o.Unit)
	s.addKernel(ns.Kernel, false)
	s.addInUse(ns)
	if ns.Sockets != nil {
		s.addSockets(ns)
	}
}

// addKernel adds the numbers of the node, or those of a namespace.
func (s *samples) addKernel(read kernelstat.Numbers, ofNode bool) {
	for _, m := range kernelMetrics {
		for label, number := range m.numbers {
			value, ok := read[number]
			switch {
			case !ok || number.OfNode() != ofNode:
			case label == "":
				s.add(m, float64(value)*m.unit)
			default:
				s.add(m, float64(value)*m.unit, label)
			}
		}
	}
}

// addInUse adds what the kernel counts of sockets without a walk of the table.
func (s *samples) addInUse(ns *snapshot.Namespace) {
	inUse, ok := ns.Kernel[inUse4]
	if !ok {
		return
	}
	inUse += ns.Kernel[inUse6] // none on a kernel without IPv6
	s.add(socketsInUse, float64(inUse))
	if timeWait, ok := ns.Kernel[timeWaits]; ok && ns.Pool != nil {
		s.add(upperBound, min(1, float64(inUse+timeWait)/float64(max(ns.Pool.Size, 1))))
	}
}

// addSockets adds what the table of any namespace tells.
func (s *samples) addSockets(ns *snapshot.Namespace) {
	sockets := ns.Sockets
	s.add(tableRead, float64(sockets.Read.UnixMilli())/1000)
	for d := range snapshot.NumDirections {
		for f := range snapshot.NumFamilies {
			for state := range d.States() {
				s.addCount(connections, float64(sockets.Connections[f][d][state]), f.String(), d.String(), state.String())
			}
		}
	}
	s.addRemotes(sockets)
	s.addListeners(sockets)
	s.addCount(destinations, float64(sockets.Destinations))
	if sockets.Ports != nil && ns.Pool != nil {
		s.addPorts(sockets.Ports)
	}
}

// addOwnSockets adds what only the table of the exporter's own namespace is asked for.
func (s *samples) addOwnSockets(ns *snapshot.Namespace, node *snapshot.Node) {
	sockets := ns.Sockets
	s.add(sourceInfo, 1, sockets.Source)
	for d := range snapshot.NumDirections {
		for _, timer := range []tcptable.Timer{tcptable.TimerNone, tcptable.TimerRetransmit, tcptable.TimerKeepalive, tcptable.TimerProbe} {
			s.add(timerConnections, float64(sockets.Timers[d][timer]), d.String(), timer.String())
		}
		s.add(halfClosedConnections, float64(sockets.HalfClosed[d]), d.String())
		for state, rows := range sockets.Unanswered[d] {
			state := tcptable.State(state)
			if rows > 0 || state == tcptable.Established || state == tcptable.SynSent && d == snapshot.Outbound {
				s.add(unansweredConnections, float64(rows), d.String(), state.String())
			}
		}
		s.add(queueBytes, float64(sockets.Unread[d]), d.String(), "receive")
		s.add(queueBytes, float64(sockets.Unacknowledged[d]), d.String(), "send")
		for _, bucket := range sockets.TimeWait[d] {
			s.add(timeWaitRemaining, float64(bucket.Connections), d.String(), strconv.Itoa(int(bucket.UpTo.Seconds())))
		}
	}
	s.add(orphanConnections, float64(sockets.Orphans))
	s.add(undercountMax, float64(sockets.Undercount.Remote), "remote")
	s.add(undercountMax, float64(sockets.Undercount.Destination), "destination")
	if pool, ports := ns.Pool, sockets.Ports; pool != nil && ports != nil {
		s.add(ephemeralPorts, float64(pool.Size))
		s.add(ephemeralLow, float64(pool.Low))
		s.add(ephemeralHigh, float64(pool.High))
		s.add(ephemeralPortsUsed, float64(ports.Used))
		s.add(undercountMax, float64(sockets.Undercount.LocalIP), "local_ip")
		low, hasLow := node.Kernel[privilegedLow]
		if high, hasHigh := node.Kernel[privilegedHigh]; hasLow && hasHigh {
			s.add(privilegedUtilisation, sockets.HeldPorts.Used(low, high))
		}
	}
}

func (s *samples) addRemotes(sockets *snapshot.Sockets) {
	for d := range snapshot.NumDirections {
		s.addCount(remoteIPs, float64(sockets.RemoteIPs[d]), d.String())
		for state := range d.States() {
			switch state {
			case tcptable.Established, tcptable.TimeWait, tcptable.CloseWait, tcptable.SynRecv:
				if share := sockets.TopShare[d][state]; !s.sparse || share > 0.5 { // as alerts have it
					s.add(remoteTopShare, share, d.String(), state.String())
				}
			}
		}
	}
	for i := range sockets.Remotes {
		r := &sockets.Remotes[i]
		s.addRemote(remoteName(r), &r.States)
	}
	s.addRemote(other, &sockets.OtherRemotes)
}

func (s *samples) addRemote(name string, states *[snapshot.NumDirections]snapshot.States) {
	for d := range snapshot.NumDirections {
		for state, rows := range states[d] {
			if rows > 0 {
				s.add(remoteConnections, float64(rows), name, d.String(), tcptable.State(state).String())
			}
		}
	}
}

func remoteName(r *snapshot.Remote) string {
	if r.Group != "" {
		return r.Group
	}
	if r.Bits < r.IP.BitLen() {
		return netip.PrefixFrom(r.IP, r.Bits).String()
	}
	return r.IP.String()
}

func (s *samples) addListeners(sockets *snapshot.Sockets) {
	for i := range sockets.Listeners {
		l := &sockets.Listeners[i]
		s.addListener(portName(l.Port), l)
	}
	if l := sockets.OtherListeners; l != nil {
		s.addListener(other, l)
	}
	for _, q := range sockets.AcceptQueues {
		ip := other
		if q.LocalIP.IsValid() {
			ip = q.LocalIP.String()
		}
		port := portName(q.Port)
		s.add(listenerSockets, float64(q.Sockets), ip, port)
		s.add(listenerAcceptQueue, float64(q.Length), ip, port)
		if !sockets.HasBacklogs {
			continue
		}
		s.add(listenerAcceptQueueLimit, float64(q.Limit), ip, port)
		s.add(listenerAcceptQueueFill, q.Fill, ip, port)
		s.add(listenerFullSockets, float64(q.Full), ip, port)
	}
}

func (s *samples) addListener(port string, l *snapshot.Listener) {
	for state, rows := range l.States {
		// What an alert compares with a limit is there at 0 too.
		if state := tcptable.State(state); rows > 0 || state == tcptable.SynRecv && !s.sparse {
			s.add(listenerConnections, float64(rows), port, state.String())
		}
	}
	for _, state := range []tcptable.State{tcptable.Established, tcptable.CloseWait} {
		s.addCount(listenerUnaccepted, float64(l.Unaccepted[state]), port, state.String())
	}
	if l.HasSynFill {
		s.add(listenerSynQueueFill, l.SynFill, port)
	}
}

func (s *samples) addPorts(ports *snapshot.Ports) {
	s.add(ephemeralUtilisation, ports.Connect, "connect")
	s.add(ephemeralUtilisation, ports.Bind, "bind")
	s.add(ephemeralUtilisation, ports.BindAny, "bind_any")
	for _, to := range ports.Destinations {
		local, remote, port := to.LocalIP.String(), to.RemoteIP.String(), portName(to.RemotePort)
		for state, held := range to.Held {
			if held > 0 {
				s.add(destinationPortsUsed, float64(held), local, remote, port, tcptable.State(state).String())
			}
		}
		s.add(destinationUtilisation, to.Gone, local, remote, port)
		if to.Unanswered > 0 {
			s.add(destinationUnanswered, float64(to.Unanswered), local, remote, port)
		}
	}
	for _, l := range ports.Locals {
		ip := l.IP.String()
		s.add(localPortsUsed, float64(l.Used), ip)
		s.add(localUtilisation, l.Gone, ip)
	}
}

func portName(port uint16) string { return strconv.Itoa(int(port)) }

func (s *samples) addOwners(owners *snapshot.Owners) {
	for i := range owners.All {
		s.addOwner(&owners.All[i])
	}
	for _, l := range owners.Listeners {
		s.add(listenerOwnerInfo, 1, l.LocalIP.String(), portName(l.Port), l.Name)
	}
	for _, to := range owners.Destinations {
		local, remote, port := to.LocalIP.String(), to.RemoteIP.String(), portName(to.RemotePort)
		for _, o := range to.Live {
			s.add(destinationOwnerConnections, float64(o.Sockets), local, remote, port, o.Name)
		}
		var gone uint64
		for _, o := range to.Gone {
			gone += o.Sockets
		}
		for _, o := range to.Gone {
			s.add(destinationOwnerShare, float64(o.Sockets)/float64(gone), local, remote, port, o.Name)
		}
		s.add(destinationOwnerSamples, float64(gone), local, remote, port)
	}
}

func (s *samples) addOwner(o *snapshot.OwnerSockets) {
	for d := range snapshot.NumDirections {
		for state := range d.States() {
			if n := o.Connections[d][state]; n > 0 {
				s.add(ownerConnections, float64(n), o.Name, d.String(), state.String())
			}
		}
	}
	for state, n := range o.Unaccepted {
		if n > 0 {
			s.add(ownerUnaccepted, float64(n), o.Name, tcptable.State(state).String())
		}
	}
	if o.CloseWaits.Sockets > 0 {
		s.add(ownerCloseWaitOldest, o.CloseWaits.Oldest.Seconds(), o.Name)
		for i, age := range snapshot.CloseWaitAges() {
			s.add(ownerCloseWaitOlder, float64(o.CloseWaits.Older[i]), o.Name, strconv.Itoa(int(age.Seconds())))
		}
	}
	if w := &o.Owner; w.Kind != "" {
		s.add(ownerInfo, 1, o.Name, string(w.Kind), w.Runtime, w.Unit, w.Namespace, w.Pod, w.PodUID, w.Container, w.ContainerID, o.Program)
	}
	if p := o.Worst; p != nil {
		s.add(ownerOpenFDs, float64(p.OpenFiles), o.Name, p.Program)
		s.add(ownerMaxFDs, float64(p.MaxFiles), o.Name, p.Program)
	}
}
