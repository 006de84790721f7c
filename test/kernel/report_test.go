package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/diagnosis"
	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// reportOf runs the program for a report, and checks that its exit code is that of the verdict.
func reportOf(t *testing.T, args ...string) *diagnosis.Report {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program.Path(), append([]string{"report", "--format=json"}, args...)...).Output()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if err != nil && !failed {
		t.Fatal(err)
	}
	r := new(diagnosis.Report)
	decoder := json.NewDecoder(bytes.NewReader(out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code := 0
	if failed {
		code = exit.ExitCode()
		if len(exit.Stderr) > 0 {
			t.Errorf("stderr: %s", exit.Stderr)
		}
	}
	if code != r.Verdict.ExitCode() {
		t.Errorf("exit code %d, the verdict is %s", code, r.Verdict)
	}
	return r
}

// closeWaits has n connections that one end has closed and the other has not.
func closeWaits(t *testing.T, pairs []netns.Pair, server bool) {
	for _, p := range pairs {
		leaking, closing := p.Client, p.Server
		if server {
			leaking, closing = p.Server, p.Client
		}
		closing.Close(t)
		leaking.AwaitEOF(t)
	}
}

// TestReport makes what a report is to find, on the real kernel: the right code and level, who
// it is about, and numbers that are the truth.
func TestReport(t *testing.T) {
	const at = "127.0.0.1:9000"
	for _, v := range []struct {
		name    string
		code    string
		level   diagnosis.Level
		subject string
		// evidence is the first of the finding, and its limit.
		evidence, limit float64
		scenario        func(t *testing.T)
	}{
		{"ports_by_established", "TCPEphemeralPortsNearExhaustion", diagnosis.Critical, at, 20, 20, func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			netns.Serve(t, loopback4, 9000).MustConnect(t, 20)
		}},
		{"ports_by_TIME_WAIT", "TCPEphemeralPortsNearExhaustion", diagnosis.Critical, at, 18, 20, func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0")
			for _, p := range netns.Serve(t, loopback4, 9000).MustConnect(t, 18) {
				p.CloseClientFirst(t)
			}
		}},
		{"ports_by_SYN_SENT", "TCPEphemeralPortsNearExhaustion", diagnosis.Critical, "10.9.0.2:9000", 10, 10, func(t *testing.T) {
			netns.NewWire(t) // nobody answers
			setPorts(t, 40000, 40009, "")
			for range 10 {
				netns.NewSocket(t, unix.AF_INET).Start(t, netip.MustParseAddrPort("10.9.0.2:9000"))
			}
		}},
		{"ports_by_a_leak", "TCPEphemeralPortsNearExhaustion", diagnosis.Critical, at, 19, 20, func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			closeWaits(t, netns.Serve(t, loopback4, 9000).MustConnect(t, 19), false)
		}},
		{"bound_clients_of_many_destinations", "TCPBindPortsNearExhaustion", diagnosis.Warning, "", 10, 10, func(t *testing.T) {
			setPorts(t, 40000, 40009, "")
			for port := range uint16(10) {
				client := netns.NewSocket(t, unix.AF_INET)
				client.Bind(t, netip.AddrPortFrom(loopback4, 0))
				if _, err := netns.Serve(t, loopback4, 9000+port).Join(t, client); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"listeners_on_every_port", "TCPEphemeralPortsHeldForAll", diagnosis.Critical, "", 10, 10, func(t *testing.T) {
			setPorts(t, 40001, 40010, "")
			for port := range uint16(10) {
				netns.Listen(t, netip.AddrPortFrom(loopback4, 40001+port), 1)
			}
		}},
		{"reuse_without_timestamps", "TCPTimeWaitReuseNotWorking", diagnosis.Critical, at, 20, 20, func(t *testing.T) {
			setPorts(t, 40000, 40019, "")
			netns.SetSysctl(t, "net/ipv4/tcp_timestamps", "0")
			for _, p := range netns.Serve(t, loopback4, 9000).MustConnect(t, 20) {
				p.CloseClientFirst(t)
			}
			netns.SetSysctl(t, "net/ipv4/tcp_timestamps", "1")
			time.Sleep(1500 * time.Millisecond) // tcp_tw_reuse_delay
		}},
		{"server_that_does_not_close", "TCPCloseWaitLeak", diagnosis.Warning, "127.0.0.1", 15, 17, func(t *testing.T) {
			netns.SetSysctl(t, "net/ipv4/tcp_fin_timeout", "1") // the clients' half ends first
			pairs := netns.Serve(t, loopback4, 9000).MustConnect(t, 17)
			closeWaits(t, pairs[:15], true)
		}},
		{"client_that_does_not_close", "TCPCloseWaitLeak", diagnosis.Warning, "127.0.0.1", 15, 17, func(t *testing.T) {
			closeWaits(t, netns.Serve(t, loopback4, 9000).MustConnect(t, 17)[:15], false)
		}},
		{"program_that_does_not_accept", "TCPListenQueueOverflowing", diagnosis.Critical, "127.0.0.1:9000", 4, 4, func(t *testing.T) {
			needsSockDiag(t)
			netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:9000"), 3)
			for range 4 {
				netns.NewSocket(t, unix.AF_INET).Start(t, netip.MustParseAddrPort("127.0.0.1:9000"))
			}
		}},
		{"clients_that_gave_up", "TCPAcceptQueueNotDrained", diagnosis.Warning, "127.0.0.1:9000", 3, 101, func(t *testing.T) {
			needsSockDiag(t)
			netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:9000"), 100)
			for range 3 {
				client := netns.NewSocket(t, unix.AF_INET)
				client.Start(t, netip.MustParseAddrPort("127.0.0.1:9000"))
				client.Close(t)
			}
		}},
		{"SYN_flood", "TCPSynFlood", diagnosis.Warning, "10.9.0.2", 8, 9, func(t *testing.T) {
			needsSockDiag(t)
			w := netns.NewWire(t)
			netns.Listen(t, netip.MustParseAddrPort("10.9.0.1:443"), 8)
			for port := range uint16(8) {
				w.Call(t, netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), 5000+port), netip.MustParseAddrPort("10.9.0.1:443"))
			}
		}},
		{"one_of_three_clients", "TCPOneRemoteDominates", diagnosis.Warning, "127.0.0.2", 30, 40, func(t *testing.T) {
			s := netns.Serve(t, loopback4, 80)
			setPorts(t, 40000, 40099, "")
			s.MustConnectFrom(t, netip.MustParseAddr("127.0.0.2"), 20000, 30)
			s.MustConnectFrom(t, netip.MustParseAddr("127.0.0.3"), 20000, 5)
			s.MustConnectFrom(t, netip.MustParseAddr("127.0.0.4"), 20000, 5)
		}},
		{"TIME_WAIT_table_full", "TCPTimeWaitOverflowing", diagnosis.Warning, "127.0.0.1", 20, 20, func(t *testing.T) {
			netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "20")
			for _, p := range netns.Serve(t, loopback4, 80).MustConnectFrom(t, loopback4, 20000, 25) {
				p.CloseServerFirst(t)
			}
		}},
		{"peers_that_do_not_close", "TCPFinWait2Accumulating", diagnosis.Warning, "127.0.0.1", 9, 80, func(t *testing.T) {
			netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "80")
			closeWaits(t, netns.Serve(t, loopback4, 80).MustConnectFrom(t, loopback4, 20000, 9), false)
		}},
		{"listener_inside_the_range", "TCPListenersInsidePortRange", diagnosis.Info, "127.0.0.1:50051", 50051, 0, func(t *testing.T) {
			netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:50051"), 1)
		}},
		{"TIME_WAITs_of_a_server", "TCPTimeWaitHarmless", diagnosis.Info, "", 150, 0, func(t *testing.T) {
			for _, p := range netns.Serve(t, loopback4, 80).MustConnectFrom(t, loopback4, 20000, 150) {
				p.CloseServerFirst(t)
			}
		}},
		{"well", "", diagnosis.OK, "", 0, 0, func(t *testing.T) {
			netns.Serve(t, loopback4, 80).MustConnect(t, 50)
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				v.scenario(t)
				r := reportOf(t)
				if r.Verdict != v.level {
					t.Errorf("the verdict is %s, want %s", r.Verdict, v.level)
				}
				var serious []string
				var f *diagnosis.Finding
				for _, finding := range r.Findings {
					if finding.Level != diagnosis.Info {
						serious = append(serious, finding.Code)
					}
					if finding.Code == v.code {
						f = finding
					}
				}
				if len(serious) > 1 {
					t.Errorf("more than one finding: %s", serious)
				}
				switch {
				case v.code == "":
				case f == nil:
					t.Errorf("no %s: %s", v.code, r.Summary)
				case f.Level != v.level || v.subject != "" && f.Subject() != v.subject:
					t.Errorf("%s about %s, want %s about %s", f.Level, f.Subject(), v.level, v.subject)
				case f.Evidence[0].Value != v.evidence || v.limit != 0 && (f.Evidence[0].Limit == nil || *f.Evidence[0].Limit != v.limit):
					t.Errorf("%+v, want %v of %v", f.Evidence[0], v.evidence, v.limit)
				}
				t.Log(r.Summary)
				if v.code != "" {
					checkCaptures(t, v.code)
				}
			})
		})
	}
}

