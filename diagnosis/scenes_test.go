package diagnosis

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

// go test ./diagnosis -update writes what the tests compare with: read the difference before
// it is kept.
var update = flag.Bool("update", false, "write testdata and docs/report.md anew")

// rows are those of a table, listeners first.
type rows []tcptable.Socket

func addr(ip netip.Addr) tcptable.Addr { return ip.As16() }

// listen adds a listener with so many connections in its accept queue.
func (r rows) listen(at string, queue, backlog uint32) rows {
	to := netip.MustParseAddrPort(at)
	s := tcptable.Socket{Local: tcptable.Endpoint{Addr: addr(to.Addr()), Port: to.Port()}, State: tcptable.Listen, RxQueue: queue, Backlog: backlog, Inode: 1}
	if to.Addr().Is6() {
		s.Table = tcptable.TCP6
	}
	return append(r, s)
}

// connect adds n connections in a state, all between these ends; port 0 is one after the other
// from 32768 on. TIME_WAITs are as old as they are when one comes after the other at the same
// pace.
func (r rows) connect(n int, state tcptable.State, local, remote string) rows {
	near, far := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
	for i := range n {
		s := tcptable.Socket{
			Local:  tcptable.Endpoint{Addr: addr(near.Addr()), Port: near.Port()},
			Remote: tcptable.Endpoint{Addr: addr(far.Addr()), Port: far.Port()},
			State:  state, Inode: uint64(1000 + i),
		}
		for _, end := range []*tcptable.Endpoint{&s.Local, &s.Remote} {
			if end.Port == 0 {
				end.Port = uint16(32768 + i)
			}
		}
		switch state {
		case tcptable.TimeWait:
			s.Kind, s.Inode, s.TimerLeft = tcptable.Mini, 0, time.Duration(i)*60*time.Second/time.Duration(n)
		case tcptable.FinWait2:
			s.Kind, s.Inode = tcptable.Mini, 0
		case tcptable.SynRecv:
			s.Kind, s.Inode = tcptable.Request, 0
		case tcptable.LastAck, tcptable.FinWait1:
			s.Inode = 0
		}
		r = append(r, s)
	}
	return r
}

// each changes the rows that were added by the function before it.
func (r rows) each(change func(i int, s *tcptable.Socket), add func(rows) rows) rows {
	n := len(r)
	r = add(r)
	for i := range r[n:] {
		change(i, &r[n+i])
	}
	return r
}

// unaccepted has no program accept the connections.
func unaccepted(_ int, s *tcptable.Socket) { s.Inode = 0 }

// fresh has TIME_WAITs begin within the last 20 s.
func fresh(_ int, s *tcptable.Socket) { s.TimerLeft = 40*time.Second + s.TimerLeft/3 }

// usual are the limits of a machine that is well.
func usual() kernelstat.Numbers {
	return kernelstat.Numbers{
		kernelstat.Sockstat("tw"): 0, timeWaitLimit: 131072,
		kernelstat.Sockstat("orphan"): 3, orphanLimit: 131072,
		kernelstat.Sockstat("mem"): 120, kernelstat.SysctlPlace("net.ipv4.tcp_mem", 0, 3): 187000,
		kernelstat.SysctlPlace("net.ipv4.tcp_mem", 1, 3): 250000, kernelstat.SysctlPlace("net.ipv4.tcp_mem", 2, 3): 375000,
		kernelstat.SysctlOr("sunrpc.min_resvport", 665): 665, kernelstat.SysctlOr("sunrpc.max_resvport", 1023): 1023,
		kernelstat.Conntrack("entries"): 300, kernelstat.Sysctl("net.netfilter.nf_conntrack_max"): 262144,
		kernelstat.SysctlPlace("fs.file-nr", 0, 3): 4000, kernelstat.SysctlPlace("fs.file-nr", 2, 3): 800000,
	}
}

// scene is a machine and what is to be said of it.
type scene struct {
	name    string
	verdict Level
	code    string // of the first finding
	subject string
	rows    rows
	kernel  kernelstat.Numbers // beside the usual ones
	pool    func(*kernelstat.Pool)
	listen  uint16
	owners  *snapshot.Owners
	kind    string // of the input; "" is live
	watch   *watch
}

// watch is what was seen over 10 s: closes, and what the table held when they began.
type watch struct {
	closes snapshot.Closes
	before rows
	err    error
	moved  kernelstat.Numbers // counters since
}

