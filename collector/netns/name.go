package netns

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/collector/owner"
)

const (
	// maxAsked is how many processes of a namespace are asked who they are in one Find.
	maxAsked = 64
	// maxContainers is how many containers of a pod are told apart.
	maxContainers = 64
	// namesTime is how long one Find looks for the names of pods, and minPause and
	// maxPause how long it does not after it has: the longer a pod has been there, the
	// longer.
	namesTime          = 20 * time.Millisecond
	minPause, maxPause = 10 * time.Second, 10 * time.Minute
)

// describe asks the processes of a namespace who they are that came since the last Find.
// Whose the namespace is says a container before a unit, and then the oldest process.
func (f *Finder) describe(n *Namespace) {
	if f.seen[1] == n.Inode {
		return // the host's is nobody's
	}
	isNew, oldest, asked := n.Name == "", 0, 0
	for _, pid := range n.pids {
		if !isNew && f.last[pid] == n.Inode {
			continue
		}
		if asked++; asked > maxAsked {
			return
		}
		proc, err := f.procs.Proc(pid)
		if err != nil {
			continue
		}
		cgroups, err := proc.Cgroups()
		if err != nil {
			continue
		}
		o := owner.OfProcess(cgroups)
		if isNew && (oldest == 0 || rank(&o) > rank(&n.Owner) || rank(&o) == rank(&n.Owner) && o != n.Owner && f.isOlder(pid, oldest)) {
			n.Owner, oldest = o, pid
		}
		if o.Kind == owner.KindPod && o.ContainerID != "" && n.containers[o.ContainerID] == nil && len(n.containers) < maxContainers {
			if n.containers == nil {
				n.containers = make(map[string]*owner.Owner)
			}
			n.containers[o.ContainerID] = &o
			n.nameAgain = time.Time{}
		}
	}
}

func (f *Finder) isOlder(pid, than int) bool {
	a, okA := f.started(pid)
	b, okB := f.started(than)
	return okA && okB && a < b
}

// rank says how much an owner tells of a network namespace.
func rank(o *owner.Owner) int {
	switch o.Kind {
	case owner.KindPod, owner.KindContainer, owner.KindVM:
		return 2
	case owner.KindUnit, owner.KindSession:
		return 1
	default:
		return 0
	}
}

// namePods looks for the names of pods and their containers.
func (f *Finder) namePods(now time.Time) {
	var pods []*owner.Owner
	for _, n := range f.known {
		if n.Owner.Kind != owner.KindPod || now.Before(n.nameAgain) {
			continue
		}
		if n.since.IsZero() {
			n.since = now
		}
		n.nameAgain = now.Add(min(max(now.Sub(n.since), minPause), maxPause))
		pods = append(pods, &n.Owner)
		for _, c := range n.containers {
			pods = append(pods, c)
		}
	}
	if len(pods) == 0 {
		return
	}
	_ = owner.NamePods(f.options.PodLogs, now.Add(namesTime), pods) // who may not read them sees UIDs
	for _, n := range f.known {
		n.nameContainer()
	}
}

// nameContainer has Owner name the container of a pod that has one: beside its sandbox,
// which has no name.
func (n *Namespace) nameContainer() {
	var only *owner.Owner
	named := 0
	for _, c := range n.containers {
		if c.Container != "" {
			only, named = c, named+1
		}
		if len(n.containers) == 1 {
			only, named = c, 1
		}
	}
	switch {
	case len(n.containers) == 0:
	case named == 1:
		n.Owner.Container, n.Owner.ContainerID = only.Container, only.ContainerID
	default:
		n.Owner.Container, n.Owner.ContainerID = "", ""
	}
}

// name gives the namespaces names that have none yet.
func (f *Finder) name() {
	var unnamed []*Namespace
	taken := make(map[string]int, len(f.known))
	for _, n := range f.known {
		if n.Name == "" {
			unnamed = append(unnamed, n)
		}
		taken[n.Name]++
	}
	var byInode map[uint64]string
	for _, n := range unnamed {
		n.Name = n.ownName()
		if f.last[1] == n.Inode {
			n.Name = "host"
		}
		if n.Name == "" {
			if byInode == nil {
				byInode = ipNetns(f.options.Names)
			}
			n.Name = n.givenName(byInode)
		}
		taken[n.Name]++
	}
	for _, n := range unnamed {
		if taken[n.Name] > 1 {
			n.Name += "@" + strconv.FormatUint(n.Inode, 10)
		}
	}
}

// ownName is the name that comes from whose the namespace is, empty if that tells none.
func (n *Namespace) ownName() string {
	if rank(&n.Owner) == 0 {
		return ""
	}
	o := n.Owner
	if o.Kind == owner.KindPod {
		o.Container, o.ContainerID = "", ""
	}
	return o.Label()
}

// givenName is the name by which ip-netns(8) keeps it, where this process may trace the
// namespace's; else one made of its inode.
func (n *Namespace) givenName(byInode map[uint64]string) string {
	var stat unix.Stat_t
	if err := unix.Fstatat(n.Dir(), "../ns/net", &stat, 0); err == nil && byInode[stat.Ino] != "" {
		return "netns:" + byInode[stat.Ino]
	}
	return "net:" + strconv.FormatUint(n.Inode, 10)
}

// ipNetns returns the names of namespaces in a directory, by the inode of each in nsfs;
// none if there is no such directory.
func ipNetns(dir string) map[uint64]string {
	byInode := make(map[uint64]string)
	d, err := os.Open(dir)
	if err != nil {
		return byInode
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxNamespaces) // what can't be read has no name
	slices.Sort(names)
	for _, name := range names {
		var stat unix.Stat_t
		if unix.Stat(filepath.Join(dir, name), &stat) == nil {
			byInode[stat.Ino] = cmp.Or(byInode[stat.Ino], strings.ToValidUTF8(name, "\uFFFD"))
		}
	}
	return byInode
}
