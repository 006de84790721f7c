package collector

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"timewait_exporter/collector/kernelstat"
)

// kernel reads the kernel's own limits and counters of one network namespace. What
// this kernel does not have is left out.
type kernel struct {
	root string // of the proc file system
	ns   Namespace
}

// kernelPart is a file that is read, judged and left out by itself, or the sysctls,
// of which each is.
type kernelPart struct {
	name string // its collector label
	read func(context.Context) (samples, error)
	hung hung
}

func (k kernel) parts() []*kernelPart {
	parts := []*kernelPart{
		{name: "sockstat", read: k.sockstat},
		{name: "snmp", read: k.snmp},
		{name: "netstat", read: k.netstat},
		{name: "file-nr", read: k.fileNr},
	}
	if k.ns.OwnSysctls {
		parts = append(parts, &kernelPart{name: "sysctls", read: k.sysctls})
	}
	return parts
}

// metricOf says which metric a number of the kernel is.
type metricOf struct {
	number string // the kernel's name, where it has one
	metric *Metric
	label  string // the value of the metric's label beside netns, if it has one
}

// add adds the metric of a number.
func (k kernel) add(out *samples, m metricOf, number uint64) {
	value := float64(number)
	if m.metric == memory || m.metric == memoryLimit {
		value *= float64(os.Getpagesize()) // the kernel counts pages
	}
	var labels []string
	if slices.Contains(m.metric.Labels, "netns") {
		labels = append(labels, k.ns.Name)
	}
	if m.label != "" {
		labels = append(labels, m.label)
	}
	out.add(m.metric, value, labels...)
}

// sockstat reads net/sockstat: tw is of the namespace, orphan and mem are of the
// whole node (sockstat_seq_show in net/ipv4/proc.c).
func (k kernel) sockstat(ctx context.Context) (samples, error) {
	return k.named(ctx, kernelstat.ReadPairs, "sockstat", "TCP", []metricOf{
		{"tw", timeWaitSockets, ""},
		{"orphan", orphans, ""},
		{"mem", memory, ""},
	})
}

func (k kernel) snmp(ctx context.Context) (samples, error) {
	return k.named(ctx, kernelstat.ReadCounters, "snmp", "Tcp", []metricOf{
		{"ActiveOpens", activeOpens, ""},
		{"PassiveOpens", passiveOpens, ""},
		{"AttemptFails", attemptFails, ""},
		{"EstabResets", establishedResets, ""},
		{"RetransSegs", retransmitted, ""},
		{"OutRsts", outResets, ""},
	})
}

func (k kernel) netstat(ctx context.Context) (samples, error) {
	return k.named(ctx, kernelstat.ReadCounters, "netstat", "TcpExt", []metricOf{
		{"TW", timeWaitStarted, "full"},
		{"TWKilled", timeWaitStarted, "short"},
		{"TWRecycled", timeWaitReused, ""},
		{"TCPTimeWaitOverflow", timeWaitOverflows, ""},
		{"ListenOverflows", listenOverflows, ""},
		{"ListenDrops", listenDrops, ""},
		{"SyncookiesSent", synCookiesSent, ""},
		{"TCPAbortOnData", aborts, "data"},
		{"TCPAbortOnClose", aborts, "close"},
		{"TCPAbortOnMemory", aborts, "memory"},
		{"TCPAbortOnTimeout", aborts, "timeout"},
		{"TCPAbortOnLinger", aborts, "linger"},
		{"TCPAbortFailed", abortFailures, ""},
	})
}

// named reads the numbers of a protocol from a file of the net directory.
func (k kernel) named(
	ctx context.Context,
	read func(ctx context.Context, path, protocol string, names ...string) (kernelstat.Numbers, error),
	file, protocol string, metrics []metricOf,
) (samples, error) {
	names := make([]string, len(metrics))
	for i, m := range metrics {
		names[i] = m.number
	}
	numbers, err := read(ctx, filepath.Join(k.ns.Dir, file), protocol, names...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out samples
	for _, m := range metrics {
		if n, ok := numbers[m.number]; ok {
			k.add(&out, m, n)
		}
	}
	return out, nil
}

// fileNr reads fs.file-nr: open handles, a constant 0, and their limit.
func (k kernel) fileNr(ctx context.Context) (samples, error) {
	return k.sysctl(ctx, "fs.file-nr", metricOf{metric: fileHandles}, metricOf{}, metricOf{metric: fileHandlesLimit})
}

// sysctls reads the limits of net. The kernel shows tcp_mem and tcp_max_orphans,
// which are of the whole node, in its first network namespace only.
func (k kernel) sysctls(ctx context.Context) (samples, error) {
	var out samples
	var errs []error
	for _, s := range []struct {
		name    string
		metrics []metricOf
	}{
		{"net.ipv4.tcp_max_tw_buckets", []metricOf{{metric: timeWaitLimit}}},
		{"net.ipv4.tcp_tw_reuse", []metricOf{{metric: timeWaitReuseMode}}},
		{"net.ipv4.tcp_tw_recycle", []metricOf{{metric: timeWaitRecycle}}},
		{"net.ipv4.tcp_fin_timeout", []metricOf{{metric: finTimeout}}},
		{"net.core.somaxconn", []metricOf{{metric: listenBacklogLimit}}},
		{"net.ipv4.tcp_max_syn_backlog", []metricOf{{metric: synBacklogLimit}}},
		{"net.ipv4.tcp_max_orphans", []metricOf{{metric: orphanLimit}}},
		{"net.ipv4.tcp_mem", []metricOf{{"", memoryLimit, "low"}, {"", memoryLimit, "pressure"}, {"", memoryLimit, "high"}}},
	} {
		part, err := k.sysctl(ctx, s.name, s.metrics...)
		out = append(out, part...)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// sysctl reads one whose numbers are these metrics; one without a metric is not used.
func (k kernel) sysctl(ctx context.Context, name string, metrics ...metricOf) (samples, error) {
	values, err := kernelstat.ReadSysctl(ctx, k.root, name, len(metrics))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out samples
	for i, m := range metrics {
		if m.metric != nil {
			k.add(&out, m, values[i])
		}
	}
	return out, nil
}
