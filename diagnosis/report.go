// Package diagnosis says what is wrong with a machine's TCP connections, who causes it and
// what helps. It turns snapshots, plain numbers, into a Report: findings, the capacity of
// destinations, and what could not be checked. It reads nothing and knows neither Prometheus
// nor where a snapshot comes from, so that the same numbers give the same report, live or from
// an archive.
//
// A kind of finding is one file: its condition, evidence, cause and remedy. Codes are names of
// alerts where there is one, and thresholds are the alerts'.
package diagnosis

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// SchemaVersion is that of the Report in JSON (docs/report.schema.json).
const SchemaVersion = 1

// Level says how bad something is.
type Level string

// The levels of findings and, with OK and Unknown, the verdicts.
const (
	OK       Level = "ok"       // nothing found
	Info     Level = "info"     // good to know
	Warning  Level = "warning"  // a person should act
	Critical Level = "critical" // calls fail now, or within minutes
	Unknown  Level = "unknown"  // nothing could be checked
)

// ExitCode is that of a program whose report has this verdict, as monitoring plugins have it: 0
// to 3.
func (l Level) ExitCode() int {
	switch l {
	case Warning:
		return 1
	case Critical:
		return 2
	case Unknown:
		return 3
	}
	return 0
}

// rank orders levels, the worst first.
func (l Level) rank() int { return slices.Index([]Level{Critical, Warning, Info}, l) }

// Report is what is said of a machine at one time.
type Report struct {
	SchemaVersion int          `json:"schema_version"`
	Verdict       Level        `json:"verdict"`
	Summary       string       `json:"summary"`
	Host          string       `json:"host"`
	Taken         time.Time    `json:"taken"`
	Input         Input        `json:"input"`
	Findings      []*Finding   `json:"findings"`
	Capacity      []Capacity   `json:"capacity"`
	NotChecked    []NotChecked `json:"not_checked"`
	// Limits are those that were looked at, and how far each is.
	Limits []Evidence `json:"limits"`
	Tables Tables     `json:"tables"`
	// Watched is nil if the machine was looked at once.
	Watched *Watched `json:"watched,omitempty"`
}

// Input is where the numbers come from.
type Input struct {
	// Assumed are sysctls that are not as the machine has them, each with its value.
	Assumed []string `json:"assumed,omitempty"`
	// Kind is "live", "proc", "sos", "ss", "netstat" or "windows".
	Kind string `json:"kind"`
	// Path is what was read, "" of a live machine.
	Path string `json:"path"`
}

// Finding is something to know about.
type Finding struct {
	// Code is the name of its alert, where there is one.
	Code  string `json:"code"`
	Level Level  `json:"level"`
	// Title is one sentence with names and numbers, Cause says how it comes to that.
	Title    string     `json:"title"`
	Cause    string     `json:"cause"`
	Evidence []Evidence `json:"evidence"`
	Netns    string     `json:"netns"`
	// Owner is whose sockets they are, and OwnerCertainty "exact", "sampled" or "unknown".
	Owner          string `json:"owner"`
	OwnerCertainty string `json:"owner_certainty"`
	Program        string `json:"program"`
	// Remote is an address, with its port where one matters; Listener an address and port.
	Remote   string `json:"remote"`
	Listener string `json:"listener"`
	// Remedy is what to do, the best first, each with what it costs.
	Remedy []string `json:"remedy"`
	// Runbook is where the exporter serves more about it.
	Runbook string `json:"runbook"`
}

// Subject is what the finding is about: its remote or its listener, else its namespace.
func (f *Finding) Subject() string { return cmp.Or(f.Remote, f.Listener, f.Netns) }

// IsAbout reports whether a live socket is one that the finding is about: a listener on its
// address, or one that is connected to its remote.
func (f *Finding) IsAbout(s *tcptable.Socket) bool {
	if f.Listener != "" {
		return s.State == tcptable.Listen && endpointOf(s.Local) == f.Listener
	}
	return s.State != tcptable.Listen && (f.Remote == endpointOf(s.Remote) || f.Remote == s.Remote.Addr.IP().String()) &&
		(f.Code != "TCPCloseWaitLeak" || s.State == tcptable.CloseWait)
}

// Evidence is a number, and the limit it is held against.
type Evidence struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Limit *float64 `json:"limit,omitempty"`
	Unit  string   `json:"unit"`
	// Source is where the kernel says it.
	Source string `json:"source"`
	// Netns is whose limit it is, where there are several namespaces.
	Netns string `json:"netns,omitempty"`
}

// Capacity is how many connections a second can be opened to a destination and closed again.
type Capacity struct {
	Netns   string `json:"netns"`
	LocalIP string `json:"local_ip"`
	Remote  string `json:"remote"`
	// Limit is what binds first: "pool", "reuse", "tw_buckets", "nofile" or "nat".
	Limit string `json:"limit"`
	// ClosesPerSecond is what it allows, and SlowFromPerSecond from where on half of the pool is
	// held and connect(2) searches for long.
	ClosesPerSecond   float64 `json:"closes_per_second"`
	SlowFromPerSecond float64 `json:"slow_from_per_second"`
	// NowPerSecond is the mean of the last TIME_WAIT length; nil where ports are taken over and
	// TIME_WAITs don't tell.
	NowPerSecond *float64 `json:"now_per_second,omitempty"`
}

// NotChecked is a code, or a subject, about which nothing is known.
type NotChecked struct {
	Check  string   `json:"check"`
	Reason string   `json:"reason"`
	netns  []string // of which it is true; nil if it is of no namespace
}

