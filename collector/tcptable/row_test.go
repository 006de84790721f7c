package tcptable

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Rows of a socket, a minisock and a half-open connection, as the kernel wrote
// them.
const (
	fullRow    = "   4: 0100007F:BB40 0100007F:46A0 01 00000000:00000000 00:00000000 00000000     0        0 656085 2 00000000b25b2413 20 0 0 11 -1                    "
	miniRow    = "   3: 0100007F:8984 0100007F:46A2 06 00000000:00000000 03:0000176A 00000000     0        0 0 3 000000007463c3f0                                      "
	requestRow = "   4: 0100090A:46A1 370200C0:15B3 03 00000000:00000000 01:0000004F 00000000     0        0 0 0 00000000aad1b54e                                      "
	fullRow6   = "   5: 000009FD000000000000000001000000:D9A4 B80D0120000000000000000077000000:01BB 02 00000001:00000000 01:00000058 00000000     0        0 659318 2 00000000734a40c3 100 0 0 10 -1"
)

func parse(row string, t Table, bigEndian bool) (Socket, error) {
	var s Socket
	_, err := parseRow([]byte(row), t, bigEndian, &s)
	return s, err
}

// TestParseRow reads rows at the limits of their columns.
func TestParseRow(t *testing.T) {
	file, err := os.ReadFile("testdata/rows.txt")
	if err != nil {
		t.Fatal(err)
	}
	var row string
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || line[0] == '#':
		case row == "":
			row = line
		default:
			table := TCP
			if strings.HasPrefix(line, "tcp6 ") {
				table = TCP6
			}
			if s, err := parse(row, table, false); err != nil || text(s) != line {
				t.Errorf("%q: %v, got\n%s\nwant\n%s", row, err, text(s), line)
			}
			row = ""
		}
	}
}

// TestParseRowRefuses has rows that no kernel writes.
func TestParseRowRefuses(t *testing.T) {
	f := func(table Table, rows ...string) {
		t.Helper()
		for _, row := range rows {
			if s, err := parse(row, table, false); err == nil {
				t.Errorf("%q is taken for %s", row, text(s))
			}
		}
	}
	f(TCP, "", ":", "garbage", strings.TrimSuffix(headers[TCP], "\n"), fullRow6, fullRow[5:], fullRow[:strings.Index(fullRow, "656085")])
	f(TCP6, fullRow)
	for _, c := range []string{"x", " ", ":", "\x00"} {
		f(TCP, strings.Repeat(c, 149))
	}
	for _, inode := range []string{"-1", "656085x", "0x12", "18446744073709551616"} {
		f(TCP, strings.Replace(fullRow, "656085", inode, 1))
	}
	// States that are none, and the timer of a minisock where none can be.
	for state := range 256 {
		digits := fmt.Sprintf(" %02X ", state)
		if state == 0 || state > 12 {
			f(TCP, strings.Replace(fullRow, " 01 ", digits, 1))
		}
		if s := State(state); s != TimeWait && s != FinWait2 {
			f(TCP, strings.Replace(miniRow, " 06 ", digits, 1))
		}
	}
}

// TestParseRowDamaged cuts a row at every byte, leaves each out, and puts another one in
// its place and before it: each row is refused or read as parseSlowly does, and one that
// was only cut reads as the whole does.
func TestParseRowDamaged(t *testing.T) {
	for row, table := range map[string]Table{fullRow: TCP, miniRow: TCP, requestRow: TCP, fullRow6: TCP6} {
		whole, err := parse(row, table, false)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(row) {
			cut, err := parse(row[:n], table, false)
			cut.Kind = whole.Kind // a half-open connection has the fewer columns
			if err == nil && cut != whole {
				t.Errorf("%q\ngot  %s\nwant %s", row[:n], text(cut), text(whole))
			}
			checkRow(t, []byte(row[:n]+row[n+1:]), table, false)
			for c := range strings.SplitSeq(" -.:0FGXafgx\x00\xff", "") {
				checkRow(t, []byte(row[:n]+c+row[n:]), table, false)
				checkRow(t, []byte(row[:n]+c+row[n+1:]), table, false)
			}
		}
	}
}

// TestParseRowPrinted prints random sockets as the kernel does and reads them
// back.
func TestParseRowPrinted(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	bigEndian := binary.NativeEndian.Uint16([]byte{0, 1}) == 1
	for i := range 20_000 {
		want := randomSocket(random)
		row := strings.TrimSuffix(string(appendRow(nil, i, want)), "\n")
		got, err := parse(row, want.Table, bigEndian)
		if err != nil {
			t.Fatalf("%v: %q", err, row)
		}
		if got != want {
			t.Fatalf("%q\ngot  %s\nwant %s", row, text(got), text(want))
		}
	}
}

