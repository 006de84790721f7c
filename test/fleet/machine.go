package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"timewait_exporter/test/program"
)

// A machine is a socket table. All of its numbers are of distinct things.
type machine struct {
	name                             string
	listeners, clients, destinations int
	// everyState puts each client and destination into every state there is, each
	// client's connections both ways, and destinations on local IPs of their own.
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
	rows int
	port int // the local port of the last outbound row
}

func (t *table) row(local uint32, localPort int, remote uint32, remotePort, state int) {
	// Addresses are printed as the host's integers.
	swap := func(ip uint32) uint32 {
		return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, ip))
	}
	timer, when := 0, 0
	if state == timeWait {
		timer, when = 3, t.rows*37%6000
	}
	row := fmt.Sprintf("%4d: %08X:%04X %08X:%04X %02X 00000000:00000000 %02X:%08X 00000000     0        0 %d 1",
		t.rows, swap(local), localPort, swap(remote), remotePort, state, timer, when, t.rows+1)
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

// scrapeMachines builds the exporter and lets it read a copy of /proc for each machine.
func scrapeMachines(ctx context.Context, o options, dir string) ([]page, error) {
	exporter, err := program.Build(ctx, o.checkout, dir)
	if err != nil {
		return nil, err
	}
	var pages []page
	for i, m := range machines() {
		p, err := m.scrape(ctx, o, exporter, filepath.Join(dir, fmt.Sprint("machine", i)))
		if err != nil {
			return nil, err
		}
		pages = append(pages, p)
	}
	return pages, nil
}

func (m machine) scrape(ctx context.Context, o options, exporter, proc string) (page, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// What is not the table is a quiet host's.
	if err := os.CopyFS(proc, os.DirFS(filepath.Join(o.checkout, "collector/testdata/quiet_host/proc"))); err != nil {
		return page{}, err
	}
	for name, content := range map[string]string{"tcp": m.table().String(), "tcp6": header} {
		if err := os.WriteFile(filepath.Join(proc, "1/net", name), []byte(content), 0o644); err != nil {
			return page{}, err
		}
	}
	address, err := freeAddress()
	if err != nil {
		return page{}, err
	}
	cmd, err := start(ctx, exporter, append([]string{"--log.level=error", "--web.listen-address=" + address, "--path.procfs=" + proc}, o.exporterFlags...)...)
	if err != nil {
		return page{}, err
	}
	defer func() { cancel(); _ = cmd.Wait() }() // it was told to end
	if err := waitReady(ctx, "http://"+address+"/-/ready"); err != nil {
		return page{}, err
	}
	text, err := fetch(ctx, http.MethodGet, "http://"+address+"/metrics", "identity")
	if err != nil {
		return page{}, err
	}
	gzipped, err := fetch(ctx, http.MethodGet, "http://"+address+"/metrics", "gzip")
	if err != nil {
		return page{}, err
	}
	return page{machine: m, text: withQueueLimits(string(text)), gzipped: len(gzipped)}, nil
}

// withQueueLimits adds what the exporter asks sock_diag for, which a copy of /proc
// does not have: the limit of each accept queue, and how full it is.
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
	}
	return text + limits.String()
}

func address(ip uint32) string {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ip))).String()
}
