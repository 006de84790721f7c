package collector

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/tally"
)

// The ways to read the socket table.
const (
	SourceProcfs  = "procfs"
	SourceNetlink = "netlink"
	// SourceAuto is netlink as long as it works, else procfs.
	SourceAuto = "auto"
)

// Config says what to read and how much of it to name.
type Config struct {
	// ProcRoot is where the proc file system is mounted.
	ProcRoot  string
	Namespace Namespace
	// Set are sysctls by name that are taken for the namespace's, whatever the kernel
	// says: what would be if they were set so.
	Set map[string]string
	// Source is one of the constants above.
	Source string
	// AllNamespaces is whether all network namespaces are read and not only Namespace,
	// and Budget the processor time that a scrape has for the tables of the others.
	AllNamespaces bool
	Budget        time.Duration
	// NATPorts is how many connections to one destination the NAT before the node can
	// have; 0 if there is none, or that is not known.
	NATPorts int
	// Remotes, Destinations and Listeners are how many of each get series of
	// their own. With 0 remotes no remote address is named.
	Remotes, Destinations, Listeners int
	// Owners are how many owners of sockets get series of their own; with 0 nothing is
	// done to know them. CgroupFS is where the host's cgroup tree is mounted, empty for
	// where the kernel says, and PodLogs where a kubelet has the logs of pods.
	Owners            int
	CgroupFS, PodLogs string
	// OwnerPause is the least time between two searches for names of owners, and between two
	// looks at their processes; if it is 0, ten seconds and one.
	OwnerPause time.Duration
	// RemotePrefixIPv4 and RemotePrefixIPv6 fold remote addresses into blocks of
	// so many bits; 32 and 128 leave them whole.
	RemotePrefixIPv4, RemotePrefixIPv6 int
	// RemoteGroups are remote addresses that are counted under a name, before they
	// are folded into blocks; all of them have series of their own.
	RemoteGroups []tally.Group
}

// sysctls is where they are read. Those of another namespace would mislead.
func (c *Config) sysctls() kernelstat.Sysctls {
	from := kernelstat.Sysctls{Set: c.Set}
	if c.Namespace.OwnSysctls {
		from.Root = c.ProcRoot
	}
	return from
}

func (c *Config) hasSysctls() bool { return c.Namespace.OwnSysctls || len(c.Set) > 0 }

// CheckSet returns an error if one of Set is no sysctl that is looked at, or can't be what
// it is set to.
func (c *Config) CheckSet(ctx context.Context) error {
	known := kernelstat.PoolSysctls()
	numbers := []kernelstat.Number{privilegedLow, privilegedHigh}
	for _, m := range kernelMetrics {
		numbers = slices.AppendSeq(numbers, maps.Values(m.numbers))
	}
	numbers = slices.DeleteFunc(numbers, func(n kernelstat.Number) bool { return n.Part() != "sysctls" })
	for _, n := range numbers {
		known = append(known, n.String())
	}
	for _, name := range slices.Sorted(maps.Keys(c.Set)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%.200q is no sysctl that is looked at, such as %s", name, known[0])
		}
	}
	set := maps.Clone(c.Set)
	if _, ok := set[known[0]]; !ok && set != nil {
		set[known[0]] = "1 2" // without it nothing of the pool is read
	}
	if _, err := kernelstat.ReadPool(ctx, kernelstat.Sysctls{Set: set}); err != nil {
		return err
	}
	_, err := kernelstat.Read(ctx, kernelstat.Sysctls{Set: c.Set}, "", numbers)
	return err
}
