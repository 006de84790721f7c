// Command timewait_exporter serves Prometheus metrics of a host's TCP
// connections: their states, their remotes, and how much of the ephemeral ports
// is gone.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/collectors/version"
	versioninfo "github.com/prometheus/common/version"

	"timewait_exporter/collector"
	"timewait_exporter/diagnosis"
)

func main() {
	// A scrape is the work of one goroutine. More processors would cost memory for
	// each, and threads that look for work.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if versioninfo.Version == "" {
		versioninfo.Version = moduleVersion(debug.ReadBuildInfo())
	}
	signals := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup(1)
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run serves until ctx is done, or writes a report. It returns the exit code: 2
// for wrong flags, 1 when serving failed; of a report that of its verdict, and 3 for
// wrong flags.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cfg, err := parseFlags(args, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "%s: error: %s, try --help\n", name, oneLine(err.Error()))
		if cfg.report != nil {
			return diagnosis.Unknown.ExitCode()
		}
		return 2
	}
	if cfg.report != nil {
		return report(ctx, cfg, stdin, stdout, stderr)
	}
	logs := newLoggers(cfg.logLevel, cfg.logFormat, stderr)
	logger := logs.program
	ns := cfg.collector.Namespace
	level.Info(logger).Log("msg", "starting", "version", versioninfo.Info(), "build", versioninfo.BuildContext())
	level.Info(logger).Log("msg", "reading network namespace", "netns", ns.Name, "path", ns.Dir, "own_sysctls", ns.OwnSysctls)
	if !ns.OwnSysctls {
		level.Warn(logger).Log("msg", "the net sysctls seen here are of another network namespace, so limits and port utilisation are left out; run in the host's network namespace to have them")
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(
		version.NewCollector(name),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if err := serve(ctx, cfg, registry, logs); err != nil && !errors.Is(err, http.ErrServerClosed) {
		level.Error(logger).Log("msg", "serving failed", "err", err)
		return 1
	}
	level.Info(logger).Log("msg", "stopped", "reason", context.Cause(ctx))
	return 0
}

func serve(ctx context.Context, cfg *config, registry *prometheus.Registry, logs loggers) error {
	c, err := collector.New(ctx, cfg.collector, logs.collector)
	if err != nil {
		return err
	}
	s, err := newServer(cfg, registry, c, logs.web)
	if err != nil {
		return err
	}
	return s.serve(ctx, cfg.web, logs.toolkit)
}
