// Package kernel holds the exporter to the real kernel: each test runs in a
// network namespace of its own, builds real sockets there, scrapes the real
// program over HTTP and compares. Nothing on the machine is touched, and no
// privilege is needed where unprivileged user namespaces are allowed.
package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// scenarioEnv names the one test a re-executed test binary is to run.
	scenarioEnv = "KERNEL_TEST_SCENARIO"
	// programEnv is the path of the exporter under test. Whoever has no Go
	// toolchain at hand may set it; else the tests build the program.
	programEnv = "KERNEL_TEST_PROGRAM"
)

func TestMain(m *testing.M) {
	if os.Getenv(scenarioEnv) != "" || os.Getenv(programEnv) != "" {
		os.Exit(m.Run())
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "timewait_exporter")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "timewait_exporter")
	build := exec.Command("go", "-C", "../..", "build", "-buildvcs=false", "-o", program, "./cmd/timewait_exporter")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w", build, err)
	}
	if err := os.Setenv(programEnv, program); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// inNamespace runs scenario in a fresh network namespace with lo up.
func inNamespace(t *testing.T, scenario func(t *testing.T)) {
	t.Helper()
	inNamespaces(t, unix.CLONE_NEWNET, scenario)
}

// inNamespaces runs scenario in fresh namespaces of the kinds in flags, in a
// process of its own: a namespace belongs to a thread, and a Go program can't
// keep its goroutines on one. An ordinary user gets a user namespace too, in
// which it is root and may make the others.
func inNamespaces(t *testing.T, flags uintptr, scenario func(t *testing.T)) {
	t.Helper()
	if os.Getenv(scenarioEnv) == t.Name() {
		setLinkUp(t, "lo", 0)
		scenario(t)
		return
	}
	t.Parallel()

	// The parts of a scenario that are parallel wait most of the time.
	cmd := exec.Command(os.Args[0], "-test.v", "-test.timeout=2m", "-test.parallel=16", "-test.run="+exactly(t.Name()))
	cmd.Env = append(os.Environ(), scenarioEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Start()
	if isRefusal(err) {
		t.Skipf("this kernel or container refuses new namespaces (clone flags %#x): %v", cmd.SysProcAttr.Cloneflags, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	pass := "--- PASS: " + t.Name() + " "
	skip := "--- SKIP: " + t.Name() + " "
	switch {
	case err != nil:
		t.Fatalf("in its own namespace: %v\n%s", err, &output)
	case strings.Contains(output.String(), skip):
		t.Skip(output.String())
	case !strings.Contains(output.String(), pass):
		t.Fatalf("the scenario did not run:\n%s", &output)
	default:
		t.Log(output.String())
	}
}

// isRefusal tells "namespaces are not allowed here" (seccomp, a sysctl, a
// kernel without them) from a fault of the test.
func isRefusal(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSPC, syscall.ENOSYS, syscall.EUSERS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// exactly is the -test.run pattern of one test or subtest.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// setSysctl writes one of the namespace's own sysctls, "net/ipv4/tcp_tw_reuse".
func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("this kernel has no such sysctl: %v", err)
		}
		t.Fatal(err)
	}
}

// addLoopbackAddresses gives the namespace addresses outside 127/8 and ::1:
// the kernel treats those two apart in tcp_tw_reuse=2.
func addLoopbackAddresses(t *testing.T, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		addAddress(t, "lo", netip.PrefixFrom(a, a.BitLen()))
	}
}
