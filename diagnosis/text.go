package diagnosis

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"timewait_exporter/collector/snapshot"
)

const (
	width = 80 // of a terminal, and of a ticket
	// tableRows is how many rows of each table the text shows; the JSON has all.
	tableRows = 5
)

// WriteText writes the report for people, at most 80 columns wide but for its first line,
// which is one sentence that begins with the verdict. With color it has the escape sequences
// of a terminal.
func (r *Report) WriteText(w io.Writer, color bool) error {
	t := text{color: color}
	t.line("%s: %s", t.paint(r.Verdict, strings.ToUpper(string(r.Verdict))), printable(r.Summary))
	t.line("")
	where := cmp.Or(r.Host, "unknown host") + ", " + r.Taken.UTC().Format(time.RFC3339) + ", " + r.Input.Kind
	if r.Input.Path != "" {
		where += " " + r.Input.Path
	}
	t.wrap("", printable(where))
	for _, assumed := range r.Input.Assumed {
		t.wrap("  what if  ", printable(assumed))
	}
	for _, f := range r.Findings {
		t.finding(f)
	}
	t.limits(r.Limits)
	t.tables(&r.Tables)
	t.watched(r.Watched)
	t.notChecked(r.NotChecked)
	t.capacity(r.Capacity)
	_, err := w.Write(t.Bytes())
	return err
}

// text is a report that is being written.
type text struct {
	bytes.Buffer
	color bool
}

func (t *text) line(format string, args ...any) {
	t.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " "))
	t.WriteByte('\n')
}

// paint colors what is about a level.
func (t *text) paint(level Level, s string) string {
	sequence := map[Level]string{OK: "32", Info: "36", Warning: "33", Critical: "1;31", Unknown: "35"}[level]
	if !t.color || sequence == "" {
		return s
	}
	return "\x1b[" + sequence + "m" + s + "\x1b[0m"
}

func (t *text) heading(s string) {
	t.line("")
	if t.color {
		s = "\x1b[1m" + s + "\x1b[0m"
	}
	t.line("%s", s)
}

// wrap writes words in lines after a label; those that follow the first are indented as far.
func (t *text) wrap(label, s string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(label))
	at := label
	for word := range strings.FieldsSeq(s) {
		switch {
		case at == label || at == indent:
			at += word
		case utf8.RuneCountInString(at)+1+utf8.RuneCountInString(word) > width:
			t.line("%s", at)
			at = indent + word
		default:
			at += " " + word
		}
	}
	t.line("%s", at)
}

func (t *text) finding(f *Finding) {
	t.line("")
	t.line("%s %s", t.paint(f.Level, strings.ToUpper(string(f.Level))), f.Code)
	t.wrap("  What  ", printable(f.Title))
	t.wrap("  Who   ", printable(f.who()))
	t.wrap("  Why   ", printable(f.Cause))
	for _, e := range f.Evidence {
		t.line("          %-36s %s", cut(words(e.Name)), e.amount())
	}
	for i, remedy := range f.Remedy {
		label := "        "
		if i == 0 {
			label = "  Do    "
		}
		t.wrap(fmt.Sprintf("%s%d. ", label, i+1), printable(remedy))
	}
	t.wrap("  Read  ", strings.TrimPrefix(f.Runbook, "/")+".md, or "+f.Runbook+" of the exporter")
}

// cut makes a name fit its column.
func cut(name string) string {
	name = printable(name)
	if short := []rune(name); len(short) > 36 {
		return string(short[:35]) + "…"
	}
	return name
}

// who says whom the finding is about.
func (f *Finding) who() string {
	who := []string{"netns " + f.Netns}
	for _, part := range []struct{ name, value string }{{"listener", f.Listener}, {"remote", f.Remote}, {"program", f.Program}} {
		if part.value != "" {
			who = append(who, part.name+" "+part.value)
		}
	}
	return strings.Join(append(who, "owner "+f.Owner), ", ")
}

