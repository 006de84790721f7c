package diagnosis

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const fromEvents = "sock_diag close events"

// Connections that are closed as fast as leastClosing a second, and after fewer requests than
// mostRequests, are told of.
const (
	leastClosing = 1
	mostRequests = 10
)

// Watched is what was seen of a namespace over some time.
type Watched struct {
	Netns   string  `json:"netns"`
	Seconds float64 `json:"seconds"`
	// Growth has the states of which there are more, or fewer, than at the beginning.
	Growth []GrowthRow `json:"growth"`
	// Counters are those of the kernel that have moved, of what should not happen.
	Counters []CounterRow `json:"counters"`
	// Closes is nil where nothing tells them.
	Closes *Closes `json:"closes,omitempty"`
}

// GrowthRow is how many connections of a direction in a state have come, less those that
// have gone.
type GrowthRow struct {
	Direction string  `json:"direction"`
	State     string  `json:"state"`
	PerSecond float64 `json:"per_second"`
}

// CounterRow is by how much a counter of the kernel has moved.
type CounterRow struct {
	Name      string  `json:"name"`
	PerSecond float64 `json:"per_second"`
}

// Closes are connections that came to their end. Both ends of one within the namespace are.
type Closes struct {
	Seconds float64 `json:"seconds"`
	All     uint64  `json:"all"`
	// EventsLost are those of which nothing but their number is known.
	EventsLost uint64 `json:"events_lost"`
	// Looks are how many tell what is open.
	Looks        int              `json:"looks"`
	Destinations []DestinationEnd `json:"destinations"`
	Listeners    []ListenerEnd    `json:"listeners"`
}

// DestinationEnd tells of the connections toward a destination that came to their end.
type DestinationEnd struct {
	LocalIP    string `json:"local_ip"`
	RemoteIP   string `json:"remote_ip"`
	RemotePort uint16 `json:"remote_port"`
	Closing
}

// ListenerEnd tells of the connections to a local port that came to their end.
type ListenerEnd struct {
	LocalPort uint16 `json:"local_port"`
	Closing
}

// Closing is how connections come to their end.
type Closing struct {
	ClosesPerSecond float64 `json:"closes_per_second"`
	// RequestsPerConnection are pairs of request and response, at most.
	RequestsPerConnection float64 `json:"requests_per_connection"`
	// ClosedFirstPerSecond are those of ClosesPerSecond that this host has closed first: they
	// are in TIME_WAIT here. Where those are taken over, or there is no room for them, it is too low.
	ClosedFirstPerSecond float64 `json:"closed_first_per_second"`
	OpenMean             float64 `json:"open_mean"`
	OpenMost             uint64  `json:"open_most"`
}

func closingOf(c *snapshot.Closing, took time.Duration) Closing {
	return Closing{float64(c.Closes) / took.Seconds(), c.PairsPerConnection(), c.FirstPerSecond, c.MeanOpen, c.MostOpen}
}

// whoFirst says who closes first, as far as TIME_WAITs tell it.
func (c *Closing) whoFirst() string {
	switch share := c.ClosedFirstPerSecond / c.ClosesPerSecond; {
	case share >= 0.95:
		return "this host closes first"
	case share <= 0.05:
		return "no TIME_WAITs come of it here: the peer closes first, or they are reset or taken over"
	}
	return fmt.Sprintf("this host closes first %s of %s", number(c.ClosedFirstPerSecond), number(c.ClosesPerSecond))
}

// watch is what was seen of the namespace over time, nil if it was looked at once.
func (l *look) watch() *snapshot.Watch {
	if w := l.facts.Watch; w != nil && w.Before != nil && w.Before.Name == l.ns.Name {
		return w
	}
	return nil
}

// before is the table as it was when the time began.
func (l *look) before() (table *snapshot.Sockets, took time.Duration) {
	if w := l.watch(); w != nil && w.Took > 0 {
		return w.Before.Sockets, w.Took
	}
	return nil, 0
}

