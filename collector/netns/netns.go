// Package netns finds the network namespaces that the processes of a machine are in,
// and names them. It needs no privilege: the inode of /proc/PID/net/tcp, which anybody
// may ask for, tells namespaces apart, and everything in /proc/PID/net may be read
// (get_proc_task_net in fs/proc/proc_net.c).
package netns

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"timewait_exporter/collector/owner"
)

// maxNamespaces is how many are kept apart, each with a directory open.
const maxNamespaces = 4096

// Namespace is a network namespace that a process is in.
type Namespace struct {
	// Inode is that of net/tcp in it. The kernel gives it to another namespace as soon
	// as this one is gone.
	Inode uint64
	// Name is "host" for the namespace of PID 1. No two namespaces of one Find have
	// the same, and it stays while the namespace lives.
	Name string
	// Owner is whose processes are in it, as far as they tell. Of a pod of several
	// containers none is named.
	Owner owner.Owner

	proc string
	pids []int    // of the processes that the last Find saw in it, in ascending order
	dir  *os.File // net of one of them

	containers map[string]*owner.Owner // of a pod, by id
	since      time.Time
	nameAgain  time.Time // when names of the pod are looked for again
}

// Dir returns the net directory of a process in the namespace, open until the next Find.
// It is of that process alone, whoever gets its PID: once it has ended, nothing is in it.
func (n *Namespace) Dir() int { return int(n.dir.Fd()) }

// Path is where this process finds Dir.
func (n *Namespace) Path() string { return "/proc/self/fd/" + strconv.Itoa(n.Dir()) }

// Is reports whether Dir shows the namespace: its process has neither ended nor entered
// another one (setns(2)). What is read from Dir is the namespace's if that is so
// afterwards.
func (n *Namespace) Is() bool {
	if n.dir == nil {
		return false
	}
	inode, err := tcpInode(n.Dir(), "tcp")
	return err == nil && inode == n.Inode
}

// Reopen makes Dir that of another process if Is is false, and reports whether there is
// one.
func (n *Namespace) Reopen() bool {
	if n.Is() {
		return true
	}
	before := n.dir
	for _, pid := range n.pids {
		var err error
		if n.dir, err = os.Open(filepath.Join(n.proc, strconv.Itoa(pid), "net")); err != nil {
			continue
		}
		if n.Is() {
			before.Close() // of none, that is no more than an error
			return true
		}
		n.dir.Close()
	}
	n.dir = before
	return false
}

// Options says where to look.
type Options struct {
	Proc    string // a proc file system
	PodLogs string // where a kubelet has the logs of pods, as in [owner.Options]
	Names   string // where ip-netns(8) keeps namespaces by name, /run/netns
}

// Finder finds namespaces, and knows them again. It is not for concurrent use.
type Finder struct {
	options Options
	proc    *os.File
	procs   procfs.FS

	known map[uint64]*Namespace // by inode
	last  map[int]uint64        // the inode of each process, in the last whole Find
	began uint64                // when that did, in ticks since the boot
	seen  map[int]uint64        // as last, of the Find under way
}

// Found is what there is to be seen.
type Found struct {
	// Namespaces are in order of their names.
	Namespaces []*Namespace
	// HostVisible is whether the host's own processes are seen. If not (hidepid, or a
	// PID namespace of its own) there may be further namespaces.
	HostVisible bool
}

// New returns a Finder, which has to be closed.
func New(o Options) (*Finder, error) {
	procs, err := procfs.NewFS(o.Proc)
	if err != nil {
		return nil, err
	}
	proc, err := os.Open(o.Proc)
	if err != nil {
		return nil, err
	}
	return &Finder{options: o, proc: proc, procs: procs, known: make(map[uint64]*Namespace), seen: make(map[int]uint64), last: make(map[int]uint64)}, nil
}

// Find looks at every process. Those that end meanwhile, or are hidden, are no error.
func (f *Finder) Find(ctx context.Context) (Found, error) {
	began := sinceBoot()
	processes, err := f.processes(ctx)
	if err != nil {
		return Found{}, err
	}
	alive := make(map[uint64]*Namespace, len(processes))
	for inode, pids := range processes {
		n := f.known[inode]
		if n == nil || !f.isSame(n, pids) {
			n = &Namespace{Inode: inode}
		}
		n.pids, n.proc = pids, f.options.Proc
		if len(alive) < maxNamespaces && n.Reopen() {
			alive[inode] = n
			f.describe(n)
		}
	}
	for inode, n := range f.known {
		if alive[inode] != n {
			n.dir.Close()
		}
	}
	f.known, f.began = alive, began
	f.last, f.seen = f.seen, f.last
	f.namePods(time.Now())
	f.name()
	found := Found{
		Namespaces:  slices.SortedFunc(maps.Values(alive), func(a, b *Namespace) int { return cmp.Compare(a.Name, b.Name) }),
		HostVisible: f.hostVisible(),
	}
	if len(processes) > maxNamespaces {
		return found, fmt.Errorf("there are %d network namespaces, and no more than %d are read", len(processes), maxNamespaces)
	}
	return found, nil
}

// Close closes what is open.
func (f *Finder) Close() {
	for _, n := range f.known {
		n.dir.Close()
	}
	f.proc.Close()
}

// processes returns the processes of each namespace in ascending order.
func (f *Finder) processes(ctx context.Context) (map[uint64][]int, error) {
	if _, err := f.proc.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := f.proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	clear(f.seen)
	processes := make(map[uint64][]int, len(f.known))
	dir := int(f.proc.Fd())
	for i, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if i%64 == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("%s: after %d of %d processes: %w", f.options.Proc, i, len(names), context.Cause(ctx))
		}
		if inode, err := tcpInode(dir, name+"/net/tcp"); err == nil {
			f.seen[pid] = inode
			processes[inode] = append(processes[inode], pid)
		}
	}
	for _, pids := range processes {
		slices.Sort(pids)
	}
	return processes, nil
}

// isSame reports whether a namespace that was found before is the one that processes
// are in by now: whether one of them was in it then. For another one the kernel may have
// used its inode again.
func (f *Finder) isSame(n *Namespace, pids []int) bool {
	return n.Is() || slices.ContainsFunc(pids, func(pid int) bool {
		if f.last[pid] != n.Inode {
			return false
		}
		started, ok := f.started(pid)
		return ok && started <= f.began // else its PID is used again
	})
}

// started returns when a process did, in ticks since the boot.
func (f *Finder) started(pid int) (uint64, bool) {
	proc, err := f.procs.Proc(pid)
	if err != nil {
		return 0, false
	}
	stat, err := proc.Stat()
	return stat.Starttime, err == nil
}

// hostVisible reports whether the proc file system is that of the machine, in which PID 2
// is kthreadd, and shows it.
func (f *Finder) hostVisible() bool {
	if f.last[1] == 0 {
		return false
	}
	const kernelThread = 0x00200000 // PF_KTHREAD in include/linux/sched.h
	proc, err := f.procs.Proc(2)
	if err != nil {
		return false
	}
	stat, err := proc.Stat()
	return err == nil && stat.Flags&kernelThread != 0
}

// tcpInode returns the inode of a net/tcp below an open directory.
func tcpInode(dir int, path string) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Fstatat(dir, path, &stat, 0)
	return stat.Ino, err
}

// sinceBoot returns the time since the boot in the ticks of /proc/PID/stat, of which a
// second has 100 on every machine (USER_HZ).
func sinceBoot() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // fails for unknown clocks only
	return uint64(now.Nano() / 1e7)
}
