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

// rows is how many the table had at that time: the mean of before and after.
func (r reading) rows() float64        { return float64(r.before+r.after) / 2 }
func (r reading) cpuMS() float64       { return r.cpu.Seconds() * 1e3 }
func (r reading) wallMS() float64      { return r.wall.Seconds() * 1e3 }
func (r reading) peakMiB() float64     { return r.peak / (1 << 20) }
func (r reading) residentMiB() float64 { return r.resident / (1 << 20) }
func (r reading) rowCPU() float64      { return r.cpuMS() * 1e3 / r.rows() }  // µs
func (r reading) rowWall() float64     { return r.wallMS() * 1e3 / r.rows() } // µs

// values is one figure of each reading, in ascending order.
func (r results) values(figure func(reading) float64) []float64 {
	var v []float64
	for _, reading := range r.readings {
		v = append(v, figure(reading))
	}
	slices.Sort(v)
	return v
}

// at is NaN where there is no such value.
func at(v []float64, i int) float64 {
	if i < 0 || i >= len(v) {
		return math.NaN()
	}
	return v[i]
}

// median of no values is NaN.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (at(v, (len(v)-1)/2) + at(v, len(v)/2)) / 2
}

// cpuRatio is the median of the rounds' ratios: both had the same neighbours on the machine then.
func cpuRatio(c, to *contender) float64 {
	var v []float64
	for i := range min(len(c.quiet.readings), len(to.quiet.readings)) {
		v = append(v, c.quiet.readings[i].cpuMS()/to.quiet.readings[i].cpuMS())
	}
	return median(v)
}

// number is "-" where there is none.
func number(v float64, decimals int) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

// writeQuiet writes what one reading costs.
func writeQuiet(w io.Writer, o options, all []*contender) error {
	low, high := math.MaxInt, 0
	for _, c := range all {
		for _, r := range c.quiet.readings {
			low, high = min(low, r.before, r.after), max(high, r.before, r.after)
		}
	}
	head := fmt.Sprintf("## %d sockets, %s\n\nThe table had %d to %d rows and %d remote addresses. Medians of %d rounds. CPU and wall in ms, resident in MiB (VmHWM, VmRSS).\n",
		o.sockets[0], o.mix, low, high, 2*o.remotes, o.rounds)
	return writeTable(w, head, []string{"CPU", "lowest", "µs/row", "wall", "÷ bare read", "÷ bare dump", "÷ tcpstat", "peak resident", "resident"},
		all, func(c *contender) []string {
			cpu, peak := c.quiet.values(reading.cpuMS), c.quiet.values(reading.peakMiB)
			return []string{
				number(median(cpu), 1), number(at(cpu, 0), 1), number(median(c.quiet.values(reading.rowCPU)), 2), number(median(c.quiet.values(reading.wallMS)), 1),
				number(cpuRatio(c, all[bareRead]), 2), number(cpuRatio(c, all[bareDump]), 2), number(cpuRatio(c, all[tcpstat]), 2),
				number(at(peak, len(peak)-1), 1), number(median(c.quiet.values(reading.residentMiB)), 1),
			}
		})
}

// writeChurn writes who finishes while connections come and go at a rate per second.
func writeChurn(w io.Writer, o options, all []*contender, rate int) error {
	head := fmt.Sprintf("### %d sockets and %d closes a second\n\nOf %d rounds, each ended after %v. The table grows meanwhile: compare the time per row.\n",
		o.sockets[0], rate, o.churnRounds, scrapeTimeout)
	return writeTable(w, head, []string{"finished", "rows", "CPU", "wall", "wall µs/row", "× quiet"},
		all, func(c *contender) []string {
			rowWall := median(c.churned.values(reading.rowWall))
			return []string{
				fmt.Sprintf("%d of %d", len(c.churned.readings), len(c.churned.readings)+c.churned.unfinished),
				number(median(c.churned.values(reading.rows)), 0), number(median(c.churned.values(reading.cpuMS)), 1), number(median(c.churned.values(reading.wallMS)), 1),
				number(rowWall, 2), number(rowWall/median(c.quiet.values(reading.rowWall)), 2),
			}
		})
}

// writeTable writes a row for each contender.
func writeTable(w io.Writer, head string, columns []string, all []*contender, cells func(*contender) []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n| Reader | %s |\n|---|%s\n", head, strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)))
	for _, c := range all {
		row := []string{fmt.Sprintf("not measured: %v", c.failed)}
		if c.failed == nil {
			row = cells(c)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", c.name, strings.Join(row, " | "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeLegend says what each line of the tables is.
func writeLegend(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\nCPU is the user and system time of the whole process for one reading (its POSIX CPU clock), with what it does in the\n")
	fmt.Fprintf(&b, "%v after its answer; of a bare reader that of its thread. Readings go round-robin; ratios are of CPU time within a round. The readers:\n\n", settle)
	for _, c := range contenders(options{}) {
		fmt.Fprintf(&b, "* %s: %s.\n", c.name, c.does)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
