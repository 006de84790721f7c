package main

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
)

// logText collects lines while a timer may write another.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// take returns the lines since the last time.
func (l *logText) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
}

func testLoggers(logLevel string) (loggers, *logText) {
	out := new(logText)
	return newLoggers(logLevel, "logfmt", out), out
}

func TestLogFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loggers, out := testLoggers("info")
		for range 80 {
			level.Error(loggers.web).Log("msg", "a client does something")
			loggers.toolkit.Error("and the toolkit something else")
			level.Debug(loggers.web).Log("msg", "is not to be seen, nor counted")
		}
		if n := len(out.take()); n != webBurst {
			t.Errorf("160 errors: %d lines, want %d", n, webBurst)
		}
		level.Error(loggers.collector).Log("msg", "the collector has not said anything yet")
		level.Error(loggers.program).Log("msg", "nor the program")
		for range 2 * webBurst {
			level.Info(loggers.web).Log("msg", "listening")
		}
		if n := len(out.take()); n != 2+2*webBurst {
			t.Errorf("%d lines, want %d", n, 2+2*webBurst)
		}
		time.Sleep(leftOutSoon)
		synctest.Wait()
		if lines := out.take(); len(lines) != 1 || !strings.Contains(lines[0], "level=error time=") || !strings.Contains(lines[0], "lines=155") {
			t.Errorf("the line that counts those left out: %q", lines)
		}

		// A client that goes on is told of now and then.
		const steps = 600
		for range steps {
			time.Sleep(100 * time.Millisecond)
			level.Error(loggers.web).Log("msg", "a client does something")
		}
		if n := len(out.take()); n < 20 || n > 30 {
			t.Errorf("600 errors in a minute: %d lines, want 20 and 6 or 7 that count the others", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		out.take()
		level.Error(loggers.web).Log("msg", "after a quiet time")
		if lines := out.take(); !strings.Contains(lines[0], "after a quiet time") {
			t.Errorf("%q", lines)
		}
	})
}

func TestLogCut(t *testing.T) {
	loggers, out := testLoggers("debug")
	const size = 1 << 20
	long := strings.Repeat("ä", size/2)
	level.Error(loggers.collector).Log("msg", "short", "text", long, "err", errors.New(long))
	loggers.toolkit.Debug("short", "text", long, "err", errors.New(long))
	lines := out.take()
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 2*maxLogValue+500 || strings.Count(line, "... (cut, 1048576 bytes)") != 2 || strings.Contains(line, "\uFFFD") || !strings.Contains(line, "msg=short") {
			t.Errorf("%d bytes: %s", len(line), line)
		}
	}
}

// TestErrorLog has texts that look like a place in a program.
func TestErrorLog(t *testing.T) {
	for _, text := range []string{
		"error gathering metrics: collected metric x:1 was collected before",
		"2026/01/02 03:04:05 http: TLS handshake error from 127.0.0.1:1234: EOF",
		"two\nlines",
	} {
		var out bytes.Buffer
		newErrorLog(log.NewJSONLogger(&out)).Println(text)
		if want := `{"level":"error","msg":"` + strings.ReplaceAll(text, "\n", `\n`) + "\"}\n"; out.String() != want {
			t.Errorf("got %s, want %s", &out, want)
		}
	}
}
