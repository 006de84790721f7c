package kernel

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// wantCleanExit ends the program with SIGTERM.
func wantCleanExit(t *testing.T, e *exporter) {
	t.Helper()
	if took := e.Stop(t); took > 5*time.Second {
		t.Errorf("it took %v to end, want at most 5 s", took)
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

// TestMaxRequests has more requests that read the kernel waiting than the program may hold.
func TestMaxRequests(t *testing.T) {
	for _, path := range []string{"/metrics", "/", "/report.json"} {
		t.Run(path, func(t *testing.T) { testMaxRequests(t, path) })
	}
}

func testMaxRequests(t *testing.T, path string) {
	netns.Run(t, func(t *testing.T) {
		root, table := hangingTable(t)
		e := startExporter(t, "--path.procfs="+root, "--web.max-requests=1")
		if _, _, err := e.get("/-/healthy", nil); err != nil { // it has started
			t.Fatal(err)
		}
		first := make(chan error, 1)
		go func() {
			_, err := e.tryScrape()
			first <- err
		}()
		time.Sleep(500 * time.Millisecond) // for it to wait
		response, body, err := e.get(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("the second request: %s, want 503\n%s", response.Status, body)
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

// TestStop ends the program at a moment when a server likes to hang on: a client says
// nothing, and a scrape hangs.
func TestStop(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		root, _ := hangingTable(t)
		e := startListening(t, hostileAddress, "--path.procfs="+root)
		conn, err := dialPlain(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() { _, _ = http.Get("http://" + hostileAddress + "/metrics") }() // cut off by the end of the program
		time.Sleep(300 * time.Millisecond)                                       // for it to wait
		if took := e.Stop(t); took > 5*time.Second {
			t.Errorf("it took %v to end, want at most 5 s", took)
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
		// bcrypt of "secret"
		config, pool := writeWebConfig(t, "basic_auth_users:\n  prometheus: $2a$04$rlljN5zkNy/vwsrnnm6XKuUmQIYU/okfCW8W6SDwI3ckNlV3jMUB.\n")
		startListening(t, hostileAddress, "--web.config.file="+config)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
		for user, want := range map[string]int{
			"https://": http.StatusUnauthorized, "https://prometheus:wrong@": http.StatusUnauthorized, "https://prometheus:secret@": http.StatusOK,
			"http://prometheus:secret@": http.StatusBadRequest,
		} {
			for _, path := range []string{"/metrics", "/", "/report.json"} {
				response, err := client.Get(user + hostileAddress + path)
				if err != nil {
					t.Fatal(err)
				}
				response.Body.Close()
				if response.StatusCode != want {
					t.Errorf("%s, %s: %s, want %d", user, path, response.Status, want)
				}
			}
		}
	})
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
