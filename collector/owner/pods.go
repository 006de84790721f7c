package owner

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// podLogs is the directory in which a kubelet keeps the logs of its pods
// (pkg/kubelet/kuberuntime/helpers.go in Kubernetes). Their names tell those of
// pods and containers:
//
//	pods/<namespace>_<pod>_<uid>/
//	containers/<pod>_<namespace>_<container>-<id>.log
type podLogs string

// NamePods names those of owners that are of pods and have no names yet, by the logs
// that a kubelet keeps below dir, until the deadline. It is no error that it keeps none.
func NamePods(dir string, deadline time.Time, owners []*Owner) error {
	wanted := make(map[string][]*Owner) // by UID and by container id
	for _, o := range owners {
		if o.Kind == KindPod && o.Pod == "" {
			wanted[o.PodUID] = append(wanted[o.PodUID], o)
		}
		if o.Kind == KindPod && o.Container == "" && o.ContainerID != "" {
			wanted[o.ContainerID] = append(wanted[o.ContainerID], o)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	return podLogs(dir).read(deadline, func(key, namespace, pod, container string) {
		for _, o := range wanted[key] {
			o.Namespace, o.Pod = namespace, pod
			o.Container = cmp.Or(container, o.Container)
		}
	})
}

// maxEntries is how much of one of the two directories is read. A node has some
// hundred pods.
const maxEntries = 20_000

// read calls f for each pod with its UID, and for each container with its id, until
// the deadline. It is no error that there are no such directories.
func (dir podLogs) read(deadline time.Time, f func(key, namespace, pod, container string)) error {
	return errors.Join(
		dir.names("pods", deadline, func(name string) {
			if parts := strings.Split(name, "_"); len(parts) == 3 {
				f(parts[2], parts[0], parts[1], "")
			}
		}),
		dir.names("containers", deadline, func(name string) {
			name, isLog := strings.CutSuffix(name, ".log")
			i := strings.LastIndexByte(name, '-')
			if !isLog || i < 0 {
				return
			}
			if parts := strings.Split(name[:i], "_"); len(parts) == 3 {
				f(name[i+1:], parts[1], parts[0], parts[2])
			}
		}))
}

// names calls f for each name in a directory, in which any bytes may be, repaired.
func (dir podLogs) names(sub string, deadline time.Time, f func(name string)) error {
	path := filepath.Join(string(dir), sub)
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for n := 0; n < maxEntries; {
		const some = 512
		names, err := d.Readdirnames(some)
		for _, name := range names {
			f(strings.ToValidUTF8(name, "\uFFFD"))
		}
		n += len(names)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case !time.Now().Before(deadline):
			return fmt.Errorf("%s: there was no time for more than %d entries", path, n)
		}
	}
	return fmt.Errorf("%s has more than %d entries", path, maxEntries)
}
