package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

const (
	// smallTimeout is how long a part other than the table may take, at most half of
	// the scrape's time but no less than minSmallTimeout. None needs a millisecond.
	smallTimeout    = 2 * time.Second
	minSmallTimeout = 500 * time.Millisecond
	// shareFor is how old a round may be that a scrape shares: else what hangs
	// would keep all else as it was.
	shareFor = 5 * time.Second
	// maxReading is how long a round may take if no scrape has a deadline.
	maxReading = time.Minute
	// early is how long before the last deadline a round ends, so that its parts
	// can say what they were at.
	early = 200 * time.Millisecond
)

// scraper reads a namespace and the node. Scrapes may come at the same time: they share
// one round.
type scraper struct {
	cfg     Config
	logger  log.Logger
	hasDiag bool // sock_diag works and shows the namespace
	kernel  []*kernelPart
	table   table
	others  chan *namespaces // has the one there is while nobody uses it; nil if only one namespace is read

	owners      *owners // nil where they are not wanted, or nothing tells them
	ownerSource owner.Source

	ports, listeners, sockets, namespaces hung // calls of those parts
	diags                                 spare[*tcptable.SockDiag]

	mu    sync.Mutex
	round *round // under way, nil if none is
}

// round is one set of parts, read at the same time. No part waits for another,
// but the walk of the table for those that say how to judge a row, and for these not
// long.
type round struct {
	begun time.Time
	ends  time.Time
	end   *time.Timer // cancels all parts

	ports      *call[*kernelstat.Pool]     // nil if the sysctls are of another namespace
	listeners  *call[*tally.Listening]     // nil without sock_diag
	kernel     []*call[kernelstat.Numbers] // one of each of scraper.kernel
	sockets    *call[*walked]
	owners     *call[*snapshot.Owners]     // nil where nothing tells them
	namespaces *call[*snapshot.Namespaces] // all others; nil if only one is read

	done []<-chan struct{} // of all of them
}

// isDone reports whether all parts are done.
func (r *round) isDone() bool {
	for _, done := range r.done {
		select {
		case <-done:
		default:
			return false
		}
	}
	return true
}

