package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// enterContainer starts a process in a network and a cgroup of its own, as Docker does, and has the test's goroutine enter
// that network. It returns what the network namespace is called.
func enterContainer(t *testing.T) string {
	t.Helper()
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	id := strings.Repeat(fmt.Sprintf("%016x", uint64(time.Now().UnixNano())*0x9e3779b9), 4)
	dir := filepath.Join(root, "docker-"+id+".scope")
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		t.Skip("making cgroups needs the right to: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Error(err)
		}
	})
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	process := netns.Command(t.Context(), unix.CLONE_NEWNET, "sleep", "infinity")
	process.SysProcAttr.UseCgroupFD, process.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	runtime.LockOSThread() // for ever: the thread ends with the test, and the process with it
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait() // it was killed
	})
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(os.NewSyscallError("setns", err))
	}
	if err := netns.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	return "docker:" + id[:12]
}
