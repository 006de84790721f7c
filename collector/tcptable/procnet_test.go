package tcptable

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// walk reads the tables of p. The sockets it returns are those before the error.
func walk(p *ProcNet) ([]Socket, error) {
	var sockets []Socket
	for s, err := range p.Sockets(context.Background()) {
		if err != nil {
			return sockets, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

func mustWalk(t *testing.T, p *ProcNet) []Socket {
	t.Helper()
	sockets, err := walk(p)
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

// writeNet writes files into a new directory net and returns it.
func writeNet(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "net")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// numbered returns socket i of a table of distinct connections.
func numbered(table Table, i int) Socket {
	s := Socket{Local: endpoint("10.0.0.1:8080"), Remote: Endpoint{netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)}).As16(), 4000},
		Table: table, State: TimeWait, Kind: Mini, TimerLeft: time.Duration(i%6000) * 10 * time.Millisecond}
	if i%2 == 1 {
		s.State, s.Kind, s.TimerLeft, s.Inode = Established, Full, 0, uint64(i)
	}
	return s
}

// printTable prints a table file.
func printTable(table Table, sockets ...Socket) string {
	b := []byte(headers[table])
	for i, s := range sockets {
		b = appendRow(b, i, s)
	}
	return string(b)
}

func printNumbered(table Table, n int) (string, []Socket) {
	sockets := make([]Socket, n)
	for i := range sockets {
		sockets[i] = numbered(table, i)
	}
	return printTable(table, sockets...), sockets
}

func wantSockets(t *testing.T, got, want []Socket) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("%d sockets, want %d: the next one is %s", len(got), len(want), text(want[i]))
		case i >= len(want):
			t.Fatalf("%d sockets, want %d: one too many is %s", len(got), len(want), text(got[i]))
		case got[i] != want[i]:
			t.Fatalf("socket %d of %d\ngot  %s\nwant %s", i, len(want), text(got[i]), text(want[i]))
		}
	}
}

// TestProcNetAgreesWithProcfs reads every capture with this parser and with that
// of prometheus/procfs.
func TestProcNetAgreesWithProcfs(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if filepath.Base(dir) == "fuzz" {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) { compareWithProcfs(t, dir) })
	}
	t.Run("random", func(t *testing.T) {
		random := rand.New(rand.NewPCG(3, 4))
		var sockets [NumTables][]Socket
		for range 2000 {
			s := randomSocket(random)
			sockets[s.Table] = append(sockets[s.Table], s)
		}
		compareWithProcfs(t, filepath.Dir(writeNet(t, map[string]string{
			"tcp": printTable(TCP, sockets[TCP]...), "tcp6": printTable(TCP6, sockets[TCP6]...),
		})))
	})
}

func compareWithProcfs(t *testing.T, dir string) {
	t.Helper()
	var got [NumTables][]string
	for _, s := range mustWalk(t, NewProcNet(filepath.Join(dir, "net"))) {
		got[s.Table] = append(got[s.Table], fmt.Sprintf("%v %v %d tx=%d rx=%d inode=%d",
			addrPort(s.Local), addrPort(s.Remote), s.State, s.TxQueue, s.RxQueue, s.Inode))
	}
	proc, err := procfs.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	for table, read := range map[Table]func() (procfs.NetTCP, error){TCP: proc.NetTCP, TCP6: proc.NetTCP6} {
		lines, err := read()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, l := range lines {
			want = append(want, fmt.Sprintf("%v %v %d tx=%d rx=%d inode=%d", oracleAddrPort(l.LocalAddr, l.LocalPort),
				oracleAddrPort(l.RemAddr, l.RemPort), l.St, l.TxQueue, l.RxQueue, l.Inode))
		}
		if !slices.Equal(got[table], want) {
			t.Errorf("%s: %v: got\n%s\nwant\n%s", dir, table, strings.Join(got[table], "\n"), strings.Join(want, "\n"))
		}
	}
}

func oracleAddrPort(ip net.IP, port uint64) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}

