package collector

import (
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// TestFormer has listeners that go while connections of theirs are there. Of each walk it tells
// how many of these still count as inbound, and how many ports of the pool are gone for all.
func TestFormer(t *testing.T) {
	const (
		listen, estab, wait = "tcp listen 0.0.0.0:80 0.0.0.0:0", "tcp established 10.0.0.1:80 10.0.0.9:2000", "tcp time_wait 10.0.0.1:80 10.0.0.9:2001"
		inPool, estabIn     = "tcp listen 0.0.0.0:4000 0.0.0.0:0", "tcp established 10.0.0.1:4000 10.0.0.9:2000"
		waitIn, synSent     = "tcp time_wait 10.0.0.1:4000 10.0.0.9:2001", "tcp syn_sent 10.0.0.1:4000 10.0.0.8:443"
		other               = "tcp established 10.0.0.1:4001 10.0.0.7:443" // of a client
	)
	type walk struct {
		after   int      // seconds
		rows    []string // nil: the walk fails
		inbound float64
		held    float64 // of 10
	}
	rows := func(texts ...string) []string { return texts }
	for _, v := range []struct {
		name  string
		walks []walk
	}{
		{"for as long as there are connections", []walk{
			{0, rows(listen, estab), 1, 0}, {15, rows(estab, wait), 2, 0}, {3600, rows(estab, wait), 2, 0}, {15, rows(estab), 1, 0},
			{15, rows(other), 0, 1}, {15, rows(estab), 0, 0},
		}},
		{"nothing is known at first", []walk{{0, rows(estab), 0, 0}, {15, rows(listen, estab), 1, 0}, {15, rows(estab), 1, 0}}},
		{"walks that fail", []walk{{0, rows(listen, estab), 1, 0}, {15, nil, 0, 0}, {15, nil, 0, 0}, {15, rows(estab), 1, 0}, {15, nil, 0, 0}, {15, rows(estab), 1, 0}}},
		{"two deploys", []walk{
			{0, rows(listen, estab), 1, 0}, {15, rows(estab), 1, 0}, {15, rows(listen, estab), 1, 0}, {15, rows(estab), 1, 0}, {15, rows(), 0, 0}, {15, rows(listen), 0, 0}, {15, rows(estab), 1, 0},
		}},
		{"a client after TIME_WAITs alone", []walk{
			{0, rows(listen, estab), 1, 0}, {15, rows(wait), 1, 0}, {15, rows(wait, estab), 1, 0}, {15, rows(wait, estab), 1, 0}, {15, rows(listen, wait, estab), 2, 0}, {15, rows(wait, estab), 2, 0},
		}},
		{"a port of the pool", []walk{
			{0, rows(inPool, estabIn, other), 1, 2}, {15, rows(estabIn, other), 1, 2}, {100, rows(estabIn, other), 1, 2}, {6, rows(estabIn, other), 0, 1}, {15, rows(estabIn, other), 0, 1},
		}},
		{"a port of the pool, twice", []walk{
			{0, rows(inPool, estabIn), 1, 1}, {15, rows(estabIn), 1, 1}, {15, rows(inPool, estabIn), 1, 1}, {100, rows(inPool, estabIn), 1, 1}, {15, rows(estabIn), 1, 1},
		}},
		{"a port of the pool, long ago", []walk{{0, rows(inPool, estabIn, other), 1, 2}, {121, rows(estabIn, other), 0, 1}}},
		{"a port of the pool that has no connections", []walk{{0, rows(inPool, other), 0, 2}, {15, rows(other), 0, 1}}},
		{"connect() has got it", []walk{
			{0, rows(inPool, estabIn, other), 1, 2}, {15, rows(waitIn, synSent, other), 1, 2}, {15, rows(waitIn, synSent, other), 0, 1},
		}},
		{"on one address", []walk{
			{0, rows("tcp listen 10.0.0.2:80 0.0.0.0:0", estab, "tcp established 10.0.0.2:80 10.0.0.9:2000"), 1, 0},
			{15, rows(estab, "tcp established 10.0.0.2:80 10.0.0.9:2000"), 1, 0}, {15, rows(estab, "tcp established 10.0.0.2:80 10.0.0.9:2000"), 1, 0},
			{15, rows(estab), 0, 0},
		}},
		{"on another address now, and then there too", []walk{
			{0, rows("tcp listen 10.0.0.1:80 0.0.0.0:0", estab), 1, 0}, {15, rows("tcp listen 10.0.0.2:80 0.0.0.0:0", estab), 1, 0}, {15, rows("tcp listen 10.0.0.2:80 0.0.0.0:0", estab), 1, 0},
			{15, rows(estab), 1, 0}, {15, rows(listen, estab), 1, 0}, {15, rows(estab), 1, 0},
		}},
		{"in its own table", []walk{{0, rows("tcp6 listen [::]:80 [::]:0", estab, "tcp6 established [::ffff:10.0.0.1]:80 10.0.0.9:2002"), 1, 0}, {15, rows(estab, "tcp6 established [::ffff:10.0.0.1]:80 10.0.0.9:2002"), 1, 0}}},
	} {
		t.Run(v.name, func(t *testing.T) {
			pool := portsOf(t, 4000, 4009, "")
			for _, shared := range []bool{false, true} { // with another namespace
				synctest.Test(t, func(t *testing.T) {
					counted := tally.New(32, 128)
					var memory *tally.Memory
					for i, w := range v.walks {
						time.Sleep(time.Duration(w.after) * time.Second)
						if shared {
							counted.Recall(nil)
							p := tallyPage(t, counted, pool, everything, nil, sockets(estab, estabIn)...)
							p.want(t, 0, "tcp_connections", "direction", "inbound")
							counted.Remember()
							tallyPage(t, counted, pool, everything, nil, sockets(listen, inPool, estab, wait, estabIn)...)
							counted.Recall(memory)
						}
						if w.rows == nil {
							half := iter.Seq2[tcptable.Socket, error](func(yield func(tcptable.Socket, error) bool) {
								_ = yield(socket(other), nil) && yield(tcptable.Socket{}, errors.New("broken"))
							})
							if err := counted.Count(half, pool, nil); err == nil {
								t.Fatal("no error")
							}
							continue
						}
						p := tallyPage(t, counted, pool, everything, nil, sockets(w.rows...)...)
						inbound := p.sum("tcp_connections", "direction", "inbound") - p.sum("tcp_connections", "direction", "inbound", "state", "listen")
						held := 10 * p.sum("tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
						if inbound != w.inbound || held != w.held {
							t.Errorf("walk %d, %q, shared %v: %v inbound and %v ports held, want %v and %v", i, w.rows, shared, inbound, held, w.inbound, w.held)
						}
						if shared {
							memory = counted.Remember()
						}
					}
				})
			}
		})
	}
}
