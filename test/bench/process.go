package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A process is one that this one has started. It dies with it.
type process struct {
	command *exec.Cmd
	stderr  *bytes.Buffer // to be read when the process has ended
	ended   chan struct{}
}

func startProcess(command *exec.Cmd) (*process, error) {
	p := &process{command: command, stderr: new(bytes.Buffer), ended: make(chan struct{})}
	command.Stderr = p.stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = command.Wait() // its exit is told by ended, the reason by stderr
		close(p.ended)
	}()
	return p, nil
}

func (p *process) stop() {
	_ = p.command.Process.Kill()
	<-p.ended
}

// exitReason is the last line that an ended process wrote.
func (p *process) exitReason() error {
	<-p.ended
	lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
	return fmt.Errorf("exit: %q", lines[len(lines)-1])
}

// observe times work and adds the CPU time that the process spends meanwhile and its memory afterwards.
func (p *process) observe(work func() error) (reading, error) {
	before, err := p.cpuTime()
	if err != nil {
		return reading{}, err
	}
	r, err := timed(work)
	if err != nil {
		return reading{}, err
	}
	time.Sleep(settle)
	after, err := p.cpuTime()
	if err != nil {
		return reading{}, err
	}
	status, err := p.status()
	if err != nil {
		return reading{}, err
	}
	r.cpu, r.peak, r.resident = after-before, int(status.VmHWM), int(status.VmRSS)
	return r, nil
}

// cpuTime is what all threads of the process have used, ended ones too, in nanoseconds of the
// scheduler: the clock that clock_getcpuclockid(3) names. /proc/PID/stat counts in ticks of 10 ms.
func (p *process) cpuTime() (time.Duration, error) {
	const cpuclockSched = 2 // include/linux/posix-timers.h
	clock := int32(^p.command.Process.Pid<<3 | cpuclockSched)
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of %s: %w", p.command, err)
	}
	return time.Duration(t.Nano()), nil
}

func (p *process) status() (procfs.ProcStatus, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return procfs.ProcStatus{}, err
	}
	proc, err := fs.Proc(p.command.Process.Pid)
	if err != nil {
		return procfs.ProcStatus{}, err
	}
	return proc.NewStatus()
}

// A part is a process of this program that answers each line with a line.
type part struct {
	*process
	commands io.WriteCloser
	answers  *os.File // a pipe: takes deadlines
	lines    *bufio.Reader
}

func startPart(args ...string) (*part, error) {
	answers, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	command := exec.Command("/proc/self/exe", args...)
	command.Stdout = theirs
	p := &part{answers: answers, lines: bufio.NewReader(answers)}
	if p.commands, err = command.StdinPipe(); err != nil {
		return nil, err
	}
	if p.process, err = startProcess(command); err != nil {
		_ = answers.Close()
		return nil, err
	}
	return p, nil
}

// ask waits for the answer until the deadline, without end when it is zero.
func (p *part) ask(command string, deadline time.Time) (string, error) {
	if err := p.answers.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(p.commands, command); err != nil {
		return "", p.exitReason()
	}
	answer, err := p.lines.ReadString('\n')
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", errNotFinished
	case err != nil:
		return "", p.exitReason()
	}
	return answer, nil
}

func (p *part) stop() {
	p.process.stop()
	_ = p.answers.Close()
}
