package capture

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/tcptable"
)

// ssStates are the states as ss writes them (sstate_name in misc/ss.c of iproute2).
var ssStates = map[string]tcptable.State{
	"ESTAB": tcptable.Established, "SYN-SENT": tcptable.SynSent, "SYN-RECV": tcptable.SynRecv, "FIN-WAIT-1": tcptable.FinWait1,
	"FIN-WAIT-2": tcptable.FinWait2, "TIME-WAIT": tcptable.TimeWait, "UNCONN": tcptable.Close, "CLOSE-WAIT": tcptable.CloseWait,
	"LAST-ACK": tcptable.LastAck, "LISTEN": tcptable.Listen, "CLOSING": tcptable.Closing,
}

// isNetid reports whether a word is one of the column Netid, which ss shows if it was asked for
// more than TCP.
func isNetid(word string) bool {
	return slices.Contains([]string{
		"tcp", "udp", "mptcp", "sctp", "dccp", "raw", "icmp6", "u_str", "u_dgr", "u_seq", "p_raw", "p_dgr", "nl", "tipc", "v_str", "v_dgr", "xdp", "rds", "unix", "???",
	}, word)
}

func isSSHeader(fields []string) bool {
	if fields[0] == "Netid" {
		fields = fields[1:]
	}
	return len(fields) > 3 && fields[0] == "State" && fields[1] == "Recv-Q" && fields[2] == "Send-Q"
}

// parseSS reads the output of ss:
//
//	State  Recv-Q Send-Q Local Address:Port Peer Address:Port Process
//	ESTAB  0      0          10.0.0.1:33012     10.0.0.9:80    users:(("java",pid=2211,fd=87)) timer:(keepalive,2.1sec,0) uid:0 ino:64 sk:1
//		 cubic wscale:7,7 rto:204 rtt:0.02/0.01 lastsnd:1512 lastrcv:1512 lastack:1512
//
// Of a listener Recv-Q is the accept queue, and Send-Q its limit. A line that begins with a
// blank is about the socket before it.
func parseSS(l *lines, k *known, yield func(*row) error) error {
	p := ssParser{lines: l, known: k, foreign: foreign{name: l.name, how: "LC_ALL=C ss -tan"}, devices: make(devices)}
	k.backlogs = true
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = p.line(line, yield)
		}
		if err != nil {
			return err
		}
	}
	if len(p.foreign.words) > 0 {
		return &p.foreign
	}
	return p.flush(yield)
}

type ssParser struct {
	*lines
	*known
	foreign foreign
	devices devices
	headers int
	rows    int
	row     row
	open    bool // row is to be yielded, once its last line has been read
	skips   bool // lines that begin with a blank are about what is no TCP socket
}

func (p *ssParser) flush(yield func(*row) error) error {
	if !p.open {
		return nil
	}
	p.open = false
	p.note(&p.row)
	return yield(&p.row)
}

func (p *ssParser) line(line string, yield func(*row) error) error {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return nil
	}
	if line[0] == '\t' || line[0] == ' ' && p.rows > 0 && !isState(fields[0]) {
		if p.open && !p.skips {
			p.details(line, fields)
		}
		return nil
	}
	if err := p.flush(yield); err != nil {
		return err
	}
	if len(fields) > 3 && isSSHeader(fields) {
		if p.headers++; p.headers > 1 {
			return p.errorf([]byte(line), "the header again: two machines, or two moments")
		}
		return nil
	}
	if p.skips = false; isNetid(fields[0]) {
		if p.skips = fields[0] != "tcp"; p.skips {
			p.rows++
			return nil
		}
		fields = fields[1:]
	}
	if p.rows == 0 && p.headers == 0 && (len(fields) < 3 || !isNumber(fields[1]) || !isNumber(fields[2])) {
		return nil // what stands before the table
	}
	p.rows++
	if len(fields) < 5 || !isNumber(fields[1]) || !isNumber(fields[2]) {
		return p.errorf([]byte(line), "no row of ss with state, queues, address and peer")
	}
	state, ok := ssStates[fields[0]]
	if !ok {
		p.foreign.add(fields[0])
		return nil
	}
	if err := p.start(state, line, fields); err != nil {
		return p.errorf([]byte(line), "%v", err)
	}
	return nil
}

func isState(word string) bool {
	_, ok := ssStates[word]
	return ok || isNetid(word)
}

