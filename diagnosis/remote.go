package diagnosis

import (
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// oneRemote finds a client, or one of several load balancers, that crowds out the others. A
// host behind one single load balancer is not skewed.
func (l *look) oneRemote() {
	sockets := l.ns.Sockets
	share := sockets.TopShare[snapshot.Inbound][tcptable.Established]
	all := float64(l.of(snapshot.Inbound, tcptable.Established))
	if l.ns.Pool == nil || share <= oneRemote || all <= 0.1*float64(l.ns.Pool.Size) {
		return
	}
	matter := 0
	for i := range sockets.Remotes {
		if float64(sockets.Remotes[i].States[snapshot.Inbound][tcptable.Established]) > 0.02*all {
			matter++
		}
	}
	if matter < 3 {
		return
	}
	peer, n := l.largestRemote(snapshot.Inbound, tcptable.Established)
	f := l.find("TCPOneRemoteDominates", Warning, "%s holds %s of the %s established inbound connections", peer, percent(share), number(all))
	f.Remote = peer
	f.Cause = "If that is a load balancer, its peers are idle or down, and it is close to what one address can open; if it is a client, it crowds out the others."
	f.against("of_the_largest_remote", float64(n), all, "connections", fromTable)
	f.evidence("remotes_above_2_percent", float64(matter), "remotes", fromTable)
	f.remedy("Bring the other load balancers back, or balance by connections (least_conn). Costs a setting.")
	f.remedy("Limit connections by client. Costs that client what is above.")
}
