// Package cli holds the program to what it promises at the command line: flags, errors, exit
// codes, signals, its log and its pages. Each promise is a script in testdata.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../..") }

// TestScripts runs all scripts in one network namespace. In it each has an IP, $IP, that is
// no other's.
func TestScripts(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		// Who was started with SIGHUP ignored would hand that on to the program.
		signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
		var scripts atomic.Int32
		testscript.Run(t, testscript.Params{
			Dir: "testdata",
			Setup: func(env *testscript.Env) error {
				env.Setenv("PATH", filepath.Dir(program.Path())+":"+env.Getenv("PATH"))
				env.Setenv("IP", fmt.Sprintf("127.0.1.%d", scripts.Add(1)))
				env.Setenv("COLUMNS", "1000") // or --help breaks lines
				env.Setenv("LONG", strings.Repeat("x", 100_000))
				return nil
			},
			Condition: func(name string) (bool, error) {
				if name != "sock_diag" {
					return false, fmt.Errorf("no condition %q", name)
				}
				return netns.SockDiag() == nil, nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"exits": exits, "refuses": refuses, "get": get, "ends": ends, "logs": logs,
			},
		})
	})
}

// exits CODE ARGUMENTS: the program ends by itself with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("timewait_exporter", args[1:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v, want exit status %s", err, args[0])
	}
}

// refuses FLAG ARGUMENTS: the program exits with 2 and one short line that names the flag. An
// argument in double quotes is one of Go's string literals.
func refuses(ts *testscript.TestScript, _ bool, args []string) {
	for i, arg := range args {
		if literal, err := strconv.Unquote(arg); err == nil {
			args[i] = literal
		}
	}
	exits(ts, false, append([]string{"2"}, args[1:]...))
	said := ts.ReadFile("stderr")
	if !strings.Contains(said, args[0]) || strings.Contains(said, "goroutine ") || strings.Count(said, "\n") != 1 || len(said) > 1200 {
		ts.Fatalf("not one short line that names %s", args[0])
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("stdout: %q", out)
	}
}

// get PATH STATUS: what the program at $IP answers, once it listens, is stdout then. The
// connection stays open.
func get(ts *testscript.TestScript, _ bool, args []string) {
	url := "http://" + ts.Getenv("IP") + ":10793" + args[0]
	client := http.Client{Timeout: 10 * time.Second, Transport: new(http.Transport)}
	ts.Defer(client.CloseIdleConnections)
	response, err := client.Get(url)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(deadline); response, err = client.Get(url) {
		time.Sleep(5 * time.Millisecond)
	}
	ts.Check(err)
	defer response.Body.Close()
	_, err = io.Copy(ts.Stdout(), response.Body)
	ts.Check(err)
	if got := strconv.Itoa(response.StatusCode); got != args[1] {
		ts.Fatalf("%s: status %s", url, got)
	}
}

// ends SIGNAL: the program in the background ends within 5 s of a signal. With ! it does not.
func ends(ts *testscript.TestScript, neg bool, args []string) {
	process := ts.BackgroundCmds()[0].Process
	ts.Check(process.Signal(unix.SignalNum(args[0])))
	patience := 5 * time.Second
	if neg {
		patience = 200 * time.Millisecond
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if errors.Is(unix.Kill(process.Pid, 0), unix.ESRCH) {
			if neg {
				ts.Fatalf("it ended")
			}
			return
		}
	}
	if !neg {
		ts.Fatalf("still running %v after %s", patience, args[0])
	}
}

// logs json: each line of stderr is an object with a level and a message.
func logs(ts *testscript.TestScript, _ bool, _ []string) {
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry["level"] == nil || entry["msg"] == nil {
			ts.Fatalf("%q: %v, want JSON with level and msg", line, err)
		}
	}
}
