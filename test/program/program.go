// Package program is the exporter that tests run: built once for all tests of a package.
package program

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// pathEnv is the path of the exporter under test. Whoever has no Go toolchain at hand
// may set it.
const pathEnv = "KERNEL_TEST_PROGRAM"

// Path is that of the program, once Main has built it.
func Path() string { return os.Getenv(pathEnv) }

// Main is a TestMain that builds the program from the checkout in that directory, unless
// it is there already: for the copies of the test that are run in other namespaces it is.
func Main(m *testing.M, checkout string) {
	if Path() != "" {
		os.Exit(m.Run())
	}
	code, err := buildAndRun(m, checkout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M, checkout string) (int, error) {
	dir, err := os.MkdirTemp("", "timewait_exporter")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)                      //nolint:errcheck // it is below the temporary directory
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it too
		return 0, err
	}
	path, err := Build(context.Background(), checkout, dir)
	if err != nil {
		return 0, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users may run it too
		return 0, err
	}
	if err := os.Setenv(pathEnv, path); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// Build builds the program, static as it is shipped, into dir and returns its path.
func Build(ctx context.Context, checkout, dir string) (string, error) {
	path := filepath.Join(dir, "timewait_exporter")
	build := exec.CommandContext(ctx, "go", "-C", checkout, "build", "-buildvcs=false", "-o", path, "./cmd/timewait_exporter")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return path, nil
}
