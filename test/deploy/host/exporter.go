package host

import (
	"debug/elf"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// CheckMetrics checks that a scrape succeeded in all its parts, and read the host's
// network namespace and sysctls from source.
func CheckMetrics(t testing.TB, body, source string) {
	t.Helper()
	// Owners and conntrack are parts where the host lets them be seen.
	success := regexp.MustCompile(`(?m)^timewait_exporter_collector_success\{.*\} ([01])$`).FindAllStringSubmatch(body, -1)
	if len(success) < 8 || slices.ContainsFunc(success, func(found []string) bool { return found[1] == "0" }) {
		t.Errorf("a collector failed, or there are fewer than 8, in\n%s", body)
	}
	for _, want := range []string{
		`timewait_exporter_netns_info\{.*netns="host",path="/proc/self/net",.*sysctls="same".*\} 1`,
		`timewait_exporter_source_info\{netns="host",source="` + source + `"\} 1`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(body) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	// From a sysctl. Where /proc/sys can't be seen it is absent, and that is no failure.
	if !strings.Contains(body, "\ntcp_ephemeral_ports{") {
		t.Errorf("no tcp_ephemeral_ports in\n%s", body)
	}
}

// CheckRights checks /proc/PID/status of an exporter: its user and group, as a
// pattern, and that it has no right beyond an ordinary user's and a seccomp filter.
func CheckRights(t testing.TB, status, user string) {
	t.Helper()
	for _, want := range []string{
		`Uid:(\t` + user + `){4}`,
		`Gid:(\t` + user + `){4}`,
		`CapInh:\t0{16}`,
		`CapPrm:\t0{16}`,
		`CapEff:\t0{16}`,
		`CapBnd:\t0{16}`,
		`CapAmb:\t0{16}`,
		`NoNewPrivs:\t1`,
		`Seccomp:\t2`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(status) {
			t.Errorf("not %s in\n%s", want, status)
		}
	}
}

// CheckProgram checks that a program is for the architecture, static and stripped.
func CheckProgram(t testing.TB, path string, class elf.Class, machine elf.Machine) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was read
	if f.Class != class || f.Machine != machine {
		t.Errorf("it is for %v %v", f.Class, f.Machine)
	}
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("it is not static: it has a %v", segment.Type)
		}
	}
	for _, section := range f.Sections {
		if section.Type == elf.SHT_SYMTAB || strings.HasPrefix(section.Name, ".debug") || strings.HasPrefix(section.Name, ".zdebug") {
			t.Errorf("it is not stripped: it has %s", section.Name)
		}
	}
}
