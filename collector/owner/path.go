// Package owner tells which unit, pod, container or session a cgroup is, from the
// cgroup id that sock_diag has for each socket. It needs no privilege.
package owner

import (
	"strings"
	"unicode/utf8"
)

// Kind is what a cgroup belongs to.
type Kind string

// The kinds of owners.
const (
	KindUnit      Kind = "unit"      // of systemd, the system's or a user's
	KindSession   Kind = "session"   // a login
	KindPod       Kind = "pod"       // of Kubernetes, or a container of one
	KindContainer Kind = "container" // of no pod
	KindVM        Kind = "vm"        // a virtual machine
	KindCgroup    Kind = "cgroup"    // one that nobody known has named
	KindRoot      Kind = "root"      // the root cgroup
	KindUnknown   Kind = "unknown"
)

// Labels that are no owner's.
const (
	Unknown = "unknown" // the owner is not known
	Other   = "other"   // all owners that are not named
)

// Owner is whose processes are in a cgroup. What is not known is empty. All
// strings are valid UTF-8.
type Owner struct {
	Kind Kind
	// Runtime made the container or the virtual machine: docker, containerd, crio,
	// podman, kata, lxc, nspawn, ecs, garden, nomad, libvirt, qemu. A path does not
	// always tell.
	Runtime string
	// Unit is the unit or session scope, spelled as systemd spells it: a hyphen
	// that it escapes stays \x2d.
	Unit string
	// Namespace and Pod are the names of a pod. No cgroup tells them.
	Namespace, Pod string
	// PodUID has hyphens; that of a static pod is 32 digits.
	PodUID string
	// Container is the name of a container or a virtual machine.
	Container string
	// ContainerID has 64 hexadecimal digits, but in ECS and Nomad, which have ids
	// of their own.
	ContainerID string
	// Path is that of an owner of KindCgroup, its first 255 bytes.
	Path string
}

const (
	idDigits    = 64  // of a container
	shortDigits = 12  // as docker ps and crictl ps show
	pathBytes   = 255 // NAME_MAX: as much as any other name can have
)

// Label returns how the owner is written as the value of a label.
func (o *Owner) Label() string {
	switch o.Kind {
	case KindUnit, KindSession:
		return o.Unit
	case KindPod:
		pod := "pod:" + o.PodUID
		if o.Pod != "" {
			pod = o.Namespace + "/" + o.Pod
		}
		switch {
		case o.Container != "":
			return pod + "/" + o.Container
		case o.ContainerID != "":
			return pod + "/" + short(o.ContainerID)
		}
		return pod
	case KindContainer:
		runtime := o.Runtime
		if runtime == "" {
			runtime = "container"
		}
		switch {
		case o.ContainerID == "":
			return runtime + ":" + o.Container
		case o.Container != "":
			return runtime + ":" + o.ContainerID + "." + o.Container
		}
		return runtime + ":" + short(o.ContainerID)
	case KindVM:
		return "vm:" + o.Container
	case KindCgroup:
		return o.Path
	case KindRoot:
		return "/"
	}
	return Unknown
}

// short returns the beginning of the id of a container. Ids of other forms may
// differ at their ends only.
func short(id string) string {
	if len(id) == idDigits {
		return id[:shortDigits]
	}
	return id
}

// contained reports whether the owner is a container, a pod or a virtual machine.
func (o *Owner) contained() bool {
	return o.Kind == KindContainer || o.Kind == KindPod || o.Kind == KindVM
}

// Parse returns the owner of a cgroup by its path, as in /proc/PID/cgroup or below
// the mount point of a hierarchy. Bytes that are not UTF-8 are replaced.
//
// The innermost container, pod or virtual machine is the owner, else the innermost
// unit. So a unit in a container is the container's, and what a service or a
// container has below its cgroup is its own.
func Parse(path string) Owner {
	path = strings.ToValidUTF8(path, "\uFFFD")
	path = strings.TrimSuffix(path, " (deleted)") // proc_cgroup_show in kernel/cgroup/cgroup.c
	above := false
	for strings.HasPrefix(path, "/..") && (len(path) == len("/..") || path[len("/..")] == '/') {
		path, above = path[len("/.."):], true // outside of this process's cgroup namespace
	}
	switch {
	case path == "/" && !above:
		return Owner{Kind: KindRoot}
	case !strings.HasPrefix(path, "/") || path == "/":
		return Owner{Kind: KindUnknown}
	}
	if o, ok := parseContained(path); ok {
		return o
	}
	if o, ok := parseUnit(path); ok {
		return o
	}
	return Owner{Kind: KindCgroup, Path: cut(path)}
}

// cut returns the beginning of a path, whole characters.
func cut(path string) string {
	if len(path) <= pathBytes {
		return path
	}
	end := pathBytes
	for !utf8.RuneStart(path[end]) {
		end--
	}
	return path[:end]
}

// split returns the last segment of a path and what is left of it.
func split(path string) (left, segment string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

// base returns the last segment of a path, which may be empty.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// dir returns a path without its last segment.
func dir(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }

// parseUnit finds the innermost unit of systemd, or service of Talos.
func parseUnit(path string) (Owner, bool) {
	for left, segment := split(path); ; left, segment = split(left) {
		if isUnit(left, segment) {
			// systemd puts _ before a name that a file of the kernel may have
			// (cg_escape in src/basic/cgroup-util.c).
			unit := strings.TrimPrefix(segment, "_")
			if strings.HasPrefix(unit, "session-") && strings.HasSuffix(unit, ".scope") {
				return Owner{Kind: KindSession, Unit: unit}, true
			}
			return Owner{Kind: KindUnit, Unit: unit}, true
		}
		if left == "" {
			break
		}
	}
	for _, parent := range []string{"/system/", "/podruntime/"} {
		service, ok := strings.CutPrefix(path, parent)
		if ok && service != "" && !strings.Contains(service, "/") && service != Unknown && service != Other {
			return Owner{Kind: KindUnit, Unit: service}, true
		}
	}
	if path == "/init" {
		return Owner{Kind: KindUnit, Unit: "init"}, true
	}
	return Owner{}, false
}

func isUnit(left, segment string) bool {
	switch {
	case segment == "init.scope":
		return left == "" // else of a user's manager, user@1000.service
	case isMonitor(segment):
		return false
	}
	return strings.HasSuffix(segment, ".service") || strings.HasSuffix(segment, ".socket") || strings.HasSuffix(segment, ".scope")
}

// isMonitor reports whether the cgroup is that of the process that watches a
// container, outside of it.
func isMonitor(segment string) bool {
	return strings.HasPrefix(segment, "crio-conmon-") || strings.HasPrefix(segment, "libpod-conmon-")
}
