// Package image builds the container image with podman, which knows the words of
// docker build and docker run, and runs it the way the README says.
package image

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../../..") }

func TestImage(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "podman", "runc")
	p := newPodman(t)
	p.makeBase(t)

	t.Run(runtime.GOARCH, func(t *testing.T) {
		p.build(t, "native", "linux/"+runtime.GOARCH)
		p.checkConfig(t, "native", runtime.GOARCH)
		p.checkFiles(t, "native", map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH])
		for _, source := range []string{"procfs", "netlink"} {
			t.Run(source, func(t *testing.T) { p.checkRun(t, "native", source) })
		}
		t.Run("namespaces", func(t *testing.T) { p.checkNamespaces(t, "native") })
	})
	t.Run("arm64", func(t *testing.T) {
		p.build(t, "arm64", "linux/arm64")
		p.checkConfig(t, "arm64", "arm64")
		p.checkFiles(t, "arm64", elf.EM_AARCH64)
	})
}

// podman is one with a storage of its own.
type podman struct {
	flags []string
}

func newPodman(t *testing.T) podman {
	dir := t.TempDir()
	// podman's defaults are more than a root without CAP_SYS_RESOURCE may set.
	config := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(config, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_CONF", config)
	p := podman{[]string{
		"--root=" + dir + "/root", "--runroot=" + dir + "/run", "--tmpdir=" + dir + "/tmp",
		// As on a machine without systemd. Of the runtimes, crun refuses to run where
		// both versions of cgroups are mounted.
		"--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc",
	}}
	t.Cleanup(func() {
		for _, args := range [][]string{{"pod", "rm", "--all", "--force"}, {"rm", "--all", "--force"}, {"image", "unmount", "--all"}} {
			if out, err := exec.Command("podman", append(p.flags, args...)...).CombinedOutput(); err != nil {
				t.Errorf("podman %s: %v\n%s", args, err, out)
			}
		}
	})
	return p
}

func (p podman) run(t *testing.T, args ...string) string {
	t.Helper()
	return host.Run(t, "", "podman", slices.Concat(p.flags, args)...)
}

// makeBase puts a stand-in where the build looks for its base image: this machine's
// shell and Go, which build mounts into it. It can't download anything.
func (p podman) makeBase(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"usr", "tmp", "goroot"} {
		if err := os.MkdirAll(filepath.Join(dir, "root", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, "root", name)); err != nil {
			t.Fatal(err)
		}
	}
	dockerfile := `FROM scratch
COPY root /
ENV PATH=/goroot/bin:/usr/bin GOPATH=/go GOCACHE=/gocache GOTOOLCHAIN=local GOPROXY=off
`
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	base := regexp.MustCompile(`(?m)^FROM .*(docker\.io/library/golang:\S+) AS`).FindStringSubmatch(host.Read(t, filepath.Join(host.Checkout(t), "Dockerfile")))
	if base == nil {
		t.Fatal("the Dockerfile builds from no image of Go")
	}
	p.run(t, "build", "--isolation=chroot", "--tag="+base[1], dir)
}

