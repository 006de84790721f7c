package tcptable

import (
	"context"
	"strconv"
	"testing"
)

// BenchmarkProcNet walks tables of regular files: what the kernel takes to make
// the rows is not in it.
func BenchmarkProcNet(b *testing.B) {
	for _, rows := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			file, _ := printNumbered(TCP, rows)
			b.SetBytes(int64(len(file)))
			p := NewProcNet(writeNet(b, map[string]string{"tcp": file}))
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
