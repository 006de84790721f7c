package owner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// rootID is the id of the root cgroup, and what sockets have where there is no v2
// hierarchy (cgroup_init in kernel/cgroup/cgroup.c).
const rootID = 1

const (
	maxDirectories = 1 << 16   // of one walk
	maxProcs       = 256 << 10 // bytes of one cgroup.procs: some 35,000 processes
)

// tree is a hierarchy of cgroup v2 in the file system. The id of a cgroup is the
// inode number of its directory (kernfs_id in include/linux/kernfs.h; on 32-bit
// kernels only its lower half).
type tree struct {
	dir  string // where it is mounted
	root uint64 // the id of the cgroup there; not rootID in a cgroup namespace

	// The walk under way.
	stack   []string // paths to be visited
	visited int
	err     error // the first directory that could not be read
}

// findTree returns the v2 hierarchy at dir, which may be the directory of a hybrid
// host's that holds all hierarchies, or without dir the one that mountinfo says.
func findTree(proc procfs.FS, dir string) (*tree, error) {
	if dir != "" {
		for _, dir := range []string{dir, filepath.Join(dir, "unified")} {
			var stat unix.Statfs_t
			switch err := unix.Statfs(dir, &stat); {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return nil, &fs.PathError{Op: "statfs", Path: dir, Err: err}
			case int64(stat.Type) == unix.CGROUP2_SUPER_MAGIC:
				return openTree(dir)
			}
		}
		return nil, fmt.Errorf("%s is no cgroup v2 hierarchy, nor is the directory unified in it", dir)
	}
	mounts, err := proc.GetMounts()
	if err != nil {
		return nil, fmt.Errorf("self/mountinfo: %w", err)
	}
	var found *tree
	for _, m := range mounts {
		if m.FSType != "cgroup2" {
			continue
		}
		t, openErr := openTree(unescapeOctal(m.MountPoint))
		if openErr != nil {
			err = openErr
			continue
		}
		if t.root == rootID {
			return t, nil
		}
		if found == nil {
			found = t
		}
	}
	switch {
	case found != nil:
		return found, nil
	case err != nil:
		return nil, err
	}
	return nil, errors.New("no cgroup v2 hierarchy is mounted")
}

func openTree(dir string) (*tree, error) {
	stat, err := lstat(dir)
	return &tree{dir: dir, root: stat.Ino}, err
}

// unescapeOctal undoes the escapes of mountinfo, such as \040 for a space
// (mangle in fs/proc_namespace.c).
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func lstat(path string) (unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return stat, &fs.PathError{Op: "lstat", Path: cut(path), Err: err}
	}
	return stat, nil
}

// isLeaf reports whether a directory has none in it: their number is what its links
// are more than 2 (kernfs_refresh_inode in fs/kernfs/inode.c).
func isLeaf(stat *unix.Stat_t) bool { return stat.Nlink == 2 }

// empty reports whether there is no cgroup but the one at the root.
func (t *tree) empty() bool {
	stat, err := lstat(t.dir)
	return err != nil || isLeaf(&stat)
}

// id returns the id of the cgroup at a path below the root, 0 if there is none.
func (t *tree) id(path string) uint64 {
	if path == "/.." || strings.HasPrefix(path, "/../") {
		return 0 // above the root
	}
	stat, err := lstat(t.dir + path)
	if err != nil {
		return 0
	}
	return stat.Ino
}

// begin begins a walk at the root.
func (t *tree) begin() {
	t.stack, t.visited, t.err = append(t.stack[:0], "/"), 0, nil
}

// walk goes on with a walk until the deadline, by one directory at least, or until
// visit returns false, and reports whether there is more. When there is not, an error tells what was left
// out. A cgroup that goes meanwhile is left out without one.
func (t *tree) walk(deadline time.Time, visit func(id uint64, path string) bool) (more bool, err error) {
	for len(t.stack) > 0 {
		path := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		t.visited++
		if !t.look(path, visit) {
			break
		}
		if len(t.stack) > 0 && !time.Now().Before(deadline) {
			return true, nil
		}
	}
	t.stack = nil
	return false, t.err
}

// look visits a directory and puts those in it on the stack.
func (t *tree) look(path string, visit func(id uint64, path string) bool) bool {
	stat, err := lstat(t.dir + path)
	if err != nil {
		t.failed(err)
		return true
	}
	if !visit(stat.Ino, path) {
		return false
	}
	if !isLeaf(&stat) {
		t.failed(t.push(path))
	}
	return true
}

// push puts the directories in one on the stack.
func (t *tree) push(path string) error {
	f, err := os.Open(t.dir + path)
	if err != nil {
		return err
	}
	defer f.Close()
	if path == "/" {
		path = ""
	}
	for {
		const some = 512
		entries, err := f.ReadDir(some)
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if t.visited+len(t.stack) >= maxDirectories {
				return fmt.Errorf("%s has more than %d directories", t.dir, maxDirectories)
			}
			t.stack = append(t.stack, path+"/"+e.Name())
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// failed notes the first error of the walk. It is no error that a directory has
// gone: then lookups say ENOENT, and open files of it ENODEV.
func (t *tree) failed(err error) {
	if t.err != nil || err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return
	}
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = &fs.PathError{Op: pathErr.Op, Path: cut(pathErr.Path), Err: pathErr.Err}
	}
	t.err = err
}

// processes returns the ids of the processes in a cgroup, in ascending order, and
// whether there are others of a PID namespace that this process does not see.
func (t *tree) processes(path string) (pids []int, hidden bool) {
	f, err := os.Open(filepath.Join(t.dir, path, "cgroup.procs"))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxProcs))
	if err != nil {
		return nil, false // it has gone, or it is threaded
	}
	for line := range strings.Lines(string(text)) {
		number, whole := strings.CutSuffix(line, "\n")
		pid, err := strconv.Atoi(number)
		switch {
		case !whole || err != nil:
		case pid == 0:
			hidden = true
		default:
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, hidden
}