// ownedBy has one owner of outbound connections and of the listener of port 8080.
func ownedBy(name, program string, files, limit uint64, closeWaits snapshot.CloseWaits, d snapshot.Direction) *snapshot.Owners {
	o := snapshot.OwnerSockets{Name: name, Program: program, CloseWaits: closeWaits, Worst: &owner.Process{PID: 2211, Program: program, OpenFiles: files, MaxFiles: limit}}
	o.Connections[d][tcptable.CloseWait] = closeWaits.Sockets
	return &snapshot.Owners{
		All:       []snapshot.OwnerSockets{o},
		Listeners: []snapshot.ListenerOwner{{LocalIP: netip.IPv4Unspecified(), Port: 8080, Name: name}},
		Destinations: []snapshot.DestinationOwners{{
			LocalIP: netip.MustParseAddr("10.0.0.1"), RemoteIP: netip.MustParseAddr("192.0.2.20"), RemotePort: 5432,
			Live: []snapshot.OwnerCount{{Name: name, Sockets: 12}}, Gone: []snapshot.OwnerCount{{Name: name, Sockets: 118}, {Name: "cron.service", Sockets: 2}},
		}},
	}
}

const (
	web      = "192.0.2.10:80"
	database = "192.0.2.20:5432"
	us       = "10.0.0.1:0"
)

var client = "198.51.100.7:0"

