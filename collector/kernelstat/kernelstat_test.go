package kernelstat

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, text)
	return path
}

// reading returns what wants a text read as numbers, and what wants it to be an error
// that names the file and says what is in parts.
func reading(t *testing.T, read func(ctx context.Context, path, block string, names ...string) (map[string]uint64, error), block string, names ...string) (f func(text string, want map[string]uint64), bad func(text string, parts ...string)) {
	return func(text string, want map[string]uint64) {
			t.Helper()
			got, err := read(t.Context(), write(t, text), block, names...)
			if err != nil || !maps.Equal(got, want) {
				t.Errorf("%q: %v and %v, want %v", text, got, err, want)
			}
		}, func(text string, parts ...string) {
			t.Helper()
			path := write(t, text)
			_, err := read(t.Context(), path, block, names...)
			wantError(t, err, append(parts, path)...)
		}
}

func TestReadPairs(t *testing.T) {
	f, bad := reading(t, ReadPairs, "TCP", "orphan", "tw", "mem")
	f("sockets: used 9\nTCP: inuse 5 orphan 3 tw 7 alloc 9 mem 11\nUDP: inuse 1 mem 1\n", map[string]uint64{"orphan": 3, "tw": 7, "mem": 11})
	f("TCP: inuse 5 tw 7\n", map[string]uint64{"tw": 7}) // what a kernel does not count
	f("TCP:\n", map[string]uint64{})
	f("TCP: tw 18446744073709551615\n", map[string]uint64{"tw": 1<<64 - 1})
	f("TCP: tw 1\nTCP6: inuse 2 tw\nUDP\nUDP: x x x\n\x00", map[string]uint64{"tw": 1}) // nobody uses what is odd

	bad("", `""`)
	bad("UDP: tw 1\n", "no line of TCP", `"UDP: tw 1\n"`)
	bad("TCP: tw 1\nTCP: tw 1\n", "2 lines of TCP", `"TCP: tw 1"`)
	bad("TCP: tw\n", `"TCP: tw"`)
	bad("TCP: tw 1 orphan\n", `"TCP: tw 1 orphan"`)
	bad("TCP: tw many\n", "tw", `"many"`)
	bad("TCP: tw -1\n", "tw", `"-1"`)
	bad("TCP: tw 18446744073709551616\n", `"18446744073709551616"`)
	bad("TCP: tw 1 orphan 2 tw 1\n", `"tw" is there twice`)
	bad("TCP: inuse 1 inuse 2\n", `"inuse" is there twice`)
	bad("TCP: orphan 3 tw 1", "ends within", `"TCP: orphan 3 tw 1"`)
}

func TestReadCounters(t *testing.T) {
	f, bad := reading(t, ReadCounters, "Tcp", "A", "B")
	f("Tcp: A B C\nTcp: 1 2 -3\n", map[string]uint64{"A": 1, "B": 2})
	f("Tcp: C B\nTcp: -1 18446744073709551615\n", map[string]uint64{"B": 1<<64 - 1})
	f("Tcp:\nTcp:\n", map[string]uint64{})
	f("Tcp:  A   B \nTcp: 1  2 \n", map[string]uint64{"A": 1, "B": 2})
	f("TcpExt: A\nTcpExt: 5\nTcp: A\nTcp: 1\n", map[string]uint64{"A": 1})
	long := strings.Repeat(" X", 10_000)
	f("Udp:"+long+"\nTcp: A\nTcp: 1\n", map[string]uint64{"A": 1})
	// Blocks that are torn, unknown or there twice are nobody's.
	f("Ip: X X\nIp: 1\nnonsense\n\nTcp: A\nTcp: 1\nUdp: A B\nUdp: 1\nUdp: 1\nMPTcpExt: A", map[string]uint64{"A": 1})

	bad("", `""`)
	bad("TcpExt: A\nTcpExt: 1\n", "no line of Tcp")
	bad("Tcp: A B\n", "1 lines of Tcp", `"Tcp: A B"`) // names and no values
	bad("Tcp: A B\nUdp: 1 2\n", `"Tcp: A B"`)
	bad("Tcp: A B\nTcp:\n", "2 names and 0 values", `"Tcp: A B"`)
	bad("Tcp: A B\nTcp: 1\n", "2 names and 1 values", `"Tcp: 1"`)
	bad("Tcp: A\nTcp: 1 2\n", `"Tcp: 1 2"`)
	bad("Tcp: A\nTcp: 1\nTcp: B\nTcp: 1\n", "4 lines of Tcp", `"Tcp: B"`)
	bad("Tcp: A A\nTcp: 1 1\n", `"A" is there twice`)
	bad("Tcp: A C C\nTcp: 1 1 1\n", `"C" is there twice`)
	bad("Tcp: A\nTcp: x\n", "A", `"x"`)
	bad("Tcp: A\nTcp: -1\n", "A", `"-1"`)
	bad("Tcp: A\nTcp: 1.5\n", `"1.5"`)
	bad("Tcp: A B\nTcp: 11 12", "ends within", `"Tcp: 11 12"`)
}

