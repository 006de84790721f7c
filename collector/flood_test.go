package collector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// writePage makes and writes the text of a scrape.
func writePage(w io.Writer, c *Collector) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(c.Read(context.Background())); err != nil {
		return err
	}
	families, err := registry.Gather()
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(w)
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(buffered, f); err != nil {
			return err
		}
	}
	return buffered.Flush()
}

// inOwnProcess reports whether the test runs in a process of its own; if not, it runs it
// in one.
func inOwnProcess(t *testing.T) bool {
	t.Helper()
	const own = "TIMEWAIT_EXPORTER_TEST_PROCESS"
	if os.Getenv(own) != "" {
		return true
	}
	command := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	command.Env = append(os.Environ(), own+"=1")
	output, err := command.CombinedOutput()
	t.Logf("in its own process: %s", output)
	if err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())) {
		t.Error(err)
	}
	return false
}

// mostMemory returns the most resident memory that this process ever had, in MiB.
func mostMemory(t *testing.T) float64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var kilobytes float64
	_, peak, _ := bytes.Cut(status, []byte("VmHWM:"))
	if _, err := fmt.Sscanf(string(peak), "%f kB", &kilobytes); err != nil {
		t.Fatalf("%v: %q", err, status)
	}
	return kilobytes / 1024
}

