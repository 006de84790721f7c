package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"timewait_exporter/collector"
	"timewait_exporter/docs/runbooks"
)

// name is what the program is called.
const name = "timewait_exporter"

// config is what the command line says.
type config struct {
	web            *web.FlagConfig
	telemetryPath  string
	pages          bool
	maxRequests    int
	maxConnections int
	logLevel       string
	logFormat      string
	collector      collector.Config
	namespaces     string
	remoteIPs      bool
	report         *reportConfig // nil if metrics are to be served
}

const (
	// maxSeries bounds the flags that say how many remotes, destinations or listeners
	// are named.
	maxSeries = 10_000
	// fileTimeout bounds the reading of files that flags name.
	fileTimeout = 2 * time.Second
)

// telemetryPath is what a path on the mux and in a link may be made of.
var telemetryPath = regexp.MustCompile(`^(/[\w.~!$&'()*+,;=:@-]+)+$`)

// parseFlags parses and checks the command line. --help and --version print to
// stdout and end the program.
func parseFlags(args []string, stdout io.Writer) (*config, error) {
	app, cfg := newFlags()
	app.UsageWriter(stdout)
	if len(args) == 2 && args[0] == "--completion-bash" && !strings.HasPrefix(args[len(args)-1], "-") {
		args = args[:1] // kingpin forgets the commands once a word is begun; the shell knows which fit
	}
	for i, arg := range args {
		if arg == "-" { // kingpin takes it for a flag without a letter
			args = slices.Concat(args[:i], []string{stdinPath}, args[i+1:])
		}
	}
	// A wrong flag has been parsed as far as the command.
	if given, _ := app.ParseContext(args); given == nil || given.SelectedCommand == nil || given.SelectedCommand.FullCommand() != reportCommand {
		cfg.report = nil
	} else {
		cfg.report.takeFlags(app)
	}
	if _, err := app.Parse(args); err != nil {
		return cfg, err
	}
	cfg.collector.AllNamespaces = cfg.namespaces == "all"
	if !cfg.remoteIPs {
		cfg.collector.Remotes, cfg.collector.Destinations = 0, 0
	}
	if cfg.report != nil {
		return cfg, cfg.checkReport()
	}
	return cfg, cfg.check()
}

// newFlags returns the flags there are, and what they fill.
func newFlags() (*kingpin.Application, *config) {
	app := kingpin.New(name, "Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports.")
	app.Version(version.Print(name))
	app.VersionFlag.Short('V')
	app.HelpFlag.Short('h')

	cfg := &config{web: kingpinflag.AddFlags(app, ":10793")}
	app.Flag("web.telemetry-path", "Path under which to expose metrics.").
		Default("/metrics").StringVar(&cfg.telemetryPath)
	app.Flag("web.report", "Show at / what is wrong now, as the command report says it, and serve it at /report.json. Without, / has links alone.").
		Default("true").BoolVar(&cfg.pages)
	number(app, "web.max-requests", "Maximum number of parallel scrapes and reports; one more waits up to a second. 0 for no limit.",
		&cfg.maxRequests, "40", 1<<20)
	number(app, "web.max-connections", "Maximum number of open connections; the one that has been idle for longest is closed for one more. 0 for no limit.",
		&cfg.maxConnections, "512", 1<<20)
	app.Flag("path.procfs", "Mount point of the proc file system. Of another one than /proc the network namespace of its PID 1 is read.").
		Default("/proc").StringVar(&cfg.collector.ProcRoot)
	app.Flag("path.cgroupfs", "Mount point of the host's cgroup tree, to name the owners of sockets, for a container that mounts it elsewhere. Empty for where the kernel says.").
		Default("").StringVar(&cfg.collector.CgroupFS)
	app.Flag("path.pod-logs", "Directory in which a kubelet has the logs of its pods, whose names tell those of pods and containers.").
		Default("/var/log").StringVar(&cfg.collector.PodLogs)
	choice(app, "log.level", "Only log messages with the given severity or above. One of: [debug, info, warn, error]",
		&cfg.logLevel, "info", "debug", "warn", "error")
	choice(app, "log.format", "Output format of log messages. One of: [logfmt, json]",
		&cfg.logFormat, "logfmt", "json")
	choice(app, "collector.source", "What to read the socket table from. One of: [procfs, netlink, auto]; auto is netlink as long as it works, else procfs.",
		&cfg.collector.Source, collector.SourceProcfs, collector.SourceNetlink, collector.SourceAuto)
	choice(app, "collector.namespaces", "Which network namespaces to read. One of: [own, all]; all are those that a visible process is in: the kernel's counts of each in each scrape, their tables in turns.",
		&cfg.namespaces, "own", "all")
	duration(app, "collector.namespaces.budget", "Processor time of a scrape for tables of other network namespaces, those first that may be short of ports; one table is read at least.",
		&cfg.collector.Budget, "50ms", maxScrapeTimeout)
	number(app, "collector.nat-ports", "Number of connections to one destination that the NAT before this host, or of it, can have: ports of a cloud NAT for each host, or 28232 for each address of a masquerading one. 0 for unknown.",
		&cfg.collector.NATPorts, "0", 1<<30)
	number(app, "collector.remotes", "Number of remote IPs with series of their own, those with most connections.",
		&cfg.collector.Remotes, "50", maxSeries)
	number(app, "collector.destinations", "Number of destinations with series of their own, those with most of the ephemeral ports gone, a quarter of them those with most held, and up to a quarter those that do not answer.",
		&cfg.collector.Destinations, "20", maxSeries)
	number(app, "collector.listeners", "Number of listening ports with series of their own, those with most connections.",
		&cfg.collector.Listeners, "50", maxSeries)
	number(app, "collector.owners", "Number of owners of sockets (systemd units, pods, containers, sessions) with series of their own, those with most sockets. With 0 owners are not looked for.",
		&cfg.collector.Owners, "20", maxSeries)
	number(app, "collector.remote-prefix-ipv4", "Count remote IPv4 addresses in blocks with a prefix of so many bits.",
		&cfg.collector.RemotePrefixIPv4, "32", 32)
	number(app, "collector.remote-prefix-ipv6", "Count remote IPv6 addresses in blocks with a prefix of so many bits.",
		&cfg.collector.RemotePrefixIPv6, "128", 128)
	addRemoteGroups(app, "collector.remote-group", "Count the remote IPs of these networks under a name, before blocks and also without remote IPs. Repeatable. Destinations keep their IPs.",
		&cfg.collector.RemoteGroups)
	app.Flag("collector.remote-ips", "Name remote IPs in metrics, as is the default. Without, no series has a remote address.").
		Default("true").BoolVar(&cfg.remoteIPs)
	app.Command("serve", "Serve metrics. This is what is done without a command.").Default()
	cfg.report = addReport(app)
	return app, cfg
}

