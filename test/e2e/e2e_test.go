// Package e2e proves the alerts with the real programs: load makes sockets, the kernel counts them, the exporter reads them,
// Prometheus evaluates the rules of deploy/, Alertmanager sends the notification, a webhook receives it.
package e2e

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

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
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/ip_local_port_range", "20000 20999")
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0") // the default, 2, reuses on loopback, where this test lives
		netns.SetSysctl(t, "net/ipv4/tcp_max_tw_buckets", "20000")
		human := startWebhook(t)
		startStack(t, factor)
		t.Run("troubles", func(t *testing.T) { // which end together, before the stack does
			t.Run("client without a pool", func(t *testing.T) { t.Parallel(); clientWithoutAPool(t, human) })
			t.Run("client that never closes", func(t *testing.T) { t.Parallel(); clientThatNeverCloses(t, human) })
			t.Run("flood from one remote", func(t *testing.T) { t.Parallel(); floodFromOneRemote(t, human) })
		})
	})
}

// A client opens and closes a connection for each request, to one destination, until connect() fails.
func clientWithoutAPool(t *testing.T, human *webhook) {
	const backend = "127.0.0.9:8080"
	serve(t, backend, waitForPeer)
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

	half, ok := human.first("TCPEphemeralPortsHalfUsed", "firing", nil)
	if !ok {
		t.Fatal("TCPEphemeralPortsHalfUsed had not arrived by then")
	}
	predicted, ok := human.first("TCPEphemeralPortsExhaustionPredicted", "firing", nil)
	if !ok {
		t.Fatal("TCPEphemeralPortsExhaustionPredicted had not arrived by then")
	}
	near, ok := human.first("TCPEphemeralPortsNearExhaustion", "firing", nil)
	if !ok {
		t.Fatal("TCPEphemeralPortsNearExhaustion had not arrived by then")
	}
	if !half.at.Before(near.at) || !predicted.at.Before(near.at) {
		t.Errorf("TCPEphemeralPortsHalfUsed arrived at %s, ...Predicted at %s, ...NearExhaustion at %s: want the last one last", half.at, predicted.at, near.at)
	}
	for _, a := range []alert{half, predicted, near} {
		lead := failed.Sub(a.at)
		t.Logf("%s (%s) arrived %.1f s before the first failed connect(); at full scale %s", a.Labels["alertname"], a.Labels["severity"], lead.Seconds(), (lead * factor).Round(time.Second))
		checkText(t, a, "127.0.0.9 port 8080 from 127.0.0.1")
		checkSeverity(t, a)
		checkRunbook(t, a)
	}
	if inhibitedBy(t, "TCPEphemeralPortsHalfUsed") == 0 {
		t.Error("TCPEphemeralPortsHalfUsed is not inhibited while TCPEphemeralPortsNearExhaustion fires")
	}
	// 60 s for the TIME_WAITs, then keep_firing_for and group_interval.
	for _, name := range []string{"TCPEphemeralPortsNearExhaustion", "TCPEphemeralPortsHalfUsed"} {
		resolved := human.wait(t, name, "resolved", nil, 100*time.Second)
		t.Logf("%s resolved %.1f s after the load stopped", name, resolved.at.Sub(failed).Seconds())
	}
}

// A client never closes connections that the server has closed.
func clientThatNeverCloses(t *testing.T, human *webhook) {
	const backend = "127.0.0.7:9000"
	serve(t, backend, closeFirst)
	var client leak
	t.Cleanup(client.close)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error)
	begin := time.Now()
	go func() { ended <- every(ctx, steady(2), func() error { return client.connect(backend) }) }()

	outbound := map[string]string{"direction": "outbound"}
	fired := human.wait(t, "TCPCloseWaitLeak", "firing", outbound, 2*time.Minute)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the client: %v", err)
	}
	t.Logf("TCPCloseWaitLeak arrived %.1f s after the leak began; at full scale %s; %d connections had leaked",
		fired.at.Sub(begin).Seconds(), (fired.at.Sub(begin) * factor).Round(time.Second), len(client.conns))
	checkText(t, fired, "127.0.0.7 (")
	checkSeverity(t, fired)
	checkRunbook(t, fired)

	client.close()
	closed := time.Now()
	resolved := human.wait(t, "TCPCloseWaitLeak", "resolved", outbound, 90*time.Second)
	t.Logf("TCPCloseWaitLeak resolved %.1f s after the connections were closed", resolved.at.Sub(closed).Seconds())
}

// One remote, like a load balancer, opens connections that the server closes first.
func floodFromOneRemote(t *testing.T, human *webhook) {
	const service = "127.0.0.5:8443"
	serve(t, service, closeFirst)
	balancer := flood{from: netip.MustParseAddrPort("127.0.0.66:30000")}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error)
	begin := time.Now()
	go func() { ended <- every(ctx, steady(60), func() error { return balancer.connect(service) }) }()

	inbound := map[string]string{"direction": "inbound"}
	fired := human.wait(t, "TCPTimeWaitOneRemote", "firing", inbound, 2*time.Minute)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the remote: %v", err)
	}
	t.Logf("TCPTimeWaitOneRemote (inbound) arrived %.1f s after the flood began; at full scale %s",
		fired.at.Sub(begin).Seconds(), (fired.at.Sub(begin) * factor).Round(time.Second))
	checkText(t, fired, "127.0.0.66 (", "They hold no ephemeral port here")
	checkSeverity(t, fired)
	checkRunbook(t, fired)

	stopped := time.Now()
	resolved := human.wait(t, "TCPTimeWaitOneRemote", "resolved", inbound, 2*time.Minute)
	t.Logf("TCPTimeWaitOneRemote (inbound) resolved %.1f s after the flood stopped", resolved.at.Sub(stopped).Seconds())
}

// checkText wants the instance in the summary and all parts in the description.
func checkText(t *testing.T, a alert, parts ...string) {
	t.Helper()
	if !strings.Contains(a.Annotations["summary"], "localhost:10793") {
		t.Errorf("%s: the summary does not name the instance: %s", a.Labels["alertname"], a.Annotations["summary"])
	}
	for _, part := range parts {
		if !strings.Contains(a.Annotations["description"], part) {
			t.Errorf("%s: no %q in the description: %s", a.Labels["alertname"], part, a.Annotations["description"])
		}
	}
	t.Logf("%s: %s", a.Labels["alertname"], a.Annotations["description"])
}

// checkSeverity wants pages at the pager and tickets at the tickets.
func checkSeverity(t *testing.T, a alert) {
	t.Helper()
	want := map[string]string{"critical": "/pager", "warning": "/tickets"}[a.Labels["severity"]]
	if a.receiver != want {
		t.Errorf("%s (%s) was sent to %s, want %s", a.Labels["alertname"], a.Labels["severity"], a.receiver, want)
	}
}

// checkRunbook follows the link that the human follows.
func checkRunbook(t *testing.T, a alert) {
	t.Helper()
	if want := "<title>" + a.Labels["alertname"] + "</title>"; !strings.Contains(program.Get(t, a.Annotations["runbook_url"]), want) {
		t.Errorf("%s: not a page with %s", a.Annotations["runbook_url"], want)
	}
}
