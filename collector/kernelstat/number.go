package kernelstat

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
)

// Number is the name of a number of the kernel.
type Number struct {
	file     string // below the net directory, or a sysctl
	protocol string // the line of it; of sysctls ""
	name     string // in that line; of sysctls ""
	place    int    // of a sysctl with several numbers
	of       int    // how many a sysctl has
}

// Sockstat names one in the line TCP of net/sockstat (sockstat_seq_show in
// net/ipv4/proc.c).
func Sockstat(name string) Number { return Number{file: "sockstat", protocol: "TCP", name: name} }

// SNMP names a counter in the lines Tcp of net/snmp (snmp4_tcp_list in net/ipv4/proc.c).
func SNMP(name string) Number { return Number{file: "snmp", protocol: "Tcp", name: name} }

// Netstat names a counter in the lines TcpExt of net/netstat (snmp4_net_list in
// net/ipv4/proc.c).
func Netstat(name string) Number { return Number{file: "netstat", protocol: "TcpExt", name: name} }

// Sysctl names a sysctl of one number, such as net.core.somaxconn
// (Documentation/admin-guide/sysctl).
func Sysctl(name string) Number { return Number{file: name, of: 1} }

// SysctlPlace names the number at a place, from 0, of a sysctl that has so many.
func SysctlPlace(name string, place, of int) Number { return Number{file: name, place: place, of: of} }

// String returns where the number is, as "net/netstat TcpExt TW" or "net.ipv4.tcp_mem".
func (n Number) String() string {
	if n.isSysctl() {
		return n.file
	}
	return "net/" + n.file + " " + n.protocol + " " + n.name
}

func (n Number) isSysctl() bool { return n.protocol == "" }

// Part returns what the number is read with, which fails by itself: a file, "file-nr"
// among them, or "sysctls", which are those of net.
func (n Number) Part() string {
	switch {
	case !n.isSysctl():
		return n.file
	case n.file == "fs.file-nr":
		return "file-nr"
	}
	return "sysctls"
}

// OfNode reports whether the number is of the whole node, whichever namespace's file has
// it. The kernel shows tcp_mem and tcp_max_orphans in its first network namespace only.
func (n Number) OfNode() bool {
	switch n.file {
	case "sockstat":
		return n.name == "orphan" || n.name == "mem"
	case "net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans", "fs.file-nr":
		return true
	}
	return false
}

// Numbers are what the kernel says, in its own units: memory in pages. None is below 0. A
// number that this kernel does not have is not among them.
type Numbers map[Number]uint64

// Read reads numbers of sysctls below root, a proc file system, and of the files in dir,
// the net directory of a namespace. Each file is all or nothing, and the error is that of
// all that failed: the others' numbers are returned with it.
func Read(ctx context.Context, root, dir string, numbers []Number) (Numbers, error) {
	byFile := make(map[string][]Number)
	for _, n := range numbers {
		byFile[n.file] = append(byFile[n.file], n)
	}
	found := make(Numbers, len(numbers))
	var errs []error
	for _, n := range numbers {
		of := byFile[n.file]
		if n != of[0] {
			continue // read with the first of its file
		}
		if err := found.read(ctx, root, dir, of); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return found, errors.Join(errs...)
}

// read adds the numbers of one file.
func (f Numbers) read(ctx context.Context, root, dir string, numbers []Number) error {
	first := numbers[0]
	if first.isSysctl() {
		values, err := ReadSysctl(ctx, root, first.file, first.of)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			f[n] = values[n.place]
		}
		return nil
	}
	names := make([]string, len(numbers))
	for i, n := range numbers {
		names[i] = n.name
	}
	readLines := ReadCounters
	if first.file == "sockstat" {
		readLines = ReadPairs
	}
	values, err := readLines(ctx, filepath.Join(dir, first.file), first.protocol, names...)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if value, ok := values[n.name]; ok {
			f[n] = value
		}
	}
	return nil
}
