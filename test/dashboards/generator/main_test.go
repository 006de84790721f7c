package main

import (
	"os/exec"
	"testing"
)

// TestGenerated holds the dashboards to the program that writes them.
func TestGenerated(t *testing.T) {
	const repository = "../../.."
	fresh := t.TempDir()
	if err := generate(repository, fresh); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("diff", "--recursive", "--exclude=README.md", "--exclude=*.png", repository+"/dashboards", fresh).CombinedOutput(); err != nil {
		t.Errorf("the dashboards are not what make dashboards writes: %v\n%s", err, out)
	}
}
