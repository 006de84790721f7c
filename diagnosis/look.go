package diagnosis

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// look is one at a namespace.
type look struct {
	ns     *snapshot.Namespace
	node   *snapshot.Node
	facts  *Facts
	report *Report
	// claims are the findings that explain what is to be seen of a subject, by subject. What
	// comes later and is about the same adds its evidence to them.
	claims map[string]*Finding
}

// all looks for everything. What causes something else comes before it.
func (l *look) all() {
	l.parts()
	if l.ns.Sockets != nil {
		l.watched()
		switch {
		case l.report.Input.Kind != "windows":
			l.heldForAll()
			l.reuse()
			l.ports()
			l.notReused()
			l.unanswered()
		case l.ns.Pool != nil && l.ns.Sockets.Ports != nil:
			l.windowsPorts()
		}
		l.closeWaits()
		l.acceptQueues()
		l.overflows()
		l.synQueues()
		l.halfClosed()
		l.finWait2()
		l.lastAck()
		if l.report.Input.Kind != "windows" {
			l.bind()
			l.privileged()
			l.timeWaitTable()
			l.listenersInside()
		}
		l.timeWaitOfOne()
		l.oneRemote()
		l.processFiles()
		l.harmlessTimeWaits()
	}
	if l.report.Input.Kind == "windows" {
		l.listen()
		return
	}
	l.recycle()
	l.conntrack()
	l.nodeLimits()
	l.listen()
	l.notYet()
}

// parts says what could not be read.
func (l *look) parts() {
	for _, part := range l.ns.Parts {
		if part.Err != nil {
			l.skip(part.Name, fmt.Sprintf("not read: %v", part.Err))
		}
	}
	if others := l.others(); others != nil {
		if others.Denied > 0 {
			l.skip("namespaces", fmt.Sprintf("%d network namespaces can't be read", others.Denied))
		}
		if !others.HostVisible {
			l.skip("host", "the host's processes can't be seen from here: there may be more network namespaces")
		}
	}
	switch l.ns.Sysctls {
	case snapshot.SysctlsOther:
		l.skip("sysctls", "those that can be read here are of another network namespace")
	case snapshot.SysctlsNone:
		l.unknown("sysctls", "hidden, or not readable")
	case snapshot.SysctlsAssumed:
		l.skip("sysctls", "those of another network namespace can't be read: the kernel's defaults are assumed")
	case snapshot.SysctlsUnknown:
		l.skip("sysctls", "those of another network namespace can't be read, and they are not the kernel's defaults")
	}
}

// others are the network namespaces beside the own one, told of once.
func (l *look) others() *snapshot.Namespaces {
	if l.node == nil || l.ns != l.facts.Namespaces[0] {
		return nil
	}
	return l.node.Namespaces
}

// notYet is what one look can't tell.
func (l *look) notYet() {
	if l.ns.Sockets == nil {
		l.skip("sockets", "this network namespace's table was not read")
		return
	}
	l.ownersNotKnown()
	if l.facts.NATPorts == 0 {
		l.skip("NAT ports", "what stands between may have fewer than this machine")
	}
	if l.watch() == nil {
		l.skip("counters", "overflows, drops and aborts that the kernel counts: one look has no rate")
	}
	switch {
	case l.watch() != nil:
	case l.facts.Watch != nil:
		l.skip("growth", "only the first network namespace is watched")
	case l.report.Input.Kind == "live":
		l.skip("growth", "of other states than TIME_WAIT: one look has no history, report --watch=10s has")
		l.skip("closes", "requests per connection and who closes first: report --watch=10s listens to closes")
	default:
		l.skip("growth", "of other states than TIME_WAIT: one look has no history")
	}
}

// unknown says that a limit is not known, and why it is not on a live machine.
func (l *look) unknown(check, reason string) {
	if l.report.Input.Kind != "live" {
		reason = "not in the input"
	}
	l.skip(check, reason)
}

func (l *look) skip(check, reason string) {
	for i := range l.report.NotChecked {
		switch n := &l.report.NotChecked[i]; {
		case n.Check != check:
		case n.netns == nil || n.netns[len(n.netns)-1] == l.ns.Name:
			return // the input says more of it
		case n.Reason == reason:
			n.netns = append(n.netns, l.ns.Name)
			return
		}
	}
	l.report.NotChecked = append(l.report.NotChecked, NotChecked{Check: check, Reason: reason, netns: []string{l.ns.Name}})
}