// amount is the number with its limit and unit.
func (e Evidence) amount() string {
	if e.Unit == "port" {
		return strconv.Itoa(int(e.Value))
	}
	amount := number(e.Value)
	if e.Limit != nil {
		amount += " of " + number(*e.Limit)
	}
	return amount + " " + e.Unit
}

// where is whose limit it is, if there are several namespaces.
func (e Evidence) where() string {
	if e.Netns == "" {
		return ""
	}
	return ", netns " + e.Netns
}

// share is how much of the limit it is, "" where it has none.
func (e Evidence) share() string {
	if e.Limit == nil || *e.Limit <= 0 {
		return ""
	}
	return percent(e.Value / *e.Limit)
}

func (t *text) limits(limits []Evidence) {
	if len(limits) == 0 {
		return
	}
	t.heading("Limits that were looked at")
	for _, e := range limits {
		t.line("  %5s  %-36s %s", cmp.Or(e.share(), "-"), cut(words(e.Name)), e.amount()+printable(e.where()))
	}
}

// tables writes the largest of each. Of one namespace its name is no news.
func (t *text) tables(tables *Tables) {
	if len(tables.States) > 0 {
		t.heading("Connections by state")
		t.line("  %-14s %12s %12s", "", "inbound", "outbound")
		for _, sum := range sumStates(tables.States) {
			t.line("  %-14s %12s %12s", sum.State, count(sum.Inbound), count(sum.Outbound))
		}
	}
	if len(tables.Destinations) > 0 {
		t.heading("Destinations, by ports gone")
		for _, row := range top(tables.Destinations) {
			t.line("  %5s  %s from %s", percent(row.DestinationPortUtilisation), row.remote(), row.LocalIP)
			t.wrap("         ", printable(amounts(row.DestinationPortsUsed)))
		}
	}
	if len(tables.Remotes) > 0 {
		t.heading("Remotes, by connections")
		for _, row := range top(tables.Remotes) {
			t.wrap(fmt.Sprintf("  %-40s ", printable(row.RemoteIP+" "+row.Direction)), amounts(row.RemoteConnections))
		}
	}
	if len(tables.Owners) > 0 {
		t.heading("Owners, by connections")
		for _, row := range top(tables.Owners) {
			t.wrap(fmt.Sprintf("  %-40s ", printable(row.Owner+" "+row.Direction)), amounts(row.OwnerConnections))
		}
	}
	if len(tables.Listeners) > 0 {
		t.heading("Listeners, by connections")
		for _, row := range top(tables.Listeners) {
			t.wrap(fmt.Sprintf("  port %-6d %s; ", row.LocalPort, row.queue()+" wait for accept()"), cmp.Or(amounts(row.ListenerConnections), "no connections"))
		}
	}
}

// stateSum counts connections of both families, and of all namespaces.
type stateSum struct {
	State             string
	Inbound, Outbound uint64
}

func sumStates(rows []StateRow) (sums []stateSum) {
	for _, row := range rows {
		i := slices.IndexFunc(sums, func(s stateSum) bool { return s.State == row.State })
		if i < 0 {
			i = len(sums)
			sums = append(sums, stateSum{State: row.State})
		}
		if row.Direction == snapshot.Inbound.String() {
			sums[i].Inbound += row.Connections
		} else {
			sums[i].Outbound += row.Connections
		}
	}
	return sums
}

// remote is the address and port, as in findings.
func (r DestinationRow) remote() string {
	ip, _ := netip.ParseAddr(r.RemoteIP)
	return netip.AddrPortFrom(ip, r.RemotePort).String()
}

// queue is how many connections wait for accept(2), and how many may.
func (r ListenerRow) queue() string {
	if r.ListenerAcceptQueueLimit == nil {
		return count(r.ListenerAcceptQueue)
	}
	return count(r.ListenerAcceptQueue) + " of " + count(*r.ListenerAcceptQueueLimit+r.ListenerSockets)
}