// TestProcNetListenersFirst has listeners in both tables: whoever counts has to
// know them all before the first connection.
func TestProcNetListenersFirst(t *testing.T) {
	listener := func(table Table, at string) Socket {
		remote := "0.0.0.0:0"
		if table == TCP6 {
			remote = "[::]:0"
		}
		return Socket{Local: endpoint(at), Remote: endpoint(remote), Table: table, State: Listen, Inode: 5}
	}
	l1, l2, l3 := listener(TCP, "0.0.0.0:22"), listener(TCP, "127.0.0.1:80"), listener(TCP6, "[::]:443")
	c1, c2, c3 := numbered(TCP, 1), numbered(TCP, 2), numbered(TCP6, 3)
	f := func(tcp, tcp6, want []Socket) {
		t.Helper()
		dir := writeNet(t, map[string]string{"tcp": printTable(TCP, tcp...), "tcp6": printTable(TCP6, tcp6...)})
		wantSockets(t, mustWalk(t, NewProcNet(dir)), want)
	}
	f([]Socket{l1, l2, c1, c2}, []Socket{l3, c3}, []Socket{l1, l2, l3, c1, c2, c3})
	f([]Socket{c1, c2}, []Socket{l3, c3}, []Socket{l3, c1, c2, c3})
	f([]Socket{l1}, []Socket{l3}, []Socket{l1, l3})
	f([]Socket{l1, c1}, nil, []Socket{l1, c1})
	f(nil, []Socket{c3}, []Socket{c3})
	f(nil, nil, nil)
}

