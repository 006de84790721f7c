package owner

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/procfs"
)

const (
	id1    = "63425c4a2f1d0b6c8e9f7a5b3c1d2e4f60718293a4b5c6d7e8f9012345678abc"
	id2    = "ba7b10d15d16a0e3d3b7a5d8f2c4e6a8b0c2d4e6f8091a2b3c4d5e6f70819abc"
	podA   = "8712f785-1a3e-41ec-a00b-e2dcc77431cb"
	podA_  = "8712f785_1a3e_41ec_a00b_e2dcc77431cb"
	static = "9729a196c4723b60ab401eaff722982d"
	alloc  = "0e5c2b1a-7d3f-4b6e-9c8d-1a2b3c4d5e6f"
)

func unit(name string) Owner { return Owner{Kind: KindUnit, Unit: name} }

// text is an owner as testdata/paths.txt has it.
func text(o Owner) string {
	text := o.Label() + " " + string(o.Kind)
	for _, field := range [][2]string{
		{"runtime", o.Runtime}, {"unit", o.Unit}, {"pod", o.PodUID}, {"container", o.Container}, {"id", o.ContainerID}, {"path", o.Path},
	} {
		if field[1] != "" {
			text += " " + field[0] + "=" + field[1]
		}
	}
	return text
}

// samples are the paths of testdata/paths.txt and what they say.
func samples(t testing.TB, f func(path, want string)) {
	t.Helper()
	file, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.NewReplacer("{id}", id1, "{short}", id1[:12], "{other}", id2, "{othershort}", id2[:12],
		"{pod}", podA, "{pod_}", podA_, "{static}", static, "{alloc}", alloc)
	var path string
	for line := range strings.Lines(names.Replace(string(file))) {
		line = strings.TrimSuffix(line, "\n")
		switch want, found := strings.CutPrefix(line, "\t"); {
		case found:
			f(path, want)
		case strings.HasPrefix(line, "/"):
			path = line
		}
	}
}

func TestParse(t *testing.T) {
	samples(t, func(path, want string) {
		got := Parse(path)
		if text(got) != want {
			t.Errorf("%s\n got %s\nwant %s", path, text(got), want)
		}
		for _, same := range []string{path + " (deleted)", "/../.." + path} {
			if again := Parse(same); again != got && same != "/../../" {
				t.Errorf("%s\n got %s\nwant %s", same, text(again), want)
			}
		}
	})
	for _, path := range []string{"", "nginx.service", "/..", "/../..", "/../", "/.. (deleted)", " (deleted)"} {
		if got := Parse(path); got != (Owner{Kind: KindUnknown}) {
			t.Errorf("%q\n got %s, want nothing", path, text(got))
		}
	}
}

// TestParseHostile has names that a user may give to cgroups of their own.
func TestParseHostile(t *testing.T) {
	f := func(path, label string) {
		t.Helper()
		o := Parse(path)
		if got := o.Label(); got != label {
			t.Errorf("%.200q: label %.200q, want %.200q", path, got, label)
		}
	}
	f(`/a"b'c\`, `/a"b'c\`)
	f("/a\rb", "/a\rb")
	f("/system.slice/\xff\xfe.service", "\uFFFD.service")
	f("/a/\xff", "/a/\uFFFD")
	f("/lxc/\xc3", "lxc:\uFFFD")
	f("/x (deleted) (deleted)", "/x (deleted)")
	long := strings.Repeat("/"+strings.Repeat("x", 250), 16)
	f(long, long[:255])
	f(long+"/a.service", "a.service")
	f(long+"/docker-"+id1+".scope", "docker:"+id1[:12])
	f("/"+strings.Repeat("ä", 400), "/"+strings.Repeat("ä", 127)) // whole characters
	f("/"+strings.Repeat("€", 400), "/"+strings.Repeat("€", 84))
}

// TestParseAllocations: only a path that has to be changed is copied.
func TestParseAllocations(t *testing.T) {
	samples(t, func(path, _ string) {
		limit := 0.0
		if strings.Contains(path, podA_) || strings.Contains(path, `\x2d`) {
			limit = 1
		}
		if n := testing.AllocsPerRun(10, func() { Parse(path) }); n > limit {
			t.Errorf("%s: %v allocations, want at most %v", path, n, limit)
		}
	})
}

func TestOfProcess(t *testing.T) {
	v1 := func(id int, controller, path string) procfs.Cgroup {
		return procfs.Cgroup{HierarchyID: id, Controllers: []string{controller}, Path: path}
	}
	v2 := func(path string) procfs.Cgroup { return procfs.Cgroup{Path: path} }
	f := func(want string, cgroups ...procfs.Cgroup) {
		t.Helper()
		o := OfProcess(cgroups)
		if got := o.Label(); got != want {
			t.Errorf("%+v: %q, want %q", cgroups, got, want)
		}
	}
	pod := "/kubepods/pod" + podA + "/" + id1
	f("unknown")
	f("nginx.service", v2("/system.slice/nginx.service"))
	f("nginx.service", v1(4, "cpu", "/"), v1(1, "name=systemd", "/system.slice/nginx.service"))
	f("docker:"+id1[:12], v1(4, "cpu", "/docker/"+id1), v1(1, "name=systemd", "/system.slice/docker.service"), v2("/system.slice/docker.service"))
	f("pod:"+podA+"/"+id1[:12], v1(1, "name=systemd", "/docker/"+id2), v1(4, "memory", pod))
	f("/", v1(4, "cpu", "/"), v2("/"))
	f("a.service", v2("/system.slice/a.service"), v1(1, "name=systemd", "/system.slice/b.service"))
	f("unknown", v1(9, "devices", "/docker/"+id1)) // tells nothing of a hierarchy that is not asked
}

func FuzzParse(f *testing.F) {
	samples(f, func(path, _ string) { f.Add(path) })
	f.Add("/\xff/..")
	f.Fuzz(func(t *testing.T, path string) {
		o := Parse(path)
		label := o.Label()
		if label == "" || !utf8.ValidString(label) || o.Kind == "" {
			t.Errorf("%q: label %q of %+v", path, label, o)
		}
		if len(label) > 3*len(path)+len("container:")+len(Unknown) {
			t.Errorf("%q: label %q is longer than the path", path, label)
		}
		if again := Parse(path + " (deleted)"); again != o && !strings.HasSuffix(path, " (deleted)") {
			t.Errorf("%q: deleted it is %+v, else %+v", path, again, o)
		}
		if strings.HasPrefix(path, "/") && o.Kind != KindRoot {
			if again := Parse("/.." + path); again != o {
				t.Errorf("%q: from a cgroup namespace it is %+v, else %+v", path, again, o)
			}
		}
		if (label == Unknown) != (o.Kind == KindUnknown) || label == Other {
			t.Errorf("%q: label %q of kind %s", path, label, o.Kind)
		}
	})
}
