package collector

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// listener makes a LISTEN row with so many connections in its queue.
func listener(at string, length, backlog uint32) tcptable.Socket {
	s := socket("tcp listen " + at + " 0.0.0.0:0")
	s.RxQueue, s.Backlog = length, backlog
	return s
}

// dumpOf is what a dump of these listeners tells.
func dumpOf(rows ...tcptable.Socket) *tally.Listening { return dumpWith(math.MaxUint64, rows...) }

func dumpWith(synLimit uint64, rows ...tcptable.Socket) *tally.Listening {
	l, _ := tally.CountListening(yielded(rows), synLimit) // fails only with an error among the rows
	return l
}

// TestAcceptQueue adds the sockets of one endpoint up, and takes the fullest: each
// has a queue of its own.
func TestAcceptQueue(t *testing.T) {
	f := func(want snapshot.AcceptQueue, rows ...tcptable.Socket) {
		t.Helper()
		p := tallyPage(t, tally.New(32, 128), nil, everything, dumpOf(rows...), rows[0])
		labels := []string{"local_ip", "0.0.0.0", "local_port", "80"}
		p.want(t, float64(want.Sockets), "tcp_listener_sockets", labels...)
		p.want(t, float64(want.Length), "tcp_listener_accept_queue", labels...)
		p.want(t, float64(want.Limit), "tcp_listener_accept_queue_limit", labels...)
		p.want(t, want.Fill, "tcp_listener_accept_queue_fill_ratio", labels...)
		p.want(t, float64(want.Full), "tcp_listener_full_sockets", labels...)
	}
	row := func(length, backlog uint32) tcptable.Socket { return listener("0.0.0.0:80", length, backlog) }
	f(snapshot.AcceptQueue{Sockets: 1, Limit: 511}, row(0, 511))
	f(snapshot.AcceptQueue{Sockets: 1, Length: 2, Limit: 3, Fill: 0.5}, row(2, 3))
	// The kernel takes one more than the backlog.
	f(snapshot.AcceptQueue{Sockets: 1, Length: 3, Limit: 3, Fill: 0.75}, row(3, 3))
	f(snapshot.AcceptQueue{Sockets: 1, Length: 4, Limit: 3, Fill: 1, Full: 1}, row(4, 3))
	f(snapshot.AcceptQueue{Sockets: 1, Fill: 0}, row(0, 0))
	f(snapshot.AcceptQueue{Sockets: 1, Length: 1, Fill: 1, Full: 1}, row(1, 0))
	f(snapshot.AcceptQueue{Sockets: 1, Length: 1 << 31, Limit: 1<<32 - 1, Fill: 0.5}, row(1<<31, 1<<32-1))
	// listen(2) again, with less.
	f(snapshot.AcceptQueue{Sockets: 1, Length: 51, Limit: 4, Fill: 1, Full: 1}, row(51, 4))
	// SO_REUSEPORT: one of eight hangs.
	f(snapshot.AcceptQueue{Sockets: 8, Length: 4, Limit: 24, Fill: 1, Full: 1},
		row(0, 3), row(0, 3), row(0, 3), row(4, 3), row(0, 3), row(0, 3), row(0, 3), row(0, 3))
	f(snapshot.AcceptQueue{Sockets: 3, Length: 12, Limit: 19, Fill: 1, Full: 2}, row(6, 5), row(1, 10), row(5, 4))
}