func top[T any](all []T) []T { return all[:min(len(all), tableRows)] }

// amounts writes counts by state, the largest first.
func amounts(byState map[string]uint64) string {
	states := slices.SortedFunc(maps.Keys(byState), func(a, b string) int {
		return cmp.Or(cmp.Compare(byState[b], byState[a]), cmp.Compare(a, b))
	})
	for i, state := range states {
		states[i] = count(byState[state]) + " " + state
	}
	return strings.Join(states, ", ")
}

func (t *text) watched(w *Watched) {
	if w == nil {
		return
	}
	if w.Closes != nil {
		lost := ""
		if n := w.Closes.EventsLost; n > 0 {
			lost = ", of " + count(n) + " nothing is known"
		}
		t.heading(fmt.Sprintf("Closed within %s s: %s sockets%s", number(w.Closes.Seconds), count(w.Closes.All+w.Closes.EventsLost), lost))
		for _, d := range top(w.Closes.Destinations) {
			ip, _ := netip.ParseAddr(d.RemoteIP)
			t.closing(fmt.Sprintf("to %s from %s", netip.AddrPortFrom(ip, d.RemotePort), d.LocalIP), &d.Closing)
		}
		for _, li := range top(w.Closes.Listeners) {
			t.closing(fmt.Sprintf("to port %d here", li.LocalPort), &li.Closing)
		}
	}
	if len(w.Counters) > 0 {
		t.heading(fmt.Sprintf("Counters that moved within %s s, a second", number(w.Seconds)))
		for _, c := range w.Counters {
			t.line("  %-25s %12s", c.Name, signed(c.PerSecond))
		}
	}
	if len(w.Growth) > 0 {
		t.heading(fmt.Sprintf("More or fewer within %s s, connections a second", number(w.Seconds)))
		for _, g := range w.Growth {
			t.line("  %-14s %-10s %12s", g.State, g.Direction, signed(g.PerSecond))
		}
	}
}

func (t *text) closing(ends string, c *Closing) {
	t.line("  %s", ends)
	t.wrap("     ", fmt.Sprintf("%s/s, on average after at most %s; %s; %s open on average, %s at most",
		number(c.ClosesPerSecond), requests(c.RequestsPerConnection), c.whoFirst(), number(c.OpenMean), count(c.OpenMost)))
}

func signed(v float64) string {
	if v > 0 {
		return "+" + number(v)
	}
	return number(v)
}

func (t *text) notChecked(all []NotChecked) {
	if len(all) == 0 {
		return
	}
	t.heading("Not checked")
	for _, n := range all {
		t.wrap("  "+printable(n.Check)+": ", printable(n.Reason))
	}
}

func (t *text) capacity(all []Capacity) {
	if len(all) == 0 {
		return
	}
	t.heading("How long: connections a second that can be opened and closed again")
	for _, c := range all[:min(len(all), tableRows)] {
		t.line("  to %s from %s", c.Remote, c.LocalIP)
		t.line("     %s/s at most (%s), slow from %s/s, %s", number(c.ClosesPerSecond), c.binds(), number(c.SlowFromPerSecond), c.now()+" now")
	}
}

// now is the rate of today, if that is known.
func (c Capacity) now() string {
	if c.NowPerSecond == nil {
		return "not known"
	}
	return number(*c.NowPerSecond)
}

// binds is what the limit is called.
func (c Capacity) binds() string {
	switch c.Limit {
	case "pool":
		return "ports"
	case "reuse":
		return "ports, reused"
	case "tw_buckets":
		return "tcp_max_tw_buckets"
	case "nofile":
		return "open files"
	}
	return c.Limit
}

// printable makes one line of text that a terminal shows as it is: names in it may come from
// the network or from anybody on the machine.
func printable(s string) string { return strings.Map(printableRune, s) }

func printableRune(r rune) rune {
	if r == utf8.RuneError || !strconv.IsPrint(r) {
		return '?'
	}
	return r
}