// watched tells what came of the time, whatever is found.
func (l *look) watched() {
	w := l.watch()
	if w == nil {
		return
	}
	told := &Watched{Netns: l.ns.Name, Seconds: seconds(w.Took), Growth: []GrowthRow{}, Counters: []CounterRow{}}
	l.report.Watched = told
	if before, took := l.before(); before != nil {
		for d := range snapshot.NumDirections {
			for s := range d.States() {
				if change := float64(l.of(d, s)) - float64(connectionsOf(before, d, s)); change != 0 {
					told.Growth = append(told.Growth, GrowthRow{d.String(), s.String(), change / took.Seconds()})
				}
			}
		}
	} else {
		l.skip("growth", "there is no table of when the time began")
	}
	l.counters(told)
	if w.Closes == nil {
		l.skip("closes", fmt.Sprintf("connections that are closed are not told one by one: %v", w.Err))
		return
	}
	told.Closes = &Closes{
		Seconds: seconds(w.Closes.Took), All: w.Closes.All, EventsLost: w.Closes.Lost, Looks: w.Closes.Looks,
		Destinations: []DestinationEnd{}, Listeners: []ListenerEnd{},
	}
	if n := w.Closes.Lost; n > 0 {
		l.skip("closes", count(n)+" of them were told faster than they could be read: rates are too low by so many")
	}
	for i := range w.Closes.Destinations {
		d := &w.Closes.Destinations[i]
		told.Closes.Destinations = append(told.Closes.Destinations, DestinationEnd{d.LocalIP.String(), d.RemoteIP.String(), d.RemotePort, closingOf(&d.Closing, w.Closes.Took)})
	}
	for i := range w.Closes.Listeners {
		li := &w.Closes.Listeners[i]
		told.Closes.Listeners = append(told.Closes.Listeners, ListenerEnd{li.Port, closingOf(&li.Closing, w.Closes.Took)})
	}
}

// counters tells which have moved.
func (l *look) counters(told *Watched) {
	w := l.watch()
	for _, name := range []string{"ListenOverflows", "ListenDrops", "TCPTimeWaitOverflow", "TCPAbortOnMemory", "TCPAbortOnTimeout"} {
		then, known := w.Before.Kernel[kernelstat.Netstat(name)]
		now, ok := l.ns.Kernel[kernelstat.Netstat(name)]
		if !known || !ok {
			l.skip("counters", "overflows, drops and aborts that the kernel counts: "+name+" is not known")
		} else if now > then {
			told.Counters = append(told.Counters, CounterRow{name, float64(now-then) / w.Took.Seconds()})
		}
	}
}

