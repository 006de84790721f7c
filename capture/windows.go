package capture

import (
	"errors"
	"io"
	"slices"
	"strings"

	"timewait_exporter/collector/tcptable"
)

// windowsStates are the states as netstat of Windows writes them.
var windowsStates = map[string]tcptable.State{
	"ESTABLISHED": tcptable.Established, "SYN_SENT": tcptable.SynSent, "SYN_RECEIVED": tcptable.SynRecv, "SYN_RCVD": tcptable.SynRecv,
	"FIN_WAIT_1": tcptable.FinWait1, "FIN_WAIT_2": tcptable.FinWait2, "TIME_WAIT": tcptable.TimeWait, "CLOSED": tcptable.Close,
	"CLOSE_WAIT": tcptable.CloseWait, "LAST_ACK": tcptable.LastAck, "LISTENING": tcptable.Listen, "CLOSING": tcptable.Closing,
	"BOUND": tcptable.Close, "DELETE_TCB": tcptable.Close,
}

func isWindowsHeader(fields []string) bool {
	return fields[0] == "Proto" && slices.Contains(fields, "Foreign") && slices.Contains(fields, "State") && !slices.Contains(fields, "Recv-Q")
}

// parseWindows reads the output of netstat of Windows:
//
//	Proto  Local Address          Foreign Address        State           PID
//	TCP    10.0.0.1:49712         10.0.0.9:80            TIME_WAIT       0
func parseWindows(l *lines, k *known, yield func(*row) error) error {
	unknown := foreign{name: l.name, how: "an English session (Get-NetTCPConnection and netstat follow the display language)"}
	headers := 0
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
		case isWindowsHeader(append(fields, "", "", "")):
			if headers++; headers > 1 {
				return l.errorf([]byte(line), "the header again: two machines, or two moments")
			}
			continue
		case fields[0] != "TCP":
			continue // UDP, a translated header, the programs of -b
		case len(fields) < 4:
			return l.errorf([]byte(line), "no row of netstat with addresses and state")
		}
		state, ok := windowsStates[fields[3]]
		if !ok {
			unknown.add(fields[3])
			continue
		}
		r := new(row)
		r.State, r.Inode = state, unknownInode
		var v6 bool
		if r.Local, _, v6, err = parseEndpoint(fields[1]); err == nil {
			r.Remote, _, _, err = parseEndpoint(fields[2])
		}
		if err != nil {
			return l.errorf([]byte(line), "%v", err)
		}
		if v6 {
			r.Table = tcptable.TCP6
		}
		r.setKind(false)
		if state == tcptable.Close {
			r.Kind = tcptable.Bound
		}
		if len(fields) > 4 && isNumber(fields[4]) && fields[4] != "0" {
			r.owner = "pid " + fields[4]
		}
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