// check refuses what kingpin lets pass of the flags for serving.
func (c *config) check() error {
	for _, address := range *c.web.WebListenAddresses {
		if err := checkListenAddress(address); err != nil {
			return fmt.Errorf("--web.listen-address: %q: %w", address, err)
		}
	}
	if p := c.telemetryPath; !telemetryPath.MatchString(p) || path.Clean(p) != p ||
		strings.HasPrefix(p, "/-/") || strings.HasPrefix(p, runbooks.Path) || slices.Contains(reportPaths(), p) {
		return fmt.Errorf("--web.telemetry-path: %q is not a path such as /metrics", p)
	}
	if err := inTime(func() error { return checkWebConfig(*c.web.WebConfigFile) }); err != nil {
		return fmt.Errorf("--web.config.file: %w", err)
	}
	return c.checkSource()
}

// checkSource finds the namespace to read.
func (c *config) checkSource() error {
	if !utf8.ValidString(c.collector.ProcRoot) {
		return fmt.Errorf("--path.procfs: %q is not UTF-8, as the labels that name it are", c.collector.ProcRoot)
	}
	if err := inTime(func() (err error) {
		c.collector.Namespace, err = collector.FindNamespace(c.collector.ProcRoot)
		return err
	}); err != nil {
		return fmt.Errorf("--path.procfs: %w", err)
	}
	if c.collector.Source == collector.SourceNetlink && !c.collector.Namespace.Own {
		return fmt.Errorf("--collector.source: netlink shows the network namespace of this process, and --path.procfs=%s is of another one", c.collector.ProcRoot)
	}
	return nil
}

// inTime returns what f returns, unless the files that it looks at hang.
func inTime(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(fileTimeout):
		return fmt.Errorf("not read after %v", fileTimeout)
	}
}

func checkWebConfig(file string) error {
	if file == "" {
		return nil
	}
	// It is read anew at each request.
	if info, err := os.Stat(file); err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", file)
	}
	return web.Validate(file)
}

func checkListenAddress(address string) error {
	bits := 16
	if rest, ok := strings.CutPrefix(address, "vsock://"); ok {
		address, bits = rest, 32
	}
	host, port, err := net.SplitHostPort(address)
	if malformed, ok := errors.AsType[*net.AddrError](err); ok {
		return errors.New(malformed.Err) // without the address, which is in the message already
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%q is not a host", host)
	}
	if _, err := strconv.ParseUint(port, 10, bits); err != nil {
		return fmt.Errorf("%q is not a port", port)
	}
	return nil
}

// oneLine makes one line of text that anybody can read, and not a longer one than a
// line of the log.
func oneLine(text string) string {
	text = strings.ReplaceAll(text, "\n  ", " ") // lists of YAML
	var line strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		if unicode.IsPrint(r) {
			line.WriteRune(r)
		} else {
			line.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return cut(line.String())
}

// setter is a kingpin.Value. Kingpin's own leave the flag's name out of an error,
// and its numbers take 1.5 for 1.
type setter struct {
	set func(string) error
	get func() string
}

func (s setter) Set(text string) error { return s.set(text) }
func (s setter) String() string        { return s.get() }

// flags are those of the program or of a command.
type flags interface {
	Flag(name, help string) *kingpin.FlagClause
}

// number adds a flag for a whole number from 0 to most.
func number(app flags, name, help string, value *int, def string, most int) {
	app.Flag(name, help).Default(def).SetValue(setter{
		set: func(text string) error {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n > most {
				return fmt.Errorf("--%s: %q is not a whole number from 0 to %d", name, text, most)
			}
			*value = n
			return nil
		},
		get: func() string { return strconv.Itoa(*value) },
	})
}

// duration adds a flag for a time of 0 to most.
func duration(app flags, name, help string, value *time.Duration, def string, most time.Duration) {
	app.Flag(name, help).Default(def).SetValue(setter{
		set: func(text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 || d > most {
				return fmt.Errorf("--%s: %q is not a time from 0s to %v, such as %s", name, text, most, def)
			}
			*value = d
			return nil
		},
		get: func() string { return value.String() },
	})
}

// choice adds a flag for one of some words.
func choice(app flags, name, help string, value *string, def string, others ...string) {
	words := append([]string{def}, others...)
	app.Flag(name, help).Default(def).HintOptions(words...).SetValue(setter{
		set: func(text string) error {
			if !slices.Contains(words, text) {
				return fmt.Errorf("--%s: %q is not one of %s", name, text, strings.Join(words, ", "))
			}
			*value = text
			return nil
		},
		get: func() string { return *value },
	})
}
