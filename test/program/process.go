package program

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a test runs.
type Process struct {
	*exec.Cmd
	Log    *Log
	Exited <-chan struct{} // closed when the program has ended, and ProcessState is known
}

// Log is what a program writes to its standard output and error. It can be read while
// the program runs.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Start runs a command until the test ends, and shows its log if that has failed.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	exited := make(chan struct{})
	p := &Process{cmd, new(Log), exited}
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(exited)
		_ = cmd.Wait() // who wants to know looks at ProcessState
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		<-exited
		if t.Failed() {
			t.Logf("%s logged:\n%s", cmd, p.Log)
		}
	})
	return p
}

// WaitReady waits for a page that comes with status 200.
func WaitReady(t testing.TB, url string) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		response, err := http.Get(url)
		if err == nil {
			// Read to the end, so that the connection is kept and leaves no TIME_WAIT.
			_, err = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			if err == nil {
				err = fmt.Errorf("%s", response.Status)
			}
		}
		last = err
	}
	t.Fatalf("%s: not ready after 30 s: %v", url, last)
}
