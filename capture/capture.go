// Package capture reads what was captured of a machine's TCP sockets: the output of ss or
// netstat, of Linux or Windows, copies of /proc/net/tcp, and support archives that have them.
// It knows them by their content. All of them become the rows that the kernel's own table
// has, and are counted as those are, so that the same machine gives the same numbers.
//
// Rows are read as they come and never kept: twice, because whoever counts has to know
// listeners first. What is not as the program writes it is an error that names the line.
package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// The kinds of captures.
const (
	Proc    = "proc"    // copies of /proc/net/tcp and tcp6
	SS      = "ss"      // ss -tan, of iproute2
	Netstat = "netstat" // netstat -an, of net-tools
	Windows = "windows" // netstat -ano, of Windows
	SOS     = "sos"     // an archive of sos, with any of those of Linux
)

// Options say how to count and what to take for given.
type Options struct {
	// Set are sysctls by name, which stand for those that the capture has, or lacks. For
	// Windows they are windows.dynamicport, "START COUNT", and windows.TcpTimedWaitDelay,
	// in seconds.
	Set map[string]string
	// Limits and Owners are how many of each are named.
	Limits tally.Limits
	Owners int
	// Port is one whose sockets are wanted; 0 for none.
	Port uint16
}

// Capture is what a capture tells.
type Capture struct {
	Kind  string
	Host  string    // "" if it does not say
	Taken time.Time // by the clock of the machine, or of the file

	Namespace *snapshot.Namespace
	Node      *snapshot.Node
	// Missing is what it can't tell, by subject.
	Missing []Missing
	// Sockets are those of Options.Port.
	Sockets []tcptable.Socket
}

// Missing is a subject that a capture does not tell of, and why.
type Missing struct{ Subject, Reason string }

// ErrProc is a directory that is a copy of a proc file system, which is read as one.
var ErrProc = errors.New("a copy of a proc file system")

// maxPiped is how much may come through a pipe, which can't be read twice.
const maxPiped = 64 << 20

// Read reads the capture at path, "-" for stdin. A copy of a proc file system is ErrProc.
func Read(ctx context.Context, path string, stdin io.Reader, o Options) (*Capture, error) {
	if path == "-" {
		return readPiped(ctx, stdin, o)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return readDirectory(ctx, path, o)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a regular file nor a directory", path)
	}
	f := file{name: path, taken: info.ModTime(), open: func() (io.ReadCloser, error) { return os.Open(path) }}
	kind, err := f.kind()
	if err != nil {
		return nil, err
	}
	if kind == archived {
		return readArchive(ctx, path, o)
	}
	return readText(ctx, &f, o)
}

// readPiped reads what comes through a pipe, or stdin is redirected to.
func readPiped(ctx context.Context, stdin io.Reader, o Options) (*Capture, error) {
	text, err := io.ReadAll(io.LimitReader(stdin, maxPiped+1))
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	if len(text) > maxPiped {
		return nil, fmt.Errorf("stdin: more than %d MiB; a file of any length can be read by its name", maxPiped>>20)
	}
	f := file{name: "stdin", taken: time.Now(), open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }}
	kind, err := f.kind()
	if err == nil && kind == archived {
		err = errors.New("stdin is an archive, which is read by its name")
	}
	if err != nil {
		return nil, err
	}
	return readText(ctx, &f, o)
}

// readDirectory reads an unpacked archive of sos, or says that it is a copy of /proc.
func readDirectory(ctx context.Context, path string, o Options) (*Capture, error) {
	root, err := os.OpenRoot(path) // no link leads out of it
	if err != nil {
		return nil, err
	}
	defer root.Close()
	tree := root.FS()
	for _, dir := range []string{"sos_commands", "*/sos_commands"} {
		if found, _ := fs.Glob(tree, dir); len(found) > 0 {
			files, err := filesBelow(ctx, tree)
			if err != nil {
				return nil, err
			}
			return readFiles(ctx, path, files, o)
		}
	}
	return nil, ErrProc
}

// filesBelow lists the regular files of a tree.
func filesBelow(ctx context.Context, tree fs.FS) ([]file, error) {
	var files []file
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, unreadable error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case unreadable != nil && path == ".":
			return unreadable
		case unreadable != nil || !d.Type().IsRegular() || !isWanted(path):
			return nil //nolint:nilerr // what was wanted of it is missing
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files = append(files, file{name: path, size: info.Size(), taken: info.ModTime(), open: func() (io.ReadCloser, error) { return tree.Open(path) }})
		return nil
	})
	return files, err
}

// readText reads one file that is a table.
func readText(ctx context.Context, f *file, o Options) (*Capture, error) {
	l := &listing{files: []*file{f}}
	c := &Capture{Taken: f.taken}
	if err := l.count(ctx, c, kernelstat.Sysctls{Set: o.Set}, o); err != nil {
		return nil, err
	}
	c.Node = &snapshot.Node{Kernel: make(kernelstat.Numbers)}
	return c, c.setNumbers(ctx, kernelstat.Sysctls{Set: o.Set}, nil)
}