// randomSocket returns a socket that a kernel could list.
func randomSocket(random *rand.Rand) Socket {
	number := func() uint64 { return random.Uint64() >> random.UintN(64) } // of any length
	s := Socket{Table: Table(random.UintN(uint(NumTables))), State: 1 + State(random.UintN(uint(NumStates)-1))}
	for _, e := range []*Endpoint{&s.Local, &s.Remote} {
		e.Port = uint16(number())
		e.Addr = Addr{10: 0xff, 11: 0xff}
		from := 12
		if s.Table == TCP6 && random.UintN(2) == 0 {
			e.Addr, from = Addr{}, 0
		}
		for i := from; i < len(e.Addr); i++ {
			e.Addr[i] = byte(number())
		}
	}
	switch {
	case s.State == TimeWait || s.State == FinWait2 && random.UintN(2) == 0:
		s.Kind = Mini
		s.TimerLeft = time.Duration(random.UintN(6001)) * 10 * time.Millisecond
	case s.State == SynRecv && random.UintN(2) == 0:
		s.Kind = Request
	default:
		s.TxQueue, s.RxQueue, s.Inode = uint32(number()), uint32(number()), number()
		if s.Timer = Timer(random.UintN(NumTimers)); s.Timer == timerMini {
			s.Timer = TimerNone
		}
		if s.Timer != TimerNone {
			s.Unanswered = uint8(number())
		}
	}
	return s
}

// appendRow prints a socket as get_tcp4_sock, get_timewait4_sock and
// get_openreq4 in net/ipv4/tcp_ipv4.c and their like in net/ipv6/tcp_ipv6.c do
// on this machine.
func appendRow(b []byte, sl int, s Socket) []byte {
	start := len(b)
	end := func(e Endpoint) {
		words := e.Addr[:]
		if s.Table == TCP {
			words = words[12:]
		}
		for ; len(words) > 0; words = words[4:] {
			b = fmt.Appendf(b, "%08X", binary.NativeEndian.Uint32(words))
		}
		b = fmt.Appendf(b, ":%04X ", e.Port)
	}
	b = fmt.Appendf(b, "%4d: ", sl)
	end(s.Local)
	end(s.Remote)
	timer, references := s.Timer, 2
	retransmits, probes := sl%3, sl%5 // that are none of the timer's
	switch {
	case timer == TimerRetransmit:
		retransmits = int(s.Unanswered)
	case timer != TimerNone:
		probes = int(s.Unanswered)
	}
	switch s.Kind {
	case Mini:
		timer, references = 3, 3
	case Request:
		timer, references = 1, 0
	}
	b = fmt.Appendf(b, "%02X %08X:%08X %02X:%08X %08X %5d %8d %d %d %016x", uint8(s.State), s.TxQueue, s.RxQueue,
		uint8(timer), s.TimerLeft.Milliseconds()/10, retransmits, sl%200_000, probes, s.Inode, references, sl)
	if s.Kind == Full {
		b = append(b, " 20 4 30 10 -1"...)
	}
	if s.Table == TCP {
		b = append(b, bytes.Repeat([]byte(" "), max(0, rowLength-1-(len(b)-start)))...)
	}
	return append(b, '\n')
}

// rowLength is the length of a row of tcp that is not longer (TMPSZ in
// net/ipv4/tcp_ipv4.c).
const rowLength = 150

var headers = [NumTables]string{
	TCP:  fmt.Sprintf("%-*s\n", rowLength-1, "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"),
	TCP6: "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n",
}

// readRows returns the rows of a captured table without the header.
func readRows(t testing.TB, dir string, table Table) []string {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dir, "net", table.String()))
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
	return rows[1:]
}

// A row as kernels print it. What is before the first colon does not matter:
// parseRow does not read it.
var (
	headPattern = regexp.MustCompile(`(?s)^[^:]*: ([0-9A-F]+):([0-9A-F]{4}) ([0-9A-F]+):([0-9A-F]{4}) ([0-9A-F]{2})` +
		` ([0-9A-F]{8}):([0-9A-F]{8}) ([0-9A-F]{2}):([0-9A-F]{8}) ([0-9A-F]{8}) (.*)$`)
	// uid, timeout, inode, references, pointer; what follows is of a full socket.
	tailPattern = regexp.MustCompile(`^( *\d+) ( *\d+) (\d+) \d+ \S+((?: \S+){5})? *$`)
)