func scenes() []scene {
	proxy := rows{}.listen("0.0.0.0:80", 0, 511)
	for i := range 40 {
		proxy = proxy.each(func(n int, s *tcptable.Socket) { s.Local.Port = uint16(32768 + 650*i + n) }, func(r rows) rows {
			return r.connect(650, tcptable.Established, us, fmt.Sprintf("192.0.2.%d:8080", i+100))
		})
	}
	return []scene{
		{
			name: "nothing_wrong", verdict: OK,
			rows: rows{}.listen("0.0.0.0:22", 0, 128).connect(2, tcptable.Established, "10.0.0.1:22", client),
		},
		{
			name: "watched_queue_overflows", verdict: Warning, code: "TCPListenQueueOverflowing",
			rows:  rows{}.listen("0.0.0.0:8080", 0, 128),
			watch: &watch{closes: snapshot.Closes{Took: 10 * time.Second, Looks: 90}, before: rows{}.listen("0.0.0.0:8080", 0, 128), moved: kernelstat.Numbers{kernelstat.Netstat("ListenOverflows"): 42, kernelstat.Netstat("ListenDrops"): 42}},
		},
		{
			name: "ports_by_time_wait", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: database,
			rows: rows{}.connect(27100, tcptable.TimeWait, us, database).each(func(i int, s *tcptable.Socket) { s.Local.Port = uint16(60000 + i) }, func(r rows) rows {
				return r.connect(12, tcptable.Established, us, database)
			}),
			owners: ownedBy("payments.service", "java", 130, 65536, snapshot.CloseWaits{}, snapshot.Outbound),
		},
		{
			name: "ports_gone_by_established", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: database,
			rows: rows{}.connect(28232, tcptable.Established, us, database),
		},
		{
			name: "ports_by_close_wait", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: web,
			rows: rows{}.connect(25000, tcptable.CloseWait, us, web),
		},
		{
			name: "ports_by_both", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: database,
			rows: rows{}.connect(15000, tcptable.TimeWait, us, database).each(func(i int, s *tcptable.Socket) { s.Local.Port = uint16(47768 + i) }, func(r rows) rows {
				return r.connect(12000, tcptable.Established, us, database)
			}),
		},
		{
			name: "ports_by_fin_wait2", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: web,
			rows: rows{}.connect(26000, tcptable.FinWait2, us, web),
		},
		{
			name: "ports_by_syn_sent", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: web,
			rows: rows{}.connect(26000, tcptable.SynSent, us, web),
		},
		{
			name: "ports_predicted", verdict: Critical, code: "TCPEphemeralPortsExhaustionPredicted", subject: database,
			rows: rows{}.each(fresh, func(r rows) rows { return r.connect(11000, tcptable.TimeWait, us, database) }),
		},
		{
			name: "ports_half_used", verdict: Warning, code: "TCPEphemeralPortsHalfUsed", subject: database,
			rows: rows{}.connect(16000, tcptable.TimeWait, us, database),
		},
		{
			name: "ports_held_for_all", verdict: Critical, code: "TCPEphemeralPortsHeldForAll",
			rows: rows{}.each(func(i int, s *tcptable.Socket) {
				s.Local.Port = uint16(40000 + i)
				s.Kind = tcptable.Bound
				s.State = tcptable.Close
			}, func(r rows) rows {
				return r.connect(100, tcptable.Close, us, "0.0.0.0:0")
			}),
			pool: smallRange,
		},
		{
			name: "bind_ports_of_a_proxy", verdict: Critical, code: "TCPBindPortsNearExhaustion",
			rows: rows{}.listen("0.0.0.0:40000", 0, 128).each(func(i int, s *tcptable.Socket) {
				s.Local.Port, s.Remote.Port = uint16(40001+i), uint16(8000+i%30)
			}, func(r rows) rows { return r.connect(95, tcptable.Established, us, web) }),
			pool: smallRange,
		},
		{
			name: "reuse_not_working", verdict: Critical, code: "TCPTimeWaitReuseNotWorking", subject: database,
			rows: rows{}.connect(28000, tcptable.TimeWait, us, database),
			pool: func(p *kernelstat.Pool) { p.ReuseMode = 1 },
		},
		{
			name: "close_wait_leak_of_a_server", verdict: Warning, code: "TCPCloseWaitLeak", subject: "198.51.100.7",
			rows: rows{}.listen("0.0.0.0:8080", 0, 128).connect(360, tcptable.CloseWait, "10.0.0.1:8080", client).
				connect(40, tcptable.Established, "10.0.0.1:8080", "198.51.100.9:0"),
			owners: ownedBy("payments.service", "java", 922, 4096, snapshot.CloseWaits{Sockets: 360, Oldest: 5430 * time.Second}, snapshot.Inbound),
		},
		{
			name: "process_files", verdict: Critical, code: "TCPProcessFilesNearLimit", subject: "self",
			owners: ownedBy("payments.service", "java", 1000, 1024, snapshot.CloseWaits{}, snapshot.Inbound),
		},
		{
			name: "close_wait_leak_and_process_files", verdict: Critical, code: "TCPCloseWaitLeak", subject: "192.0.2.10",
			rows:   rows{}.connect(900, tcptable.CloseWait, us, web).connect(10, tcptable.Established, us, database),
			owners: ownedBy("payments.service", "java", 1000, 1024, snapshot.CloseWaits{Sockets: 900, Oldest: 3 * time.Hour}, snapshot.Outbound),
		},
		{
			name: "windows_ports", verdict: Critical, code: "WindowsDynamicPortsNearExhaustion", subject: database, kind: "windows",
			rows: rows{}.each(func(i int, s *tcptable.Socket) { s.Local.Port = uint16(49152 + i) }, func(r rows) rows { return r.connect(16000, tcptable.TimeWait, us, database) }),
			pool: func(p *kernelstat.Pool) { *p = pool(49152, 65535) },
		},
		{
			name: "close_wait_leak_of_a_client", verdict: Warning, code: "TCPCloseWaitLeak", subject: "192.0.2.10",
			rows: rows{}.connect(300, tcptable.CloseWait, us, web).connect(100, tcptable.Established, us, database),
		},
		{
			name: "close_wait_leak_and_file_handles", verdict: Critical, code: "TCPCloseWaitLeak", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:8080", 0, 128).connect(9000, tcptable.CloseWait, "10.0.0.1:8080", client),
			kernel: kernelstat.Numbers{kernelstat.SysctlPlace("fs.file-nr", 0, 3): 9600, kernelstat.SysctlPlace("fs.file-nr", 2, 3): 10000},
		},
		{
			name: "accept_queue_full", verdict: Critical, code: "TCPListenQueueOverflowing", subject: "0.0.0.0:8080",
			rows: rows{}.listen("0.0.0.0:8080", 129, 128).each(unaccepted, func(r rows) rows {
				return r.connect(100, tcptable.Established, "10.0.0.1:8080", client).connect(29, tcptable.CloseWait, "10.0.0.1:8080", "198.51.100.9:0")
			}).connect(120, tcptable.SynRecv, "10.0.0.1:8080", "198.51.100.11:0"),
		},
		{
			name: "accept_queue_of_one_full", verdict: Critical, code: "TCPListenQueueOverflowing", subject: "[::]:8080",
			rows: rows{}.listen("[::]:8080", 4, 3).listen("[::]:8080", 0, 3).listen("[::]:8080", 0, 3).listen("[::]:8080", 0, 3),
		},
		{
			name: "accept_queue_not_drained", verdict: Warning, code: "TCPAcceptQueueNotDrained", subject: "0.0.0.0:8080",
			rows: rows{}.listen("0.0.0.0:8080", 40, 511).each(unaccepted, func(r rows) rows {
				return r.connect(40, tcptable.CloseWait, "10.0.0.1:8080", client)
			}),
		},
		{
			name: "syn_flood", verdict: Warning, code: "TCPSynFlood", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:443", 0, 128).connect(128, tcptable.SynRecv, "10.0.0.1:443", client),
			kernel: kernelstat.Numbers{kernelstat.Netstat("SyncookiesSent"): 91000},
		},
		{
			name: "syn_queue_full", verdict: Critical, code: "TCPSynQueueFull", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:443", 0, 4096).connect(49, tcptable.SynRecv, "10.0.0.1:443", client),
			kernel: kernelstat.Numbers{kernelstat.Sysctl("net.ipv4.tcp_syncookies"): 0},
		},
		{
			name: "peer_not_answering", verdict: Critical, code: "TCPPeerNotAnswering", subject: database,
			rows: rows{}.each(func(_ int, s *tcptable.Socket) { s.Unanswered = 5 }, func(r rows) rows {
				return r.connect(40, tcptable.Established, us, database)
			}),
		},
		{
			name: "privileged_ports", verdict: Critical, code: "TCPPrivilegedPortsNearExhaustion", subject: "self",
			rows: rows{}.each(func(i int, s *tcptable.Socket) { s.Local.Port = uint16(665 + i) }, func(r rows) rows {
				return r.connect(359, tcptable.TimeWait, us, "192.0.2.30:2049")
			}),
		},
		{
			name: "conntrack", verdict: Warning, code: "ConntrackNearLimit", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.Conntrack("entries"): 250000, kernelstat.Conntrack("insert_failed"): 81},
		},
		{
			name: "one_remote_dominates", verdict: Warning, code: "TCPOneRemoteDominates", subject: "198.51.100.7",
			rows: rows{}.listen("0.0.0.0:443", 0, 128).connect(3000, tcptable.Established, "10.0.0.1:443", client).
				connect(300, tcptable.Established, "10.0.0.1:443", "198.51.100.9:0").connect(300, tcptable.Established, "10.0.0.1:443", "198.51.100.11:0"),
		},
		{
			name: "time_wait_of_one_remote", verdict: Warning, code: "TCPTimeWaitOneRemote", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:80", 0, 128).connect(20000, tcptable.TimeWait, "10.0.0.1:80", client).connect(500, tcptable.TimeWait, "10.0.0.1:80", "198.51.100.9:0"),
			kernel: kernelstat.Numbers{kernelstat.Sockstat("tw"): 20500},
		},
		{
			name: "time_wait_accumulating", verdict: Warning, code: "TCPTimeWaitAccumulating", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:80", 0, 128).connect(3000, tcptable.TimeWait, "10.0.0.1:80", client),
			kernel: kernelstat.Numbers{kernelstat.Sockstat("tw"): 3000, timeWaitLimit: 5000},
		},
		{
			name: "time_wait_near_limit", verdict: Warning, code: "TCPTimeWaitNearLimit", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:80", 0, 128).connect(3000, tcptable.TimeWait, "10.0.0.1:80", client),
			kernel: kernelstat.Numbers{kernelstat.Sockstat("tw"): 3000, timeWaitLimit: 3100},
		},
		{
			name: "time_wait_overflowing", verdict: Warning, code: "TCPTimeWaitOverflowing", subject: "198.51.100.7",
			rows:   rows{}.listen("0.0.0.0:80", 0, 128).connect(3000, tcptable.TimeWait, "10.0.0.1:80", client),
			kernel: kernelstat.Numbers{kernelstat.Sockstat("tw"): 3000, timeWaitLimit: 3000, kernelstat.Netstat("TCPTimeWaitOverflow"): 512},
		},
		{
			name: "time_wait_recycle", verdict: Warning, code: "TCPTimeWaitRecycleEnabled", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.Sysctl("net.ipv4.tcp_tw_recycle"): 1},
		},
		{
			name: "time_wait_harmless", verdict: Info, code: "TCPTimeWaitHarmless", subject: "self",
			rows: rows{}.listen("0.0.0.0:80", 0, 128).connect(5000, tcptable.TimeWait, "10.0.0.1:80", client).connect(700, tcptable.TimeWait, us, database),
		},
		{
			name: "fin_wait2", verdict: Warning, code: "TCPFinWait2Accumulating", subject: "198.51.100.7",
			rows: rows{}.listen("0.0.0.0:80", 0, 128).connect(14000, tcptable.FinWait2, "10.0.0.1:80", client),
		},
		{
			name: "half_closed", verdict: Warning, code: "TCPHalfClosedLeak", subject: "192.0.2.10",
			rows: rows{}.each(func(i int, s *tcptable.Socket) { s.Kind, s.Inode = tcptable.Full, uint64(1000+i) }, func(r rows) rows {
				return r.connect(300, tcptable.FinWait2, us, web)
			}).connect(100, tcptable.Established, us, database),
		},
		{
			name: "last_ack", verdict: Warning, code: "TCPLastAckAccumulating", subject: "198.51.100.7",
			rows: rows{}.listen("0.0.0.0:80", 0, 128).connect(14000, tcptable.LastAck, "10.0.0.1:80", client),
		},
		{
			name: "orphans", verdict: Warning, code: "TCPOrphansNearLimit", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.Sockstat("orphan"): 5000, orphanLimit: 8192},
		},
		{
			name: "memory_pressure", verdict: Warning, code: "TCPMemoryPressure", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.Sockstat("mem"): 300000},
		},
		{
			name: "memory_gone", verdict: Critical, code: "TCPConnectionsAbortedForMemory", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.Sockstat("mem"): 375000},
		},
		{
			name: "file_handles", verdict: Critical, code: "FileHandlesNearLimit", subject: "self",
			kernel: kernelstat.Numbers{kernelstat.SysctlPlace("fs.file-nr", 0, 3): 9600, kernelstat.SysctlPlace("fs.file-nr", 2, 3): 10000},
		},
		{
			name: "listener_inside_range", verdict: Info, code: "TCPListenersInsidePortRange", subject: "0.0.0.0:50051",
			rows: rows{}.listen("0.0.0.0:50051", 0, 128).listen("0.0.0.0:22", 0, 128),
		},
		{
			name: "listen_port_taken", verdict: Critical, code: "TCPListenPortTaken", subject: "0.0.0.0:8080", listen: 8080,
			rows: rows{}.listen("0.0.0.0:8080", 0, 128),
		},
		{
			name: "listen_port_of_a_client", verdict: Critical, code: "TCPListenPortTaken", subject: "0.0.0.0:32768", listen: 32768,
			rows: rows{}.connect(1, tcptable.Established, us, database),
		},
		{
			name: "listen_port_free", verdict: Info, code: "TCPListenPortFree", subject: "0.0.0.0:8080", listen: 8080,
			rows: rows{}.connect(5, tcptable.TimeWait, "10.0.0.1:8080", client),
		},
		{
			name: "watched_connection_per_request", verdict: Info, code: "TCPConnectionsNotReused", subject: database,
			rows:   rows{}.connect(610, tcptable.TimeWait, us, database).connect(2, tcptable.Established, us, database),
			owners: ownedBy("payments.service", "java", 130, 65536, snapshot.CloseWaits{}, snapshot.Outbound),
			watch:  closed(10, 1, 0.9, 3),
		},
		{
			name: "watched_open_files_bind_first", verdict: Info, code: "TCPConnectionsNotReused", subject: database,
			rows:   rows{}.connect(6000, tcptable.TimeWait, us, database).connect(600, tcptable.Established, us, database),
			owners: ownedBy("payments.service", "java", 700, 1024, snapshot.CloseWaits{}, snapshot.Outbound),
			watch:  closed(100, 1, 600, 640),
		},
		{
			name: "watched_connection_per_request_often", verdict: Warning, code: "TCPConnectionsNotReused", subject: database,
			rows:  rows{}.each(fresh, func(r rows) rows { return r.connect(3000, tcptable.TimeWait, us, database) }),
			watch: &watch{closes: snapshot.Closes{Took: 10 * time.Second, All: 3000, Lost: 7, Looks: 90, Destinations: closed(300, 2, 1.5, 6).closes.Destinations}},
		},
		{
			name: "watched_pool_of_connections", verdict: OK,
			rows:  rows{}.connect(20, tcptable.Established, us, database),
			watch: &watch{closes: snapshot.Closes{Took: 10 * time.Second, Looks: 90}, before: rows{}.connect(20, tcptable.Established, us, database)},
		},
		{
			name: "watched_leak_of_established", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: database,
			rows:  rows{}.connect(25000, tcptable.Established, us, database),
			watch: &watch{before: rows{}.connect(24000, tcptable.Established, us, database), closes: snapshot.Closes{Took: 10 * time.Second, Looks: 90}},
		},
		{
			name: "watched_ports_by_time_wait", verdict: Critical, code: "TCPEphemeralPortsNearExhaustion", subject: database,
			rows:   rows{}.connect(27100, tcptable.TimeWait, us, database),
			owners: ownedBy("payments.service", "java", 130, 65536, snapshot.CloseWaits{}, snapshot.Outbound),
			watch:  closed(444, 1, 9.4, 12),
		},
		{
			name: "watched_close_wait_leak", verdict: Warning, code: "TCPCloseWaitLeak", subject: "198.51.100.7",
			rows:  rows{}.listen("0.0.0.0:8080", 0, 128).connect(900, tcptable.CloseWait, "10.0.0.1:8080", client),
			watch: &watch{before: rows{}.listen("0.0.0.0:8080", 0, 128).connect(880, tcptable.CloseWait, "10.0.0.1:8080", client), err: errors.New("the kernel tells no closes")},
		},
		{name: "proxy_that_is_well", verdict: Warning, code: "TCPBindPortsNearExhaustion", rows: proxy},
	}
}

