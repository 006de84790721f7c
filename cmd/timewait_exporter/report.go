package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/go-kit/log"
	"golang.org/x/sys/unix"

	"timewait_exporter/capture"
	"timewait_exporter/collector"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tally"
	"timewait_exporter/diagnosis"
)

const (
	reportCommand = "report"
	stdinPath     = "/dev/stdin"
	// lookTimeout is how long a look at a machine may take, and maxWatch how long it is watched.
	lookTimeout = time.Minute
	maxWatch    = 10 * time.Minute
)

// reportConfig is what the command line says of a report.
type reportConfig struct {
	path          string // "" for this machine
	format, color string
	suppress, set []string
	netns         []string
	listen        int           // 0 if nobody asks
	watch         time.Duration // 0 for one look
	sourceIsGiven bool
	daemonOnly    map[string]*bool // flags that only serving has, and whether they are given
}

// addReport adds the command and its flags.
func addReport(app *kingpin.Application) *reportConfig {
	r := new(reportConfig)
	c := app.Command(reportCommand, "Say what is wrong with the TCP connections of this machine now, who causes it and what helps. "+
		"Exits with 0 if nothing is wrong, 1 for a warning, 2 if connections fail now or soon, 3 if that can't be told.")
	choice(c, "format", "What to write. One of: [text, json]", &r.format, "text", "json")
	choice(c, "color", "Whether the text has colors; auto is on a terminal and without NO_COLOR in the environment. One of: [auto, always, never]",
		&r.color, "auto", "always", "never")
	c.Flag("netns", "Look at the network namespaces of these names alone, of all there are. Repeatable.").
		PlaceHolder("NAME").StringsVar(&r.netns)
	c.Flag("suppress", "Leave out findings of this code, or of this code about this subject; * is any text. Repeatable.").
		PlaceHolder("CODE[=SUBJECT]").StringsVar(&r.suppress)
	c.Flag("set", "What if: take this sysctl for set so, as net.ipv4.ip_local_port_range=\"1024 65535\" or net.ipv4.tcp_tw_reuse=1. Repeatable.").
		PlaceHolder("KEY=VALUE").StringsVar(&r.set)
	c.Arg("path", "What to read instead of this machine: output of ss -tan or netstat -an (Windows too), a copy of /proc or of /proc/net/tcp, an archive of sos; - is stdin.").
		StringVar(&r.path)
	duration(c, "watch", "Watch for so long, as 10s, and listen to connections that are closed: how many a second, after how many requests, who closes first, what a pool would need, what grows. Ctrl-C ends it early. 0s for one look.",
		&r.watch, "0s", maxWatch)
	number(c, "listen", "Say whether a service could begin to listen on this port, and who is in its way. 0 for none.", &r.listen, "0", 65535)
	return r
}

// takeFlags hides the flags of serving, which a report refuses, and notes which are given.
func (r *reportConfig) takeFlags(app *kingpin.Application) {
	r.daemonOnly = make(map[string]*bool)
	for _, flag := range app.Model().Flags {
		if strings.HasPrefix(flag.Name, "web.") || strings.HasPrefix(flag.Name, "log.") {
			r.daemonOnly[flag.Name] = new(bool)
			app.GetFlag(flag.Name).Hidden().IsSetByUser(r.daemonOnly[flag.Name])
		}
	}
	app.GetFlag("collector.source").IsSetByUser(&r.sourceIsGiven)
}

// checkReport refuses what a report has no use for, and finds the namespace to read.
func (c *config) checkReport() error {
	for name, given := range c.report.daemonOnly {
		if *given {
			return fmt.Errorf("--%s: a report serves nothing and logs nothing", name)
		}
	}
	c.collector.Set = make(map[string]string)
	for _, given := range c.report.set {
		key, value, ok := strings.Cut(given, "=")
		if !ok {
			return fmt.Errorf("--set: %q is not KEY=VALUE", given)
		}
		if _, twice := c.collector.Set[key]; twice {
			return fmt.Errorf("--set: %s is given twice", key)
		}
		c.collector.Set[key] = value
	}
	if c.report.path != "" {
		if len(c.report.netns) > 0 {
			return errors.New("--netns: what was captured is one network namespace")
		}
		if c.report.watch > 0 {
			return errors.New("--watch: only this machine can be watched, not what was captured")
		}
		return nil
	}
	c.collector.AllNamespaces = c.collector.AllNamespaces || len(c.report.netns) > 0
	c.collector.Budget = lookTimeout // a look is one, and not a scrape of many
	if !c.report.sourceIsGiven {
		c.collector.Source = collector.SourceAuto // it knows more
	}
	return c.checkSource()
}