// find adds a finding. Its code has to be one of Codes.
func (l *look) find(code string, level Level, format string, args ...any) *Finding {
	f := &Finding{
		Code: code, Level: level, Title: fmt.Sprintf(format, args...),
		Netns: l.ns.Name, Owner: "unknown", OwnerCertainty: "unknown", Runbook: "/runbooks/" + runbookOf(code),
		Evidence: []Evidence{}, Remedy: []string{},
	}
	l.report.Findings = append(l.report.Findings, f)
	return f
}

// evidence of a number that has no limit.
func (f *Finding) evidence(name string, value float64, unit, source string) {
	f.Evidence = append(f.Evidence, Evidence{Name: name, Value: value, Unit: unit, Source: source})
}

// against is evidence of a number and its limit.
func (f *Finding) against(name string, value, limit float64, unit, source string) {
	f.Evidence = append(f.Evidence, Evidence{Name: name, Value: value, Limit: &limit, Unit: unit, Source: source})
}

// remedy adds something to do, with what it costs.
func (f *Finding) remedy(format string, args ...any) {
	f.Remedy = append(f.Remedy, fmt.Sprintf(format, args...))
}

// limit notes that a limit was looked at.
func (l *look) limit(name string, value, limit float64, unit, source string) {
	e := Evidence{Name: name, Value: value, Limit: &limit, Unit: unit, Source: source}
	if len(l.facts.Namespaces) > 1 {
		e.Netns = l.ns.Name
	}
	l.report.Limits = append(l.report.Limits, e)
}

// kernel returns a number of the kernel, of the namespace or the node.
func (l *look) kernel(n kernelstat.Number) (float64, bool) {
	numbers := l.ns.Kernel
	if n.OfNode() {
		if l.node == nil {
			return 0, false
		}
		numbers = l.node.Kernel
	}
	value, ok := numbers[n]
	return float64(value), ok
}

// share is how much of a limit is used: value, limit and whether both are known.
func (l *look) share(value, limit kernelstat.Number) (used, most float64, ok bool) {
	used, ok1 := l.kernel(value)
	most, ok2 := l.kernel(limit)
	return used, most, ok1 && ok2 && most > 0
}

// of returns the connections of a direction in a state, of both families.
func (l *look) of(d snapshot.Direction, s tcptable.State) uint64 {
	return connectionsOf(l.ns.Sockets, d, s)
}

// largestRemote returns the named remote that has most connections of a direction in a state.
func (l *look) largestRemote(d snapshot.Direction, s tcptable.State) (name string, n uint64) {
	for i := range l.ns.Sockets.Remotes {
		r := &l.ns.Sockets.Remotes[i]
		if r.States[d][s] > n {
			name, n = remoteName(r), r.States[d][s]
		}
	}
	return name, n
}

func remoteName(r *snapshot.Remote) string {
	switch {
	case r.Group != "":
		return r.Group
	case r.Bits < r.IP.BitLen():
		return netip.PrefixFrom(r.IP, r.Bits).String()
	}
	return r.IP.String()
}

// timeWaitSeconds is how long a TIME_WAIT holds its port: the kernel's timers fire up to two
// seconds late (kernel/time/timer.c), the median is a second.
func timeWaitSeconds(p *kernelstat.Pool) float64 { return p.TimeWait.Seconds() + 1 }

// stateName is how the state is written in texts, as in ss and RFC 9293.
func stateName(s tcptable.State) string { return strings.ToUpper(s.String()) }

// number writes a count or a rate so that it can be read: 27,100, 0.4.
func number(v float64) string {
	if v != math.Trunc(v) && math.Abs(v) < 99.5 {
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
	digits := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func count[T ~uint64 | ~int](n T) string { return number(float64(n)) }

// percent is rounded down, so that 100 % is never less.
func percent(share float64) string { return fmt.Sprintf("%d %%", int(100*share+1e-9)) }

// about writes a time so that it can be acted upon.
func about(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return "a few seconds"
	case d < 2*time.Minute:
		return fmt.Sprintf("about %d s", int(d.Seconds()/5+0.5)*5)
	case d < 2*time.Hour:
		return fmt.Sprintf("about %d minutes", int(d.Minutes()+0.5))
	}
	return fmt.Sprintf("about %d hours", int(d.Hours()+0.5))
}

// words makes the name of evidence readable.
func words(name string) string { return strings.ReplaceAll(name, "_", " ") }
