package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"timewait_exporter/collector/tcptable"
	"timewait_exporter/diagnosis"
	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// answer sends back what it reads, and closes when the client does.
func answer(conn net.Conn) {
	defer conn.Close()
	request := make([]byte, 1)
	for {
		if _, err := conn.Read(request); err != nil {
			return
		}
		if _, err := conn.Write(request); err != nil {
			return
		}
	}
}

// ask has so many requests answered.
func ask(conn net.Conn, requests int) error {
	for range requests {
		if _, err := conn.Write([]byte{1}); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

// startWatch starts a report that watches, by another user.
func startWatch(t *testing.T, by []string, length string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	by = slices.Concat(by, []string{program.Path(), "report", "--format=json", "--watch=" + length})
	cmd := exec.CommandContext(t.Context(), by[0], by[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out // there is no bar in it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// watched is the report when its time is over.
func watched(t *testing.T, cmd *exec.Cmd, out *bytes.Buffer) (r diagnosis.Report) {
	t.Helper()
	err := cmd.Wait()
	if decodeErr := json.Unmarshal(out.Bytes(), &r); decodeErr != nil || r.Watched == nil || r.Watched.Closes == nil {
		t.Fatalf("%v, %v: %s", err, decodeErr, out)
	}
	return r
}

// interrupt ends the time, and returns the report.
func interrupt(t *testing.T, cmd *exec.Cmd, out *bytes.Buffer) diagnosis.Report {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	return watched(t, cmd, out)
}

// TestWatch has clients that open a connection for a few requests and close it, and others that
// keep theirs. A program without any right is to tell how often, after how many requests, how
// many are open, and nothing of the others.
func TestWatch(t *testing.T) {
	const clients, requests, lifetime = 4, 3, 20 * time.Millisecond
	nobody := nobody(t)
	netns.Run(t, func(t *testing.T) {
		needsSockDiag(t)
		netns.SetSysctl(t, "net/ipv4/tcp_tw_reuse", "0") // all TIME_WAITs stay
		netns.Handle(t, "127.0.0.1:9000", answer)
		netns.Handle(t, "127.0.0.1:9001", answer)
		var closed atomic.Int64
		var all sync.WaitGroup
		running, halt := context.WithCancel(t.Context())
		client := func(once func() error) {
			all.Go(func() {
				for running.Err() == nil {
					if err := once(); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range clients {
			client(func() error {
				conn, err := net.Dial("tcp", "127.0.0.1:9000")
				if err != nil {
					return err
				}
				defer closed.Add(1)
				defer conn.Close()
				time.Sleep(lifetime)
				return ask(conn, requests)
			})
			kept, err := net.Dial("tcp", "127.0.0.1:9001")
			if err != nil {
				t.Fatal(err)
			}
			client(func() error {
				time.Sleep(time.Millisecond)
				return ask(kept, 1)
			})
		}
		defer func() { halt(); all.Wait() }()
		begun, before := time.Now(), closed.Load()
		cmd, out := startWatch(t, nobody, "4s")
		r := watched(t, cmd, out)
		rate := float64(closed.Load()-before) / time.Since(begun).Seconds()
		closes := r.Watched.Closes
		if len(closes.Destinations) != 1 || len(closes.Listeners) != 1 || closes.Destinations[0].RemotePort != 9000 || closes.Listeners[0].LocalPort != 9000 {
			t.Fatalf("%+v, want those of port 9000 alone", closes)
		}
		to, at := closes.Destinations[0].Closing, closes.Listeners[0].Closing
		within := func(name string, got, want, share float64) {
			t.Helper()
			if math.Abs(got-want) > share*want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		within("closes a second", to.ClosesPerSecond, rate, 0.05)
		within("of the listener", at.ClosesPerSecond, rate, 0.05)
		within("closed first", to.ClosedFirstPerSecond, rate, 0.05)
		within("requests", to.RequestsPerConnection, requests, 0)
		within("open on average", to.OpenMean, clients, 0.2)
		if to.OpenMost != clients || at.ClosedFirstPerSecond != 0 || closes.EventsLost != 0 {
			t.Errorf("%+v", closes)
		}
		if f := r.Findings[0]; f.Code != "TCPConnectionsNotReused" || f.Remote != "127.0.0.1:9000" {
			t.Errorf("%+v", f)
		}
		t.Logf("%.0f closes/s, told %.0f of them; %s", rate, to.ClosesPerSecond, r.Summary)

		// It ends early, and tells what was seen.
		cmd, out = startWatch(t, nobody, "1m")
		time.Sleep(time.Second)
		if r := interrupt(t, cmd, out); r.Watched.Seconds > 10 || len(r.Watched.Closes.Destinations) != 1 {
			t.Errorf("%+v", r.Watched)
		}
	})
}

// TestClosesLost listens and does not read while more ends than there is room for: each event is
// either read or counted as lost.
func TestClosesLost(t *testing.T) {
	const connections = 16_000
	netns.Run(t, func(t *testing.T) {
		needsSockDiag(t)
		netns.SetSysctl(t, "net/ipv4/ip_local_port_range", "1024 65535")
		s := netns.Serve(t, loopback4, 1000)
		closes, err := tcptable.NewCloses()
		if err != nil {
			t.Fatal(err)
		}
		defer closes.Close()
		for range connections {
			if err := s.OpenAndClose(); err != nil {
				t.Fatal(err)
			}
		}
		var read, lost uint64
		state := func() string { return fmt.Sprintf("%d were read and %d lost, of %d", read, lost, 2*connections) }
		told := func() bool {
			lost, err = closes.Lost()
			if err != nil {
				t.Fatal(err)
			}
			return lost > 0
		}
		netns.Eventually(t, told, state) // the kernel tells them in the background
		netns.Eventually(t, func() bool {
			ctx, done := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer done()
			if err := closes.Read(ctx, func(*tcptable.Closed) { read++ }); err != nil {
				t.Fatal(err)
			}
			return told() && read+lost == 2*connections
		}, state)
		t.Logf("%d of %d were lost", lost, 2*connections)
	})
}
