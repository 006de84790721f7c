package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

const (
	v2Host = "0::/init.scope\n"
	v2Root = "0::/\n"
)

func newProc(t *testing.T, root string) procfs.FS {
	t.Helper()
	proc, err := procfs.NewFS(root)
	must(t, err)
	return proc
}

func TestFindTree(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	find := func(mountinfo string) (*tree, error) {
		f.write(filepath.Join(f.proc, "7/mountinfo"), mountinfo)
		return findTree(newProc(t, f.proc), "")
	}
	fails := func(mountinfo, want string) {
		t.Helper()
		if tree, err := find(mountinfo); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: tree %+v, error %v, want %q", mountinfo, tree, err, want)
		}
	}
	const v1 = "33 32 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"

	if tree, err := findTree(newProc(t, f.proc), ""); err != nil || tree.dir != f.tree || tree.root != f.mkdir("/") {
		t.Errorf("tree %+v, error %v, want %q", tree, err, f.tree)
	}
	fails(v1, "no cgroup v2 hierarchy is mounted")
	fails("", "no cgroup v2 hierarchy is mounted")
	fails("30 23 0:26 / /not/there rw - cgroup2 cgroup2 rw\n", "lstat /not/there: no such file or directory")
	fails("30 23 0:26 cgroup2\n", "mountinfo: ")
	fails("a line without its end", "mountinfo: ")
	f.write(filepath.Join(f.proc, "7/mountinfo"), "")
	os.Remove(filepath.Join(f.proc, "7/mountinfo"))
	if _, err := findTree(newProc(t, f.proc), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want %v", err, fs.ErrNotExist)
	}

	// Of several the one that shows all cgroups; also where it says so itself.
	real, err := findTree(newProc(t, "/proc"), "")
	if err != nil || real.root != rootID {
		t.Skip("no whole v2 hierarchy is mounted here: ", err)
	}
	own := t.TempDir()
	tree, err := find(v1 + "30 23 0:26 / " + own + " rw - cgroup2 cgroup2 rw\n31 23 0:26 / " + real.dir + " rw - cgroup2 cgroup2 rw\n")
	if err != nil || tree.dir != real.dir {
		t.Errorf("tree %+v, error %v, want %s", tree, err, real.dir)
	}
	dirs := []string{real.dir}
	if filepath.Base(real.dir) == "unified" {
		dirs = append(dirs, filepath.Dir(real.dir))
	}
	for _, dir := range dirs {
		if tree, err := findTree(newProc(t, "/proc"), dir); err != nil || tree.dir != real.dir {
			t.Errorf("%s: tree %+v, error %v, want %s", dir, tree, err, real.dir)
		}
	}
	if _, err := findTree(newProc(t, "/proc"), own); err == nil || err.Error() != own+" is no cgroup v2 hierarchy, nor is the directory unified in it" {
		t.Errorf("error %v", err)
	}
}

