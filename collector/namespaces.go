package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/netns"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

const (
	// maxOutside ports outside of the pool that is assumed, in use by connect(2), show
	// that it is another one.
	maxOutside = 5
	// maxListened is how many ports are remembered for having been listened on.
	maxListened = 1024
	// privileged ports are given by programs, and not by the kernel's choice.
	privileged = 1024
)

// namespaces reads the network namespaces of all processes but the one that the other
// parts read: the kernel's counts of each, and of some the table of sockets. It is not
// for concurrent use.
type namespaces struct {
	table  *table
	own    uint64 // the inode of the one that the other parts read
	hidden bool   // PID 1 is, so the own one may be the host's, whoever this process belongs to
	finder *netns.Finder
	reader *kernelstat.Reader
	pool   *kernelstat.Pool
	procfs *tcptable.ProcNet
	tally  *tally.Tally
	views  map[*netns.Namespace]*view
	rounds int
	seed   maphash.Seed
}

// view is what is known of a namespace.
type view struct {
	*netns.Namespace
	kernel kernelstat.Numbers // now
	now    counts

	sockets *snapshot.Sockets // of the last look at its table, nil before the first
	then    counts            // before that look
	turn    int               // the round of that look

	memory   *tally.Memory
	listened []uint16 // ports outside of the pool that somebody listened on once
	outside  []uint16 // others that connections went out from, up to maxOutside
}

// counts are what the kernel counts of TCP in a namespace, in little room.
type counts struct {
	inUse, opened, established uint64
	hash                       uint64 // of all of them
}

func (s *namespaces) countsOf(read kernelstat.Numbers) counts {
	c := counts{inUse: read[inUse4] + read[inUse6] + read[timeWaits], opened: read[activeOpens], established: read[currEstab]}
	type count struct {
		kernelstat.Number
		value uint64
	}
	for n, value := range read {
		if n.Part() != "conntrack" {
			c.hash += maphash.Comparable(s.seed, count{n, value}) // in any order
		}
	}
	return c
}

// newNamespaces returns what reads all namespaces but the one of t, and the name of that.
func newNamespaces(ctx context.Context, t *table) (*namespaces, string, error) {
	inode, err := netInode(t.cfg.Namespace.Dir)
	if err != nil {
		return nil, "", err
	}
	finder, err := netns.New(netns.Options{Proc: t.cfg.ProcRoot, PodLogs: t.cfg.PodLogs, Names: "/run/netns"})
	if err != nil {
		return nil, "", err
	}
	n := &namespaces{
		table: t, own: inode, finder: finder,
		reader: kernelstat.NewReader(numbersOfEach()),
		pool:   kernelstat.DefaultPool(),
		procfs: tcptable.NewProcNet(""),
		tally:  tally.New(t.cfg.RemotePrefixIPv4, t.cfg.RemotePrefixIPv6, t.cfg.RemoteGroups...),
		views:  make(map[*netns.Namespace]*view),
		seed:   maphash.MakeSeed(),
	}
	_, err = os.Stat(filepath.Join(t.cfg.ProcRoot, "1/net"))
	n.hidden = err != nil
	name := t.cfg.Namespace.Name
	found, err := finder.Find(ctx)
	if err != nil && len(found.Namespaces) == 0 { // else each scrape tells what is wrong
		return nil, "", err
	}
	for _, ns := range found.Namespaces {
		if ns.Inode == inode && !n.hidden {
			name = ns.Name
		}
	}
	level.Info(t.logger).Log("msg", "reading every network namespace", "own", name, "found", len(found.Namespaces), "budget", t.cfg.Budget)
	if !found.HostVisible {
		level.Info(t.logger).Log("msg", "the processes of the host can't be seen, so network namespaces may be missing; is hidepid set, or is this a PID namespace?", "found", len(found.Namespaces))
	}
	return n, name, nil
}

// read reads the kernel's counts of all namespaces and then, if wanted, tables within the
// budget. When ctx ends it leaves the others out; what it returns with an error is
// right.
func (s *namespaces) read(ctx context.Context, tables bool) (*snapshot.Namespaces, error) {
	found, err := s.finder.Find(ctx)
	if err != nil && len(found.Namespaces) == 0 {
		return nil, err
	}
	out := &snapshot.Namespaces{HostVisible: found.HostVisible}
	errs := []error{err}
	var late error // there was no time for the others
	views := make(map[*netns.Namespace]*view, len(found.Namespaces))
	var all []*view
	for i, ns := range found.Namespaces {
		if ns.Inode == s.own {
			if !s.hidden {
				out.Own = ns.Owner
			}
			continue
		}
		v := cmp.Or(s.views[ns], &view{Namespace: ns})
		views[ns] = v
		if late == nil && ctx.Err() != nil {
			late = fmt.Errorf("no more than %d of %d network namespaces were read: %w", i, len(found.Namespaces), context.Cause(ctx))
		}
		if late != nil {
			continue
		}
		switch err := s.count(v); {
		case errors.Is(err, fs.ErrPermission):
			out.Denied++
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", ns.Name, err))
			fallthrough
		default:
			if v.kernel != nil {
				all = append(all, v)
			}
		}
	}
	s.views = views
	s.rounds++
	if tables {
		s.look(ctx, all)
	}
	s.describe(out, all)
	return out, errors.Join(append(errs, late)...)
}

