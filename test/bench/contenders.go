package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// A contender is a process, or one process a reading, that reads the socket table when told to.
type contender interface {
	// read has it read the table once. With count it also finds out what was read, which costs
	// time after the reading, none within it. When ctx ends first the error is errNotFinished.
	read(ctx context.Context, count bool) (reading, error)
	stop()
}

var errNotFinished = errors.New("not finished in time")

// A reading is what it cost to read the table once.
type reading struct {
	cpu, wall      time.Duration
	peak, resident int        // bytes, VmHWM and VmRSS
	before, after  tableCount // what the kernel said
	rowCounts                 // where asked for; twice is unknown, -1, of a contender that shows only totals
}

// timed takes the time of work and what the table had before and after it.
func timed(work func() error) (reading, error) {
	before, err := countTable()
	if err != nil {
		return reading{}, err
	}
	start := time.Now()
	if err := work(); err != nil {
		return reading{}, err
	}
	wall := time.Since(start)
	after, err := countTable()
	return reading{wall: wall, before: before, after: after}, err
}

// settle is how long a contender may work on after its answer, at its own cost: the garbage
// collector of a Go program does.
const settle = 20 * time.Millisecond

// A walker is this program in the part "walk".
type walker struct {
	walk string
	part *part // nil until the first reading, and after one that did not finish
}

func (w *walker) read(ctx context.Context, count bool) (reading, error) {
	if w.part == nil {
		var err error
		if w.part, err = startPart("walk", w.walk); err != nil {
			return reading{}, err
		}
	}
	command := "read"
	if count {
		command = "keep"
	}
	deadline, _ := ctx.Deadline()
	r, err := w.part.observe(func() error {
		_, err := w.part.ask(command, deadline)
		return err
	})
	if err != nil {
		w.stop()
		return r, err
	}
	if !count {
		return r, nil
	}
	answer, err := w.part.ask("count", time.Time{})
	if err != nil {
		return r, err
	}
	_, err = fmt.Sscan(answer, &r.timeWait, &r.twice)
	return r, err
}

func (w *walker) stop() {
	if w.part != nil {
		w.part.stop()
		w.part = nil
	}
}

// A cat runs once a reading: its cost includes its start.
type cat struct {
	peak, resident int // bytes, from the first reading
}

func (c *cat) read(ctx context.Context, count bool) (reading, error) {
	if c.peak == 0 {
		if err := c.readMemory(ctx); err != nil {
			return reading{}, err
		}
	}
	command := c.command(ctx)
	var text bytes.Buffer
	if count {
		command.Stdout = &text
	}
	r, err := timed(command.Run)
	if ctx.Err() != nil {
		return reading{}, errNotFinished
	}
	if err != nil {
		return reading{}, fmt.Errorf("%s: %w", command, err)
	}
	if count {
		r.rowCounts = countRows(procRows(text.Bytes()))
	}
	r.cpu = command.ProcessState.UserTime() + command.ProcessState.SystemTime()
	r.peak, r.resident = c.peak, c.resident
	return r, nil
}

func (c *cat) command(ctx context.Context, more ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "cat", append([]string{"/proc/net/tcp"}, more...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command
}

// readMemory has it print its own status after the table: it ends at once, and rusage has the peak
// of the process that started it, too.
func (c *cat) readMemory(ctx context.Context) error {
	text, err := c.command(ctx, "/proc/self/status").Output()
	if err != nil {
		return err
	}
	for line := range bytes.Lines(text) {
		for key, value := range map[string]*int{"VmHWM:": &c.peak, "VmRSS:": &c.resident} {
			if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
				if _, err := fmt.Sscanf(string(rest), "%d kB", value); err != nil {
					return fmt.Errorf("/proc/self/status: %q: %w", line, err)
				}
				*value <<= 10
			}
		}
	}
	return nil
}

func (c *cat) stop() {}

// A daemon is an exporter, scraped over HTTP.
type daemon struct {
	path    string
	address string // what it is to listen on
	flags   []string
	family  string // the metric that has the number of TIME_WAITs
	process *process
	client  *http.Client
}

func (d *daemon) start(ctx context.Context) error {
	var err error
	d.process, err = startProcess(exec.Command(d.path, append(d.flags, "--web.listen-address="+d.address)...))
	if err != nil {
		return err
	}
	d.client = &http.Client{}
	for {
		if _, err := d.scrape(ctx); err == nil {
			return nil
		}
		select {
		case <-d.process.ended:
			return d.process.exitReason()
		case <-ctx.Done():
			return errNotFinished
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *daemon) read(ctx context.Context, count bool) (reading, error) {
	if d.process == nil {
		if err := d.start(ctx); err != nil {
			return reading{}, err
		}
	}
	var page []byte
	r, err := d.process.observe(func() (err error) {
		page, err = d.scrape(ctx)
		return err
	})
	if err != nil || !count {
		return r, err
	}
	r.twice = -1
	r.timeWait, err = sumTimeWait(page, d.family)
	return r, err
}

// scrape asks as Prometheus does.
func (d *daemon) scrape(ctx context.Context) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2")
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(scrapeTimeout.Seconds(), 'f', -1, 64))
	response, err := d.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, errNotFinished
		}
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	page, err := io.ReadAll(response.Body)
	switch {
	case ctx.Err() != nil:
		return nil, errNotFinished
	case err != nil:
		return nil, err
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", request.URL, response.Status)
	}
	return page, nil
}

// sumTimeWait adds up the samples of one metric that have the label state="time_wait". There may be
// none: node_exporter leaves out the states that no socket is in.
func sumTimeWait(page []byte, family string) (int, error) {
	sum, found := 0.0, false
	for line := range bytes.Lines(page) {
		if !bytes.HasPrefix(line, []byte(family+"{")) {
			continue
		}
		found = true
		if !bytes.Contains(line, []byte(`state="time_wait"`)) {
			continue
		}
		columns := bytes.Fields(line)
		value, err := strconv.ParseFloat(string(columns[len(columns)-1]), 64)
		if err != nil {
			return 0, fmt.Errorf("sample %q: %w", line, err)
		}
		sum += value
	}
	if !found {
		return 0, fmt.Errorf("no sample of %s", family)
	}
	return int(sum), nil
}

func (d *daemon) stop() {
	if d.process != nil {
		d.process.stop()
	}
}
