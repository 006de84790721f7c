// Package kernelstat reads the kernel's own counts and limits from the small files
// of a proc file system, each by itself. It knows the kernel's names for them, which of
// them are of one network namespace and which of the node, and not what they are used for.
//
// All functions may be called at the same time. Their errors name the file and quote
// what is wrong in it; of a file that this kernel does not have they are
// [fs.ErrNotExist].
package kernelstat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ReadPairs returns the numbers of these names, of those that this kernel has, in the one line of a protocol, of a
// file in which each number follows its name (sockstat_seq_show in net/ipv4/proc.c):
//
//	TCP: inuse 5 orphan 0 tw 3 alloc 6 mem 1
func ReadPairs(ctx context.Context, path, protocol string, names ...string) (map[string]uint64, error) {
	text, err := readFile(ctx, path, smallFile)
	if err != nil {
		return nil, err
	}
	return parsePairs(path, text, protocol, names)
}

func parsePairs(path string, text []byte, protocol string, names []string) (map[string]uint64, error) {
	lines, err := linesOf(path, text, protocol)
	if err != nil {
		return nil, err
	}
	if len(lines) != 1 {
		return nil, fmt.Errorf("%s: %d lines of %s, not one: %.200q", path, len(lines), protocol, lines[:2])
	}
	fields := strings.Fields(lines[0])[1:]
	if len(fields)%2 != 0 {
		return nil, fmt.Errorf("%s: a name without a number: %.200q", path, lines[0])
	}
	var keys, values []string
	for pair := range slices.Chunk(fields, 2) {
		keys, values = append(keys, pair[0]), append(values, pair[1])
	}
	return numbers(path, keys, values, names)
}

// ReadCounters returns the numbers of these names, of those that this kernel has, in the two lines of a protocol, of
// a file in which a line of names is followed by one of values (snmp_seq_show,
// netstat_seq_show in net/ipv4/proc.c):
//
//	Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens
//	Tcp: 1 200 120000 -1 3
func ReadCounters(ctx context.Context, path, protocol string, names ...string) (map[string]uint64, error) {
	text, err := readFile(ctx, path, usualFile)
	if err != nil {
		return nil, err
	}
	return parseCounters(path, text, protocol, names)
}

func parseCounters(path string, text []byte, protocol string, names []string) (map[string]uint64, error) {
	lines, err := linesOf(path, text, protocol)
	if err != nil {
		return nil, err
	}
	if len(lines) != 2 {
		return nil, fmt.Errorf("%s: %d lines of %s, not one of names and one of values: %.200q", path, len(lines), protocol, lines[:min(len(lines), 3)])
	}
	keys, values := strings.Fields(lines[0])[1:], strings.Fields(lines[1])[1:]
	if len(keys) != len(values) {
		return nil, fmt.Errorf("%s: %d names and %d values of %s: %.200q", path, len(keys), len(values), protocol, lines)
	}
	return numbers(path, keys, values, names)
}

// parsePerCPU returns the sums of the counters of these names, of those that this kernel has, in a file with a line of
// names and one of hexadecimal values for each processor (ct_cpu_seq_show in
// net/netfilter/nf_conntrack_standalone.c). Entries are the namespace's in each of them:
//
//	entries  clashres found new invalid ignore delete
//	0000000a  00000000 00000000 00000000 00000001 00000000 00000000
func parsePerCPU(path string, text []byte, names []string) (map[string]uint64, error) {
	var keys []string
	sums := make(map[string]uint64, len(names))
	rows := 0
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case !strings.HasSuffix(line, "\n"):
			return nil, fmt.Errorf("%s: the file ends within the line %.200q", path, line)
		case keys == nil:
			keys = fields
			continue
		case len(fields) != len(keys):
			return nil, fmt.Errorf("%s: %d names and %d values: %.200q", path, len(keys), len(fields), line)
		}
		for i, key := range keys {
			if !slices.Contains(names, key) || key == "entries" && rows > 0 {
				continue
			}
			n, err := strconv.ParseUint(fields[i], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %.200q is not a hexadecimal number", path, key, fields[i])
			}
			sums[key] += n
		}
		rows++
	}
	if rows == 0 {
		return nil, fmt.Errorf("%s: no line of values in %.200q", path, text)
	}
	return sums, nil
}

