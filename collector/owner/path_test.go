package owner

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/procfs"
)

const (
	id1    = "63425c4a2f1d0b6c8e9f7a5b3c1d2e4f60718293a4b5c6d7e8f9012345678abc"
	id2    = "ba7b10d15d16a0e3d3b7a5d8f2c4e6a8b0c2d4e6f8091a2b3c4d5e6f70819abc"
	podA   = "8712f785-1a3e-41ec-a00b-e2dcc77431cb"
	podA_  = "8712f785_1a3e_41ec_a00b_e2dcc77431cb"
	static = "9729a196c4723b60ab401eaff722982d"
	alloc  = "0e5c2b1a-7d3f-4b6e-9c8d-1a2b3c4d5e6f"
)

func unit(name string) Owner    { return Owner{Kind: KindUnit, Unit: name} }
func session(name string) Owner { return Owner{Kind: KindSession, Unit: name} }
func cgroup(path string) Owner  { return Owner{Kind: KindCgroup, Path: path} }
func byID(runtime, id string) Owner {
	return Owner{Kind: KindContainer, Runtime: runtime, ContainerID: id}
}
func byName(runtime, name string) Owner {
	return Owner{Kind: KindContainer, Runtime: runtime, Container: name}
}
func inPod(runtime, uid, id string) Owner {
	return Owner{Kind: KindPod, Runtime: runtime, PodUID: uid, ContainerID: id}
}
func vm(runtime, name string) Owner { return Owner{Kind: KindVM, Runtime: runtime, Container: name} }

