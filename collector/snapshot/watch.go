package snapshot

import (
	"net/netip"
	"time"
)

// Watch is what was seen of a namespace over some time.
type Watch struct {
	Took time.Duration
	// Before is the namespace when it began.
	Before *Namespace
	// Closes are the connections that came to their end meanwhile; nil where nothing tells
	// them, and Err says why.
	Closes *Closes
	Err    error
}

// Closes are connections that came to their end, listened to one by one. Those that never came
// about are not in it. Both ends of a connection within the namespace are: one by its
// destination, the other by its listener.
type Closes struct {
	Took time.Duration
	// All are how many.
	All uint64
	// Lost are those that were told faster than they could be read, of either direction. All
	// counts may be too low by so many.
	Lost uint64
	// Looks are how many at the table tell Closing.MeanOpen and MostOpen.
	Looks int
	// Destinations and Listeners are those with most closes, most first.
	Destinations []DestinationClosing
	Listeners    []ListenerClosing
}

// DestinationClosing is what connect(2) needs a free local port for.
type DestinationClosing struct {
	LocalIP, RemoteIP netip.Addr
	RemotePort        uint16
	Closing
}

// ListenerClosing is a local port that somebody listens on.
type ListenerClosing struct {
	Port uint16
	Closing
}

// Closing counts the closes of some connections.
type Closing struct {
	Closes uint64
	// Pairs are requests with their responses, at most: of each connection as many as the
	// lesser number of segments with data that came and went. TCP knows no requests.
	Pairs uint64
	// FirstPerSecond is how many of them a second this host closed first: it has their
	// TIME_WAITs. Those of which it has none, as after a reset, are not in it.
	FirstPerSecond float64
	// MeanOpen and MostOpen are how many were in ESTABLISHED at a time. More may have been
	// between two looks.
	MeanOpen float64
	MostOpen uint64
}

// PairsPerConnection is the mean of Pairs.
func (c *Closing) PairsPerConnection() float64 { return float64(c.Pairs) / float64(max(c.Closes, 1)) }
