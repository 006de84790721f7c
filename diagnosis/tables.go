package diagnosis

import (
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// Tables are the numbers behind the findings. Rows have the labels and values of metrics, by
// their names without the prefix.
type Tables struct {
	States       []StateRow       `json:"states"`
	Destinations []DestinationRow `json:"destinations"`
	Remotes      []RemoteRow      `json:"remotes"`
	Owners       []OwnerRow       `json:"owners"`
	Listeners    []ListenerRow    `json:"listeners"`
}

// StateRow counts the connections of a direction in a state; those without any are left out.
type StateRow struct {
	Netns       string `json:"netns"`
	Family      string `json:"family"`
	Direction   string `json:"direction"`
	State       string `json:"state"`
	Connections uint64 `json:"connections"`
}

// DestinationRow is what connect(2) needs a free local port for.
type DestinationRow struct {
	Netns                      string            `json:"netns"`
	LocalIP                    string            `json:"local_ip"`
	RemoteIP                   string            `json:"remote_ip"`
	RemotePort                 uint16            `json:"remote_port"`
	DestinationPortUtilisation float64           `json:"destination_port_utilisation_ratio"`
	DestinationPortsUsed       map[string]uint64 `json:"destination_ports_used"`
}

// RemoteRow is a peer, or all that are not named.
type RemoteRow struct {
	Netns             string            `json:"netns"`
	RemoteIP          string            `json:"remote_ip"`
	Direction         string            `json:"direction"`
	RemoteConnections map[string]uint64 `json:"remote_connections"`
}

// OwnerRow is a unit, container or session.
type OwnerRow struct {
	Netns            string            `json:"netns"`
	Owner            string            `json:"owner"`
	Direction        string            `json:"direction"`
	OwnerConnections map[string]uint64 `json:"owner_connections"`
}

// ListenerRow is a local port with its inbound connections and its accept queues, in sum.
type ListenerRow struct {
	Netns                         string            `json:"netns"`
	LocalPort                     uint16            `json:"local_port"`
	ListenerConnections           map[string]uint64 `json:"listener_connections"`
	ListenerUnacceptedConnections map[string]uint64 `json:"listener_unaccepted_connections"`
	ListenerSockets               uint64            `json:"listener_sockets"`
	ListenerAcceptQueue           uint64            `json:"listener_accept_queue"`
	// ListenerAcceptQueueLimit and Fill are nil where the limits are not known.
	ListenerAcceptQueueLimit *uint64  `json:"listener_accept_queue_limit,omitempty"`
	ListenerAcceptQueueFill  *float64 `json:"listener_accept_queue_fill_ratio,omitempty"`
}

// newTables has lists that are empty, not null.
func newTables() Tables {
	return Tables{States: []StateRow{}, Destinations: []DestinationRow{}, Remotes: []RemoteRow{}, Owners: []OwnerRow{}, Listeners: []ListenerRow{}}
}

func (t *Tables) add(ns *snapshot.Namespace) {
	sockets := ns.Sockets
	if sockets == nil {
		return
	}
	for d := range snapshot.NumDirections {
		for s := range d.States() {
			for f := range snapshot.NumFamilies {
				if n := sockets.Connections[f][d][s]; n > 0 {
					t.States = append(t.States, StateRow{ns.Name, f.String(), d.String(), s.String(), n})
				}
			}
		}
	}
	if sockets.Ports != nil {
		for _, to := range sockets.Ports.Destinations {
			t.Destinations = append(t.Destinations, DestinationRow{
				ns.Name, to.LocalIP.String(), to.RemoteIP.String(), to.RemotePort, to.Gone, byState(to.Held),
			})
		}
	}
	for i := range sockets.Remotes {
		r := &sockets.Remotes[i]
		t.addRemote(ns.Name, remoteName(r), r.States)
	}
	t.addRemote(ns.Name, "other", sockets.OtherRemotes)
	if ns.Owners != nil {
		for i := range ns.Owners.All {
			o := &ns.Owners.All[i]
			for d := range snapshot.NumDirections {
				if n := byState(o.Connections[d]); len(n) > 0 {
					t.Owners = append(t.Owners, OwnerRow{ns.Name, o.Name, d.String(), n})
				}
			}
		}
	}
	for i := range sockets.Listeners {
		li := &sockets.Listeners[i]
		row := ListenerRow{Netns: ns.Name, LocalPort: li.Port, ListenerConnections: byState(li.States), ListenerUnacceptedConnections: byState(li.Unaccepted)}
		var limit uint64
		var fill float64
		for _, q := range sockets.AcceptQueues {
			if q.Port == li.Port {
				row.ListenerSockets += q.Sockets
				row.ListenerAcceptQueue += q.Length
				limit += q.Limit
				fill = max(fill, q.Fill)
			}
		}
		if sockets.HasBacklogs {
			row.ListenerAcceptQueueLimit, row.ListenerAcceptQueueFill = &limit, &fill
		}
		t.Listeners = append(t.Listeners, row)
	}
}

func (t *Tables) addRemote(netns, name string, states [snapshot.NumDirections]snapshot.States) {
	for d := range snapshot.NumDirections {
		if n := byState(states[d]); len(n) > 0 {
			t.Remotes = append(t.Remotes, RemoteRow{netns, name, d.String(), n})
		}
	}
}

func byState(states snapshot.States) map[string]uint64 {
	all := make(map[string]uint64)
	for s, n := range states {
		if n > 0 {
			all[tcptable.State(s).String()] = n
		}
	}
	return all
}
