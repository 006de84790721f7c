// Fleet measures what a fleet of exporters costs a Prometheus: it serves the pages of
// many hosts on loopback, lets a real Prometheus scrape them with the rules of
// deploy/prometheus, and prints, as Markdown, what that took.
//
//	go -C test run ./fleet -hosts 1000 -duration 5m
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	hosts            int
	rules            bool
	warmup, duration time.Duration
	checkout         string
	prometheus       string
	exporterFlags    []string
}

func main() {
	// Children carry Pdeathsig, which fires when the thread that started them ends: keep it alive.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.IntVar(&o.hosts, "hosts", 1000, "number of hosts; 0 prints only what a page holds")
	flags.DurationVar(&o.warmup, "warmup", 2*time.Minute, "time before the measurement begins")
	flags.DurationVar(&o.duration, "duration", 5*time.Minute, "time that is measured")
	flags.BoolVar(&o.rules, "rules", true, "evaluate the rules of deploy/prometheus")
	flags.StringVar(&o.checkout, "checkout", "..", "repository")
	flags.StringVar(&o.prometheus, "prometheus", "../.tools/bin/prometheus", "Prometheus to run, as make e2e-tools builds it")
	exporterFlags := flags.String("exporter-flags", "", "flags of the exporter, separated by spaces")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.exporterFlags = strings.Fields(*exporterFlags)
	ctx, cancel := context.WithTimeout(ctx, o.warmup+o.duration+5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder

	pages, err := scrapeMachines(ctx, o, dir)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "| Host | Series | Page | Page, gzip |\n|---|--:|--:|--:|")
	for _, p := range pages {
		fmt.Fprintf(out, "| %s | %d | %.0f KiB | %.1f KiB |\n", p.machine.name, p.series(), float64(len(p.text))/1024, float64(p.gzipped)/1024)
	}
	if o.hosts == 0 {
		return nil
	}
	return measure(ctx, o, dir, pages[typical], out)
}

// measure lets Prometheus scrape the fleet and prints what that took between the end
// of the warm-up and that of the run.
func measure(ctx context.Context, o options, dir string, p page, out io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: newFleet(p), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // returns when it is closed
	defer server.Close()                       //nolint:errcheck // the process ends

	prom, err := startPrometheus(ctx, o, dir, listener.Addr().String())
	if err != nil {
		return err
	}
	defer prom.stop()
	if err := sleep(ctx, o.warmup); err != nil {
		return err
	}
	before, err := prom.read(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, o.duration); err != nil {
		return err
	}
	after, err := prom.read(ctx)
	if err != nil {
		return err
	}
	b, err := prom.snapshot(ctx)
	if err != nil {
		return err
	}
	report(out, o, before, after, b)
	return nil
}

func report(out io.Writer, o options, before, after reading, b block) {
	seconds := after.at.Sub(before.at).Seconds()
	rise := func(name string) float64 { return after.sum(name) - before.sum(name) }
	samples := rise("prometheus_tsdb_head_samples_appended_total")
	row := func(what, format string, value float64) { fmt.Fprintf(out, "| %s | "+format+" |\n", what, value) }

	fmt.Fprintf(out, "\n| %d hosts, a scrape every 15 s, %s after %s | |\n|---|--:|\n", o.hosts, o.duration, o.warmup)
	row("Samples a second, recording rules included", "%.0f", samples/seconds)
	row("Series in the head", "%.0f", after.sum("prometheus_tsdb_head_series"))
	row("New series an hour", "%.0f", rise("prometheus_tsdb_head_series_created_total")/seconds*3600)
	row("Processor time of Prometheus, cores", "%.2f", rise("process_cpu_seconds_total")/seconds)
	row("All groups of rules, seconds an evaluation", "%.2f", rise("prometheus_rule_group_duration_seconds_sum")/seconds*15)
	row("Evaluations missed", "%.0f", rise("prometheus_rule_group_iterations_missed_total"))
	row("Resident memory, GiB", "%.2f", after.sum("process_resident_memory_bytes")/(1<<30))
	row("Go heap in use, GiB", "%.2f", after.sum("go_memstats_heap_inuse_bytes")/(1<<30))
	row("Write-ahead log, bytes a sample", "%.2f", rise("prometheus_tsdb_wal_storage_size_bytes")/samples)
	row("Block: chunks, bytes a sample", "%.2f", float64(b.chunks)/float64(b.samples))
	row("Block: index, bytes a series", "%.0f", float64(b.index)/float64(b.series))
	row("Failed scrapes, at the end", "%.0f", float64(o.hosts)-after.up)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// start runs a program until the process or ctx ends. What it says goes to standard error.
func start(ctx context.Context, path string, args ...string) (*exec.Cmd, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd, cmd.Start()
}

// freeAddress is one that nobody listens on.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// fetch returns the body of an answer with status 200. It asks for gzip and leaves
// the body compressed if encoding says so.
func fetch(ctx context.Context, method, url, encoding string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept-Encoding", encoding)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(url + ": " + strconv.Itoa(response.StatusCode) + " " + string(body))
	}
	return body, nil
}

// waitReady asks until the answer is 200, for half a minute.
func waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := fetch(ctx, http.MethodGet, url, "identity")
		if err == nil {
			return nil
		}
		if sleep(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}
