package collector

import (
	"errors"
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

// kernelFiles are those that kernel reads, each with a text that is good.
func kernelFiles() map[string]string {
	return map[string]string{
		"net/sockstat":                     "sockets: used 9\nTCP: inuse 5 orphan 3 tw 7 alloc 9 mem 11\n",
		"net/snmp":                         "Tcp: ActiveOpens PassiveOpens AttemptFails EstabResets RetransSegs OutRsts\nTcp: 1 2 3 4 5 6\n",
		"net/netstat":                      "TcpExt: TW TWRecycled TWKilled TCPTimeWaitOverflow ListenOverflows ListenDrops SyncookiesSent TCPAbortOnData TCPAbortOnClose TCPAbortOnMemory TCPAbortOnTimeout TCPAbortOnLinger TCPAbortFailed Unknown\nTcpExt: 11 12 13 14 15 16 17 18 19 20 21 22 23 -4\n",
		"sys/fs/file-nr":                   "1600\t0\t2466177\n",
		"sys/net/ipv4/tcp_max_tw_buckets":  "131072\n",
		"sys/net/ipv4/tcp_tw_reuse":        "2\n",
		"sys/net/ipv4/tcp_tw_recycle":      "1\n",
		"sys/net/ipv4/tcp_fin_timeout":     "60\n",
		"sys/net/core/somaxconn":           "4096\n",
		"sys/net/ipv4/tcp_max_syn_backlog": "512\n",
		"sys/net/ipv4/tcp_max_orphans":     "65536\n",
		"sys/net/ipv4/tcp_mem":             "10\t20\t30\n",
	}
}

// readKernel reads a copy of a proc file system with these files.
func readKernel(t *testing.T, files map[string]string) (page, map[string]error) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(root, name), text)
	}
	return readKernelOf(t, root)
}

// readKernelOf returns the metrics of all parts, and the errors of those that fail.
func readKernelOf(t *testing.T, root string) (page, map[string]error) {
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
	out.addKernel(ns, node)
	return gather(t, constant(out.all)), failed
}

// readGood reads files that are all in order.
func readGood(t *testing.T, files map[string]string) page {
	t.Helper()
	p, failed := readKernel(t, files)
	if len(failed) > 0 {
		t.Error(failed)
	}
	return p
}

func TestKernel(t *testing.T) {
	p := readGood(t, kernelFiles())
	f := func(want float64, name string, labels ...string) {
		t.Helper()
		p.want(t, want, name, labels...)
	}
	f(7, "tcp_time_wait_sockets", "netns", "test")
	f(3, "tcp_orphans")
	for i, counter := range []string{"active_opens", "passive_opens", "attempt_fails", "established_resets", "retransmitted_segments", "out_resets"} {
		f(float64(1+i), "tcp_"+counter+"_total", "netns", "test")
	}
	f(11, "tcp_time_wait_started_total", "timer", "full")
	f(13, "tcp_time_wait_started_total", "timer", "short")
	f(12, "tcp_time_wait_reused_total")
	for i, counter := range []string{"time_wait_overflows", "listen_overflows", "listen_drops", "syn_cookies_sent"} {
		f(float64(14+i), "tcp_"+counter+"_total")
	}
	for i, reason := range []string{"data", "close", "memory", "timeout", "linger"} {
		f(float64(18+i), "tcp_aborts_total", "netns", "test", "reason", reason)
	}
	f(23, "tcp_abort_failures_total", "netns", "test")
	f(1600, "kernel_file_handles")
	f(2466177, "kernel_file_handles_limit")
	f(131072, "tcp_time_wait_limit")
	f(2, "tcp_time_wait_reuse_mode")
	f(1, "tcp_time_wait_recycle_enabled")
	f(60, "tcp_fin_timeout_seconds")
	f(4096, "tcp_listen_backlog_limit")
	f(512, "tcp_syn_backlog_limit")
	f(65536, "tcp_orphan_limit")
	size := float64(os.Getpagesize()) // memory is told in pages
	f(11*size, "tcp_memory_bytes")
	for i, level := range []string{"low", "pressure", "high"} {
		f(float64(10*(i+1))*size, "tcp_memory_limit_bytes", "level", level)
	}
}

// TestKernelMissing leaves out what a kernel does not have, and nothing else.
func TestKernelMissing(t *testing.T) {
	all := readGood(t, kernelFiles())
	for name := range kernelFiles() {
		files := kernelFiles()
		delete(files, name)
		if p := readGood(t, files); len(p) >= len(all) || len(p) == 0 {
			t.Errorf("without %s: %d metrics, with it %d", name, len(p), len(all))
		}
	}
	if p := readGood(t, nil); len(p) != 0 {
		t.Errorf("without any file: %d metrics", len(p))
	}
	// Counters that come and go with kernels.
	files := kernelFiles()
	files["net/netstat"] = "TcpExt: TW\nTcpExt: 5\n"
	files["net/sockstat"] = "TCP: inuse 5 orphan 3\nUDP: inuse 3 mem 3\n"
	p := readGood(t, files)
	p.want(t, 5, "tcp_time_wait_started_total")
	p.want(t, 3, "tcp_orphans")
	p.wantNone(t, "tcp_time_wait_sockets")
	p.wantNone(t, "tcp_memory_bytes")
	p.wantNone(t, "tcp_aborts_total")
	p.wantNone(t, "tcp_abort_failures_total")
}

