// Package netns makes private network namespaces, and in them links, addresses, sockets and
// single segments. Nothing on the machine is touched, and no privilege is needed where
// unprivileged user namespaces are allowed. What the kernel or the container refuses
// makes a test skip.
package netns

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// scenarioEnv names the one test a re-executed test binary is to run.
const scenarioEnv = "NETNS_SCENARIO"

// Run runs scenario in a fresh network namespace with lo up.
func Run(t *testing.T, scenario func(t *testing.T)) {
	t.Helper()
	RunWith(t, unix.CLONE_NEWNET, scenario)
}

// RunWith runs scenario in fresh namespaces of the kinds in flags, in a process of its
// own: a namespace belongs to a thread, and a Go program can't keep its goroutines on
// one. The scenario has a copy of all that the test has done before, by doing it again.
func RunWith(t *testing.T, flags uintptr, scenario func(t *testing.T)) {
	t.Helper()
	if os.Getenv(scenarioEnv) == t.Name() {
		if err := LoopbackUp(); err != nil {
			t.Fatal(err)
		}
		scenario(t)
		return
	}
	t.Parallel()

	// The parts of a scenario that are parallel wait most of the time.
	args := []string{"-test.v", "-test.parallel=8", "-test.run=" + exactly(t.Name())}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(deadline).String())
	}
	cmd := Command(t.Context(), flags, os.Args[0], args...)
	cmd.Env = append(os.Environ(), scenarioEnv+"="+t.Name())
	var output bytes.Buffer
	cmd.Stdout = io.MultiWriter(&output, t.Output())
	cmd.Stderr = cmd.Stdout
	err := cmd.Start()
	if Refused(err) {
		t.Skipf("this kernel or container refuses new namespaces (clone flags %#x): %v", cmd.SysProcAttr.Cloneflags, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	switch {
	case err != nil:
		t.Fatalf("in its own namespace: %v", err)
	case strings.Contains(output.String(), "--- SKIP: "+t.Name()+" "):
		t.Skip("skipped in its own namespace")
	case !strings.Contains(output.String(), "--- PASS: "+t.Name()+" "):
		t.Fatal("the scenario did not run")
	}
}

// Command is a program in fresh namespaces of the kinds in flags. An ordinary user gets
// a user namespace too, in which it is root and may make the others. The program ends
// with the thread that starts it.
func Command(ctx context.Context, flags uintptr, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return cmd
}

// Refused tells "namespaces are not allowed here" (seccomp, a sysctl, a kernel
// without them) from a fault of the test.
func Refused(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSPC, syscall.ENOSYS, syscall.EUSERS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// LoopbackUp is `ip link set lo up`, which Run does.
func LoopbackUp() error { return netlink.LinkSetUp(named("lo")) }

// MountProc has /proc show the processes of this PID namespace, in a mount namespace of its own.
func MountProc(t *testing.T, options string) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(os.NewSyscallError("mount", err))
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, options); err != nil {
		t.Skipf("this container does not let /proc be mounted: %v", err)
	}
}

// exactly is the -test.run pattern of one test or subtest.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// SetSysctl writes one of the namespace's own sysctls, "net/ipv4/tcp_tw_reuse".
func SetSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("this kernel has no such sysctl: %v", err)
		}
		t.Fatal(err)
	}
}

// Eventually waits for what the kernel does asynchronously.
func Eventually(t *testing.T, done func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(state())
		}
	}
}
