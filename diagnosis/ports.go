package diagnosis

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const (
	fromTable = "net/tcp"
	fromRange = "net.ipv4.ip_local_port_range"
)

// portsOf are the local ports that connect(2) competes for toward one destination.
type portsOf struct {
	snapshot.Destination
	size, free      float64        // the pool, and what connect can still use of it
	held            uint64         // in any state
	most            tcptable.State // what holds most of them; 0 if listeners and idle bound sockets do
	closesPerSecond float64        // the mean of the last TIME_WAIT length
	growthPerSecond float64        // of the last 10 s, 0 where it is not more than chance
	levelsOffAt     float64        // ports held, if it goes on as in the last 10 s
	untilFull       time.Duration  // 0 if it does not come to that
	reusesTimeWaits bool
	alive           uint64   // connections that are open
	timely          bool     // growth and levelsOffAt are known
	closing         *Closing // nil if nobody listened
	growthSeen      bool     // over time
}

func (d *portsOf) remote() string { return netip.AddrPortFrom(d.RemoteIP, d.RemotePort).String() }

// second is the state that holds a quarter of the ports that are gone, beside the one that holds
// most; 0 if there is none.
func (d *portsOf) second() (second tcptable.State) {
	for state, n := range d.Held {
		state := tcptable.State(state)
		if state != d.most && !(d.reusesTimeWaits && state == tcptable.TimeWait) && 4*float64(n) >= d.Gone*d.size &&
			(second == 0 || n > d.Held[second]) {
			second = state
		}
	}
	return second
}

// portsToward works out where a destination is, and where it is heading.
func (l *look) portsToward(to snapshot.Destination) *portsOf {
	pool, sockets := l.ns.Pool, l.ns.Sockets
	d := &portsOf{Destination: to, size: float64(pool.Size), reusesTimeWaits: reuses(pool, to.LocalIP, to.RemoteIP)}
	d.free = math.Round(d.size * (1 - to.Gone))
	most := uint64(sockets.Ports.HeldForAll)
	for state, n := range to.Held {
		d.held += n
		if state := tcptable.State(state); n > most && !(d.reusesTimeWaits && state == tcptable.TimeWait) {
			most, d.most = n, state
		}
	}
	d.alive = to.Held[tcptable.Established]
	timeWaits := to.Held[tcptable.TimeWait]
	if d.reusesTimeWaits || timeWaits == 0 {
		return d
	}
	d.closesPerSecond = float64(timeWaits) / timeWaitSeconds(pool)

	// TIME_WAITs tell by their age how many came, and will end, within 10 s. That is known
	// of all outbound ones together; this destination has its share of them.
	young, ending, known := l.lastTenSeconds()
	if d.timely = known; !known {
		return d
	}
	share := float64(timeWaits) / float64(l.of(snapshot.Outbound, tcptable.TimeWait))
	young, ending = young*share, ending*share
	d.levelsOffAt = d.size*to.Gone - float64(timeWaits) + young/10*timeWaitSeconds(pool)
	if young-ending > 3*math.Sqrt(young+ending) { // else it may be chance
		d.growthPerSecond = (young - ending) / 10
	}
	if d.growthPerSecond > 0 && d.levelsOffAt >= d.size {
		d.untilFull = time.Duration(d.free / d.growthPerSecond * float64(time.Second))
	}
	return d
}

// watchPorts adds what was seen over time: closes, and the growth of what holds the ports if
// that is not TIME_WAITs, which tell it better.
func (l *look) watchPorts(d *portsOf) {
	if d.closing = l.closing(d.LocalIP, d.RemoteIP, d.RemotePort); d.closing != nil {
		d.closesPerSecond, d.alive = d.closing.ClosesPerSecond, d.closing.OpenMost
	}
	before, took := l.before()
	if before == nil || before.Ports == nil || d.most == tcptable.TimeWait || d.most == 0 {
		return
	}
	for _, then := range before.Ports.Destinations {
		if then.LocalIP != d.LocalIP || then.RemoteIP != d.RemoteIP || then.RemotePort != d.RemotePort {
			continue
		}
		d.growthPerSecond = d.size * (d.Gone - then.Gone) / took.Seconds()
		d.untilFull = 0
		if d.growthPerSecond > 0 {
			d.untilFull = time.Duration(d.free / d.growthPerSecond * float64(time.Second))
		}
		d.growthSeen = true
	}
}

// lastTenSeconds returns how many outbound TIME_WAITs came in the last 10 s and how many end
// within 10 s.
func (l *look) lastTenSeconds() (young, ending float64, known bool) {
	buckets := l.ns.Sockets.TimeWait[snapshot.Outbound]
	if l.ns.Pool.TimeWait != kernelstat.TimeWaitLength || len(buckets) == 0 {
		return 0, 0, false
	}
	for _, b := range buckets {
		switch {
		case b.UpTo <= 10*time.Second:
			ending += float64(b.Connections)
		case b.UpTo > 50*time.Second:
			young += float64(b.Connections)
		}
	}
	return young, ending, true
}