// TestSynQueue compares half-open connections with the room for them, which is that of the
// sockets on one address, and takes the fullest address of a port.
func TestSynQueue(t *testing.T) {
	f := func(want float64, limit uint64, halfOpen string, n int, listeners ...tcptable.Socket) {
		t.Helper()
		var rows []tcptable.Socket
		for _, l := range listeners {
			l.Local.Addr = l.Local.Addr.WithoutZone() // as in /proc
			rows = append(rows, l)
		}
		for range n {
			s := socket(halfOpen)
			s.Kind, s.Inode = tcptable.Request, 0
			rows = append(rows, s)
		}
		p := tallyPage(t, tally.New(32, 128), nil, everything, dumpWith(limit, listeners...), rows...)
		p.want(t, want, "tcp_listener_syn_queue_fill_ratio", "local_port", "80")
		if got := len(p.series("tcp_listener_syn_queue_fill_ratio")); got != 1 {
			t.Errorf("%d series", got)
		}
	}
	const v4, v6, mapped = "tcp syn_recv 10.0.0.1:80 10.0.0.9:4000", "tcp6 syn_recv [fd00::1]:80 [fd00::9]:4000", "tcp6 syn_recv [::ffff:10.0.0.1]:80 10.0.0.9:4000"
	row := func(table, ip string, backlog uint32) tcptable.Socket {
		s := socket(table + " listen " + ip + ":80 " + ip + ":0")
		s.Backlog = backlog
		return s
	}
	any4 := row("tcp", "0.0.0.0", 99)
	const cookies = math.MaxUint64
	f(0, cookies, v4, 0, any4)
	f(0.5, cookies, v4, 50, any4)
	f(1, cookies, v4, 100, any4)
	f(1, cookies, v4, 150, any4) // a second listen(2) asked for less
	f(1, 49, v4, 49, any4)
	f(0.5, 10, v4, 5, any4)
	f(0.25, 10, v4, 1, row("tcp", "0.0.0.0", 3)) // the backlog is less
	f(1, cookies, v4, 1, row("tcp", "0.0.0.0", 0))
	f(0.5, 10, v4, 10, any4, any4)                          // SO_REUSEPORT
	f(0.5, cookies, v4, 5, any4, row("tcp", "10.0.0.1", 9)) // the one on its address takes it
	f(0.05, cookies, v4, 5, any4, row("tcp", "10.0.0.2", 9))
	f(0.5, cookies, v6, 5, any4, row("tcp6", "[::]", 9))
	f(0.5, cookies, mapped, 5, any4, row("tcp6", "[::]", 9)) // dual-stack
	f(0.5, cookies, "tcp6 syn_recv [fe80::1]:80 [fe80::9]:4000", 5, row("tcp6", "[fe80::1%3]", 9))
	f(0, cookies, v4, 5, row("tcp6", "[::]", 9)) // its listener has gone meanwhile

	p := tallyPage(t, tally.New(32, 128), nil, everything, dumpWith(0, any4), any4)
	p.wantNone(t, "tcp_listener_syn_queue_fill_ratio") // the limit is not known
	p = tallyPage(t, tally.New(32, 128), nil, tally.Limits{}, dumpOf(any4), any4)
	p.wantNone(t, "tcp_listener_syn_queue_fill_ratio")
}

// TestAcceptQueuesOfOneMoment takes lengths and limits from the dump, and what the
// table says of the same sockets a moment later not at all.
func TestAcceptQueuesOfOneMoment(t *testing.T) {
	table := []tcptable.Socket{listener("10.0.0.1:80", 4, 0), listener("10.0.0.2:80", 2, 0)}
	p := tallyPage(t, tally.New(32, 128), nil, everything, dumpOf(listener("10.0.0.1:80", 1, 3), listener("10.0.0.3:81", 9, 1)), table...)
	p.want(t, 1, "tcp_listener_accept_queue", "local_ip", "10.0.0.1", "local_port", "80")
	p.want(t, 1, "tcp_listener_accept_queue") // the others have only just come, or gone
	p.want(t, 0.25, "tcp_listener_accept_queue_fill_ratio")

	p = tallyPage(t, tally.New(32, 128), nil, everything, nil, table...)
	p.want(t, 4, "tcp_listener_accept_queue", "local_ip", "10.0.0.1", "local_port", "80")
	p.want(t, 6, "tcp_listener_accept_queue")
	p.want(t, 2, "tcp_listener_sockets")
	p.wantNone(t, "tcp_listener_accept_queue_fill_ratio")
}

// TestNamedQueues has the queues of the ports with most connections, whatever is in
// them.
func TestNamedQueues(t *testing.T) {
	var rows []tcptable.Socket
	for port := 80; port < 90; port++ {
		rows = append(rows, listener(fmt.Sprintf("10.0.0.1:%d", port), uint32(port), 100))
	}
	connected := func(port, n int) {
		for i := range n {
			rows = append(rows, socket(fmt.Sprintf("tcp established 10.0.0.1:%d 10.0.0.2:%d", port, 5000+i)))
		}
	}
	connected(83, 3)
	connected(85, 2)
	connected(86, 2)
	for _, queues := range []*tally.Listening{nil, dumpOf(rows[:10]...)} {
		f := func(n int, want ...string) {
			t.Helper()
			p := tallyPage(t, tally.New(32, 128), nil, tally.Limits{Listeners: n}, queues, rows...)
			var got []string
			for _, m := range p.family("tcp_listener_accept_queue") {
				got = append(got, m.GetLabel()[1].GetValue())
			}
			if !slices.Equal(got, want) {
				t.Errorf("of %d ports named are %q, want %q", n, got, want)
			}
			for _, port := range want { // both sides of a rule's division
				p.want(t, 0, "tcp_listener_connections", "local_port", port, "state", "syn_recv")
			}
		}
		f(0)
		f(1, "83")
		f(2, "83", "85")
		f(3, "83", "85", "86")
		f(5, "80", "81", "83", "85", "86")
		f(10, "80", "81", "82", "83", "84", "85", "86", "87", "88", "89")
		f(50, "80", "81", "82", "83", "84", "85", "86", "87", "88", "89")
	}
}

