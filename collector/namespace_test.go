package collector

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFindNamespaceCopy has copies of a proc file system.
func TestFindNamespaceCopy(t *testing.T) {
	f := func(name, dir string, files ...string) {
		t.Helper()
		root := t.TempDir()
		for _, file := range files {
			writeFile(t, filepath.Join(root, file), "")
		}
		got, err := FindNamespace(root)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Namespace{Name: name, Dir: filepath.Join(root, dir), OwnSysctls: true}); got != want {
			t.Errorf("%q: %+v, want %+v", files, got, want)
		}
	}
	f("host", "1/net", "1/net/tcp")
	f("host", "1/net", "1/net/tcp", "net/tcp", "self/net/tcp")
	f("self", "net", "net/tcp")
	f("self", "net", "net/tcp", "self/net/tcp", "2/net/tcp")
}

func TestFindNamespaceMissing(t *testing.T) {
	f := func(root string, parts ...string) {
		t.Helper()
		ns, err := FindNamespace(root)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: %+v and %v", root, ns, err)
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %s", err, part)
			}
		}
	}
	empty := t.TempDir()
	f(empty, filepath.Join(empty, "1/net"), filepath.Join(empty, "net"))
	missing := filepath.Join(empty, "missing")
	f(missing, missing)
	// A proc file system without PID 1: its net directory is this process's own.
	f("/proc/self/task", "hidepid")
}

// TestFindNamespaceUnreadable does not take what can't be seen for missing.
func TestFindNamespaceUnreadable(t *testing.T) {
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "1/net/tcp"), "")
	writeFile(t, filepath.Join(root, "net/tcp"), "")
	first := filepath.Join(root, "1")
	if err := os.Chmod(first, 0); err != nil {
		t.Fatal(err)
	}
	withoutCapabilities(t, func() {
		if ns, err := FindNamespace(root); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%+v and %v", ns, err)
		}
	})
	if err := os.Chmod(first, 0o755); err != nil { // for who removes it
		t.Fatal(err)
	}
}

// TestFindNamespaceOfThisKernel reads the namespace that this process is in,
// however /proc is written.
func TestFindNamespaceOfThisKernel(t *testing.T) {
	name := "self"
	if sameNamespace("/proc/1/net", "/proc/self/net") {
		name = "host"
	}
	for _, root := range []string{"/proc", "/proc/", "//proc/."} {
		got, err := FindNamespace(root)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Namespace{Name: name, Dir: filepath.Join(root, "self/net"), Own: true, OwnSysctls: true}); got != want {
			t.Errorf("%s: %+v, want %+v", root, got, want)
		}
	}
}

func TestSameNamespace(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(a, "tcp"), "")
	writeFile(t, filepath.Join(b, "tcp"), "")
	f := func(x, y string, want bool) {
		t.Helper()
		if got := sameNamespace(x, y); got != want {
			t.Errorf("%s and %s: %v", x, y, got)
		}
	}
	f(a, a, true)
	f(a, b, false)
	f(a, filepath.Join(b, "missing"), false)
	f(filepath.Join(a, "missing"), filepath.Join(a, "missing"), false)
	f("/proc/self/net", "/proc/thread-self/net", true)
}
