package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

// TestMain is main for the processes that the program starts as itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "measure" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A dump ends with a message that has no socket: alone, behind others in one datagram, or with an error.
func TestLastDatagram(t *testing.T) {
	message := func(kind uint16, size int, code int32) []byte {
		m := make([]byte, size)
		binary.NativeEndian.PutUint32(m, uint32(size))
		binary.NativeEndian.PutUint16(m[4:], kind)
		if kind == unix.NLMSG_DONE {
			binary.NativeEndian.PutUint32(m[unix.SizeofNlMsghdr:], uint32(code))
		}
		return m
	}
	socket, done, absent := message(tcpdiagGetsock, 92, 0), message(unix.NLMSG_DONE, sizeofDone, 0), message(unix.NLMSG_DONE, sizeofDone, -int32(unix.ENOENT))
	for _, c := range []struct {
		name     string
		datagram []byte
		last     bool
		fails    string
	}{
		{"sockets", slices.Concat(socket, socket), false, ""},
		{"done", done, true, ""},
		{"sockets, done", slices.Concat(socket, done), true, ""},
		{"no tcp_diag", absent, false, "no such file"},
		{"sockets, then an error", slices.Concat(socket, absent), false, "no such file"},
		{"refused", message(unix.NLMSG_ERROR, 36, 0), false, "error 24 00"},
		{"cut", socket[:10], false, "10 bytes"},
	} {
		last, err := lastDatagram(c.datagram)
		if last != c.last || (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %t, %v", c.name, last, err)
		}
	}
}

func TestMedian(t *testing.T) {
	f := func(v []float64, want float64) {
		t.Helper()
		if got := median(v); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("median(%v) = %v, want %v", v, got, want)
		}
	}
	f(nil, math.NaN())
	f([]float64{3}, 3)
	f([]float64{3, 1, 2}, 2)
	f([]float64{4, 1, 3, 2}, 2.5)
}

// TestMeasure runs the whole on a small table of every mix: each reader that is there must finish.
func TestMeasure(t *testing.T) {
	// The thread that starts a child with Pdeathsig has to outlive it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	exporter, err := program.Build(t.Context(), "../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, mix := range []string{"time_wait", "established", "half"} {
		t.Run(mix, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			command := inNamespace(ctx, []string{
				"measure", "-mix", mix, "-sockets", "400", "-remotes", "30", "-rounds", "2", "-churn", "1", "-churn-rounds", "1",
				"-exporter", exporter, "-node-exporter", "/nonexistent",
			})
			var report, stderr bytes.Buffer
			command.Stdout, command.Stderr = &report, &stderr
			if err := command.Start(); netns.Refused(err) {
				t.Skipf("no user namespaces here: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			if err := command.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			for _, want := range []string{
				`## 400 sockets, ` + mix,
				`The table had 4[01]\d to 4\d\d rows and 60 remote addresses`,
				`\| bare read \|( \d+\.\d+ \|){4} 1.00 \| \d+\.\d+ \| - \| - \| - \|`,
				`\| bare read \| 1 of 1 \| 4\d\d \|`,
				`\| bare netlink dump \| 1 of 1 \| 4\d\d \|`,
				`\| timewait_exporter, procfs \|( \d+\.\d+ \|){6} - \| \d+\.\d \| \d+\.\d \|`,
				`\| timewait_exporter, procfs \| 1 of 1 \| 4\d\d \|`,
				`\| timewait_exporter, netlink \| 1 of 1 \| 4\d\d \|`,
				`\| node_exporter tcpstat \| not measured: .*no such file or directory \|`,
			} {
				if !regexp.MustCompile(want).Match(report.Bytes()) {
					t.Errorf("no %q in\n%s", want, report.String())
				}
			}
		})
	}
}