// count reads the kernel's counts of a namespace: none if its processes have ended.
func (s *namespaces) count(v *view) error {
	v.kernel = nil
	for {
		kernel, err := s.reader.Read(v.Dir())
		if v.Is() {
			v.kernel, v.now = kernel, s.countsOf(kernel)
			return err
		}
		if !v.Reopen() {
			return nil
		}
	}
}

// look reads tables, the most urgent first, for as much processor time as there is in the
// budget, but one at least.
func (s *namespaces) look(ctx context.Context, all []*view) {
	runtime.LockOSThread() // whose processor time it is
	defer runtime.UnlockOSThread()
	end := threadTime() + s.table.cfg.Budget
	for i, v := range s.order(all, time.Now()) {
		if ctx.Err() != nil || i > 0 && threadTime() >= end {
			return
		}
		if err := s.walk(ctx, v); err != nil && ctx.Err() == nil {
			level.Warn(s.table.logger).Log("msg", "reading a table failed, its metrics stay those of the last one", "netns", v.Name, "err", err)
		}
	}
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now) // fails for unknown clocks only
	return time.Duration(now.Nano())
}

// walk reads a table. One that changes fast may have been whole though it seemed short,
// so it is read once more.
func (s *namespaces) walk(ctx context.Context, v *view) error {
	v.turn = s.rounds // whatever becomes of it
	s.procfs.SetDir(v.Path())
	s.tally.Recall(v.memory)
	err := s.table.count(ctx, s.tally, s.procfs, s.pool, nil)
	if _, short := errors.AsType[*tcptable.ShortError](err); short && ctx.Err() == nil {
		err = s.table.count(ctx, s.tally, s.procfs, s.pool, nil)
	}
	switch {
	case !v.Is():
		return nil // of another namespace, or of none
	case err != nil:
		return err
	}
	sockets := s.tally.Snapshot(s.table.limits())
	sockets.Source, sockets.Read = SourceProcfs, time.Now()
	sockets.HeldPorts = nil // 8 KiB
	v.sockets, v.then = sockets, v.now
	v.judge(s.tally, s.pool)
	if v.sysctls() == snapshot.SysctlsUnknown {
		sockets.Ports = nil
	}
	v.memory = s.tally.Remember()
	return nil
}

// judge looks for ports that connect(2) would not have chosen from the pool.
func (v *view) judge(t *tally.Tally, p *kernelstat.Pool) {
	for port := range t.ListenerPorts().All() {
		if !p.Ports.Has(port) && len(v.listened) < maxListened && !slices.Contains(v.listened, port) {
			v.listened = append(v.listened, port)
		}
	}
	for port := range t.OutsidePorts().All() {
		if port >= privileged && len(v.outside) < maxOutside && !slices.Contains(v.outside, port) && !slices.Contains(v.listened, port) {
			v.outside = append(v.outside, port)
		}
	}
	if len(v.outside) < maxOutside {
		v.outside = slices.DeleteFunc(v.outside, func(port uint16) bool { return slices.Contains(v.listened, port) })
	}
}

// sysctls tells whether those of the pool can be assumed.
func (v *view) sysctls() snapshot.Sysctls {
	if len(v.outside) == maxOutside {
		return snapshot.SysctlsUnknown
	}
	return snapshot.SysctlsAssumed
}

// describe makes the snapshots.
func (s *namespaces) describe(out *snapshot.Namespaces, all []*view) {
	looks := make([]*snapshot.Sockets, len(all))
	for i, v := range all {
		looks[i] = v.sockets
		switch {
		case v.turn == s.rounds && v.sockets != nil:
			out.Read++
		case v.sockets != nil && v.now == v.then:
			out.Unchanged++
		default:
			out.Waiting++
		}
	}
	limits := s.table.limits()
	limits.Remotes += len(s.table.cfg.RemoteGroups)
	looks = tally.Share(looks, limits)
	for i, v := range all {
		ns := &snapshot.Namespace{Name: v.Name, Owner: v.Owner, Sysctls: v.sysctls(), Kernel: v.kernel, Sockets: looks[i]}
		if ns.Sysctls == snapshot.SysctlsAssumed {
			ns.Pool = s.pool
		}
		out.Others = append(out.Others, ns)
	}
}