// checkCaptures captures the scene as people do, and wants the same finding of each capture, or
// to be told why it can't be made.
func checkCaptures(t *testing.T, code string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var set []string
	var sysctls strings.Builder
	for _, name := range []string{"ip_local_port_range", "ip_local_reserved_ports", "tcp_tw_reuse", "tcp_timestamps", "tcp_max_tw_buckets", "tcp_syncookies", "tcp_max_syn_backlog"} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
		if err != nil {
			t.Fatal(err)
		}
		write("copy/sys/net/ipv4/"+name, string(text))
		value := strings.TrimSpace(string(text))
		set = append(set, "--set=net.ipv4."+name+"="+value)
		fmt.Fprintf(&sysctls, "net.ipv4.%s = %s\n", name, value)
	}
	for _, name := range []string{"tcp", "tcp6", "sockstat", "netstat"} {
		text, err := os.ReadFile("/proc/self/net/" + name)
		if err != nil && name != "tcp6" {
			t.Fatal(err)
		}
		write("copy/net/"+name, string(text))
	}
	captures := map[string][]string{"copy of /proc": {filepath.Join(dir, "copy")}, "raw": append(set, filepath.Join(dir, "copy/net/tcp"))}
	if ss, err := exec.LookPath("ss"); err == nil {
		run := func(args ...string) string {
			out, err := exec.CommandContext(t.Context(), ss, args...).Output()
			if err != nil {
				t.Fatalf("ss %s: %v", args, err)
			}
			return string(out)
		}
		captures["ss"] = append(set, write("ss", run("-tanope")))
		write("sos/sos_commands/networking/ss_-peaonmi", run("-peaonmi"))
		write("sos/sos_commands/kernel/sysctl_-a", sysctls.String())
		captures["sos"] = []string{filepath.Join(dir, "sos")}
	}
	for name, args := range captures {
		r := reportOf(t, args...)
		found := slices.ContainsFunc(r.Findings, func(f *diagnosis.Finding) bool { return f.Code == code })
		told := slices.ContainsFunc(r.NotChecked, func(n diagnosis.NotChecked) bool { return strings.Contains(n.Check, code) })
		if !found && !told {
			t.Errorf("%s: no %s, and not told why: %s", name, code, r.Summary)
		}
		if found && name == "ss" {
			t.Logf("%s: %s", name, r.Summary)
		}
	}
}

