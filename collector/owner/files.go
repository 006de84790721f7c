package owner

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// filesTime is about how long one Update looks at processes.
	filesTime = 2 * time.Millisecond
	// listPause is how old a list of processes may be that only pidfds tell.
	listPause = time.Minute
)

// Process is a process and its open files.
type Process struct {
	PID     int
	Program string // comm, which may be any bytes; repaired
	// OpenFiles is how many files it has open, and MaxFiles the soft limit of
	// RLIMIT_NOFILE, MaxUint64 if it has none.
	OpenFiles, MaxFiles uint64
}

// use is the share of its limit that a process has open.
func (p *Process) use() float64 {
	if p.OpenFiles == 0 {
		return 0
	}
	return float64(p.OpenFiles) / float64(p.MaxFiles)
}

// Processes looks at the processes of owners: which is the oldest, and which is
// nearest to its own limit of open files. It is not for concurrent use, nor beside
// its Resolver's.
//
// From another PID namespace the processes of a cgroup can't be seen. Open files
// are counted by the size of /proc/PID/fd (proc_fd_getattr in fs/proc/fd.c, Linux
// 6.2), else by its entries, which takes the right to trace the process, and time.
type Processes struct {
	resolver *Resolver
	owners   map[string]*watch
	turn     int // whose turn it is

	// Without a tree: the processes of cgroups, whole and under way.
	search      *pidfds
	began       time.Time
	pids, later map[uint64][]int
}

// NewProcesses returns the Processes of the owners that a Resolver names.
func NewProcesses(r *Resolver) *Processes {
	p := &Processes{resolver: r, owners: make(map[string]*watch)}
	if r.tree == nil && r.pidfds != nil {
		p.search = &pidfds{proc: r.proc}
	}
	return p
}

// Program returns the comm of the oldest process of an owner that Update was told
// of, its main one; empty if it is not known.
func (p *Processes) Program(label string) string {
	if w := p.owners[label]; w != nil {
		return w.oldest.Program
	}
	return ""
}

// Worst returns the process of an owner that is nearest to its limit of open files,
// if one is known.
func (p *Processes) Worst(label string) (Process, bool) {
	if w := p.owners[label]; w != nil && w.worst.PID != 0 {
		return w.worst, true
	}
	return Process{}, false
}

// Update looks at the processes of the owners, of which it is told the cgroup ids,
// for about 2 ms, and forgets all other owners. Where there are too many processes
// for one call, the next one goes on, with the worst so far first.
func (p *Processes) Update(now time.Time, owners map[string][]uint64) {
	p.update(now, time.Now().Add(filesTime), owners)
}

// update looks at one process at least.
func (p *Processes) update(now, deadline time.Time, owners map[string][]uint64) {
	maps.DeleteFunc(p.owners, func(label string, _ *watch) bool { return owners[label] == nil })
	p.list(now, deadline, owners)

	labels := slices.Sorted(maps.Keys(owners))
	watches := make([]*watch, len(labels))
	for i, label := range labels {
		w := p.owners[label]
		if w == nil {
			w = new(watch)
			p.owners[label] = w
		}
		w.begin(p.resolver.proc, p.processes(owners[label]))
		watches[i] = w
	}
	// In turns, so that an owner of thousands does not keep the others waiting.
	for left := len(watches); left > 0; {
		left = 0
		for range watches {
			p.turn++
			if watches[p.turn%len(watches)].step(p.resolver.proc) {
				left++
			}
			if !time.Now().Before(deadline) {
				return
			}
		}
	}
}

