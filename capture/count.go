package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

const (
	// maxListeners and maxOwners bound what is kept of rows.
	maxListeners = 1 << 16
	maxOwners    = 1 << 14
)

// listing is a table of sockets: of one file, or of one for each family.
type listing struct {
	files []*file
	kind  string
	known known
	empty bool // there is no row

	listeners []row
	ports     [tcptable.NumTables]kernelstat.PortSet // of listeners
	owners    map[string]*snapshot.OwnerSockets
}

// errStopped ends a walk that nobody wants the rest of.
var errStopped = errors.New("stopped")

// rows reads all rows.
func (l *listing) rows(ctx context.Context, yield func(*row) error) error {
	for _, f := range l.files {
		kind, err := f.kind()
		if err == nil && kind == archived {
			err = fmt.Errorf("%s is an archive in another", f.name)
		}
		if err != nil {
			return err
		}
		l.kind = kind
		text, closer, err := f.lines()
		if err != nil {
			return err
		}
		read := 0
		err = parserOf(kind)(text, &l.known, func(r *row) error {
			if read++; read%1024 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return yield(r)
		})
		closer.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// count counts the rows as a scrape does, listeners first.
func (l *listing) count(ctx context.Context, c *Capture, from kernelstat.Sysctls, o Options) error {
	l.empty = true
	var before int
	if err := l.rows(ctx, func(r *row) error {
		l.empty = false
		if r.State != tcptable.Listen && r.Kind != tcptable.Bound {
			return nil
		}
		if before++; before > maxListeners {
			return fmt.Errorf("%s: more than %d listeners", l.files[0].name, maxListeners)
		}
		l.listeners = append(l.listeners, *r)
		return nil
	}); err != nil {
		return err
	}
	for i := range l.listeners {
		r := &l.listeners[i]
		if r.star && !l.known.wildcards {
			r.Table, r.Local.Addr = tcptable.TCP, netip.IPv4Unspecified().As16()
		}
		if r.State == tcptable.Listen {
			l.ports[r.Table].Add(r.Local.Port)
		}
	}

	c.Kind = l.kind
	c.Namespace = &snapshot.Namespace{Name: "self", Sysctls: snapshot.SysctlsSame, Kernel: make(kernelstat.Numbers)}
	pool, err := l.pool(ctx, c, from)
	if err != nil {
		return err
	}
	c.Namespace.Pool = pool
	var dump *tally.Listening
	if l.known.backlogs {
		limit, err := kernelstat.ReadSynLimit(ctx, from)
		if err != nil {
			limit = 0 // not known
		}
		if dump, err = tally.CountListening(l.listening(), limit); err != nil {
			return err
		}
	}
	l.owners = make(map[string]*snapshot.OwnerSockets)
	counted := tally.New(32, 128)
	if err := counted.Count(l.sockets(ctx, c, o.Port), pool, dump); err != nil {
		return err
	}
	c.Namespace.Sockets = counted.Snapshot(o.Limits)
	c.Namespace.Sockets.Source = l.kind
	if l.known.timeWaits && !l.known.timers {
		c.Namespace.Sockets.TimeWait = [snapshot.NumDirections][]snapshot.Bucket{}
	}
	if l.known.owners {
		c.Namespace.Owners = l.ownersOf(o.Owners)
	}
	c.Missing = append(c.Missing, l.missing()...)
	return nil
}

// listening yields the listeners.
func (l *listing) listening() iter.Seq2[tcptable.Socket, error] {
	return func(yield func(tcptable.Socket, error) bool) {
		for i := range l.listeners {
			if s := l.listeners[i].Socket; s.State == tcptable.Listen && !yield(s, nil) {
				return
			}
		}
	}
}

// sockets yields all sockets, listeners and idle bound ones first, and keeps those of the port.
func (l *listing) sockets(ctx context.Context, c *Capture, port uint16) iter.Seq2[tcptable.Socket, error] {
	return func(yield func(tcptable.Socket, error) bool) {
		give := func(r *row) error {
			if port != 0 && r.Local.Port == port && len(c.Sockets) < maxListeners {
				c.Sockets = append(c.Sockets, r.Socket)
			}
			l.countOwner(r)
			if !yield(r.Socket, nil) {
				return errStopped
			}
			return nil
		}
		for i := range l.listeners {
			if give(&l.listeners[i]) != nil {
				return
			}
		}
		err := l.rows(ctx, func(r *row) error {
			if r.State == tcptable.Listen || r.Kind == tcptable.Bound {
				return nil
			}
			return give(r)
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(tcptable.Socket{}, err)
		}
	}
}

// directionOf tells whether a connection came in: its port is a listener's of the same table.
func (l *listing) directionOf(r *row) snapshot.Direction {
	if r.State == tcptable.Listen || r.State == tcptable.SynRecv || r.State != tcptable.SynSent && l.ports[r.Table].Has(r.Local.Port) {
		return snapshot.Inbound
	}
	return snapshot.Outbound
}

// countOwner counts the row for whose it is. A minisock is its listener's.
func (l *listing) countOwner(r *row) {
	if r.Kind == tcptable.Bound {
		return
	}
	d, name := l.directionOf(r), r.owner
	if name == "" && d == snapshot.Inbound && r.State != tcptable.Listen {
		name = l.listenerOwner(r)
	}
	o := l.owners[cmp.Or(name, owner.Unknown)]
	if o == nil {
		if len(l.owners) >= maxOwners {
			name = owner.Other
			o = l.owners[name]
		}
		if o == nil {
			o = &snapshot.OwnerSockets{Name: cmp.Or(name, owner.Unknown)}
			l.owners[o.Name] = o
		}
	}
	o.Connections[d][r.State]++
	waiting := d == snapshot.Inbound && r.Kind == tcptable.Full && r.Inode == 0 && (r.State == tcptable.Established || r.State == tcptable.CloseWait)
	switch {
	case waiting:
		o.Unaccepted[r.State]++
	case r.State == tcptable.CloseWait:
		o.CloseWaits.Add(r.age)
	}
}

// listenerOwner is whose the listeners of the row's port are, "" if they are of several.
func (l *listing) listenerOwner(r *row) (name string) {
	for i := range l.listeners {
		li := &l.listeners[i]
		if li.State != tcptable.Listen || li.Local.Port != r.Local.Port || li.Table != r.Table {
			continue
		}
		if name != "" && name != li.owner {
			return ""
		}
		name = li.owner
	}
	return name
}

// ownersOf returns the n largest owners, and the others in sum.
func (l *listing) ownersOf(n int) *snapshot.Owners {
	total := func(o *snapshot.OwnerSockets) (sum uint64) {
		for d := range o.Connections {
			for _, n := range o.Connections[d] {
				sum += n
			}
		}
		return sum
	}
	owners := &snapshot.Owners{}
	last := func(o *snapshot.OwnerSockets) bool { return o.Name == owner.Unknown || o.Name == owner.Other }
	var rest *snapshot.OwnerSockets
	sorted := slices.SortedFunc(maps.Values(l.owners), func(a, b *snapshot.OwnerSockets) int {
		return cmp.Or(cmp.Compare(total(b), total(a)), strings.Compare(a.Name, b.Name))
	})
	for _, o := range sorted {
		switch {
		case !last(o) && len(owners.All) < n:
			owners.All = append(owners.All, *o)
		case !last(o) || o.Name == owner.Other:
			if rest == nil {
				rest = &snapshot.OwnerSockets{Name: owner.Other}
			}
			for d := range o.Connections {
				for s := range o.Connections[d] {
					rest.Connections[d][s] += o.Connections[d][s]
				}
			}
			for s := range o.Unaccepted {
				rest.Unaccepted[s] += o.Unaccepted[s]
			}
			rest.CloseWaits.Merge(&o.CloseWaits)
		}
	}
	if rest != nil {
		owners.All = append(owners.All, *rest)
	}
	if o := l.owners[owner.Unknown]; o != nil {
		owners.All = append(owners.All, *o)
	}
	for i := range l.listeners {
		if li := &l.listeners[i]; li.State == tcptable.Listen && li.owner != "" {
			owners.Listeners = append(owners.Listeners, snapshot.ListenerOwner{LocalIP: li.Local.Addr.IP(), Port: li.Local.Port, Name: li.owner})
		}
	}
	return owners
}

// pool reads the ephemeral pool. Of Windows nothing tells it: its default is assumed.
func (l *listing) pool(ctx context.Context, c *Capture, from kernelstat.Sysctls) (*kernelstat.Pool, error) {
	if l.kind != Windows {
		pool, err := kernelstat.ReadPool(ctx, from)
		if pool == nil {
			c.Namespace.Sysctls = snapshot.SysctlsNone
		}
		return pool, err
	}
	const (
		start, size = 49152, 16384 // since Windows Vista
		delay       = 120          // seconds, since Windows Server 2012; 240 before
	)
	ports, seconds := [2]int{start, size}, delay
	if text, ok := from.Set[DynamicPort]; ok {
		first, n, _ := strings.Cut(strings.TrimSpace(text), " ")
		low, err1 := strconv.ParseUint(first, 10, 16)
		count, err2 := strconv.ParseUint(strings.TrimSpace(n), 10, 17)
		if err1 != nil || err2 != nil || low == 0 || count == 0 || low+count > 65536 {
			return nil, fmt.Errorf("%s: %q is not the first port and how many there are, such as \"49152 16384\"", DynamicPort, text)
		}
		ports = [2]int{int(low), int(count)}
	} else {
		c.Missing = append(c.Missing, Missing{DynamicPort, "49152 to 65535 is assumed; netsh int ipv4 show dynamicport tcp tells, and --set " + DynamicPort + "=\"START COUNT\""})
	}
	if text, ok := from.Set[TimedWaitDelay]; ok {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n < 30 || n > 300 {
			return nil, fmt.Errorf("%s: %q is not a number of seconds from 30 to 300", TimedWaitDelay, text)
		}
		seconds = int(n)
	}
	pool := &kernelstat.Pool{Low: ports[0], High: ports[0] + ports[1] - 1, Size: ports[1], TimeWait: time.Duration(seconds) * time.Second}
	for port := pool.Low; port <= pool.High; port++ {
		pool.Ports.Add(uint16(port))
	}
	return pool, nil
}

// The settings of Windows that can be set.
const (
	DynamicPort    = "windows.dynamicport"
	TimedWaitDelay = "windows.TcpTimedWaitDelay"
)

// missing is what the kind, and the flags it was taken with, can't tell.
func (l *listing) missing() (all []Missing) {
	k, add := &l.known, func(subject, reason string) { all = append(all, Missing{subject, reason}) }
	if !k.listeners && !l.empty {
		add("direction", "there are no listeners in it (take ss -tan, netstat -an), so all connections count as outbound")
	}
	if k.timeWaits && !k.timers {
		add("age of TIME_WAITs", "not in it (ss -o, netstat -o of Linux have it), so neither growth nor how long ports last is known, and with tcp_tw_reuse all count as reusable")
	}
	if !k.inodes {
		add("TCPAcceptQueueNotDrained", "whether connections were accepted is not in it (ss -e, netstat -e have it): a CLOSE_WAIT leak may be of connections that nobody accepted")
	}
	if !k.unanswered {
		add("TCPPeerNotAnswering", "retransmissions are not in it (ss -o, netstat -o of Linux have them)")
	}
	if !k.ages {
		add("age of CLOSE_WAITs", "not in it (ss -i has the last ACK)")
	}
	if !k.owners {
		add("owner", "which programs hold the sockets is not in it (ss -p or -e, netstat -p as root)")
	}
	if l.kind == Windows {
		add("limits", "netstat of Windows shows no queues and no counters")
	}
	return all
}