// needsSockDiag skips where accept queues have no limits to be seen.
func needsSockDiag(t *testing.T) {
	t.Helper()
	if err := netns.SockDiag(); err != nil {
		t.Skip(err)
	}
}

// TestReportListen asks whether a service could start on a port, and the kernel the same.
func TestReportListen(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		setPorts(t, 40000, 40009, "")
		netns.Listen(t, netip.MustParseAddrPort("127.0.0.1:8080"), 1)
		pair := netns.Serve(t, loopback4, 9000).MustConnect(t, 1)[0]
		for _, p := range netns.Serve(t, netip.MustParseAddr("127.0.0.9"), 7000).MustConnect(t, 1) {
			p.CloseServerFirst(t)
		}
		for _, port := range []uint16{8080, pair.Client.Local(t).Port(), 8081} {
			r := reportOf(t, fmt.Sprintf("--listen=%d", port))
			s := netns.NewSocket(t, unix.AF_INET)
			s.Set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			err := s.TryBind(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
			if (err != nil) != (r.Verdict == diagnosis.Critical) {
				t.Errorf("port %d: %s; bind: %v", port, r.Summary, err)
			}
			if port != 8081 && r.Findings[0].Program == "" {
				t.Errorf("port %d: no program: %s", port, r.Summary)
			}
		}
	})
}
