package capture

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
)

// readFiles reads what an archive has, packed or not. Of several tables it reads one: ss
// with -i, ss, /proc, netstat. They are of different moments, and never added up.
func readFiles(ctx context.Context, name string, files []file, o Options) (*Capture, error) {
	best, others, err := choose(files)
	if err != nil {
		return nil, err
	}
	if best == nil {
		return nil, fmt.Errorf("%s has no output of ss or netstat and no copy of /proc/net/tcp (sos report with the networking plugin has them)", name)
	}
	from, err := sysctlsOf(files)
	if err != nil {
		return nil, err
	}
	maps.Copy(from.Set, o.Set)
	c := &Capture{Taken: best.files[0].taken, Node: &snapshot.Node{Kernel: make(kernelstat.Numbers)}}
	for _, other := range others {
		c.Missing = append(c.Missing, Missing{other, "it has the table of another moment, and is not added to that of " + best.files[0].name})
	}
	if err := best.count(ctx, c, from, o); err != nil {
		return nil, err
	}
	c.Kind = Proc
	if slices.ContainsFunc(files, func(f file) bool { return strings.Contains("/"+f.name, "/sos_commands/") }) {
		c.Kind = SOS
	}
	counters := make(map[string]*file)
	for i := range files {
		if name, ok := procName("/" + files[i].name); ok && counters[name] == nil {
			counters[name] = &files[i]
		}
		switch base := path.Base(files[i].name); {
		case base == "hostname" && c.Host == "" && files[i].size <= maxText:
			if text, err := files[i].text(); err == nil {
				c.Host, _, _ = strings.Cut(strings.TrimSpace(string(text)), "\n")
			}
		case base == "date" && files[i].size <= maxText:
			if text, err := files[i].text(); err == nil {
				if t, ok := dateOf(string(text)); ok {
					c.Taken = t
				}
			}
		}
	}
	return c, c.setNumbers(ctx, from, counters)
}

// dateOf parses what date(1) says.
func dateOf(text string) (time.Time, bool) {
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(line), " ")
		for _, layout := range []string{time.UnixDate, "Mon Jan 2 15:04:05 MST 2006", "Mon 2 Jan 15:04:05 MST 2006", "Mon Jan 2 03:04:05 PM MST 2006", "Mon 2 Jan 2006 03:04:05 PM MST"} {
			if t, err := time.Parse(layout, line); err == nil {
				return t, true
			}
		}
	}
	return time.Time{}, false
}

// choose returns the table to be read, and the names of the others.
func choose(files []file) (best *listing, others []string, err error) {
	type candidate struct {
		rank int
		listing
	}
	var candidates []candidate
	byDir := make(map[string]int) // of copies of /proc/net: tcp and tcp6 are one table
	for i := range files {
		f := &files[i]
		name, isProc := procName("/" + f.name)
		if isProc && name != "net/tcp" && name != "net/tcp6" || !isProc && !strings.Contains("/"+f.name, "/sos_commands/") {
			continue
		}
		kind, err := f.kind()
		if err != nil || kind == archived || kind == Windows {
			continue // not a table: ss -s, or a command that failed
		}
		rank := slices.Index([]string{SS, Proc, Netstat}, kind) + 1
		if kind == SS {
			detailed, err := f.hasDetails()
			if err != nil {
				return nil, nil, err
			}
			if detailed {
				rank = 0
			}
		}
		dir := path.Dir(f.name)
		if at, known := byDir[dir]; known && kind == Proc {
			candidates[at].files = append(candidates[at].files, f)
			continue
		}
		if kind == Proc {
			byDir[dir] = len(candidates)
		}
		candidates = append(candidates, candidate{rank, listing{files: []*file{f}}})
	}
	at := -1
	for i := range candidates {
		if at < 0 || candidates[i].rank < candidates[at].rank {
			at = i
		}
	}
	for i := range candidates {
		if i != at {
			others = append(others, candidates[i].files[0].name)
		}
	}
	if at < 0 {
		return nil, nil, nil
	}
	return &candidates[at].listing, others, nil
}

// hasDetails reports whether it is of ss -i, by its beginning.
func (f *file) hasDetails() (bool, error) {
	l, closer, err := f.lines()
	if err != nil {
		return false, err
	}
	defer closer.Close()
	for read := 0; read < sniffed; {
		line, err := l.next()
		if err != nil {
			return false, nil // its end, or what the walk will tell
		}
		if strings.Contains(line, " cwnd:") {
			return true, nil
		}
		read += len(line) + 1
	}
	return false, nil
}

// sysctlsOf reads the output of sysctl -a, or copies of /proc/sys.
func sysctlsOf(files []file) (kernelstat.Sysctls, error) {
	from := kernelstat.Sysctls{Set: make(map[string]string)}
	for i := range files {
		f := &files[i]
		name, isProc := procName("/" + f.name)
		switch {
		case isProc && strings.HasPrefix(name, "sys/"):
			text, err := f.text()
			if err != nil {
				return from, err
			}
			from.Set[strings.ReplaceAll(strings.TrimPrefix(name, "sys/"), "/", ".")] = string(text)
		case path.Base(f.name) == "sysctl_-a":
			text, err := f.text()
			if err != nil {
				return from, err
			}
			for line := range strings.Lines(string(text)) {
				if key, value, ok := strings.Cut(line, " = "); ok {
					from.Set[strings.TrimSpace(key)] = strings.TrimSpace(value)
				}
			}
		}
	}
	return from, nil
}
