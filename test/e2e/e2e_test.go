// Package e2e proves the alerts with the real programs: load makes sockets, the kernel counts them, the exporter reads them,
// Prometheus evaluates the rules of deploy/, Alertmanager sends the notification, a webhook receives it.
package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

const (
	// factor is how much faster everything runs that is configured: scrape_interval 15s becomes 500ms, `for: 2m` becomes 4s.
	// The kernel's TIME_WAIT keeps its 60 s, so the load is scaled by hand: the pool has 1,000 ports instead of 28,232,
	// and takes 100 s to fill, which stands for 50 minutes.
	factor = 30

	poolSize = 1000
)

func TestMain(m *testing.M) { program.Main(m, "../..") }

func TestAlertsReachAHuman(t *testing.T) {
	netns.RunWith(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID, func(t *testing.T) {
		netns.MountProc(t, "")
		netns.SetSysctl(t, "net/ipv4/ip_local_port_range", "20000 20999")
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0") // the default, 2, reuses on loopback, where this test lives
		netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "20000")
		human := startWebhook(t)
		startStack(t, factor)
		t.Run("troubles", func(t *testing.T) { // which end together, before the stack does
			t.Run("client without a pool", func(t *testing.T) { t.Parallel(); clientWithoutAPool(t, human) })
			t.Run("container without a pool", func(t *testing.T) { t.Parallel(); containerWithoutAPool(t, human) })
			// It keeps connections that the server has closed.
			t.Run("client that never closes", func(t *testing.T) {
				t.Parallel()
				trouble{"TCPCloseWaitLeak", "outbound", "127.0.0.7:9000", 2, func() (net.Conn, error) { return net.Dial("tcp", "127.0.0.7:9000") },
					[]string{"127.0.0.7 ("}, 90 * time.Second}.run(t, human)
			})
			// One remote, like a load balancer, opens connections that the server closes first.
			t.Run("flood from one remote", func(t *testing.T) {
				t.Parallel()
				trouble{"TCPTimeWaitOneRemote", "inbound", "127.0.0.5:8443", 60, flood("127.0.0.66:30000", "127.0.0.5:8443"),
					[]string{"127.0.0.66 (", "They hold no ephemeral port here"}, 2 * time.Minute}.run(t, human)
			})
		})
	})
}

// A client opens and closes a connection for each request, to one destination, until connect() fails.
func clientWithoutAPool(t *testing.T, human *webhook) {
	const backend = "127.0.0.9:8080"
	netns.Handle(t, backend, waitForPeer)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	begin := time.Now()
	err := every(ctx, func(passed time.Duration) float64 {
		if passed < 61*time.Second {
			return poolSize / 100
		}
		return 2 * poolSize / 100 // the first ones leave TIME_WAIT as fast: the net growth is the same
	}, func() error { return connectAndClose(backend) })
	failed := time.Now()
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Fatalf("the client ended with %v, want %v", err, syscall.EADDRNOTAVAIL)
	}
	t.Logf("connect() failed after %.1f s: %v", failed.Sub(begin).Seconds(), err)

	const last = "TCPEphemeralPortsNearExhaustion"
	arrived := make(map[string]time.Time)
	for _, name := range []string{"TCPEphemeralPortsHalfUsed", "TCPEphemeralPortsExhaustionPredicted", last} {
		a, ok := human.first(name, "firing", map[string]string{"netns": "host"})
		if !ok {
			t.Fatalf("%s had not arrived by then", name)
		}
		arrived[name] = a.at
		lead := failed.Sub(a.at)
		t.Logf("%s (%s) arrived %.1f s before the first failed connect(); at full scale %s", name, a.Labels["severity"], lead.Seconds(), (lead * factor).Round(time.Second))
		check(t, a, "127.0.0.9 port 8080 from 127.0.0.1")
	}
	for name, at := range arrived {
		if name != last && !at.Before(arrived[last]) {
			t.Errorf("%s arrived at %s, %s at %s: want that last", name, at, last, arrived[last])
		}
	}
	if inhibitedBy(t, "TCPEphemeralPortsHalfUsed") == 0 {
		t.Error("TCPEphemeralPortsHalfUsed is not inhibited while TCPEphemeralPortsNearExhaustion fires")
	}
	// 60 s for the TIME_WAITs, then keep_firing_for and group_interval.
	for _, name := range []string{"TCPEphemeralPortsNearExhaustion", "TCPEphemeralPortsHalfUsed"} {
		resolved := human.wait(t, name, "resolved", map[string]string{"netns": "host"}, 100*time.Second)
		t.Logf("%s resolved %.1f s after the load stopped", name, resolved.at.Sub(failed).Seconds())
	}
}