// writeFlood writes a proc file system with a listener on port 80 and so many more
// rows, of which row gives the ends.
func writeFlood(t testing.TB, rows int, row func(i int) (local, remote uint32, localPort, remotePort uint16)) string {
	t.Helper()
	root := writeProc(t)
	writeFile(t, filepath.Join(root, "sys/net/ipv4/ip_local_port_range"), "32768\t60999\n")
	f, err := os.Create(filepath.Join(root, "net/tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := []byte(tableHeader + oneListener)
	for i := range rows {
		local, remote, localPort, remotePort := row(i)
		start := len(b)
		b = fmt.Appendf(b, "%4d: %08X:%04X %08X:%04X 06 00000000:00000000 03:%08X 00000000     0        0 0 3 0000000000000000",
			i+1, printed(local), localPort, printed(remote), remotePort, i%6000)
		b = append(b, bytes.Repeat([]byte(" "), max(0, 149-(len(b)-start)))...)
		b = append(b, '\n')
		if len(b) < 1<<20 && i < rows-1 {
			continue
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		b = b[:0]
	}
	return root
}

// printed is an IPv4 address as the kernel prints it on this machine.
func printed(address uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, address))
}

// raceDetector reports whether this binary has it: it takes several times the
// memory.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

const (
	myIP   = 10<<24 | 1
	aPeer  = 10<<24 | 2
	theNet = 20 << 24
)

// TestFlood has a million connections, and keeps to its memory and to a page of
// bounded length.
func TestFlood(t *testing.T) {
	const rows = 1_000_000
	f := func(name string, mostMiB float64, row func(i int) (local, remote uint32, localPort, remotePort uint16), check func(*testing.T, page)) {
		t.Run(name, func(t *testing.T) {
			if !inOwnProcess(t) {
				return
			}
			c := newCollector(t, fixture(t, writeFlood(t, rows, row)))
			if err := writePage(io.Discard, c); err != nil {
				t.Fatal(err)
			}
			p := gather(t, c.Read(t.Context()))
			mib := mostMemory(t)
			p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
			p.want(t, 2*(rows+1), "timewait_exporter_rows_total", "table", "tcp")
			p.want(t, rows, "tcp_connections", "state", "time_wait")
			p.want(t, rows, "tcp_remote_connections")
			p.want(t, rows, "tcp_time_wait_remaining_connections")
			series := 0
			for _, f := range p {
				series += len(f.GetMetric())
			}
			if series > 500 {
				t.Errorf("%d series", series)
			}
			t.Logf("%.1f MiB, %d series", mib, series)
			if mib > mostMiB && !raceDetector() {
				t.Errorf("%.1f MiB resident, at most %.0f are allowed", mib, mostMiB)
			}
			check(t, p)
		})
	}
	about := func(t *testing.T, want, tolerance float64, p page, name string, labels ...string) {
		t.Helper()
		if got := p.sum(name, labels...); got < want*(1-tolerance) || got > want*(1+tolerance) {
			t.Errorf("%s is %v, want %v within %v %%", name, got, want, 100*tolerance)
		}
	}

	// Each connection from another IP, but for one peer with 2 %.
	f("inbound", 64, func(i int) (local, remote uint32, localPort, remotePort uint16) {
		if i%50 == 7 {
			return myIP, aPeer, 80, uint16(1024 + i/50)
		}
		return myIP, theNet + uint32(i), 80, 5000
	}, func(t *testing.T, p page) {
		short := p.sum("timewait_exporter_undercount_max", "by", "remote")
		if short < 1 || short > 16 {
			t.Errorf("counts of remotes may be %v short", short)
		}
		if got := p.sum("tcp_remote_connections", "remote_ip", "10.0.0.2"); got > 20_000 || got < 20_000-short {
			t.Errorf("the one with most has %v connections, want 20000", got)
		}
		about(t, 980_001, 0.02, p, "tcp_remote_ips", "direction", "inbound")
		about(t, 0.02, 0.01, p, "tcp_remote_top_share_ratio", "direction", "inbound", "state", "time_wait")
		p.want(t, rows, "tcp_listener_connections", "local_port", "80")
		p.want(t, 0, "tcp_ephemeral_ports_used")
		p.want(t, 0, "timewait_exporter_undercount_max", "by", "destination")
	})

	// Each connection to another destination from many local IPs, but for one
	// destination with a third of the pool.
	f("outbound", 64, func(i int) (local, remote uint32, localPort, remotePort uint16) {
		port := uint16(32768 + i%28232)
		if i%106 == 7 {
			return myIP, aPeer, uint16(32768 + i/106), 443
		}
		return myIP + uint32(i%5000), theNet + uint32(i), port, 443
	}, func(t *testing.T, p page) {
		const held = (rows - 8 + 106) / 106
		short := p.sum("timewait_exporter_undercount_max", "by", "destination")
		if short < 1 || short > 32 {
			t.Errorf("counts of destinations may be %v short", short)
		}
		if got := p.sum("tcp_destination_ports_used", "remote_ip", "10.0.0.2"); got > held || got < held-short {
			t.Errorf("the one with most has %v ports, want %d", got, held)
		}
		about(t, held/28232., 0.01, p, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
		about(t, rows-held+1, 0.02, p, "tcp_destinations")
		about(t, rows-held+1, 0.02, p, "tcp_remote_ips", "direction", "outbound")
		p.want(t, 28232, "tcp_ephemeral_ports_used")
		if p.sum("timewait_exporter_undercount_max", "by", "local_ip") == 0 {
			t.Error("5000 local IPs are counted exactly")
		}
	})

	// Both at once.
	f("both ways", 64, func(i int) (local, remote uint32, localPort, remotePort uint16) {
		if i%2 == 0 {
			return myIP, theNet + uint32(i), 80, 5000
		}
		return myIP + uint32(i%5000), theNet + uint32(i), uint16(32768 + i%28232), 443
	}, func(t *testing.T, p page) {
		about(t, rows/2, 0.02, p, "tcp_remote_ips", "direction", "inbound")
		about(t, rows/2, 0.02, p, "tcp_remote_ips", "direction", "outbound")
		about(t, rows/2, 0.02, p, "tcp_destinations")
	})

	// All from four IPs.
	f("few", 25, func(i int) (local, remote uint32, localPort, remotePort uint16) {
		return myIP + uint32(i/4%4), aPeer + uint32(i%4), 80, uint16(i / 16)
	}, func(t *testing.T, p page) {
		p.want(t, rows/4, "tcp_remote_connections", "remote_ip", "10.0.0.2")
		p.want(t, 4, "tcp_remote_ips", "direction", "inbound")
		p.want(t, 0, "timewait_exporter_undercount_max")
	})
}