// build builds the checkout's Dockerfile, with the modules and the build cache of
// this machine.
func (p podman) build(t *testing.T, tag, platform string) {
	t.Helper()
	checkout := host.Checkout(t)
	host.Run(t, checkout, "go", "mod", "download")
	goEnv := strings.Fields(host.Run(t, checkout, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE"))
	p.run(t, "build", "--isolation=chroot", "--pull=never", "--platform="+platform, "--tag="+tag,
		"--volume=/usr:/usr:ro", "--volume="+goEnv[0]+":/goroot:ro",
		"--volume="+goEnv[1]+":/go/pkg/mod", "--volume="+goEnv[2]+":/gocache",
		"--build-arg=BUILDPLATFORM=linux/"+runtime.GOARCH, // docker knows it, podman 4.3 does not
		"--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc", checkout)
}

// checkConfig checks what an image says about itself: what runs as whom, and the
// labels of the OCI image specification.
func (p podman) checkConfig(t *testing.T, image, arch string) {
	t.Helper()
	got := p.run(t, "image", "inspect", image, "--format="+`{{.Architecture}}
{{with .Config}}{{.User}} {{.Entrypoint}} {{.Cmd}} {{.Volumes}} {{.ExposedPorts}}{{end}}
{{range $name, $value := .Labels}}{{if ne $name "io.buildah.version"}}{{$name}}={{$value}}
{{end}}{{end}}`)
	want := arch + `
65534:65534 [/timewait_exporter] [] map[] map[10793/tcp:{}]
org.opencontainers.image.description=Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports
org.opencontainers.image.licenses=Apache-2.0
org.opencontainers.image.revision=abc
org.opencontainers.image.title=timewait_exporter
org.opencontainers.image.version=1.2.3
`
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("the image says\n%swant\n%s", got, want)
	}
}

// checkFiles checks that an image holds the license and one static program that
// only root may change, and nothing else: no shell, no library.
func (p podman) checkFiles(t *testing.T, image string, machine elf.Machine) {
	t.Helper()
	root := strings.TrimSpace(p.run(t, "image", "mount", image))
	var files []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if stat, _ := info.Sys().(*syscall.Stat_t); stat.Uid != 0 || info.Mode().Perm()&0o002 != 0 {
			t.Errorf("%s: not only root may change it", path)
		}
		files = append(files, strings.TrimPrefix(path, root))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/LICENSE", "/timewait_exporter"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}

	host.CheckProgram(t, filepath.Join(root, "timewait_exporter"), elf.ELFCLASS64, machine)
}

// onUnified runs podman as on a machine that has no other cgroups than those of version 2: only these tell whose a socket is.
const onUnified = `mount --make-rprivate / && umount --lazy /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec podman "$@"`

// checkRun runs an image with every right taken away, scrapes it and ends it. With source procfs it has what the Dockerfile
// says of owners, and names its own container; without they are off.
func (p podman) checkRun(t *testing.T, image, source string) {
	owners := source == "procfs"
	listener, err := net.Listen("tcp", "127.0.0.1:0") // a socket of the host's to be seen
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	args := []string{"--name=" + source}
	if owners {
		// There are no limits of processes in cgroups that version 1 has too.
		args = append(args, "--pids-limit=0", "--pid=host", "--volume=/sys/fs/cgroup:/host/sys/fs/cgroup:ro")
	}
	args = append(args, image, "--web.listen-address=localhost:0", "--collector.listeners=10000", "--collector.source="+source)
	if owners {
		args = append(args, "--path.cgroupfs=/host/sys/fs/cgroup")
	}
	command := p.unprivileged(args...)
	if owners {
		command = exec.Command("unshare", append([]string{"--mount", "sh", "-c", onUnified}, command.Args...)...)
	}
	exporter := program.Start(t, command)
	address := exporter.Address(t)
	body := program.Get(t, "http://"+address+"/metrics")
	host.CheckMetrics(t, body, source)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body, "\n"+`tcp_listener_accept_queue{local_ip="127.0.0.1",local_port="`+port+`",netns="host"} 0`+"\n") {
		t.Errorf("it does not see the host's socket on port %s", port)
	}
	if build := regexp.MustCompile(`\ntimewait_exporter_build_info\{.*revision="abc",.*version="1\.2\.3"\} 1\n`); !build.MatchString(body) {
		t.Errorf("not %s in\n%s", build, body)
	}
	var id, pid string
	if _, err := fmt.Sscan(p.run(t, "inspect", "--format={{.Id}} {{.State.Pid}}", source), &id, &pid); err != nil {
		t.Fatal(err)
	}
	_, own, _ := net.SplitHostPort(address)
	for _, want := range []string{
		`tcp_listener_owner_info{local_ip="127.0.0.1",local_port="` + own + `",netns="host",owner="podman:` + id[:12] + `"} 1`,
		`tcp_owner_info{container="",container_id="` + id + `",kind="container",namespace="",owner="podman:` + id[:12] + `",pod="",pod_uid="",program="timewait_export",runtime="podman",unit=""} 1`,
		`tcp_owner_worst_process_max_fds{owner="podman:` + id[:12] + `",program="timewait_export"} 1024`,
	} {
		if strings.Contains(body, "\n"+want+"\n") != owners {
			t.Errorf("not as it should be: %s in\n%s", want, body)
		}
	}
	if says := strings.Contains(exporter.Log.String(), `msg="no owners of sockets"`); says == owners || strings.Contains(body, "\ntcp_owner_") != owners {
		t.Errorf("with owners %v the log says %q", owners, exporter.Log)
	}
	proc := "/proc/" + pid
	host.CheckRights(t, host.Read(t, proc+"/status"), "65534")
	if mounts := host.Read(t, proc+"/mounts"); !regexp.MustCompile(`(?m)^\S+ / \S+ ro,`).MatchString(mounts) {
		t.Errorf("the root is not read-only in\n%s", mounts)
	}

	exporter.Stop(t)
}

