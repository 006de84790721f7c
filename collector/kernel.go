package collector

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

// kernel reads the kernel's own limits and counters of one network namespace. A
// file or a sysctl that this kernel does not have is left out.
type kernel struct {
	root string // of the proc file system
	ns   Namespace
}

func (k kernel) read(context.Context) (samples, error) {
	var out samples
	for _, part := range []func(*samples) error{k.addSockstat, k.addCounters, k.addSysctls} {
		if err := part(&out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addSockstat reads net/sockstat: tw is of the namespace, orphan and mem are of
// the whole node (sockstat_seq_show in net/ipv4/proc.c).
func (k kernel) addSockstat(out *samples) error {
	proc, err := procfs.NewFS(filepath.Dir(k.ns.Dir))
	if err != nil {
		return err
	}
	stat, err := proc.NetSockstat()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, p := range stat.Protocols {
		if p.Protocol != "TCP" {
			continue
		}
		if p.TW != nil {
			out.add(timeWaitSockets, float64(*p.TW), k.ns.Name)
		}
		if p.Orphan != nil {
			out.add(orphans, float64(*p.Orphan))
		}
		if p.Mem != nil {
			out.add(memory, float64(*p.Mem)*float64(os.Getpagesize()))
		}
	}
	return nil
}

// counter says which metric a number of net/snmp or net/netstat is.
type counter struct {
	metric *Metric
	label  string // the value of its second label, if it has one
}

func counters() map[string]counter {
	return map[string]counter{
		"Tcp.ActiveOpens":            {activeOpens, ""},
		"Tcp.PassiveOpens":           {passiveOpens, ""},
		"Tcp.AttemptFails":           {attemptFails, ""},
		"Tcp.EstabResets":            {establishedResets, ""},
		"Tcp.RetransSegs":            {retransmitted, ""},
		"Tcp.OutRsts":                {outResets, ""},
		"TcpExt.TW":                  {timeWaitStarted, "full"},
		"TcpExt.TWKilled":            {timeWaitStarted, "short"},
		"TcpExt.TWRecycled":          {timeWaitReused, ""},
		"TcpExt.TCPTimeWaitOverflow": {timeWaitOverflows, ""},
		"TcpExt.ListenOverflows":     {listenOverflows, ""},
		"TcpExt.ListenDrops":         {listenDrops, ""},
		"TcpExt.SyncookiesSent":      {synCookiesSent, ""},
		"TcpExt.TCPAbortOnData":      {aborts, "data"},
		"TcpExt.TCPAbortOnClose":     {aborts, "close"},
		"TcpExt.TCPAbortOnMemory":    {aborts, "memory"},
		"TcpExt.TCPAbortOnTimeout":   {aborts, "timeout"},
		"TcpExt.TCPAbortOnLinger":    {aborts, "linger"},
		"TcpExt.TCPAbortFailed":      {abortFailures, ""},
	}
}

// addCounters reads net/snmp and net/netstat. procfs knows both, but not the
// abort counters of memory, timeout and linger, and only below /proc/PID.
func (k kernel) addCounters(out *samples) error {
	wanted := counters()
	for _, name := range []string{"snmp", "netstat"} {
		path := filepath.Join(k.ns.Dir, name)
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = parseCounters(text, func(name, value string) error {
			c, ok := wanted[name]
			if !ok {
				return nil
			}
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			labels := []string{k.ns.Name}
			if c.label != "" {
				labels = append(labels, c.label)
			}
			out.add(c.metric, float64(n), labels...)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// parseCounters calls f with each name and value of a text in which a line of
// names is followed by a line of values, both behind the name of the protocol:
//
//	Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens
//	Tcp: 1 200 120000 -1 3
func parseCounters(text []byte, f func(name, value string) error) error {
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if len(names) == 0 {
			continue
		}
		if !lines.Scan() {
			return fmt.Errorf("no values for the names in %q", strings.Join(names, " "))
		}
		values := strings.Fields(lines.Text())
		if len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("the values in %q don't belong to the names in %q", lines.Text(), strings.Join(names, " "))
		}
		protocol := strings.TrimSuffix(names[0], ":")
		for i, name := range names[1:] {
			if err := f(protocol+"."+name, values[i+1]); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

// addSysctls reads the limits. Those of net are left out when this process sees
// another namespace's; the kernel shows tcp_mem and tcp_max_orphans, which are of
// the whole node, in its first network namespace only.
func (k kernel) addSysctls(out *samples) error {
	proc, err := procfs.NewFS(k.root)
	if err != nil {
		return err
	}
	node := func(m *Metric, labels ...string) func(int) {
		return func(v int) { out.add(m, float64(v), labels...) }
	}
	pages := func(level string) func(int) {
		return func(v int) { out.add(memoryLimit, float64(v)*float64(os.Getpagesize()), level) }
	}
	own := func(m *Metric) func(int) { return node(m, k.ns.Name) }
	skip := func(int) {}

	type sysctl struct {
		name   string
		values []func(int)
	}
	sysctls := []sysctl{{"fs.file-nr", []func(int){node(fileHandles), skip, node(fileHandlesLimit)}}}
	if k.ns.OwnSysctls {
		sysctls = append(sysctls,
			sysctl{"net.ipv4.tcp_max_tw_buckets", []func(int){own(timeWaitLimit)}},
			sysctl{"net.ipv4.tcp_tw_reuse", []func(int){own(timeWaitReuseMode)}},
			sysctl{"net.ipv4.tcp_tw_recycle", []func(int){own(timeWaitRecycle)}},
			sysctl{"net.ipv4.tcp_fin_timeout", []func(int){own(finTimeout)}},
			sysctl{"net.core.somaxconn", []func(int){own(listenBacklogLimit)}},
			sysctl{"net.ipv4.tcp_max_syn_backlog", []func(int){own(synBacklogLimit)}},
			sysctl{"net.ipv4.tcp_max_orphans", []func(int){node(orphanLimit)}},
			sysctl{"net.ipv4.tcp_mem", []func(int){pages("low"), pages("pressure"), pages("high")}},
		)
	}
	for _, s := range sysctls {
		values, err := sysctlInts(proc, s.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(values) != len(s.values) {
			return fmt.Errorf("%s: %v are not %d numbers", s.name, values, len(s.values))
		}
		for i, add := range s.values {
			add(values[i])
		}
	}
	return nil
}
