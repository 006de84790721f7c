package owner

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fixture is a machine made of files: a proc file system in which this process is
// number 7, and a tree of directories as its v2 hierarchy.
type fixture struct {
	t          testing.TB
	proc, tree string
}

// newFixture returns a machine. What cgroup files say is the paths of process 7
// and of process 1, lines as the kernel has them.
func newFixture(t testing.TB, self, first string) fixture {
	t.Helper()
	f := fixture{t, t.TempDir(), filepath.Join(t.TempDir(), `a tree`, "\t\\")}
	f.mkdir("/")
	f.process(7, self)
	f.process(1, first)
	must(t, os.Symlink("7", filepath.Join(f.proc, "self")))
	escaped := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`).Replace(f.tree)
	f.write(filepath.Join(f.proc, "7/mountinfo"), "22 27 0:21 / /proc rw,relatime shared:12 - proc proc rw\n"+
		"30 23 0:26 / "+escaped+" ro,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
	return f
}

func (f fixture) write(path, text string) {
	f.t.Helper()
	must(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(f.t, os.WriteFile(path, []byte(text), 0o644))
}

// process makes a process with its cgroup file.
func (f fixture) process(pid int, cgroups string) {
	f.t.Helper()
	f.write(filepath.Join(f.proc, strconv.Itoa(pid), "cgroup"), cgroups)
}

// mkdir makes a cgroup with processes and returns its id.
func (f fixture) mkdir(path string, pids ...int) uint64 {
	f.t.Helper()
	var procs strings.Builder
	for _, pid := range pids {
		fmt.Fprintln(&procs, pid)
	}
	f.write(filepath.Join(f.tree, path, "cgroup.procs"), procs.String())
	stat, err := lstat(filepath.Join(f.tree, path))
	must(f.t, err)
	return stat.Ino
}

func (f fixture) remove(path string) {
	f.t.Helper()
	must(f.t, os.RemoveAll(filepath.Join(f.tree, path)))
}

// resolver returns one for the machine, whose tree is of the whole machine.
func (f fixture) resolver(o Options) *Resolver {
	f.t.Helper()
	o.Proc = f.proc
	r := newResolver(f.t, o)
	if r.tree == nil {
		f.t.Fatalf("no tree: %+v", r.source)
	}
	r.tree.root = rootID
	return r
}

func newResolver(t testing.TB, o Options) *Resolver {
	t.Helper()
	r, err := New(o)
	must(t, err)
	return r
}

// update updates until there is nothing left to do, without an error.
func update(t testing.TB, r *Resolver, now time.Time, ids ...uint64) {
	t.Helper()
	must(t, tryUpdate(t, r, now, ids...))
}

func tryUpdate(t testing.TB, r *Resolver, now time.Time, ids ...uint64) error {
	t.Helper()
	for range 10_000 {
		err := r.Update(now, slices.Values(ids))
		busy := r.search.stage != idle
		for _, n := range r.names {
			busy = busy || r.hybrid && n.path != "" && n.verified.IsZero() && !n.owner.contained()
		}
		if !busy {
			return err
		}
	}
	t.Fatal("a search without an end")
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantLabels(t *testing.T, r *Resolver, want map[uint64]string) {
	t.Helper()
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if got := r.Label(id); got != want[id] {
			t.Errorf("%d: label %q, want %q", id, got, want[id])
		}
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