// numbers returns the values of those keys that are among names. The others need not
// be numbers. A key that is there twice makes all of them doubtful.
func numbers(path string, keys, values, names []string) (map[string]uint64, error) {
	found := make(map[string]uint64, len(names))
	seen := make(map[string]bool, len(keys))
	for i, key := range keys {
		if seen[key] {
			return nil, fmt.Errorf("%s: %.200q is there twice", path, key)
		}
		seen[key] = true
		if !slices.Contains(names, key) {
			continue
		}
		n, err := number(values[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		found[key] = n
	}
	return found, nil
}

// Sysctls is where sysctls are read.
type Sysctls struct {
	// Root is a proc file system; "" for none.
	Root string
	// Set are the texts of sysctls by name, as net.ipv4.tcp_mem, which stand for those below
	// Root: what would be if they were set so.
	Set map[string]string
}

// text returns what a sysctl of about that size says, and where it does.
func (s Sysctls) text(ctx context.Context, name string, size int) (text []byte, where string, err error) {
	if text, ok := s.Set[name]; ok {
		return []byte(text), s.where(name), nil
	}
	if s.Root == "" {
		return nil, name, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	text, err = readFile(ctx, s.where(name), size)
	return text, s.where(name), err
}

// where is where a sysctl is read.
func (s Sysctls) where(name string) string {
	if _, ok := s.Set[name]; ok {
		return name
	}
	return SysctlPath(s.Root, name)
}

// ReadSysctl returns the numbers of the sysctl of that name, which has to have n of
// them (man 5 proc_sys).
func ReadSysctl(ctx context.Context, from Sysctls, name string, n int) ([]uint64, error) {
	text, where, err := from.text(ctx, name, smallFile)
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(text))
	if len(fields) != n {
		return nil, fmt.Errorf("%s: not %d numbers: %.200q", where, n, text)
	}
	values := make([]uint64, n)
	for i, field := range fields {
		if values[i], err = number(field); err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
	}
	return values, nil
}

// SysctlPath returns where a sysctl such as net.ipv4.tcp_mem is below root.
func SysctlPath(root, name string) string {
	return filepath.Join(root, "sys", strings.ReplaceAll(name, ".", "/"))
}

// number parses a number of the kernel, whose longs have 64 bits where ints have 32.
func number(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.200q is not a number from 0 to 2^64-1", text)
	}
	return n, nil
}

// linesOf returns the lines of a file that belong to a protocol. Other lines may be
// anything.
func linesOf(path string, text []byte, protocol string) ([]string, error) {
	var lines []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		// The kernel ends each line. Without its end the last number may be a part of one.
		whole, ended := strings.CutSuffix(line, "\n")
		if !ended {
			return nil, fmt.Errorf("%s: the file ends within the line %.200q", path, line)
		}
		lines = append(lines, whole)
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%s: no line of %s in %.200q", path, protocol, text)
	}
	return lines, nil
}

// Files of the kernel that are read here have some kilobytes, a sysctl or sockstat much
// less. The longest one is ip_local_reserved_ports, 190 kB if every second port is
// reserved.
const (
	smallFile = 1 << 10
	usualFile = 16 << 10
	maxFile   = 256 << 10
)

// ReadFile returns what is in a file, at most maxFile bytes.
//
// It does not wait for the writer of a FIFO, and ends when ctx does where a read can
// be interrupted: not that of a file system that hangs. It reads into a buffer for
// all of the file, because of some the kernel shows only what the first read(2) has
// room for (proc_do_large_bitmap in kernel/sysctl.c).
func ReadFile(ctx context.Context, path string) ([]byte, error) {
	return readFile(ctx, path, usualFile)
}

// readFile is ReadFile of a file that is most likely shorter than size.
func readFile(ctx context.Context, path string, size int) ([]byte, error) {
	for ; ; size = maxFile {
		text, err := readUpTo(ctx, path, size)
		if err != nil {
			return nil, err
		}
		if len(text) < size {
			return text, nil
		}
		if size == maxFile {
			return nil, fmt.Errorf("%s: longer than %d bytes, and begins with %.200q", path, maxFile, text)
		}
	}
}

func readUpTo(ctx context.Context, path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer Interrupt(ctx, f)()
	buf := make([]byte, size)
	n, err := io.ReadFull(f, buf)
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return buf[:n], nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", path, context.Cause(ctx))
	}
	return nil, err
}

// Interrupt ends reads from f once ctx is done, if f is one whose reads wait in the
// Go runtime, such as a FIFO. The function that it returns is to be called when
// reading is over.
func Interrupt(ctx context.Context, f *os.File) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
}
