package collector

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
)

// lookPause is the least time between two looks at processes, which cost milliseconds, however
// many scrapes there are, unless Config has another.
const lookPause = time.Second

// owners tells whose the sockets of a walk are.
type owners struct {
	logger log.Logger
	table  *table // whose walkers are put back
	hung   hung
	state  spare[*ownership] // the one there is, while it is not in use
	silent atomic.Bool       // the kernel tells no cgroups
}

// silence is why there are no owners on such a kernel.
const silence = "the kernel tells no cgroup of a socket, as it does since Linux 5.8"

// ownership is what is remembered of owners. It is not for concurrent use.
type ownership struct {
	names     *owner.Resolver
	processes *owner.Processes
	counts    *tally.Owners
	looked    time.Time // when processes were looked at last
	lookPause time.Duration
	err       string // the last one that is in the log
}

// findOwners returns what tells the owners of sockets, nil where nothing does, and
// what that is or why.
func findOwners(ctx context.Context, cfg Config, hasDiag bool, t *table, logger log.Logger) (*owners, owner.Source) {
	if cfg.Owners == 0 {
		return nil, owner.Source{}
	}
	none := func(reason string) (*owners, owner.Source) {
		reason = strings.ToValidUTF8(reason, "\uFFFD") // there may be a path in it
		level.Info(logger).Log("msg", "no owners of sockets", "reason", reason)
		return nil, owner.Source{Source: owner.SourceNone, Reason: reason}
	}
	switch {
	case !cfg.Namespace.Own:
		return none("sock_diag shows another network namespace than is read")
	case !hasDiag:
		return none("the kernel has no sock_diag for TCP")
	}
	names, _, err := begin(ctx, minSmallTimeout, new(hung), func(context.Context) (*owner.Resolver, error) {
		return owner.New(owner.Options{CgroupFS: cfg.CgroupFS, PodLogs: cfg.PodLogs, SearchPause: cfg.OwnerPause})
	}).wait(ctx)
	if err != nil {
		return none(err.Error())
	}
	source := names.Source()
	source.Reason = strings.ToValidUTF8(source.Reason, "\uFFFD")
	if source.Source == owner.SourceNone {
		return none(source.Reason)
	}
	level.Info(logger).Log("msg", "telling owners of sockets", "source", source.Source, "reason", source.Reason)
	o := &owners{logger: logger, table: t, state: make(spare[*ownership], 1)}
	o.state.put(&ownership{names: names, processes: owner.NewProcesses(names), lookPause: cmp.Or(cfg.OwnerPause, lookPause), counts: tally.NewOwners(cfg.Owners)})
	t.owners = true
	t.ages.Store(true)
	return o, source
}

// read returns the owners of the sockets of a walk, whose walker is put back. For names, which
// are in file systems that may hang, it does not wait longer than smallTimeout.
func (o *owners) read(ctx context.Context, w *walked) (*snapshot.Owners, error) {
	if w == nil {
		return nil, errors.New("the socket table was not read")
	}
	if o.silent.Load() {
		o.table.walkers.put(w.walker)
		return nil, nil
	}
	err := w.countLive(ctx)
	if err == nil && w.tally.TellsNoCgroups() && !o.silent.Swap(true) {
		level.Info(o.logger).Log("msg", "no owners of sockets", "reason", silence)
	}
	o.table.ages.Store(err != nil || w.tally.HasCloseWaits())
	if err == nil {
		err = o.hung.check()
	}
	if err != nil || o.silent.Load() {
		o.table.walkers.put(w.walker)
		return nil, err
	}
	found, _, err := begin(ctx, smallTimeout, &o.hung, func(context.Context) (*snapshot.Owners, error) {
		defer o.table.walkers.put(w.walker)
		select {
		case state := <-o.state:
			defer o.state.put(state)
			return state.read(w, o.logger), nil
		default:
			return nil, errors.New("an earlier read has not returned")
		}
	}).wait(ctx)
	return found, err
}

func (s *ownership) read(w *walked, logger log.Logger) *snapshot.Owners {
	now := time.Now()
	s.tell(s.names.Update(now, w.tally.Cgroups()), logger)
	found := s.counts.Snapshot(now, w.tally, w.Sockets, s.names)
	s.addProcesses(now, found)
	return found
}

// addProcesses tells the programs of the owners that have a name of their own.
func (s *ownership) addProcesses(now time.Time, found *snapshot.Owners) {
	named := make(map[string][]uint64)
	for i := range found.All {
		if o := &found.All[i]; o.Owner.Kind != "" {
			named[o.Name] = o.Cgroups
		}
	}
	if now.Sub(s.looked) >= s.lookPause {
		s.processes.Update(now, named)
		s.looked = now
	}
	for i := range found.All {
		o := &found.All[i]
		o.Program = s.processes.Program(o.Name)
		if worst, ok := s.processes.Worst(o.Name); ok {
			o.Worst = &worst
		}
	}
}

// tell logs what names could not be found for, once until it is something else. What
// is known is right nevertheless.
func (s *ownership) tell(err error, logger log.Logger) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != s.err {
		level.Warn(logger).Log("msg", "some owners of sockets have no name", "err", err)
	}
	s.err = text
}