// TestProcNetSplitRows has rows on both sides of a read's end, split at every
// byte: a longer header moves them on.
func TestProcNetSplitRows(t *testing.T) {
	dir := writeNet(t, map[string]string{"tcp": headers[TCP]})
	for table := range NumTables {
		file, want := printNumbered(table, 6*os.Getpagesize()/rowLength)
		header, rows := file[:len(headers[table])-1], file[len(headers[table]):]
		for shift := range 200 { // more than a row of either table has
			file := header + strings.Repeat(" ", shift) + "\n" + rows
			if err := os.WriteFile(filepath.Join(dir, table.String()), []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
			wantSockets(t, mustWalk(t, NewProcNet(dir)), want)
		}
		if err := os.WriteFile(filepath.Join(dir, "tcp"), []byte(headers[TCP]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProcNetFullReads has files that end where a read does.
func TestProcNetFullReads(t *testing.T) {
	page := os.Getpagesize()
	f := func(size int) {
		t.Helper()
		file, want := printNumbered(TCP, size/rowLength-1)
		// Blanks behind the header fill the rest.
		header := file[:len(headers[TCP])-1] + strings.Repeat(" ", size-len(file))
		file = header + file[len(headers[TCP])-1:]
		if len(file) != size {
			t.Fatalf("%d bytes, want %d", len(file), size)
		}
		wantSockets(t, mustWalk(t, NewProcNet(writeNet(t, map[string]string{"tcp": file}))), want)
	}
	for reads := 1; reads <= 5; reads++ {
		for _, off := range []int{-257, -256, -255, -1, 0, 1, 255, 256, 257} {
			f(reads*page + off)
		}
	}
}

// writePages makes a file of which each read(2) returns one of the pages, as a
// read of a seq_file of the kernel does. It returns a function that tells how
// many bytes nobody has read.
func writePages(t *testing.T, path string, pages ...string) func() int {
	t.Helper()
	var pipe [2]int
	// With O_DIRECT each write(2) is a packet (pipe(2)).
	if err := unix.Pipe2(pipe[:], unix.O_DIRECT|unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(os.NewSyscallError("pipe2", err))
	}
	t.Cleanup(func() { unix.Close(pipe[0]) })
	for _, page := range pages {
		if n, err := unix.Write(pipe[1], []byte(page)); err != nil || n > os.Getpagesize() {
			t.Fatalf("wrote a page of %d bytes: %v", n, err)
		}
	}
	if err := unix.Close(pipe[1]); err != nil {
		t.Fatal(os.NewSyscallError("close", err))
	}
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", pipe[0]), path); err != nil {
		t.Fatal(err)
	}
	return func() int {
		n, err := unix.IoctlGetInt(pipe[0], unix.TIOCINQ)
		if err != nil {
			t.Fatal(os.NewSyscallError("ioctl", err))
		}
		return n
	}
}

// pages prints a table in pages as large as the kernel makes them.
func pages(table Table, sockets []Socket) []string {
	var pages []string
	page := headers[table]
	for i, s := range sockets {
		row := string(appendRow(nil, i, s))
		if len(page)+len(row) > os.Getpagesize() {
			pages = append(pages, page)
			page = ""
		}
		page += row
	}
	return append(pages, page)
}

func concat[T any](parts ...[]T) []T { return slices.Concat(parts...) }

// TestProcNetStopsAfterShortRead has more behind the first page that is not full:
// what the kernel would list when it walks its hash table once more.
func TestProcNetStopsAfterShortRead(t *testing.T) {
	perPage := os.Getpagesize() / rowLength
	f := func(rows int) {
		t.Helper()
		_, sockets := printNumbered(TCP, rows)
		again := printTable(TCP, numbered(TCP, rows))[len(headers[TCP]):]
		dir := writeNet(t, nil)
		left := writePages(t, filepath.Join(dir, "tcp"), append(pages(TCP, sockets), again)...)
		wantSockets(t, mustWalk(t, NewProcNet(dir)), sockets)
		if left() != len(again) {
			t.Errorf("of %d bytes behind the end %d are left", len(again), left())
		}
	}
	f(0)
	f(1)
	f(perPage - 3)
	f(perPage + 5)
	f(3 * perPage)
	f(8*perPage + perPage/2)
}

// TestProcNetListedTwice has sockets that the kernel lists again because others
// came into their hash bucket between two reads.
func TestProcNetListedTwice(t *testing.T) {
	perPage := os.Getpagesize()/rowLength - 1 // the header takes a row's place in the first page
	_, first := printNumbered(TCP, perPage)
	_, both := printNumbered(TCP, 2*perPage)
	second := both[perPage:]
	f := func(want []Socket, read ...[]Socket) {
		t.Helper()
		var files []string
		for i, page := range read {
			text := printTable(TCP, page...)
			if i > 0 {
				text = text[len(headers[TCP]):]
			}
			files = append(files, text)
		}
		dir := writeNet(t, nil)
		writePages(t, filepath.Join(dir, "tcp"), files...)
		p := NewProcNet(dir)
		for forgetful(p.tables[TCP].recent, files) {
			p = NewProcNet(dir)
		}
		wantSockets(t, mustWalk(t, p), want)
	}
	last := first[perPage-1]
	closed := last
	closed.State, closed.Kind, closed.Inode = FinWait1, Full, 0

	f(concat(first, second), first, second)
	// The first row of a read is the last one of the read before, maybe in another
	// state by now.
	f(concat(first, second[:3]), first, concat([]Socket{last}, second[:3]))
	f(concat(first, second[:3]), first, concat([]Socket{closed}, second[:3]))
	f(concat(first, second[:3]), first, concat(first[perPage-3:], second[:3]))
	f(first, first, []Socket{last})
	// A read behind a full last one lists the last sockets of the table.
	f(concat(first, second), first, second, second[perPage-5:])
	f(concat(first, second), first, second, first[perPage-1:])

	// Rows of one read are never the same socket: VRFs may have equal ends.
	f([]Socket{last, last, first[0]}, []Socket{last, last, first[0]})
	f(concat(first, second[:2], second[:1]), first, concat(second[:2], second[:1]))

	// Nor are listeners: SO_REUSEPORT lets many have one address.
	listener := Socket{Local: endpoint("0.0.0.0:80"), Remote: endpoint("0.0.0.0:0"), State: Listen, Inode: 7}
	listeners := slices.Repeat([]Socket{listener}, perPage)
	f(concat(listeners, listeners[:4], first[:2]), listeners, concat(listeners[:4], first[:2]))

	// A walk knows nothing of the one before.
	file, sockets := printNumbered(TCP, 5)
	p := NewProcNet(writeNet(t, map[string]string{"tcp": file}))
	wantSockets(t, mustWalk(t, p), sockets)
	wantSockets(t, mustWalk(t, p), sockets)
}

// forgetful reports whether two sockets take one place in r, so that the second
// makes r forget the first. That depends on the random seed.
func forgetful(r *recentRows, files []string) bool {
	places := make(map[uint64]string)
	for row := range strings.Lines(strings.Join(files, "")) {
		_, rest, _ := strings.Cut(row, ": ")
		ends := rest[:min(len(rest), len("0100007F:0050 0200007F:0051"))]
		place := maphash.String(r.seed, ends) % uint64(len(r.rows))
		if other, taken := places[place]; taken && other != ends {
			return true
		}
		places[place] = ends
	}
	return false
}

// TestProcNetReadsAnew changes the tables between two walks of one ProcNet.
func TestProcNetReadsAnew(t *testing.T) {
	dir := writeNet(t, nil)
	p := NewProcNet(dir)
	f := func(tcp, tcp6 int) {
		t.Helper()
		file, want := printNumbered(TCP, tcp)
		file6, want6 := printNumbered(TCP6, tcp6)
		for name, text := range map[string]string{"tcp": file, "tcp6": file6} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		wantSockets(t, mustWalk(t, p), concat(want, want6))
	}
	f(1000, 10)
	f(3, 500)
	f(0, 0)
	f(200, 200)
}

// TestProcNetEmptyTCP6 skips tcp6 when the kernel's own counts prove that it has
// no row, and only then.
func TestProcNetEmptyTCP6(t *testing.T) {
	const (
		stat      = "sockets: used 188\nTCP: inuse 2 orphan 0 tw 0 alloc 9 mem 2\nUDP: inuse 4 mem 3\n"
		stat6     = "TCP6: inuse 0\nUDP6: inuse 3\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n"
		protocols = "protocol  size sockets  memory press\nTCPv6     2432      0      60   no\n"
	)
	file, tcp := printNumbered(TCP, 2)
	file6, tcp6 := printNumbered(TCP6, 3)
	f := func(stat, stat6, protocols string, want []Socket) {
		t.Helper()
		files := map[string]string{"tcp": file, "tcp6": file6, "sockstat": stat, "sockstat6": stat6, "protocols": protocols}
		maps.DeleteFunc(files, func(_, text string) bool { return text == "" })
		wantSockets(t, mustWalk(t, NewProcNet(writeNet(t, files))), want)
	}
	both := concat(tcp, tcp6)
	f(stat, stat6, protocols, tcp)
	f(strings.Replace(stat, "tw 0", "tw 1", 1), stat6, protocols, both)
	f(stat, strings.Replace(stat6, "TCP6: inuse 0", "TCP6: inuse 1", 1), protocols, both)
	f("", stat6, protocols, both)
	f(stat, "", protocols, both)
	f("", "", "", both)
	f(strings.Replace(stat, " tw 0", "", 1), stat6, protocols, both)
	f(stat, "UDP6: inuse 0\n", protocols, both)
	f("TCP: inuse x\n", stat6, protocols, both)
	f(stat, "TCP6: inuse\n", protocols, both)
	// Subflows of MPTCP may be in it and not in sockstat6.
	f(stat, stat6, "", both)
	f(stat, stat6, protocols+"MPTCPv6   2064      3      60   no\n", both)
}

// TestProcNetShort has tables of which the kernel counts far more rows.
func TestProcNetShort(t *testing.T) {
	file, _ := printNumbered(TCP, 400) // half of them in TIME_WAIT
	file6, _ := printNumbered(TCP6, 400)
	f := func(want string, rows, rows6 int) {
		t.Helper()
		cut := func(file string, rows int) string {
			lines := strings.SplitAfter(file, "\n")
			return strings.Join(lines[:1+rows], "")
		}
		got, err := walk(NewProcNet(writeNet(t, map[string]string{
			"tcp": cut(file, rows), "tcp6": cut(file6, rows6),
			"sockstat": "TCP: inuse 200 orphan 0 tw 400 alloc 9 mem 2\n", "sockstat6": "TCP6: inuse 200\n", "netstat": "TcpExt: TW\nTcpExt: 1\n",
		})))
		if len(got) != rows+rows6 {
			t.Errorf("%d sockets, want %d", len(got), rows+rows6)
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d and %d rows: %v, want %q", rows, rows6, err, want)
		}
	}
	f("", 400, 400)
	f("", 300, 300)
	f("100 sockets of tcp were read, but sockstat counts 200", 100, 400)
	f("100 sockets of tcp6 were read, but sockstat counts 200", 400, 100)
	f("500 sockets of tcp, tcp6 were read, but sockstat counts 800", 250, 250)

	// Whoever stops early has no use for it.
	for range NewProcNet(writeNet(t, map[string]string{"tcp": file, "sockstat": "TCP: inuse 2000 orphan 0 tw 1 alloc 9 mem 2\n"})).Sockets(t.Context()) {
		break
	}
}

// TestProcNetMissing has no IPv6, which is normal, or no table at all.
func TestProcNetMissing(t *testing.T) {
	file, sockets := printNumbered(TCP, 3)
	wantSockets(t, mustWalk(t, NewProcNet(writeNet(t, map[string]string{"tcp": file}))), sockets)

	f := func(dir string) {
		t.Helper()
		got, err := walk(NewProcNet(dir))
		if !errors.Is(err, fs.ErrNotExist) || len(got) != 0 {
			t.Errorf("%d sockets and %v", len(got), err)
		}
		if path := filepath.Join(dir, "tcp"); err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name %s", err, path)
		}
	}
	f(writeNet(t, nil))
	f(writeNet(t, map[string]string{"tcp6": headers[TCP6]}))
	f(filepath.Join(t.TempDir(), "missing"))

	// A table that is not there though it has rows.
	dir := writeNet(t, map[string]string{"tcp": file, "sockstat": "TCP: inuse 1 orphan 0 tw 2 alloc 9 mem 2\n", "sockstat6": "TCP6: inuse 5\n"})
	got, err := walk(NewProcNet(dir))
	if err == nil || len(got) != 0 || !strings.Contains(err.Error(), filepath.Join(dir, "tcp6")) || !strings.Contains(err.Error(), "sockstat6 counts 5 sockets") {
		t.Errorf("%d sockets and %v", len(got), err)
	}
}

// TestProcNetUnreadable has a table that is there and can't be read.
func TestProcNetUnreadable(t *testing.T) {
	file, _ := printNumbered(TCP, 3)
	f := func(path string, want error, walk func() error) {
		t.Helper()
		err := walk()
		if !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name %s", err, path)
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		dir := writeNet(t, map[string]string{"tcp": file})
		path := filepath.Join(dir, table)
		if err := os.WriteFile(path, []byte(file), 0o000); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o000); err != nil {
			t.Fatal(err)
		}
		f(path, fs.ErrPermission, func() error {
			var err error
			withoutCapabilities(t, func() { _, err = walk(NewProcNet(dir)) })
			return err
		})

		dir = writeNet(t, map[string]string{"tcp": file})
		path = filepath.Join(dir, table)
		os.Remove(path)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		f(path, unix.EISDIR, func() error {
			_, err := walk(NewProcNet(dir))
			return err
		})
	}
}

// withoutCapabilities calls f on a thread that has none, so that file modes are
// good for root too. The thread ends with it.
func withoutCapabilities(t *testing.T, f func()) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData // version 3 has two words of each set
		if err = unix.Capset(&header, &none[0]); err == nil {
			f()
		}
	}()
	<-done
	if err != nil {
		t.Fatal(os.NewSyscallError("capset", err))
	}
}