// TestSource has machines on which not all can be known.
func TestSource(t *testing.T) {
	check := func(name string, o Options, want, reason string) {
		t.Helper()
		got := newResolver(t, o).Source()
		if got.Source != want || !strings.Contains(got.Reason, reason) || reason == "" && got.Reason != "" {
			t.Errorf("%s: %+v, want %q because of %q", name, got, want, reason)
		}
	}
	pidfd := SourceNone
	both := "cgroupfs"
	if _, err := newPidfds(newProc(t, "/proc")); err == nil {
		pidfd, both = "pidfd", "pidfd,cgroupfs"
	}
	const hybrid = "4:memory:/\n1:name=systemd:/init.scope\n0::/init.scope\n"

	f := newFixture(t, v2Host, v2Host)
	check("a mount that shows less", Options{Proc: f.proc}, pidfd, "at "+f.tree+" is no cgroup but this process's own")
	f.mkdir("/a.service")
	check("a cgroup namespace", Options{Proc: f.proc}, both, f.tree+" is of a cgroup namespace: cgroups outside of it have no names there")
	check("not a hierarchy", Options{Proc: f.proc, CgroupFS: f.tree}, pidfd, f.tree+" is no cgroup v2 hierarchy")

	f = newFixture(t, v2Root, v2Root)
	check("a container", Options{Proc: f.proc}, SourceNone, "; ")
	f.write(filepath.Join(f.proc, "7/mountinfo"), "")
	check("cgroup v1 alone", Options{Proc: f.proc}, SourceNone, "no cgroup v2 hierarchy is mounted; ")

	f = newFixture(t, hybrid, hybrid)
	check("hybrid without v2", Options{Proc: f.proc}, SourceNone, "; ")

	if real, err := findTree(newProc(t, "/proc"), ""); err == nil && real.root == rootID {
		f = newFixture(t, v2Host, v2Host)
		check("a whole hierarchy", Options{Proc: f.proc, CgroupFS: real.dir}, both, "")
		f = newFixture(t, hybrid, hybrid)
		check("hybrid", Options{Proc: f.proc, CgroupFS: real.dir}, both, "hybrid: ")
	}
	if _, err := New(Options{Proc: filepath.Join(f.proc, "missing")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want %v", err, fs.ErrNotExist)
	}
}

// TestNames: a name is looked for once, seldom, and stays as long as it is asked
// for, and ten minutes.
func TestNames(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	web := f.mkdir("/system.slice/web.service")
	r := f.resolver(Options{})
	now := time.Now()
	ask := func(ids ...uint64) {
		t.Helper()
		update(t, r, now, ids...)
	}
	searched := func(want bool) {
		t.Helper()
		if got := r.search.began.Equal(now); got != want {
			t.Errorf("searched: %v, want %v", got, want)
		}
	}
	const gone = 1 << 50
	ask(web, gone, rootID)
	searched(true)
	wantLabels(t, r, map[uint64]string{web: "web.service", gone: Unknown, rootID: "/", 4711: Unknown})
	if o := r.Owner(web); o != unit("web.service") {
		t.Errorf("owner %+v", o)
	}
	if o := r.Owner(gone); o.Kind != KindUnknown {
		t.Errorf("owner %+v", o)
	}

	// No search for what is known, or known not to be there.
	now = now.Add(searchPause)
	ask(web, gone)
	searched(false)

	// A new cgroup, but not again within ten seconds.
	db := f.mkdir("/system.slice/db.service")
	ask(web, gone, db)
	searched(true)
	mail := f.mkdir("/system.slice/mail.service")
	now = now.Add(searchPause - 1)
	ask(web, gone, db, mail)
	searched(false)
	wantLabels(t, r, map[uint64]string{db: "db.service", mail: Unknown})
	now = now.Add(1)
	ask(web, gone, db, mail)
	searched(true)
	wantLabels(t, r, map[uint64]string{mail: "mail.service"})

	// A socket may stay for hours after the cgroup of its process has gone.
	f.remove("/system.slice/web.service")
	for range 20 {
		now = now.Add(time.Minute)
		ask(web)
	}
	wantLabels(t, r, map[uint64]string{web: "web.service", db: Unknown, gone: Unknown})
	if len(r.names) != 1 {
		t.Errorf("%d names stay, want 1", len(r.names))
	}
	now = now.Add(keep - 1)
	ask()
	wantLabels(t, r, map[uint64]string{web: "web.service"})
	now = now.Add(1)
	ask()
	wantLabels(t, r, map[uint64]string{web: Unknown})

	// What was not there is looked for again after ten minutes.
	ask(gone)
	searched(true)
	now = now.Add(keep - 1)
	ask(gone)
	searched(false)
	now = now.Add(1)
	ask(gone)
	searched(true)
	if len(r.missing) != 0 {
		t.Errorf("%d names are missing still", len(r.missing))
	}
}

// TestSearchFromBefore: that a search did not find a cgroup that came after its
// begin says nothing.
func TestSearchFromBefore(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	f.mkdir("/a.service")
	r := f.resolver(Options{})
	now := time.Now()
	const gone = 1 << 50
	must(t, r.ask(now, slices.Values([]uint64{gone})))
	r.search = search{stage: walking, began: now}
	r.tree.begin()
	late := f.mkdir("/late.service")
	r.tree.stack = nil // as if it had passed
	now = now.Add(searchPause / 2)
	if err := r.Update(now, slices.Values([]uint64{gone, late})); err != nil {
		t.Error(err)
	}
	if r.search.stage != idle || r.isMissing(gone) || !r.isMissing(late) {
		t.Errorf("missing %v, want %d only", r.missing, late)
	}
	update(t, r, now.Add(searchPause/2), late)
	wantLabels(t, r, map[uint64]string{late: "late.service"})
}

// TestFoundProcess: what a process says of its cgroup is a path from the root of this process's
// cgroup namespace, which is the tree's, unless that shows the whole machine.
func TestFoundProcess(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	in := f.mkdir("/in.service")
	const root, out = 5, 1 << 50 // ids
	for _, tt := range []struct {
		tree         uint64 // the id of its root, 0 for none
		id           uint64
		path, label  string
		inTree, left bool // the path is known in the tree, or the walk is left to find it
	}{
		{root, in, "/in.service", "in.service", true, false},
		{root, out, "/../out.service", "out.service", false, false},
		{root, out, "/../../cri-containerd-" + id1 + ".scope", "containerd:" + id1[:12], false, false},
		{root, root, "/", Unknown, false, false},
		{root, out, "/..", Unknown, false, false},
		{rootID, in, "/in.service", "in.service", true, false},
		{rootID, out, "/in.service", Unknown, false, true}, // another one's by now
		{rootID, out, "/../out.service", Unknown, false, true},
		{0, out, "/out.service", "out.service", false, false},
	} {
		r := f.resolver(Options{})
		if r.tree.root = tt.tree; tt.tree == 0 {
			r.tree = nil
		}
		must(t, r.ask(time.Now(), slices.Values([]uint64{tt.id})))
		r.foundProcess(1, tt.id, []procfs.Cgroup{{Path: tt.path}})
		n := r.names[tt.id]
		if n.label != tt.label || (n.path != "") != tt.inTree || r.isMissing(tt.id) != tt.left {
			t.Errorf("%+v: label %q, path %q, left %v", tt, n.label, n.path, r.isMissing(tt.id))
		}
	}
}

// TestSocketUnit: foo.socket is foo.service once that has a cgroup.
func TestSocketUnit(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	id := f.mkdir("/system.slice/ssh.socket")
	r := f.resolver(Options{})
	now := time.Now()
	update(t, r, now, id)
	wantLabels(t, r, map[uint64]string{id: "ssh.socket"})
	f.mkdir("/system.slice/ssh.service", 7)
	update(t, r, now.Add(time.Second), id)
	wantLabels(t, r, map[uint64]string{id: "ssh.service"})
	f.remove("/system.slice/ssh.service")
	update(t, r, now.Add(2*time.Second), id)
	wantLabels(t, r, map[uint64]string{id: "ssh.service"})
}

// TestShadowed: on a hybrid host the processes tell whether v1 knows better.
func TestShadowed(t *testing.T) {
	const hybrid = "4:memory:/\n1:name=systemd:/init.scope\n0::/init.scope\n"
	f := newFixture(t, hybrid, hybrid)
	containers := "4:memory:/docker/" + id1 + "\n0::/system.slice/docker.service\n"
	f.process(20, "4:memory:/system.slice/web.service\n0::/system.slice/web.service\n")
	f.process(30, hybrid)
	var many []int
	for pid := 1000; pid < 1300; pid++ {
		many = append(many, pid)
		f.process(pid, hybrid)
	}
	f.process(1299, containers)
	web := f.mkdir("/system.slice/web.service", 20, 21) // 21 has ended
	docker := f.mkdir("/system.slice/docker.service", 30)
	busy := f.mkdir("/system.slice/busy.service", many...)
	scope := f.mkdir("/system.slice/docker-"+id2+".scope", 0)
	hidden := f.mkdir("/system.slice/hidden.service", 0)
	socket := f.mkdir("/system.slice/ssh.socket")
	ids := []uint64{web, docker, busy, scope, hidden, socket, rootID}
	r := f.resolver(Options{})
	now := time.Now()
	update(t, r, now, ids...)
	wantLabels(t, r, map[uint64]string{
		web: "web.service", docker: "docker.service", busy: Unknown, scope: "docker:" + id2[:12], hidden: Unknown, socket: "ssh.socket", rootID: "/",
	})
	if o := r.Owner(busy); o.Kind != KindUnknown {
		t.Errorf("owner %+v", o)
	}

	// A container that starts is seen within a minute.
	f.process(31, containers)
	f.mkdir("/system.slice/docker.service", 30, 31)
	update(t, r, now.Add(verifyPause-1), ids...)
	wantLabels(t, r, map[uint64]string{docker: "docker.service"})
	update(t, r, now.Add(verifyPause), ids...)
	wantLabels(t, r, map[uint64]string{docker: Unknown, web: "web.service"})

	// And the root, where all processes are by v2 on a host that does not use it.
	f.mkdir("/", 30, 31)
	update(t, r, now.Add(2*verifyPause), ids...)
	wantLabels(t, r, map[uint64]string{rootID: Unknown})
}

// TestUnreadable: a directory that can't be read hides what is in it, and no more.
func TestUnreadable(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	web := f.mkdir("/system.slice/web.service")
	hidden := f.mkdir("/secret/a.service")
	secret := f.mkdir("/secret")
	withoutCapabilities(t, func() {
		path := filepath.Join(f.tree, "secret")
		must(t, os.Chmod(path, 0))
		defer func() { must(t, os.Chmod(path, 0o755)) }()
		r := f.resolver(Options{})
		now := time.Now()
		for range 2 {
			err := tryUpdate(t, r, now, web, hidden, secret)
			if want := "open " + path + ": permission denied"; err == nil || err.Error() != want {
				t.Errorf("error %v, want %q", err, want)
			}
			now = now.Add(time.Second)
		}
		wantLabels(t, r, map[uint64]string{web: "web.service", hidden: Unknown, secret: "/secret"})
		must(t, os.Chmod(path, 0o755))
		update(t, r, now.Add(keep), web, hidden)
		wantLabels(t, r, map[uint64]string{hidden: "a.service"})
	})
}

// TestNamesOfBytes has what a directory may be called, on any file system.
func TestNamesOfBytes(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	want := make(map[uint64]string)
	for name, label := range map[string]string{
		`/"quotes'\`:                   `/"quotes'\`,
		"/a\rb":                        "/a\rb",
		"/end\r":                       "/end\r",
		"/\xff\xfe.service":            "\uFFFD.service",
		`/x\x2dy.service`:              `x\x2dy.service`,
		"/a.service (deleted)":         "a.service",
		"/..a.scope":                   "..a.scope",
		"/" + strings.Repeat("x", 255): "/" + strings.Repeat("x", 254),
	} {
		want[f.mkdir(name)] = label
	}
	r := f.resolver(Options{})
	update(t, r, time.Now(), slices.Collect(maps.Keys(want))...)
	wantLabels(t, r, want)
}

// TestLongPath: of a path that is too long for the kernel only the beginning is
// known.
func TestLongPath(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	dir := strings.Repeat("d", 250)
	fd, err := unix.Open(f.tree, unix.O_DIRECTORY, 0)
	must(t, err)
	var ids []uint64
	for range 20 {
		var stat unix.Stat_t
		must(t, errors.Join(unix.Mkdirat(fd, dir, 0o755), unix.Fstatat(fd, dir, &stat, 0)))
		next, err := unix.Openat(fd, dir, unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
		ids = append(ids, stat.Ino)
	}
	unix.Close(fd)
	web := f.mkdir("/web.service")
	r := f.resolver(Options{})
	err = tryUpdate(t, r, time.Now(), append(ids, web)...)
	if !errors.Is(err, unix.ENAMETOOLONG) || len(err.Error()) > 2*pathBytes {
		t.Errorf("error %v, want a short one of %v", err, unix.ENAMETOOLONG)
	}
	wantLabels(t, r, map[uint64]string{web: "web.service", ids[0]: "/" + dir, ids[10]: ("/" + dir + "/" + dir)[:pathBytes], ids[19]: Unknown})
}

// TestStorm starts 10,000 containers within ten minutes, each for less than one scrape and
// most gone before they are looked for, and has sockets of more cgroups than are remembered.
func TestStorm(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	web := f.mkdir("/system.slice/web.service")
	r := f.resolver(Options{})
	now := time.Now()
	searches, began := 0, r.search.began
	for scrape := range 40 { // every 15 s
		now = now.Add(15 * time.Second)
		ids, want := []uint64{web}, map[uint64]string{web: "web.service"}
		for i := range uint64(245) {
			ids = append(ids, 1<<40+uint64(scrape)<<20+i)
			want[ids[i+1]] = Unknown
		}
		for i := range 5 {
			id := f.mkdir(fmt.Sprintf("/docker/%032x%032x", scrape, i))
			ids, want[id] = append(ids, id), fmt.Sprintf("docker:%032x", scrape)[:len("docker:")+12]
		}
		update(t, r, now, ids...)
		wantLabels(t, r, want)
		if !r.search.began.Equal(began) {
			searches, began = searches+1, r.search.began
		}
	}
	if len(r.names) > maxNames || len(r.missing) > 0 || searches > 40 {
		t.Errorf("%d names, %d missing, %d searches", len(r.names), len(r.missing), searches)
	}

	now = now.Add(15 * time.Second)
	ids := []uint64{web}
	for i := range uint64(maxNames + 10) {
		ids = append(ids, 1<<41+i)
	}
	err := tryUpdate(t, r, now, ids...)
	if want := fmt.Sprintf("sockets are of more than %d cgroups: the owners of the others are unknown", maxNames); err == nil || err.Error() != want || len(r.names) != maxNames {
		t.Errorf("error %v with %d names, want %q", err, len(r.names), want)
	}
	wantLabels(t, r, map[uint64]string{web: "web.service"})
	update(t, r, now.Add(keep), web)
	if len(r.names) != 1 {
		t.Errorf("%d names stay", len(r.names))
	}
}

// TestUpdateAllocations: a scrape that finds nothing new allocates no more for 200
// cgroups than for one.
func TestUpdateAllocations(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	var ids []uint64
	for i := range 200 {
		ids = append(ids, f.mkdir(fmt.Sprintf("/system.slice/%d.service", i)))
	}
	r := f.resolver(Options{PodLogs: t.TempDir()})
	now := time.Now()
	update(t, r, now, ids...)
	r.podRead = now
	all := slices.Values(ids)
	if n := testing.AllocsPerRun(100, func() { must(t, r.Update(now, all)) }); n > 3 {
		t.Errorf("%v allocations", n)
	}
}
