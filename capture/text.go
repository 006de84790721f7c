package capture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

const (
	// maxLine is more than any line that these programs write.
	maxLine = 64 << 10
	// maxText is how long a file may be that is read as a whole.
	maxText = 1 << 20
	// sniffed is how much of a file its kind is known by.
	sniffed = 64 << 10
)

// archived is the kind of what has to be unpacked.
const archived = "archive"

// file is one that can be read any number of times.
type file struct {
	name  string
	size  int64
	taken time.Time
	open  func() (io.ReadCloser, error)
}

// text returns all of a small file.
func (f *file) text() ([]byte, error) {
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err == nil && len(text) > maxText {
		err = fmt.Errorf("%s: longer than %d bytes", f.name, maxText)
	}
	return text, err
}

// lines are those of a text in UTF-8 or, with its mark or as PowerShell writes it, UTF-16,
// that end with LF or CRLF.
type lines struct {
	name   string
	buf    *bufio.Reader
	number int // of the line
}

// lines opens the file as text.
func (f *file) lines() (*lines, io.Closer, error) {
	r, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	decoded := transform.NewReader(r, unicode.BOMOverride(transform.Nop))
	return &lines{name: f.name, buf: bufio.NewReaderSize(decoded, maxLine)}, r, nil
}

// next returns the next line without its end. After the last it is io.EOF.
func (l *lines) next() (string, error) {
	line, err := l.buf.ReadSlice('\n')
	l.number++
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", l.errorf(line, "a line of more than %d bytes", maxLine)
	case err != nil && (!errors.Is(err, io.EOF) || len(line) == 0):
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s: line %d: %w", l.name, l.number, err)
		}
		return "", err
	}
	return string(bytes.TrimRight(line, "\r\n")), nil
}

// errorf is about the line.
func (l *lines) errorf(line []byte, format string, args ...any) error {
	return fmt.Errorf("%s: line %d: %s: %.200q", l.name, l.number, fmt.Sprintf(format, args...), line)
}

// kind tells what a file is, by its beginning.
func (f *file) kind() (string, error) {
	r, err := f.open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	head = head[:n]
	switch {
	case n == 0:
		return "", fmt.Errorf("%s is empty", f.name)
	case bytes.HasPrefix(head, []byte("\x1f\x8b")), bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")),
		n == 512 && bytes.HasPrefix(head[257:], []byte("ustar")):
		return archived, nil
	}
	l, closer, err := f.lines()
	if err != nil {
		return "", err
	}
	defer closer.Close()
	var first string
	for read := 0; read < sniffed; {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		read += len(line) + 1
		if first == "" {
			first = strings.TrimSpace(line)
		}
		if kind := kindOf(line); kind != "" {
			return kind, nil
		}
	}
	return "", fmt.Errorf("%s is no output of ss -tan or netstat -an, no copy of /proc/net/tcp and no archive: it begins with %.100q", f.name, first)
}

// kindOf tells which program writes such a line; "" if none.
func kindOf(line string) string {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return ""
	}
	switch {
	case isProcHeader(line) >= 0:
		return Proc
	case isSSHeader(fields):
		return SS
	case isNetstatHeader(fields):
		return Netstat
	case isWindowsHeader(fields):
		return Windows
	}
	// Their headers may be translated, or left out.
	if _, known := ssStates[fields[0]]; known && isNumber(fields[1]) && isNumber(fields[2]) {
		return SS
	}
	if isNetid(fields[0]) && len(fields) > 5 && isNumber(fields[2]) && isNumber(fields[3]) {
		return SS
	}
	if (fields[0] == "tcp" || fields[0] == "tcp6") && len(fields) > 4 && isNumber(fields[1]) && isNumber(fields[2]) {
		return Netstat
	}
	if fields[0] == "TCP" && len(fields) > 3 && strings.Contains(fields[1], ":") && strings.Contains(fields[2], ":") {
		return Windows
	}
	return ""
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
