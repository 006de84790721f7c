package tally

import (
	"net/netip"
	"reflect"
	"testing"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// sharing is a snapshot with remotes, listeners, destinations and local IPs of so many
// connections each, in descending order, and one connection each that is not named.
func sharing(sizes ...uint64) *snapshot.Sockets {
	s := &snapshot.Sockets{OtherListeners: new(snapshot.Listener), Ports: &snapshot.Ports{Used: 9}}
	s.OtherRemotes[snapshot.Outbound][tcptable.TimeWait] = 1
	s.OtherListeners.States[tcptable.Established] = 1
	for i, n := range sizes {
		ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		r := snapshot.Remote{IP: ip, Bits: 32}
		r.States[snapshot.Outbound][tcptable.TimeWait] = n
		s.Remotes = append(s.Remotes, r)
		l := snapshot.Listener{Port: uint16(i)}
		l.States[tcptable.Established], l.Unaccepted[tcptable.Established] = n, n
		s.Listeners = append(s.Listeners, l)
		s.AcceptQueues = append(s.AcceptQueues, snapshot.AcceptQueue{LocalIP: ip, Port: uint16(i), Length: n})
		d := snapshot.Destination{RemoteIP: ip, Gone: float64(n) / 100}
		d.Held[tcptable.Established] = n
		s.Ports.Destinations = append(s.Ports.Destinations, d)
		s.Ports.Locals = append(s.Ports.Locals, snapshot.Local{IP: ip, Used: int(n)})
	}
	return s
}

// TestShare names the largest of all namespaces together, and has all others in the sums
// of their own.
func TestShare(t *testing.T) {
	all := []*snapshot.Sockets{sharing(9, 5, 1), nil, sharing(7, 5), {}}
	before := []*snapshot.Sockets{sharing(9, 5, 1), nil, sharing(7, 5), {}}
	f := func(n int, want ...[]uint64) {
		t.Helper()
		got := Share(all, Limits{n, n, n, n, n})
		for i, s := range got {
			if all[i] == nil {
				if s != nil {
					t.Errorf("%d: a snapshot of none", i)
				}
				continue
			}
			var remotes, listeners, queues, destinations, locals []uint64
			rest, restListeners, restUnaccepted := s.OtherRemotes[snapshot.Outbound][tcptable.TimeWait], uint64(0), uint64(0)
			for _, r := range s.Remotes {
				remotes = append(remotes, r.Connections())
				rest += r.Connections()
			}
			if o := s.OtherListeners; o != nil {
				restListeners, restUnaccepted = o.States.Sum(), o.Unaccepted.Sum()
			}
			for _, l := range s.Listeners {
				listeners = append(listeners, l.States.Sum())
				restListeners += l.States.Sum()
				restUnaccepted += l.Unaccepted.Sum()
			}
			for _, q := range s.AcceptQueues {
				queues = append(queues, q.Length)
			}
			if s.Ports != nil {
				for _, d := range s.Ports.Destinations {
					destinations = append(destinations, d.Held.Sum())
				}
				for _, l := range s.Ports.Locals {
					locals = append(locals, uint64(l.Used))
				}
			}
			for what, got := range map[string][]uint64{"remotes": remotes, "listeners": listeners, "queues": queues, "destinations": destinations, "locals": locals} {
				if !reflect.DeepEqual(got, want[i]) {
					t.Errorf("%d named of all, %d: %s of %d, want %d", n, i, what, got, want[i])
				}
			}
			var total uint64
			if i != 3 {
				total = map[int]uint64{0: 16, 2: 13}[i]
			}
			if rest != total || restListeners != total || restUnaccepted != max(total, 1)-1 {
				t.Errorf("%d named of all, %d: %d, %d, %d in all, want %d", n, i, rest, restListeners, restUnaccepted, total)
			}
		}
		if !reflect.DeepEqual(all, before) {
			t.Fatal("the given snapshots have changed")
		}
	}
	f(0, nil, nil, nil, nil)
	f(1, []uint64{9}, nil, nil, nil)
	f(3, []uint64{9, 5}, nil, []uint64{7}, nil)
	f(4, []uint64{9, 5}, nil, []uint64{7, 5}, nil)
	f(9, []uint64{9, 5, 1}, nil, []uint64{7, 5}, nil)
}

// TestTargets adds up what several namespaces are connected to.
func TestTargets(t *testing.T) {
	to := func(ip byte, port uint16, n uint64) snapshot.Target {
		return snapshot.Target{IP: netip.AddrFrom4([4]byte{10, 0, 0, ip}), Port: port, Connections: n}
	}
	all := []*snapshot.Sockets{
		{Targets: []snapshot.Target{to(1, 443, 9), to(2, 443, 5)}}, nil, {},
		{Targets: []snapshot.Target{to(2, 443, 7), to(1, 80, 6), to(1, 443, 1), to(3, 443, 1)}},
	}
	for n, want := range [][]snapshot.Target{nil, {to(2, 443, 12)}, {to(2, 443, 12), to(1, 443, 10)}} {
		if got := Targets(all, n); !reflect.DeepEqual(got, want) {
			t.Errorf("%d targets: %v, want %v", n, got, want)
		}
	}
}
