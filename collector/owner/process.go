package owner

import (
	"slices"

	"github.com/prometheus/procfs"
)

// OfProcess returns the owner of a process by its /proc/PID/cgroup, on hosts of
// cgroup v1 too. Of several hierarchies, one that names a pod counts most, then one
// that names a container, then one that names a unit; else v2 and name=systemd
// before those of resources.
func OfProcess(cgroups []procfs.Cgroup) Owner {
	best := Owner{Kind: KindUnknown}
	rank := func(o *Owner) int {
		switch {
		case o.Kind == KindPod:
			return 4
		case o.contained():
			return 3
		case o.Kind == KindUnit || o.Kind == KindSession:
			return 2
		case o.Kind == KindCgroup:
			return 1
		}
		return 0
	}
	for _, controller := range []string{"", "name=systemd", "cpu", "memory", "pids"} {
		path, ok := pathIn(cgroups, controller)
		if !ok {
			continue
		}
		o := Parse(path)
		if best.Kind == KindUnknown || rank(&o) > rank(&best) {
			best = o
		}
	}
	return best
}

// pathIn returns the path in the hierarchy that has the controller; that of v2 has
// none here.
func pathIn(cgroups []procfs.Cgroup, controller string) (string, bool) {
	for _, c := range cgroups {
		if controller == "" && c.HierarchyID == 0 || slices.Contains(c.Controllers, controller) {
			return c.Path, true
		}
	}
	return "", false
}

// containedInV1 reports whether a hierarchy of cgroup v1 names a container.
func containedInV1(cgroups []procfs.Cgroup) bool {
	return slices.ContainsFunc(cgroups, func(c procfs.Cgroup) bool {
		o := Parse(c.Path)
		return c.HierarchyID != 0 && o.contained()
	})
}

// isHybrid reports whether there are hierarchies of cgroup v1 beside v2.
func isHybrid(cgroups []procfs.Cgroup) bool {
	return slices.ContainsFunc(cgroups, func(c procfs.Cgroup) bool { return c.HierarchyID != 0 })
}
