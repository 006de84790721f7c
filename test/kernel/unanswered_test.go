package kernel

import (
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
