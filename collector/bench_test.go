package collector

import (
	"fmt"
	"io"
	"strconv"
	"testing"

	"timewait_exporter/collector/tcptable"
)

// benchRows are the lengths of table that the benchmarks have.
var benchRows = []int{1_000, 10_000, 100_000, 1_000_000}

// busy gives the rows of a busy host: half of them came in from 200 clients, half
// go to 20 servers from 4 local IPs.
func busy(i int) (local, remote uint32, localPort, remotePort uint16) {
	if i%2 == 0 {
		return myIP, theNet + uint32(i/2%200), 80, uint16(1024 + i/400)
	}
	return myIP + uint32(i/40%4), theNet + 1000 + uint32(i/2%20), uint16(32768 + i/160%28232), uint16(443 + i/160/28232)
}

func reportPerRow(b *testing.B, rows int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
}

// BenchmarkTally counts rows that are parsed already.
func BenchmarkTally(b *testing.B) {
	for _, rows := range benchRows {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			all := make([]tcptable.Socket, 0, rows)
			all = append(all, socket("tcp listen 0.0.0.0:80 0.0.0.0:0"))
			for i := range rows - 1 {
				local, remote, localPort, remotePort := busy(i)
				all = append(all, tcptable.Socket{Local: bareEndpoint(local, localPort), Remote: bareEndpoint(remote, remotePort),
					State: tcptable.TimeWait, Kind: tcptable.Mini})
			}
			counted, p := newTally(32, 128), portsOf(b, 32768, 60999, "")
			b.ReportAllocs()
			for b.Loop() {
				counted.reset(p)
				for i := range all {
					counted.add(&all[i])
				}
				counted.finish()
			}
			reportPerRow(b, rows)
		})
	}
}

func bareEndpoint(address uint32, port uint16) tcptable.Endpoint {
	return tcptable.Endpoint{Addr: tcptable.Addr{10: 0xff, 11: 0xff, 12: byte(address >> 24), 13: byte(address >> 16), 14: byte(address >> 8), 15: byte(address)}, Port: port}
}

// BenchmarkScrape is all that a scrape does but HTTP: read regular files, parse,
// count, gather and write the text. What the kernel takes to make the rows is not in
// it.
func BenchmarkScrape(b *testing.B) {
	for _, rows := range benchRows {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			c := newCollector(b, fixture(b, writeFlood(b, rows-1, busy)))
			b.SetBytes(int64(len(tableHeader) + rows*len(oneListener)))
			b.ReportAllocs()
			for b.Loop() {
				if err := writePage(io.Discard, c); err != nil {
					b.Fatal(err)
				}
			}
			reportPerRow(b, rows)
		})
	}
}

// BenchmarkCounts adds rows of so many distinct keys: up to the limit, and beyond.
func BenchmarkCounts(b *testing.B) {
	for _, keys := range []int{100, 10_000, maxRemotes, 8 * maxRemotes} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			all := make([]tcptable.Addr, keys)
			for i := range all {
				all[i] = bareEndpoint(theNet+uint32(i), 0).Addr
			}
			c := newCounts[tcptable.Addr](maxRemotes)
			b.ReportAllocs()
			for b.Loop() {
				c.reset()
				for i := range all {
					c.add(&all[i], uint8(i%4), 1)
				}
			}
			reportPerRow(b, keys)
		})
	}
}

// BenchmarkSamples makes the metrics of a host with many remotes.
func BenchmarkSamples(b *testing.B) {
	counted := newTally(32, 128)
	counted.reset(portsOf(b, 32768, 60999, ""))
	for i := range 100_000 {
		local, remote, localPort, remotePort := busy(i)
		s := tcptable.Socket{Local: bareEndpoint(local, localPort), Remote: bareEndpoint(remote+uint32(i%5000), remotePort), State: tcptable.Established, Inode: 1}
		counted.add(&s)
	}
	counted.finish()
	b.ReportAllocs()
	for b.Loop() {
		counted.samples("bench", exported{remotes: 50, destinations: 20, listeners: 50, locals: 20}, nil)
	}
}
