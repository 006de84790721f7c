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

	"timewait_exporter/collector/tcptable"
)

// netstatStates are the states as netstat writes them (tcp_state in netstat.c of net-tools).
var netstatStates = map[string]tcptable.State{
	"ESTABLISHED": tcptable.Established, "SYN_SENT": tcptable.SynSent, "SYN_RECV": tcptable.SynRecv, "FIN_WAIT1": tcptable.FinWait1,
	"FIN_WAIT2": tcptable.FinWait2, "TIME_WAIT": tcptable.TimeWait, "CLOSE": tcptable.Close, "CLOSE_WAIT": tcptable.CloseWait,
	"LAST_ACK": tcptable.LastAck, "LISTEN": tcptable.Listen, "CLOSING": tcptable.Closing,
}

func isNetstatHeader(fields []string) bool {
	return fields[0] == "Proto" && slices.Contains(fields, "Recv-Q") && slices.Contains(fields, "Foreign")
}

// netstatTimer is what -o shows last: timewait (55.02/0/0).
var netstatTimer = regexp.MustCompile(`\s(off|on|keepalive|timewait|probe|unkn-\d+)\s+\((\d+)\.(\d\d)/(\d+)/(\d+)\)\s*$`)

// netstatProgram is what -p shows: 2211/java. The name may have blanks.
var netstatProgram = regexp.MustCompile(`^(\d+)/(.*)$`)

// parseNetstat reads the output of netstat of Linux:
//
//	Proto Recv-Q Send-Q Local Address   Foreign Address  State        User  Inode  PID/Program name  Timer
//	tcp        0      0 10.0.0.1:33012  10.0.0.9:80      ESTABLISHED  0     64     2211/java         keepalive (2.10/0/0)
//
// The queues of a listener are that of accept(2), and 0.
func parseNetstat(l *lines, k *known, yield func(*row) error) error {
	unknown := foreign{name: l.name, how: "LC_ALL=C netstat -an"}
	var headers int
	var inside, inodes bool
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
			continue
		case isNetstatHeader(fields):
			if headers++; headers > 1 {
				return l.errorf([]byte(line), "the header again: two machines, or two moments")
			}
			inside, inodes = true, slices.Contains(fields, "Inode")
			continue
		case fields[0] == "Proto", fields[0] == "Active": // of UNIX sockets
			inside = false
			continue
		case fields[0] != "tcp" && fields[0] != "tcp6":
			if inside && !isOtherProtocol(fields[0]) {
				return l.errorf([]byte(line), "no row of netstat")
			}
			continue
		case len(fields) < 6 || !isNumber(fields[1]) || !isNumber(fields[2]):
			return l.errorf([]byte(line), "no row of netstat with queues, addresses and state")
		}
		inside = true
		state, ok := netstatStates[fields[5]]
		if !ok {
			unknown.add(fields[5])
			continue
		}
		r, err := netstatRow(state, fields)
		if err != nil {
			return l.errorf([]byte(line), "%v", err)
		}
		k.netstatDetails(r, line, fields[6:], inodes)
		k.note(r)
		if err := yield(r); err != nil {
			return err
		}
	}
	if len(unknown.words) > 0 {
		return &unknown
	}
	return nil
}

func isOtherProtocol(word string) bool {
	return slices.Contains([]string{"udp", "udp6", "udplite", "udpl6", "raw", "raw6", "sctp", "unix", "l2cap", "rfcomm", "bluetooth", "ax25", "ipx"}, word)
}

func netstatRow(state tcptable.State, fields []string) (r *row, err error) {
	r = new(row)
	r.State, r.Inode = state, unknownInode
	if fields[0] == "tcp6" {
		r.Table = tcptable.TCP6
	}
	if r.Local, _, _, err = parseEndpoint(fields[3]); err != nil {
		return nil, err
	}
	if r.Remote, _, _, err = parseEndpoint(fields[4]); err != nil {
		return nil, err
	}
	received, _ := strconv.ParseUint(fields[1], 10, 32)
	sent, _ := strconv.ParseUint(fields[2], 10, 32)
	r.RxQueue, r.TxQueue = uint32(received), uint32(sent)
	r.setKind(false)
	return r, nil
}

// netstatDetails reads what follows the state.
func (k *known) netstatDetails(r *row, line string, rest []string, inodes bool) {
	if m := netstatTimer.FindStringSubmatchIndex(line); m != nil {
		k.unanswered = true
		text := func(i int) string { return line[m[2*i]:m[2*i+1]] }
		seconds, _ := strconv.ParseUint(text(2), 10, 31)
		hundredths, _ := strconv.ParseUint(text(3), 10, 8)
		again, _ := strconv.ParseUint(text(4), 10, 32)
		probes, _ := strconv.ParseUint(text(5), 10, 32)
		switch text(1) {
		case "timewait":
			k.timers = true
			r.setKind(true)
			r.TimerLeft = time.Duration(seconds)*time.Second + time.Duration(hundredths)*10*time.Millisecond
		case "on":
			r.Timer = tcptable.TimerRetransmit
		case "keepalive":
			r.Timer = tcptable.TimerKeepalive
		case "probe":
			r.Timer = tcptable.TimerProbe
		}
		if r.Kind == tcptable.Full {
			r.Unanswered = uint8(min(max(again, probes), 255))
		}
		rest = strings.Fields(line[:m[0]])[6:]
	}
	if inodes && len(rest) > 1 {
		if n, err := strconv.ParseUint(rest[1], 10, 64); err == nil && r.Kind == tcptable.Full {
			k.inodes = true
			r.Inode = n
		}
		rest = rest[2:]
	}
	if len(rest) > 0 {
		if m := netstatProgram.FindStringSubmatch(strings.Join(rest, " ")); m != nil {
			r.owner = fmt.Sprintf("%s (pid %s)", m[2], m[1])
		}
	}
}
