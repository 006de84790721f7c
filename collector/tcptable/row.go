package tcptable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"
)

// Columns of a row, counted from the blank behind the remote port on. Up to the
// one behind retrnsmt all widths are fixed, those behind it are least widths.
const (
	atState    = 1
	atQueues   = 4
	atTimer    = 22
	atWhen     = 25
	atRetrnsmt = 34
	atUID      = 43
	atTimeout  = 49
	atInode    = 58
)

const (
	newSynRecv = 12 // a request socket's own state, printed as SYN_RECV so far

	// clockTick is the unit of the when column: 1/USER_HZ, and USER_HZ is 100
	// (include/asm-generic/param.h).
	clockTick = 10 * time.Millisecond

	noQueues = "00000000:00000000"
)

// ParseRow parses a row of a copy of table t, taken on a machine of this one's byte order.
// Blanks around it may be missing.
func ParseRow(row []byte, t Table) (Socket, error) {
	var s Socket
	_, err := parseRow(bytes.TrimSpace(row), t, binary.NativeEndian.Uint16([]byte{0, 1}) == 1, &s)
	return s, err
}

// parseRow reads a row of table t, without its newline, into s and returns the
// text of its two ends. The row is as get_tcp4_sock, get_timewait4_sock and
// get_openreq4 in net/ipv4/tcp_ipv4.c print it, padded with blanks; in tcp6
// (net/ipv6/tcp_ipv6.c) an address has 32 digits and there is no padding:
//
//	sl: local         remote        st tx       rx       tr when     retrnsmt   uid  timeout inode ref pointer       only of a full socket
//	 4: 0100007F:BB40 0100007F:46A0 01 00000000:00000000 00:00000000 00000000     0        0 656085 2 00000000b25b2413 20 0 0 11 -1
//
// sl widens past 9999, so columns are counted from its colon.
func parseRow(row []byte, t Table, bigEndian bool, s *Socket) (ends []byte, err error) {
	digits := 8
	if t == TCP6 {
		digits = 32
	}
	width := len("::0000 0000") + 2*digits // of the two ends
	colon := 0
	for colon < len(row) && row[colon] != ':' {
		colon++
	}
	if len(row) <= colon+2+width+atInode {
		return nil, errors.New("too short, or without a colon")
	}
	ends, c := row[colon+2:colon+2+width], (*[atInode]byte)(row[colon+2+width:])
	if row[colon+1] != ' ' || ends[digits] != ':' || ends[digits+5] != ' ' || ends[2*digits+6] != ':' ||
		c[0] != ' ' || c[atState+2] != ' ' || c[atQueues+8] != ':' || c[atTimer-1] != ' ' ||
		c[atTimer+2] != ':' || c[atRetrnsmt-1] != ' ' || c[atUID-1] != ' ' {
		return nil, errors.New("its columns are not where they should be")
	}

	var bad uint64
	if t == TCP {
		bad = parseAddr4((*[8]byte)(ends), bigEndian, &s.Local.Addr) |
			parseAddr4((*[8]byte)(ends[digits+6:]), bigEndian, &s.Remote.Addr)
	} else {
		bad = parseAddr6((*[32]byte)(ends), bigEndian, &s.Local.Addr) |
			parseAddr6((*[32]byte)(ends[digits+6:]), bigEndian, &s.Remote.Addr)
	}
	ports, no := parseHex(uint64(binary.LittleEndian.Uint32(ends[digits+1:])) |
		uint64(binary.LittleEndian.Uint32(ends[2*digits+7:]))<<32)
	bad |= no
	small, no := parseHex(zeros>>32 | uint64(binary.LittleEndian.Uint16(c[atState:]))<<32 |
		uint64(binary.LittleEndian.Uint16(c[atTimer:]))<<48)
	bad |= no
	when, no := parseHex(binary.LittleEndian.Uint64(c[atWhen:]))
	bad |= no
	var retransmits uint64
	if column := binary.LittleEndian.Uint64(c[atRetrnsmt:]); column != zeros {
		n, no := parseHex(column)
		retransmits, bad = uint64(n), bad|no
	}
	s.TxQueue, s.RxQueue = 0, 0
	if string(c[atQueues:atQueues+len(noQueues)]) != noQueues {
		s.TxQueue, no = parseHex(binary.LittleEndian.Uint64(c[atQueues:]))
		bad |= no
		s.RxQueue, no = parseHex(binary.LittleEndian.Uint64(c[atQueues+9:]))
		bad |= no
	}
	if bad != 0 {
		return nil, errors.New("not a hexadecimal number where one should be")
	}

	timeout, rest := c[atTimeout-1:], row[colon+2+width+atInode-1:]
	if c[atTimeout-1] != ' ' || c[atInode-1] != ' ' { // not as wide as they nearly always are
		_, timeout, _ = cutDecimal(row[colon+2+width+atUID-1:])
		_, rest, _ = cutDecimal(timeout)
	}
	inode, rest, ok := cutDecimal(rest)
	if !ok {
		return nil, errors.New("no uid, timeout and inode")
	}

	s.Inode = inode
	s.Table = t
	s.Local.Port, s.Remote.Port = uint16(ports>>16), uint16(ports)
	state, timer := small>>8, Timer(small)
	switch {
	case state == newSynRecv:
		s.State = SynRecv
	case state == 0 || state >= uint32(NumStates):
		return nil, fmt.Errorf("unknown state %02X", state)
	default:
		s.State = State(state)
	}
	s.Kind, s.Timer, s.Unanswered = Full, TimerNone, 0
	s.TimerLeft, s.Device, s.Backlog, s.V6Only, s.Transparent = 0, 0, 0, false, false
	switch {
	case timer == timerMini:
		if s.State != TimeWait && s.State != FinWait2 {
			return nil, fmt.Errorf("the timer of a minisock in state %v", s.State)
		}
		s.Kind, s.TimerLeft = Mini, time.Duration(when)*clockTick
	case s.State == SynRecv && isRequest(rest):
		s.Kind = Request
	default:
		s.Timer = timer
		switch timer { // as inet_sk_diag_fill in net/ipv4/inet_diag.c chooses
		case TimerRetransmit:
			s.Unanswered = uint8(min(retransmits, math.MaxUint8))
		case TimerKeepalive, TimerProbe:
			probes, _, ok := cutDecimal(timeout)
			if !ok {
				return nil, errors.New("no number of probes")
			}
			s.Unanswered = uint8(min(probes, math.MaxUint8))
		}
	}
	return ends, nil
}

