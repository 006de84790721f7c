package compose

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../../..") }

// build builds the program of the client and the server, and returns its path.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "demo")
	host.Run(t, filepath.Join(host.Checkout(t), "deploy/compose/demo"), "go", "build", "-o", path, ".")
	return path
}

// The client leaves TIME_WAITs and CLOSE_WAITs of its own toward the server, as the
// exporter beside it sees.
func TestBugs(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		demo := build(t)
		program.Start(t, exec.Command(demo, "server", ":8080"))
		program.Start(t, exec.Command(program.Path()))
		program.Start(t, exec.Command(demo, "client", "-rate=50", "-leak=200ms", "http://127.0.0.1:8080/"))
		for state, atLeast := range map[string]int{"time_wait": 100, "close_wait": 5} {
			series := fmt.Sprintf(`tcp_destination_ports_used{local_ip="127.0.0.1",netns="self",remote_ip="127.0.0.1",remote_port="8080",state=%q} `, state)
			program.Eventually(t, func() error {
				_, rest, _ := strings.Cut(program.Get(t, "http://127.0.0.1:10793/metrics"), "\n"+series)
				var ports int
				if _, err := fmt.Sscan(rest, &ports); err != nil {
					return fmt.Errorf("ports in %s: %w", state, err)
				}
				if ports < atLeast {
					return fmt.Errorf("%d ports in %s", ports, state)
				}
				return nil
			})
		}
	})
}

// Of two services with networks of their own, the exporter of a third tells which one leaks.
func TestNamespaces(t *testing.T) {
	host.Needs(t, "ip")
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID, func(t *testing.T) { // with which the servers end
		netns.MountProc(t, "")
		demo := build(t)
		service := func(flags string) (name string) {
			process := program.Start(t, netns.Command(t.Context(), unix.CLONE_NEWNET, "sh", "-c",
				`ip link set lo up; "$0" server :8080 >/dev/null 2>&1 & exec "$0" client -rate=20 `+flags+` http://127.0.0.1:8080/`, demo))
			var stat unix.Stat_t
			if err := unix.Stat(fmt.Sprintf("/proc/%d/net/tcp", process.Process.Pid), &stat); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("net:%d", stat.Ino)
		}
		orders, stock := service("-leak=200ms"), service("-pooled")
		program.Start(t, exec.Command(program.Path(), "--collector.namespaces=all"))
		series := `tcp_connections{direction="outbound",family="ipv4",netns=%q,state=%q} `
		program.Eventually(t, func() error {
			page := program.Get(t, "http://127.0.0.1:10793/metrics")
			_, rest, _ := strings.Cut(page, "\n"+fmt.Sprintf(series, orders, "close_wait"))
			var leaked int
			if _, err := fmt.Sscan(rest, &leaked); err != nil {
				return fmt.Errorf("CLOSE_WAITs of %s: %w", orders, err)
			}
			if leaked < 5 {
				return fmt.Errorf("%s has %d connections in CLOSE_WAIT", orders, leaked)
			}
			if !strings.Contains(page, "\n"+fmt.Sprintf(series, stock, "established")+"1\n") || strings.Contains(page, fmt.Sprintf(series, stock, "close_wait")) {
				return fmt.Errorf("%s has not one connection", stock)
			}
			return nil
		})
	})
}

// The cured client sends all of its requests through one connection.
func TestPooled(t *testing.T) {
	var requests, connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	program.Start(t, exec.Command(build(t), "client", "-pooled", "-rate=100", server.URL))
	program.Eventually(t, func() error {
		if n := requests.Load(); n < 50 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}
