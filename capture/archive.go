package capture

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

const (
	// maxUnpacked is how much an archive may unpack to, and maxEntries how many files it may
	// have: more is a bomb.
	maxUnpacked = 8 << 30
	maxEntries  = 1 << 20
	// maxKept is how long a file may be that is kept once it is unpacked, and a quarter of
	// what all may have together.
	maxKept = 8 << 20
	// maxDictionary is how much memory unpacking xz may take; xz -9 takes as much.
	maxDictionary = 64 << 20
)

// readArchive reads a tar, packed by gzip, xz or not. Only its regular files are looked at, and
// nothing is unpacked to anywhere.
func readArchive(ctx context.Context, name string, o Options) (*Capture, error) {
	var files []file
	entries, kept := 0, int64(0)
	err := walkArchive(ctx, name, func(h *tar.Header, r io.Reader) error {
		if entries++; entries > maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		clean := path.Clean(h.Name)
		if path.IsAbs(h.Name) || clean == ".." || strings.HasPrefix(clean, "../") {
			return fmt.Errorf("a path that leads out of it: %.200q", h.Name)
		}
		if h.Typeflag != tar.TypeReg || !isWanted(clean) {
			return nil
		}
		entry := file{name: clean, size: h.Size, taken: h.ModTime, open: func() (io.ReadCloser, error) { return openEntry(ctx, name, h.Name) }}
		if h.Size <= maxKept && kept+h.Size <= 4*maxKept {
			text, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			kept += h.Size
			entry.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
		}
		files = append(files, entry)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return readFiles(ctx, name, files, o)
}

// openEntry opens a file in the archive, for which all before it is unpacked again.
func openEntry(ctx context.Context, archive, name string) (io.ReadCloser, error) {
	reader, writer := io.Pipe()
	go func() {
		err := walkArchive(ctx, archive, func(h *tar.Header, r io.Reader) error {
			if h.Name != name || h.Typeflag != tar.TypeReg {
				return nil
			}
			if _, err := io.Copy(writer, r); err != nil {
				return err
			}
			return errStopped
		})
		if errors.Is(err, errStopped) {
			err = nil
		}
		writer.CloseWithError(err)
	}()
	return reader, nil
}

// walkArchive calls visit with each entry.
func walkArchive(ctx context.Context, name string, visit func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	unpacked, err := unpack(bufio.NewReaderSize(f, 64<<10))
	if err != nil {
		return err
	}
	bounded := &bound{r: unpacked, left: maxUnpacked}
	entries := tar.NewReader(bounded)
	for ctx.Err() == nil {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not a whole archive: %w", err)
		}
		switch err := visit(h, entries); {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("not a whole archive: %w", err)
		case err != nil:
			return err
		}
	}
	return context.Cause(ctx)
}

// unpack knows gzip and xz by their first bytes.
func unpack(r *bufio.Reader) (io.Reader, error) {
	head, err := r.Peek(64)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		return gzip.NewReader(r)
	case strings.HasPrefix(string(head), "\xfd7zXZ\x00"):
		if n := dictionaryOf(head); n > maxDictionary {
			return nil, fmt.Errorf("unpacking it takes %d MiB of memory, more than %d", n>>20, maxDictionary>>20)
		}
		return xz.NewReader(r)
	}
	return r, nil
}

// dictionaryOf returns how much memory the first block of an xz stream takes (section 5.3.1
// of the .xz file format: the properties of LZMA2 are one byte), 0 if it says nothing.
func dictionaryOf(head []byte) uint64 {
	const header, lzma2 = 12, 0x21
	for i := header + 2; i+2 < len(head); i++ {
		if head[i] != lzma2 || head[i+1] != 1 {
			continue
		}
		bits := head[i+2] & 0x3f
		if bits == 40 {
			return 1<<32 - 1
		}
		return (2 | uint64(bits&1)) << (bits/2 + 11)
	}
	return 0
}

// bound fails once more was read than it may be.
type bound struct {
	r    io.Reader
	left int64
}

func (b *bound) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("it unpacks to more than %d GiB", maxUnpacked>>30)
	}
	return n, err
}
