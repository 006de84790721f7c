package program

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
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
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
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

// Stop sends SIGTERM, waits for the program to end with status 0, and returns how long that took.
func (p *Process) Stop(t testing.TB) time.Duration {
	t.Helper()
	start := time.Now()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited:
	case <-time.After(patience):
		t.Fatalf("still running %v after SIGTERM", patience)
	}
	if !p.ProcessState.Success() {
		t.Errorf("after SIGTERM: %v", p.ProcessState)
	}
	return time.Since(start)
}

// Address waits until the exporter says where it listens.
func (p *Process) Address(t testing.TB) string {
	t.Helper()
	says := regexp.MustCompile(`msg="Listening on" address=(\S+)\n`)
	var address []string
	Eventually(t, func() error {
		if address = says.FindStringSubmatch(p.Log.String()); address != nil {
			return nil
		}
		select {
		case <-p.Exited:
			t.Fatalf("%s ended instead of listening: %v", p.Cmd, p.ProcessState)
		default:
		}
		return fmt.Errorf("%s does not listen", p.Cmd)
	})
	return address[1]
}

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// Eventually tries again until there is no error, which says how it stands.
func Eventually(t testing.TB, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("for %v: %v", patience, err)
		}
	}
}

// Fetch asks until a server answers, and is ready.
func Fetch(t testing.TB, client *http.Client, url string) (status int, body string) {
	t.Helper()
	Eventually(t, func() error {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		// To the end, so that the connection is kept and leaves no TIME_WAIT.
		text, err := io.ReadAll(response.Body)
		status, body = response.StatusCode, string(text)
		if status == http.StatusServiceUnavailable {
			return fmt.Errorf("%s: %s", url, response.Status)
		}
		return err
	})
	return status, body
}

// Get is Fetch for a page that must come with status 200.
func Get(t testing.TB, url string) string {
	t.Helper()
	status, body := Fetch(t, http.DefaultClient, url)
	if status != http.StatusOK {
		t.Fatalf("%s: status %d\n%s", url, status, body)
	}
	return body
}

// FreePort returns a port of 127.0.0.1 that nobody has at the moment.
func FreePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // nobody came
	return listener.Addr().(*net.TCPAddr).Port
}
