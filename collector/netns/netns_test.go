package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"timewait_exporter/collector/owner"
)

// machine is a proc file system with processes, the host's PID 1 and 2 among them.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	m := machine{t, t.TempDir()}
	m.run(1, "host", "/init.scope")
	m.run(2, "host", "/")
	m.write("proc/2/stat", "2 (kthreadd) S 0 0 0 0 -1 2129984"+strings.Repeat(" 0", 12)+" 0"+strings.Repeat(" 0", 30)+"\n")
	return m
}

func (m machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// run starts a process in a network namespace and a cgroup. It did when the machine had
// been up for so many ticks; or just now, with a later one than now.
func (m machine) run(pid int, namespace, cgroup string, started ...uint64) {
	m.t.Helper()
	at := append(started, 0)[0]
	dir := filepath.Join("proc", strconv.Itoa(pid))
	m.write(filepath.Join(dir, "cgroup"), "0::"+cgroup+"\n")
	m.write(filepath.Join(dir, "stat"), fmt.Sprintf("%d (x) S 1 0 0 0 -1 0%s %d%s\n", pid, strings.Repeat(" 0", 12), at, strings.Repeat(" 0", 30)))
	table := filepath.Join(m.root, "namespaces", namespace)
	if _, err := os.Stat(table); err != nil {
		m.write(filepath.Join("namespaces", namespace), "")
	}
	m.write(filepath.Join(dir, "net/x"), "")
	if err := os.Link(table, filepath.Join(m.root, dir, "net/tcp")); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) kill(pid int) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.root, "proc", strconv.Itoa(pid))); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) inode(namespace string) uint64 {
	m.t.Helper()
	inode, err := tcpInode(0, filepath.Join(m.root, "namespaces", namespace))
	if err != nil {
		m.t.Fatal(err)
	}
	return inode
}

func (m machine) finder() *Finder {
	m.t.Helper()
	f, err := New(Options{Proc: filepath.Join(m.root, "proc"), PodLogs: filepath.Join(m.root, "log"), Names: filepath.Join(m.root, "netns")})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(f.Close)
	return f
}

// find wants the namespaces to have these names, and returns them.
func find(t *testing.T, f *Finder, want ...string) []*Namespace {
	t.Helper()
	found, err := f.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range found.Namespaces {
		names = append(names, n.Name)
		if !n.Is() {
			t.Errorf("%s is not open", n.Name)
		}
	}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("found\n%q, want\n%q", names, want)
	}
	return found.Namespaces
}

