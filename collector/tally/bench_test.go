package tally

import (
	"fmt"
	"strconv"
	"testing"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

const (
	myIP   = 10<<24 | 1
	theNet = 20 << 24
)

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

func poolOf(low, high int) *kernelstat.Pool {
	p := &kernelstat.Pool{Low: low, High: high, Size: high - low + 1, TimeWait: kernelstat.TimeWaitLength, Timestamps: true}
	for port := low; port <= high; port++ {
		p.Ports.Add(uint16(port))
	}
	return p
}

// BenchmarkTally counts rows that are parsed already.
func BenchmarkTally(b *testing.B) {
	for _, rows := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			all := make([]tcptable.Socket, 0, rows)
			all = append(all, tcptable.Socket{Local: tcptable.Endpoint{Addr: anyAddr(snapshot.IPv4), Port: 80}, State: tcptable.Listen})
			for i := range rows - 1 {
				local, remote, localPort, remotePort := busy(i)
				all = append(all, tcptable.Socket{Local: bareEndpoint(local, localPort), Remote: bareEndpoint(remote, remotePort),
					State: tcptable.TimeWait, Kind: tcptable.Mini})
			}
			counted, p := New(32, 128), poolOf(32768, 60999)
			b.ReportAllocs()
			for b.Loop() {
				counted.reset(p, nil)
				for i := range all {
					counted.add(&all[i])
				}
				counted.finish()
			}
			reportPerRow(b, rows)
		})
	}
}

// BenchmarkCounts adds rows of so many distinct keys: up to the limit, and beyond.
func BenchmarkCounts(b *testing.B) {
	for _, keys := range []int{100, 10_000, MaxRemotes, 8 * MaxRemotes} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			all := make([]tcptable.Addr, keys)
			for i := range all {
				all[i] = bareEndpoint(theNet+uint32(i), 0).Addr
			}
			c := newCounts[tcptable.Addr](MaxRemotes)
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

// TestEndpointsBounded has more endpoints of listeners than are told apart.
func TestEndpointsBounded(t *testing.T) {
	counted := New(32, 128)
	for range 2 {
		counted.reset(nil, nil)
		for i := range MaxEndpoints + 3000 {
			counted.add(&tcptable.Socket{Local: bareEndpoint(theNet+uint32(i), 80), State: tcptable.Listen})
		}
		counted.finish()
		if n, m := len(counted.queues.endpoints), len(counted.listeners[tcptable.TCP].bound); n != MaxEndpoints || m != MaxEndpoints {
			t.Errorf("%d queues and %d addresses are kept, want %d", n, m, MaxEndpoints)
		}
	}
}