// report writes what is wrong with the machine, and returns the exit code.
func report(ctx context.Context, cfg *config, stdin io.Reader, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "%s: error: %s\n", name, oneLine(err.Error()))
		return diagnosis.Unknown.ExitCode()
	}
	facts, err := factsOf(ctx, cfg, stdin, stderr)
	if err != nil {
		return fail(err)
	}
	said := diagnosis.Diagnose(*facts, cfg.report.suppress...)
	if cfg.report.path == "" {
		namePrograms(ctx, cfg, said)
	}
	if cfg.report.format == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(said)
	} else {
		err = said.WriteText(stdout, cfg.report.colored(stdout))
	}
	if err != nil {
		return fail(err)
	}
	return said.Verdict.ExitCode()
}

// colored reports whether the text is to have colors (https://no-color.org).
func (r *reportConfig) colored(stdout io.Writer) bool {
	if r.color != "auto" {
		return r.color == "always"
	}
	return isTerminal(stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// factsOf takes the facts of what the command line names.
func factsOf(ctx context.Context, cfg *config, stdin io.Reader, progress io.Writer) (*diagnosis.Facts, error) {
	path := cfg.report.path
	set := maps.Clone(cfg.collector.Set)
	for _, key := range []string{capture.DynamicPort, capture.TimedWaitDelay} {
		if path != "" {
			delete(cfg.collector.Set, key)
		}
	}
	if err := cfg.collector.CheckSet(ctx); err != nil {
		return nil, fmt.Errorf("--set: %w", err)
	}
	cfg.collector.Set = set
	if path == "" {
		return look(ctx, cfg, progress)
	}
	if path == stdinPath {
		path = "-"
	}
	captured, err := capture.Read(ctx, path, stdin, capture.Options{
		Set: set, Port: uint16(cfg.report.listen), Owners: cfg.collector.Owners,
		Limits: tally.Limits{Remotes: cfg.collector.Remotes, Destinations: cfg.collector.Destinations, Listeners: cfg.collector.Listeners, Locals: 20},
	})
	if errors.Is(err, capture.ErrProc) {
		return lookAtCopy(ctx, cfg, path)
	}
	if err != nil {
		return nil, err
	}
	facts := &diagnosis.Facts{
		Host: captured.Host, Taken: captured.Taken.UTC().Truncate(time.Second), Input: diagnosis.Input{Kind: captured.Kind, Path: path},
		Namespaces: []*snapshot.Namespace{captured.Namespace}, Node: captured.Node, Assumed: assumed(cfg), NATPorts: cfg.collector.NATPorts,
	}
	for _, m := range captured.Missing {
		facts.Missing = append(facts.Missing, diagnosis.NotChecked{Check: m.Subject, Reason: m.Reason})
	}
	if port := uint16(cfg.report.listen); port != 0 {
		facts.Listen = &diagnosis.Listen{Port: port, Holders: captured.Sockets}
	}
	return facts, nil
}

// lookAtCopy takes the facts of a copy of a proc file system, or of a directory that has one.
func lookAtCopy(ctx context.Context, cfg *config, path string) (*diagnosis.Facts, error) {
	cfg.collector.ProcRoot, cfg.collector.Source = path, collector.SourceProcfs
	if info, err := os.Stat(filepath.Join(path, "proc")); err == nil && info.IsDir() {
		cfg.collector.ProcRoot = filepath.Join(path, "proc")
	}
	if err := cfg.checkSource(); err != nil {
		return nil, fmt.Errorf("%s is neither a copy of /proc nor an archive of sos: %w", path, err)
	}
	facts, err := look(ctx, cfg, io.Discard)
	if err != nil {
		return nil, err
	}
	facts.Input = diagnosis.Input{Kind: capture.Proc, Path: path}
	if info, err := os.Stat(filepath.Join(cfg.collector.Namespace.Dir, "tcp")); err == nil {
		facts.Taken = info.ModTime().UTC().Truncate(time.Second)
	}
	return facts, nil
}

// keepNamed leaves only the network namespaces of these names, if there are any.
func keepNamed(facts *diagnosis.Facts, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var have []string
	var named []*snapshot.Namespace
	for _, ns := range facts.Namespaces {
		have = append(have, ns.Name)
		if slices.Contains(names, ns.Name) {
			named = append(named, ns)
		}
	}
	for _, name := range names {
		if !slices.Contains(have, name) {
			return fmt.Errorf("--netns: there is no %q, but %s", name, strings.Join(have[:min(len(have), 10)], ", "))
		}
	}
	facts.Namespaces = named
	return nil
}

func assumed(cfg *config) (all []string) {
	for _, key := range slices.Sorted(maps.Keys(cfg.collector.Set)) {
		all = append(all, key+" = "+cfg.collector.Set[key])
	}
	return all
}

// look takes the facts of this machine, or of a copy of its proc file system.
func look(ctx context.Context, cfg *config, progress io.Writer) (*diagnosis.Facts, error) {
	if cfg.report.watch > 0 {
		cfg.collector.OwnerPause = 100 * time.Millisecond // who comes meanwhile is to have a name
	}
	c, err := collector.New(ctx, cfg.collector, log.NewNopLogger())
	if err != nil {
		return nil, err
	}
	var watched *snapshot.Watch
	if cfg.report.watch > 0 {
		watched = watch(ctx, c, cfg.report.watch, progress)
		ctx = context.WithoutCancel(ctx) // what was seen is told though the time was cut short
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	facts := now(ctx, hostname(cfg.collector.ProcRoot), c)
	facts.Assumed, facts.NATPorts, facts.Watch = assumed(cfg), cfg.collector.NATPorts, watched
	if err := keepNamed(facts, cfg.report.netns); err != nil {
		return nil, err
	}
	if port := uint16(cfg.report.listen); port != 0 {
		facts.Listen, err = holders(ctx, cfg, port)
	}
	return facts, err
}

// now takes the facts of this moment.
func now(ctx context.Context, host string, c *collector.Collector) *diagnosis.Facts {
	facts := &diagnosis.Facts{
		Host: host, Taken: time.Now().UTC().Truncate(time.Second), Input: diagnosis.Input{Kind: "live"},
	}
	ns, node := c.Snapshot(ctx)
	facts.Namespaces, facts.Node = []*snapshot.Namespace{ns}, node
	if node.Namespaces != nil {
		facts.Namespaces = append(facts.Namespaces, node.Namespaces.Others...)
	}
	return facts
}

// watch watches for so long, or until ctx ends, with a bar of what is over on a terminal.
func watch(ctx context.Context, c *collector.Collector, length time.Duration, progress io.Writer) *snapshot.Watch {
	runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))) // one looks while the other listens
	ctx, done := context.WithTimeout(ctx, length)
	defer done()
	show := func(uint64) {}
	if isTerminal(progress) {
		begun := time.Now()
		show = func(closes uint64) {
			const width = 30
			elapsed := min(time.Since(begun), length)
			over := int(width * elapsed / length)
			fmt.Fprintf(progress, "\r[%s%s] %.0f of %.0f s, %d sockets closed", strings.Repeat("#", over), strings.Repeat("-", width-over), elapsed.Seconds(), length.Seconds(), closes)
		}
		defer fmt.Fprint(progress, "\r\x1b[K") // nothing is left of it
	}
	return c.Watch(ctx, show)
}

// hostname is what the machine calls itself, as far as proc, a mount of the proc file system
// or a copy of one, tells.
func hostname(proc string) string {
	text, err := os.ReadFile(filepath.Join(proc, "sys/kernel/hostname"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