// unprivileged runs a container of the host's network with every right taken away.
func (p podman) unprivileged(args ...string) *exec.Cmd {
	return exec.Command("podman", slices.Concat(p.flags, []string{"run", "--rm",
		"--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}, args)...)
}

// checkNamespaces has containers with networks of their own told by name: two, and a pod
// of two with its sandbox, as a kubelet makes it.
func (p podman) checkNamespaces(t *testing.T, image string) {
	const (
		uid    = "8712f785-1a3e-41ec-a00b-e2dcc77431cb"
		listen = "--web.listen-address=localhost:0"
	)
	// What is to be said of each, and how many listeners of IPv4 it has.
	want := map[string]int{`container="",container_id="",namespace="shop",netns="shop/web",path="",pod="web",pod_uid="` + uid + `",sysctls="assumed",unit=""`: 2}
	for range 2 {
		id := strings.TrimSpace(p.run(t, "run", "--detach", "--network=none", image, listen))
		want[`container="",container_id="`+id+`",namespace="",netns="podman:`+id[:12]+`",path="",pod="",pod_uid="",sysctls="assumed",unit=""`] = 1
	}
	logs := t.TempDir()
	if err := os.Chmod(filepath.Dir(logs), 0o755); err != nil { // others may look into it, as into /var/log
		t.Fatal(err)
	}
	p.run(t, "pod", "create", "--name=web", "--network=none", "--cgroup-parent=/kubepods/burstable/pod"+uid, "--infra-image="+image, "--infra-command=/timewait_exporter")
	for _, name := range []string{"app", "proxy"} {
		id := strings.TrimSpace(p.run(t, "run", "--detach", "--pod=web", image, listen))
		for _, dir := range []string{"pods/shop_web_" + uid + "/" + name, "containers/web_shop_" + name + "-" + id + ".log"} {
			if err := os.MkdirAll(filepath.Join(logs, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}

	flags := []string{listen, "--collector.namespaces=all", "--collector.namespaces.budget=1s"}
	container := append([]string{"--volume=" + logs + ":/var/log:ro", image}, flags...)
	for from, command := range map[string]*exec.Cmd{
		"the host": exec.Command("setpriv", slices.Concat([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
			"--bounding-set=-all", "--no-new-privs", program.Path(), "--path.pod-logs=" + logs}, flags)...),
		"its PID namespace": p.unprivileged(append([]string{"--pid=host"}, container...)...),
		"its proc":          p.unprivileged(append(append([]string{"--volume=/proc:/host/proc:ro"}, container...), "--path.procfs=/host/proc")...),
	} {
		t.Run("from "+from, func(t *testing.T) {
			exporter := program.Start(t, command)
			address := exporter.Address(t)
			program.Eventually(t, func() error { // tables are read in turns
				page := program.Get(t, "http://"+address+"/metrics")
				for _, line := range []string{`timewait_exporter_host_visible 1`, `timewait_exporter_collector_success{collector="namespaces",netns="host"} 1`} {
					if !strings.Contains(page, "\n"+line+"\n") {
						t.Fatalf("no %s in\n%s", line, page)
					}
				}
				for info, listeners := range want {
					if !strings.Contains(page, "\ntimewait_exporter_netns_info{"+info+"} 1\n") {
						t.Fatalf("no %s in\n%s", info, page)
					}
					name := regexp.MustCompile(`netns="[^"]+"`).FindString(info)
					if got := fmt.Sprintf("\n"+`tcp_connections{direction="inbound",family="ipv4",%s,state="listen"} %d`+"\n", name, listeners); !strings.Contains(page, got) {
						return fmt.Errorf("no %s in\n%s", got, page)
					}
				}
				return nil
			})
			exporter.Stop(t)
		})
	}
}
