package tally

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// TestCloses counts both ends of a connection within the host each in its place, what is open
// and who has closed first, and leaves out what never came about.
func TestCloses(t *testing.T) {
	end := func(s string) tcptable.Endpoint {
		at := netip.MustParseAddrPort(s)
		return tcptable.Endpoint{Addr: at.Addr().As16(), Port: at.Port()}
	}
	server := end("127.0.0.1:9000")
	listener := tcptable.Socket{Local: server, State: tcptable.Listen}
	open := func(client string) []tcptable.Socket {
		c := end(client)
		return []tcptable.Socket{{Local: c, Remote: server, State: tcptable.Established}, {Local: server, Remote: c, State: tcptable.Established}}
	}
	rows := func(all ...[]tcptable.Socket) func(func(tcptable.Socket, error) bool) {
		return func(yield func(tcptable.Socket, error) bool) {
			for _, s := range slices.Concat(all...) {
				if !yield(s, nil) {
					return
				}
			}
		}
	}
	c := NewCloses()
	for _, look := range []func(func(tcptable.Socket, error) bool){
		rows([]tcptable.Socket{listener}, open("127.0.0.1:1"), open("127.0.0.1:2")),
		rows(open("127.0.0.1:3")),
		rows([]tcptable.Socket{
			{Local: end("127.0.0.1:1"), Remote: server, State: tcptable.TimeWait, TimerLeft: 51 * time.Second},
			{Local: end("127.0.0.1:9"), Remote: server, State: tcptable.TimeWait, TimerLeft: 50 * time.Second}, // of before
		}),
	} {
		if err := c.Look(look, 50*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	// Half a look is none.
	if err := c.Look(func(yield func(tcptable.Socket, error) bool) {
		if yield(open("127.0.0.1:5")[0], nil) {
			yield(tcptable.Socket{}, errors.ErrUnsupported)
		}
	}, 0); err == nil {
		t.Error("no error")
	}
	for _, s := range []tcptable.Closed{
		{Local: end("127.0.0.1:1"), Remote: server, SegmentsIn: 3, SegmentsOut: 9, Acknowledged: true},
		{Local: server, Remote: end("127.0.0.1:1"), SegmentsIn: 9, SegmentsOut: 3, Acknowledged: true},
		{Local: end("127.0.0.1:2"), Remote: server, SegmentsIn: 1, SegmentsOut: 0, Acknowledged: true},
		{Local: server, Remote: end("127.0.0.1:2"), SegmentsIn: 0, SegmentsOut: 1}, // reset before anything was acknowledged
		{Local: end("127.0.0.1:4"), Remote: server},                                // refused
	} {
		c.Add(&s)
	}
	got := c.Snapshot(10, 4*time.Second, 2*time.Second)
	loopback := netip.MustParseAddr("127.0.0.1")
	want := snapshot.Closing{Closes: 2, Pairs: 3, FirstPerSecond: 0.5, MeanOpen: 1, MostOpen: 2}
	if d := (snapshot.DestinationClosing{LocalIP: loopback, RemoteIP: loopback, RemotePort: 9000, Closing: want}); !slices.Equal(got.Destinations, []snapshot.DestinationClosing{d}) {
		t.Errorf("destinations %+v", got.Destinations)
	}
	want.FirstPerSecond = 0
	if !slices.Equal(got.Listeners, []snapshot.ListenerClosing{{Port: 9000, Closing: want}}) {
		t.Errorf("listeners %+v", got.Listeners)
	}
	if got.All != 4 || got.Looks != 3 || got.Took != 4*time.Second {
		t.Errorf("%+v", got)
	}
}

// TestClosesAreBounded has more destinations than are told apart.
func TestClosesAreBounded(t *testing.T) {
	c := NewCloses()
	for port := range uint16(2) {
		for i := range maxClosing {
			c.Add(&tcptable.Closed{Remote: tcptable.Endpoint{Addr: tcptable.Addr{0: 0x20, 14: byte(i >> 8), 15: byte(i)}, Port: port + 1}, Acknowledged: true})
		}
	}
	got := c.Snapshot(10, time.Second, time.Second)
	if len(c.destinations) != maxClosing || c.others.closes != maxClosing || got.All != 2*maxClosing || len(got.Destinations) != 10 {
		t.Errorf("%d destinations, %d others, %d in all, %d told", len(c.destinations), c.others.closes, got.All, len(got.Destinations))
	}
}