// reuses reports whether connect(2) takes TIME_WAITs between these ends over, if their
// connections had timestamps (tcp_twsk_unique in net/ipv4/tcp_ipv4.c).
func reuses(p *kernelstat.Pool, local, remote netip.Addr) bool {
	return p.Timestamps && (p.ReuseMode == 1 || p.ReuseMode == 2 && (local.IsLoopback() || remote.IsLoopback()))
}

// ports finds destinations that connect(2) has no port left for, or soon will not.
func (l *look) ports() {
	pool, ports := l.ns.Pool, l.ns.Sockets.Ports
	if pool == nil || ports == nil {
		reason := "the port range is not known; --set net.ipv4.ip_local_port_range=\"LOW HIGH\""
		if peer, n := l.largestRemote(snapshot.Outbound, tcptable.TimeWait); n > 0 {
			reason += fmt.Sprintf("; of Linux's default range the %s TIME_WAITs toward %s would be %s", count(n), peer, percent(min(float64(n)/defaultRange, 1)))
		}
		l.skip(portsNotChecked, reason)
		return
	}
	l.limit("ports_toward_the_worst_destination", math.Round(ports.Connect*float64(pool.Size)), float64(pool.Size), "ports", fromRange)
	if len(ports.Destinations) == 0 && ports.Connect > portsHalfUsed && l.claims["every destination"] == nil {
		l.portsOfNobody()
	}
	for _, to := range ports.Destinations {
		d := l.portsToward(to)
		l.watchPorts(d)
		l.capacity(d)
		if l.claims["remote "+d.remote()] != nil || l.claims["every destination"] != nil && float64(ports.HeldForAll) > d.size*d.Gone/2 {
			continue
		}
		switch {
		case d.Gone > portsNear && d.untilFull > 0 && d.free > 0:
			l.portsFinding(d, "TCPEphemeralPortsNearExhaustion", Critical, "fails in "+about(d.untilFull))
		case d.Gone >= 1:
			l.portsFinding(d, "TCPEphemeralPortsNearExhaustion", Critical, "fails now")
		case d.Gone > portsNear:
			l.portsFinding(d, "TCPEphemeralPortsNearExhaustion", Critical, "is about to fail")
		case d.Gone > portsPredicted && d.untilFull > 0 && d.untilFull.Seconds() < predictedWithin:
			l.portsFinding(d, "TCPEphemeralPortsExhaustionPredicted", Critical, "fails in "+about(d.untilFull))
		case d.Gone > portsHalfUsed:
			l.portsFinding(d, "TCPEphemeralPortsHalfUsed", Warning, "is slow")
		}
	}
}

// portsOfNobody finds the same where no destination is to be named.
func (l *look) portsOfNobody() {
	code, level := "TCPEphemeralPortsHalfUsed", Warning
	if l.ns.Sockets.Ports.Connect > portsNear {
		code, level = "TCPEphemeralPortsNearExhaustion", Critical
	}
	share, size := l.ns.Sockets.Ports.Connect, float64(l.ns.Pool.Size)
	f := l.find(code, level, "%s of the local ports toward one destination, which is not named here, are taken", percent(share))
	f.Cause = "Addresses are switched off (--no-collector.remote-ips, --collector.destinations=0), so neither the destination nor what holds its ports is known."
	f.against("ports_gone", math.Round(share*size), size, "ports", fromTable)
	f.remedy("Ask again with addresses.")
	l.claims["outbound TIME_WAIT"], l.claims["pool"] = f, f
}

