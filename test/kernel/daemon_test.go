package kernel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

func TestListenAddress(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const address = "127.9.9.9:10793"
		e := startListening(t, address)
		for path, want := range map[string]int{
			"/-/healthy":    http.StatusOK,
			"/-/ready":      http.StatusOK,
			"/metrics":      http.StatusOK,
			"/":             http.StatusOK,
			"/no/such/path": http.StatusNotFound,
		} {
			response, err := http.Get("http://" + address + path)
			if err != nil {
				t.Fatal(err)
			}
			body := new(bytes.Buffer)
			if _, err := body.ReadFrom(response.Body); err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s: %s, want %d\n%s", path, response.Status, want, body)
			}
			if path == "/" && !strings.Contains(body.String(), `href="/metrics"`) && !strings.Contains(body.String(), `href="metrics"`) {
				t.Errorf("the landing page has no link to the metrics:\n%s", body)
			}
			if path == "/metrics" {
				// The program counts itself like any other.
				p := mustParse(t, body.Bytes())
				p.want(t, 1, "tcp_connections", "direction", "inbound", "state", "listen")
				p.want(t, 0, "tcp_listener_accept_queue", "local_ip", "127.9.9.9", "local_port", "10793")
			}
		}
		wantCleanExit(t, e)
	})
}

func TestTelemetryPath(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		e := startExporter(t, "--web.telemetry-path=/numbers")
		for path, want := range map[string]int{"/numbers": http.StatusOK, "/metrics": http.StatusNotFound} {
			response, body, err := e.get(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != want {
				t.Errorf("%s: %s, want %d\n%s", path, response.Status, want, body)
			}
		}
	})
}

func TestSocketActivation(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.9.9.9:9")))
		if err != nil {
			t.Fatal(err)
		}
		e := startActivated(t, listener)
		listener.Close()
		response, err := http.Get("http://127.9.9.9:9/-/healthy")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Error(response.Status)
		}
		http.DefaultClient.CloseIdleConnections()
		wantCleanExit(t, e)
	})
}

// wantCleanExit ends the program with SIGTERM.
func wantCleanExit(t *testing.T, e *exporter) {
	t.Helper()
	if took := e.stop(t); took > 5*time.Second {
		t.Errorf("it took %v to end, want at most 5 s", took)
	}
	if code := e.command.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d (%s), want 0", code, e.command.ProcessState)
	}
}

// hangingTable is a copy of a proc file system whose net/tcp is a FIFO: who
// reads it waits until the test writes.
func hangingTable(t *testing.T) (root string, table *os.File) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "net", "tcp")
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	table, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return root, table
}

const oneListener = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n" +
	"   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0                       \n"

// TestOddDeadlines sends headers that Prometheus would not.
func TestOddDeadlines(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		e := startExporter(t)
		for _, seconds := range []string{"", "ten", "-1", "0", "NaN", "+Inf", "1e300"} {
			response, body, err := e.get("/metrics", http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {seconds}})
			if err != nil || response.StatusCode != http.StatusOK {
				t.Errorf("%q: %v, %v", seconds, response, err)
				continue
			}
			mustParse(t, body).want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
		}
	})
}

// TestSharedWalk sends two scrapes at once: they share one reading of the
// table, which here can be read only once.
func TestSharedWalk(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		root, table := hangingTable(t)
		e := startExporter(t, "--path.procfs="+root)
		type answer struct {
			p   page
			err error
		}
		answers := make(chan answer)
		for range 2 {
			go func() {
				p, err := e.tryScrape()
				answers <- answer{p, err}
			}()
		}
		time.Sleep(500 * time.Millisecond) // for both to wait
		if _, err := table.WriteString(oneListener); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			a := <-answers
			if a.err != nil {
				t.Fatal(a.err)
			}
			a.p.want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
			a.p.want(t, 1, "tcp_connections", "state", "listen")
		}
	})
}

