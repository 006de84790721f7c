package tcptable

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// failToWalk walks the tables of files, which gives so many sockets and then an error.
func failToWalk(t *testing.T, files map[string]string, sockets int) (dir string, err error) {
	t.Helper()
	dir = writeNet(t, files)
	got, err := walk(NewProcNet(dir).Sockets(t.Context()))
	if err == nil || len(got) != sockets {
		t.Fatalf("%d sockets and %v, want %d and an error", len(got), err, sockets)
	}
	return dir, err
}

// TestProcNetCaptured reads a socket of every state and kind, as a little-endian kernel
// wrote them.
func TestProcNetCaptured(t *testing.T) {
	wantText(t, "testdata/all-states/sockets.txt", texts(mustWalk(t, NewProcNet("testdata/all-states/net")))...)
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

// TestProcNetReads has rows on both sides of a read's end, split at every byte, and
// files that end where a read does: a longer header moves the rows on. All tables are read
// by one ProcNet, with nothing left of the one before.
func TestProcNetReads(t *testing.T) {
	page := os.Getpagesize()
	dir := writeNet(t, map[string]string{"tcp": headers[TCP]})
	p := NewProcNet(dir)
	f := func(table Table, rows, blanks int) (size int) {
		t.Helper()
		file, want := printNumbered(table, rows)
		end := len(headers[table]) - 1
		file = file[:end] + strings.Repeat(" ", blanks) + file[end:]
		if err := os.WriteFile(filepath.Join(dir, table.String()), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		wantSockets(t, mustWalk(t, p), want)
		return len(file)
	}
	for reads := 1; reads <= 5; reads++ {
		for _, off := range []int{-257, -256, -255, -1, 0, 1, 255, 256, 257} {
			size := reads*page + off
			if got := f(TCP, size/rowLength-1, size%rowLength); got != size {
				t.Fatalf("%d bytes, want %d", got, size)
			}
		}
	}
	for blanks := range 200 { // more than a row of either table has
		f(TCP, 6*page/rowLength, blanks)
	}
	f(TCP, 0, 0)
	for blanks := range 200 {
		f(TCP6, 6*page/rowLength, blanks)
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
	for _, rows := range []int{0, 1, perPage - 3, perPage + 5, 3 * perPage, 8*perPage + perPage/2} {
		f(rows)
	}
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

	f(slices.Concat(first, second), first, second)
	// The first row of a read is the last one of the read before, maybe in another
	// state by now.
	f(slices.Concat(first, second[:3]), first, slices.Concat([]Socket{last}, second[:3]))
	f(slices.Concat(first, second[:3]), first, slices.Concat([]Socket{closed}, second[:3]))
	f(slices.Concat(first, second[:3]), first, slices.Concat(first[perPage-3:], second[:3]))
	f(first, first, []Socket{last})
	// A read behind a full last one lists the last sockets of the table.
	f(slices.Concat(first, second), first, second, second[perPage-5:])
	f(slices.Concat(first, second), first, second, first[perPage-1:])

	// Rows of one read are never the same socket: VRFs may have equal ends.
	f([]Socket{last, last, first[0]}, []Socket{last, last, first[0]})
	f(slices.Concat(first, second[:2], second[:1]), first, slices.Concat(second[:2], second[:1]))

	// Nor are listeners: SO_REUSEPORT lets many have one address.
	listener := Socket{Local: endpoint("0.0.0.0:80"), Remote: endpoint("0.0.0.0:0"), State: Listen, Inode: 7}
	listeners := slices.Repeat([]Socket{listener}, perPage)
	f(slices.Concat(listeners, listeners[:4], first[:2]), listeners, slices.Concat(listeners[:4], first[:2]))
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
	both := slices.Concat(tcp, tcp6)
	f(stat, stat6, protocols, tcp)
	f(strings.Replace(stat, "tw 0", "tw 1", 1), stat6, protocols, both)
	f(stat, strings.Replace(stat6, "TCP6: inuse 0", "TCP6: inuse 1", 1), protocols, both)
	f("", stat6, protocols, both)
	f(stat, "", protocols, both)
	// Subflows of MPTCP may be in it and not in sockstat6.
	f(stat, stat6, "", both)
}

// TestProcNetShort has a table of which the kernel counts far more rows.
func TestProcNetShort(t *testing.T) {
	file, _ := printNumbered(TCP, 100)
	file6, _ := printNumbered(TCP6, 400)
	short := map[string]string{"tcp": file, "tcp6": file6, "sockstat": "TCP: inuse 200 orphan 0 tw 400 alloc 9 mem 2\n", "sockstat6": "TCP6: inuse 200\n"}
	dir, err := failToWalk(t, short, 500)
	if want := (ShortError{Dir: dir, Table: "tcp", Rows: 100, Before: 200, After: 200}); err == nil || err.Error() != want.Error() {
		t.Errorf("%v, want %v", err, &want)
	}
	// Whoever stops early has no use for it.
	for _, err := range NewProcNet(dir).Sockets(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

// TestProcNetMissing has no IPv6, which is normal, or no table that should be there.
func TestProcNetMissing(t *testing.T) {
	file, sockets := printNumbered(TCP, 3)
	wantSockets(t, mustWalk(t, NewProcNet(writeNet(t, map[string]string{"tcp": file}))), sockets)
	for _, files := range []map[string]string{nil, {"tcp6": headers[TCP6]}} {
		if dir, err := failToWalk(t, files, 0); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir+"/tcp:") {
			t.Error(err)
		}
	}
	counted := map[string]string{"tcp": file, "sockstat": "TCP: inuse 1 orphan 0 tw 2 alloc 9 mem 2\n", "sockstat6": "TCP6: inuse 5\n"}
	if dir, err := failToWalk(t, counted, 0); !strings.Contains(err.Error(), dir+"/tcp6:") || !strings.Contains(err.Error(), "sockstat6 counts 5 sockets") {
		t.Error(err)
	}
	// No kernel shows a table without even a header.
	for name, files := range map[string]map[string]string{"tcp": {"tcp": ""}, "tcp6": {"tcp": headers[TCP], "tcp6": ""}} {
		if dir, err := failToWalk(t, files, 0); !strings.Contains(err.Error(), dir+"/"+name+":") {
			t.Error(err)
		}
	}
}

// TestProcNetUnreadable has a table that is there and can't be opened or read.
func TestProcNetUnreadable(t *testing.T) {
	file, _ := printNumbered(TCP, 3)
	for _, table := range []string{"tcp", "tcp6"} {
		for want, create := range map[error]func(path string) error{
			unix.ELOOP:  func(path string) error { return os.Symlink(path, path) },
			unix.EISDIR: func(path string) error { return os.Mkdir(path, 0o755) },
		} {
			dir := writeNet(t, map[string]string{"tcp": file})
			path := filepath.Join(dir, table)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := create(path); err != nil {
				t.Fatal(err)
			}
			if _, err := walk(NewProcNet(dir).Sockets(t.Context())); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %v of %s", err, want, path)
			}
		}
	}
}

// TestProcNetMalformed has tables that are not as the kernel writes them.
func TestProcNetMalformed(t *testing.T) {
	header := headers[TCP]
	row := func(i int) string { return string(appendRow(nil, i, numbered(TCP, i))) }
	file6, _ := printNumbered(TCP6, 3)
	f := func(table Table, file string, sockets, row int, raw string) {
		t.Helper()
		files := map[string]string{"tcp": header, "tcp6": file6} // a whole tcp6 is not read after an error in tcp
		files[table.String()] = file
		dir, err := failToWalk(t, files, sockets)
		bad, ok := errors.AsType[*RowError](err)
		if !ok || bad.Err == nil {
			t.Fatalf("%v is not a RowError", err)
		}
		if want := (RowError{Table: table, File: filepath.Join(dir, table.String()), Row: row, Text: raw, Err: bad.Err}); *bad != want {
			t.Errorf("got\n%#v\nwant\n%#v", *bad, want)
		}
		if want := fmt.Sprintf("%s: row %d: %v: %q", bad.File, row, bad.Err, raw); err.Error() != want {
			t.Errorf("got %s\nwant %s", err, want)
		}
	}
	// The header is missing, another one, or cut off.
	f(TCP, row(0)+row(1), 0, 0, strings.TrimSuffix(row(0), "\n"))
	f(TCP, "\n"+header, 0, 0, "")
	for _, other := range []string{"sl local_address\n", header[:20], header[:len(header)-1], "Inter-|   Receive\n"} {
		f(TCP, other, 0, 0, strings.TrimSuffix(other, "\n"))
	}

	// A row is cut off by the end of the file, be it the newline alone.
	for _, n := range []int{1, 4, 30, 100, len(row(2)) - 1} {
		f(TCP, header+row(0)+row(1)+row(2)[:n], 2, 3, row(2)[:n])
	}
	f(TCP, header+row(0)[:9], 0, 1, row(0)[:9])

	// A row is cut off and ended, or garbage, with rows behind it or not.
	for _, n := range []int{5, 30, 78, 80, 90} {
		f(TCP, header+row(0)+row(1)[:n]+"\n", 1, 2, row(1)[:n])
		f(TCP, header+row(0)+row(1)[:n]+row(2), 1, 2, row(1)[:n]+strings.TrimSuffix(row(2), "\n"))
	}
	for _, bad := range []string{
		"", "garbage", "\x00\xff", row(1)[:30], strings.TrimSuffix(header, "\n"),
		strings.Replace(row(2)[:149], " 06 ", " 0D ", 1), strings.Replace(row(2)[:149], " 06 ", " 01 ", 1),
	} {
		f(TCP, header+row(0)+bad+"\n"+row(1), 1, 2, bad)
	}
	f(TCP6, file6+"garbage\n", 3, 4, "garbage")

	// A row longer than any buffer, or only long. No more than its start is kept.
	kept := strings.Repeat("x", 256)
	for _, size := range []int{1 << 10, 1 << 20} {
		f(TCP, header+row(0)+strings.Repeat("x", size)+"\n"+row(1), 1, 2, kept)
	}
	f(TCP, header+row(0)+strings.Repeat("x", 1<<20), 1, 2, kept)
	f(TCP, strings.Repeat("x", 1<<20), 0, 0, kept)

	// Blanks behind a row are no harm.
	dir := writeNet(t, map[string]string{"tcp": header + strings.TrimSuffix(row(0), "\n") + strings.Repeat(" ", 2000) + "\n" + row(1)})
	wantSockets(t, mustWalk(t, NewProcNet(dir)), []Socket{numbered(TCP, 0), numbered(TCP, 1)})
}

// TestProcNetContext ends a walk between two reads.
func TestProcNetContext(t *testing.T) {
	file, _ := printNumbered(TCP, 1000)
	p := NewProcNet(writeNet(t, map[string]string{"tcp": file}))

	reason := errors.New("the scrape is over")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	sockets, err := walk(p.Sockets(ctx), func() { cancel(reason) })
	if !errors.Is(err, reason) || len(sockets) == 0 || len(sockets) > 200 {
		t.Errorf("%v after %d rows", err, len(sockets))
	}
	expired, stop := context.WithTimeout(context.Background(), -1)
	defer stop()
	if sockets, err := walk(p.Sockets(expired)); !errors.Is(err, context.DeadlineExceeded) || len(sockets) != 0 {
		t.Errorf("%v after %d rows", err, len(sockets))
	}
	if got := mustWalk(t, p); len(got) != 1000 {
		t.Errorf("%d sockets after walks that were ended", len(got))
	}
}

// TestProcNetCloses leaves no file open, however a walk ends.
func TestProcNetCloses(t *testing.T) {
	file, _ := printNumbered(TCP, 1000)
	file6, _ := printNumbered(TCP6, 10)
	good := NewProcNet(writeNet(t, map[string]string{"tcp": file, "tcp6": file6}))
	bad := NewProcNet(writeNet(t, map[string]string{"tcp": file + "garbage\n", "tcp6": file6}))
	before := openFiles(t)
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
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// TestProcNetAllocations proves that a row costs no allocation: a long table
// takes no more of them than a short one.
func TestProcNetAllocations(t *testing.T) {
	walk := func(rows int) float64 {
		file, _ := printNumbered(TCP, rows)
		file6, _ := printNumbered(TCP6, rows)
		return allocations(t, NewProcNet(writeNet(t, map[string]string{"tcp": file, "tcp6": file6})), 2*rows)
	}
	if few, many := walk(10), walk(10_000); many > few {
		t.Errorf("a walk of 20,000 rows allocates %.0f times, one of 20 rows %.0f times", many, few)
	}
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
		sockets, err := walk(NewProcNet(dir).Sockets(t.Context()))

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
			want, err := parse(strings.TrimSuffix(lines[1+i], "\n"), table, false) // which FuzzParseRow tests
			if err != nil || s != want {
				t.Fatalf("%q: %v\ngot  %s\nwant %s", lines[1+i], err, text(s), text(want))
			}
		}
	})
}