// read returns the round that is under way or, if there is none to share, a new
// one. It goes on until the last deadline of those who share it, whoever of them has
// gone: the next may want it.
func (s *scraper) read(ctx context.Context, tables bool) *round {
	ends := time.Now().Add(maxReading)
	if deadline, ok := ctx.Deadline(); ok {
		ends = deadline.Add(-min(early, time.Until(deadline)/8))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.round == nil || tables && s.round.sockets == nil || !s.round.share(ends) {
		s.round = s.newRound(context.WithoutCancel(ctx), ends, tables)
	}
	return s.round
}

// share has the round go on until ends, and reports whether it can.
func (r *round) share(ends time.Time) bool {
	if r.isDone() || time.Since(r.begun) > shareFor || !r.end.Stop() {
		return false
	}
	if ends.After(r.ends) {
		r.ends = ends
	}
	r.end.Reset(time.Until(r.ends))
	return true
}

func (s *scraper) newRound(ctx context.Context, ends time.Time, tables bool) *round {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &round{begun: time.Now(), ends: ends}
	left := time.Until(ends)
	r.end = time.AfterFunc(left, func() { cancel(context.DeadlineExceeded) })
	small := min(smallTimeout, max(minSmallTimeout, left/2))

	if s.cfg.hasSysctls() {
		r.ports = begin(ctx, small, &s.ports, s.readPool)
		r.done = append(r.done, r.ports.done)
	}
	if s.hasDiag {
		r.listeners = begin(ctx, small, &s.listeners, s.readListening)
		r.done = append(r.done, r.listeners.done)
	}
	for _, p := range s.kernel {
		part := begin(ctx, small, &p.hung, p.read)
		r.kernel = append(r.kernel, part)
		r.done = append(r.done, part.done)
	}
	if tables {
		r.sockets = begin(ctx, maxReading, &s.sockets, func(ctx context.Context) (*walked, error) {
			return s.table.walk(ctx, r.ports.result(), r.listeners.result())
		})
		r.done = append(r.done, r.sockets.done)
	}
	if tables && s.owners != nil {
		r.owners = begin(ctx, maxReading, new(hung), func(ctx context.Context) (*snapshot.Owners, error) {
			return s.owners.read(ctx, r.sockets.result())
		})
		r.done = append(r.done, r.owners.done)
	}
	if s.others != nil {
		r.namespaces = begin(ctx, maxReading, &s.namespaces, func(ctx context.Context) (*snapshot.Namespaces, error) {
			return s.readNamespaces(ctx, tables)
		})
		r.done = append(r.done, r.namespaces.done)
	}
	go func() {
		for _, done := range r.done {
			<-done
		}
		r.end.Stop()
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.round == r {
			s.round = nil // what it has read is of no more use
		}
	}()
	return r
}

// kernelPart is a file of numbers of the kernel, or the sysctls, of which each is read
// and left out by itself.
type kernelPart struct {
	name string // its collector label
	read func(context.Context) (kernelstat.Numbers, error)
	hung hung
}

// kernelParts are those that have the numbers of kernelMetrics, and what other metrics are made of.
func kernelParts(cfg Config) []*kernelPart {
	of := map[string][]kernelstat.Number{"sockstat": {inUse4, inUse6}, "sysctls": {privilegedLow, privilegedHigh}}
	for _, m := range kernelMetrics {
		for _, n := range m.numbers {
			of[n.Part()] = append(of[n.Part()], n)
		}
	}
	if !cfg.hasSysctls() {
		delete(of, "sysctls")
	}
	var parts []*kernelPart
	for _, name := range slices.Sorted(maps.Keys(of)) {
		parts = append(parts, &kernelPart{name: name, read: func(ctx context.Context) (kernelstat.Numbers, error) {
			from := cfg.sysctls()
			if name == "file-nr" {
				from.Root = cfg.ProcRoot // it is the node's, in whichever namespace
			}
			read, err := kernelstat.Read(ctx, from, cfg.Namespace.Dir, of[name])
			if err != nil && name != "sysctls" {
				return nil, err // one of two files would be half a sum
			}
			return read, err
		}})
	}
	return parts
}

// scrape returns what a round says, as far as it is done when ctx is. It may be one
// without tables where these are not wanted.
func (s *scraper) scrape(ctx context.Context, tables bool) (*snapshot.Namespace, *snapshot.Node) {
	r := s.read(ctx, tables)
	node := &snapshot.Node{Kernel: make(kernelstat.Numbers)}
	ns := &snapshot.Namespace{Name: s.cfg.Namespace.Name, Dir: s.cfg.Namespace.Dir, Sysctls: snapshot.SysctlsOther, Kernel: make(kernelstat.Numbers)}
	if r.ports != nil {
		ns.Sysctls = snapshot.SysctlsSame
		if ns.Pool = await(ctx, s, ns, "ports", r.ports); ns.Pool == nil {
			ns.Sysctls = snapshot.SysctlsNone
		}
	}
	if r.listeners != nil {
		await(ctx, s, ns, "listeners", r.listeners)
	}
	for i, part := range s.kernel {
		for n, value := range await(ctx, s, ns, part.name, r.kernel[i]) {
			if n.OfNode() {
				node.Kernel[n] = value
			} else {
				ns.Kernel[n] = value
			}
		}
	}
	if r.sockets != nil {
		if walked := await(ctx, s, ns, "sockets", r.sockets); walked != nil {
			ns.Sockets = walked.Sockets
		}
	}
	if r.owners != nil {
		ns.Owners = await(ctx, s, ns, "owners", r.owners)
	}
	if s.cfg.Owners > 0 {
		source := s.ownerSource
		if s.owners != nil && s.owners.silent.Load() {
			source = owner.Source{Source: owner.SourceNone, Reason: silence}
		}
		ns.OwnerSource = &source
	}
	if r.namespaces != nil {
		if node.Namespaces = await(ctx, s, ns, "namespaces", r.namespaces); node.Namespaces != nil {
			ns.Owner = node.Namespaces.Own
		}
	}
	node.Targets = s.targets(ns, node.Namespaces)
	if n := s.cfg.NATPorts; n > 0 && len(node.Targets) > 0 {
		node.NATUse = new(min(1, float64(node.Targets[0].Connections)/float64(n)))
	}
	node.Targets = node.Targets[:min(len(node.Targets), s.cfg.Destinations)]
	for of := range tcptable.NumTables {
		ns.Rows[of], ns.MalformedRows[of] = s.table.rows[of].Load(), s.table.malformed[of].Load()
	}
	return ns, node
}

// targets returns what most outbound connections of all namespaces go to, nil if that is
// not wanted.
func (s *scraper) targets(ns *snapshot.Namespace, others *snapshot.Namespaces) []snapshot.Target {
	if s.table.limits().Targets == 0 {
		return nil
	}
	all := []*snapshot.Sockets{ns.Sockets}
	if others != nil {
		for _, other := range others.Others {
			all = append(all, other.Sockets)
		}
	}
	return tally.Targets(all, max(s.cfg.Destinations, 1))
}

// await waits for a part and returns what was read, with how that went in ns. What went
// wrong is logged once, however many scrapes share it.
func await[T any](ctx context.Context, s *scraper, ns *snapshot.Namespace, name string, part *call[T]) T {
	value, took, err := part.wait(ctx)
	ns.Parts = append(ns.Parts, snapshot.Part{Name: name, Took: took, Err: err})
	if err == nil {
		return value
	}
	at := level.Error
	if errors.Is(err, context.Canceled) { // whoever asked has gone: nothing is wrong here
		at = level.Debug
	}
	tell := func() {
		at(s.logger).Log("msg", "reading failed, its metrics are left out of this scrape", "collector", name, "netns", ns.Name, "err", err)
	}
	if ctx.Err() == nil {
		part.logged.Do(tell)
	} else {
		tell()
	}
	return value
}

func (s *scraper) readPool(ctx context.Context) (*kernelstat.Pool, error) {
	return kernelstat.ReadPool(ctx, s.cfg.sysctls())
}

func (s *scraper) readListening(ctx context.Context) (*tally.Listening, error) {
	diag := s.diags.take(tcptable.NewSockDiag)
	defer s.diags.put(diag)
	limit, err := kernelstat.ReadSynLimit(ctx, s.cfg.sysctls())
	if err != nil {
		limit = 0 // which sysctl it is, and why, their own part tells
	}
	return tally.CountListening(diag.Listeners(ctx), limit)
}

func (s *scraper) readNamespaces(ctx context.Context, tables bool) (*snapshot.Namespaces, error) {
	select {
	case others := <-s.others:
		defer func() { s.others <- others }()
		return others.read(ctx, tables)
	case <-ctx.Done():
		return nil, fmt.Errorf("an earlier reading has not ended: %w", context.Cause(ctx))
	}
}