// TestMaxRequests has more scrapes waiting than the program may hold.
func TestMaxRequests(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		root, table := hangingTable(t)
		e := startExporter(t, "--path.procfs="+root, "--web.max-requests=1")
		first := make(chan error, 1)
		go func() {
			_, err := e.tryScrape()
			first <- err
		}()
		time.Sleep(500 * time.Millisecond) // for it to wait
		response, body, err := e.get("/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("the second scrape: %s, want 503\n%s", response.Status, body)
		}
		if response, _, err := e.get("/-/healthy", nil); err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("/-/healthy while a scrape waits: %v, %v", response, err)
		}
		if _, err := table.WriteString(oneListener); err != nil {
			t.Fatal(err)
		}
		if err := <-first; err != nil {
			t.Errorf("the first scrape: %v", err)
		}
	})
}

// TestStop ends the program at moments when a server likes to hang on.
func TestStop(t *testing.T) {
	t.Run("idle_connection", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			e := startExporter(t)
			e.scrape(t) // leaves its connection open
			wantCleanExit(t, e)
		})
	})
	t.Run("silent_connection", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			e := startListening(t, "127.9.9.9:10793")
			conn, err := net.Dial("tcp", "127.9.9.9:10793")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			wantCleanExit(t, e)
		})
	})
	t.Run("scrape_that_hangs", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			root, _ := hangingTable(t)
			e := startExporter(t, "--path.procfs="+root)
			go func() { _, _, _ = e.get("/metrics", nil) }() // cut off by the end of the program
			time.Sleep(300 * time.Millisecond)               // for it to wait
			if took := e.stop(t); took > 5*time.Second {
				t.Errorf("it took %v to end, want at most 5 s", took)
			}
		})
	})
}

// TestHangup sends SIGHUP: an orderly end, unless it was ignored from the start.
func TestHangup(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		e := startExporter(t)
		e.scrape(t)
		if err := e.command.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-e.exited:
		case <-time.After(10 * time.Second):
			t.Fatal("still running 10 s after SIGHUP")
		}
		if code := e.command.ProcessState.ExitCode(); code != 0 || !strings.Contains(e.log.String(), "msg=stopped") || !strings.Contains(e.log.String(), "hangup") {
			t.Errorf("exit code %d, log:\n%s", code, e.log)
		}

		const address = "127.9.9.9:10793"
		e = run(t, exec.Command("/bin/sh", "-c", `trap '' HUP; exec "$0" "$@"`, program.Path(), "--web.listen-address="+address))
		e.waitListening(t, address)
		if err := e.command.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // for it to end, which it must not
		wantCleanExit(t, e)
		if log := e.log.String(); strings.Contains(log, "hangup") || !strings.Contains(log, "terminated") {
			t.Errorf("ended for another reason than SIGTERM:\n%s", log)
		}
	})
}