// parseSlowly is parseRow once more, by other means. It returns false when the
// columns behind retrnsmt are not as kernels print them; then the result lacks
// what is in them.
func parseSlowly(row []byte, t Table, bigEndian bool) (s Socket, whole bool, err error) {
	latin1 := make([]rune, len(row)) // a character a byte
	for i, b := range row {
		latin1[i] = rune(b)
	}
	head := headPattern.FindStringSubmatch(string(latin1))
	if head == nil {
		return Socket{}, false, errors.New("not a row")
	}
	s.Table = t
	for i, e := range []*Endpoint{&s.Local, &s.Remote} {
		address, err := hex.DecodeString(head[1+2*i])
		if err != nil || len(address) != [...]int{TCP: 4, TCP6: 16}[t] {
			return Socket{}, false, errors.New("not an address")
		}
		for word := address; !bigEndian && len(word) > 0; word = word[4:] {
			slices.Reverse(word[:4])
		}
		addr, _ := netip.AddrFromSlice(address)
		e.Addr = addr.As16()
		e.Port = uint16(hexadecimal(head[2+2*i]))
	}
	s.State = State(hexadecimal(head[5]))
	if s.State == 12 {
		s.State = SynRecv
	}
	if s.State == 0 || s.State >= NumStates {
		return Socket{}, false, errors.New("no state")
	}
	s.TxQueue, s.RxQueue = uint32(hexadecimal(head[6])), uint32(hexadecimal(head[7]))
	if head[8] == "03" {
		if s.State != TimeWait && s.State != FinWait2 {
			return Socket{}, false, errors.New("no minisock")
		}
		s.Kind, s.TimerLeft = Mini, time.Duration(hexadecimal(head[9]))*10*time.Millisecond
	}

	tail := tailPattern.FindStringSubmatch(head[11])
	isColumn := func(text string, width int) bool {
		return len(text) == width || len(text) > width && text[0] != ' '
	}
	if tail == nil || !isColumn(tail[1], 5) || !isColumn(tail[2], 8) {
		return s, false, nil
	}
	s.Inode, err = strconv.ParseUint(tail[3], 10, 64)
	if s.State == SynRecv && tail[4] == "" {
		s.Kind = Request
	}
	if s.Kind == Full {
		s.Timer = Timer(hexadecimal(head[8]))
		switch s.Timer {
		case TimerRetransmit:
			s.Unanswered = uint8(min(hexadecimal(head[10]), 255))
		case TimerKeepalive, TimerProbe:
			probes, err := strconv.ParseUint(strings.TrimSpace(tail[2]), 10, 64)
			if err != nil {
				return Socket{}, true, err
			}
			s.Unanswered = uint8(min(probes, 255))
		}
	}
	return s, true, err
}

func hexadecimal(digits string) uint64 {
	v, err := strconv.ParseUint(digits, 16, 64)
	if err != nil {
		return math.MaxUint64
	}
	return v
}

func FuzzParseRow(f *testing.F) {
	captures, err := filepath.Glob("testdata/*/net")
	if err != nil {
		f.Fatal(err)
	}
	for _, dir := range captures {
		for table := range NumTables {
			for _, row := range readRows(f, filepath.Dir(dir), table) {
				f.Add([]byte(row), table == TCP6, false)
				f.Add([]byte(row), table == TCP6, true) // as on s390x
			}
		}
	}
	f.Fuzz(func(t *testing.T, row []byte, tcp6, bigEndian bool) {
		table := TCP
		if tcp6 {
			table = TCP6
		}
		checkRow(t, row, table, bigEndian)
	})
}

// checkRow compares parseRow with parseSlowly.
func checkRow(t *testing.T, row []byte, table Table, bigEndian bool) {
	t.Helper()
	var got Socket
	ends, err := parseRow(row, table, bigEndian, &got)
	want, whole, wantErr := parseSlowly(row, table, bigEndian)
	switch {
	case wantErr != nil && err == nil:
		t.Fatalf("%q is read, but %v", row, wantErr)
	case wantErr == nil && whole && err != nil:
		t.Fatalf("%q: %v", row, err)
	case err != nil:
		return
	}
	if !whole {
		got.Inode, got.Kind, got.Timer, got.Unanswered = want.Inode, want.Kind, want.Timer, want.Unanswered
	}
	if got != want {
		t.Fatalf("%q\ngot  %s\nwant %s", row, text(got), text(want))
	}
	if !bytes.Contains(row, ends) || bytes.Count(ends, []byte(":")) != 2 {
		t.Fatalf("%q: the ends are %q", row, ends)
	}
}