// TestNames has a process in each kind of cgroup.
func TestNames(t *testing.T) {
	const (
		id     = "63425c4a2f1d0b6c8e9f7a5b3c1d2e4f60718293a4b5c6d7e8f9012345678abc"
		uid    = "8712f785-1a3e-41ec-a00b-e2dcc77431cb"
		uid_   = "8712f785_1a3e_41ec_a00b_e2dcc77431cb"
		static = "9729a196c4723b60ab401eaff722982d"
		slice  = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uid_ + ".slice/"
	)
	f := func(cgroup, want string) {
		t.Helper()
		m := newMachine(t)
		m.run(7, "x", cgroup)
		if want == "" {
			want = fmt.Sprintf("net:%d", m.inode("x"))
		}
		find(t, m.finder(), "host", want)
	}
	f("/docker/"+id, "docker:63425c4a2f1d")
	f("/system.slice/docker-"+id+".scope", "docker:63425c4a2f1d")
	f("/system.slice/docker-"+id+".scope/system.slice/containerd.service", "docker:63425c4a2f1d")
	f("/"+id, "container:63425c4a2f1d")
	f("/kubepods/burstable/pod"+uid+"/"+id, "pod:"+uid)
	f("/kubepods/pod"+uid+"/"+id, "pod:"+uid)
	f("/kubepods/besteffort/pod"+uid+"/"+id+"/kube-proxy", "pod:"+uid)
	f("/kubepods/burstable/pod"+static+"/"+id, "pod:"+static)
	f(slice+"docker-"+id+".scope", "pod:"+uid)
	f(slice+"cri-containerd-"+id+".scope", "pod:"+uid)
	f("/system.slice/containerd.service/kubepods-burstable-pod"+uid_+".slice:cri-containerd:"+id, "pod:"+uid)
	f("/kubepods/pod"+uid+"/crio-"+id, "pod:"+uid)
	f(slice+"crio-"+id+".scope/container", "pod:"+uid)
	f("/system.slice/crio-conmon-"+id+".scope", "")
	f("/docker/"+id+"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod"+uid_+".slice/cri-containerd-"+id+".scope", "pod:"+uid)
	f("/system.slice/docker-"+id+".scope"+slice+"docker-"+id+".scope", "pod:"+uid)
	f("/../../pode039200acb850c82bb901653cc38ff6e/"+id, "pod:e039200acb850c82bb901653cc38ff6e")
	f("/../cri-containerd-"+id+".scope", "containerd:63425c4a2f1d")
	f("/machine.slice/libpod-"+id+".scope/container", "podman:63425c4a2f1d")
	f("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-"+id+".scope/container", "podman:63425c4a2f1d")
	f("/libpod_parent/libpod-"+id, "podman:63425c4a2f1d")
	f("/libpod_parent/conmon", "")
	f("/lxc.payload.web", "lxc:web")
	f("/lxc/102/ns", "lxc:102")
	f("/lxc.monitor.web", "")
	f("/machine.slice/systemd-nspawn@build.service/payload", "nspawn:build")
	f(`/machine.slice/machine-qemu\x2d1\x2dopnsense.scope/libvirt/emulator`, "vm:opnsense")
	f("/qemu.slice/101.scope", "vm:101")
	f("/ecs/5ea3a3b8a5a94c7d8b1c7c0d9e8f7a6b/"+id, "ecs:63425c4a2f1d")
	f("/garden/6f265890-5165-7fab-6b52-18d1c0ffee00", "garden:6f265890-5165-7fab-6b52-18d1c0ffee00")
	f("/nomad.slice/share.slice/0e5c2b1a-7d3f-4b6e-9c8d-1a2b3c4d5e6f.web.scope", "nomad:0e5c2b1a-7d3f-4b6e-9c8d-1a2b3c4d5e6f.web")
	f("/kubepods/burstable/pod"+uid, "pod:"+uid) // gVisor
	f("/kata_overhead/"+id, "kata:63425c4a2f1d")
	f("/podruntime/kubelet", "kubelet")
	f("/system.slice/nginx.service", "nginx.service")
	f("/system.slice/system-postgresql.slice/postgresql@9.4-main.service", "postgresql@9.4-main.service")
	f("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "foo.service")
	f("/user.slice/user-0.slice/session-3.scope", "session-3.scope")
	f("/system.slice/foo.socket", "foo.socket")
	f("/", "")
}

// TestPod has a pod of several containers that share a namespace, and names of both in
// the kubelet's logs, or not yet.
func TestPod(t *testing.T) {
	const uid = "8712f785-1a3e-41ec-a00b-e2dcc77431cb"
	in := func(container string) string {
		return "/kubepods/pod" + uid + "/" + strings.Repeat(container, 64)
	}
	m := newMachine(t)
	m.run(10, "pod", in("a")) // its sandbox
	m.run(11, "other", "/kubepods/podffff1111-1a3e-41ec-a00b-e2dcc77431cb/"+strings.Repeat("d", 64))
	m.write("log/pods/shop_web-0_"+uid+"/app/0.log", "")
	f := m.finder()
	names := []string{"host", "pod:ffff1111-1a3e-41ec-a00b-e2dcc77431cb", "shop/web-0"}
	wantContainer := func(name, digit string) {
		t.Helper()
		o := find(t, f, names...)[2].Owner
		want := owner.Owner{Kind: owner.KindPod, Namespace: "shop", Pod: "web-0", PodUID: uid, Container: name, ContainerID: strings.Repeat(digit, 64)}
		if o != want {
			t.Errorf("the owner is\n%+v, want\n%+v", o, want)
		}
	}
	wantContainer("", "a")

	m.run(20, "pod", in("b"))
	m.write("log/containers/web-0_shop_app-"+strings.Repeat("b", 64)+".log", "")
	wantContainer("app", "b")
	m.run(21, "pod", in("c"))
	m.write("log/containers/web-0_shop_sidecar-"+strings.Repeat("c", 64)+".log", "")
	wantContainer("", "")

	// The name that was given first stays, whatever is known later.
	m.write("log/pods/shop_late_ffff1111-1a3e-41ec-a00b-e2dcc77431cb/app/0.log", "")
	m.run(22, "other", "/kubepods/podffff1111-1a3e-41ec-a00b-e2dcc77431cb/"+strings.Repeat("e", 64))
	if o := find(t, f, names...)[1].Owner; o.Pod != "late" {
		t.Errorf("its owner is %+v", o)
	}
}

// TestSame has processes and namespaces come, go and take each other's numbers.
func TestSame(t *testing.T) {
	const never = 1 << 60 // ticks: later than the last Find
	m := newMachine(t)
	m.run(10, "a", "/system.slice/a.service")
	m.run(11, "a", "/system.slice/a.service")
	m.run(12, "b", "/system.slice/b.service")
	f := m.finder()
	names := []string{"a.service", "b.service", "host"}
	before := find(t, f, names...)
	f.began = 100 // processes that started earlier were there

	// One of two processes has ended, and PID 12 is used again in the other namespace.
	m.kill(10)
	m.kill(12)
	m.run(12, "a", "/system.slice/b.service", never)
	m.run(13, "b", "/system.slice/b.service", never)
	after := find(t, f, names...)
	f.began = 100
	if after[0] != before[0] || after[2] != before[2] {
		t.Error("a namespace that had a process all the time is taken for another one")
	}
	if after[1] == before[1] {
		t.Error("a namespace without a process of before is taken for the same")
	}

	// The inode of a namespace that has ended is another one's at once, even with a process of
	// the same PID.
	m.kill(11)
	m.kill(12)
	m.run(11, "a", "/system.slice/c.service", never)
	find(t, f, "b.service", "c.service", "host")

	// All have ended.
	m.kill(11)
	m.kill(13)
	find(t, f, "host")
}

// TestReopen reads a namespace through another process when one has ended or has gone to
// another namespace since.
func TestReopen(t *testing.T) {
	m := newMachine(t)
	for pid := 10; pid < 13; pid++ {
		m.run(pid, "a", "/system.slice/a.service")
	}
	n := find(t, m.finder(), "a.service", "host")[0]
	m.kill(10)
	if n.Is() || !n.Reopen() || !n.Is() {
		t.Error("10 has ended, and 11 is not found")
	}
	m.kill(11)
	m.run(11, "host", "/")
	if !n.Reopen() {
		t.Error("11 is elsewhere, and 12 is not found")
	}
	m.kill(12)
	if n.Is() || n.Reopen() {
		t.Error("it is there without a process")
	}
}

// TestWhose asks several processes of a namespace: a container counts before a unit, and
// then the oldest one.
func TestWhose(t *testing.T) {
	m := newMachine(t)
	m.run(10, "a", "/system.slice/containerd.service", 1)
	m.run(11, "a", "/docker/"+strings.Repeat("1", 64), 30)
	m.run(12, "a", "/docker/"+strings.Repeat("2", 64), 20)
	find(t, m.finder(), "docker:222222222222", "host")
}

// TestClash has names that are not unique, those of ip-netns(8), and a name that is taken
// when another namespace would have it too.
func TestClash(t *testing.T) {
	m := newMachine(t)
	m.run(10, "a", "/user.slice/user-0.slice/session-3.scope")
	f := m.finder()
	find(t, f, "host", "session-3.scope")
	m.run(11, "b", "/user.slice/user-0.slice/session-3.scope")
	m.run(12, "c", "/user.slice/user-0.slice/session-4.scope")
	m.run(13, "d", "/user.slice/user-0.slice/session-4.scope")
	m.run(14, "e", "/")
	m.write("proc/14/ns/x", "")
	m.write("netns/other", "")
	m.write("netns/blue", "")
	if err := os.Link(filepath.Join(m.root, "netns/blue"), filepath.Join(m.root, "proc/14/ns/net")); err != nil {
		t.Fatal(err)
	}
	at := func(scope, namespace string) string { return fmt.Sprintf("%s@%d", scope, m.inode(namespace)) }
	for range 2 {
		find(t, f, "host", "netns:blue", "session-3.scope", at("session-3.scope", "b"), at("session-4.scope", "c"), at("session-4.scope", "d"))
	}
}

// TestHidden has processes that may not be looked at, and a host that can't be seen.
func TestHidden(t *testing.T) {
	m := newMachine(t)
	m.run(10, "a", "/system.slice/a.service")
	visible := func(want bool, names ...string) {
		t.Helper()
		f := m.finder()
		find(t, f, names...)
		if found, err := f.Find(t.Context()); err != nil || found.HostVisible != want {
			t.Errorf("the host is visible: %v, %v; want %v", found.HostVisible, err, want)
		}
	}
	visible(true, "a.service", "host")
	m.kill(2)
	m.run(2, "a", "/system.slice/a.service") // in a PID namespace it is any process
	visible(false, "a.service", "host")
	m.kill(1)
	visible(false, "a.service")
	if err := os.Remove(filepath.Join(m.root, "proc/10/net/tcp")); err != nil {
		t.Fatal(err)
	}
	visible(false, "a.service")
}

// TestFindThisKernel finds this process's own namespace.
func TestFindThisKernel(t *testing.T) {
	f, err := New(Options{Proc: "/proc"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own, err := tcpInode(0, "/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	found, err := f.Find(t.Context())
	if err != nil || !slices.ContainsFunc(found.Namespaces, func(n *Namespace) bool { return n.Inode == own && n.Is() }) {
		t.Errorf("found %d namespaces, and not this process's: %v", len(found.Namespaces), err)
	}
}