// TestUsageErrors gives every flag a value it can't have: the program says
// which flag and ends, rather than running with something else.
func TestUsageErrors(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		dir := t.TempDir()
		pipe := filepath.Join(dir, "pipe") // whoever reads it waits
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		file := func(name, text string) string {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		unknownKeys := file("unknown.yml", "tls_server_config:\n  a: 1\n  b: 2\n")
		hangingKey := file("hanging.yml", "tls_server_config:\n  cert_file: pipe\n  key_file: pipe\n")
		notUTF8 := filepath.Join(dir, "\xff")
		file("\xff/net/tcp", "")
		for _, c := range []struct{ argument, message string }{
			{"--web.listen-address=nonsense", "web.listen-address"},
			{"--web.listen-address=127.0.0.1:99999", "web.listen-address"},
			{"--web.listen-address=", "web.listen-address"},
			{"--web.listen-address=two hosts:80", "web.listen-address"},
			{"--web.listen-address=vsock://:many", "web.listen-address"},
			{"--web.telemetry-path=metrics", "web.telemetry-path"},
			{"--web.telemetry-path=", "web.telemetry-path"},
			{"--web.telemetry-path=/-/healthy", "web.telemetry-path"},
			{"--web.telemetry-path=/runbooks/metrics", "web.telemetry-path"},
			{"--web.telemetry-path=/a\tb", "web.telemetry-path"},
			{"--web.telemetry-path=/a\nb", "web.telemetry-path"},
			{"--web.telemetry-path=/a//b", "web.telemetry-path"},
			{"--web.telemetry-path=/a/../b", "web.telemetry-path"},
			{"--web.telemetry-path=/a/", "web.telemetry-path"},
			{"--web.telemetry-path=/a%zz", "web.telemetry-path"},
			{"--web.telemetry-path=/{a}", "web.telemetry-path"},
			{"--web.telemetry-path=/a\xff", "web.telemetry-path"},
			{"--web.telemetry-path=GET /a", "web.telemetry-path"},
			{"--web.config.file=/does/not/exist", "web.config.file"},
			{"--web.config.file=/dev/zero", "web.config.file"},
			{"--web.config.file=" + pipe, "web.config.file"},
			{"--web.config.file=" + unknownKeys, "web.config.file"},
			{"--web.config.file=" + hangingKey, "web.config.file"},
			{"--web.max-requests=-1", "web.max-requests"},
			{"--web.max-requests=many", "web.max-requests"},
			{"--web.max-connections=-1", "web.max-connections"},
			{"--web.max-connections=1e3", "web.max-connections"},
			{"--path.procfs=/does/not/exist", "path.procfs"},
			{"--path.procfs=/dev/null", "path.procfs"},
			{"--path.procfs=/two\nlines", "path.procfs"},
			{"--path.procfs=" + notUTF8, "path.procfs"},
			{"--log.level=loud", "log.level"},
			{"--log.format=xml", "log.format"},
			{"--collector.remotes=-1", "collector.remotes"},
			{"--collector.remotes=x", "collector.remotes"},
			{"--collector.destinations=-1", "collector.destinations"},
			{"--collector.destinations=1.5", "collector.destinations"},
			{"--collector.listeners=-1", "collector.listeners"},
			{"--collector.listeners=", "collector.listeners"},
			{"--collector.remote-prefix-ipv4=33", "collector.remote-prefix-ipv4"},
			{"--collector.remote-prefix-ipv4=-1", "collector.remote-prefix-ipv4"},
			{"--collector.remote-prefix-ipv6=129", "collector.remote-prefix-ipv6"},
			{"--collector.remote-prefix-ipv6=/64", "collector.remote-prefix-ipv6"},
			{"--collector.source=ss", "collector.source"},
			{"--no-such-flag", "no-such-flag"},
			{"--log.level=" + strings.Repeat("x", 100_000), "log.level"},
			{"argument", "argument"},
			{"two\nlines", "lines"},
		} {
			code, output := runToEnd(t, c.argument)
			if code != 2 {
				t.Errorf("%s: exit code %d, want 2\n%s", c.argument, code, output)
			}
			if !strings.Contains(output, c.message) {
				t.Errorf("%s: the message does not name it: %s", c.argument, output)
			}
			if strings.Contains(output, "goroutine ") || strings.Count(output, "\n") != 1 || len(output) > 1200 {
				t.Errorf("%s: not one short line:\n%s", c.argument, output)
			}
		}
	})
}

func TestHelp(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		code, output := runToEnd(t, "--help")
		if code != 0 {
			t.Errorf("--help: exit code %d, want 0", code)
		}
		for _, flag := range []string{
			"--web.listen-address", "web.systemd-socket", "--web.telemetry-path", "--web.config.file", "--web.max-requests", "--web.max-connections",
			"--path.procfs", "--log.level", "--log.format", "--collector.remotes", "--collector.destinations", "--collector.listeners",
			"--collector.remote-prefix-ipv4", "--collector.remote-prefix-ipv6", "collector.remote-ips", "--collector.source", "version", "help",
		} {
			if !strings.Contains(output, flag) {
				t.Errorf("--help does not mention %s", flag)
			}
		}
		code, output = runToEnd(t, "--version")
		if code != 0 || !strings.Contains(output, "timewait_exporter, version ") || strings.Contains(output, "version  ") {
			t.Errorf("--version: exit code %d, %q", code, output)
		}
	})
}