// samples are paths that runtimes and systemd make.
func samples(f func(path, label string, want Owner)) {
	short1, short2 := id1[:12], id2[:12]

	// Docker.
	f("/docker/"+id1, "docker:"+short1, byID("docker", id1))
	f("/system.slice/docker-"+id2+".scope", "docker:"+short2, byID("docker", id2))
	f("/system.slice/docker-"+id2+".scope/system.slice/containerd.service", "docker:"+short2, byID("docker", id2))
	f("/system.slice/docker-"+id2+".scope/init.scope", "docker:"+short2, byID("docker", id2))
	f("/"+id1, "container:"+short1, byID("", id1))

	// Kubernetes, cgroupfs driver.
	for _, qos := range []string{"/burstable", "/besteffort", ""} {
		f("/kubepods"+qos+"/pod"+podA+"/"+id1, "pod:"+podA+"/"+short1, inPod("", podA, id1))
	}
	f("/kubepods/besteffort/pod"+podA+"/"+id1+"/kube-proxy", "pod:"+podA+"/"+short1, inPod("", podA, id1))
	f("/kubepods/burstable/pod"+static+"/"+id1, "pod:"+static+"/"+short1, inPod("", static, id1))
	f("/kubepods/pod"+podA+"/crio-"+id1, "pod:"+podA+"/"+short1, inPod("crio", podA, id1))

	// Kubernetes, systemd driver.
	slice := "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + podA_ + ".slice/"
	f(slice+"docker-"+id1+".scope", "pod:"+podA+"/"+short1, inPod("docker", podA, id1))
	f(slice+"cri-containerd-"+id1+".scope", "pod:"+podA+"/"+short1, inPod("containerd", podA, id1))
	f(slice+"cri-containerd-"+id1, "pod:"+podA+"/"+short1, inPod("containerd", podA, id1))
	f(slice+"crio-"+id1+".scope", "pod:"+podA+"/"+short1, inPod("crio", podA, id1))
	f(slice+"crio-"+id1+".scope/container", "pod:"+podA+"/"+short1, inPod("crio", podA, id1))
	f(slice+"crio-conmon-"+id1+".scope", "pod:"+podA, inPod("", podA, ""))
	f("/system.slice/crio-conmon-"+id1+".scope", "/system.slice/crio-conmon-"+id1+".scope", cgroup("/system.slice/crio-conmon-"+id1+".scope"))
	f("/kubepods.slice/kubepods-pod"+podA_+".slice/crio-"+id1+".scope", "pod:"+podA+"/"+short1, inPod("crio", podA, id1))
	for _, parent := range []string{"system.slice", "podruntime.slice"} {
		f("/"+parent+"/containerd.service/kubepods-burstable-pod"+podA_+".slice:cri-containerd:"+id1, "pod:"+podA+"/"+short1, inPod("containerd", podA, id1))
	}

	// Nodes in containers: kind and minikube.
	f("/docker/"+id2+"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod"+podA_+".slice/cri-containerd-"+id1+".scope",
		"pod:"+podA+"/"+short1, inPod("containerd", podA, id1))
	f("/system.slice/docker-"+id2+".scope/kubelet/kubepods/burstable/pod"+static+"/"+id1, "pod:"+static+"/"+short1, inPod("", static, id1))
	f("/system.slice/docker-"+id2+".scope"+slice+"docker-"+id1+".scope", "pod:"+podA+"/"+short1, inPod("docker", podA, id1))

	// From inside of a cgroup namespace.
	f("/../../pode039200acb850c82bb901653cc38ff6e/"+id1, "pod:e039200acb850c82bb901653cc38ff6e/"+short1, inPod("", "e039200acb850c82bb901653cc38ff6e", id1))
	f("/../cri-containerd-"+id1+".scope", "containerd:"+short1, byID("containerd", id1))
	f("/../../../system.slice/nginx.service", "nginx.service", unit("nginx.service"))

	// Podman.
	f("/machine.slice/libpod-"+id1+".scope/container", "podman:"+short1, byID("podman", id1))
	f("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-"+id1+".scope/container", "podman:"+short1, byID("podman", id1))
	f("/libpod_parent/libpod-"+id1, "podman:"+short1, byID("podman", id1))
	f("/libpod_parent/conmon", "/libpod_parent/conmon", cgroup("/libpod_parent/conmon"))
	f("/machine.slice/libpod-conmon-"+id1+".scope", "/machine.slice/libpod-conmon-"+id1+".scope", cgroup("/machine.slice/libpod-conmon-"+id1+".scope"))

	// System containers and virtual machines.
	f("/lxc.payload.web", "lxc:web", byName("lxc", "web"))
	f("/lxc.payload.web/system.slice/nginx.service", "lxc:web", byName("lxc", "web"))
	f("/lxc/web", "lxc:web", byName("lxc", "web"))
	f("/lxc/102/ns", "lxc:102", byName("lxc", "102"))
	f("/lxc.monitor.web", "/lxc.monitor.web", cgroup("/lxc.monitor.web"))
	f("/machine.slice/systemd-nspawn@build.service/payload", "nspawn:build", byName("nspawn", "build"))
	f(`/machine.slice/systemd-nspawn@build\x2dbox.service/payload/system.slice/a.service`, "nspawn:build-box", byName("nspawn", "build-box"))
	f(`/machine.slice/machine-build\x2dbox.scope/payload`, "nspawn:build-box", byName("nspawn", "build-box"))
	f(`/machine.slice/machine-qemu\x2d1\x2dopnsense.scope/libvirt/emulator`, "vm:opnsense", vm("libvirt", "opnsense"))
	f(`/machine.slice/machine-qemu\x2d12\x2dmy\x2dvm.scope`, "vm:my-vm", vm("libvirt", "my-vm"))
	f(`/machine.slice/machine-lxc\x2d4242\x2dbox.scope`, "vm:box", vm("libvirt", "box"))
	f("/machine/machine_opnsense.libvirt-qemu", "vm:opnsense", vm("libvirt", "opnsense"))
	f("/qemu.slice/101.scope", "vm:101", vm("qemu", "101"))

	// Schedulers.
	f("/ecs/5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b/"+id1, "ecs:"+short1, byID("ecs", id1))
	f("/ecs/5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b-1234567890", "ecs:5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b-1234567890", byID("ecs", "5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b-1234567890"))
	f("/ecstasks.slice/ecstasks-5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b.slice/docker-"+id1+".scope", "ecs:"+short1, byID("ecs", id1))
	f("/garden/6f265890-5165-7fab-6b52-18d1c0ffee00", "garden:6f265890-5165-7fab-6b52-18d1c0ffee00", byName("garden", "6f265890-5165-7fab-6b52-18d1c0ffee00"))
	f("/system.slice/garden.service/garden/6f265890-5165-7fab-6b52-18d1", "garden:6f265890-5165-7fab-6b52-18d1", byName("garden", "6f265890-5165-7fab-6b52-18d1"))
	f("/nomad.slice/share.slice/"+alloc+".web.scope", "nomad:"+alloc+".web", Owner{Kind: KindContainer, Runtime: "nomad", Container: "web", ContainerID: alloc})

	// Sandboxes: gVisor has no cgroup for the container, Kata one of its own.
	f("/kubepods/burstable/pod"+podA, "pod:"+podA, inPod("", podA, ""))
	f("/kata_overhead/"+id1, "kata:"+short1, byID("kata", id1))
	f("/kubepods/pod"+podA+"/kata_"+id1, "pod:"+podA+"/"+short1, inPod("kata", podA, id1))

	// Talos.
	f("/system/apid", "apid", unit("apid"))
	f("/podruntime/kubelet", "kubelet", unit("kubelet"))
	f("/init", "init", unit("init"))

	// systemd.
	for _, slice := range []string{"system", "runtime", "reserved", "kube", "azure", "podruntime"} {
		f("/"+slice+".slice/nginx.service", "nginx.service", unit("nginx.service"))
	}
	f("/system.slice/nginx.service/worker", "nginx.service", unit("nginx.service"))
	f("/system.slice/system-postgresql.slice/postgresql@9.4-main.service", "postgresql@9.4-main.service", unit("postgresql@9.4-main.service"))
	f("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "foo.service", unit("foo.service"))
	f("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service", unit("user@1000.service"))
	f("/user.slice/user-0.slice/session-3.scope", "session-3.scope", session("session-3.scope"))
	f("/system.slice/run-r2f3e4d5c6b7a49788796a5b4c3d2e1f0.scope", "run-r2f3e4d5c6b7a49788796a5b4c3d2e1f0.scope", unit("run-r2f3e4d5c6b7a49788796a5b4c3d2e1f0.scope"))
	f("/system.slice/foo.socket", "foo.socket", unit("foo.socket"))
	f(`/system.slice/system-foo\x2dbar.slice/foo\x2dbar@x.service`, `foo\x2dbar@x.service`, unit(`foo\x2dbar@x.service`))
	f("/system.slice/_cpu.service", "cpu.service", unit("cpu.service"))
	f("/system.slice/var-lib-data.mount", "/system.slice/var-lib-data.mount", cgroup("/system.slice/var-lib-data.mount"))
	f("/init.scope", "init.scope", unit("init.scope"))
	f("/", "/", Owner{Kind: KindRoot})
	f("/build/42", "/build/42", cgroup("/build/42"))
}

func TestParse(t *testing.T) {
	samples(func(path, label string, want Owner) {
		if got := Parse(path); got != want {
			t.Errorf("%s\n got %+v\nwant %+v", path, got, want)
		} else if got.Label() != label {
			t.Errorf("%s: label %q, want %q", path, got.Label(), label)
		}
		if got := Parse(path + " (deleted)"); got != want {
			t.Errorf("%s (deleted)\n got %+v\nwant %+v", path, got, want)
		}
		if got := Parse("/../.." + path); got != want && path != "/" {
			t.Errorf("/../..%s\n got %+v\nwant %+v", path, got, want)
		}
	})
}

// TestParseLookalikes has names that are like those of containers.
func TestParseLookalikes(t *testing.T) {
	f := func(path string, want Owner) {
		t.Helper()
		if got := Parse(path); got != want {
			t.Errorf("%.200q\n got %+v\nwant %+v", path, got, want)
		}
	}
	unknown := Owner{Kind: KindUnknown}
	for _, path := range []string{"", "nginx.service", "/..", "/../..", "/../", "/.. (deleted)", " (deleted)"} {
		f(path, unknown)
	}
	f("/...", cgroup("/..."))
	f("/..hidden", cgroup("/..hidden"))
	f("//", cgroup("//"))
	f("/"+id1[1:], cgroup("/"+id1[1:]))
	f("/0"+id1, cgroup("/0"+id1))
	f("/docker/"+strings.ToUpper(id1), cgroup("/docker/"+strings.ToUpper(id1)))
	f("/docker/docker/"+id1, byID("docker", id1))
	f("/a/isulad-"+id1, byID("", id1))
	f("/system.slice/backup-"+id1+".service", unit("backup-"+id1+".service"))
	f("/system.slice/runner.service/"+alloc, unit("runner.service")) // not Garden's
	f("/kubepods/pod"+podA+"x/"+id1, byID("", id1))
	f("/kubepods/pod"+strings.Repeat("g", 32)+"/"+id1, byID("", id1))
	f("/machine.slice/machine-libpod_pod_"+id2+".slice/libpod-"+id1+".scope", byID("podman", id1))
	f("/machine.slice/machine-.scope", unit("machine-.scope"))
	f("/machine.slice/machine.slice", cgroup("/machine.slice/machine.slice"))
	f("/lxc.payload.", cgroup("/lxc.payload."))
	f("/lxc", cgroup("/lxc"))
	f("/qemu.slice/a.scope", unit("a.scope"))
	f("/nomad.slice/share.slice/"+alloc+".scope", unit(alloc+".scope"))
	f("/system/a/b", cgroup("/system/a/b"))
	f("/system/other", cgroup("/system/other"))
	f("/podruntime/unknown", cgroup("/podruntime/unknown"))
	f("/.service", unit(".service"))
}

// TestParseHostile has names that a user may give to cgroups of their own.
func TestParseHostile(t *testing.T) {
	f := func(path, label string) {
		t.Helper()
		o := Parse(path)
		if got := o.Label(); got != label {
			t.Errorf("%.200q: label %.200q, want %.200q", path, got, label)
		}
	}
	f(`/a"b'c\`, `/a"b'c\`)
	f("/a\rb", "/a\rb")
	f("/system.slice/\xff\xfe.service", "\uFFFD.service")
	f("/a/\xff", "/a/\uFFFD")
	f("/lxc/\xc3", "lxc:\uFFFD")
	f("/x (deleted) (deleted)", "/x (deleted)")
	long := strings.Repeat("/"+strings.Repeat("x", 250), 16)
	f(long, long[:255])
	f(long+"/a.service", "a.service")
	f(long+"/docker-"+id1+".scope", "docker:"+id1[:12])
	f("/"+strings.Repeat("ä", 400), "/"+strings.Repeat("ä", 127)) // whole characters
	f("/"+strings.Repeat("€", 400), "/"+strings.Repeat("€", 84))
}

// TestParseAllocations: only a path that has to be changed is copied.
func TestParseAllocations(t *testing.T) {
	samples(func(path, _ string, _ Owner) {
		limit := 0.0
		if strings.Contains(path, podA_) || strings.Contains(path, `\x2d`) {
			limit = 1
		}
		if n := testing.AllocsPerRun(10, func() { Parse(path) }); n > limit {
			t.Errorf("%s: %v allocations, want at most %v", path, n, limit)
		}
	})
}

func TestOfProcess(t *testing.T) {
	v1 := func(id int, controller, path string) procfs.Cgroup {
		return procfs.Cgroup{HierarchyID: id, Controllers: []string{controller}, Path: path}
	}
	v2 := func(path string) procfs.Cgroup { return procfs.Cgroup{Path: path} }
	f := func(want string, cgroups ...procfs.Cgroup) {
		t.Helper()
		o := OfProcess(cgroups)
		if got := o.Label(); got != want {
			t.Errorf("%+v: %q, want %q", cgroups, got, want)
		}
	}
	pod := "/kubepods/pod" + podA + "/" + id1
	f("unknown")
	f("nginx.service", v2("/system.slice/nginx.service"))
	f("nginx.service", v1(4, "cpu", "/"), v1(1, "name=systemd", "/system.slice/nginx.service"))
	f("docker:"+id1[:12], v1(4, "cpu", "/docker/"+id1), v1(1, "name=systemd", "/system.slice/docker.service"), v2("/system.slice/docker.service"))
	f("pod:"+podA+"/"+id1[:12], v1(1, "name=systemd", "/docker/"+id2), v1(4, "memory", pod))
	f("/", v1(4, "cpu", "/"), v2("/"))
	f("a.service", v2("/system.slice/a.service"), v1(1, "name=systemd", "/system.slice/b.service"))
	f("unknown", v1(9, "devices", "/docker/"+id1)) // tells nothing of a hierarchy that is not asked
}

func FuzzParse(f *testing.F) {
	samples(func(path, _ string, _ Owner) { f.Add(path) })
	f.Add("/\xff/..")
	f.Fuzz(func(t *testing.T, path string) {
		o := Parse(path)
		label := o.Label()
		if label == "" || !utf8.ValidString(label) || o.Kind == "" {
			t.Errorf("%q: label %q of %+v", path, label, o)
		}
		if len(label) > 3*len(path)+len("container:")+len(Unknown) {
			t.Errorf("%q: label %q is longer than the path", path, label)
		}
		if again := Parse(path + " (deleted)"); again != o && !strings.HasSuffix(path, " (deleted)") {
			t.Errorf("%q: deleted it is %+v, else %+v", path, again, o)
		}
		if strings.HasPrefix(path, "/") && o.Kind != KindRoot {
			if again := Parse("/.." + path); again != o {
				t.Errorf("%q: from a cgroup namespace it is %+v, else %+v", path, again, o)
			}
		}
		if (label == Unknown) != (o.Kind == KindUnknown) || label == Other {
			t.Errorf("%q: label %q of kind %s", path, label, o.Kind)
		}
	})
}