// closed is 10 s of closes toward the database, so many a second with so many pairs of request
// and response each, by this host first.
func closed(perSecond, pairs uint64, mean float64, most uint64) *watch {
	toward := snapshot.DestinationClosing{LocalIP: netip.MustParseAddr("10.0.0.1"), RemoteIP: netip.MustParseAddr("192.0.2.20"), RemotePort: 5432}
	toward.Closing = snapshot.Closing{Closes: 10 * perSecond, Pairs: 10 * perSecond * pairs, FirstPerSecond: float64(perSecond), MeanOpen: mean, MostOpen: most}
	return &watch{closes: snapshot.Closes{Took: 10 * time.Second, All: 10 * perSecond, Looks: 90, Destinations: []snapshot.DestinationClosing{toward}}}
}

func smallRange(p *kernelstat.Pool) { *p = pool(40000, 40099) }

func pool(low, high int) kernelstat.Pool {
	p := kernelstat.Pool{Low: low, High: high, TimeWait: kernelstat.TimeWaitLength, Timestamps: true, ReuseDelay: time.Second}
	for port := low; port <= high; port++ {
		p.Ports.Add(uint16(port))
	}
	p.Size = p.Ports.Len()
	return p
}

// facts counts the scene's rows as a scrape does.
func (s *scene) facts(t *testing.T) Facts {
	t.Helper()
	p := pool(32768, 60999)
	if s.pool != nil {
		s.pool(&p)
	}
	all := func(yield func(tcptable.Socket, error) bool) {
		for _, row := range s.rows {
			if !yield(row, nil) {
				return
			}
		}
	}
	synLimit := uint64(math.MaxUint64)
	if cookies, ok := s.kernel[kernelstat.Sysctl("net.ipv4.tcp_syncookies")]; ok && cookies == 0 {
		synLimit = 49
	}
	listening, err := tally.CountListening(func(yield func(tcptable.Socket, error) bool) {
		for _, row := range s.rows {
			if row.State == tcptable.Listen && !yield(row, nil) {
				return
			}
		}
	}, synLimit)
	if err != nil {
		t.Fatal(err)
	}
	counted := tally.New(32, 128)
	if err := counted.Count(all, &p, listening); err != nil {
		t.Fatal(err)
	}
	numbers := usual()
	maps.Copy(numbers, s.kernel)
	node, ns := make(kernelstat.Numbers), make(kernelstat.Numbers)
	for n, value := range numbers {
		if n.OfNode() {
			node[n] = value
		} else {
			ns[n] = value
		}
	}
	facts := Facts{
		Host: "web1", Taken: time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC), Input: Input{Kind: cmp.Or(s.kind, "live")},
		Node: &snapshot.Node{Kernel: node},
		Namespaces: []*snapshot.Namespace{{
			Name: "self", Sysctls: snapshot.SysctlsSame, Pool: &p, Kernel: ns, Owners: s.owners,
			Sockets: counted.Snapshot(tally.Limits{Remotes: 50, Destinations: 20, Listeners: 50, Locals: 20}),
		}},
	}
	if s.watch != nil {
		before := (&scene{rows: s.watch.before}).facts(t)
		facts.Watch = &snapshot.Watch{Took: 10 * time.Second, Before: before.Namespaces[0], Closes: &s.watch.closes, Err: s.watch.err}
		for _, name := range []string{"ListenOverflows", "ListenDrops", "TCPTimeWaitOverflow", "TCPAbortOnMemory", "TCPAbortOnTimeout"} {
			n := kernelstat.Netstat(name)
			facts.Watch.Before.Kernel[n] = 1000
			facts.Namespaces[0].Kernel[n] = 1000 + s.watch.moved[n]
		}
		if s.watch.err != nil {
			facts.Watch.Closes = nil
		}
	}
	if s.listen != 0 {
		facts.Listen = &Listen{Port: s.listen, Programs: map[uint64]string{1: "java (pid 2211)"}}
		for _, row := range s.rows {
			if row.Local.Port == s.listen {
				facts.Listen.Holders = append(facts.Listen.Holders, row)
			}
		}
	}
	return facts
}

