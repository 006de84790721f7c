package collector

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
)

// readKernel returns the metrics of all numbers of the kernel below root, and the errors
// of the parts that fail.
func readKernel(t *testing.T, root string) (page, map[string]error) {
	t.Helper()
	ns, node := &snapshot.Namespace{Name: "test", Kernel: make(kernelstat.Numbers)}, new(snapshot.Node)
	failed := make(map[string]error)
	cfg := Config{ProcRoot: root, Namespace: Namespace{Dir: filepath.Join(root, "net"), OwnSysctls: true}}
	for _, part := range kernelParts(cfg) {
		read, err := part.read(t.Context())
		maps.Copy(ns.Kernel, read)
		if err != nil {
			failed[part.name] = err
		}
	}
	node.Kernel = ns.Kernel
	out := samples{netns: ns.Name}
	out.addKernel(ns.Kernel, false)
	out.addKernel(node.Kernel, true)
	return gather(t, constant(out.all)), failed
}

// TestKernelMemory has what the kernel counts in pages, up to limits that only 64 bits
// have room for. All other numbers are in the page of the machine every_number.
func TestKernelMemory(t *testing.T) {
	p, _ := readKernel(t, writeProc(t))
	size := float64(os.Getpagesize())
	p.want(t, 11*size, "tcp_memory_bytes")
	p.want(t, 10*size, "tcp_memory_limit_bytes", "level", "low")
	p.want(t, (1<<32)*size, "tcp_memory_limit_bytes", "level", "pressure")
	p.want(t, (1<<64-1)*size, "tcp_memory_limit_bytes", "level", "high")
}

// TestKernelFiles has each file missing, which is a kernel that does not have it, and
// broken, for which its part fails and says where: the metrics of all others are the same.
// All that may be wrong in one is in kernelstat.
func TestKernelFiles(t *testing.T) {
	f := func(name string, breakFile func(path string) error, parts ...string) {
		t.Helper()
		root := writeProc(t)
		path := filepath.Join(root, name)
		all, _ := readKernel(t, root)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		others, failed := readKernel(t, root)
		if len(failed) > 0 || len(others) == 0 || len(others) >= len(all) {
			t.Errorf("without %s: %v, %d metrics of %d", name, failed, len(others), len(all))
		}
		if err := breakFile(path); err != nil {
			t.Fatal(err)
		}
		withoutCapabilities(t, func() {
			p, failed := readKernel(t, root)
			if len(failed) != 1 {
				t.Errorf("%s: %v", name, failed)
			}
			for _, err := range failed {
				for _, part := range append(parts, path) {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%v, which should say %s", err, part)
					}
				}
			}
			if got, want := p.text(t), others.text(t); got != want {
				t.Errorf("%s failed: got\n%s\nwant\n%s", name, got, want)
			}
		})
	}
	text := func(text string) func(path string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	for _, name := range []string{
		"net/sockstat", "net/snmp", "net/stat/nf_conntrack", "sys/net/netfilter/nf_conntrack_max", "net/netstat", "sys/fs/file-nr", "sys/net/core/somaxconn",
		"sys/net/ipv4/tcp_max_tw_buckets", "sys/net/ipv4/tcp_tw_reuse", "sys/net/ipv4/tcp_tw_recycle", "sys/net/ipv4/tcp_fin_timeout",
		"sys/net/ipv4/tcp_max_syn_backlog", "sys/net/ipv4/tcp_syncookies", "sys/net/ipv4/tcp_max_orphans", "sys/net/ipv4/tcp_mem",
	} {
		f(name, text(""))
		f(name, text("lots\n"), `"lots`)
		f(name, text(strings.Repeat("1", 1<<20)), `"1111`, "longer than")
		f(name, func(path string) error { return os.WriteFile(path, nil, 0) }, fs.ErrPermission.Error())
		f(name, func(path string) error { return os.Mkdir(path, 0o755) }, unix.EISDIR.Error())
	}
	f("sys/fs/file-nr", text("1 2\n"), `"1 2\n"`)
	f("sys/net/ipv4/tcp_mem", text("1 -2 3\n"), `"-2"`)
}

// TestKernelSysctls names each sysctl that is wrong.
func TestKernelSysctls(t *testing.T) {
	root := writeProc(t)
	writeFile(t, filepath.Join(root, "sys/net/ipv4/tcp_tw_reuse"), "x")
	writeFile(t, filepath.Join(root, "sys/net/core/somaxconn"), "y")
	_, failed := readKernel(t, root)
	for _, part := range []string{"tcp_tw_reuse", `"x"`, "somaxconn", `"y"`} {
		if !strings.Contains(fmt.Sprint(failed["sysctls"]), part) {
			t.Errorf("%v, which should say %s", failed, part)
		}
	}
}

// TestPrivilegedPorts has bounds of its own, the usual ones where there is no sunrpc, and none
// where a bound can't be read: then nothing else is missing.
func TestPrivilegedPorts(t *testing.T) {
	root := writeProc(t)
	f := func(file, text string, want float64) {
		t.Helper()
		path := filepath.Join(root, "sys/sunrpc", file)
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if text != "" {
			writeFile(t, path, text)
		}
		p := scrapeOf(t, fixture(t, root))
		if want < 0 {
			p.wantNone(t, "tcp_privileged_port_utilisation_ratio")
			p.want(t, 0, "timewait_exporter_collector_success", "collector", "sysctls")
		} else {
			p.want(t, want, "tcp_privileged_port_utilisation_ratio")
			p.want(t, 1, "timewait_exporter_collector_success", "collector", "sysctls")
		}
		p.want(t, 1, "timewait_exporter_collector_success", "collector", "ports")
		p.want(t, 2, "tcp_syn_cookies_mode")
	}
	header := "  sl  local_address " + strings.Repeat(" ", 129) + "\n"
	var rows strings.Builder
	for i, port := range []int{599, 600, 665, 665, 1000, 1023, 1024} {
		fmt.Fprintf(&rows, "%4d: 0100007F:%04X 0%d00007F:0801 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1\n", i, port, i+1)
	}
	writeFile(t, filepath.Join(root, "net/tcp"), header+rows.String())
	f("min_resvport", "600\n", 3./401)
	f("max_resvport", "", 4./424) // 1023
	f("min_resvport", "", 3./359)
	f("min_resvport", "x\n", -1)
	f("min_resvport", "1023\n", 1)
	f("min_resvport", "1024\n", 1) // there is none
	f("max_resvport", "65535\n", 1./64512)
	f("max_resvport", "-1\n", -1)
}

// withoutCapabilities calls f on a thread that has none, so that file modes are
// good for root too. The thread ends with it.
func withoutCapabilities(t *testing.T, f func()) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData // version 3 has two words of each set
		if err = unix.Capset(&header, &none[0]); err == nil {
			f()
		}
	}()
	<-done
	if err != nil {
		t.Fatal(os.NewSyscallError("capset", err))
	}
}