// In a container with a network of its own, a client does the same with the kernel's own range of ports: they are gone in half a
// minute, which stands for a quarter of an hour. The exporter reads that namespace from outside.
func containerWithoutAPool(t *testing.T, human *webhook) {
	const (
		backend = "10.0.0.9:8080" // in 127/8 a TIME_WAIT would be reused
		pool    = 28232
	)
	name := enterContainer(t)
	netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "100000")
	netns.AddLoopbackAddresses(t, netip.MustParseAddr("10.0.0.9"))
	netns.Handle(t, backend, waitForPeer)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// It names its ports: with half of them gone the kernel would look for a free one for longer than the connection lasts.
	connect, left := connectFrom("10.0.0.9:32768", backend), pool
	err := every(ctx, func(passed time.Duration) float64 {
		if passed < 12*time.Second {
			return 0.85 * pool / 12
		}
		return 0.15 * pool / 20
	}, func() error {
		if left == 0 {
			return connectAndClose(backend)
		}
		left--
		conn, err := connect()
		if err != nil {
			return err
		}
		return conn.Close()
	})
	failed := time.Now()
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || left > 0 {
		t.Fatalf("the client ended with %v when %d ports were left, want %v", err, left, syscall.EADDRNOTAVAIL)
	}
	page, ok := human.first("TCPEphemeralPortsNearExhaustion", "firing", map[string]string{"netns": name})
	if !ok {
		t.Fatalf("no page named %s by then", name)
	}
	lead := failed.Sub(page.at)
	t.Logf("the page that names %s arrived %.1f s before the first failed connect(); at full scale %s", name, lead.Seconds(), (lead * factor).Round(time.Second))
	check(t, page, "(netns "+name+")", "10.0.0.9 port 8080 from 10.0.0.9")
}

// A trouble is somebody who goes on until an alert comes, and stops then.
type trouble struct {
	alert, direction string
	service          string  // that closes its connections
	rate             float64 // of connections per second
	connect          func() (net.Conn, error)
	texts            []string      // of the description
	resolved         time.Duration // at most, after it has stopped and closed what it has
}

func (tr trouble) run(t *testing.T, human *webhook) {
	netns.Handle(t, tr.service, closeFirst)
	var conns []net.Conn
	stop := func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error)
	begin := time.Now()
	go func() {
		ended <- every(ctx, func(time.Duration) float64 { return tr.rate }, func() error {
			conn, err := tr.connect()
			if err == nil {
				conns = append(conns, conn)
			}
			return err
		})
	}()

	labels := map[string]string{"direction": tr.direction}
	fired := human.wait(t, tr.alert, "firing", labels, 2*time.Minute)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the client: %v", err)
	}
	took := fired.at.Sub(begin)
	t.Logf("%s arrived %.1f s after it began; at full scale %s; %d connections were made", tr.alert, took.Seconds(), (took * factor).Round(time.Second), len(conns))
	check(t, fired, tr.texts...)

	stop()
	stopped := time.Now()
	resolved := human.wait(t, tr.alert, "resolved", labels, tr.resolved)
	t.Logf("%s resolved %.1f s after it stopped", tr.alert, resolved.at.Sub(stopped).Seconds())
}

// check wants the instance in the summary, all parts in the description, pages at the pager and tickets at the tickets, and
// a runbook behind the link that the human follows.
func check(t *testing.T, a alert, parts ...string) {
	t.Helper()
	name, severity, description, runbook := a.Labels["alertname"], a.Labels["severity"], a.Annotations["description"], a.Annotations["runbook_url"]
	if !strings.Contains(a.Annotations["summary"], "localhost:10793") {
		t.Errorf("%s: the summary does not name the instance: %s", name, a.Annotations["summary"])
	}
	for _, part := range parts {
		if !strings.Contains(description, part) {
			t.Errorf("%s: no %q in the description: %s", name, part, description)
		}
	}
	t.Logf("%s: %s", name, description)
	if want := map[string]string{"critical": "/pager", "warning": "/tickets"}[severity]; a.receiver != want {
		t.Errorf("%s (%s) was sent to %s, want %s", name, severity, a.receiver, want)
	}
	if want := "<title>" + name + "</title>"; !strings.Contains(program.Get(t, runbook), want) {
		t.Errorf("%s: not a page with %s", runbook, want)
	}
}