// TestScenes compares what is said of each scene with testdata, and holds it to what is
// promised of every report.
func TestScenes(t *testing.T) {
	for _, s := range scenes() {
		t.Run(s.name, func(t *testing.T) {
			r := Diagnose(s.facts(t))
			first := &Finding{}
			if len(r.Findings) > 0 {
				first = r.Findings[0]
			}
			if r.Verdict != s.verdict || first.Code != s.code || s.subject != "" && first.Subject() != s.subject {
				t.Errorf("%s %s %s, want %s %s %s", r.Verdict, first.Code, first.Subject(), s.verdict, s.code, s.subject)
			}
			serious := 0
			for _, f := range r.Findings {
				if f.Level != Info {
					serious++
				}
				if f.Title == "" || f.Cause == "" || len(f.Evidence) == 0 || !slices.ContainsFunc(Codes(), func(c Code) bool { return c.Name == f.Code }) {
					t.Errorf("not a whole finding: %+v", f)
				}
			}
			if serious > 1 {
				t.Errorf("%d findings of one cause", serious)
			}

			var text bytes.Buffer
			if err := r.WriteText(&text, false); err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(text.String(), "\n") {
				if i > 0 && len([]rune(line)) > width || strings.HasSuffix(line, " ") {
					t.Errorf("line %d: %q", i, line)
				}
			}
			compare(t, "testdata/"+s.name+".txt", text.Bytes())
			encoded, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, "testdata/"+s.name+".json", append(encoded, '\n'))
		})
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("not as %s:\n%s", file, got)
	}
}

