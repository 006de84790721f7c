package compose

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/deploy/host"
)

// start runs a program until the test ends, and shows what it said if that has failed.
func start(t *testing.T, program string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the end of t.Context, which kills it
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s %q said:\n%s", filepath.Base(program), args, &said)
		}
	})
}

// eventually asks until the answer is true, for 30 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s still not: %s", what)
		}
	}
}

// The client leaves TIME_WAITs and CLOSE_WAITs of its own toward the server, as the
// exporter beside it sees.
func TestBugs(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "ip", "curl")
	demo, exporter := host.Build(t, "deploy/compose/demo", "."), host.Build(t, ".", "./cmd/timewait_exporter")

	// The thread is in a network namespace of its own, as is what it starts, until the
	// test ends and the thread with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	host.Run(t, "", "ip", "link", "set", "lo", "up")
	start(t, demo, "server", ":8080")
	start(t, exporter)
	start(t, demo, "client", "-rate=50", "-leak=200ms", "http://127.0.0.1:8080/")
	for state, atLeast := range map[string]int{"time_wait": 100, "close_wait": 5} {
		series := fmt.Sprintf(`tcp_destination_ports_used{local_ip="127.0.0.1",netns="self",remote_ip="127.0.0.1",remote_port="8080",state=%q} `, state)
		eventually(t, fmt.Sprintf("%d ports in %s", atLeast, state), func() bool {
			page, err := exec.CommandContext(t.Context(), "curl", "--silent", "http://127.0.0.1:10793/metrics").Output()
			_, rest, found := strings.Cut(string(page), "\n"+series)
			var ports int
			_, scanErr := fmt.Sscan(rest, &ports)
			return err == nil && found && scanErr == nil && ports >= atLeast
		})
	}
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
	start(t, host.Build(t, "deploy/compose/demo", "."), "client", "-pooled", "-rate=100", server.URL)
	eventually(t, "50 requests", func() bool { return requests.Load() >= 50 })
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}
