package owner

import (
	"errors"
	"time"

	"github.com/prometheus/procfs"
)

// search is how far a search for missing names is: first the processes are asked
// for their cgroups, then, for what no process has, the tree is walked.
type search struct {
	stage  stage
	began  time.Time
	pidErr error
	err    error // what the last whole one could not read
}

type stage int

const (
	idle stage = iota
	asking
	walking
)

// find begins a search or goes on with it. It returns what the last whole one could
// not read.
func (r *Resolver) find(now, deadline time.Time) error {
	s := &r.search
	if s.stage == idle {
		if len(r.missing) == 0 || !s.began.IsZero() && now.Sub(s.began) < r.searchPause {
			return s.err
		}
		s.stage, s.began, s.pidErr = asking, now, nil
		if r.pidfds != nil {
			r.pidfds.begin()
		}
	}
	if s.stage == asking {
		if r.pidfds != nil {
			var more bool
			if more, s.pidErr = r.pidfds.search(deadline, r.isMissing, r.foundProcess); more {
				return s.err
			}
		}
		s.stage = walking
		if r.tree != nil {
			r.tree.begin()
		}
	}
	var walkErr error
	if r.tree != nil && len(r.missing) > 0 {
		var more bool
		if more, walkErr = r.tree.walk(deadline, r.foundDirectory); more {
			return s.err
		}
	}
	s.stage, s.err = idle, errors.Join(s.pidErr, walkErr)
	for id, n := range r.missing {
		if !n.since.After(s.began) {
			r.giveUp(id, now)
		}
	}
	return s.err
}

func (r *Resolver) isMissing(id uint64) bool { return r.missing[id] != nil }

// giveUp leaves a cgroup unknown for a while.
func (r *Resolver) giveUp(id uint64, now time.Time) {
	r.missing[id].retry = now.Add(keep)
	delete(r.missing, id)
}

// foundProcess names a cgroup by what a process in it says. Its path begins at the
// root of this process's cgroup namespace. Where the tree shows the same cgroup at
// that path, it is known there too; where the tree shows all cgroups, the walk
// finds this one at its whole path.
func (r *Resolver) foundProcess(_ int, id uint64, cgroups []procfs.Cgroup) {
	path, ok := pathIn(cgroups, "")
	if !ok {
		return
	}
	if r.tree != nil && r.tree.id(path) == id {
		r.foundDirectory(id, path)
		return
	}
	if r.tree == nil || r.tree.root != rootID {
		r.found(id, path, "")
	}
}

// foundDirectory is called for each directory of the tree, and reports whether
// others are missing.
func (r *Resolver) foundDirectory(id uint64, path string) bool {
	if r.isMissing(id) {
		r.found(id, path, path)
	}
	return len(r.missing) > 0
}

// found names a missing cgroup. The root of a cgroup namespace does not show its
// path.
func (r *Resolver) found(id uint64, path, inTree string) {
	o := Parse(path)
	if o.Kind == KindRoot || o.Kind == KindUnknown {
		r.giveUp(id, r.search.began)
		return
	}
	n := r.missing[id]
	delete(r.missing, id)
	r.set(n, o, inTree)
}

// namePods looks for the names of pods and containers that have none. The longer
// they have none, the more seldom.
func (r *Resolver) namePods(now time.Time) {
	const pause = 10 * time.Second
	if r.podLogs == "" || !r.podRead.IsZero() && now.Sub(r.podRead) < pause {
		return
	}
	var names []*name
	var owners []*Owner
	for _, n := range r.names {
		o := &n.owner
		if o.Kind != KindPod || !n.asked.Equal(now) || now.Before(n.retry) {
			continue
		}
		n.retry = now.Add(min(max(now.Sub(n.since), pause), keep))
		if o.Pod == "" || o.Container == "" && o.ContainerID != "" {
			names, owners = append(names, n), append(owners, o)
		}
	}
	if len(owners) == 0 {
		return
	}
	r.podRead = now
	r.podErr = NamePods(string(r.podLogs), time.Now().Add(searchTime), owners)
	for _, n := range names {
		r.relabel(n)
	}
}