// processes returns the processes of cgroups in ascending order.
func (p *Processes) processes(ids []uint64) []int {
	var all []int
	for _, id := range ids {
		n := p.resolver.names[id]
		switch {
		case n == nil:
		case n.path != "":
			pids, _ := p.resolver.tree.processes(n.path)
			all = append(all, pids...)
		default:
			all = append(all, p.pids[id]...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// list goes on with a search for the processes of all owners, where there is no
// tree that has them.
func (p *Processes) list(now, deadline time.Time, owners map[string][]uint64) {
	if p.search == nil {
		return
	}
	if p.later == nil {
		if !p.began.IsZero() && now.Sub(p.began) < listPause {
			return
		}
		p.began, p.later = now, make(map[uint64][]int)
		p.search.begin()
	}
	wanted := make(map[uint64]bool)
	for _, ids := range owners {
		for _, id := range ids {
			wanted[id] = true
		}
	}
	more, err := p.search.search(deadline, func(id uint64) bool { return wanted[id] }, func(pid int, id uint64, _ []procfs.Cgroup) {
		p.later[id] = append(p.later[id], pid)
	})
	if !more && err == nil {
		p.pids = p.later
	}
	if !more {
		p.later = nil
	}
}

// watch is what is known of an owner's processes. They are looked at in rounds, in
// ascending order.
type watch struct {
	pids []int // now
	next int   // index of the next one of this call, len(pids) when the round is over
	last int   // the last process of the round under way, 0 if there is none

	worst, found Process // of the last round, or worse; of this one
	oldest       Process
	started      uint64 // when the oldest one did, in ticks since the boot
	settled      bool   // a whole round found none that is older
}

// begin begins a call.
func (w *watch) begin(proc procfs.FS, pids []int) {
	w.pids = pids
	if w.oldest.PID != 0 && !w.has(w.oldest.PID) {
		w.oldest, w.settled, w.last = Process{}, false, 0
	}
	if w.found.PID != 0 && !w.has(w.found.PID) {
		w.found = Process{}
	}
	if w.worst.PID != 0 && !w.has(w.worst.PID) {
		w.worst = w.found
	}
	if w.worst.PID != 0 && w.last != 0 {
		w.measure(proc, w.worst.PID)
	}
	w.next, _ = slices.BinarySearch(pids, w.last+1)
}

func (w *watch) has(pid int) bool {
	_, ok := slices.BinarySearch(w.pids, pid)
	return ok
}

// step looks at one process, and reports whether there are more in this round.
func (w *watch) step(proc procfs.FS) bool {
	if w.next < len(w.pids) {
		w.last = w.pids[w.next]
		w.measure(proc, w.last)
		w.next++
	}
	if w.next < len(w.pids) {
		return true
	}
	if w.last != 0 || len(w.pids) == 0 {
		w.worst, w.found, w.last = w.found, Process{}, 0
		w.settled = w.oldest.PID != 0
	}
	return false
}

// measure looks at a process. One that has ended or is hidden tells nothing.
func (w *watch) measure(fs procfs.FS, pid int) {
	proc, err := fs.Proc(pid)
	if err != nil {
		return
	}
	comm, err := proc.Comm()
	if err != nil {
		return
	}
	p := Process{PID: pid, Program: strings.ToValidUTF8(comm, "\uFFFD")}
	w.measureAge(proc, p)
	open, err := proc.FileDescriptorsLen()
	if err != nil {
		return
	}
	limits, err := proc.Limits()
	if err != nil {
		return
	}
	p.OpenFiles, p.MaxFiles = uint64(open), limits.OpenFiles
	if w.found.PID == 0 || w.found.PID == pid || p.use() > w.found.use() {
		w.found = p
	}
	if w.worst.PID == pid || p.use() > w.worst.use() {
		w.worst = p
	}
}

// measureAge notes the oldest process, and what it runs now.
func (w *watch) measureAge(proc procfs.Proc, p Process) {
	if p.PID == w.oldest.PID {
		w.oldest = p
		return
	}
	if w.settled {
		return
	}
	stat, err := proc.Stat()
	if err == nil && (w.oldest.PID == 0 || stat.Starttime < w.started) {
		w.oldest, w.started = p, stat.Starttime
	}
}
