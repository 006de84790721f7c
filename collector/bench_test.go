package collector

import (
	"io"
	"strconv"
	"testing"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
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

// busyRows are a listener and rows of busy, read already.
func busyRows(n int) []tcptable.Socket {
	rows := sockets("tcp listen 0.0.0.0:80 0.0.0.0:0")
	for i := range n - 1 {
		local, remote, localPort, remotePort := busy(i)
		rows = append(rows, tcptable.Socket{Local: bareEndpoint(local, localPort), Remote: bareEndpoint(remote, remotePort), State: tcptable.TimeWait, Kind: tcptable.Mini})
	}
	return rows
}

// BenchmarkTally counts rows that are parsed already.
func BenchmarkTally(b *testing.B) {
	for _, rows := range benchRows {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			all := busyRows(rows)
			counted, p := tally.New(32, 128), portsOf(b, 32768, 60999, "")
			b.ReportAllocs()
			for b.Loop() {
				if err := counted.Count(yielded(all), p, nil); err != nil {
					b.Fatal(err)
				}
			}
			reportPerRow(b, rows)
		})
	}
}

// BenchmarkSamples makes the metrics of a host with many remotes.
func BenchmarkSamples(b *testing.B) {
	rows := busyRows(100_000)
	for i := range rows[1:] {
		rows[i+1].Remote.Addr[14] += byte(i / 256 % 20)
	}
	counted, p := tally.New(32, 128), portsOf(b, 32768, 60999, "")
	if err := counted.Count(yielded(rows), p, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		ns := &snapshot.Namespace{Name: "bench", Pool: p, Sockets: counted.Snapshot(tally.Limits{Remotes: 50, Destinations: 20, Listeners: 50, Locals: 20})}
		samplesOf(ns, new(snapshot.Node))
	}
}