// TestProcNetMalformed has tables that are not as the kernel writes them.
func TestProcNetMalformed(t *testing.T) {
	header := headers[TCP]
	row := func(i int) string { return string(appendRow(nil, i, numbered(TCP, i))) }
	f := func(file string, sockets, row int, raw string) {
		t.Helper()
		dir := writeNet(t, map[string]string{"tcp": file})
		got, err := walk(NewProcNet(dir))
		if len(got) != sockets {
			t.Errorf("%d sockets before the error, want %d", len(got), sockets)
		}
		bad, ok := errors.AsType[*RowError](err)
		if !ok {
			t.Fatalf("%v is not a RowError", err)
		}
		want := RowError{Table: TCP, File: filepath.Join(dir, "tcp"), Row: row, Text: raw, Err: bad.Err}
		if *bad != want || bad.Err == nil {
			t.Errorf("got\n%#v\nwant\n%#v", *bad, want)
		}
		for _, part := range []string{want.File, fmt.Sprintf("row %d", row), fmt.Sprintf("%q", raw)} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %s", err, part)
			}
		}
	}
	// The header is missing, another one, or cut off.
	f(row(0)+row(1), 0, 0, strings.TrimSuffix(row(0), "\n"))
	f("sl local_address\n", 0, 0, "sl local_address")
	f("\n"+header, 0, 0, "")
	f(header[:20], 0, 0, header[:20])
	f(header[:len(header)-1], 0, 0, header[:len(header)-1])
	f("Inter-|   Receive\n face |bytes\n", 0, 0, "Inter-|   Receive")

	// A row is cut off by the end of the file, be it the newline alone.
	for _, n := range []int{1, 4, 30, 100, len(row(2)) - 1} {
		f(header+row(0)+row(1)+row(2)[:n], 2, 3, row(2)[:n])
	}
	f(header+row(0)[:9], 0, 1, row(0)[:9])

	// A row is cut off and ended, or garbage, with rows behind it or not.
	for _, n := range []int{5, 30, 78, 80, 90} {
		f(header+row(0)+row(1)[:n]+"\n", 1, 2, row(1)[:n])
		f(header+row(0)+row(1)[:n]+"\n"+row(2), 1, 2, row(1)[:n])
		f(header+row(0)+row(1)[:n]+row(2), 1, 2, row(1)[:n]+strings.TrimSuffix(row(2), "\n"))
	}
	f(header+row(0)+"\n"+row(1), 1, 2, "")
	f(header+row(0)+"garbage\n"+row(1), 1, 2, "garbage")
	f(header+row(0)+"\x00\xff\n"+row(1), 1, 2, "\x00\xff")
	f(header+row(0)+header+row(1), 1, 2, strings.TrimSuffix(header, "\n"))
	f(header+strings.Replace(row(0), " 06 ", " 0D ", 1), 0, 1, strings.TrimSuffix(strings.Replace(row(0), " 06 ", " 0D ", 1), "\n"))
	f(header+strings.Replace(row(0), " 06 ", " 01 ", 1), 0, 1, strings.TrimSuffix(strings.Replace(row(0), " 06 ", " 01 ", 1), "\n"))

	// A row longer than any buffer, or only long. No more than its start is kept.
	const kept = 256
	for _, size := range []int{1 << 10, 1 << 20} {
		f(header+row(0)+strings.Repeat("x", size)+"\n"+row(1), 1, 2, strings.Repeat("x", kept))
	}
	f(header+row(0)+strings.Repeat("x", 1<<20), 1, 2, strings.Repeat("x", kept))
	f(strings.Repeat("x", 1<<20), 0, 0, strings.Repeat("x", kept))

	// Blanks behind a row are no harm.
	dir := writeNet(t, map[string]string{"tcp": header + strings.TrimSuffix(row(0), "\n") + strings.Repeat(" ", 2000) + "\n" + row(1)})
	wantSockets(t, mustWalk(t, NewProcNet(dir)), []Socket{numbered(TCP, 0), numbered(TCP, 1)})
}