func (l *look) portsFinding(d *portsOf, code string, level Level, verb string) {
	taken := percent(d.Gone) + " of the local ports toward it are taken"
	if d.Gone >= 1 {
		taken = "all " + number(d.size) + " local ports toward it are taken"
	}
	by := ""
	if d.most != 0 {
		by = ", " + count(d.Held[d.most]) + " by " + stateName(d.most)
	}
	second := d.second()
	if second != 0 {
		by += " and " + count(d.Held[second]) + " by " + stateName(second)
	}
	f := l.find(code, level, "connect() from %s to %s %s: %s%s", d.LocalIP, d.remote(), verb, taken, by)
	f.Remote = d.remote()
	l.claims["remote "+f.Remote] = f
	l.claims["remote "+d.RemoteIP.String()] = f
	l.claims["outbound TIME_WAIT"] = f
	if d.Gone > portsNear {
		l.claims["pool"] = f
	}

	f.against("ports_gone", math.Round(d.Gone*d.size), d.size, "ports", fromTable)
	for state, n := range d.Held {
		if n > 0 {
			f.evidence("ports_held_"+tcptable.State(state).String(), float64(n), "ports", fromTable)
		}
	}
	if n := l.ns.Sockets.Ports.HeldForAll; n > 0 {
		f.evidence("ports_held_for_all", float64(n), "ports", fromTable)
	}
	if d.closing != nil {
		l.closingEvidence(f, d.closing)
	} else if d.closesPerSecond > 0 {
		f.evidence("closes_per_second", d.closesPerSecond, "connections/s", fromTable)
	}
	if d.growthSeen {
		f.evidence("ports_growth", d.growthPerSecond, "ports/s", fromTable)
	}
	if d.untilFull > 0 && d.free > 0 {
		f.evidence("seconds_until_full", math.Round(d.untilFull.Seconds()), "s", fromTable)
	}
	l.portsCause(f, d)
	switch second {
	case 0:
	case tcptable.TimeWait:
		f.Cause += fmt.Sprintf(" Beside that, connections are opened for one request and closed, about %s a second.", number(d.closesPerSecond))
	case tcptable.Established:
		f.Cause += " Beside that, connections are kept open, or leaked."
	case tcptable.CloseWait:
		f.Cause += " Beside that, a program here leaks connections that the destination has closed."
		l.claims["outbound CLOSE_WAIT"] = f
	default:
		f.Cause += fmt.Sprintf(" Beside that, %s are in %s.", count(d.Held[second]), stateName(second))
	}
	l.ownDestination(f, d)
}

// portsCause tells why the ports are held, and what helps, by what holds most of them.
func (l *look) portsCause(f *Finding, d *portsOf) {
	switch d.most {
	case tcptable.TimeWait:
		f.Cause = fmt.Sprintf("A program here opens a connection for each request and closes it, about %s a second. Each close holds a local port toward that destination for %s s.",
			number(d.closesPerSecond), number(l.ns.Pool.TimeWait.Seconds()))
		switch {
		case d.free == 0:
		case d.untilFull > 0:
			f.Cause += fmt.Sprintf(" %s more are held each second than come free, and %s are left.", number(d.growthPerSecond), number(d.free))
		case d.timely && d.growthPerSecond > 0:
			f.Cause += fmt.Sprintf(" If it goes on like this it levels off at %s of the ports.", percent(d.levelsOffAt/d.size))
		case d.timely:
			f.Cause += " It does not grow now; the next burst fills it."
		}
		if d.closing != nil {
			f.Cause += fmt.Sprintf(" On average each had at most %s; %s.", requests(d.closing.RequestsPerConnection), d.closing.whoFirst())
			f.remedy("%s", poolRemedy(d.closing))
		} else {
			f.evidence("pool_size", float64(max(d.alive, 1)), "connections", fromTable)
			f.remedy("Let the program keep connections and use them again: %s open now, so a pool of about %s would do. Costs a change of code or settings; the runbook has it by language.",
				connections(d.alive), count(max(d.alive, 1)))
		}
		l.reuseRemedy(f, d)
		l.rangeRemedy(f, d)
	case tcptable.Established:
		f.Cause = "Connections are kept open and not used again: a pool without a bound, or a leak."
		f.remedy("Find the program: ss -tnp dst %s and dport = %d. Bound its pool, or restart it if it leaks. A restart frees these ports at once; it costs what is under way.", d.RemoteIP, d.RemotePort)
		l.rangeRemedy(f, d)
	case tcptable.CloseWait:
		f.Cause = "The destination has closed these connections and a program here has not: it leaks them. Each holds a port and an open file until the program closes it, or ends."
		l.claims["outbound CLOSE_WAIT"] = f
		l.ownLeak(f, snapshot.Outbound)
		f.remedy("Find the program: ss -tnp state close-wait dst %s. Restart it at a time you choose: that frees the ports at once, and costs what is under way.", d.RemoteIP)
		f.remedy("Close responses on every path (try-with-resources, defer, with). Costs a change of code.")
	case tcptable.SynSent:
		f.Cause = "The destination does not answer. Each attempt holds a port until it times out, about 130 s by default."
		f.remedy("See whether it can be reached: nc -zv %s %d. If a firewall drops the packets, let it reject them: then connect() fails at once.", d.RemoteIP, d.RemotePort)
		f.remedy("Stop trying for a while after a failure (a circuit breaker), with a short timeout. Costs a change of code or settings.")
	case tcptable.FinWait2:
		l.claims["FIN_WAIT2"] = f
		f.Cause = "A program here closes, and the destination does not: it leaks these connections (CLOSE_WAIT over there). Each holds a port until net.ipv4.tcp_fin_timeout is over, and none is taken over before."
		f.remedy("Restart the leaking program on %s. Costs what is under way there.", d.RemoteIP)
		f.remedy("Let the program here keep connections and use them again. Costs a change of code or settings.")
		l.rangeRemedy(f, d)
	case 0:
		f.Cause = "Listening and idle bound sockets inside the port range hold these ports, for every destination."
		l.rangeRemedy(f, d)
	default:
		l.claims["LAST_ACK"] = f
		f.Cause = fmt.Sprintf("Connections toward it are being closed and can't end: the peer, or the path to it, has gone (%s).", stateName(d.most))
		f.remedy("See whether it can be reached: nc -zv %s %d.", d.RemoteIP, d.RemotePort)
		l.rangeRemedy(f, d)
	}
	if ports := l.ns.Sockets.Ports; ports.Used > ports.HeldForAll && ports.Connect < ports.BindAny {
		f.against("ports_used_upper_bound", float64(ports.Used), d.size, "ports", fromTable)
	}
}