// start begins a row.
func (p *ssParser) start(state tcptable.State, line string, fields []string) error {
	p.row, p.open = row{}, true
	r := &p.row
	var device string
	var local6, remote6 bool
	var err error
	if r.Local, device, local6, err = parseEndpoint(fields[3]); err != nil {
		return err
	}
	if r.Remote, _, remote6, err = parseEndpoint(fields[4]); err != nil {
		return err
	}
	for _, end := range fields[3:5] {
		p.wildcards = p.wildcards || end[0] == '[' || strings.HasPrefix(end, "0.0.0.0")
	}
	r.State, r.Device = state, p.devices.number(device)
	if local6 || remote6 && state != tcptable.Listen {
		r.Table = tcptable.TCP6
	}
	received, _ := strconv.ParseUint(fields[1], 10, 32)
	sent, _ := strconv.ParseUint(fields[2], 10, 32)
	r.RxQueue, r.TxQueue = uint32(received), uint32(sent)
	if state == tcptable.Listen {
		r.Backlog, r.TxQueue = uint32(sent), 0
	}
	if state == tcptable.Close {
		r.Kind = tcptable.Bound
	}
	r.Inode, r.star = unknownInode, strings.HasPrefix(fields[3], "*")
	r.setKind(false)
	p.details(line, fields[5:])
	return nil
}

// unknownInode is that of a socket of which nothing says whether a program has it open.
const unknownInode = 1

// details reads what follows the addresses, on the line or on the next.
func (p *ssParser) details(line string, fields []string) {
	r := &p.row
	if strings.Contains(line, "users:((") {
		if m := ssUser.FindStringSubmatch(line); m != nil {
			r.owner = fmt.Sprintf("%s (pid %s)", m[1], m[2])
		}
	}
	for _, field := range fields {
		name, value, ok := strings.Cut(field, ":")
		if !ok {
			continue
		}
		switch name {
		case "timer":
			p.timer(value)
		case "ino":
			if n, err := strconv.ParseUint(value, 10, 64); err == nil && r.Kind == tcptable.Full {
				p.inodes = true
				r.Inode = n
			}
		case "cgroup":
			if o := owner.Parse(value); r.owner == "" && o.Kind != owner.KindUnknown && o.Kind != "" {
				r.owner = o.Label()
			}
		case "lastack":
			if n, err := strconv.ParseUint(value, 10, 63); err == nil && r.State == tcptable.CloseWait {
				r.age = time.Duration(n) * time.Millisecond
			}
		}
	}
}

// ssUser is the first program that has a socket.
var ssUser = regexp.MustCompile(`users:\(\("((?:[^"\\]|\\.)*)",pid=(\d+)`)

// ssTimer is a timer: (timewait,55sec,0).
var ssTimer = regexp.MustCompile(`^\((\w+),([^,]*),(\d+)\)$`)

func (p *ssParser) timer(text string) {
	m := ssTimer.FindStringSubmatch(text)
	if m == nil {
		return
	}
	r := &p.row
	left, ok := ssTime(m[2])
	p.unanswered = true
	switch m[1] {
	case "timewait":
		if ok {
			p.timers = true
			r.setKind(true)
			r.TimerLeft = left
		}
		return
	case "on":
		r.Timer = tcptable.TimerRetransmit
	case "keepalive":
		r.Timer = tcptable.TimerKeepalive
	case "persist":
		r.Timer = tcptable.TimerProbe
	}
	if n, err := strconv.ParseUint(m[3], 10, 32); err == nil && r.Kind == tcptable.Full {
		r.Unanswered = uint8(min(n, 255))
	}
}

// ssDuration is how ss writes a time (print_ms_timer in misc/ss.c): 200ms, 5.123ms for
// 5.123 s, 55sec, 1min20sec.
var ssDuration = regexp.MustCompile(`^(?:(\d+)min)?(?:(\d+)sec|(?:(\d+)\.)?(\d+)ms)?$`)

func ssTime(text string) (time.Duration, bool) {
	m := ssDuration.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	var left time.Duration
	for i, unit := range []time.Duration{time.Minute, time.Second, time.Second, time.Millisecond} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.ParseUint(m[i+1], 10, 31)
		if err != nil {
			return 0, false
		}
		left += time.Duration(n) * unit
	}
	return left, true
}
