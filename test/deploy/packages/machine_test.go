package packages

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"timewait_exporter/test/deploy/host"
)

// TestMain gives the tests mounts of their own, which end with them.
func TestMain(m *testing.M) {
	const private = "PRIVATE_MOUNTS"
	unshare, err := exec.LookPath("unshare")
	if err == nil && os.Geteuid() == 0 && os.Getenv(private) == "" {
		err := syscall.Exec(unshare, append([]string{"unshare", "--mount"}, os.Args...), append(os.Environ(), private+"=1"))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// machine is this machine's file system with a layer over it that takes all writes.
type machine struct {
	root  string
	layer string
}

// newMachine returns a machine that has the packages in /run/packages. Like a chroot
// it runs no systemd.
func newMachine(t *testing.T, packages string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{root: filepath.Join(dir, "root"), layer: filepath.Join(dir, "upper")}
	mount := func(target string, args ...string) {
		t.Helper()
		host.Run(t, "", "mount", append(args, target)...)
		t.Cleanup(func() {
			if out, err := exec.Command("umount", "--recursive", target).CombinedOutput(); err != nil {
				t.Errorf("umount: %v: %s", err, out)
			}
		})
	}
	// An overlay can't have its upper layer on another overlay, as a container has.
	mount(dir, "-t", "tmpfs", "tmpfs")
	for _, name := range []string{"root", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(m.root, "-t", "overlay", "-o", "lowerdir=/,upperdir="+m.layer+",workdir="+filepath.Join(dir, "work"), "overlay")
	mount(filepath.Join(m.root, "run"), "-t", "tmpfs", "tmpfs")
	mount(filepath.Join(m.root, "dev"), "--rbind", "/dev")
	host.Run(t, "", "cp", "-r", packages, filepath.Join(m.root, "run/packages"))
	// Images of containers forbid dpkg to start services and to unpack documents.
	for _, name := range []string{"usr/sbin/policy-rc.d", "etc/dpkg/dpkg.cfg.d"} {
		if err := os.RemoveAll(filepath.Join(m.root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// run runs a program on the machine.
func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	return host.Run(t, "", "env", append([]string{"DEBIAN_FRONTEND=noninteractive", "chroot", m.root}, args...)...)
}

// try is run for a program that may fail.
func (m *machine) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "chroot", append([]string{m.root}, args...)...).CombinedOutput()
	return string(out), err
}

func (m *machine) has(path string) bool {
	_, err := os.Lstat(filepath.Join(m.root, path))
	return err == nil
}

func (m *machine) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func (m *machine) write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// written returns what is on the machine and not on this one, but for the package
// managers' own: databases, caches, logs.
func (m *machine) written(t *testing.T) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(m.layer, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(path, m.layer)
		if slices.Contains([]string{"/var/lib/dpkg", "/var/lib/apt", "/var/lib/rpm", os.Getenv("HOME") + "/.rpmdb", "/var/cache", "/var/log"}, path) {
			return fs.SkipDir
		}
		if entry.IsDir() {
			if _, err := os.Lstat(path); err == nil || path == "" {
				return nil
			}
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// boot makes the machine look as if systemd ran: a stand-in for systemctl writes
// down what it is asked to do. What needs no systemd the real one does.
func (m *machine) boot(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(m.root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(m.root, "usr/bin/systemctl"), filepath.Join(m.root, "usr/bin/systemctl.real")); err != nil {
		t.Fatal(err)
	}
	m.write(t, "usr/bin/systemctl", `#!/bin/sh
for unit; do :; done
case "$*" in
--root=*) exec systemctl.real "$@" ;;
*is-active*) exit 3 ;;
*is-enabled*) [ -e "/etc/systemd/system/multi-user.target.wants/$unit" ] && echo enabled ;;
*) echo "$*" >>/run/asked ;;
esac
`, 0o755)
}

// asked returns what systemctl was asked to do since the last time.
func (m *machine) asked(t *testing.T) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(m.read(t, "run/asked")) {
		words := slices.DeleteFunc(strings.Fields(line), func(word string) bool { return word == "--system" || word == "--quiet" })
		all = append(all, strings.Join(words, " "))
	}
	m.write(t, "run/asked", "", 0o644)
	return all
}
