package tcptable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"
)

// Columns of a row, counted from the blank behind the remote port on. Up to
// retrnsmt all widths are fixed.
const (
	atState    = 1
	atQueues   = 4
	atTimer    = 22
	atWhen     = 25
	atRetrnsmt = 34
	atOwner    = 42
)

const (
	newSynRecv = 12 // a request socket's own state, printed as SYN_RECV so far
	timerMini  = 3  // the timer column of a minisock

	// clockTick is the unit of the when column: 1/USER_HZ, and USER_HZ is 100
	// (include/asm-generic/param.h).
	clockTick = 10 * time.Millisecond

	noQueues = "00000000:00000000"
)

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
	colon := bytes.IndexByte(row, ':')
	if colon < 0 || len(row) < colon+2+width+atOwner {
		return nil, errors.New("too short, or no colon")
	}
	ends, rest := row[colon+2:colon+2+width], row[colon+2+width:]
	if row[colon+1] != ' ' || ends[digits] != ':' || ends[digits+5] != ' ' || ends[2*digits+6] != ':' ||
		rest[0] != ' ' || rest[atState+2] != ' ' || rest[atQueues+8] != ':' || rest[atTimer-1] != ' ' ||
		rest[atTimer+2] != ':' || rest[atRetrnsmt-1] != ' ' || rest[atOwner] != ' ' {
		return nil, errors.New("its columns are not where they should be")
	}

	local, ok1 := parseAddr(ends[:digits], bigEndian)
	remote, ok2 := parseAddr(ends[digits+6:2*digits+6], bigEndian)
	ports, ok3 := parseHex(uint64(binary.LittleEndian.Uint32(ends[digits+1:])) |
		uint64(binary.LittleEndian.Uint32(ends[2*digits+7:]))<<32)
	small, ok4 := parseHex(zeros>>32 | uint64(binary.LittleEndian.Uint16(rest[atState:]))<<32 |
		uint64(binary.LittleEndian.Uint16(rest[atTimer:]))<<48)
	when, ok5 := parseHex(binary.LittleEndian.Uint64(rest[atWhen:]))
	s.TxQueue, s.RxQueue = 0, 0
	if string(rest[atQueues:atQueues+len(noQueues)]) != noQueues {
		var ok bool
		s.TxQueue, ok = parseHex(binary.LittleEndian.Uint64(rest[atQueues:]))
		ok1 = ok1 && ok
		s.RxQueue, ok = parseHex(binary.LittleEndian.Uint64(rest[atQueues+9:]))
		ok1 = ok1 && ok
	}
	if !(ok1 && ok2 && ok3 && ok4 && ok5) {
		return nil, errors.New("not a hexadecimal number where one should be")
	}
	_, rest, ok1 = cutDecimal(rest[atOwner:]) // uid
	_, rest, ok2 = cutDecimal(rest)           // timeout
	s.Inode, rest, ok3 = cutDecimal(rest)
	if !(ok1 && ok2 && ok3) {
		return nil, errors.New("no uid, timeout and inode")
	}

	s.Table = t
	s.Local = netip.AddrPortFrom(local, uint16(ports>>16))
	s.Remote = netip.AddrPortFrom(remote, uint16(ports))
	state, timer := small>>8, small&0xff
	switch {
	case state == newSynRecv:
		s.State = SynRecv
	case state == 0 || state >= uint32(NumStates):
		return nil, fmt.Errorf("unknown state %02X", state)
	default:
		s.State = State(state)
	}
	s.Kind, s.TimerLeft = Full, 0
	switch {
	case timer == timerMini:
		if s.State != TimeWait && s.State != FinWait2 {
			return nil, fmt.Errorf("the timer of a minisock in state %v", s.State)
		}
		s.Kind, s.TimerLeft = Mini, time.Duration(when)*clockTick
	case s.State == SynRecv && isRequest(rest):
		s.Kind = Request
	}
	return ends, nil
}

// parseAddr reads an address of 8 or 32 digits. The kernel prints each 32-bit
// word of it, which is in network order, as a number in the host's order.
func parseAddr(digits []byte, bigEndian bool) (addr netip.Addr, ok bool) {
	var b [16]byte
	ok = true
	for i := 0; i < len(digits)/2; i += 4 {
		word, good := parseHex(binary.LittleEndian.Uint64(digits[2*i:]))
		if !bigEndian {
			word = bits.ReverseBytes32(word)
		}
		binary.BigEndian.PutUint32(b[i:], word)
		ok = ok && good
	}
	if len(digits) == 8 {
		return netip.AddrFrom4([4]byte(b[:4])), ok
	}
	return netip.AddrFrom16(b).Unmap(), ok
}

// zeros is the number 0 as parseHex takes it.
const zeros = 0x3030303030303030

// parseHex returns the value of eight digits, the first in the lowest byte, as
// the kernel prints them: in upper case. It works on all eight at once.
func parseHex(eight uint64) (v uint32, ok bool) {
	const ones = 0x0101010101010101
	letters := eight >> 6 & ones // '0' is 0x30, 'A' is 0x41
	nibbles := eight&(0x0f*ones) + 9*letters
	overNine := (nibbles + 6*ones) >> 4 & ones
	ok = nibbles+0x30*ones+7*letters == eight && overNine == letters && nibbles&(0xf0*ones) == 0

	// Neighbours are joined: nibbles to bytes, bytes to 16 bits, those to 32.
	nibbles = (nibbles<<4 | nibbles>>8) & 0x00ff00ff00ff00ff
	nibbles = (nibbles<<8 | nibbles>>16) & 0x0000ffff0000ffff
	return uint32(nibbles<<16 | nibbles>>32), ok
}

// cutDecimal reads a number that blanks stand before.
func cutDecimal(text []byte) (v uint64, rest []byte, ok bool) {
	i := 0
	for i < len(text) && text[i] == ' ' {
		i++
	}
	start := i
	for i < len(text) && text[i]-'0' <= 9 {
		v = v*10 + uint64(text[i]-'0')
		i++
	}
	return v, text[i:], start > 0 && i > start && (i == len(text) || text[i] == ' ')
}

// isRequest reports whether the columns behind the inode end with the pointer,
// as those of a request socket do.
func isRequest(rest []byte) bool {
	_, pointer, _ := cutDecimal(rest)
	return bytes.IndexByte(bytes.TrimSpace(pointer), ' ') < 0
}
