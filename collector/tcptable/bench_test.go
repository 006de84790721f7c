package tcptable

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// BenchmarkProcNet walks tables of regular files: what the kernel takes to make
// the rows is not in it.
func BenchmarkProcNet(b *testing.B) {
	for _, rows := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			dir := writeNet(b, nil)
			b.SetBytes(writeNumbered(b, filepath.Join(dir, "tcp"), rows))
			p := NewProcNet(dir)
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				for _, err := range p.Sockets(context.Background()) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
				if n != rows {
					b.Fatalf("%d rows, want %d", n, rows)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
		})
	}
}

// writeNumbered writes a table of so many rows and returns its size.
func writeNumbered(b *testing.B, path string, rows int) int64 {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := []byte(headers[TCP])
	for i := range rows {
		if buf = appendRow(buf, i, numbered(TCP, i)); len(buf) < 1<<20 && i < rows-1 {
			continue
		}
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		buf = buf[:0]
	}
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}

func BenchmarkParseRow(b *testing.B) {
	f := func(name string, t Table, row string) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(row)))
			b.ReportAllocs()
			text := []byte(row)
			var s Socket
			for b.Loop() {
				if _, err := parseRow(text, t, false, &s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	f("full", TCP, fullRow)
	f("mini", TCP, miniRow)
	f("request", TCP, requestRow)
	f("tcp6", TCP6, fullRow6)
}
