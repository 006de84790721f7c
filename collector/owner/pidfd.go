package owner

import (
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// pidfds asks the kernel for the cgroup ids of processes, which it tells since
// Linux 6.13 without any right (pidfd_info in fs/pidfs.c):
//
//	#define PIDFD_GET_INFO _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
//	#define PIDFD_INFO_CGROUPID (1UL << 2) // Always returned if available, even if not requested
//
// Cgroups without a process it does not find.
type pidfds struct {
	proc procfs.FS // of this process's PID namespace
	next int       // the first process that the search under way has not asked
}

// newPidfds fails where the kernel does not tell.
func newPidfds(proc procfs.FS) (*pidfds, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if _, err := cgroupID(fd); err != nil {
		return nil, err
	}
	return &pidfds{proc: proc}, nil
}

// cgroupID returns the id of the v2 cgroup of a process.
func cgroupID(pidfd int) (uint64, error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CGROUPID}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil {
		return 0, fmt.Errorf("ioctl PIDFD_GET_INFO: %w", err)
	}
	if info.Mask&unix.PIDFD_INFO_CGROUPID == 0 {
		return 0, fmt.Errorf("ioctl PIDFD_GET_INFO has no cgroup id: %w", unix.ENODATA)
	}
	return info.Cgroupid, nil
}

// begin begins a search with the first process.
func (p *pidfds) begin() { p.next = 0 }

// search goes on with a search until the deadline, by one process at least, and
// reports whether there is more. For each process whose cgroup id is wanted it calls found. A process that
// ends meanwhile is left out.
func (p *pidfds) search(deadline time.Time, wanted func(id uint64) bool, found func(pid int, id uint64, cgroups []procfs.Cgroup)) (more bool, err error) {
	procs, err := p.proc.AllProcs()
	if err != nil {
		return false, err
	}
	sort.Sort(procs)
	i := sort.Search(len(procs), func(i int) bool { return procs[i].PID >= p.next })
	for ; i < len(procs); i++ {
		p.ask(procs[i], wanted, found)
		p.next = procs[i].PID + 1
		if !time.Now().Before(deadline) {
			return i+1 < len(procs), nil
		}
	}
	return false, nil
}

func (p *pidfds) ask(proc procfs.Proc, wanted func(uint64) bool, found func(int, uint64, []procfs.Cgroup)) {
	fd, err := unix.PidfdOpen(proc.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	id, err := cgroupID(fd)
	if err != nil || !wanted(id) {
		return
	}
	cgroups, err := proc.Cgroups()
	if err != nil {
		return
	}
	// The file was of this process, and of this cgroup, if it is still there.
	if again, err := cgroupID(fd); err == nil && again == id {
		found(proc.PID, id, cgroups)
	}
}
