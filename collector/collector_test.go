package collector

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-kit/log"
)

// tableHeader is the first line of net/tcp.
var tableHeader = fmt.Sprintf("%-149s\n", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode")

// oneListener is a row of net/tcp, the same on machines of both byte orders.
var oneListener = fmt.Sprintf("%-149s\n", "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0")

// writeProc copies a proc file system in which everything is in order, and returns its
// root.
func writeProc(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(root, os.DirFS("testdata/every_number/proc")); err != nil {
		t.Fatal(err)
	}
	return root
}

// lines is a log's output.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// take returns what was written since the last call.
func (l *lines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// want compares what was written since the last call: so many lines, of which each has
// all words of one of these.
func (l *lines) want(t testing.TB, wants ...string) {
	t.Helper()
	text := l.take()
	got := strings.SplitAfter(text, "\n")
	if len(got)-1 != len(wants) {
		t.Errorf("logged %d lines, want %d: %s", len(got)-1, len(wants), text)
		return
	}
	for i, want := range wants {
		for word := range strings.FieldsSeq(want) {
			if !strings.Contains(got[i], word) {
				t.Errorf("line %d lacks %s: %s", i+1, word, got[i])
			}
		}
	}
}

func newLogged(t testing.TB, cfg Config) (*Collector, *lines) {
	t.Helper()
	out := new(lines)
	c, err := New(t.Context(), cfg, log.NewLogfmtLogger(out))
	if err != nil {
		t.Fatal(err)
	}
	out.take()
	return c, out
}

// TestCollectParts has each part fail alone: its metrics are gone, the others are
// there, and the log says which file it was.
func TestCollectParts(t *testing.T) {
	f := func(part, file, text string) {
		t.Helper()
		root := writeProc(t)
		c, out := newLogged(t, fixture(t, root))
		wantParts(t, gather(t, c.Read(t.Context())), "")
		out.want(t)
		writeFile(t, filepath.Join(root, file), text)
		wantParts(t, gather(t, c.Read(t.Context())), part)
		out.want(t, "level=error collector="+part+" "+filepath.Base(file))
	}
	f("ports", "sys/net/ipv4/ip_local_port_range", "40009\t40000\n")
	f("ports", "sys/net/ipv4/ip_local_reserved_ports", "x\n")
	f("sockstat", "net/sockstat", "TCP: tw\n")
	f("sockstat", "net/sockstat", "TCP: tw 1\nTCP: tw 1\n")
	f("sockstat", "net/sockstat6", "TCP6: inuse\n")
	f("conntrack", "net/stat/nf_conntrack", "entries drop\n00000001\n")
	f("conntrack", "net/stat/nf_conntrack", "entries drop\n00000001 0000000")
	f("conntrack", "net/stat/nf_conntrack", "entries drop\n00000001 0000000g\n")
	f("snmp", "net/snmp", "Tcp: A\n")
	f("snmp", "net/snmp", "Tcp: ActiveOpens ActiveOpens\nTcp: 1 1\n")
	f("netstat", "net/netstat", "TcpExt: A\n")
	f("sysctls", "sys/net/ipv4/tcp_max_tw_buckets", "none\n")
	f("file-nr", "sys/fs/file-nr", "none\n")
	f("sockets", "net/tcp", "")
	f("sockets", "net/tcp", tableHeader+"garbage\n"+oneListener)
	f("sockets", "net/tcp6", "garbage\n")
	f("sockets", "net/sockstat", "TCP: inuse 500 orphan 0 tw 400 alloc 9 mem 1\n") // far more than were read
}

// TestCollectRows counts rows read and rows that are not as they should be, and
// keeps counting.
func TestCollectRows(t *testing.T) {
	root := writeProc(t)
	c, out := newLogged(t, fixture(t, root))
	f := func(success, rows, malformed float64, tcp string, logged ...string) {
		t.Helper()
		writeFile(t, filepath.Join(root, "net/tcp"), tcp)
		p := gather(t, c.Read(t.Context()))
		p.want(t, success, "timewait_exporter_collector_success", "collector", "sockets")
		p.want(t, rows, "timewait_exporter_rows_total", "table", "tcp")
		p.want(t, malformed, "timewait_exporter_malformed_rows_total", "table", "tcp")
		p.want(t, 0, "timewait_exporter_rows_total", "table", "tcp6")
		p.want(t, 0, "timewait_exporter_malformed_rows_total", "table", "tcp6")
		out.want(t, logged...)
	}
	f(1, 1, 0, tableHeader+oneListener)
	f(1, 3, 0, tableHeader+oneListener+oneListener)
	f(0, 4, 1, tableHeader+oneListener+"garbage\n", "level=error")
	f(0, 5, 2, tableHeader+oneListener+oneListener[:50], "level=error")
	f(0, 6, 3, tableHeader+oneListener+oneListener[:len(oneListener)-1], "level=error")
	f(1, 7, 3, tableHeader+oneListener)
}

// TestCollectOtherSysctls shows no sysctl of another namespace, and all else of the one
// that is named.
func TestCollectOtherSysctls(t *testing.T) {
	cfg := fixture(t, writeProc(t))
	cfg.Namespace.OwnSysctls, cfg.Namespace.Name = false, "blue"
	p := scrapeOf(t, cfg)
	for _, name := range []string{"tcp_ephemeral_ports", "tcp_time_wait_limit", "tcp_time_wait_reuse_mode", "tcp_time_wait_recycle_enabled", "tcp_fin_timeout_seconds",
		"tcp_listen_backlog_limit", "tcp_syn_backlog_limit", "tcp_orphan_limit", "tcp_memory_limit_bytes"} {
		p.wantNone(t, name)
	}
	for _, m := range Metrics() {
		if slices.Contains(m.Labels, "netns") && len(p.series(m.Name, "netns", "blue")) != len(p.family(m.Name)) {
			t.Errorf("%s is of another netns", m.Name)
		}
	}
	for _, name := range []string{"kernel_file_handles_limit", "tcp_time_wait_sockets", "tcp_orphans", "tcp_active_opens_total", "tcp_memory_bytes"} {
		if len(p.family(name)) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	p.want(t, 1, "timewait_exporter_netns_info", "sysctls", "other")
	p.wantNone(t, "timewait_exporter_collector_success", "collector", "ports")
	p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
	p.want(t, 1, "tcp_connections")
	p.want(t, 1600, "kernel_file_handles")
}

// TestCollectNoSysctls tells a /proc without net sysctls from one that has them.
func TestCollectNoSysctls(t *testing.T) {
	cfg := fixture(t, writeProc(t))
	if err := os.RemoveAll(filepath.Join(cfg.ProcRoot, "sys")); err != nil {
		t.Fatal(err)
	}
	var logged lines
	c, err := New(t.Context(), cfg, log.NewLogfmtLogger(&logged))
	if err != nil {
		t.Fatal(err)
	}
	logged.want(t, "level=info", "level=info no owners", "level=info", "level=warn no net sysctls "+filepath.Join(cfg.ProcRoot, "sys/net"))
	p := gather(t, c.Read(t.Context()))
	p.want(t, 1, "timewait_exporter_netns_info", "sysctls", "none")
	p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
	p.want(t, 1, "tcp_connections")
	p.wantNone(t, "tcp_ephemeral_ports")
}

// TestCollectAtOnce has scrapes at the same time: each gets all of it.
func TestCollectAtOnce(t *testing.T) {
	c := newCollector(t, machine(t, machines(t)[0]))
	varying := []string{"timewait_exporter_rows_total", "timewait_exporter_collector_duration_seconds", "timewait_exporter_table_read_timestamp_seconds"}
	want := gather(t, c.Read(t.Context())).text(t, varying...)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				p := gather(t, c.Read(t.Context()))
				if got := p.text(t, varying...); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
	all.Wait()
}

// TestNewSource chooses the source. That of a copy can only be procfs, whatever is
// wanted.
func TestNewSource(t *testing.T) {
	cfg := fixture(t, writeProc(t))
	cfg.Source = SourceAuto
	p := scrapeOf(t, cfg)
	p.want(t, 1, "timewait_exporter_source_info", "source", SourceProcfs)
	p.wantNone(t, "timewait_exporter_collector_success", "collector", "listeners")
	cfg.Source = SourceNetlink
	if _, err := New(t.Context(), cfg, log.NewNopLogger()); err == nil || !strings.Contains(err.Error(), cfg.Namespace.Dir) {
		t.Errorf("netlink of a copy: %v", err)
	}
}
