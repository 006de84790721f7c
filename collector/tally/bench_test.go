package tally

import (
	"encoding/binary"
	"fmt"
	"testing"

	"timewait_exporter/collector/tcptable"
)

// addr returns address i of a large network.
func addr(i int) (a tcptable.Addr) {
	binary.BigEndian.PutUint64(a[8:], 0xffff<<32|20<<24+uint64(i))
	return a
}

// BenchmarkCounts adds rows of so many distinct keys: up to the limit, and beyond.
func BenchmarkCounts(b *testing.B) {
	for _, keys := range []int{100, 10_000, MaxRemotes, 8 * MaxRemotes} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			all := make([]tcptable.Addr, keys)
			for i := range all {
				all[i] = addr(i)
			}
			c := newCounts[tcptable.Addr](MaxRemotes)
			b.ReportAllocs()
			for b.Loop() {
				c.reset()
				for i := range all {
					c.add(&all[i], uint16(i%4), 1)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(keys), "ns/row")
		})
	}
}

// TestEndpointsBounded has more endpoints of listeners than are told apart.
func TestEndpointsBounded(t *testing.T) {
	counted := New(32, 128)
	for range 2 {
		counted.reset(nil, nil)
		for i := range MaxEndpoints + 3000 {
			counted.add(&tcptable.Socket{Local: tcptable.Endpoint{Addr: addr(i), Port: 80}, State: tcptable.Listen})
		}
		counted.finish()
		if n, m := len(counted.queues.endpoints), len(counted.listeners[tcptable.TCP].bound); n != MaxEndpoints || m != MaxEndpoints {
			t.Errorf("%d queues and %d addresses are kept, want %d", n, m, MaxEndpoints)
		}
	}
}
