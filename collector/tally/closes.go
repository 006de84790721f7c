package tally

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"time"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// maxClosing is how many destinations are told apart whose connections end. Of further ones only
// the sum is known.
const maxClosing = 1 << 14

// Closes counts connections that come to their end, by destination or listener, and looks at
// how many are open meanwhile. Add may be called at any time, all else one after the other.
type Closes struct {
	mu           sync.Mutex
	listeners    [tcptable.NumTables]listeners // that were seen at any time
	destinations map[destination]*closing
	ports        map[uint16]*closing
	others       closing // all further destinations
	all          uint64
	looks        int
}

// closing is what is known of a destination or a listener.
type closing struct {
	closes, pairs, first uint64
	open, sum, most      uint64 // at this look, at all in sum, at one
}

// NewCloses returns one that has seen nothing.
func NewCloses() *Closes {
	return &Closes{listeners: newListeners(), destinations: make(map[destination]*closing), ports: make(map[uint16]*closing)}
}

// of returns what is known of the ends of a connection.
func (c *Closes) of(t tcptable.Table, local, remote *tcptable.Endpoint) *closing {
	if c.listeners[t].accept(local) {
		return find(c.ports, local.Port)
	}
	to := destination{local.Addr, remote.Addr, remote.Port}
	if c.destinations[to] == nil && len(c.destinations) == maxClosing {
		return &c.others
	}
	return find(c.destinations, to)
}

func find[K comparable](all map[K]*closing, key K) *closing {
	c := all[key]
	if c == nil {
		c = new(closing)
		all[key] = c
	}
	return c
}

// Add counts a connection that has ended. Look has to have seen the listeners. One that went
// out and of which nothing was acknowledged never came about.
func (c *Closes) Add(s *tcptable.Closed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.Acknowledged && !c.listeners[s.Table].accept(&s.Local) {
		return
	}
	c.all++
	of := c.of(s.Table, &s.Local, &s.Remote)
	of.closes++
	of.pairs += uint64(min(s.SegmentsIn, s.SegmentsOut))
}

// Count returns how many were added.
func (c *Closes) Count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

// Look counts the connections that are open, and the TIME_WAITs with more than timeWaitLeft to
// go, as those that this host closed first. LISTEN rows have to come first.
func (c *Closes) Look(rows iter.Seq2[tcptable.Socket, error], timeWaitLeft time.Duration) error {
	c.each(func(of *closing) { of.open = 0 })
	for s, err := range rows {
		if err != nil {
			return err
		}
		c.look(&s, timeWaitLeft)
	}
	c.each(func(of *closing) {
		of.sum += of.open
		of.most = max(of.most, of.open)
	})
	c.looks++
	return nil
}

func (c *Closes) each(do func(*closing)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range c.destinations {
		do(of)
	}
	for _, of := range c.ports {
		do(of)
	}
}

// look holds the lock for one row only, as closes are added meanwhile.
func (c *Closes) look(s *tcptable.Socket, timeWaitLeft time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.State == tcptable.Listen:
		c.listeners[s.Table].add(s)
	case s.State == tcptable.Established:
		c.of(s.Table, &s.Local, &s.Remote).open++
	case s.State == tcptable.TimeWait && s.TimerLeft > timeWaitLeft:
		c.of(s.Table, &s.Local, &s.Remote).first++
	}
}

// Snapshot returns the n destinations and n listeners with most closes, which were added for so
// long. The last Look counted TIME_WAITs that began within firstTook.
func (c *Closes) Snapshot(n int, took, firstTook time.Duration) *snapshot.Closes {
	c.mu.Lock()
	defer c.mu.Unlock()
	closingOf := func(of *closing) snapshot.Closing {
		return snapshot.Closing{
			Closes: of.closes, Pairs: of.pairs, FirstPerSecond: float64(of.first) / firstTook.Seconds(),
			MeanOpen: float64(of.sum) / float64(max(c.looks, 1)), MostOpen: of.most,
		}
	}
	found := &snapshot.Closes{Took: took, All: c.all, Looks: c.looks}
	for to, of := range c.destinations {
		if of.closes > 0 {
			found.Destinations = append(found.Destinations, snapshot.DestinationClosing{
				LocalIP: to.local.IP(), RemoteIP: to.remote.IP(), RemotePort: to.port, Closing: closingOf(of),
			})
		}
	}
	slices.SortFunc(found.Destinations, func(a, b snapshot.DestinationClosing) int {
		return cmp.Or(cmp.Compare(b.Closes, a.Closes), a.RemoteIP.Compare(b.RemoteIP), cmp.Compare(a.RemotePort, b.RemotePort), a.LocalIP.Compare(b.LocalIP))
	})
	found.Destinations = found.Destinations[:min(n, len(found.Destinations))]
	for port, of := range c.ports {
		if of.closes > 0 {
			found.Listeners = append(found.Listeners, snapshot.ListenerClosing{Port: port, Closing: closingOf(of)})
		}
	}
	slices.SortFunc(found.Listeners, func(a, b snapshot.ListenerClosing) int {
		return cmp.Or(cmp.Compare(b.Closes, a.Closes), cmp.Compare(a.Port, b.Port))
	})
	found.Listeners = found.Listeners[:min(n, len(found.Listeners))]
	return found
}
