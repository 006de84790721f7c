package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCounters(t *testing.T) {
	f := func(text string, want ...string) {
		t.Helper()
		var got []string
		err := parseCounters([]byte(text), func(name, value string) error {
			got = append(got, name+"="+value)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f("")
	f("Tcp: A B\nTcp: 1 2\n", "Tcp.A=1", "Tcp.B=2")
	f("Tcp: A B\nTcp: 1 -1", "Tcp.A=1", "Tcp.B=-1")
	f("TcpExt: A\nTcpExt: 1\nIpExt: A\nIpExt: 2\n", "TcpExt.A=1", "IpExt.A=2")
	f("Tcp:\nTcp:\n")
	f("Tcp:  A   B \nTcp: 1  2 \n", "Tcp.A=1", "Tcp.B=2")
	f("Tcp: A\nTcp: 18446744073709551615\n", "Tcp.A=18446744073709551615")
	long := strings.Repeat(" X", 100_000)
	if err := parseCounters([]byte("Tcp:"+long+"\nTcp:"+strings.Repeat(" 1", 100_000)+"\n"), func(string, string) error { return nil }); err != nil {
		t.Errorf("long lines: %v", err)
	}

	bad := func(text, part string) {
		t.Helper()
		err := parseCounters([]byte(text), func(string, string) error { return nil })
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, which should say %s", text, err, part)
		}
	}
	bad("Tcp: A B\n", `"Tcp: A B"`)
	bad("Tcp: A B\nTcp: 1\n", `"Tcp: 1"`)
	bad("Tcp: A\nTcp: 1 2\n", `"Tcp: 1 2"`)
	bad("Tcp: A\nUdp: 1\n", `"Udp: 1"`)
	bad("Tcp: A\n\nTcp: 1\n", `"Tcp: A"`)

	stop := errors.New("stop")
	calls := 0
	err := parseCounters([]byte("Tcp: A B\nTcp: 1 2\n"), func(string, string) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

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
func readKernel(t *testing.T, files map[string]string, own bool) (page, error) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(root, name), text)
	}
	return readKernelOf(t, root, own)
}

func readKernelOf(t *testing.T, root string, own bool) (page, error) {
	t.Helper()
	out, err := kernel{root, Namespace{Name: "test", Dir: filepath.Join(root, "net"), OwnSysctls: own}}.read(t.Context())
	if err != nil {
		if out != nil {
			t.Errorf("%d metrics and %v", len(out), err)
		}
		return nil, err
	}
	return gather(t, constant(out)), nil
}

func TestKernel(t *testing.T) {
	p, err := readKernel(t, kernelFiles(), true)
	if err != nil {
		t.Fatal(err)
	}
	f := func(want float64, name string, labels ...string) {
		t.Helper()
		p.want(t, want, name, labels...)
	}
	f(7, "tcp_time_wait_sockets", "netns", "test")
	f(3, "tcp_orphans")
	f(1, "tcp_active_opens_total", "netns", "test")
	f(2, "tcp_passive_opens_total")
	f(3, "tcp_attempt_fails_total")
	f(4, "tcp_established_resets_total")
	f(5, "tcp_retransmitted_segments_total")
	f(6, "tcp_out_resets_total")
	f(11, "tcp_time_wait_started_total", "timer", "full")
	f(13, "tcp_time_wait_started_total", "timer", "short")
	f(12, "tcp_time_wait_reused_total")
	f(14, "tcp_time_wait_overflows_total")
	f(15, "tcp_listen_overflows_total")
	f(16, "tcp_listen_drops_total")
	f(17, "tcp_syn_cookies_sent_total")
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
}

// TestKernelMemory gives pages of memory in bytes.
func TestKernelMemory(t *testing.T) {
	p, err := readKernel(t, kernelFiles(), true)
	if err != nil {
		t.Fatal(err)
	}
	size := float64(os.Getpagesize())
	p.want(t, 11*size, "tcp_memory_bytes")
	for i, level := range []string{"low", "pressure", "high"} {
		p.want(t, float64(10*(i+1))*size, "tcp_memory_limit_bytes", "level", level)
	}
}

// TestKernelOtherSysctls leaves out the net sysctls of another namespace.
func TestKernelOtherSysctls(t *testing.T) {
	p, err := readKernel(t, kernelFiles(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tcp_time_wait_limit", "tcp_time_wait_reuse_mode", "tcp_time_wait_recycle_enabled", "tcp_fin_timeout_seconds",
		"tcp_listen_backlog_limit", "tcp_syn_backlog_limit", "tcp_orphan_limit", "tcp_memory_limit_bytes"} {
		p.wantNone(t, name)
	}
	for _, name := range []string{"kernel_file_handles", "kernel_file_handles_limit", "tcp_time_wait_sockets", "tcp_orphans", "tcp_active_opens_total", "tcp_memory_bytes"} {
		if len(p.family(name)) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestKernelMissing leaves out what a kernel does not have, and nothing else.
func TestKernelMissing(t *testing.T) {
	all, err := readKernel(t, kernelFiles(), true)
	if err != nil {
		t.Fatal(err)
	}
	for name := range kernelFiles() {
		files := kernelFiles()
		delete(files, name)
		p, err := readKernel(t, files, true)
		if err != nil {
			t.Errorf("without %s: %v", name, err)
		}
		if len(p) >= len(all) || len(p) == 0 {
			t.Errorf("without %s: %d metrics, with it %d", name, len(p), len(all))
		}
	}
	if p, err := readKernel(t, nil, true); err != nil || len(p) != 0 {
		t.Errorf("without any file: %d metrics and %v", len(p), err)
	}
	// Counters that come and go with kernels.
	files := kernelFiles()
	files["net/netstat"] = "TcpExt: TW\nTcpExt: 5\n"
	files["net/sockstat"] = "TCP: inuse 5 orphan 3\nUDP: inuse 3 mem 3\n"
	p, err := readKernel(t, files, true)
	if err != nil {
		t.Fatal(err)
	}
	p.want(t, 5, "tcp_time_wait_started_total")
	p.want(t, 3, "tcp_orphans")
	p.wantNone(t, "tcp_time_wait_sockets")
	p.wantNone(t, "tcp_memory_bytes")
	p.wantNone(t, "tcp_aborts_total")
	p.wantNone(t, "tcp_abort_failures_total")
}

// TestKernelMalformed fails for a file that is there and not as it should be, and
// says which.
func TestKernelMalformed(t *testing.T) {
	f := func(name, text string, parts ...string) {
		t.Helper()
		files := kernelFiles()
		files[name] = text
		_, err := readKernel(t, files, true)
		if err == nil {
			t.Errorf("%s: %q is read", name, text)
			return
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %s", err, part)
			}
		}
	}
	f("net/sockstat", "TCP: inuse x\n", "sockstat")
	f("net/sockstat", "TCP: inuse 1 orphan 2 tw many alloc 9 mem 9\n", "many")
	f("net/snmp", "Tcp: ActiveOpens\n", "net/snmp", `"Tcp: ActiveOpens"`)
	f("net/snmp", "Tcp: ActiveOpens\nTcp: x\n", "net/snmp", "Tcp.ActiveOpens", `"x"`)
	f("net/snmp", "Tcp: ActiveOpens\nTcp: -1\n", "net/snmp", "Tcp.ActiveOpens", `"-1"`)
	f("net/netstat", "TcpExt: TW\nIpExt: 1\n", "net/netstat", `"IpExt: 1"`)
	f("net/netstat", "TcpExt: TW\nTcpExt: 18446744073709551616\n", "net/netstat", "TcpExt.TW")
	f("sys/fs/file-nr", "1 2\n", "fs.file-nr")
	f("sys/fs/file-nr", "", "fs.file-nr")
	f("sys/fs/file-nr", "a b c\n", "file-nr")
	f("sys/net/ipv4/tcp_mem", "1 2\n", "net.ipv4.tcp_mem")
	f("sys/net/ipv4/tcp_mem", "1 2 3 4\n", "net.ipv4.tcp_mem")
	for name := range kernelFiles() {
		if sysctl, ok := strings.CutPrefix(name, "sys/net/"); ok {
			sysctl = "net." + strings.ReplaceAll(sysctl, "/", ".")
			f(name, "\n", sysctl)
			f(name, "lots\n", "lots")
		}
	}
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
		path := filepath.Join(root, name)
		if err := breakFile(path); err != nil {
			t.Fatal(err)
		}
		withoutCapabilities(t, func() {
			_, err := readKernelOf(t, root, true)
			if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), filepath.Base(path)) {
				t.Errorf("%s: %v, want %v", name, err, want)
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
