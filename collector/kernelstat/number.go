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
	absent   uint64 // what it is where there is no such sysctl; 0 if nothing
}

// Sockstat names one in the line TCP of net/sockstat (sockstat_seq_show in
// net/ipv4/proc.c).
func Sockstat(name string) Number { return Number{file: "sockstat", protocol: "TCP", name: name} }

// Sockstat6 names one in the line TCP6 of net/sockstat6 (sockstat6_seq_show in
// net/ipv6/proc.c).
func Sockstat6(name string) Number { return Number{file: "sockstat6", protocol: "TCP6", name: name} }

// SNMP names a counter in the lines Tcp of net/snmp (snmp4_tcp_list in net/ipv4/proc.c).
func SNMP(name string) Number { return Number{file: "snmp", protocol: "Tcp", name: name} }

// Netstat names a counter in the lines TcpExt of net/netstat (snmp4_net_list in
// net/ipv4/proc.c).
func Netstat(name string) Number { return Number{file: "netstat", protocol: "TcpExt", name: name} }

// Conntrack names a column of net/stat/nf_conntrack (ct_cpu_seq_show in
// net/netfilter/nf_conntrack_standalone.c).
func Conntrack(name string) Number {
	return Number{file: conntrackFile, protocol: "conntrack", name: name}
}

// conntrackFile has a line for each processor, and so no protocols.
const conntrackFile = "stat/nf_conntrack"

// Sysctl names a sysctl of one number, such as net.core.somaxconn
// (Documentation/admin-guide/sysctl).
func Sysctl(name string) Number { return Number{file: name, of: 1} }

// SysctlOr names a sysctl of one number, of a module that may not be there: until it is,
// the number is the default.
func SysctlOr(name string, byDefault uint64) Number {
	return Number{file: name, of: 1, absent: byDefault}
}

// SysctlPlace names the number at a place, from 0, of a sysctl that has so many.
func SysctlPlace(name string, place, of int) Number { return Number{file: name, place: place, of: of} }

// String returns where the number is, as "net/netstat TcpExt TW" or "net.ipv4.tcp_mem".
func (n Number) String() string {
	if n.isSysctl() {
		return n.file
	}
	if n.file == conntrackFile {
		return "net/" + n.file + " " + n.name
	}
	return "net/" + n.file + " " + n.protocol + " " + n.name
}

func (n Number) isSysctl() bool { return n.protocol == "" }

// Part returns what the number is read with, which fails by itself: a file, "file-nr"
// among them, or "sysctls", which are those of net and sunrpc.
func (n Number) Part() string {
	switch {
	case n.file == conntrackFile:
		return "conntrack"
	case n.file == "sockstat6":
		return "sockstat"
	case !n.isSysctl():
		return n.file
	case n.file == "fs.file-nr":
		return "file-nr"
	}
	return "sysctls"
}

// OfNode reports whether the number is of the whole node, whichever namespace's file has
// it. The kernel shows tcp_mem and tcp_max_orphans in its first network namespace only,
// and lets no other one change nf_conntrack_max.
func (n Number) OfNode() bool {
	switch n.file {
	case "sockstat":
		return n.name == "orphan" || n.name == "mem"
	case "net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans", "net.netfilter.nf_conntrack_max", "fs.file-nr", "sunrpc.min_resvport", "sunrpc.max_resvport":
		return true
	}
	return false
}

// Numbers are what the kernel says, in its own units: memory in pages. None is below 0. A
// number that this kernel does not have is not among them.
type Numbers map[Number]uint64

// Read reads numbers of sysctls and of the files in dir,
// the net directory of a namespace. Each file is all or nothing, and the error is that of
// all that failed: the others' numbers are returned with it.
func Read(ctx context.Context, from Sysctls, dir string, numbers []Number) (Numbers, error) {
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
		switch err := found.read(ctx, from, dir, of); {
		case errors.Is(err, fs.ErrNotExist):
			if n.absent != 0 {
				found[n] = n.absent
			}
		case err != nil:
			errs = append(errs, err)
		}
	}
	return found, errors.Join(errs...)
}

// read adds the numbers of one file.
func (f Numbers) read(ctx context.Context, from Sysctls, dir string, numbers []Number) error {
	first := numbers[0]
	if first.isSysctl() {
		values, err := ReadSysctl(ctx, from, first.file, first.of)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			f[n] = values[n.place]
		}
		return nil
	}
	path := filepath.Join(dir, first.file)
	text, err := ReadFile(ctx, path)
	if err != nil {
		return err
	}
	return f.parse(path, text, numbers, namesOf(numbers))
}

// Parse returns the numbers, all of one file and none a sysctl, in the text of a copy of that
// file.
func Parse(path string, text []byte, numbers []Number) (Numbers, error) {
	found := make(Numbers, len(numbers))
	return found, found.parse(path, text, numbers, namesOf(numbers))
}

func namesOf(numbers []Number) []string {
	names := make([]string, len(numbers))
	for i, n := range numbers {
		names[i] = n.name
	}
	return names
}

// parse adds the numbers of a file, which have these names there.
func (f Numbers) parse(path string, text []byte, numbers []Number, names []string) error {
	var values map[string]uint64
	var err error
	switch first := numbers[0]; first.file {
	case "sockstat", "sockstat6":
		values, err = parsePairs(path, text, first.protocol, names)
	case conntrackFile:
		values, err = parsePerCPU(path, text, names)
	default:
		values, err = parseCounters(path, text, first.protocol, names)
	}
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
