// Package systemd holds the units to what they promise: they are installed in a
// container in which a real systemd is booted, and run the real program.
package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../../..") }

const (
	service = "timewait_exporter.service"
	socket  = "timewait_exporter.socket"
	metrics = "http://localhost:10793/metrics"

	// dynamicUser are the users that systemd invents, 61184 to 65519.
	dynamicUser = `6[1-5]\d{3}`
)

// A service that is worth 1.5 of 10 points of exposure needs a reason to have more.
func TestExposure(t *testing.T) {
	host.Needs(t, "systemd-analyze")
	host.Run(t, host.Checkout(t), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", "deploy/systemd/"+service)
}

func TestUnits(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "systemd-nspawn", "curl", "openssl")
	m := boot(t, install(t))

	t.Run("verify", func(t *testing.T) {
		out := m.run(t, "sh", "-c", "systemd-analyze verify --recursive-errors=no "+service+" "+socket+" 2>&1")
		if out != "" {
			t.Error(out)
		}
	})
	for _, source := range []string{"procfs", "netlink"} {
		t.Run(source, func(t *testing.T) {
			m.reset(t, "--collector.source="+source)
			m.run(t, "systemctl", "start", service)
			host.CheckMetrics(t, m.scrape(t, metrics), source)
			host.CheckRights(t, m.process(t), dynamicUser)
			m.run(t, "systemctl", "stop", service)
			m.want(t, service, "ActiveState=inactive Result=success ExecMainStatus=0 NRestarts=0")
		})
	}
	// SIGQUIT ends a Go program as a panic does.
	for name, signal := range map[string]string{"killed": "SIGKILL", "crashed": "SIGQUIT"} {
		t.Run(name, func(t *testing.T) {
			m.reset(t, "")
			m.run(t, "systemctl", "start", service)
			m.scrape(t, metrics)
			m.run(t, "systemctl", "kill", "--signal="+signal, service)
			m.want(t, service, "ActiveState=active NRestarts=1")
			m.scrape(t, metrics)
		})
	}
	t.Run("wrong flag", func(t *testing.T) {
		m.reset(t, "--nonsense")
		m.run(t, "systemctl", "start", service)
		m.want(t, service, "ActiveState=failed ExecMainStatus=2 NRestarts=0")
	})
	t.Run("socket", func(t *testing.T) {
		m.reset(t, "--web.systemd-socket")
		m.run(t, "systemctl", "start", socket)
		m.want(t, service, "ActiveState=inactive")
		host.CheckMetrics(t, m.scrape(t, metrics), "procfs")
		host.CheckRights(t, m.process(t), dynamicUser)

		m.run(t, "systemctl", "restart", service)
		host.CheckMetrics(t, m.scrape(t, metrics), "procfs")
		m.want(t, service, "ActiveState=active NRestarts=0")
	})
	t.Run("wrong flag on the socket", func(t *testing.T) {
		m.reset(t, "--nonsense")
		before := m.starts(t)
		m.run(t, "systemctl", "start", socket)
		if _, err := m.curl(t, metrics); err == nil {
			t.Error("somebody answers")
		}
		m.want(t, service, "ActiveState=failed ExecMainStatus=2 NRestarts=0")
		m.want(t, socket, "SubState=listening")
		m.flags(t, "--web.systemd-socket")
		m.scrape(t, metrics)
		if starts := m.starts(t) - before; starts != 2 {
			t.Errorf("two scrapes started it %d times", starts)
		}
	})
	// As the unit says: what only root may read reaches the exporter all the same.
	t.Run("TLS", func(t *testing.T) {
		m.reset(t, "--web.config.file=/run/credentials/timewait_exporter.service/web.yml")
		m.write(t, "/run/systemd/system/"+service+".d/tls.conf", "[Service]\n"+commented(t, `LoadCredential=\S+`))
		m.run(t, "systemctl", "daemon-reload")
		m.write(t, "/etc/timewait_exporter/web.yml", "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n")
		m.run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
			"-addext", "subjectAltName=DNS:localhost", "-config", "/dev/null", "-keyout", "/etc/timewait_exporter/tls.key", "-out", "/etc/timewait_exporter/tls.crt")
		m.run(t, "systemctl", "start", service)
		m.scrape(t, "https://localhost:10793/metrics", "--cacert", "/etc/timewait_exporter/tls.crt")
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

// reset stops what runs and sets the flags of the next start.
func (m *machine) reset(t *testing.T, flags string) {
	t.Helper()
	m.run(t, "systemctl", "stop", socket, service)
	m.run(t, "systemctl", "reset-failed")
	m.flags(t, flags)
}

func (m *machine) flags(t *testing.T, flags string) {
	t.Helper()
	m.write(t, "/etc/default/timewait_exporter", `ARGS="`+flags+`"`+"\n")
}

// scrape asks until it is answered: a service is up before its port is open.
func (m *machine) scrape(t *testing.T, args ...string) string {
	t.Helper()
	var body string
	m.eventually(t, "a scrape", func() (bool, string) {
		var err error
		body, err = m.curl(t, args...)
		return err == nil, stderr(err)
	})
	return body
}

// want waits until the unit has the properties, each written as "name=value".
func (m *machine) want(t *testing.T, unit, properties string) {
	t.Helper()
	m.eventually(t, unit+": "+properties, func() (bool, string) {
		got := strings.Split(m.run(t, "systemctl", "show", unit), "\n")
		for property := range strings.FieldsSeq(properties) {
			if !slices.Contains(got, property) {
				return false, "not " + property
			}
		}
		return true, ""
	})
}

// process returns /proc/PID/status of the exporter.
func (m *machine) process(t *testing.T) string {
	t.Helper()
	return m.run(t, "sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value "+service+")/status")
}

// starts returns how often the service was started since the machine booted.
func (m *machine) starts(t *testing.T) int {
	t.Helper()
	m.run(t, "journalctl", "--sync")
	return strings.Count(m.run(t, "journalctl", "--no-pager", "--output=cat", "--unit="+service), "Started "+service)
}

// commented returns the lines of the service that are commented out and match.
func commented(t *testing.T, pattern string) string {
	t.Helper()
	unit := host.Read(t, filepath.Join(host.Checkout(t), "deploy/systemd", service))
	lines := regexp.MustCompile(`(?m)^# +(`+pattern+`)$`).FindAllStringSubmatch(unit, -1)
	if lines == nil {
		t.Fatalf("no commented line in %s matches %s", service, pattern)
	}
	var out strings.Builder
	for _, line := range lines {
		out.WriteString(line[1] + "\n")
	}
	return out.String()
}

func stderr(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(exit.Stderr)
	}
	return fmt.Sprint(err)
}
