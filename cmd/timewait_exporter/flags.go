package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"
	sloggokit "github.com/tjhop/slog-gokit"

	"timewait_exporter/collector"
	"timewait_exporter/docs/runbooks"
)

// config is what the command line says.
type config struct {
	web           *web.FlagConfig
	telemetryPath string
	maxRequests   int
	logLevel      string
	logFormat     string
	collector     collector.Config
}

// maxSeries bounds the flags that say how many remotes, destinations or listeners
// are named.
const maxSeries = 10_000

// parseFlags parses and checks the command line. --help and --version print to
// stdout and end the program.
func parseFlags(args []string, stdout io.Writer) (*config, error) {
	app := kingpin.New(name, "Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports.")
	app.UsageWriter(stdout)
	app.Version(version.Print(name))
	app.VersionFlag.Short('V')
	app.HelpFlag.Short('h')

	cfg := &config{web: kingpinflag.AddFlags(app, ":10793")}
	app.Flag("web.telemetry-path", "Path under which to expose metrics.").
		Default("/metrics").StringVar(&cfg.telemetryPath)
	app.Flag("web.max-requests", "Maximum number of parallel scrapes; 0 for no limit.").
		Default("40").IntVar(&cfg.maxRequests)
	app.Flag("path.procfs", "Mount point of the proc file system. Of another one than /proc the network namespace of its PID 1 is read.").
		Default("/proc").StringVar(&cfg.collector.ProcRoot)
	app.Flag("log.level", "Only log messages with the given severity or above. One of: [debug, info, warn, error]").
		Default("info").EnumVar(&cfg.logLevel, "debug", "info", "warn", "error")
	app.Flag("log.format", "Output format of log messages. One of: [logfmt, json]").
		Default("logfmt").EnumVar(&cfg.logFormat, "logfmt", "json")
	app.Flag("collector.source", "What to read the socket table from. One of: [procfs, netlink, auto]; auto is netlink as long as it works, else procfs.").
		Default(collector.SourceProcfs).EnumVar(&cfg.collector.Source, collector.SourceProcfs, collector.SourceNetlink, collector.SourceAuto)
	app.Flag("collector.remotes", "Number of remote IPs with series of their own, those with most connections.").
		Default("50").IntVar(&cfg.collector.Remotes)
	app.Flag("collector.destinations", "Number of destinations with series of their own, those with most of the ephemeral ports gone.").
		Default("20").IntVar(&cfg.collector.Destinations)
	app.Flag("collector.listeners", "Number of listening ports with series of their own, those with most connections.").
		Default("50").IntVar(&cfg.collector.Listeners)
	app.Flag("collector.remote-prefix-ipv4", "Count remote IPv4 addresses in blocks with a prefix of so many bits.").
		Default("32").IntVar(&cfg.collector.RemotePrefixIPv4)
	app.Flag("collector.remote-prefix-ipv6", "Count remote IPv6 addresses in blocks with a prefix of so many bits.").
		Default("128").IntVar(&cfg.collector.RemotePrefixIPv6)
	remoteIPs := app.Flag("collector.remote-ips", "Name remote IPs in metrics. Without, no series has a remote address.").
		Default("true").Bool()

	if _, err := app.Parse(args); err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if !*remoteIPs {
		cfg.collector.Remotes, cfg.collector.Destinations = 0, 0
	}
	var err error
	if cfg.collector.Namespace, err = collector.FindNamespace(cfg.collector.ProcRoot); err != nil {
		return nil, fmt.Errorf("--path.procfs: %w", err)
	}
	if cfg.collector.Source == collector.SourceNetlink && !cfg.collector.Namespace.Own {
		return nil, fmt.Errorf("--collector.source: netlink shows the network namespace of this process, and --path.procfs=%s is of another one", cfg.collector.ProcRoot)
	}
	return cfg, nil
}

func (c *config) check() error {
	for _, address := range *c.web.WebListenAddresses {
		if err := checkListenAddress(address); err != nil {
			return fmt.Errorf("--web.listen-address: %w", err)
		}
	}
	if err := web.Validate(*c.web.WebConfigFile); err != nil {
		return fmt.Errorf("--web.config.file: %w", err)
	}
	if !strings.HasPrefix(c.telemetryPath, "/") || c.telemetryPath == "/" || strings.ContainsAny(c.telemetryPath, " {}?#") ||
		strings.HasPrefix(c.telemetryPath, "/-/") || strings.HasPrefix(c.telemetryPath, runbooks.Path) || strings.HasSuffix(c.telemetryPath, "/") {
		return fmt.Errorf("--web.telemetry-path: %q is not a path such as /metrics", c.telemetryPath)
	}
	for _, flag := range []struct {
		name           string
		value, low, up int
	}{
		{"web.max-requests", c.maxRequests, 0, 1 << 20},
		{"collector.remotes", c.collector.Remotes, 0, maxSeries},
		{"collector.destinations", c.collector.Destinations, 0, maxSeries},
		{"collector.listeners", c.collector.Listeners, 0, maxSeries},
		{"collector.remote-prefix-ipv4", c.collector.RemotePrefixIPv4, 0, 32},
		{"collector.remote-prefix-ipv6", c.collector.RemotePrefixIPv6, 0, 128},
	} {
		if flag.value < flag.low || flag.value > flag.up {
			return fmt.Errorf("--%s: %d is not between %d and %d", flag.name, flag.value, flag.low, flag.up)
		}
	}
	return nil
}

func checkListenAddress(address string) error {
	if strings.HasPrefix(address, "vsock://") {
		return nil // the toolkit checks it
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %s: %q is not a port", address, port)
	}
	return nil
}

// newLoggers returns the program's logger, and one that writes the same way for
// libraries that want slog.
func newLoggers(cfg *config, w io.Writer) (log.Logger, *slog.Logger) {
	base := log.NewLogfmtLogger(log.NewSyncWriter(w))
	if cfg.logFormat == "json" {
		base = log.NewJSONLogger(log.NewSyncWriter(w))
	}
	var slogLevel slog.LevelVar
	// The names are those of kingpin's enum, which both libraries know.
	_ = slogLevel.UnmarshalText([]byte(cfg.logLevel))

	logger := level.NewFilter(base, level.Allow(level.ParseDefault(cfg.logLevel, level.InfoValue())))
	logger = log.With(logger, "time", log.DefaultTimestampUTC, "caller", log.DefaultCaller)
	return logger, slog.New(sloggokit.NewGoKitHandler(base, &slogLevel))
}