// parseAddr4 reads an IPv4 address; what is not 0 in bad is not as it should be.
func parseAddr4(digits *[8]byte, bigEndian bool, addr *Addr) (bad uint64) {
	*addr = Addr{10: 0xff, 11: 0xff}
	return parseWord(digits, bigEndian, (*[4]byte)(addr[12:]))
}

// parseAddr6 reads an IPv6 address, as parseAddr4 does.
func parseAddr6(digits *[32]byte, bigEndian bool, addr *Addr) (bad uint64) {
	return parseWord((*[8]byte)(digits[:]), bigEndian, (*[4]byte)(addr[:])) |
		parseWord((*[8]byte)(digits[8:]), bigEndian, (*[4]byte)(addr[4:])) |
		parseWord((*[8]byte)(digits[16:]), bigEndian, (*[4]byte)(addr[8:])) |
		parseWord((*[8]byte)(digits[24:]), bigEndian, (*[4]byte)(addr[12:]))
}

// parseWord reads 32 bits of an address. The kernel prints each such word, which
// is in network order, as a number in the host's order.
func parseWord(digits *[8]byte, bigEndian bool, to *[4]byte) (bad uint64) {
	word, bad := parseHex(binary.LittleEndian.Uint64(digits[:]))
	if !bigEndian {
		word = bits.ReverseBytes32(word)
	}
	binary.BigEndian.PutUint32(to[:], word)
	return bad
}

// zeros is the number 0 as parseHex takes it.
const zeros = 0x3030303030303030

// parseHex returns the value of eight digits, the first in the lowest byte, as
// the kernel prints them: in upper case. It works on all eight at once. Each byte
// that is no such digit leaves a bit in bad.
func parseHex(eight uint64) (v uint32, bad uint64) {
	const ones = 0x0101010101010101
	letters := eight >> 6 & ones // '0' is 0x30, 'A' is 0x41
	nibbles := eight&(0x0f*ones) + 9*letters
	// 6 more is over 15 for the letters only.
	bad = nibbles + 0x30*ones + 7*letters ^ eight | ((nibbles+6*ones)^letters<<4|nibbles)&(0xf0*ones)

	// Neighbours are joined: nibbles to bytes, bytes to 16 bits, those to 32.
	nibbles = (nibbles<<4 | nibbles>>8) & 0x00ff00ff00ff00ff
	nibbles = (nibbles<<8 | nibbles>>16) & 0x0000ffff0000ffff
	return uint32(nibbles<<16 | nibbles>>32), bad
}

// cutDecimal reads a number that blanks stand before and behind.
func cutDecimal(text []byte) (v uint64, rest []byte, ok bool) {
	i := 0
	for i < len(text) && text[i] == ' ' {
		i++
	}
	start := i
	for i < len(text) && text[i]-'0' <= 9 {
		digit := uint64(text[i] - '0')
		if v > (math.MaxUint64-digit)/10 {
			return 0, nil, false
		}
		v = v*10 + digit
		i++
	}
	return v, text[i:], i > start && i < len(text) && text[i] == ' '
}

// isRequest reports whether the columns behind the inode end with the pointer,
// as those of a request socket do.
func isRequest(rest []byte) bool {
	_, pointer, _ := cutDecimal(rest)
	return bytes.IndexByte(bytes.TrimSpace(pointer), ' ') < 0
}
