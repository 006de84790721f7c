package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// writeMachine writes what the figures depend on.
func writeMachine(w io.Writer, args []string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	cpu, err := cpuModel()
	if err != nil {
		return err
	}
	buckets, err := os.ReadFile("/proc/sys/net/ipv4/tcp_ehash_entries")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "Machine: %s, %d CPUs; Linux %s %s, page size %d; %s; net.ipv4.tcp_ehash_entries %s.\n\nCommand: `go -C test run ./bench%s`\n",
		cpu, runtime.NumCPU(), unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:]), os.Getpagesize(),
		runtime.Version(), strings.TrimSpace(string(buckets)), strings.Join(append([]string{""}, args...), " "))
	return err
}

func cpuModel() (string, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return "", err
	}
	cpus, err := fs.CPUInfo()
	if err != nil {
		return "", err
	}
	return cpus[0].ModelName, nil // empty on arm64
}

func (r reading) cpuMS() float64       { return r.cpu.Seconds() * 1e3 }
func (r reading) wallMS() float64      { return r.wall.Seconds() * 1e3 }
func (r reading) peakMiB() float64     { return float64(r.peak) / (1 << 20) }
func (r reading) residentMiB() float64 { return float64(r.resident) / (1 << 20) }
func (r reading) rowCPU() float64      { return r.cpuMS() * 1e3 / r.rows() }  // µs
func (r reading) rowWall() float64     { return r.wallMS() * 1e3 / r.rows() } // µs

// values is one figure of each reading.
func values(readings []reading, figure func(reading) float64) []float64 {
	var v []float64
	for _, r := range readings {
		v = append(v, figure(r))
	}
	return v
}

// median of no values is NaN.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	middle := len(v) / 2
	if len(v)%2 == 1 {
		return v[middle]
	}
	return (v[middle-1] + v[middle]) / 2
}

// cpuRatio is the median of the rounds' ratios: both had the same neighbours on the machine then.
func cpuRatio(e, to *entry) float64 {
	var v []float64
	for i := range min(len(e.quiet), len(to.quiet)) {
		v = append(v, e.quiet[i].cpuMS()/to.quiet[i].cpuMS())
	}
	return median(v)
}

// number is "-" where there is none.
func number(v float64, decimals int) string {
	if math.IsNaN(v) {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

// writeQuiet writes what one reading costs.
func writeQuiet(w io.Writer, o options, all []*entry, rows span) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %d sockets, %s\n\n", o.sockets[0], o.mix)
	fmt.Fprintf(&b, "The table had %d to %d rows and %d remote addresses. Medians of %d rounds. CPU and wall in ms, resident in MiB (VmHWM, VmRSS).\n\n",
		rows.low, rows.high, 2*o.remotes, o.rounds)
	b.WriteString("| Reader | CPU | lowest | µs/row | wall | ÷ bare read | ÷ bare dump | ÷ tcpstat | peak resident | resident |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, e := range all {
		if e.failed != nil {
			fmt.Fprintf(&b, "| %s | not measured: %v |\n", e.name, e.failed)
			continue
		}
		cpu := values(e.quiet, reading.cpuMS)
		writeRow(&b, e.name,
			number(median(cpu), 1), number(slices.Min(cpu), 1), number(median(values(e.quiet, reading.rowCPU)), 2),
			number(median(values(e.quiet, reading.wallMS)), 1),
			number(cpuRatio(e, all[bareRead]), 2), number(cpuRatio(e, all[bareDump]), 2), number(cpuRatio(e, all[tcpstat]), 2),
			number(slices.Max(values(e.quiet, reading.peakMiB)), 1), number(median(values(e.quiet, reading.residentMiB)), 1))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeChurn writes who finishes while connections come and go at a rate per second, and how right
// the rows are.
func writeChurn(w io.Writer, o options, all []*entry, rate int) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %d sockets and %d closes a second\n\n", o.sockets[0], rate)
	fmt.Fprintf(&b, "Of %d rounds, each ended after %v. The table grows meanwhile: compare the time per row. TIME_WAIT off by: the worst miss of what\n", o.churnRounds, scrapeTimeout)
	b.WriteString("sockstat's `tw` was before and after; 0 within. Listed twice: rows in all rounds together.\n\n")
	b.WriteString("| Reader | finished | rows | CPU | wall | wall µs/row | × quiet | listed twice | TIME_WAIT off by % |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, e := range all {
		if e.failed != nil {
			fmt.Fprintf(&b, "| %s | not measured: %v |\n", e.name, e.failed)
			continue
		}
		rowWall := median(values(e.churned, reading.rowWall))
		writeRow(&b, e.name, fmt.Sprintf("%d of %d", len(e.churned), len(e.churned)+e.unfinished),
			number(median(values(e.churned, reading.rows)), 0),
			number(median(values(e.churned, reading.cpuMS)), 1), number(median(values(e.churned, reading.wallMS)), 1),
			number(rowWall, 2), number(rowWall/median(values(e.quiet, reading.rowWall)), 2),
			twice(e.churned), number(worstMiss(e.churned), 2))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// twice is "-" for a contender that shows totals only or never finished.
func twice(readings []reading) string {
	if len(readings) == 0 {
		return "-"
	}
	sum := 0
	for _, r := range readings {
		if r.twice < 0 {
			return "-"
		}
		sum += r.twice
	}
	return strconv.Itoa(sum)
}

// worstMiss is in percent, with its sign.
func worstMiss(readings []reading) float64 {
	worst := math.NaN()
	for _, miss := range values(readings, reading.miss) {
		if miss *= 100; math.IsNaN(worst) || math.Abs(miss) > math.Abs(worst) {
			worst = miss
		}
	}
	return worst
}

func writeRow(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// writeLegend says what each line of the tables is.
func writeLegend(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\nCPU is the user and system time of the whole process for one reading (its POSIX CPU clock; rusage of cat), with what it does in\n")
	fmt.Fprintf(&b, "the %v after its answer. Readings go round-robin; ratios are of CPU time within a round. The readers:\n\n", settle)
	for _, e := range entries(options{}) {
		fmt.Fprintf(&b, "* %s: %s.\n", e.name, e.does)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