// overflows finds an accept queue that was full meanwhile and is not now.
func (l *look) overflows() {
	w := l.watch()
	if w == nil || slices.ContainsFunc(l.report.Findings, func(f *Finding) bool { return f.Code == "TCPListenQueueOverflowing" && f.Netns == l.ns.Name }) {
		return
	}
	overflows := kernelstat.Netstat("ListenOverflows")
	then, known := w.Before.Kernel[overflows]
	now := l.ns.Kernel[overflows]
	if !known || now <= then {
		return
	}
	f := l.find("TCPListenQueueOverflowing", Warning, "an accept queue was full %s times within %s s, and is not now", count(now-then), number(w.Took.Round(time.Second).Seconds()))
	f.Cause = "A handshake that meets a full queue is dropped: clients try again for a while, or are reset after they have sent. The program behind it does not accept fast enough for bursts."
	f.evidence("listen_overflows", float64(now-then), "handshakes", "net/netstat TcpExt ListenOverflows")
	f.remedy("See which it is: ss -ltn, again and again; Recv-Q is above Send-Q while it is full.")
	f.remedy("A longer backlog (listen(), net.core.somaxconn) takes bursts. Costs a restart of the program.")
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// closing returns how connections toward a destination come to their end, nil if that was not
// seen.
func (l *look) closing(local, remote netip.Addr, port uint16) *Closing {
	w := l.watch()
	if w == nil || w.Closes == nil {
		return nil
	}
	for i := range w.Closes.Destinations {
		if d := &w.Closes.Destinations[i]; d.LocalIP == local && d.RemoteIP == remote && d.RemotePort == port {
			c := closingOf(&d.Closing, w.Closes.Took)
			return &c
		}
	}
	return nil
}

func (l *look) closingEvidence(f *Finding, c *Closing) {
	f.evidence("closes_per_second", c.ClosesPerSecond, "connections/s", fromEvents)
	f.evidence("requests_per_connection", c.RequestsPerConnection, "requests at most", fromEvents)
	f.evidence("closed_first_per_second", c.ClosedFirstPerSecond, "connections/s", fromTable)
	f.evidence("open_mean", c.OpenMean, "connections", fromTable)
	f.evidence("pool_size", float64(max(c.OpenMost, 1)), "connections", fromTable)
	f.evidence("events_lost", float64(l.watch().Closes.Lost), "connections", "net/netlink Drops")
}

// notReused finds destinations that are given a new connection for each request, or every
// few of them, before that is short of ports.
func (l *look) notReused() {
	w := l.watch()
	if w == nil || w.Closes == nil {
		return
	}
	for i := range w.Closes.Destinations {
		to := &w.Closes.Destinations[i]
		c := closingOf(&to.Closing, w.Closes.Took)
		remote := netip.AddrPortFrom(to.RemoteIP, to.RemotePort).String()
		if l.claims["remote "+remote] != nil || c.ClosesPerSecond < leastClosing || c.RequestsPerConnection >= mostRequests {
			continue
		}
		f := l.find("TCPConnectionsNotReused", Info, "connections from %s to %s are not used again: %s a second are closed, on average after at most %s",
			to.LocalIP, remote, number(c.ClosesPerSecond), requests(c.RequestsPerConnection))
		f.Remote = remote
		f.Cause = "A program here opens a connection for each request, or for a few of them, and then it is closed: " + c.whoFirst() + "."
		l.closingEvidence(f, &c)
		f.remedy("%s", poolRemedy(&c))
		d := &portsOf{Destination: snapshot.Destination{LocalIP: to.LocalIP, RemoteIP: to.RemoteIP, RemotePort: to.RemotePort}, most: tcptable.TimeWait}
		if pool := l.ns.Pool; pool != nil && !reuses(pool, to.LocalIP, to.RemoteIP) {
			d.size = float64(pool.Size)
			held := c.ClosedFirstPerSecond * timeWaitSeconds(pool)
			f.against("ports_held_if_it_goes_on", math.Round(held), d.size, "ports", fromTable)
			if held > portsHalfUsed*d.size {
				f.Level = Warning
				f.Cause += " Each close holds a local port for " + number(pool.TimeWait.Seconds()) + " s, and at this rate connect() gets slow, or fails, within that."
				l.reuseRemedy(f, d)
				l.rangeRemedy(f, d)
				l.claims["remote "+remote], l.claims["remote "+to.RemoteIP.String()], l.claims["outbound TIME_WAIT"] = f, f, f
			}
		}
		l.ownDestination(f, d)
	}
}

func requests(n float64) string {
	if n == 1 {
		return "1 request"
	}
	return number(n) + " requests"
}

func poolRemedy(c *Closing) string {
	return fmt.Sprintf("Let the program keep connections and use them again: %s were open at a time on average and %s at most, so a pool of about %s would do. Costs a change of code or settings; the runbook has it by language.",
		number(c.OpenMean), count(c.OpenMost), count(max(c.OpenMost, 1)))
}

// growth is evidence of how a count has changed over the time, if that is known.
func (l *look) growth(f *Finding, name string, now uint64, then func(*snapshot.Sockets) (n uint64, known bool)) {
	before, took := l.before()
	if before == nil {
		return
	}
	if n, known := then(before); known {
		f.evidence(name+"_growth", (float64(now)-float64(n))/took.Seconds(), "connections/s", fromTable)
	}
}

// growthOf is that of a direction in a state.
func (l *look) growthOf(f *Finding, d snapshot.Direction, s tcptable.State) {
	l.growth(f, s.String(), l.of(d, s), func(before *snapshot.Sockets) (uint64, bool) { return connectionsOf(before, d, s), true })
}

// connectionsOf returns the connections of a direction in a state, of both families.
func connectionsOf(s *snapshot.Sockets, d snapshot.Direction, state tcptable.State) uint64 {
	return s.Connections[snapshot.IPv4][d][state] + s.Connections[snapshot.IPv6][d][state]
}
