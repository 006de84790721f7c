package owner

import "strings"

// parseContained finds the innermost container, pod or virtual machine.
func parseContained(path string) (Owner, bool) {
	for left, segment := split(path); ; left, segment = split(left) {
		if o, ok := parseContainer(left, segment); ok {
			if uid := podUID(left, segment); uid != "" {
				o.Kind, o.PodUID = KindPod, uid
			}
			return o, true
		}
		if uid := parsePodUID(segment); uid != "" {
			return Owner{Kind: KindPod, PodUID: uid}, true
		}
		if left == "" {
			break
		}
	}
	if left, segment := split(path); isGUID(segment) && (strings.Contains(left, "garden") || !strings.Contains(left, ".service")) {
		return Owner{Kind: KindContainer, Runtime: "garden", Container: segment}, true
	}
	return Owner{}, false
}

// parseContainer returns the container or virtual machine that a segment names.
// left is the path to it.
func parseContainer(left, segment string) (Owner, bool) {
	if o, ok := parseID(left, segment); ok {
		return o, true
	}
	if o, ok := parseMachine(left, segment); ok {
		return o, true
	}
	parent := base(left)
	switch {
	case parent == "ecs" || base(dir(left)) == "ecs": // /ecs/<task 32 hex>-<digits>
		if task, n, ok := strings.Cut(segment, "-"); ok && len(task) == 32 && isHex(task) && isDigits(n) {
			return Owner{Kind: KindContainer, Runtime: "ecs", ContainerID: segment}, true
		}
	case strings.Contains(left, "/nomad.slice"): // /nomad.slice/share.slice/<allocation>.<task>.scope
		id, task, ok := strings.Cut(strings.TrimSuffix(segment, ".scope"), ".")
		if ok && isGUID(id) && task != "" {
			return Owner{Kind: KindContainer, Runtime: "nomad", Container: task, ContainerID: id}, true
		}
	}
	return Owner{}, false
}

// parseID returns the container whose id ends a segment:
//
//	<64 hex>
//	docker-<64 hex>.scope
//	kubepods-burstable-pod<uid>.slice:cri-containerd:<64 hex>
func parseID(left, segment string) (Owner, bool) {
	name := strings.TrimSuffix(segment, ".scope")
	if len(name) < idDigits || isMonitor(name) {
		return Owner{}, false
	}
	prefix, id := name[:len(name)-idDigits], name[len(name)-idDigits:]
	if !isHex(id) {
		return Owner{}, false
	}
	o := Owner{Kind: KindContainer, ContainerID: id}
	parent := base(left)
	if prefix == "" {
		switch {
		case parent == "docker":
			o.Runtime = "docker"
		case parent == "kata_overhead":
			o.Runtime = "kata"
		case base(dir(left)) == "ecs": // /ecs/<task>/<64 hex>
			o.Runtime = "ecs"
		}
		return o, true
	}
	end := len(prefix) - 1
	if !strings.ContainsRune("-_:", rune(prefix[end])) {
		return Owner{}, false
	}
	prefix = prefix[:end]
	switch prefix[strings.LastIndexByte(prefix, ':')+1:] {
	case "docker":
		o.Runtime = "docker"
	case "cri-containerd", "nerdctl":
		o.Runtime = "containerd"
	case "crio":
		o.Runtime = "crio"
	case "libpod":
		o.Runtime = "podman"
	case "kata":
		o.Runtime = "kata"
	}
	if strings.HasPrefix(parent, "ecstasks-") {
		o.Runtime = "ecs"
	}
	return o, true
}

// parseMachine returns the system container or virtual machine that a segment
// names. Only the names of machines are unescaped: they are words of libvirt's and
// nspawn's users, not systemd's.
func parseMachine(left, segment string) (Owner, bool) {
	lxc := func(name string) (Owner, bool) {
		return Owner{Kind: KindContainer, Runtime: "lxc", Container: name}, name != ""
	}
	nspawn := func(name string) (Owner, bool) {
		return Owner{Kind: KindContainer, Runtime: "nspawn", Container: name}, name != ""
	}
	vm := func(runtime, name string) (Owner, bool) {
		return Owner{Kind: KindVM, Runtime: runtime, Container: name}, name != ""
	}
	parent := base(left)
	if parent == "lxc" || parent == "lxc.payload" {
		return lxc(segment)
	}
	if name, ok := strings.CutPrefix(segment, "lxc.payload."); ok {
		return lxc(name)
	}
	if name, ok := cutAround(segment, "systemd-nspawn@", ".service"); ok {
		return nspawn(unescape(name))
	}
	if name, ok := cutAround(segment, "machine-", ".scope"); ok {
		// machine-qemu\x2d<number>\x2d<name>
		machine := unescape(name)
		domain, isQEMU := strings.CutPrefix(machine, "qemu-")
		domain, isLXC := strings.CutPrefix(domain, "lxc-")
		number, name, ok := strings.Cut(domain, "-")
		if (isQEMU || isLXC) && ok && isDigits(number) {
			return vm("libvirt", name)
		}
		return nspawn(machine)
	}
	for _, suffix := range []string{".libvirt-qemu", ".libvirt-lxc"} {
		if name, ok := strings.CutSuffix(segment, suffix); ok {
			return vm("libvirt", unescape(strings.TrimPrefix(name, "machine_")))
		}
	}
	if id, ok := strings.CutSuffix(segment, ".scope"); ok && parent == "qemu.slice" && isDigits(id) {
		return vm("qemu", id)
	}
	return Owner{}, false
}

// podUID returns the UID of the innermost pod in a path.
func podUID(left, segment string) string {
	for ; ; left, segment = split(left) {
		if uid := parsePodUID(segment); uid != "" || left == "" {
			return uid
		}
	}
}

// parsePodUID returns the UID of the pod that a segment names:
//
//	pod<uid>
//	kubepods-burstable-pod<uid, _ for ->.slice
//
// The second may be followed by a container. A UID is a GUID or, of a static pod,
// 32 digits.
func parsePodUID(segment string) string {
	segment, _, _ = strings.Cut(segment, ":")
	uid, ok := strings.CutPrefix(segment, "pod")
	if !ok {
		name, isSlice := strings.CutSuffix(segment, ".slice")
		i := strings.LastIndex(name, "-pod")
		if !isSlice || i < 0 {
			return ""
		}
		uid = name[i+len("-pod"):]
	}
	switch {
	case len(uid) == 32 && isHex(uid):
		return uid
	case len(uid) == 36 && isGUID(uid):
		return strings.ReplaceAll(uid, "_", "-")
	}
	return ""
}

func cutAround(s, prefix, suffix string) (string, bool) {
	s, hasPrefix := strings.CutPrefix(s, prefix)
	s, hasSuffix := strings.CutSuffix(s, suffix)
	return s, hasPrefix && hasSuffix
}

// unescape undoes the escapes of systemd that stand for a hyphen.
func unescape(name string) string { return strings.ReplaceAll(name, `\x2d`, "-") }

// isGUID reports whether s is hexadecimal digits in groups of 8, 4, 4, 4 and 12, or
// 4 as Garden has them too.
func isGUID(s string) bool {
	if len(s) != 36 && len(s) != 28 {
		return false
	}
	for i := range len(s) {
		switch i {
		case 8, 13, 18, 23:
			if s[i] != '-' && s[i] != '_' {
				return false
			}
		default:
			if !isHexDigit(s[i]) {
				return false
			}
		}
	}
	return true
}

func isHex(s string) bool {
	for i := range len(s) {
		if !isHexDigit(s[i]) {
			return false
		}
	}
	return true
}

func isHexDigit(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
