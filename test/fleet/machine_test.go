package fleet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"timewait_exporter/test/program"
)

// A machine is a socket table. All of its numbers are of distinct things.
type machine struct {
	name                             string
	listeners, clients, destinations int
	// everyState puts each client and destination into every state there is, each
	// client's connections both ways and unanswered, and destinations on local IPs of their own.
	// Listeners are on more local IPs than have series of their own.
	everyState bool
}

const typical = 1 // of machines

func machines() []machine {
	return []machine{
		{name: "fresh: 3 listeners, 1 client, 1 destination", listeners: 3, clients: 1, destinations: 1},
		{name: "typical: 15 listeners, 200 clients, 12 destinations", listeners: 15, clients: 200, destinations: 12},
		{name: "worst: every bound full, every state both ways", listeners: 60, clients: 60, destinations: 60, everyState: true},
	}
}

// States as in include/net/tcp_states.h.
const (
	established = 1
	synSent     = 2
	synRecv     = 3
	timeWait    = 6
	listen      = 10
	firstClient = 0x0a010000 // 10.1.0.0
	firstServer = 0x0a020000
	ownAddress  = 0x0a000001
)

const header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// A table is written row by row, listeners first.
type table struct {
	strings.Builder
	rows       int
	port       int // the local port of the last outbound row
	unanswered int // retransmissions of each connection that is not in TIME_WAIT
}

func (t *table) row(local uint32, localPort int, remote uint32, remotePort, state int) {
	// Addresses are printed as the host's integers.
	swap := func(ip uint32) uint32 {
		return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, ip))
	}
	timer, when, retransmissions := 0, 0, 0
	switch {
	case state == timeWait:
		timer, when = 3, t.rows*37%6000
	case state != listen && t.unanswered > 0:
		timer, retransmissions = 1, t.unanswered
	}
	row := fmt.Sprintf("%4d: %08X:%04X %08X:%04X %02X 00000000:00000000 %02X:%08X %08X     0        0 %d 1",
		t.rows, swap(local), localPort, swap(remote), remotePort, state, timer, when, retransmissions, t.rows+1)
	fmt.Fprintf(t, "%-149s\n", row)
	t.rows++
}

func (t *table) inbound(client uint32, listener, state int) {
	t.row(ownAddress, listener, client, 1024+t.rows%60000, state)
}

func (t *table) outbound(local, remote uint32, remotePort, state int) {
	t.row(local, 32768+t.port%28232, remote, remotePort, state)
	t.port++
}

func (m machine) table() *table {
	t := &table{}
	t.WriteString(header)
	for i := range m.listeners {
		if !m.everyState {
			t.row(0, 8000+i, 0, 0, listen)
			continue
		}
		for j := range 25 {
			t.row(ownAddress+uint32(j), 8000+i, 0, 0, listen)
		}
	}
	if m.everyState {
		t.unanswered = 3
		for i := range m.clients {
			client, local := firstClient+uint32(i), ownAddress+uint32(i)
			for _, state := range []int{established, synRecv, 4, 5, timeWait, 8, 9, 11} {
				t.inbound(client, 8000+i%m.listeners, state)
			}
			for _, state := range []int{established, synSent, 4, 5, timeWait, 8, 9, 11} {
				t.outbound(local, client, 5432, state)
			}
		}
		return t
	}
	// The first client has most connections, as the first destination has.
	for i := range m.clients {
		for j := range 1 + m.clients/(i+1) {
			t.inbound(firstClient+uint32(i), 8000+(i+j)%m.listeners, established)
			t.inbound(firstClient+uint32(i), 8000+(i+j)%m.listeners, timeWait)
		}
	}
	for i := range m.destinations {
		for range 1 + 400/(i+1) {
			t.outbound(ownAddress, firstServer+uint32(i), 5432, timeWait)
		}
		for range 10 {
			t.outbound(ownAddress, firstServer+uint32(i), 5432, established)
		}
	}
	return t
}

// A page is what the exporter says of a machine.
type page struct {
	machine machine
	text    string
	gzipped int
}

func (p page) series() int {
	n := 0
	for line := range strings.Lines(p.text) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

// scrapeMachines lets the exporter read a copy of /proc for each machine.
func scrapeMachines(t testing.TB, exporterFlags ...string) []page {
	t.Helper()
	var pages []page
	for _, m := range machines() {
		pages = append(pages, m.scrape(t, exporterFlags))
	}
	return pages
}

func (m machine) scrape(t testing.TB, exporterFlags []string) page {
	t.Helper()
	proc := t.TempDir()
	// What is not the table is a quiet host's.
	err := os.CopyFS(proc, os.DirFS(checkout+"/collector/testdata/quiet_host/proc"))
	for name, content := range map[string]string{"tcp": m.table().String(), "tcp6": header} {
		err = errors.Join(err, os.WriteFile(filepath.Join(proc, "1/net", name), []byte(content), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	exporter := program.Start(t, exec.Command(program.Path(), append([]string{"--web.listen-address=127.0.0.1:0", "--path.procfs=" + proc}, exporterFlags...)...))
	url := "http://" + exporter.Address(t) + "/metrics"
	text := program.Get(t, url)
	// A client that does not ask for gzip itself leaves the body as it came.
	_, gzipped := program.Fetch(t, &http.Client{Transport: gzipOnly{}}, url)
	exporter.Stop(t)
	return page{machine: m, text: withQueueLimits(text), gzipped: len(gzipped)}
}

// gzipOnly asks for gzip and does not undo it.
type gzipOnly struct{}

func (gzipOnly) RoundTrip(request *http.Request) (*http.Response, error) {
	request.Header.Set("Accept-Encoding", "gzip")
	return http.DefaultTransport.RoundTrip(request)
}

// withQueueLimits adds what the exporter asks sock_diag for, which a copy of /proc
// does not have: the limit of each accept queue, and how full it and the SYN queue are.
func withQueueLimits(text string) string {
	const queue = "tcp_listener_accept_queue"
	var limits strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, queue+"{") {
			labels := line[len(queue):strings.LastIndexByte(line, ' ')]
			fmt.Fprintf(&limits, "tcp_listener_accept_queue_limit%s 4096\n", labels)
			fmt.Fprintf(&limits, "tcp_listener_accept_queue_fill_ratio%s 0\n", labels)
			fmt.Fprintf(&limits, "tcp_listener_full_sockets%s 0\n", labels)
		}
		port, _, found := strings.Cut(line, `,state="syn_recv"}`)
		if port, listens := strings.CutPrefix(port, "tcp_listener_connections"); found && listens && !strings.Contains(port, `"other"`) {
			fmt.Fprintf(&limits, "tcp_listener_syn_queue_fill_ratio%s} 0\n", port)
		}
	}
	return text + limits.String()
}

func address(ip uint32) string {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ip))).String()
}
