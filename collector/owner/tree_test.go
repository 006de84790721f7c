package owner

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

func newTree(t *testing.T) *tree {
	t.Helper()
	tree, err := openTree(t.TempDir())
	must(t, err)
	return tree
}

func TestWalk(t *testing.T) {
	tree := newTree(t)
	want := map[uint64]string{tree.root: "/"}
	for i := range 20 {
		for j := range 30 {
			path := fmt.Sprintf("/a%d/b%d", i, j)
			must(t, os.MkdirAll(tree.dir+path, 0o755))
			want[tree.id(path)] = path
			want[tree.id(filepath.Dir(path))] = filepath.Dir(path)
		}
	}
	must(t, os.WriteFile(tree.dir+"/a0/cgroup.procs", nil, 0o644))
	must(t, os.Symlink("/", tree.dir+"/link"))

	if id := tree.id("/../" + filepath.Base(tree.dir)); id != 0 {
		t.Errorf("%d is outside of the tree", id)
	}

	// However little time there is, each is visited once.
	for _, budget := range []time.Duration{0, 100 * time.Microsecond, time.Hour} {
		got := make(map[uint64]string)
		calls := 0
		tree.begin()
		for more := true; more; calls++ {
			var err error
			more, err = tree.walk(time.Now().Add(budget), func(id uint64, path string) bool {
				if got[id] != "" {
					t.Errorf("%s twice", path)
				}
				got[id] = path
				return true
			})
			must(t, err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("directories %v, want %v", got, want)
		}
		if budget == 0 && calls != len(want) || budget == time.Hour && calls != 1 {
			t.Errorf("%d calls of %v for %d directories", calls, budget, len(want))
		}
	}

	// It ends when it has what is wanted.
	tree.begin()
	visits := 0
	more, err := tree.walk(time.Now().Add(time.Hour), func(uint64, string) bool { visits++; return visits < 5 })
	if more || err != nil || visits != 5 {
		t.Errorf("%d visits, more %v, error %v", visits, more, err)
	}
}

// TestWalkChanges changes the tree under the walk.
func TestWalkChanges(t *testing.T) {
	tree := newTree(t)
	mkdir := func(path string) {
		must(t, os.MkdirAll(tree.dir+path, 0o755))
	}
	for _, path := range []string{"/a/a", "/b/b", "/c/c"} {
		mkdir(path)
	}
	var got []string
	tree.begin()
	_, err := tree.walk(time.Now().Add(time.Hour), func(_ uint64, path string) bool {
		got = append(got, path)
		if len(path) == len("/a") && len(got) == 2 { // the first of the three
			for _, other := range []string{"/a", "/b", "/c"} {
				if other != path {
					os.RemoveAll(tree.dir + other)
				}
			}
			mkdir(path + "/new")
		}
		return true
	})
	slices.Sort(got)
	if err != nil || len(got) != 4 || !strings.HasSuffix(got[3], "/new") && !strings.HasSuffix(got[2], "/new") {
		t.Errorf("visited %q, error %v", got, err)
	}
}

func TestWalkBound(t *testing.T) {
	tree := newTree(t)
	for i := range 10 {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", tree.dir, i), 0o755))
	}
	tree.begin()
	tree.visited = maxDirectories - 5
	visits := 0
	_, err := tree.walk(time.Now().Add(time.Hour), func(uint64, string) bool { visits++; return true })
	if want := fmt.Sprintf("%s has more than %d directories", tree.dir, maxDirectories); err == nil || err.Error() != want || visits != 5 {
		t.Errorf("%d visits, error %v, want %q", visits, err, want)
	}
}

func TestTreeProcesses(t *testing.T) {
	tree := newTree(t)
	f := func(text string, want []int, wantHidden bool) {
		t.Helper()
		must(t, os.WriteFile(tree.dir+"/cgroup.procs", []byte(text), 0o644))
		pids, hidden := tree.processes("/")
		if !slices.Equal(pids, want) || hidden != wantHidden {
			t.Errorf("%.20q: %.20v, hidden %v, want %.20v, %v", text, pids, hidden, want, wantHidden)
		}
	}
	f("", nil, false)
	f("12\n7\n300\n", []int{7, 12, 300}, false)
	f("0\n0\n", nil, true)
	f("0\n9\n", []int{9}, true)
	f("9\nx\n8", []int{9}, false) // torn
	long := strings.Repeat("1234567\n", maxProcs)
	f(long, slices.Repeat([]int{1234567}, maxProcs/8), false)
	if pids, hidden := tree.processes("/missing"); pids != nil || hidden {
		t.Errorf("%v, hidden %v", pids, hidden)
	}
}

// TestPidfds asks the kernel for the cgroups of all processes, a few at a time.
func TestPidfds(t *testing.T) {
	p, err := newPidfds(newProc(t, "/proc"))
	if err != nil {
		t.Skip("needs Linux 6.13: ", err)
	}
	asked, found := make(map[int]int), 0
	wanted := func(id uint64) bool { return id != 0 }
	p.begin()
	for more := true; more; {
		before := found
		if more, err = p.search(time.Now(), wanted, func(pid int, _ uint64, cgroups []procfs.Cgroup) {
			asked[pid]++
			found++
			if _, ok := pathIn(cgroups, ""); !ok {
				t.Errorf("%d is in no v2 cgroup: %v", pid, cgroups)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if found > before+1 {
			t.Errorf("%d processes without time for one", found-before)
		}
	}
	if asked[os.Getpid()] != 1 || len(asked) != found {
		t.Errorf("this process was found %d times, %d processes %d times", asked[os.Getpid()], len(asked), found)
	}
}

func TestUnescapeOctal(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/sys/fs/cgroup": "/sys/fs/cgroup", `/a\040b\011c\012d\134e\043`: "/a b\tc\nd\\e#",
		`\777`: `\777`, `\04`: `\04`, `\08x`: `\08x`, `\`: `\`, `\134040`: `\040`, "\xff": "\xff",
	} {
		if got := unescapeOctal(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