// TestProcNetMalformedTCP6 fails the walk for a row of the second table, and
// names that one.
func TestProcNetMalformedTCP6(t *testing.T) {
	file, tcp := printNumbered(TCP, 3)
	file6, _ := printNumbered(TCP6, 3)
	dir := writeNet(t, map[string]string{"tcp": file, "tcp6": file6 + "garbage\n"})
	_, err := walk(NewProcNet(dir))
	row, ok := errors.AsType[*RowError](err)
	if !ok || row.Table != TCP6 || row.File != filepath.Join(dir, "tcp6") || row.Row != 4 {
		t.Errorf("%#v", err)
	}

	// An error in the first table ends the walk: the second is not read as if
	// nothing had happened.
	for _, bad := range []string{"garbage\n", "   3: 0100000A"} {
		dir = writeNet(t, map[string]string{"tcp": file + bad, "tcp6": file6})
		got, err := walk(NewProcNet(dir))
		if _, ok := errors.AsType[*RowError](err); !ok {
			t.Error(err)
		}
		wantSockets(t, got, tcp)
	}
}

// TestProcNetEmptyFile has a table without even a header, which no kernel shows.
func TestProcNetEmptyFile(t *testing.T) {
	f := func(files map[string]string, path string) {
		t.Helper()
		dir := writeNet(t, files)
		got, err := walk(NewProcNet(dir))
		if len(got) != 0 || err == nil || !strings.Contains(err.Error(), filepath.Join(dir, path)) {
			t.Errorf("%d sockets and %v", len(got), err)
		}
	}
	f(map[string]string{"tcp": ""}, "tcp")
	f(map[string]string{"tcp": headers[TCP], "tcp6": ""}, "tcp6")
}