// TestNothingChecked has nothing to say, which is no health.
func TestNothingChecked(t *testing.T) {
	ns := &snapshot.Namespace{Name: "self", Sysctls: snapshot.SysctlsNone, Parts: []snapshot.Part{{Name: "sockets", Err: errors.New("no table")}}}
	r := Diagnose(Facts{Namespaces: []*snapshot.Namespace{ns}, Node: &snapshot.Node{}})
	if r.Verdict != Unknown || r.Verdict.ExitCode() != 3 || !strings.Contains(r.Summary, "no table") {
		t.Errorf("%s, exit %d: %s", r.Verdict, r.Verdict.ExitCode(), r.Summary)
	}
}

// TestSeveralNamespaces says of which of them something is true, and once what is true of many.
func TestSeveralNamespaces(t *testing.T) {
	facts := (&scene{}).facts(t)
	for _, name := range []string{"pod-1", "pod-2", "pod-3"} {
		ns := *facts.Namespaces[0]
		sockets := *ns.Sockets
		sockets.HeldPorts = nil
		ns.Name, ns.Sockets, ns.Sysctls = name, &sockets, snapshot.SysctlsAssumed
		facts.Namespaces = append(facts.Namespaces, &ns)
	}
	facts.Namespaces[3].Sysctls = snapshot.SysctlsUnknown
	r := Diagnose(facts)
	for check, want := range map[string]int{
		"4 network namespaces: growth": 1, "3 network namespaces: TCPPrivilegedPortsNearExhaustion": 1, "2 network namespaces: sysctls": 1, "pod-3: sysctls": 1,
	} {
		got := 0
		for _, n := range r.NotChecked {
			if n.Check == check {
				got++
			}
		}
		if got != want {
			t.Errorf("%d times %q in %v", got, check, r.NotChecked)
		}
	}
	for _, name := range []string{"self", "pod-1", "pod-2", "pod-3"} {
		if !slices.ContainsFunc(r.Limits, func(e Evidence) bool { return e.Netns == name }) {
			t.Errorf("no limit of %s: %v", name, r.Limits)
		}
	}
}

