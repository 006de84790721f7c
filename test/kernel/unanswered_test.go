package kernel

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// TestAnswered has a peer that answers at last, and peers that answer each probe: one that
// is idle and one that does not read.
func TestAnswered(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		w := netns.NewWire(t)
		far := netip.AddrPortFrom(netns.WireNear4.Addr().Next(), 5432)
		gone := netns.NewSocket(t, unix.AF_INET)
		gone.Start(t, far)
		peer := w.Answer(t, gone.Local(t), far)
		gone.Write(t, []byte("select 2"))

		alive := netns.Serve(t, loopback6, 9000).MustConnect(t, 2)
		alive[0].Client.KeepAlive(t, 1)
		alive[1].Client.FillPeer(t)
		filled := time.Now()

		es := startExporters(t)
		unanswered := func(want float64) func() bool {
			return func() bool {
				got := 0.0
				for _, p := range es.scrape(t) {
					got += p.sum("tcp_unanswered_connections", "direction", "outbound", "state", "established")
				}
				return got == want*float64(len(es))
			}
		}
		netns.Eventually(t, unanswered(1), func() string { return "a connection is sent again for nothing, and not counted" })
		peer.Expect(t, netns.FlagPSH)
		peer.Confirm(t)
		netns.Eventually(t, unanswered(0), func() string { return "its peer has answered, and it is still counted" })

		// By then a third probe has gone to those that are alive.
		time.Sleep(time.Until(filled.Add(3500 * time.Millisecond)))
		for _, p := range es.scrape(t) {
			p.want(t, 0, "tcp_unanswered_connections")
			p.want(t, 0, "tcp_destination_unanswered_connections")
			p.want(t, 1, "tcp_timer_connections", "direction", "outbound", "timer", "none") // whose peer has answered
			p.want(t, 2, "tcp_timer_connections", "direction", "inbound", "timer", "none")
			p.want(t, 1, "tcp_timer_connections", "timer", "keepalive")
			p.want(t, 1, "tcp_timer_connections", "timer", "probe")
		}
	})
}

// TestHalfClosed has connections in FIN_WAIT2 of a program that has called shutdown(), which
// tcp_fin_timeout does not end, and of one that has called close().
func TestHalfClosed(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		netns.SetSysctl(t, "net/ipv4/tcp_fin_timeout", "1")
		ways := []struct {
			direction string
			end       func(netns.Pair) netns.Socket
		}{
			{"outbound", func(p netns.Pair) netns.Socket { return p.Client }},
			{"inbound", func(p netns.Pair) netns.Socket { return p.Server }},
		}
		for i, way := range ways {
			for _, at := range []netip.Addr{loopback4, loopback6} {
				pairs := netns.Serve(t, at, uint16(9000+i)).MustConnect(t, 5)
				for _, p := range pairs[:2] {
					way.end(p).Shutdown(t)
				}
				for _, p := range pairs[2:] {
					way.end(p).Close(t)
				}
			}
		}
		for _, e := range startExporters(t) {
			var p page
			netns.Eventually(t, func() bool {
				p = e.scrape(t)
				return p.sum("tcp_connections", "state", "fin_wait2") == 8
			}, func() string {
				return fmt.Sprintf("fin_wait2 is %v, 8 end by nothing", p.series("tcp_connections", "state", "fin_wait2"))
			})
			for _, way := range ways {
				p.want(t, 4, "tcp_half_closed_connections", "direction", way.direction)
			}
		}
	})
}
