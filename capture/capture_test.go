package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

var limits = tally.Limits{Remotes: 50, Destinations: 20, Listeners: 50, Locals: 20}

func readString(t *testing.T, text string, set map[string]string) (*Capture, error) {
	t.Helper()
	return Read(t.Context(), "-", strings.NewReader(text), Options{Limits: limits, Owners: 20, Set: set})
}

// The same five sockets as each program writes them: a listener with a queue, a connection to it
// that a program leaks, one that nobody has accepted, and two outbound ones.
const (
	ssText = `State      Recv-Q Send-Q Local Address:Port   Peer Address:Port Process
LISTEN     1      128          0.0.0.0:8080        0.0.0.0:*     users:(("my app",pid=2211,fd=7)) ino:10 sk:1 cgroup:/system.slice/web.service <->
CLOSE-WAIT 1      0           10.0.0.1:8080   198.51.100.7:5000  users:(("my app",pid=2211,fd=8)) uid:33 ino:11 sk:2
	 cubic wscale:7,7 rto:204 cwnd:10 lastsnd:90000 lastrcv:90000 lastack:90500
ESTAB      0      0           10.0.0.1:8080   198.51.100.8:5001  ino:0 sk:3
TIME-WAIT  0      0           10.0.0.1:40000     192.0.2.9:443   timer:(timewait,1min3sec,0) ino:0 sk:4
ESTAB      0      7           10.0.0.1:40001     192.0.2.9:443   users:(("curl",pid=9,fd=3)) timer:(on,5.123ms,4) ino:12 sk:5
`
	oldSSText = `State      Recv-Q Send-Q Local Address:Port Peer Address:Port
LISTEN     1      128                *:8080               *:*
LISTEN     0      128               :::22                :::*
CLOSE-WAIT 1      0           10.0.0.1:8080   198.51.100.7:5000
ESTAB      0      0           10.0.0.1:8080   198.51.100.8:5001
TIME-WAIT  0      0           10.0.0.1:40000     192.0.2.9:443
ESTAB      0      7           10.0.0.1:40001     192.0.2.9:443
`
	netstatText = `Active Internet connections (servers and established)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode      PID/Program name     Timer
tcp        1      0 0.0.0.0:8080            0.0.0.0:*               LISTEN      33         10         2211/my app          off (0.00/0/0)
tcp        1      0 10.0.0.1:8080           198.51.100.7:5000       CLOSE_WAIT  33         11         2211/my app          off (0.00/0/0)
tcp        0      0 10.0.0.1:8080           198.51.100.8:5001       ESTABLISHED 0          0          -                    off (0.00/0/0)
tcp        0      0 10.0.0.1:40000          192.0.2.9:443           TIME_WAIT   0          0          -                    timewait (63.02/0/0)
tcp        0      7 10.0.0.1:40001          192.0.2.9:443           ESTABLISHED 0          12         9/curl               on (5.12/4/0)
udp        0      0 0.0.0.0:68              0.0.0.0:*                           0          13         1/x                  off (0.00/0/0)
Active UNIX domain sockets (servers and established)
Proto RefCnt Flags       Type       State         I-Node   PID/Program name     Path
unix  3      [ ]         STREAM     CONNECTED     1593     -
`
	procText = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000001 00:00000000 00000000    33        0 10 1 0000000000000000 100 0 0 10 0
   1: 0100000A:1F90 076433C6:1388 08 00000000:00000001 00:00000000 00000000    33        0 11 1 0000000000000000 20 0 0 10 -1
   2: 0100000A:1F90 086433C6:1389 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 0 0 10 -1
   3: 0100000A:9C40 090200C0:01BB 06 00000000:00000000 03:0000189C 00000000     0        0 0 3 0000000000000000
   4: 0100000A:9C41 090200C0:01BB 01 00000007:00000000 01:00000200 00000004     0        0 12 1 0000000000000000 20 0 0 10 -1
`
	windowsText = `
Active Connections

  Proto  Local Address          Foreign Address        State           PID
  TCP    0.0.0.0:8080           0.0.0.0:0              LISTENING       2211
  TCP    10.0.0.1:8080          198.51.100.7:5000      CLOSE_WAIT      2211
 [my app.exe]
  TCP    10.0.0.1:8080          198.51.100.8:5001      ESTABLISHED     2211
  TCP    10.0.0.1:50000         192.0.2.9:443          TIME_WAIT       0
  TCP    10.0.0.1:50001         192.0.2.9:443          ESTABLISHED     9
  UDP    0.0.0.0:68             *:*                                    1
`
)

// TestKinds reads the same sockets from each program, and says what it does not know.
func TestKinds(t *testing.T) {
	littleEndian(t)
	for _, v := range []struct {
		kind, text string
		missing    []string
		unaccepted uint64
	}{
		{SS, ssText, nil, 1},
		{SS, strings.ReplaceAll(ssText, "\n", "\r\n"), nil, 1},
		{SS, "$ ss -tanope\n\n" + ssText + "\n", nil, 1},
		{SS, strings.NewReplacer("LISTEN", "tcp LISTEN", "CLOSE-", "tcp CLOSE-", "ESTAB", "tcp ESTAB", "TIME-", "tcp TIME-").Replace(ssText[strings.Index(ssText, "\n")+1:]) + "u_str ESTAB 0 0 * 1 * 2 users:((\"x\",pid=1,fd=1))\n", nil, 1},
		{SS, oldSSText, []string{"age of TIME_WAITs", "TCPAcceptQueueNotDrained", "TCPPeerNotAnswering", "age of CLOSE_WAITs", "owner"}, 0},
		{Netstat, netstatText, []string{"age of CLOSE_WAITs"}, 1},
		{Proc, procText, []string{"age of CLOSE_WAITs", "owner"}, 1},
		{Windows, windowsText, []string{DynamicPort, "age of TIME_WAITs", "TCPAcceptQueueNotDrained", "TCPPeerNotAnswering", "age of CLOSE_WAITs", "limits"}, 0},
		{Windows, utf16Text(windowsText), []string{DynamicPort, "age of TIME_WAITs", "TCPAcceptQueueNotDrained", "TCPPeerNotAnswering", "age of CLOSE_WAITs", "limits"}, 0},
	} {
		c, err := readString(t, v.text, map[string]string{"net.ipv4.ip_local_port_range": "32768 60999"})
		if err != nil {
			t.Errorf("%v of %.60q", err, v.text)
			continue
		}
		if c.Kind != v.kind {
			t.Errorf("%s, want %s", c.Kind, v.kind)
		}
		s := c.Namespace.Sockets
		for _, want := range []struct {
			direction snapshot.Direction
			state     tcptable.State
			n         uint64
		}{
			{snapshot.Inbound, tcptable.CloseWait, 1}, {snapshot.Inbound, tcptable.Established, 1},
			{snapshot.Outbound, tcptable.TimeWait, 1}, {snapshot.Outbound, tcptable.Established, 1}, {snapshot.Outbound, tcptable.CloseWait, 0},
		} {
			if got := s.Connections[snapshot.IPv4][want.direction][want.state]; got != want.n {
				t.Errorf("%s: %d %s %s, want %d", v.kind, got, want.direction, want.state, want.n)
			}
		}
		if s.Listeners[0].Port != 8080 || s.Listeners[0].Unaccepted[tcptable.Established] != v.unaccepted {
			t.Errorf("%s: %+v", v.kind, s.Listeners)
		}
		if to := s.Ports.Destinations; len(to) != 1 || to[0].Held[tcptable.TimeWait] != 1 || to[0].Held[tcptable.Established] != 1 {
			t.Errorf("%s: %+v", v.kind, to)
		}
		q := s.AcceptQueues[slices.IndexFunc(s.AcceptQueues, func(q snapshot.AcceptQueue) bool { return q.Port == 8080 })]
		if s.HasBacklogs != (v.kind == SS) || s.HasBacklogs && q.Limit != 128 || v.kind != Windows && q.Length != 1 || q.LocalIP.String() != "0.0.0.0" {
			t.Errorf("%s: %+v", v.kind, s.AcceptQueues)
		}
		if left := s.TimeWait[snapshot.Outbound]; v.kind != Windows && v.text != oldSSText && (len(left) != 9 || left[8].Connections != 1) {
			t.Errorf("%s: %v", v.kind, left)
		}
		var missing []string
		for _, m := range c.Missing {
			missing = append(missing, m.Subject)
		}
		if !slices.Equal(missing, v.missing) {
			t.Errorf("%s: missing %q, want %q", v.kind, missing, v.missing)
		}
	}
}

// TestOwners names programs, and ages.
func TestOwners(t *testing.T) {
	for text, want := range map[string]string{ssText: "my app (pid 2211)", netstatText: "my app (pid 2211)", windowsText: "pid 2211"} {
		c, err := readString(t, text, nil)
		if err != nil {
			t.Fatal(err)
		}
		o := c.Namespace.Owners.All[0]
		if o.Name != want || o.Connections[snapshot.Inbound][tcptable.CloseWait] != 1 || len(c.Namespace.Owners.Listeners) != 1 || c.Namespace.Owners.Listeners[0].Name != want {
			t.Errorf("%+v", c.Namespace.Owners)
		}
		if text == ssText && o.CloseWaits.Oldest != 90500*time.Millisecond {
			t.Errorf("%+v", o.CloseWaits)
		}
	}
	c, err := readString(t, strings.ReplaceAll(ssText, `users:(("my app",pid=2211,fd=7)) `, ""), nil)
	if err != nil || c.Namespace.Owners.Listeners[0].Name != "web.service" {
		t.Errorf("by cgroup: %+v, %v", c, err)
	}
}

func TestSSTime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"200ms": 200 * time.Millisecond, "5.123ms": 5123 * time.Millisecond, "9sec": 9 * time.Second, "55sec": 55 * time.Second, "1min20sec": 80 * time.Second, "119min": 119 * time.Minute, "": 0,
	} {
		if got, ok := ssTime(text); !ok || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, ok, want)
		}
	}
	if _, ok := ssTime("soon"); ok {
		t.Error("soon is a time")
	}
}

// TestBadInput has one short line that says what is wrong and where.
func TestBadInput(t *testing.T) {
	littleEndian(t)
	for _, v := range []struct{ text, want string }{
		{"", "stdin is empty"},
		{"\x00\x01\x02garbage", "is no output of ss -tan or netstat -an"},
		{"Dear all,\nthe service is down again.\n", `it begins with "Dear all,"`},
		{"\x1f\x8b\x08\x00", "stdin is an archive, which is read by its name"},
		{ssText + ssText, "line 8: the header again"},
		{netstatText + netstatText, "the header again"},
		{windowsText + windowsText, "the header again"},
		{procText + procText, "line 7: the header again"},
		{ssText[:len(ssText)-100], "line 7: "},
		{netstatText[:strings.Index(netstatText, "198.51.100.8")], "line 5: no row of netstat"},
		{procText[:len(procText)-80], "line 6: "},
		{procText[:len(procText)-20] + "\n", ""}, // nothing is lost behind the inode
		{strings.Replace(procText, "0100000A:9C41", "0100000A:9C4G", 1), "line 6: not a hexadecimal number"},
		{strings.Replace(ssText, ":40001", ":https", 1), `"https" is not the number of a port (-n shows numbers)`},
		{strings.Replace(netstatText, "10.0.0.1:40001 ", "2001:db8:1:2:3:4:40001 ", 1), "or was cut (netstat -W shows it whole)"},
		{strings.ReplaceAll(windowsText, "LISTENING", "ABHÖREN"), `"ABHÖREN"; take it again with an English session`},
		{strings.ReplaceAll(strings.ReplaceAll(netstatText, "ESTABLISHED", "VERBUNDEN"), "LISTEN ", "HÖRT "), `"HÖRT", "VERBUNDEN"; take it again with LC_ALL=C netstat -an`},
		{ssText + strings.Repeat("x", 2*maxLine), "a line of more than 65536 bytes"},
		{ssText + "root@web:~# ", "no row of ss"},
	} {
		_, err := readString(t, v.text, nil)
		switch {
		case v.want == "":
			if err != nil {
				t.Error(err)
			}
		case err == nil || !strings.Contains(err.Error(), v.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600:
			t.Errorf("%.300v, want %q", err, v.want)
		}
	}
	for set, want := range map[[2]string]string{
		{"net.ipv4.ip_local_port_range", "1"}: "net.ipv4.ip_local_port_range: not 2 numbers", {"net.ipv4.tcp_max_tw_buckets", "x"}: "net.ipv4.tcp_max_tw_buckets: ",
	} {
		if _, err := readString(t, ssText, map[string]string{set[0]: set[1]}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for set, want := range map[[2]string]string{{DynamicPort, "1"}: DynamicPort, {DynamicPort, "60000 9000"}: DynamicPort, {TimedWaitDelay, "5"}: TimedWaitDelay} {
		if _, err := readString(t, windowsText, map[string]string{set[0]: set[1]}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func littleEndian(t *testing.T) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		t.Skip("this machine is big-endian, and the kernel prints addresses in its own byte order")
	}
}

// utf16Text is what PowerShell writes with >.
func utf16Text(text string) string {
	out := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(strings.ReplaceAll(text, "\n", "\r\n"))) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return string(out)
}

// endless is a pipe that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, strings.Repeat("\n", len(p))), nil }

// TestPipe refuses what never ends, and files that are none.
func TestPipe(t *testing.T) {
	if _, err := Read(t.Context(), "-", endless{}, Options{}); err == nil || !strings.Contains(err.Error(), "more than 64 MiB") {
		t.Error(err)
	}
	dir := t.TempDir()
	if _, err := Read(t.Context(), dir, nil, Options{}); !errors.Is(err, ErrProc) {
		t.Error(err)
	}
	if _, err := Read(t.Context(), "/dev/zero", nil, Options{}); err == nil || !strings.Contains(err.Error(), "neither a regular file nor a directory") {
		t.Error(err)
	}
	path := filepath.Join(dir, "long")
	if err := os.WriteFile(path, []byte(ssText+strings.Repeat("ESTAB 0 0 10.0.0.1:40001 192.0.2.9:443\n", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("no time left: %w", io.ErrUnexpectedEOF))
	if _, err := Read(ctx, path, nil, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// FuzzText reads anything. What is wrong is one line, and what is read is counted whole.
func FuzzText(f *testing.F) {
	for _, text := range []string{ssText, oldSSText, netstatText, procText, windowsText, utf16Text(windowsText)} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := readString(t, string(text), map[string]string{"net.ipv4.ip_local_port_range": "32768 60999", "net.ipv4.tcp_tw_reuse": "1"})
		if err != nil {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 5000 {
				t.Errorf("%q", err)
			}
			return
		}
		s := c.Namespace.Sockets
		if s.Ports == nil || s.Ports.Connect > 1 || s.Ports.Used > c.Namespace.Pool.Size {
			t.Errorf("%+v", s.Ports)
		}
	})
}
