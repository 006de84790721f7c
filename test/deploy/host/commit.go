package host

import (
	"path/filepath"
	"testing"
)

// Commit returns a git repository of one commit that holds the checkout as it stands,
// with what is not committed yet.
func Commit(t testing.TB) string {
	t.Helper()
	checkout, repo := Checkout(t), filepath.Join(t.TempDir(), "repo.git")
	Run(t, "", "git", "init", "--quiet", "--bare", "--initial-branch=main", repo)
	git := []string{"--git-dir=" + repo, "--work-tree=" + checkout, "-c", "user.name=test", "-c", "user.email=test@localhost"}
	Run(t, checkout, "git", append(git, "add", "--all")...)
	Run(t, checkout, "git", append(git, "commit", "--quiet", "--message=the checkout")...)
	return repo
}
