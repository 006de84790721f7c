package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// machine is a container that systemd has booted: /usr is this machine's with the
// package's files over it, all else is empty, and the network is a loopback.
type machine struct {
	leader *os.Process // its PID 1
}

// boot boots a machine with usr over /usr.
func boot(t *testing.T, usr string) *machine {
	t.Helper()
	if err := exec.Command("unshare", "--mount", "--pid", "--net", "--fork", "true").Run(); err != nil {
		t.Skipf("no containers can be made here: unshare: %v", err)
	}
	cgroup := newCgroup(t)
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	notify, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, shutDown := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "systemd-nspawn", "--quiet", "--boot", "--notify-ready=yes",
		"--directory=/", "--volatile=yes", "--overlay-ro=/usr:"+usr+":/usr", "--private-network",
		"--machine="+filepath.Base(cgroup.Name()), "--register=no", "--keep-unit", "--console=pipe",
		// Nothing of what else this machine has installed is to run.
		"systemd.unit=sysinit.target", "systemd.firstboot=no")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+address.Name)
	// SIGTERM makes it shut the machine down.
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		notify.Close()
		close(ended)
	}()

	leader, err := waitReady(notify)
	if err != nil {
		shutDown()
		<-ended
		t.Fatalf("the machine did not boot: %v\n%s", err, &console)
	}
	t.Cleanup(func() {
		shutDown()
		<-ended
		leader.Kill() // it outlives a systemd-nspawn that had to be killed
	})
	return &machine{leader}
}

// newCgroup makes the cgroup a machine starts in. In that of the test, the machines
// of two tests would share what systemd makes below it.
func newCgroup(t *testing.T) *os.File {
	t.Helper()
	root := "/sys/fs/cgroup"
	if unified := filepath.Join(root, "unified"); isDir(unified) {
		root = unified
	}
	dir, err := os.MkdirTemp(root, "timewait-exporter-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		removeCgroup(t, dir)
		// Where both versions are mounted systemd makes the same in the old one.
		removeCgroup(t, filepath.Join("/sys/fs/cgroup/systemd", filepath.Base(dir)))
	})
	file, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// removeCgroup removes a tree of empty cgroups, in which only directories can be
// removed.
func removeCgroup(t *testing.T, root string) {
	if !isDir(root) {
		return
	}
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// What systemd-nspawn says to its NOTIFY_SOCKET, in any order.
var (
	leaderPID = regexp.MustCompile(`(?m)^X_NSPAWN_LEADER_PID=(\d+)$`)
	ready     = regexp.MustCompile(`(?m)^READY=1$`)
)

// waitReady waits for a machine to have booted, and returns its PID 1.
func waitReady(notify *net.UnixConn) (*os.Process, error) {
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	var said strings.Builder
	for buf := make([]byte, 4096); ; {
		n, err := notify.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("%w, after %q", err, &said)
		}
		said.Write(buf[:n])
		said.WriteByte('\n')
		pid := leaderPID.FindStringSubmatch(said.String())
		if pid == nil || !ready.MatchString(said.String()) {
			continue
		}
		leader, err := strconv.Atoi(pid[1])
		if err != nil {
			return nil, err
		}
		return os.FindProcess(leader)
	}
}

// enter are the arguments of nsenter to which those of a program on the machine are added.
func (m *machine) enter() []string {
	return []string{"--target", strconv.Itoa(m.leader.Pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"}
}
