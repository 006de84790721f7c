package main

import (
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	sloggokit "github.com/tjhop/slog-gokit"
	"golang.org/x/time/rate"
)

const (
	// maxLogValue bounds a value in a log line, in bytes. What is quoted may come from a
	// client or from a file with one endless line.
	maxLogValue = 1000

	// A flood leaves no more lines than a reader can take: so many at once, then one an
	// interval. Those of the collector suffice for a scrape whose parts all fail, and for
	// the next one.
	webBurst, webInterval             = 5, 3 * time.Second
	collectorBurst, collectorInterval = 10, time.Second
	// Lines left out are counted in a line of their own, the first one soon.
	leftOutSoon  = time.Second
	leftOutEvery = 10 * time.Second
)

// loggers write to the same place.
type loggers struct {
	// program is for the few lines about the program itself. The others are bounded,
	// so that neither hides what the other one has to say.
	program, collector, web log.Logger
	// toolkit is web for libraries that want slog.
	toolkit *slog.Logger
}

func newLoggers(logLevel, format string, w io.Writer) loggers {
	base := log.NewLogfmtLogger(log.NewSyncWriter(w))
	if format == "json" {
		base = log.NewJSONLogger(log.NewSyncWriter(w))
	}
	base = cutLogger{base}
	var slogLevel slog.LevelVar
	// The names are those of kingpin's enum, which both libraries know.
	_ = slogLevel.UnmarshalText([]byte(logLevel))

	stamped := func(next log.Logger) log.Logger {
		logger := level.NewFilter(next, level.Allow(level.ParseDefault(logLevel, level.InfoValue())))
		return log.With(logger, "time", log.DefaultTimestampUTC, "caller", log.DefaultCaller)
	}
	web := newBoundedLogger(base, webBurst, webInterval)
	return loggers{
		program:   stamped(base),
		collector: stamped(newBoundedLogger(base, collectorBurst, collectorInterval)),
		web:       stamped(web),
		toolkit:   slog.New(sloggokit.NewGoKitHandler(web, &slogLevel)),
	}
}

// cutLogger cuts long values.
type cutLogger struct {
	next log.Logger
}

func (l cutLogger) Log(keyvals ...any) error {
	for i := 1; i < len(keyvals); i += 2 {
		var text string
		switch value := keyvals[i].(type) {
		case string:
			text = value
		case error:
			text = value.Error()
		case fmt.Stringer:
			text = value.String()
		}
		if len(text) > maxLogValue {
			keyvals = slices.Clone(keyvals)
			keyvals[i] = cut(text)
		}
	}
	return l.next.Log(keyvals...)
}

func cut(text string) string {
	if len(text) <= maxLogValue {
		return text
	}
	return fmt.Sprintf("%s... (cut, %d bytes)", strings.ToValidUTF8(text[:maxLogValue], ""), len(text))
}

// boundedLogger leaves lines out that come too fast, and says how many. Lines of
// level info, which no client can cause, always pass. It may be used concurrently.
type boundedLogger struct {
	next log.Logger

	mu      sync.Mutex
	limit   *rate.Limiter
	leftOut int
	level   any // of the last one left out
	told    time.Time
}

func newBoundedLogger(next log.Logger, burst int, interval time.Duration) *boundedLogger {
	return &boundedLogger{next: next, limit: rate.NewLimiter(rate.Every(interval), burst)}
}

func (l *boundedLogger) Log(keyvals ...any) error {
	lineLevel := levelOf(keyvals)
	if lineLevel == level.InfoValue() || l.pass(lineLevel) {
		return l.next.Log(keyvals...)
	}
	return nil
}

func (l *boundedLogger) pass(lineLevel any) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limit.Allow() {
		return true
	}
	if l.leftOut == 0 {
		time.AfterFunc(max(leftOutSoon, time.Until(l.told.Add(leftOutEvery))), l.tell)
	}
	l.leftOut++
	l.level = lineLevel
	return false
}

// tell writes how many lines were left out since the last time.
func (l *boundedLogger) tell() {
	l.mu.Lock()
	n, lineLevel := l.leftOut, l.level
	l.leftOut, l.told = 0, time.Now()
	l.mu.Unlock()
	_ = l.next.Log(level.Key(), lineLevel, "time", log.DefaultTimestampUTC(),
		"msg", "more lines like those before were left out", "lines", n)
}

func levelOf(keyvals []any) any {
	for i := 0; i+1 < len(keyvals); i += 2 {
		if keyvals[i] == level.Key() {
			return keyvals[i+1]
		}
	}
	return level.InfoValue()
}

// newErrorLog returns a logger for libraries that want that of the standard library.
// go-kit's adapter takes the beginning of a message that has a colon and a number
// in it for a place in the code.
func newErrorLog(logger log.Logger) *stdlog.Logger {
	return stdlog.New(errorWriter{level.Error(logger)}, "", 0)
}

type errorWriter struct {
	logger log.Logger
}

func (w errorWriter) Write(text []byte) (int, error) {
	return len(text), w.logger.Log("msg", strings.TrimSpace(string(text)))
}
