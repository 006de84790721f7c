package collector

import (
	"fmt"
	"slices"
	"testing"

	"timewait_exporter/collector/tcptable"
)

// listener makes a LISTEN row with so many connections in its queue.
func listener(at string, length, backlog uint32) tcptable.Socket {
	s := socket("tcp listen " + at + " 0.0.0.0:0")
	s.RxQueue, s.Backlog = length, backlog
	return s
}

func queuesOf(rows ...tcptable.Socket) *acceptQueues {
	queues := newAcceptQueues()
	for i := range rows {
		queues.add(&rows[i])
	}
	return queues
}

// TestAcceptQueue adds the sockets of one endpoint up, and takes the fullest: each
// has a queue of its own.
func TestAcceptQueue(t *testing.T) {
	f := func(want acceptQueue, rows ...tcptable.Socket) {
		t.Helper()
		p := tallyPage(t, newTally(32, 128), nil, everything, queuesOf(rows...), rows[0])
		labels := []string{"local_ip", "0.0.0.0", "local_port", "80"}
		p.want(t, float64(want.sockets), "tcp_listener_sockets", labels...)
		p.want(t, float64(want.length), "tcp_listener_accept_queue", labels...)
		p.want(t, float64(want.limit), "tcp_listener_accept_queue_limit", labels...)
		p.want(t, want.fill, "tcp_listener_accept_queue_fill_ratio", labels...)
		p.want(t, float64(want.full), "tcp_listener_full_sockets", labels...)
	}
	row := func(length, backlog uint32) tcptable.Socket { return listener("0.0.0.0:80", length, backlog) }
	f(acceptQueue{sockets: 1, limit: 511}, row(0, 511))
	f(acceptQueue{sockets: 1, length: 2, limit: 3, fill: 0.5}, row(2, 3))
	// The kernel takes one more than the backlog.
	f(acceptQueue{sockets: 1, length: 3, limit: 3, fill: 0.75}, row(3, 3))
	f(acceptQueue{sockets: 1, length: 4, limit: 3, fill: 1, full: 1}, row(4, 3))
	f(acceptQueue{sockets: 1, fill: 0}, row(0, 0))
	f(acceptQueue{sockets: 1, length: 1, fill: 1, full: 1}, row(1, 0))
	f(acceptQueue{sockets: 1, length: 1 << 31, limit: 1<<32 - 1, fill: 0.5}, row(1<<31, 1<<32-1))
	// listen(2) again, with less.
	f(acceptQueue{sockets: 1, length: 51, limit: 4, fill: 1, full: 1}, row(51, 4))
	// SO_REUSEPORT: one of eight hangs.
	f(acceptQueue{sockets: 8, length: 4, limit: 24, fill: 1, full: 1},
		row(0, 3), row(0, 3), row(0, 3), row(4, 3), row(0, 3), row(0, 3), row(0, 3), row(0, 3))
	f(acceptQueue{sockets: 3, length: 12, limit: 19, fill: 1, full: 2}, row(6, 5), row(1, 10), row(5, 4))
}

// TestAcceptQueuesOfOneMoment takes lengths and limits from the dump, and what the
// table says of the same sockets a moment later not at all.
func TestAcceptQueuesOfOneMoment(t *testing.T) {
	table := []tcptable.Socket{listener("10.0.0.1:80", 4, 0), listener("10.0.0.2:80", 2, 0)}
	p := tallyPage(t, newTally(32, 128), nil, everything, queuesOf(listener("10.0.0.1:80", 1, 3), listener("10.0.0.3:81", 9, 1)), table...)
	p.want(t, 1, "tcp_listener_accept_queue", "local_ip", "10.0.0.1", "local_port", "80")
	p.want(t, 1, "tcp_listener_accept_queue") // the others have only just come, or gone
	p.want(t, 0.25, "tcp_listener_accept_queue_fill_ratio")

	p = tallyPage(t, newTally(32, 128), nil, everything, nil, table...)
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
	for _, queues := range []*acceptQueues{nil, queuesOf(rows[:10]...)} {
		f := func(n int, want ...string) {
			t.Helper()
			p := tallyPage(t, newTally(32, 128), nil, exported{listeners: n}, queues, rows...)
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
	p := tallyPage(t, newTally(32, 128), nil, everything, queuesOf(rows...), rows...)
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
	p = tallyPage(t, newTally(32, 128), nil, everything, queuesOf(rows[5:25]...), rows...)
	p.wantNone(t, "tcp_listener_sockets", "local_ip", "other")
}

// TestManyEndpoints has more endpoints of listeners than are told apart: no socket is
// lost, and connections of the others count as inbound on any address.
func TestManyEndpoints(t *testing.T) {
	var rows []tcptable.Socket
	at := func(i int) string { return fmt.Sprintf("127.%d.%d.%d:%d", i>>16, i>>8&255, i&255, 8000+i%3) }
	const all = maxEndpoints + 3000
	for i := range all {
		rows = append(rows, listener(at(i), 1, 3))
	}
	rows = append(rows, listener(at(0), 4, 3)) // one that is known, though there is room for no other
	counted := newTally(32, 128)
	for range 2 {
		queues := queuesOf(rows...)
		withConnections := slices.Concat(rows, sockets(
			"tcp established "+at(all-1)+" 10.0.0.2:5000", // of a listener that bound has no room for
			"tcp established 10.0.0.1:8000 10.0.0.2:443",
			"tcp established 10.0.0.1:8003 10.0.0.2:443",
		))
		p := tallyPage(t, counted, nil, everything, queues, withConnections...)
		if len(counted.acceptQueues.endpoints) != maxEndpoints || len(queues.endpoints) != maxEndpoints || len(counted.listeners[tcptable.TCP].bound) != maxEndpoints {
			t.Errorf("%d, %d and %d endpoints are kept", len(counted.acceptQueues.endpoints), len(queues.endpoints), len(counted.listeners[tcptable.TCP].bound))
		}
		p.want(t, all+1, "tcp_connections", "state", "listen")
		p.want(t, all+1, "tcp_listener_sockets")
		p.want(t, all+4, "tcp_listener_accept_queue")
		p.want(t, 1, "tcp_listener_full_sockets")
		p.want(t, 2, "tcp_connections", "state", "established", "direction", "inbound")
		p.want(t, 1, "tcp_connections", "state", "established", "direction", "outbound")
		if n := len(p.series("tcp_listener_sockets")); n != 3*(localsPerPort+1) {
			t.Errorf("%d series", n)
		}
	}
}
