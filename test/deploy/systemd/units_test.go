// Package systemd holds the units to what they promise: they are installed in a
// container in which a real systemd is booted, and run the real program.
package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../../..") }

const (
	service = "timewait_exporter.service"

	// dynamicUser are the users that systemd invents, 61184 to 65519.
	dynamicUser = `6[1-5]\d{3}`
)

// A service that is worth 1.5 of 10 points of exposure needs a reason to have more.
func TestExposure(t *testing.T) {
	host.Needs(t, "systemd-analyze")
	host.Run(t, host.Checkout(t), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", "deploy/systemd/"+service)
}

// TestUnits runs the script of testdata on a machine.
func TestUnits(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "systemd-nspawn", "curl", "openssl")
	m := boot(t, install(t))
	failed := func(ts *testscript.TestScript) { // names the line of the script
		if t.Failed() {
			ts.Fatalf("not so")
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", os.Getenv("PATH"))
			env.Setenv("SERVICE", service)
			env.Setenv("SOCKET", "timewait_exporter.socket")
			unit := host.Read(t, filepath.Join(host.Checkout(t), "deploy/systemd", service))
			return os.WriteFile(filepath.Join(env.WorkDir, "unit"), []byte(unit), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"on": m.on, "flags": m.flags, "reset": m.reset, "want": m.want,
			// scrape SOURCE [URL CURL-FLAGS]: the page is whole.
			"scrape": func(ts *testscript.TestScript, _ bool, args []string) {
				host.CheckMetrics(t, m.scrape(ts, args[1:]), args[0])
				failed(ts)
			},
			// rights: the exporter has none, and a user of its own.
			"rights": func(ts *testscript.TestScript, _ bool, _ []string) {
				m.on(ts, false, []string{"sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value " + service + ")/status"})
				host.CheckRights(t, ts.ReadFile("stdout"), dynamicUser)
				failed(ts)
			},
		},
	})
}

// install returns the /usr of a package of the exporter. In it a call that the unit
// does not allow kills: if the exporter lives, it made none.
func install(t *testing.T) string {
	t.Helper()
	usr, checkout := t.TempDir(), host.Checkout(t)
	host.Run(t, "", "install", "-D", program.Path(), filepath.Join(usr, "bin/timewait_exporter"))
	units := filepath.Join(usr, "lib/systemd/system")
	if err := os.CopyFS(units, os.DirFS(filepath.Join(checkout, "deploy/systemd"))); err != nil {
		t.Fatal(err)
	}
	dropIn := filepath.Join(units, service+".d")
	if err := os.Mkdir(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropIn, "test.conf"), []byte("[Service]\nSystemCallErrorNumber=kill\nRestartSec=100ms\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return usr
}

// on COMMAND ARGUMENTS runs a program on the machine.
func (m *machine) on(ts *testscript.TestScript, neg bool, args []string) {
	if err := ts.Exec("nsenter", append(m.enter(), args...)...); (err != nil) != neg {
		ts.Fatalf("%q: %v", args, err)
	}
}

// flags FLAGS are those of the next start.
func (m *machine) flags(ts *testscript.TestScript, _ bool, flags []string) {
	m.on(ts, false, []string{"sh", "-c", `mkdir -p /etc/default && echo "ARGS=\"$*\"" >/etc/default/timewait_exporter`, "-", strings.Join(flags, " ")})
}

// reset stops what runs, and forgets how it ended.
func (m *machine) reset(ts *testscript.TestScript, _ bool, _ []string) {
	m.on(ts, false, []string{"sh", "-c", "systemctl stop timewait_exporter.socket timewait_exporter.service; systemctl reset-failed"})
}

// want UNIT NAME=VALUE...: before long the unit has all the properties.
func (m *machine) want(ts *testscript.TestScript, _ bool, args []string) {
	m.eventually(ts, func() error {
		m.on(ts, false, []string{"systemctl", "show", args[0]})
		got := strings.Split(ts.ReadFile("stdout"), "\n")
		for _, property := range args[1:] {
			if !slices.Contains(got, property) {
				return fmt.Errorf("%s: not %s", args[0], property)
			}
		}
		return nil
	})
}

// scrape asks until it is answered: a service is up before its port is open.
func (m *machine) scrape(ts *testscript.TestScript, args []string) (page string) {
	if len(args) == 0 {
		args = []string{"http://localhost:10793/metrics"}
	}
	m.eventually(ts, func() error {
		err := ts.Exec("nsenter", slices.Concat(m.enter(), []string{"curl", "--silent", "--show-error", "--fail", "--max-time", "10"}, args)...)
		page = ts.ReadFile("stdout")
		return err
	})
	return page
}

// eventually fails the script unless there is no error in time.
func (m *machine) eventually(ts *testscript.TestScript, try func() error) {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.on(ts, false, []string{"journalctl", "--no-pager", "--lines=50", "--unit=timewait_exporter.*"})
			ts.Fatalf("%v\n%s", err, ts.ReadFile("stdout"))
		}
	}
}