// setNumbers sets what the kernel says of itself, by sysctls and by files.
func (c *Capture) setNumbers(ctx context.Context, from kernelstat.Sysctls, files map[string]*file) error {
	numbers := make(kernelstat.Numbers)
	sysctls, err := kernelstat.Read(ctx, from, "", wantedSysctls())
	if err != nil {
		return err
	}
	maps.Copy(numbers, sysctls)
	for name, wanted := range wantedCounters() {
		f := files[name]
		if f == nil {
			continue
		}
		text, err := f.text()
		if err != nil {
			return err
		}
		read, err := kernelstat.Parse(f.name, text, wanted)
		if err != nil {
			c.Missing = append(c.Missing, Missing{f.name, err.Error()})
			continue
		}
		maps.Copy(numbers, read)
	}
	c.checkWhole(numbers)
	for n, value := range numbers {
		if n.OfNode() {
			c.Node.Kernel[n] = value
		} else {
			c.Namespace.Kernel[n] = value
		}
	}
	return nil
}

// checkWhole says so if the table has far fewer sockets than the kernel counts: it was cut, or is
// of another moment.
func (c *Capture) checkWhole(numbers kernelstat.Numbers) {
	const few = 64
	counted := numbers[kernelstat.Sockstat("inuse")] + numbers[kernelstat.Sockstat6("inuse")] + numbers[kernelstat.Sockstat("tw")]
	var rows uint64
	for _, of := range c.Namespace.Sockets.Connections {
		for _, states := range of {
			for _, n := range states {
				rows += n
			}
		}
	}
	if rows+few <= counted && 4*rows < 3*counted {
		c.Missing = append(c.Missing, Missing{"sockets", fmt.Sprintf("the table has %d, and the kernel counts %d: it was cut, or is of another moment", rows, counted)})
	}
}

// wantedSysctls are those that a report looks at, beside those of the pool.
func wantedSysctls() []kernelstat.Number {
	all := []kernelstat.Number{kernelstat.SysctlOr("sunrpc.min_resvport", 665), kernelstat.SysctlOr("sunrpc.max_resvport", 1023)}
	for _, name := range []string{
		"net.ipv4.tcp_max_tw_buckets", "net.ipv4.tcp_max_orphans", "net.ipv4.tcp_tw_recycle", "net.ipv4.tcp_syncookies", "net.netfilter.nf_conntrack_max",
	} {
		all = append(all, kernelstat.Sysctl(name))
	}
	for _, name := range []string{"net.ipv4.tcp_mem", "fs.file-nr"} {
		for place := range 3 {
			all = append(all, kernelstat.SysctlPlace(name, place, 3))
		}
	}
	return all
}

// wantedCounters are those that a report looks at, by the file that has them.
func wantedCounters() map[string][]kernelstat.Number {
	return map[string][]kernelstat.Number{
		"net/sockstat":          {kernelstat.Sockstat("tw"), kernelstat.Sockstat("orphan"), kernelstat.Sockstat("mem"), kernelstat.Sockstat("inuse")},
		"net/sockstat6":         {kernelstat.Sockstat6("inuse")},
		"net/netstat":           {kernelstat.Netstat("TWRecycled"), kernelstat.Netstat("TCPTimeWaitOverflow"), kernelstat.Netstat("SyncookiesSent")},
		"net/stat/nf_conntrack": {kernelstat.Conntrack("entries"), kernelstat.Conntrack("insert_failed")},
	}
}

// isWanted reports whether a file of an archive can be of use.
func isWanted(path string) bool {
	path = "/" + path
	if strings.Contains(path, "/sos_commands/") {
		name := filepath.Base(path)
		return strings.HasPrefix(name, "ss_-") || strings.HasPrefix(name, "netstat_-") || name == "sysctl_-a" || name == "hostname" || name == "date"
	}
	if strings.HasSuffix(path, "/hostname") || strings.HasSuffix(path, "/date") {
		return strings.Count(path, "/") <= 2 || strings.HasSuffix(path, "/etc/hostname")
	}
	name, ok := procName(path)
	if !ok {
		return false
	}
	_, counters := wantedCounters()[name]
	return counters || name == "net/tcp" || name == "net/tcp6" || strings.HasPrefix(name, "sys/")
}

// procName returns the path of a file below proc, that of PID 1 or of the process itself as
// such: net/tcp.
func procName(path string) (name string, ok bool) {
	_, name, ok = strings.Cut(path, "/proc/")
	if !ok {
		return "", false
	}
	for _, process := range []string{"1/", "self/", "thread-self/"} {
		name = strings.TrimPrefix(name, process)
	}
	return name, strings.HasPrefix(name, "net/") || strings.HasPrefix(name, "sys/")
}