func TestReadSysctl(t *testing.T) {
	root := t.TempDir()
	path := SysctlPath(root, "net.ipv4.tcp_mem")
	if path != filepath.Join(root, "sys/net/ipv4/tcp_mem") {
		t.Fatal(path)
	}
	read := func(text string, n int) ([]uint64, error) {
		writeFile(t, path, text)
		return ReadSysctl(t.Context(), Sysctls{Root: root}, "net.ipv4.tcp_mem", n)
	}
	f := func(text string, want ...uint64) {
		t.Helper()
		if got, err := read(text, len(want)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v and %v", text, got, err)
		}
	}
	f("60\n", 60)
	f("60", 60)
	f("1\t2\t3\n", 1, 2, 3)
	f("681\t0\t9223372036854775807\n", 681, 0, 1<<63-1)
	bad := func(text string, n int, parts ...string) {
		t.Helper()
		_, err := read(text, n)
		wantError(t, err, append(parts, path)...)
	}
	bad("", 1, `""`)
	bad("\n", 1, `"\n"`)
	bad("1\t2\n", 3, "not 3 numbers", `"1\t2\n"`)
	bad("1\t2\n", 1, `"1\t2\n"`)
	bad("lots\n", 1, `"lots"`)
	bad("-1\n", 1, `"-1"`)
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v, which should say %s", err, part)
		}
	}
}

// TestBounds reads files of any length, one without an end among them, and quotes
// little of what is wrong.
func TestBounds(t *testing.T) {
	for _, size := range []int{0, 1, usualFile - 1, usualFile, usualFile + 1, maxFile - 1} {
		text := strings.Repeat("1", size)
		if got, err := ReadFile(t.Context(), write(t, text)); err != nil || string(got) != text {
			t.Errorf("%d of %d bytes, and %v", len(got), size, err)
		}
	}
	for _, path := range []string{write(t, strings.Repeat("1", maxFile)), "/dev/zero"} {
		_, err := ReadFile(t.Context(), path)
		wantError(t, err, path, "longer than 262144 bytes")
		if len(err.Error()) > 2000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
	names := "Tcp:" + strings.Repeat(" A", 20_000) + "\n"
	for _, text := range []string{names, names + names + "x", names + "Tcp: 1\n", strings.Repeat("Tcp: 1\n", 20_000), strings.Repeat("1", 100_000)} {
		path := write(t, text)
		_, err := ReadCounters(t.Context(), path, "Tcp", "A")
		wantError(t, err, path)
		if len(err.Error()) > 2000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

// TestFIFO does not wait for somebody to write, and for one who does not only until
// its context is done.
func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCounters(t.Context(), path, "Tcp", "A"); err == nil || !strings.Contains(err.Error(), `""`) {
		t.Errorf("nobody writes: %v", err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ReadCounters(ctx, path, "Tcp", "A"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) {
		t.Errorf("somebody who could write does not: %v", err)
	}
}