// TestProcNetContext ends a walk between two reads.
func TestProcNetContext(t *testing.T) {
	file, _ := printNumbered(TCP, 1000)
	p := NewProcNet(writeNet(t, map[string]string{"tcp": file}))

	reason := errors.New("the scrape is over")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	rows := 0
	var last error
	for _, err := range p.Sockets(ctx) {
		if last = err; err == nil {
			rows++
		}
		if rows == 1 {
			cancel(reason)
		}
	}
	if !errors.Is(last, reason) || rows == 0 || rows > 200 {
		t.Errorf("%v after %d rows", last, rows)
	}

	expired, stop := context.WithTimeout(context.Background(), -1)
	defer stop()
	rows = 0
	for _, err := range p.Sockets(expired) {
		if last = err; err == nil {
			rows++
		}
	}
	if !errors.Is(last, context.DeadlineExceeded) || rows != 0 {
		t.Errorf("%v after %d rows", last, rows)
	}
	if got := mustWalk(t, p); len(got) != 1000 {
		t.Errorf("%d sockets after walks that were ended", len(got))
	}
}

// TestProcNetCloses leaves no file open, however a walk ends.
func TestProcNetCloses(t *testing.T) {
	openFiles := func() int {
		t.Helper()
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	file, _ := printNumbered(TCP, 1000)
	file6, _ := printNumbered(TCP6, 10)
	good := NewProcNet(writeNet(t, map[string]string{"tcp": file, "tcp6": file6}))
	bad := NewProcNet(writeNet(t, map[string]string{"tcp": file + "garbage\n", "tcp6": file6}))
	before := openFiles()
	for stopAfter := 0; stopAfter < 1100; stopAfter += 7 {
		for _, p := range []*ProcNet{good, bad} {
			rows := 0
			for range p.Sockets(context.Background()) {
				if rows++; rows > stopAfter {
					break
				}
			}
		}
	}
	if after := openFiles(); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// TestProcNetAllocations proves that a row costs no allocation: a long table
// takes no more of them than a short one.
func TestProcNetAllocations(t *testing.T) {
	allocations := func(rows int) float64 {
		file, _ := printNumbered(TCP, rows)
		file6, _ := printNumbered(TCP6, rows)
		p := NewProcNet(writeNet(t, map[string]string{"tcp": file, "tcp6": file6}))
		return testing.AllocsPerRun(10, func() {
			n := 0
			for _, err := range p.Sockets(context.Background()) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != 2*rows {
				t.Fatalf("%d rows, want %d", n, 2*rows)
			}
		})
	}
	few, many := allocations(10), allocations(10_000)
	if many > few {
		t.Errorf("a walk of 20,000 rows allocates %.0f times, one of 20 rows %.0f times", many, few)
	}
}

// TestProcNetOfThisKernel finds sockets of this test in the kernel's tables.
func TestProcNetOfThisKernel(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server := netip.MustParseAddrPort(listener.Addr().String())
	client := netip.MustParseAddrPort(conn.LocalAddr().String())

	found := make(map[string]int)
	for _, s := range mustWalk(t, NewProcNet("/proc/self/net")) {
		switch local, remote := addrPort(s.Local), addrPort(s.Remote); {
		case local == server && s.State == Listen:
			found["listener"]++
			if s.RxQueue != 1 || s.Inode == 0 {
				t.Errorf("one connection waits for accept(2): %s", text(s))
			}
		case local == client && remote == server && s.State == Established:
			found["client"]++
			if s.Inode == 0 {
				t.Errorf("a file descriptor belongs to it: %s", text(s))
			}
		case local == server && remote == client && s.State == Established:
			found["server"]++
			if s.Inode != 0 {
				t.Errorf("it is not accepted yet: %s", text(s))
			}
		}
	}
	for _, name := range []string{"listener", "client", "server"} {
		if found[name] != 1 {
			t.Errorf("the %s is listed %d times", name, found[name])
		}
	}
}

func TestStateString(t *testing.T) {
	f := func(s State, want string) {
		t.Helper()
		if got := s.String(); got != want {
			t.Errorf("%d is %q, want %q", s, got, want)
		}
	}
	for i, name := range strings.Fields("established syn_sent syn_recv fin_wait1 fin_wait2 time_wait close close_wait last_ack listen closing") {
		f(State(i+1), name)
	}
	f(0, "state 0")
	f(NumStates, "state 12")
	f(255, "state 255")
}

// FuzzTable reads any file as a table: every row that comes out is one of the
// file, and none is lost without an error.
func FuzzTable(f *testing.F) {
	captures, err := filepath.Glob("testdata/*/net")
	if err != nil {
		f.Fatal(err)
	}
	for _, dir := range captures {
		for table := range NumTables {
			file, err := os.ReadFile(filepath.Join(dir, table.String()))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(file), table == TCP6)
			f.Add(string(file[:len(file)-1]), table == TCP6)
			f.Add(string(file[:len(file)/2]), table == TCP6)
		}
	}
	f.Add("", false)
	f.Add(headers[TCP], false)
	f.Add(headers[TCP6]+"\n", true)
	dir := writeNet(f, nil)
	f.Fuzz(func(t *testing.T, file string, tcp6 bool) {
		table := TCP
		files := map[string]string{"tcp": file}
		if tcp6 {
			table = TCP6
			files = map[string]string{"tcp": headers[TCP], "tcp6": file}
		}
		os.Remove(filepath.Join(dir, "tcp6"))
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sockets, err := walk(NewProcNet(dir))

		lines := strings.SplitAfter(file, "\n")
		torn := lines[len(lines)-1] != ""
		lines = lines[:len(lines)-1]
		row, ok := errors.AsType[*RowError](err)
		switch {
		case err == nil && (torn || len(lines) == 0):
			t.Fatalf("no error of %q", file)
		case err == nil && len(file) < os.Getpagesize() && len(sockets) != len(lines)-1:
			t.Fatalf("%d sockets, but %d rows: %q", len(sockets), len(lines)-1, file)
		case ok && (row.Table != table || !strings.Contains(file, row.Text)):
			t.Fatalf("%#v of %q", row, file)
		case err != nil && !ok && file != "":
			t.Fatalf("%v of %q", err, file)
		}
		if len(file) >= os.Getpagesize() {
			return // a socket listed twice may have been left out
		}
		for i, s := range sockets {
			want, whole, err := parseSlowly([]byte(strings.TrimSuffix(lines[1+i], "\n")), table, false)
			if err != nil {
				t.Fatalf("%q is read, but %v", lines[1+i], err)
			}
			if whole && s != want {
				t.Fatalf("%q\ngot  %s\nwant %s", lines[1+i], text(s), text(want))
			}
		}
	})
}
