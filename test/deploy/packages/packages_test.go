// Package packages tests the deb and the rpm with the real package managers. Each promise is a script in testdata, for a machine that is a
// copy of this one's file system.
package packages

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"timewait_exporter/test/deploy/host"
)

// The versions of the packages in the machines' /run/packages.
const older, newer = "1.0.0-rc.1", "1.0.0"

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

func TestScripts(t *testing.T) {
	host.Needs(t, "shellcheck")
	scripts := filepath.Join(host.Checkout(t), "deploy/packages")
	host.Run(t, scripts, "shellcheck", "generate", "deb/postinst", "deb/prerm", "deb/postrm")
	host.Run(t, scripts, "shellcheck", "--shell=sh", "rpm/post", "rpm/preun", "rpm/postun")
}

func TestPackages(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "make", "git", "dpkg", "rpm", "systemctl")
	clone, packages := filepath.Join(t.TempDir(), "clone"), t.TempDir()
	host.Run(t, "", "git", "clone", "--quiet", host.Commit(t), clone)
	for _, version := range []string{older, newer} {
		host.Run(t, clone, "make", "release", "ARCHS="+runtime.GOARCH, "VERSION="+version,
			"TOOLS="+filepath.Join(host.Checkout(t), ".tools/bin"))
		for _, packager := range []string{"deb", "rpm"} {
			built, err := filepath.Glob(filepath.Join(clone, "dist/*."+packager))
			if err != nil || len(built) != 1 {
				t.Fatalf("%q were built: %v", built, err)
			}
			if err := os.Rename(built[0], filepath.Join(packages, version+"."+packager)); err != nil {
				t.Fatal(err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			root, err := newMachine(env, packages)
			for name, value := range map[string]string{
				"ROOT": root, "OLD": older, "NEW": newer, "WANTS": "/etc/systemd/system",
				"PATH": os.Getenv("PATH"), "HOME": os.Getenv("HOME"), "DEBIAN_FRONTEND": "noninteractive",
			} {
				env.Setenv(name, value)
			}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"on": on, "written": written, "boot": boot, "asked": asked},
	})
}

// newMachine makes this machine's file system with a layer over it that takes all writes,
// and returns where it is. Like a chroot it runs no systemd.
func newMachine(env *testscript.Env, packages string) (root string, err error) {
	dir := filepath.Join(env.WorkDir, "machine")
	root = filepath.Join(dir, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	var errs []error
	run := func(program string, args ...string) {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w: %s", program, args, err, out))
		}
	}
	// An overlay can't have its upper layer on another overlay, as a container has.
	run("mount", "-t", "tmpfs", "tmpfs", dir)
	env.Defer(func() { _ = exec.Command("umount", "--recursive", "--lazy", dir).Run() })
	run("mkdir", root, dir+"/upper", dir+"/work")
	run("mount", "-t", "overlay", "-o", "lowerdir=/,upperdir="+dir+"/upper,workdir="+dir+"/work", "overlay", root)
	run("mount", "-t", "tmpfs", "tmpfs", root+"/run")
	run("mount", "--rbind", "/dev", root+"/dev")
	run("cp", "-r", packages, root+"/run/packages")
	// Images of containers forbid dpkg to start services and to unpack documents.
	run("rm", "-rf", root+"/usr/sbin/policy-rc.d", root+"/etc/dpkg/dpkg.cfg.d")
	return root, errors.Join(errs...)
}

// on COMMAND ARGUMENTS runs a program on the machine.
func on(ts *testscript.TestScript, neg bool, args []string) {
	if err := ts.Exec("chroot", append([]string{ts.Getenv("ROOT")}, args...)...); (err != nil) != neg {
		ts.Fatalf("%q: %v", args, err)
	}
}

// written lists what is on the machine and not on this one, but for the package managers'
// own: databases, caches, logs.
func written(ts *testscript.TestScript, _ bool, _ []string) {
	layer := filepath.Join(filepath.Dir(ts.Getenv("ROOT")), "upper")
	ts.Check(filepath.WalkDir(layer, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(path, layer)
		if slices.Contains([]string{"/var/lib/dpkg", "/var/lib/apt", "/var/lib/rpm", os.Getenv("HOME") + "/.rpmdb", "/var/cache", "/var/log"}, path) {
			return fs.SkipDir
		}
		if entry.IsDir() {
			if _, err := os.Lstat(path); err == nil || path == "" {
				return nil
			}
		}
		_, err = fmt.Fprintln(ts.Stdout(), path)
		return err
	}))
}

// boot makes the machine look as if systemd ran: a stand-in for systemctl writes down what
// it is asked to do. What needs no systemd the real one does.
func boot(ts *testscript.TestScript, _ bool, _ []string) {
	root := ts.Getenv("ROOT")
	ts.Check(os.MkdirAll(root+"/run/systemd/system", 0o755))
	ts.Check(os.Rename(root+"/usr/bin/systemctl", root+"/usr/bin/systemctl.real"))
	ts.Check(os.WriteFile(root+"/usr/bin/systemctl", []byte(`#!/bin/sh
for unit; do :; done
case "$*" in
--root=*) exec systemctl.real "$@" ;;
*is-active*) exit 3 ;;
*is-enabled*) [ -e "/etc/systemd/system/multi-user.target.wants/$unit" ] && echo enabled ;;
*) echo "$*" >>/run/asked ;;
esac
`), 0o755))
}

// asked REQUESTS: that is what systemctl was asked to do since the last time.
func asked(ts *testscript.TestScript, _ bool, want []string) {
	path := ts.Getenv("ROOT") + "/run/asked"
	var got []string
	for line := range strings.Lines(ts.ReadFile(path)) {
		words := slices.DeleteFunc(strings.Fields(line), func(word string) bool { return word == "--system" || word == "--quiet" })
		got = append(got, strings.Join(words, " "))
	}
	if !slices.Equal(got, want) {
		ts.Fatalf("systemctl was asked %q and not %q", got, want)
	}
	ts.Check(os.Remove(path))
}