// TestQueuesOfManyIPs names the first twenty local IPs of a port and adds up the rest.
func TestQueuesOfManyIPs(t *testing.T) {
	var rows []tcptable.Socket
	for i := range 25 { // the largest address first
		rows = append(rows, listener(fmt.Sprintf("10.0.0.%d:80", 25-i), uint32(25-i), 31))
	}
	rows = append(rows, listener("10.0.0.24:80", 32, 31), listener("10.0.0.9:81", 7, 31))
	p := tallyPage(t, tally.New(32, 128), nil, everything, dumpOf(rows...), rows...)
	if n := len(p.series("tcp_listener_sockets", "local_port", "80")); n != 21 {
		t.Errorf("%d local IPs of a port are named, want 20 and the rest", n)
	}
	for i := range 20 {
		p.want(t, float64(i+1), "tcp_listener_accept_queue", "local_ip", fmt.Sprintf("10.0.0.%d", i+1), "local_port", "80")
	}
	rest := []string{"local_ip", "other", "local_port", "80"}
	p.want(t, 6, "tcp_listener_sockets", rest...)
	p.want(t, 21+22+23+24+25+32, "tcp_listener_accept_queue", rest...)
	p.want(t, 6*31, "tcp_listener_accept_queue_limit", rest...)
	p.want(t, 1, "tcp_listener_accept_queue_fill_ratio", rest...)
	p.want(t, 1, "tcp_listener_full_sockets", rest...)
	p.want(t, 7, "tcp_listener_accept_queue", "local_port", "81")
	p.want(t, 7./32, "tcp_listener_accept_queue_fill_ratio", "local_ip", "10.0.0.9", "local_port", "81")

	// Twenty are no more than are named.
	p = tallyPage(t, tally.New(32, 128), nil, everything, dumpOf(rows[5:25]...), rows...)
	p.wantNone(t, "tcp_listener_sockets", "local_ip", "other")
}

// TestManyEndpoints has more endpoints of listeners than are told apart: no socket is
// lost, and connections of the others count as inbound on any address.
func TestManyEndpoints(t *testing.T) {
	var rows []tcptable.Socket
	at := func(i int) string { return fmt.Sprintf("127.%d.%d.%d:%d", i>>16, i>>8&255, i&255, 8000+i%3) }
	const all = tally.MaxEndpoints + 3000
	for i := range all {
		rows = append(rows, listener(at(i), 1, 3))
	}
	rows = append(rows, listener(at(0), 4, 3)) // one that is known, though there is room for no other
	counted := tally.New(32, 128)
	for range 2 {
		queues := dumpOf(rows...)
		withConnections := slices.Concat(rows, sockets(
			"tcp established "+at(all-1)+" 10.0.0.2:5000", // of a listener that bound has no room for
			"tcp established 10.0.0.1:8000 10.0.0.2:443",
			"tcp established 10.0.0.1:8003 10.0.0.2:443",
		))
		p := tallyPage(t, counted, nil, everything, queues, withConnections...)
		p.want(t, all+1, "tcp_connections", "state", "listen")
		p.want(t, all+1, "tcp_listener_sockets")
		p.want(t, all+4, "tcp_listener_accept_queue")
		p.want(t, 1, "tcp_listener_full_sockets")
		p.want(t, 2, "tcp_connections", "state", "established", "direction", "inbound")
		p.want(t, 1, "tcp_connections", "state", "established", "direction", "outbound")
		if n := len(p.series("tcp_listener_sockets")); n != 3*(20+1) {
			t.Errorf("%d series", n)
		}
	}
}
