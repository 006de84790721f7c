package capture

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"timewait_exporter/collector/tcptable"
)

// row is a socket with what a capture knows beside.
type row struct {
	tcptable.Socket
	owner string        // whose it is; "" if that is not known
	age   time.Duration // since the peer's last ACK
	star  bool          // its local address was written as *
}

// known is what a capture tells of sockets.
type known struct {
	listeners bool // there are some
	timeWaits bool // there are some
	timers    bool // the time that TIME_WAITs have left
	inodes    bool // whether a program has a socket open
	backlogs  bool // how long accept queues may be
	wildcards bool // of IPv4 and IPv6 apart: old ss writes * for 0.0.0.0, newer for both
	unanswered,
	ages, owners bool
}

// note learns from a row.
func (k *known) note(r *row) {
	k.listeners = k.listeners || r.State == tcptable.Listen
	k.timeWaits = k.timeWaits || r.State == tcptable.TimeWait
	k.owners = k.owners || r.owner != ""
	k.ages = k.ages || r.age > 0
}

// parser reads the rows of a text.
type parser func(l *lines, k *known, yield func(*row) error) error

// parsers are those of each kind.
func parserOf(kind string) parser {
	switch kind {
	case Proc:
		return parseProc
	case SS:
		return parseSS
	case Netstat:
		return parseNetstat
	}
	return parseWindows
}

// foreign are state words that no program writes in English.
type foreign struct {
	name  string
	words []string
	how   string
}

func (e *foreign) Error() string {
	return fmt.Sprintf("%s: states in another language, or unknown: %s; take it again with %s", e.name, strings.Join(e.words, ", "), e.how)
}

// maxForeign is how many words an error names.
const maxForeign = 8

func (e *foreign) add(word string) {
	word = strconv.Quote(word)
	if !slices.Contains(e.words, word) && len(e.words) < maxForeign {
		e.words = append(e.words, word)
	}
}

// setKind sets of which kind of socket the row is, by its state; minisock is whether that
// is known of a FIN_WAIT2.
func (r *row) setKind(minisock bool) {
	switch {
	case r.State == tcptable.TimeWait, r.State == tcptable.FinWait2 && minisock:
		r.Kind, r.Inode, r.Timer = tcptable.Mini, 0, tcptable.TimerNone
	case r.State == tcptable.SynRecv:
		r.Kind, r.Inode, r.Timer = tcptable.Request, 0, tcptable.TimerNone
	}
}

// parseEndpoint parses an address and a port as ss and netstat write them: 10.0.0.1:80,
// [::1]:80, ::1:80, :::80, *:80, 10.0.0.1%eth0:80, 0.0.0.0:*. An IPv6 wildcard is "*" too.
func parseEndpoint(text string) (e tcptable.Endpoint, device string, v6 bool, err error) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return e, "", false, fmt.Errorf("%q is no address with a port", text)
	}
	host, port := text[:colon], text[colon+1:]
	if port != "*" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return e, "", false, fmt.Errorf("%q is not the number of a port (-n shows numbers)", port)
		}
		e.Port = uint16(n)
	}
	if before, zone, ok := strings.Cut(host, "%"); ok {
		device = strings.TrimSuffix(zone, "]")
		host = before
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "*" {
		e.Addr = tcptable.Addr{}
		return e, device, true, nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return e, "", false, fmt.Errorf("%q is no address, or was cut (netstat -W shows it whole)", host)
	}
	e.Addr = ip.As16()
	return e, device, ip.Is6(), nil
}

// devices numbers devices by their names, in the order they come.
type devices map[string]uint32

func (d devices) number(name string) uint32 {
	if name == "" {
		return 0
	}
	n, ok := d[name]
	if !ok && len(d) < 1<<16 {
		n = uint32(len(d) + 1)
		d[name] = n
	}
	return n
}