// TestLogFormat reads every line of the log as JSON.
func TestLogFormat(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		e := startExporter(t, "--log.format=json", "--log.level=debug")
		e.scrape(t)
		wantCleanExit(t, e)
		for line := range strings.Lines(e.log.String()) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry["level"] == nil || entry["msg"] == nil {
				t.Errorf("%q: %v, want JSON with level and msg", line, err)
			}
		}
		if quiet := startExporter(t, "--log.level=error"); len(quiet.scrape(t)) > 0 && quiet.log.String() != "" {
			t.Errorf("at level error a healthy program says %q", quiet.log)
		}
	})
}

// TestRunbooks finds every runbook behind the address that its alert names.
func TestRunbooks(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		files, err := filepath.Glob("../../docs/runbooks/[FT]*.md")
		if err != nil || len(files) == 0 {
			t.Fatalf("no runbooks: %v", err)
		}
		e := startExporter(t)
		for _, file := range files {
			alert := strings.TrimSuffix(filepath.Base(file), ".md")
			response, body, err := e.get("/runbooks/"+alert, nil)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(alert)) {
				t.Errorf("/runbooks/%s: %s", alert, response.Status)
			}
		}
		response, _, err := e.get("/runbooks/NoSuchAlert", nil)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("/runbooks/NoSuchAlert: %s, want 404", response.Status)
		}
	})
}

// TestSource reads from where the flag says, and says so.
func TestSource(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		available := sources(t)
		for flag, want := range map[string]string{"procfs": "procfs", "netlink": "netlink", "auto": available[len(available)-1]} {
			if !slices.Contains(available, want) {
				continue
			}
			e := startExporter(t, "--collector.source="+flag)
			p := e.scrape(t)
			p.want(t, 1, "timewait_exporter_source_info", "source", want)
			p.want(t, 1, "timewait_exporter_source_info")
			netns.Eventually(t, func() bool { return strings.Contains(e.log.String(), "source="+want) },
				func() string { return "the log does not say that the source is " + want + ":\n" + e.log.String() })
		}
	})
}

// TestAddressInUse can't be told by the flags: it is an error of the run.
func TestAddressInUse(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.Listen(t, netip.MustParseAddrPort("127.9.9.9:10793"), 1)
		code, output := runToEnd(t, "--web.listen-address=127.9.9.9:10793")
		if code != 1 || !strings.Contains(output, "127.9.9.9:10793") || !strings.Contains(output, "in use") {
			t.Errorf("exit code %d, want 1 and a message\n%s", code, output)
		}
	})
}

// runToEnd runs the program, which is to end by itself.
func runToEnd(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, program.Path(), args...)
	text, err := command.CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("%q: still running after 10 s:\n%s", args, text)
	} else if err != nil && command.ProcessState == nil {
		t.Fatal(err)
	}
	return command.ProcessState.ExitCode(), string(text)
}

// TestWebConfig serves over TLS to those who know the password.
func TestWebConfig(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		dir := t.TempDir()
		pool := writeCertificate(t, filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem"))
		// bcrypt of "secret"
		const hash = "$2a$04$rlljN5zkNy/vwsrnnm6XKuUmQIYU/okfCW8W6SDwI3ckNlV3jMUB."
		config := filepath.Join(dir, "web.yml")
		text := fmt.Sprintf("tls_server_config:\n  cert_file: certificate.pem\n  key_file: key.pem\nbasic_auth_users:\n  prometheus: %q\n", hash)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		const address = "127.9.9.9:10793"
		startListening(t, address, "--web.config.file="+config)

		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
		for password, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, "secret": http.StatusOK} {
			request, err := http.NewRequest(http.MethodGet, "https://"+address+"/metrics", nil)
			if err != nil {
				t.Fatal(err)
			}
			if password != "" {
				request.SetBasicAuth("prometheus", password)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("password %q: %s, want %d", password, response.Status, want)
			}
		}
		response, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				t.Error("served without TLS")
			}
		}
	})
}

