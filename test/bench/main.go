// Command bench builds real TCP sockets in private network namespaces and prints, as Markdown,
// what reading them costs timewait_exporter and other readers of the same table.
//
//	go -C test run ./bench -sockets 10000,100000,500000
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

const usage = `Usage: go -C test run ./bench [flags]

Builds real TCP sockets in private network namespaces, reads them round-robin with every contender
and prints the medians as Markdown. Needs user namespaces or root. Ends by itself and leaves nothing
behind but node_exporter.

Flags:
`

func main() {
	// Children carry Pdeathsig, which fires when the thread that started them ends: keep it alive.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the program that the user started, or, as "measure", the part of it in a network namespace of its own.
func run(ctx context.Context, args []string) error {
	part, rest := "", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		part, rest = args[0], args[1:]
	}
	o, err := parseOptions(rest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	switch part {
	case "":
		return compare(ctx, o, args)
	case "measure":
		return measure(ctx, o, os.Stdout)
	}
	return fmt.Errorf("unexpected argument %q", part)
}

type options struct {
	sockets      []int  // rows of the table
	mix          string // time_wait, live, established or half
	remotes      int    // distinct remote addresses on either side
	churn        int    // closes per second
	rounds       int
	churnRounds  int
	exporter     string
	nodeExporter string
	timeout      time.Duration
}

func parseOptions(args []string) (options, error) {
	o := options{sockets: []int{10_000, 100_000, 500_000}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	f.Func("sockets", "rows of the socket table, one measurement for each (default 10000,100000,500000)", func(s string) (err error) {
		o.sockets, err = parseCounts(s)
		return err
	})
	f.StringVar(&o.mix, "mix", "time_wait", "state of the sockets: time_wait, live (2,000 of them established), established or half")
	f.IntVar(&o.remotes, "remotes", 1000, "distinct remote addresses: as many clients as servers")
	f.IntVar(&o.churn, "churn", 3000, "connections opened and closed per second in the second table; 0 leaves it out")
	f.IntVar(&o.rounds, "rounds", 11, "rounds whose median is printed")
	f.IntVar(&o.churnRounds, "churn-rounds", 3, "rounds under churn")
	f.StringVar(&o.exporter, "exporter", "", "timewait_exporter to measure (default: built from ../..)")
	f.StringVar(&o.nodeExporter, "node-exporter", "", "node_exporter to measure (default: "+nodeExporterVersion+", kept in ../../.tools/bin)")
	f.DurationVar(&o.timeout, "timeout", 20*time.Minute, "everything ends after this long")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case !slices.Contains([]string{"time_wait", "live", "established", "half"}, o.mix):
		return o, fmt.Errorf("-mix %q: want time_wait, live, established or half", o.mix)
	case o.remotes < 1 || o.remotes > 65_000:
		return o, fmt.Errorf("-remotes %d: want 1 to 65000, they are addresses of 127.1.0.0/16 and 127.2.0.0/16", o.remotes)
	case o.rounds < 1 || o.churnRounds < 1:
		return o, errors.New("-rounds and -churn-rounds: want 1 or more")
	case o.churn < 0 || o.churn > 50_000:
		return o, fmt.Errorf("-churn %d: want 0 to 50000", o.churn)
	}
	return o, nil
}

func parseCounts(s string) ([]int, error) {
	var counts []int
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || n > 2_000_000 {
			return nil, fmt.Errorf("%q: want 1 to 2000000", field)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

// compare prints one report a size, each from a network namespace of its own: the kernel drops
// all sockets of the last one with it.
func compare(ctx context.Context, o options, args []string) error {
	scratch, err := os.MkdirTemp("", "timewait_exporter-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()

	exporter, err := buildExporter(ctx, o.exporter, scratch)
	if err != nil {
		return err
	}
	nodeExporter, err := installNodeExporter(ctx, o.nodeExporter)
	if err != nil {
		return err
	}
	if err := cmp.Or(writeMachine(os.Stdout, args), writeLegend(os.Stdout)); err != nil {
		return err
	}
	for _, sockets := range o.sockets {
		// The flag package lets the last one win.
		inside := slices.Concat([]string{"measure"}, args, []string{
			"-sockets", strconv.Itoa(sockets), "-exporter", exporter, "-node-exporter", nodeExporter,
		})
		if err := inNamespace(ctx, inside).Run(); err != nil {
			return fmt.Errorf("%d sockets in a network namespace of their own: %w", sockets, cmp.Or(context.Cause(ctx), err))
		}
	}
	return nil
}

// inNamespace is this program once more, in a network namespace of its own.
func inNamespace(ctx context.Context, args []string) *exec.Cmd {
	c := netns.Command(ctx, unix.CLONE_NEWNET, "/proc/self/exe", args...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c
}

const (
	repository          = ".." // from the folder of the module, where `go -C` starts it
	nodeExporterVersion = "github.com/prometheus/node_exporter@v1.12.1"
)

func buildExporter(ctx context.Context, path, folder string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	return program.Build(ctx, repository, folder)
}

func installNodeExporter(ctx context.Context, path string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	folder, err := filepath.Abs(filepath.Join(repository, ".tools", "bin"))
	if err != nil {
		return "", err
	}
	path = filepath.Join(folder, "node_exporter")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	install := exec.CommandContext(ctx, "go", "install", nodeExporterVersion)
	install.Env = append(os.Environ(), "GOBIN="+folder, "CGO_ENABLED=0")
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", install, err, out)
	}
	return path, nil
}
