// Package host is the machine that the deployment tests run on: its programs, its
// rights and the checkout under test.
package host

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Checkout returns the absolute path of the repository's root.
func Checkout(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(Run(t, "", "git", "rev-parse", "--show-toplevel"))
}

// Needs skips the test unless all programs are installed.
func Needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
}

// NeedsRoot skips the test unless it runs as root.
func NeedsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// Read returns the content of a file.
func Read(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Run runs a program in dir, or where the test runs if that is empty, and returns
// what it printed to standard output. Unless it exits with 0, the test ends with
// all of its output.
func Run(t testing.TB, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}
