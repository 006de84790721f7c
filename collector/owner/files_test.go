package owner

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// run makes a process of a fixture with so many open files.
func (f fixture) run(pid, started, open int, limit, comm string) {
	f.t.Helper()
	dir := filepath.Join(f.proc, strconv.Itoa(pid))
	f.write(filepath.Join(dir, "comm"), comm+"\n")
	fields := strings.Repeat(" 0", 18) + fmt.Sprintf(" %d", started) + strings.Repeat(" 0", 30)
	f.write(filepath.Join(dir, "stat"), fmt.Sprintf("%d (%s) S%s\n", pid, strings.ReplaceAll(comm, "\n", `\n`), fields))
	f.write(filepath.Join(dir, "limits"), "Limit                     Soft Limit           Hard Limit           Units     \n"+
		"Max cpu time              unlimited            unlimited            seconds   \n"+
		fmt.Sprintf("Max open files            %-20s 524288               files     \n", limit))
	for fd := range open {
		f.write(filepath.Join(dir, "fd", strconv.Itoa(fd)), "")
	}
	must(f.t, os.MkdirAll(filepath.Join(dir, "fd"), 0o755))
}

func TestProcesses(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	f.run(50, 1000, 3, "100", "late")
	f.run(60, 500, 9, "1000", "main") // pids begin again
	f.run(70, 700, 20, "50", "we\nird\xff")
	f.run(80, 800, 30, "unlimited", "endless")
	f.run(90, 900, 0, "0", "none")
	web := f.mkdir("/web.service", 50, 60)
	worker := f.mkdir("/web.service/worker", 60, 70, 80, 81, 90) // 81 has ended
	empty := f.mkdir("/empty.service")
	r := f.resolver(Options{})
	now := time.Now()
	update(t, r, now, web, worker, empty)
	p := NewProcesses(r)
	owners := map[string][]uint64{"web.service": {web, worker}, "empty.service": {empty}, Unknown: {4711}}
	want := func(program string, worst Process) {
		t.Helper()
		for range 20 {
			p.Update(now, owners)
		}
		got, ok := p.Worst("web.service")
		if p.Program("web.service") != program || got != worst || ok != (worst.PID != 0) {
			t.Errorf("program %q, worst %+v, want %q, %+v", p.Program("web.service"), got, program, worst)
		}
		for _, label := range []string{"empty.service", Unknown, "not asked for"} {
			if worst, ok := p.Worst(label); ok || p.Program(label) != "" {
				t.Errorf("%s: program %q, worst %+v", label, p.Program(label), worst)
			}
		}
	}
	want("main", Process{70, "we\nird\uFFFD", 20, 50})

	// It closes files, another opens some.
	os.RemoveAll(filepath.Join(f.proc, "70/fd"))
	f.run(70, 700, 2, "50", "weird")
	f.run(50, 1000, 90, "100", "late")
	want("main", Process{50, "late", 90, 100})

	// Both the oldest and the worst end; another runs a new program.
	f.mkdir("/web.service", 50, 60)
	f.mkdir("/web.service/worker", 70, 80)
	f.run(70, 700, 2, "50", "exec")
	f.mkdir("/web.service")
	want("exec", Process{70, "exec", 2, 50})
	f.run(70, 700, 2, "50", "exec2")
	want("exec2", Process{70, "exec2", 2, 50})
	f.write(filepath.Join(f.proc, "70/limits"), "?")
	f.mkdir("/web.service/worker", 80)
	want("endless", Process{80, "endless", 30, math.MaxUint64})
	f.mkdir("/web.service/worker")
	want("", Process{})

	// One whose other files are hidden.
	f.mkdir("/web.service", 99)
	f.write(filepath.Join(f.proc, "99/comm"), "hidden\n")
	want("", Process{})

	delete(owners, "web.service")
	p.Update(now, owners)
	if len(p.owners) != 2 {
		t.Errorf("%d owners are remembered, want 2", len(p.owners))
	}
	p.Update(now, nil)
	if len(p.owners) != 0 {
		t.Errorf("%d owners are remembered, want none", len(p.owners))
	}
}

// TestManyProcesses has too many for one call.
func TestManyProcesses(t *testing.T) {
	f := newFixture(t, v2Host, v2Host)
	const many = 100
	var pids []int
	for i := range many {
		pids = append(pids, 1000+i)
		f.run(1000+i, 5000-i, 1, "1000", "worker")
	}
	busiest := Process{1000 + many/2, "busiest", 9, 10} // the oldest and the worst
	f.run(busiest.PID, 1, 9, "10", "busiest")
	f.run(2000, 7, 3, "10", "small")
	large, small := f.mkdir("/large.service", pids...), f.mkdir("/small.service", 2000)
	r := f.resolver(Options{})
	now := time.Now()
	update(t, r, now, large, small)
	p := NewProcesses(r)
	owners := map[string][]uint64{"large.service": {large}, "small.service": {small}}
	call := func() *watch {
		p.update(now, now, owners) // without time it looks at one
		return p.owners["large.service"]
	}

	// A large owner does not keep a small one waiting.
	call()
	call()
	if worst, _ := p.Worst("small.service"); worst != (Process{2000, "small", 3, 10}) || p.Program("small.service") != "small" {
		t.Errorf("beside a large owner: program %q, worst %+v", p.Program("small.service"), worst)
	}
	if worst, _ := p.Worst("large.service"); worst != (Process{1000, "worker", 1, 1000}) || p.Program("large.service") != "worker" {
		t.Errorf("first process: program %q, worst %+v", p.Program("large.service"), worst)
	}
	calls := 2
	for w := call(); !w.settled; w = call() {
		if calls++; calls > 2*many {
			t.Fatalf("%d calls, and no end of a round", calls)
		}
	}
	check := func() {
		t.Helper()
		if worst, _ := p.Worst("large.service"); worst != busiest || p.Program("large.service") != "busiest" {
			t.Errorf("program %q, worst %+v, want %+v", p.Program("large.service"), worst, busiest)
		}
	}
	check()

	// In the middle of a round what is known of the worst is as of now.
	for w := call(); w.last < 1010; w = call() {
		check()
	}
	f.write(filepath.Join(f.proc, strconv.Itoa(busiest.PID), "fd", "9"), "")
	busiest.OpenFiles = 10
	call()
	check()

	// It ends, and the next worst is not known before the round passes it.
	f.run(1090, 4000, 5, "10", "second")
	f.mkdir("/large.service", append(pids[:many/2:many/2], pids[many/2+1:]...)...)
	call()
	if worst, _ := p.Worst("large.service"); worst.Program != "worker" || p.Program("large.service") != "worker" {
		t.Errorf("program %q, worst %+v, want worker", p.Program("large.service"), worst)
	}
	for range 4 * many {
		call()
	}
	if worst, _ := p.Worst("large.service"); worst != (Process{1090, "second", 5, 10}) || p.owners["large.service"].oldest.PID != 1090 {
		t.Errorf("oldest %+v, worst %+v, want second", p.owners["large.service"].oldest, worst)
	}
}