// writeCertificate makes a certificate for 127.9.9.9 and the pool that trusts it.
func writeCertificate(t *testing.T, certificate, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 9, 9, 9)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der},
		key:         {Type: "PRIVATE KEY", Bytes: privateDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

// callers opens inbound connections from remote hosts, each as many as said,
// and one outbound one to each.
func callers(t *testing.T, connections map[string]int) {
	t.Helper()
	w := netns.NewWire(t)
	for _, near := range []netip.AddrPort{netip.AddrPortFrom(netns.WireNear4.Addr(), 8000), netip.AddrPortFrom(netns.WireNear6.Addr(), 8000)} {
		listener := netns.Listen(t, near, 100)
		for ip, n := range connections {
			remote := netip.MustParseAddr(ip)
			if remote.Is4() != near.Addr().Is4() {
				continue
			}
			for i := range n {
				w.Call(t, netip.AddrPortFrom(remote, uint16(1000+i)), near).Confirm(t)
				listener.Accept(t)
			}
			so := netns.NewSocket(t, netns.FamilyOf(remote))
			far := netip.AddrPortFrom(remote, 443)
			so.Start(t, far)
			w.Answer(t, so.Local(t), far)
		}
	}
	total := 2 // listeners
	for _, n := range connections {
		total += n + 1
	}
	var have int
	netns.Eventually(t, func() bool { have = len(readTable(t)); return have == total },
		func() string { return fmt.Sprintf("%d sockets, want %d", have, total) })
}

var remoteHosts = map[string]int{"10.9.0.2": 5, "10.9.0.3": 4, "10.9.0.130": 3, "10.9.0.131": 2, "fd00:9::2": 7, "fd00:9::1:3": 1}

// TestRemotes names the remotes, destinations and listeners that the flags say, and adds up
// the others.
func TestRemotes(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		callers(t, remoteHosts)
		const remotes, state = "tcp_remote_connections", "established"
		for _, v := range []struct {
			name, flags string
			want        map[string][2]float64 // connections of a remote_ip, inbound and outbound
			ips, share  float64
		}{
			{"top", "--collector.remotes=2 --collector.destinations=1 --collector.listeners=0",
				map[string][2]float64{"fd00:9::2": {7, 1}, "10.9.0.2": {5, 1}, "other": {10, 4}}, 6, 7},
			{"prefix", "--collector.remote-prefix-ipv4=25 --collector.remote-prefix-ipv6=64",
				map[string][2]float64{"10.9.0.0/25": {9, 2}, "10.9.0.128/25": {5, 2}, "fd00:9::/64": {8, 2}}, 3, 9},
			{"none", "--no-collector.remote-ips", map[string][2]float64{"other": {22, 6}}, 6, 7},
		} {
			t.Run(v.name, func(t *testing.T) {
				p := startExporter(t, strings.Fields(v.flags)...).scrape(t)
				for ip, n := range v.want {
					p.want(t, n[0], remotes, "remote_ip", ip, "direction", "inbound", "state", state)
					p.want(t, n[1], remotes, "remote_ip", ip, "direction", "outbound", "state", state)
				}
				p.want(t, 28, remotes)
				p.want(t, v.ips, "tcp_remote_ips", "direction", "inbound")
				p.want(t, v.share/22, "tcp_remote_top_share_ratio", "direction", "inbound", "state", state)
				p.want(t, 6, "tcp_destinations") // whatever is named: what connect() sees
				if p.value(t, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect") == 0 {
					t.Error("the worst destination's ratio is 0")
				}
				named := map[string]int{"top": 1, "prefix": 6}[v.name]
				if n := len(p.series("tcp_destination_port_utilisation_ratio")); n != named {
					t.Errorf("%d destinations are named, want %d", n, named)
				}
				if v.name == "top" {
					p.want(t, 22, "tcp_listener_connections", "local_port", "other", "state", state)
					p.want(t, 22, "tcp_listener_connections")
				}
				if v.name != "none" {
					return
				}
				for name, family := range p {
					for ip := range remoteHosts {
						if strings.HasPrefix(name, "tcp_destination_") || strings.Contains(family.String(), `"`+ip) {
							t.Errorf("%s has somebody else's address: %s", name, family)
						}
					}
				}
			})
		}
	})
}
