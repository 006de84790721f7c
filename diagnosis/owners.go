package diagnosis

import (
	"fmt"
	"math"
	"strings"

	"timewait_exporter/collector/owner"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// How sure an owner is.
const (
	exact   = "exact"   // the kernel says it of each of these sockets
	sampled = "sampled" // of some of them, or of earlier ones
)

const fromCgroup = "sock_diag cgroup"

// setOwner says whose the sockets of a finding are.
func (l *look) setOwner(f *Finding, name, certainty string) {
	if name == "" || name == owner.Unknown || name == owner.Other {
		return
	}
	f.Owner, f.OwnerCertainty = name, certainty
	if o := l.owner(name); o != nil && f.Program == "" {
		f.Program = o.Program
	}
}

func (l *look) owner(name string) *snapshot.OwnerSockets {
	if l.ns.Owners == nil {
		return nil
	}
	for i := range l.ns.Owners.All {
		if o := &l.ns.Owners.All[i]; o.Name == name {
			return o
		}
	}
	return nil
}

// ownListener says whose the listeners of a port are, if they are of one.
func (l *look) ownListener(f *Finding, port uint16) (o *snapshot.OwnerSockets) {
	if l.ns.Owners == nil {
		return nil
	}
	name := ""
	for _, li := range l.ns.Owners.Listeners {
		if li.Port != port {
			continue
		}
		if name != "" && name != li.Name {
			return nil
		}
		name = li.Name
	}
	l.setOwner(f, name, exact)
	return l.owner(name)
}

// ownDestination says whose the sockets toward a destination are. Its TIME_WAITs are of those
// who were seen to open and close; else of who is connected now. What was seen is said in the
// cause, for it is no proof against one of them.
func (l *look) ownDestination(f *Finding, d *portsOf) {
	of := l.destinationOwners(d)
	if of == nil {
		return
	}
	seen, certainty := of.Live, exact
	if d.most == tcptable.TimeWait {
		certainty = sampled
		if len(of.Gone) > 0 {
			seen = of.Gone
		}
	}
	var all uint64
	for _, o := range seen {
		all += o.Sockets
	}
	if len(seen) == 0 {
		return
	}
	if seen[0].Sockets < all {
		certainty = sampled
	}
	l.setOwner(f, seen[0].Name, certainty)
	f.against("seen_of_this_owner", float64(seen[0].Sockets), float64(all), "sockets", fromCgroup)
	var shares []string
	for _, o := range seen[:min(len(seen), 3)] {
		shares = append(shares, o.Name+" "+percent(float64(o.Sockets)/float64(all)))
	}
	f.Cause += fmt.Sprintf(" Seen: %s of %s.", strings.Join(shares, ", "), count(all))
}

// destinationOwners returns whose the sockets toward a destination are, nil if that is not known.
func (l *look) destinationOwners(d *portsOf) *snapshot.DestinationOwners {
	if l.ns.Owners == nil {
		return nil
	}
	for i := range l.ns.Owners.Destinations {
		of := &l.ns.Owners.Destinations[i]
		if of.LocalIP == d.LocalIP && of.RemoteIP == d.RemoteIP && of.RemotePort == d.RemotePort {
			return of
		}
	}
	return nil
}

// ownLeak says who leaks connections of a direction most, how old they are, and how near its
// process is to its limit of open files.
func (l *look) ownLeak(f *Finding, d snapshot.Direction) {
	if l.ns.Owners == nil {
		return
	}
	var most *snapshot.OwnerSockets
	var n, all uint64
	for i := range l.ns.Owners.All {
		o := &l.ns.Owners.All[i]
		leaked := o.Connections[d][tcptable.CloseWait]
		all += leaked
		if leaked > n && o.Name != owner.Unknown && o.Name != owner.Other {
			most, n = o, leaked
		}
	}
	if most == nil {
		return
	}
	certainty := exact
	if n < all {
		certainty = sampled
		f.against("of_this_owner", float64(n), float64(all), "connections", fromCgroup)
	}
	l.setOwner(f, most.Name, certainty)
	l.leakEvidence(f, most)
}

func (l *look) leakEvidence(f *Finding, o *snapshot.OwnerSockets) {
	if o == nil {
		return
	}
	if oldest := o.CloseWaits.Oldest; oldest > 0 {
		f.evidence("oldest_close_wait", math.Round(oldest.Seconds()), "s", "tcp_info last ACK")
	}
	if used, most, ok := files(o); ok {
		f.against("open_files", used, most, "files", "/proc/PID/fd")
		if used > processFilesNear*most {
			f.Level = Critical
		}
	}
	l.claims["files of "+o.Name] = f
}

// files are those of the owner's process that is nearest to its limit.
func files(o *snapshot.OwnerSockets) (used, most float64, ok bool) {
	if o.Worst == nil || o.Worst.MaxFiles == math.MaxUint64 || o.Worst.MaxFiles == 0 {
		return 0, 0, false
	}
	return float64(o.Worst.OpenFiles), float64(o.Worst.MaxFiles), true
}

// processFiles finds processes near their limit of open files.
func (l *look) processFiles() {
	if l.ns.Owners == nil {
		l.skip("TCPProcessFilesNearLimit", "how near programs are to their limit of open files is not known without their owners")
		return
	}
	var nearest *snapshot.OwnerSockets
	share := 0.0
	for i := range l.ns.Owners.All {
		o := &l.ns.Owners.All[i]
		used, most, ok := files(o)
		if !ok {
			continue
		}
		if used/most > share {
			nearest, share = o, used/most
		}
		if used <= processFilesNear*most || l.claims["files of "+o.Name] != nil {
			continue
		}
		f := l.find("TCPProcessFilesNearLimit", Critical, "%s of %s has %s of its %s open files in use", o.Worst.Program, o.Name, number(used), number(most))
		f.Cause = "At its limit it can't accept, connect or open a file: \"Too many open files\". Connections that are never closed are the usual cause, and too low a limit for its load the other."
		f.against("open_files", used, most, "files", "/proc/PID/fd")
		l.setOwner(f, o.Name, exact)
		f.Program = o.Worst.Program
		f.remedy("See what they are: ls -l /proc/%d/fd. If they grow without end, restart it. Costs what is under way.", o.Worst.PID)
		f.remedy("Raise its limit: LimitNOFILE= of the unit, or prlimit --pid %d --nofile=%.0f at once. Costs memory as they are used.", o.Worst.PID, 2*most)
	}
	if nearest != nil {
		l.limit("open_files_of_"+nearest.Name, float64(nearest.Worst.OpenFiles), float64(nearest.Worst.MaxFiles), "files", "/proc/PID/limits")
	}
}

// ownersNotKnown says why nothing is known of owners.
func (l *look) ownersNotKnown() {
	switch source := l.ns.OwnerSource; {
	case l.ns.Owners != nil || l.report.Input.Kind != "live":
	case source != nil && source.Reason != "":
		l.skip("owner", "which programs hold the sockets: "+source.Reason)
	default:
		l.skip("owner", "which programs hold the sockets: ask ss -tnp as root")
	}
}
