package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// defaultProc is where the kernel's own proc file system is expected.
const defaultProc = "/proc"

// procSuperMagic is the f_type of a proc file system (PROC_SUPER_MAGIC in
// include/uapi/linux/magic.h).
const procSuperMagic = 0x9fa0

// Namespace tells which network namespace is read, and from where.
type Namespace struct {
	// Name is the netns label: "host" for the namespace of PID 1 in the proc
	// file system in use, else "self".
	Name string
	// Dir is its net directory.
	Dir string
	// Own is whether it is the namespace of this process.
	Own bool
	// OwnSysctls is whether the net sysctls this process sees are those of the
	// namespace. The kernel shows a process the sysctls of its own namespace,
	// whichever mount of proc it looks at (net/sysctl_net.c).
	OwnSysctls bool
}

// FindNamespace chooses the network namespace to read below root, a mount of the
// proc file system or a copy of one.
//
// For /proc it is the namespace of this process. For another mount it is the one
// of PID 1, because <root>/net is a link to self and shows the namespace of this
// process again. Only a copy, which has no such link, may do without <root>/1.
func FindNamespace(root string) (Namespace, error) {
	self := filepath.Join(root, "self/net")
	first := filepath.Join(root, "1/net")
	if filepath.Clean(root) == defaultProc {
		ns := Namespace{Name: "self", Dir: self, Own: true, OwnSysctls: true}
		if _, err := os.Stat(self); err != nil {
			return Namespace{}, err
		}
		if sameNamespace(self, first) {
			ns.Name = "host"
		}
		return ns, nil
	}

	mounted, err := isProc(root)
	if err != nil {
		return Namespace{}, err
	}
	_, err = os.Stat(first)
	switch {
	case err == nil:
		own := mounted && sameNamespace(first, filepath.Join(defaultProc, "self/net"))
		return Namespace{Name: "host", Dir: first, Own: own, OwnSysctls: own || !mounted}, nil
	case mounted:
		return Namespace{}, fmt.Errorf("%w: %s is a proc file system whose PID 1 can't be seen (hidepid?), and its net directory is this process's own", err, root)
	case !errors.Is(err, fs.ErrNotExist):
		return Namespace{}, err
	}
	dir := filepath.Join(root, "net")
	if _, err := os.Stat(dir); err != nil {
		return Namespace{}, fmt.Errorf("neither %s nor %w", first, err)
	}
	return Namespace{Name: "self", Dir: dir, OwnSysctls: true}, nil
}

func isProc(root string) (bool, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(root, &stat); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: root, Err: err}
	}
	return int64(stat.Type) == procSuperMagic, nil
}

// sameNamespace reports whether two net directories are of one namespace. The
// inode of a file in them tells, and unlike /proc/PID/ns/net it needs no right to
// trace the process. What can't be read is taken for another namespace.
func sameNamespace(a, b string) bool {
	inodeA, errA := netInode(a)
	inodeB, errB := netInode(b)
	return errA == nil && errB == nil && inodeA == inodeB
}

// netInode returns the inode that tells the namespace of a net directory.
func netInode(dir string) (uint64, error) {
	path := filepath.Join(dir, "tcp")
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stat.Ino, nil
}