// where says of which namespaces it is true, where there are several.
func (n *NotChecked) where() string {
	switch len(n.netns) {
	case 0:
		return ""
	case 1:
		return n.netns[0] + ": "
	}
	return fmt.Sprintf("%d network namespaces: ", len(n.netns))
}

// Facts are what a report is made of.
type Facts struct {
	Host  string
	Taken time.Time
	Input Input
	// Namespaces have their tables or say, in their Parts, why not.
	Namespaces []*snapshot.Namespace
	Node       *snapshot.Node
	// Assumed are sysctls that were taken for set, each with its value.
	Assumed []string
	// NATPorts is how many ports the NAT before the machine has toward one destination; 0 if
	// that is not known.
	NATPorts int
	// Missing is what the input can't show.
	Missing []NotChecked
	// Watch is what was seen of one of Namespaces until they were read; nil if all were
	// looked at once.
	Watch *snapshot.Watch
	// Listen is a port that a service wants to listen on, and Holders all sockets of that port;
	// nil if nobody asks.
	Listen *Listen
}

// Listen asks whether a service can begin to listen on a port.
type Listen struct {
	Port    uint16
	Holders []tcptable.Socket
	// Programs are the programs that have a socket open, by its inode, as far as that may be
	// known.
	Programs map[uint64]string
}

// Diagnose makes the report of a machine. Findings that a pattern of suppress matches are left
// out: CODE or CODE=SUBJECT, in which * is any text.
func Diagnose(facts Facts, suppress ...string) *Report {
	r := &Report{
		SchemaVersion: SchemaVersion, Host: facts.Host, Taken: facts.Taken, Input: facts.Input,
		Findings: []*Finding{}, Capacity: []Capacity{}, NotChecked: slices.Clone(facts.Missing), Limits: []Evidence{}, Tables: newTables(),
	}
	r.Input.Assumed = facts.Assumed
	walked := false
	for _, ns := range facts.Namespaces {
		l := &look{ns: ns, node: facts.Node, facts: &facts, report: r, claims: make(map[string]*Finding)}
		l.all()
		r.Tables.add(ns)
		walked = walked || ns.Sockets != nil
	}
	if len(facts.Namespaces) > 1 {
		for i := range r.NotChecked {
			r.NotChecked[i].Check = r.NotChecked[i].where() + r.NotChecked[i].Check
		}
	}
	r.suppress(suppress)
	slices.SortStableFunc(r.Findings, func(a, b *Finding) int { return cmp.Compare(a.Level.rank(), b.Level.rank()) })
	switch {
	case len(r.Findings) > 0:
		r.Verdict = r.Findings[0].Level
	case walked:
		r.Verdict = OK
	default:
		r.Verdict = Unknown
	}
	if !walked && r.Verdict == Info {
		r.Verdict = Unknown
	}
	r.Summary = r.summary()
	if r.NotChecked == nil {
		r.NotChecked = []NotChecked{}
	}
	return r
}

// suppress leaves findings out, and says so.
func (r *Report) suppress(patterns []string) {
	for _, pattern := range patterns {
		var expr strings.Builder
		for i, text := range strings.Split(pattern, "*") {
			if i > 0 {
				expr.WriteString(".*")
			}
			expr.WriteString(regexp.QuoteMeta(text))
		}
		matches := regexp.MustCompile("(?s)^" + expr.String() + "$")
		r.Findings = slices.DeleteFunc(r.Findings, func(f *Finding) bool {
			subject := f.Code + "=" + f.Subject()
			if !matches.MatchString(f.Code) && !matches.MatchString(subject) {
				return false
			}
			r.NotChecked = append(r.NotChecked, NotChecked{Check: subject, Reason: "suppressed"})
			return true
		})
	}
}

// summary is the verdict in one sentence.
func (r *Report) summary() string {
	if len(r.Findings) == 0 && r.Verdict == Unknown {
		if len(r.NotChecked) > 0 {
			return "nothing could be checked: " + r.NotChecked[0].Reason
		}
		return "nothing could be checked"
	}
	if len(r.Findings) == 0 {
		return r.nothingWrong()
	}
	var others []string
	for _, level := range []Level{Critical, Warning} {
		n := 0
		for _, f := range r.Findings[1:] {
			if f.Level == level {
				n++
			}
		}
		if n > 0 {
			others = append(others, fmt.Sprintf("%d more %s", n, level))
		}
	}
	title := r.Findings[0].Title
	if len(others) > 0 {
		title += " (and " + strings.Join(others, ", ") + ")"
	}
	return title
}

// nothingWrong names the limit that is nearest.
func (r *Report) nothingWrong() string {
	var nearest *Evidence
	for i := range r.Limits {
		if e := &r.Limits[i]; e.Limit != nil && *e.Limit > 0 && (nearest == nil || e.Value / *e.Limit > nearest.Value / *nearest.Limit) {
			nearest = e
		}
	}
	if nearest == nil {
		return "nothing wrong is to be seen, and no limit could be read"
	}
	wrong := "nothing wrong"
	if slices.ContainsFunc(r.NotChecked, func(n NotChecked) bool {
		return strings.HasSuffix(n.Check, portsNotChecked) && n.Reason != "suppressed"
	}) {
		wrong = "nothing wrong in what could be checked, which ports could not"
	}
	return fmt.Sprintf(wrong+": %d limits looked at, the nearest is %s at %s of %s %s; %d things not checked",
		len(r.Limits), words(nearest.Name), number(nearest.Value), number(*nearest.Limit), nearest.Unit+nearest.where(), len(r.NotChecked))
}
