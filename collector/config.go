package collector

import (
	"time"

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
	// Source is one of the constants above.
	Source string
	// AllNamespaces is whether all network namespaces are read and not only Namespace,
	// and Budget the processor time that a scrape has for the tables of the others.
	AllNamespaces bool
	Budget        time.Duration
	// Remotes, Destinations and Listeners are how many of each get series of
	// their own. With 0 remotes no remote address is named.
	Remotes, Destinations, Listeners int
	// Owners are how many owners of sockets get series of their own; with 0 nothing is
	// done to know them. CgroupFS is where the host's cgroup tree is mounted, empty for
	// where the kernel says, and PodLogs where a kubelet has the logs of pods.
	Owners            int
	CgroupFS, PodLogs string
	// RemotePrefixIPv4 and RemotePrefixIPv6 fold remote addresses into blocks of
	// so many bits; 32 and 128 leave them whole.
	RemotePrefixIPv4, RemotePrefixIPv6 int
	// RemoteGroups are remote addresses that are counted under a name, before they
	// are folded into blocks; all of them have series of their own.
	RemoteGroups []tally.Group
}
