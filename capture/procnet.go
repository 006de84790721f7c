package capture

import (
	"errors"
	"io"
	"strings"

	"timewait_exporter/collector/tcptable"
)

// isProcHeader returns which table's header a line is, -1 if none's.
func isProcHeader(line string) int {
	line = strings.TrimSpace(line)
	switch {
	case !strings.HasPrefix(line, "sl  local_address "):
		return -1
	case strings.Contains(line, " remote_address "):
		return int(tcptable.TCP6)
	case strings.Contains(line, " rem_address "):
		return int(tcptable.TCP)
	}
	return -1
}

// parseProc reads copies of /proc/net/tcp and tcp6, one or both in one text.
func parseProc(l *lines, k *known, yield func(*row) error) error {
	k.timers, k.inodes, k.unanswered = true, true, true
	table := -1
	var seen [tcptable.NumTables]bool
	r := new(row)
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		if header := isProcHeader(line); header >= 0 {
			if seen[header] {
				return l.errorf([]byte(line), "the header again: two machines, or two moments")
			}
			seen[header], table = true, header
			continue
		}
		if table < 0 {
			continue // what stands before the table
		}
		if r.Socket, err = tcptable.ParseRow([]byte(line), tcptable.Table(table)); err != nil {
			return l.errorf([]byte(line), "%v", err)
		}
		k.note(r)
		if err := yield(r); err != nil {
			return err
		}
	}
	return nil
}
