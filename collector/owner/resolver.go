package owner

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// keep is how long a name stays after the last socket of its cgroup, and how
	// long an id that nothing has is not searched again. The kernel does not use an
	// id again.
	keep = 10 * time.Minute
	// searchPause is the least time between the begins of two searches, unless Options has
	// another.
	searchPause = 10 * time.Second
	// searchTime is how much of one Update a search may take.
	searchTime = 20 * time.Millisecond
	// verifyPause is how old what v1 says of a cgroup may be.
	verifyPause = time.Minute
	// maxNames is how many cgroups are remembered.
	maxNames = 8192
)

// Options says where to look. The zero value means this process's own /proc, and
// the v2 hierarchy that is mounted.
type Options struct {
	// Proc is a proc file system of this process's own PID namespace.
	Proc string
	// CgroupFS is a v2 hierarchy, or the directory in which a hybrid host has all.
	CgroupFS string
	// PodLogs is where a kubelet has pods and containers, /var/log. Without it pods
	// have no names.
	PodLogs string
	// SearchPause is the least time between the begins of two searches, ten seconds if it is
	// 0.
	SearchPause time.Duration
}

// Source says where names come from.
type Source struct {
	// Source is "pidfd", "cgroupfs", "pidfd,cgroupfs" or SourceNone.
	Source string
	// Reason is why there is no other, or what can't be known; else empty.
	Reason string
}

// SourceNone is where no cgroup but this process's own can have a name.
const SourceNone = "none"

// Resolver names cgroups by their ids and remembers the names. It is not for
// concurrent use.
type Resolver struct {
	proc    procfs.FS
	tree    *tree   // nil if there is none to be seen
	pidfds  *pidfds // nil if they don't help
	podLogs podLogs
	hybrid  bool
	source  Source

	names   map[uint64]*name
	missing map[uint64]*name // those of names that a search may find
	search  search
	podErr  error
	podRead time.Time

	searchPause time.Duration
}

// name is what is known of a cgroup.
type name struct {
	owner Owner
	label string
	path  string // in the tree; empty if it is not known
	since time.Time
	asked time.Time // last
	retry time.Time // not before then is more looked for

	// On a hybrid host: when its processes were last asked whether v1 knows them
	// as a container's, whether it did, and the last process that was asked.
	verified time.Time
	shadowed bool
	cursor   int
}

// New looks for what tells the names of cgroups. That nothing does is no error but
// SourceNone.
func New(o Options) (*Resolver, error) {
	if o.Proc == "" {
		o.Proc = procfs.DefaultMountPoint
	}
	proc, err := procfs.NewFS(o.Proc)
	if err != nil {
		return nil, err
	}
	r := &Resolver{proc: proc, podLogs: podLogs(o.PodLogs), searchPause: cmp.Or(o.SearchPause, searchPause), names: make(map[uint64]*name), missing: make(map[uint64]*name)}
	var own, first []procfs.Cgroup
	if self, err := proc.Self(); err == nil {
		own, _ = self.Cgroups() // without them it is no hybrid host
	}
	if init, err := proc.Proc(1); err == nil {
		first, _ = init.Cgroups() // hidden, or another user's
	}
	r.hybrid = isHybrid(own)
	var treeErr, pidfdErr error
	r.tree, treeErr = findTree(proc, o.CgroupFS)
	r.pidfds, pidfdErr = newPidfds(proc)
	r.source = r.choose(treeErr, pidfdErr, first)
	return r, nil
}

// choose keeps what helps and says what it is. first is where process 1 is: in a
// container of its own PID namespace that is this process's own cgroup.
func (r *Resolver) choose(treeErr, pidfdErr error, first []procfs.Cgroup) Source {
	if treeErr != nil {
		r.tree = nil
	}
	if r.tree != nil && r.tree.root != rootID && r.tree.empty() {
		treeErr, r.tree = fmt.Errorf("at %s is no cgroup but this process's own", r.tree.dir), nil
	}
	path, _ := pathIn(first, "")
	switch {
	case pidfdErr != nil:
		r.pidfds = nil
	case r.tree == nil && r.hybrid:
		pidfdErr, r.pidfds = errors.New("processes tell their v1 containers only beside a v2 hierarchy"), nil
	case r.tree == nil && (path == "" || path == "/"):
		pidfdErr, r.pidfds = errors.New("the host's processes can't be seen"), nil
	}
	switch {
	case r.tree == nil && r.pidfds == nil:
		return Source{SourceNone, fmt.Sprintf("%v; %v", treeErr, pidfdErr)}
	case r.tree == nil:
		return Source{"pidfd", treeErr.Error()}
	}
	s := Source{Source: "cgroupfs"}
	if r.pidfds != nil {
		s.Source = "pidfd,cgroupfs"
	}
	switch {
	case r.tree.root != rootID:
		s.Reason = r.tree.dir + " is of a cgroup namespace: cgroups outside of it have no names there"
	case r.hybrid:
		s.Reason = "hybrid: a cgroup whose processes are in a container of cgroup v1 is unknown"
	}
	return s
}