// partOf returns the part that reads a file.
func partOf(name string) string {
	if name != "sys/fs/file-nr" && strings.HasPrefix(name, "sys/") {
		return "sysctls"
	}
	return filepath.Base(name)
}

// wantOnly wants one part to have failed with an error that says what is in parts,
// and all metrics that are not of this file.
func wantOnly(t *testing.T, file string, p page, failed map[string]error, parts ...string) {
	t.Helper()
	err := failed[partOf(file)]
	if err == nil || len(failed) != 1 {
		t.Errorf("%s: %v", file, failed)
		return
	}
	for _, part := range append(parts, file) {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v, which should say %s", err, part)
		}
	}
	files := kernelFiles()
	delete(files, file)
	if got, want := p.text(t), readGood(t, files).text(t); got != want {
		t.Errorf("%s failed: got\n%s\nwant\n%s", file, got, want)
	}
}

// TestKernelMalformed fails for a file that is there and not as it should be, says
// which, and reads the others. All that may be wrong in one is in kernelstat.
func TestKernelMalformed(t *testing.T) {
	f := func(name, text string, parts ...string) {
		t.Helper()
		files := kernelFiles()
		files[name] = text
		p, failed := readKernel(t, files)
		wantOnly(t, name, p, failed, parts...)
	}
	f("net/sockstat", "TCP: inuse 1 orphan 2 tw 3 alloc 9 mem -9\n", "mem", `"-9"`)
	f("net/snmp", "Tcp: ActiveOpens\nTcp: -1\n", "ActiveOpens", `"-1"`)
	f("net/netstat", "TcpExt: TW TWRecycled\nTcpExt:\n", `"TcpExt: TW TWRecycled"`)
	f("sys/fs/file-nr", "1 2\n", `"1 2\n"`)
	f("sys/net/ipv4/tcp_mem", "1 -2 3\n", `"-2"`)
	for name := range kernelFiles() {
		f(name, "")
		f(name, "lots\n", `"lots`)
		f(name, strings.Repeat("1", 1<<20), `"1111`, "longer than")
	}
	// Each sysctl that is wrong is named.
	files := kernelFiles()
	files["sys/net/ipv4/tcp_tw_reuse"], files["sys/net/core/somaxconn"] = "x", "y"
	_, failed := readKernel(t, files)
	for _, part := range []string{"tcp_tw_reuse", `"x"`, "somaxconn", `"y"`} {
		if !strings.Contains(fmt.Sprint(failed["sysctls"]), part) {
			t.Errorf("%v, which should say %s", failed, part)
		}
	}
}

// TestKernelOtherBlocks reads files in which what nobody uses is broken.
func TestKernelOtherBlocks(t *testing.T) {
	files := kernelFiles()
	want := readGood(t, files).text(t)
	files["net/snmp"] = "Udp: A A\nUdp: 1\n" + files["net/snmp"] + "UdpLite:\nnonsense\n\n"
	files["net/netstat"] += "IpExt: A\nMPTcpExt: A B\nMPTcpExt: 1\nMPTcpExt: to"
	files["net/sockstat"] += "UDP: x\nUDP: x\nRAW"
	if got := readGood(t, files).text(t); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestKernelLarge reads limits for which an int of 32 bits, or of 64, has no room.
func TestKernelLarge(t *testing.T) {
	files := kernelFiles()
	files["sys/fs/file-nr"] = "681\t0\t9223372036854775807\n"
	files["sys/net/ipv4/tcp_mem"] = "1\t4294967296\t18446744073709551615\n"
	p := readGood(t, files)
	p.want(t, 1<<63-1, "kernel_file_handles_limit")
	p.want(t, float64(1<<32)*float64(os.Getpagesize()), "tcp_memory_limit_bytes", "level", "pressure")
	p.want(t, float64(1<<64-1)*float64(os.Getpagesize()), "tcp_memory_limit_bytes", "level", "high")
}

// TestKernelUnreadable fails for a file that is there and can't be read, and says
// which.
func TestKernelUnreadable(t *testing.T) {
	f := func(name string, want error, breakFile func(path string) error) {
		t.Helper()
		root := t.TempDir()
		for other, text := range kernelFiles() {
			writeFile(t, filepath.Join(root, other), text)
		}
		if err := breakFile(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		withoutCapabilities(t, func() {
			p, failed := readKernelOf(t, root)
			wantOnly(t, name, p, failed)
			if !errors.Is(failed[partOf(name)], want) {
				t.Errorf("%s: %v, want %v", name, failed, want)
			}
		})
	}
	for name := range kernelFiles() {
		f(name, fs.ErrPermission, func(path string) error { return os.Chmod(path, 0) })
		f(name, unix.EISDIR, func(path string) error {
			os.Remove(path)
			return os.Mkdir(path, 0o755)
		})
	}
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
