package collector

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"timewait_exporter/collector/tally"
	"timewait_exporter/collector/tcptable"
)

func bound(device uint32, s tcptable.Socket) tcptable.Socket {
	s.Device = device
	return s
}

// connected makes rows from the ports of 10.0.0.1 that are listed to 10.0.0.2:80.
func connected(state string, device uint32, ports ...int) []tcptable.Socket {
	var rows []tcptable.Socket
	for _, port := range ports {
		rows = append(rows, bound(device, socket(fmt.Sprintf("tcp %s 10.0.0.1:%d 10.0.0.2:80", state, port))))
	}
	return rows
}

// TestDevices has one destination on several devices: the worst of them is the
// destination's.
func TestDevices(t *testing.T) {
	pool := portsOf(t, 40000, 40009, "")
	pool.ReuseMode = 1
	f := func(want float64, used int, rows ...[]tcptable.Socket) {
		t.Helper()
		all := slices.Concat(rows...)
		for range 2 { // and in the other order
			p := tallied(t, pool, everything, all...)
			p.want(t, want, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
			p.want(t, want, "tcp_destination_port_utilisation_ratio", "remote_ip", "10.0.0.2")
			p.want(t, float64(used), "tcp_destination_ports_used", "remote_ip", "10.0.0.2")
			p.want(t, 1, "tcp_destinations")
			p.want(t, float64(len(all)), "tcp_connections")
			p.want(t, float64(len(all)), "tcp_remote_connections", "remote_ip", "10.0.0.2", "direction", "outbound")
			slices.Reverse(all)
		}
	}
	first, last := []int{40000, 40001, 40002, 40003, 40004, 40005}, []int{40006, 40007, 40008, 40009}
	const up, gone = "established", "time_wait"
	f(0.6, 6, connected(up, 0, first...))
	f(0.6, 6, connected(up, 3, first...))
	// Each device has the whole pool.
	f(0.6, 6, connected(up, 3, first...), connected(up, 4, first...))
	f(0.6, 6, connected(up, 3, first...), connected(up, 4, last...))
	// What is on no device is kept from all.
	f(1, 10, connected(up, 0, first...), connected(up, 3, last...))
	f(1, 10, connected(up, 0, last...), connected(up, 3, first...), connected(up, 4, first[:2]...))
	// Each port once.
	f(0.6, 6, connected(up, 0, first...), connected(up, 3, first...))
	f(0.8, 8, connected(up, 0, first...), connected(up, 3, 40004, 40005, 40006, 40007))
	f(0.8, 8, connected(up, 0, first...), connected(up, 3, 40004, 40005, 40006, 40007), connected(up, 4, 40000))
	// What may be reused is held, and not gone.
	f(0.4, 10, connected(gone, 0, first...), connected(up, 3, last...))
	f(0.6, 10, connected(up, 0, first...), connected(gone, 3, last...))
	f(0, 6, connected(gone, 3, first...), connected(gone, 0, first...))
}

// TestDevicesLinkLocal has one link-local address on two links: two destinations, two
// remotes, two local IPs.
func TestDevicesLinkLocal(t *testing.T) {
	pool := portsOf(t, 42000, 42099, "")
	rows := sockets(
		"tcp6 listen [fe80::1%2]:179 [::]:0",
		"tcp6 established [fe80::1%2]:179 [fe80::9%2]:5000",
		"tcp6 established [fe80::1%3]:179 [fe80::9%3]:5000", // its port is not the listener's
	)
	for port := range 60 {
		for zone := 2; zone <= 3; zone++ {
			rows = append(rows, socket(fmt.Sprintf("tcp6 syn_sent [fe80::1%%%d]:%d [fe80::9%%%d]:179", zone, 42000+port, zone)))
		}
	}
	p := tallied(t, pool, everything, rows...)
	for _, zone := range []string{"%2", "%3"} {
		p.want(t, 0.6, "tcp_destination_port_utilisation_ratio", "local_ip", "fe80::1"+zone, "remote_ip", "fe80::9"+zone, "remote_port", "179")
		p.want(t, 60, "tcp_destination_ports_used", "remote_ip", "fe80::9"+zone)
		p.want(t, 60, "tcp_remote_connections", "remote_ip", "fe80::9"+zone, "state", "syn_sent")
		p.want(t, 60, "tcp_local_ports_used", "local_ip", "fe80::1"+zone)
	}
	p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
	p.want(t, 3, "tcp_destinations")
	p.want(t, 2, "tcp_remote_ips", "direction", "outbound")
	p.want(t, 1, "tcp_connections", "direction", "inbound", "state", "established")
	p.want(t, 0, "tcp_listener_accept_queue", "local_ip", "fe80::1%2", "local_port", "179")

	// Blocks of addresses have no zone.
	p = tallyPage(t, tally.New(32, 64), pool, everything, nil, rows...)
	p.want(t, 120, "tcp_remote_connections", "remote_ip", "fe80::/64", "state", "syn_sent")
	p.want(t, 1, "tcp_remote_ips", "direction", "outbound")
	p = tallyPage(t, tally.New(24, 128), pool, everything, nil, rows...)
	p.want(t, 60, "tcp_remote_connections", "remote_ip", "fe80::9%3", "state", "syn_sent")

	// /proc does not tell them apart, and a share is never more than all.
	for i := range rows {
		rows[i] = socket(fmt.Sprintf("tcp6 %v [fe80::1]:%d [fe80::9]:%d", rows[i].State, rows[i].Local.Port, rows[i].Remote.Port))
	}
	p = tallied(t, pool, everything, rows...)
	p.want(t, 1, "tcp_destination_port_utilisation_ratio", "remote_ip", "fe80::9", "remote_port", "179")
	p.want(t, 1, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
	p.want(t, 0.6, "tcp_ephemeral_port_utilisation_ratio", "pool", "bind")
}

// TestDevicesRandom compares the ratio of destinations with one that is counted in a
// simple way. Rows that differ in their device alone are near each other, as in the
// kernel's buckets.
func TestDevicesRandom(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	pool := portsOf(t, 40000, 40199, "")
	pool.ReuseMode = 1
	counted := tally.New(32, 128)
	for round := range 30 {
		var held, blocked [5][4][200]bool // by remote, device and port
		var buckets [][]tcptable.Socket
		for remote := range 1 + random.IntN(5) {
			for port := range 200 {
				var bucket []tcptable.Socket
				state := []string{"established", "time_wait"}[random.IntN(2)] // one for all, whose order the kernel's answer depends on
				for device := range uint32(4) {
					if random.IntN(3) > 0 {
						continue
					}
					bucket = append(bucket, bound(device, socket(fmt.Sprintf("tcp %s 10.0.0.1:%d 10.0.1.%d:80", state, 40000+port, remote))))
					held[remote][device][port], blocked[remote][device][port] = true, state == "established"
				}
				random.Shuffle(len(bucket), func(i, j int) { bucket[i], bucket[j] = bucket[j], bucket[i] })
				buckets = append(buckets, bucket)
			}
		}
		random.Shuffle(len(buckets), func(i, j int) { buckets[i], buckets[j] = buckets[j], buckets[i] })
		p := tallyPage(t, counted, pool, everything, nil, slices.Concat(buckets...)...)

		worst := 0.
		for remote := range 5 {
			most, used := 0, 0
			for device := range 4 {
				gone, all := 0, 0
				for port := range 200 {
					if blocked[remote][0][port] || blocked[remote][device][port] {
						gone++
					}
					if held[remote][0][port] || held[remote][device][port] {
						all++
					}
				}
				if gone > most || gone == most && all > used {
					most, used = gone, all
				}
			}
			if used == 0 {
				continue
			}
			ip := fmt.Sprintf("10.0.1.%d", remote)
			p.want(t, float64(most)/200, "tcp_destination_port_utilisation_ratio", "remote_ip", ip)
			p.want(t, float64(used), "tcp_destination_ports_used", "remote_ip", ip)
			worst = max(worst, float64(most)/200)
		}
		p.want(t, worst, "tcp_ephemeral_port_utilisation_ratio", "pool", "connect")
		if t.Failed() {
			t.Fatal("round " + strconv.Itoa(round))
		}
	}
}