// Source says where names come from. It does not change.
func (r *Resolver) Source() Source { return r.source }

// Label returns the label of the owner of a cgroup that Update was asked for, or
// Unknown.
func (r *Resolver) Label(id uint64) string {
	if n := r.names[id]; n != nil {
		return n.label
	}
	return Unknown
}

// Owner returns the owner of a cgroup that Update was asked for.
func (r *Resolver) Owner(id uint64) Owner {
	if n := r.names[id]; n != nil && n.label != Unknown {
		return n.owner
	}
	return Owner{Kind: KindUnknown}
}

// Update looks for the names of cgroups that have none yet, and forgets those that
// were not asked for in ten minutes. Only when names are missing it searches, once
// in SearchPause and for 20 ms in one call; a search that takes longer goes on in
// the next one. now is the time on a clock that does not go back.
//
// An error says what it could not read, each time until it can. What is known of
// the cgroups is right nevertheless.
func (r *Resolver) Update(now time.Time, ids iter.Seq[uint64]) error {
	if r.source.Source == SourceNone {
		return nil
	}
	deadline := time.Now().Add(searchTime)
	r.forget(now, keep)
	full := r.ask(now, ids)
	searchErr := r.find(now, deadline)
	for _, n := range r.names {
		if n.asked.Equal(now) {
			r.activate(n)
			r.verify(n, now, deadline)
		}
	}
	r.namePods(now)
	return errors.Join(full, searchErr, r.podErr)
}

// ask remembers that ids were asked for.
func (r *Resolver) ask(now time.Time, ids iter.Seq[uint64]) error {
	var full error
	madeRoom := false
	for id := range ids {
		n := r.names[id]
		if n == nil {
			if len(r.names) >= maxNames && !madeRoom {
				r.makeRoom(now)
				madeRoom = true
			}
			if len(r.names) >= maxNames {
				full = fmt.Errorf("sockets are of more than %d cgroups: the owners of the others are unknown", maxNames)
				continue
			}
			n = &name{label: Unknown, since: now}
			r.names[id] = n
			if id == rootID {
				r.nameRoot(n)
			}
		}
		n.asked = now
		if n.owner.Kind == "" && !now.Before(n.retry) {
			r.missing[id] = n
		}
	}
	return full
}

// makeRoom forgets those that were not asked for lately, a quarter of all if there are so
// many.
func (r *Resolver) makeRoom(now time.Time) {
	for age := keep / 2; len(r.names) > maxNames*3/4 && age > time.Second; age /= 2 {
		r.forget(now, age)
	}
}

func (r *Resolver) forget(now time.Time, age time.Duration) {
	for id, n := range r.names {
		if now.Sub(n.asked) >= age {
			delete(r.names, id)
			delete(r.missing, id)
		}
	}
}

// nameRoot names the root cgroup: where there is no v2 hierarchy, sockets of all
// cgroups have its id.
func (r *Resolver) nameRoot(n *name) {
	switch {
	case r.tree == nil:
		n.owner = Owner{Kind: KindUnknown}
	case r.tree.root == rootID:
		r.set(n, Owner{Kind: KindRoot}, "/")
	default:
		r.set(n, Owner{Kind: KindRoot}, "")
	}
}

// set notes the owner of a cgroup and its path in the tree, if it is known.
func (r *Resolver) set(n *name, o Owner, path string) {
	n.owner, n.path, n.retry = o, path, time.Time{}
	r.relabel(n)
}

func (r *Resolver) relabel(n *name) {
	if r.hybrid && !n.owner.contained() && (n.shadowed || n.verified.IsZero()) {
		n.label = Unknown
		return
	}
	n.label = n.owner.Label()
}

// activate reads foo.socket as foo.service, once there is a cgroup of that name:
// for such a unit systemd makes the sockets, and hands them over.
func (r *Resolver) activate(n *name) {
	path, ok := strings.CutSuffix(n.path, ".socket")
	if !ok || n.owner.Kind != KindUnit {
		return
	}
	path += ".service"
	if r.tree.id(path) != 0 {
		n.verified = time.Time{} // of other processes
		r.set(n, Parse(path), path)
	}
}

// verify asks on a hybrid host the processes of a cgroup whether they are in a
// container of v1: then the runtime manages v1 alone, and the v2 cgroup is that of
// the runtime itself. What can't be verified stays unknown.
func (r *Resolver) verify(n *name, now, deadline time.Time) {
	if !r.hybrid || n.shadowed || n.path == "" || n.owner.contained() || now.Sub(n.verified) < verifyPause {
		return
	}
	pids, hidden := r.tree.processes(n.path)
	n.shadowed = hidden
	for _, pid := range pids {
		if n.shadowed {
			break
		}
		if pid <= n.cursor {
			continue
		}
		if !time.Now().Before(deadline) {
			return
		}
		n.cursor = pid
		if proc, err := r.proc.Proc(pid); err == nil {
			cgroups, _ := proc.Cgroups() // it has ended
			n.shadowed = containedInV1(cgroups)
		}
	}
	n.verified, n.cursor = now, 0
	r.relabel(n)
}