// TestSuppress leaves out what is named, by code or by subject, and says so.
func TestSuppress(t *testing.T) {
	for pattern, want := range map[string]int{
		"TCPCloseWaitLeak": 0, "TCPCloseWaitLeak=198.51.100.7": 0, "TCP*=198.51.*": 0, "*": 0,
		"TCPCloseWait": 1, "TCPCloseWaitLeak=198.51.100.70": 1, "TCPCloseWaitLeak=198x51*": 1,
	} {
		for _, s := range scenes() {
			if s.name != "close_wait_leak_of_a_server" {
				continue
			}
			r := Diagnose(s.facts(t), pattern)
			if len(r.Findings) != want || (want == 0) != slices.ContainsFunc(r.NotChecked, func(n NotChecked) bool { return n.Reason == "suppressed" }) {
				t.Errorf("%s leaves %d findings, not checked: %v", pattern, len(r.Findings), r.NotChecked)
			}
		}
	}
}

// TestCapacity is how many connections a second can be opened and closed, and which limit
// binds.
func TestCapacity(t *testing.T) {
	for _, v := range []struct {
		name        string
		pool        func(*kernelstat.Pool)
		timeWaits   uint64 // net.ipv4.tcp_max_tw_buckets
		limit       string
		rate, slow  float64
		nowIsKnown  bool
		destination string
		natPorts    int
	}{
		{"as it is", func(*kernelstat.Pool) {}, 131072, "pool", 28232. / 61, 28232. / 122, true, database, 0},
		{"the range alone", func(p *kernelstat.Pool) { *p = pool(1024, 65535) }, 131072, "pool", 64512. / 61, 64512. / 122, true, database, 0},
		{"with reuse", func(p *kernelstat.Pool) { *p = pool(1024, 65535); p.ReuseMode = 1 }, 131072, "reuse", 64512, 32256, false, database, 0},
		{"without timestamps", func(p *kernelstat.Pool) { p.ReuseMode, p.Timestamps = 1, false }, 131072, "pool", 28232. / 61, 28232. / 122, true, database, 0},
		{"loopback alone", func(p *kernelstat.Pool) { p.ReuseMode = 2 }, 131072, "pool", 28232. / 61, 28232. / 122, true, database, 0},
		{"loopback", func(p *kernelstat.Pool) { p.ReuseMode = 2 }, 131072, "reuse", 28232, 14116, false, "127.0.0.1:5432", 0},
		{"few TIME_WAITs", func(*kernelstat.Pool) {}, 6100, "tw_buckets", 100, 100, true, database, 0},
		{"behind a NAT", func(*kernelstat.Pool) {}, 131072, "nat", 100, 100, true, database, 12000},
	} {
		s := scene{rows: rows{}.connect(61, tcptable.TimeWait, us, v.destination), pool: v.pool, kernel: kernelstat.Numbers{timeWaitLimit: v.timeWaits}}
		facts := s.facts(t)
		facts.NATPorts = v.natPorts
		c := Diagnose(facts).Capacity
		if len(c) != 1 || c[0].Limit != v.limit || c[0].ClosesPerSecond != v.rate || c[0].SlowFromPerSecond != v.slow || (c[0].NowPerSecond != nil) != v.nowIsKnown {
			t.Errorf("%s: %+v", v.name, c)
		}
	}
}
