package kernelstat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Reader reads the same numbers of many namespaces, one after the other. What it
// knows of one namespace's files, whose lines of names are the same in all, saves it
// most of the work with the next. It is not for concurrent use.
type Reader struct {
	files []*file
	buf   []byte
}

// file is a file of the net directory, with the numbers that are read of it.
type file struct {
	name    string
	numbers []Number
	names   []string // of numbers, in the file

	// Of a file with a line of names and one of values: the line of names as it was
	// last, and for each of its names which of numbers it is, -1 if it is none.
	header []byte
	places []int
	known  []bool // of each of numbers, whether there is a name for it
	values []uint64
}

// NewReader returns the Reader of numbers that are not sysctls.
func NewReader(numbers []Number) *Reader {
	r := &Reader{buf: make([]byte, usualFile)}
	byName := make(map[string]*file)
	for _, n := range numbers {
		f := byName[n.file]
		if f == nil {
			f = &file{name: n.file}
			byName[n.file] = f
			r.files = append(r.files, f)
		}
		f.numbers, f.names = append(f.numbers, n), append(f.names, n.name)
	}
	return r
}

// Read returns the numbers of the namespace whose net directory is open as dir. Each
// file is all or nothing, as in [Read], and one that this kernel does not have is no
// error.
func (r *Reader) Read(dir int) (Numbers, error) {
	found := make(Numbers, 32)
	var errs []error
	for _, f := range r.files {
		text, err := r.text(dir, f.name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil && !f.parse(text, found):
			if err = found.parse(f.name, text, f.numbers, f.names); err == nil {
				f.learn(text)
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return found, errors.Join(errs...)
}

// text returns what is in a file below dir. It is good until the next call.
func (r *Reader) text(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for length := 0; ; {
		if length == len(r.buf) {
			if length >= maxFile {
				return nil, fmt.Errorf("%s: longer than %d bytes, and begins with %.200q", name, maxFile, r.buf)
			}
			r.buf = append(r.buf, make([]byte, length)...)
		}
		n, err := unix.Read(fd, r.buf[length:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		case n == 0:
			return r.buf[:length], nil
		default:
			length += n
		}
	}
}

// linesIn returns text from the line of names on, nil if there is none.
func (f *file) linesIn(text []byte) []byte {
	protocol := f.numbers[0].protocol + ": "
	if bytes.HasPrefix(text, []byte(protocol)) {
		return text
	}
	if i := bytes.Index(text, []byte("\n"+protocol)); i >= 0 {
		return text[i+1:]
	}
	return nil
}

// learn remembers the line of names of a text that is in order, if it has one.
func (f *file) learn(text []byte) {
	lines := f.linesIn(text)
	end := bytes.IndexByte(lines, '\n')
	if f.name != "snmp" && f.name != "netstat" || end < 0 {
		return
	}
	f.header = append(f.header[:0], lines[:end+1]...)
	f.places, f.known, f.values = f.places[:0], make([]bool, len(f.names)), make([]uint64, len(f.names))
	for i, name := range bytes.Fields(f.header) {
		if i == 0 {
			continue // the protocol
		}
		place := -1
		for at, wanted := range f.names {
			if string(name) == wanted {
				place, f.known[at] = at, true
			}
		}
		f.places = append(f.places, place)
	}
}

// parse adds the numbers of a text, and reports whether it is in order and has the line
// of names that is known. If not it adds none.
func (f *file) parse(text []byte, found Numbers) bool {
	protocol := []byte(f.numbers[0].protocol + ": ")
	lines := f.linesIn(text)
	if len(f.header) == 0 || !bytes.HasPrefix(lines, f.header) {
		return false
	}
	values, isOf := bytes.CutPrefix(lines[len(f.header):], protocol)
	if !isOf {
		return false
	}
	rest, next, ended := bytes.Cut(values, []byte("\n"))
	if !ended || bytes.HasPrefix(next, protocol) {
		return false
	}
	for i, place := range f.places {
		value, after, more := bytes.Cut(rest, []byte(" "))
		if more != (i < len(f.places)-1) {
			return false
		}
		rest = after
		if place < 0 {
			continue
		}
		var err error
		if f.values[place], err = number(string(value)); err != nil {
			return false
		}
	}
	for i, n := range f.numbers {
		if f.known[i] {
			found[n] = f.values[i]
		}
	}
	return true
}