func connections(n uint64) string {
	if n == 1 {
		return "1 is"
	}
	return count(n) + " are"
}

// reuseRemedy offers tcp_tw_reuse where it is not on for that destination.
func (l *look) reuseRemedy(f *Finding, d *portsOf) {
	pool := l.ns.Pool
	if reuses(pool, d.LocalIP, d.RemoteIP) {
		return
	}
	if !pool.Timestamps {
		f.remedy("sysctl -w net.ipv4.tcp_timestamps=1 net.ipv4.tcp_tw_reuse=1: connect() then takes over TIME_WAITs that are older than %s s, of connections that had timestamps. Costs 12 bytes a packet.", number(pool.ReuseDelay.Seconds()))
		return
	}
	f.remedy("sysctl -w net.ipv4.tcp_tw_reuse=1: connect() then takes over TIME_WAITs that are older than %s s, where the peer speaks timestamps too. Costs nothing with them, gains nothing without.", number(pool.ReuseDelay.Seconds()))
}

// portsNotChecked is what is said not to be checked where the range is not known.
const portsNotChecked = "TCPEphemeralPortsNearExhaustion"

// defaultRange is how many ports 32768 to 60999 are.
const defaultRange = 28232

// widest is the widest port range that leaves the well-known ports alone.
const widestLow, widestHigh = 1024, 65535

// rangeRemedy offers a wider range, with what it gains.
func (l *look) rangeRemedy(f *Finding, d *portsOf) {
	pool := l.ns.Pool
	if pool.Low <= widestLow && pool.High >= widestHigh {
		return
	}
	wide := float64(widestHigh - widestLow + 1)
	gain := fmt.Sprintf("%s ports instead of %s", number(wide), number(d.size))
	if d.most == tcptable.TimeWait {
		gain = fmt.Sprintf("%s closes a second instead of %s", number(wide/timeWaitSeconds(pool)), number(d.size/timeWaitSeconds(pool)))
	}
	f.remedy("sysctl -w net.ipv4.ip_local_port_range=\"%d %d\": %s. First put the ports of listeners into net.ipv4.ip_local_reserved_ports (ss -ltn). Buys time, cures nothing.", widestLow, widestHigh, gain)
}

// heldForAll finds ports that connect(2) can use for no destination.
func (l *look) heldForAll() {
	pool, ports := l.ns.Pool, l.ns.Sockets.Ports
	if pool == nil || ports == nil {
		return
	}
	share := 1.0
	if pool.Size > 0 {
		share = float64(ports.HeldForAll) / float64(pool.Size)
	}
	level, verb := Warning, "is slow"
	switch {
	case share >= 1:
		level, verb = Critical, "fails now"
	case share > portsNear:
		level, verb = Critical, "is about to fail"
	case share <= portsHalfUsed:
		return
	}
	f := l.find("TCPEphemeralPortsHeldForAll", level, "connect() to anywhere %s: listening and idle bound sockets hold %s of %s ports",
		verb, count(ports.HeldForAll), count(pool.Size))
	f.Cause = "connect() without bind() uses no port that a listening or an idle bound socket has, whatever its address. So these are gone for every destination, and for bind() to a free port as well."
	if pool.Size == 0 {
		f.Cause = "Every port of the range is reserved: net.ipv4.ip_local_reserved_ports leaves none for connect()."
	}
	f.against("ports_held_for_all", float64(ports.HeldForAll), float64(pool.Size), "ports", fromTable)
	f.remedy("Find the programs: ss -ltnp, and ss -tnp --bound-inactive for idle bound sockets. Let them close those, or listen on a fixed port outside the range.")
	f.remedy("sysctl -w net.ipv4.ip_local_port_range=\"%d %d\" gives others meanwhile. Buys time, cures nothing.", widestLow, widestHigh)
	l.claims["every destination"], l.claims["pool"] = f, f
}
