// Package packages tests the deb and the rpm with the real package managers, each on
// a copy of this machine's file system.
package packages

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"timewait_exporter/test/deploy/host"
)

const (
	name     = "timewait-exporter"
	conffile = "/etc/default/timewait_exporter"
	older    = "1.0.0-rc.1"
	newer    = "1.0.0"
	units    = "timewait_exporter.socket timewait_exporter.service"
	enabled  = "/etc/systemd/system/multi-user.target.wants/timewait_exporter.service"
)

// files are those of both packages. Each has the zsh completion too, where its
// distributions have those.
var files = map[string]fs.FileMode{
	conffile:                     0o644,
	"/usr/bin/timewait_exporter": 0o755,
	"/usr/lib/systemd/system/timewait_exporter.service":                    0o644,
	"/usr/lib/systemd/system/timewait_exporter.socket":                     0o644,
	"/usr/share/bash-completion/completions/timewait_exporter":             0o644,
	"/usr/share/doc/timewait-exporter/CHANGELOG.md":                        0o644,
	"/usr/share/doc/timewait-exporter/README.md":                           0o644,
	"/usr/share/doc/timewait-exporter/copyright":                           0o644,
	"/usr/share/man/man8/timewait_exporter.8.gz":                           0o644,
	"/usr/share/timewait-exporter/dashboards/timewait-destinations.json":   0o644,
	"/usr/share/timewait-exporter/dashboards/timewait-fleet.json":          0o644,
	"/usr/share/timewait-exporter/dashboards/timewait-host.json":           0o644,
	"/usr/share/timewait-exporter/prometheus/timewait_exporter.alerts.yml": 0o644,
	"/usr/share/timewait-exporter/prometheus/timewait_exporter.rules.yml":  0o644,
}

func TestPackages(t *testing.T) {
	host.NeedsRoot(t)
	host.Needs(t, "make", "git", "dpkg", "rpm", "systemctl")
	clone, packages := filepath.Join(t.TempDir(), "clone"), t.TempDir()
	host.Run(t, "", "git", "clone", "--quiet", host.Commit(t), clone)
	for _, version := range []string{older, newer} {
		host.Run(t, clone, "make", "release", "ARCHS="+runtime.GOARCH, "VERSION="+version,
			"TOOLS="+filepath.Join(host.Checkout(t), ".tools/bin"))
		for _, packager := range []string{"deb", "rpm"} {
			built, err := filepath.Glob(filepath.Join(clone, "dist/*."+packager))
			if err != nil || len(built) != 1 {
				t.Fatalf("%q were built: %v", built, err)
			}
			if err := os.Rename(built[0], filepath.Join(packages, version+"."+packager)); err != nil {
				t.Fatal(err)
			}
		}
	}

	t.Run("Deb", func(t *testing.T) { testDeb(t, newMachine(t, packages)) })
	t.Run("DebServices", func(t *testing.T) { testDebServices(t, newMachine(t, packages)) })
	t.Run("RPM", func(t *testing.T) { testRPM(t, newMachine(t, packages)) })
	t.Run("RPMServices", func(t *testing.T) { testRPMServices(t, newMachine(t, packages)) })
	t.Run("Documents", func(t *testing.T) { testDocuments(t, newMachine(t, packages)) })
}

func TestScripts(t *testing.T) {
	host.Needs(t, "shellcheck")
	scripts := filepath.Join(host.Checkout(t), "deploy/packages")
	host.Run(t, scripts, "shellcheck", "generate", "deb/postinst", "deb/prerm", "deb/postrm")
	host.Run(t, scripts, "shellcheck", "--shell=sh", "rpm/post", "rpm/preun", "rpm/postun")
}

// deb is where the machine has the package.
func deb(version string) string { return "/run/packages/" + version + ".deb" }

func rpm(version string) string { return "/run/packages/" + version + ".rpm" }

// Installed, upgraded, removed and purged, without a systemd that runs.
func testDeb(t *testing.T, m *machine) {
	before := m.written(t)
	m.run(t, "apt-get", "install", "--yes", deb(older))
	checkFiles(t, m, m.run(t, "dpkg", "-L", name), "/usr/share/zsh/vendor-completions/_timewait_exporter")
	checkVersion(t, m, older)
	if out := m.run(t, "dpkg", "--verify", name); out != "" {
		t.Errorf("dpkg --verify:\n%s", out)
	}
	if !m.has(enabled) {
		t.Error("the service is not enabled")
	}
	if m.has("/etc/systemd/system/sockets.target.wants/timewait_exporter.socket") {
		t.Error("the socket is enabled")
	}

	const mine = `ARGS="--collector.source=auto"`
	m.write(t, conffile, mine, 0o644)
	m.run(t, "apt-get", "install", "--yes", deb(newer))
	checkVersion(t, m, newer)
	if got := m.read(t, conffile); got != mine {
		t.Errorf("after the upgrade %s is %q", conffile, got)
	}

	m.run(t, "dpkg", "--remove", name)
	if got := m.read(t, conffile); got != mine {
		t.Errorf("once removed, %s is %q", conffile, got)
	}
	for file := range files {
		if file != conffile && m.has(file) {
			t.Errorf("once removed, there is %s", file)
		}
	}
	m.run(t, "dpkg", "--purge", name)
	if after := m.written(t); !slices.Equal(after, before) {
		t.Errorf("once purged there is\n%s\n\nand at first there was\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// What the scripts ask of systemd.
func testDebServices(t *testing.T, m *machine) {
	m.boot(t)
	step := func(what string, want []string, args ...string) {
		t.Helper()
		m.run(t, args...)
		if got := m.asked(t); !slices.Equal(got, want) {
			t.Errorf("%s: systemctl was asked %q and not %q", what, got, want)
		}
	}
	step("installed", []string{"daemon-reload", "start timewait_exporter.service"}, "dpkg", "--install", deb(older))
	step("upgraded", []string{"daemon-reload", "restart timewait_exporter.service"}, "dpkg", "--install", deb(newer))

	// As `systemctl disable --now` leaves it.
	if err := os.Remove(filepath.Join(m.root, enabled)); err != nil {
		t.Fatal(err)
	}
	step("upgraded while disabled", []string{"daemon-reload"}, "dpkg", "--install", deb(newer))
	if m.has(enabled) {
		t.Error("an upgrade enables a disabled service")
	}

	// As `systemctl enable` leaves it.
	socket := "/etc/systemd/system/sockets.target.wants/timewait_exporter.socket"
	if err := os.MkdirAll(filepath.Join(m.root, filepath.Dir(socket)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib/systemd/system/timewait_exporter.socket", filepath.Join(m.root, socket)); err != nil {
		t.Fatal(err)
	}
	step("removed", []string{"stop " + units, "daemon-reload"}, "dpkg", "--remove", name)
	step("purged", []string{"daemon-reload"}, "dpkg", "--purge", name)
	if m.has(socket) {
		t.Error("a purge leaves the socket enabled")
	}
}

// Installed, upgraded and erased, without a systemd that runs.
func testRPM(t *testing.T, m *machine) {
	const completions = "/usr/share/zsh/site-functions" // which distributions with rpm have
	if err := os.MkdirAll(filepath.Join(m.root, completions), 0o755); err != nil {
		t.Fatal(err)
	}
	before := m.written(t)
	m.run(t, "rpm", "--force-debian", "--install", rpm(older))
	checkFiles(t, m, m.run(t, "rpm", "--query", "--list", name), completions+"/_timewait_exporter")
	checkVersion(t, m, older)
	m.run(t, "rpm", "--verify", name)

	const mine = `ARGS="--collector.source=auto"`
	m.write(t, conffile, mine, 0o644)
	m.run(t, "rpm", "--force-debian", "--upgrade", rpm(newer))
	checkVersion(t, m, newer)
	if got := m.read(t, conffile); got != mine {
		t.Errorf("after the upgrade %s is %q", conffile, got)
	}
	// Nothing but that file has changed.
	if out, err := m.try(t, "rpm", "--verify", name); err == nil || !regexp.MustCompile(`^S\.5\S+  c `+conffile+`\n$`).MatchString(out) {
		t.Errorf("rpm --verify: %v: %s", err, out)
	}

	m.run(t, "rpm", "--force-debian", "--erase", name)
	if got := m.read(t, conffile+".rpmsave"); got != mine {
		t.Errorf("once erased, %s.rpmsave is %q", conffile, got)
	}
	if err := os.Remove(filepath.Join(m.root, conffile+".rpmsave")); err != nil {
		t.Fatal(err)
	}
	if after := m.written(t); !slices.Equal(after, before) {
		t.Errorf("once erased there is\n%s\n\nand at first there was\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

func testRPMServices(t *testing.T, m *machine) {
	m.boot(t)
	step := func(what string, want []string, args ...string) {
		t.Helper()
		m.run(t, append([]string{"rpm", "--force-debian"}, args...)...)
		if got := m.asked(t); !slices.Equal(got, want) {
			t.Errorf("%s: systemctl was asked %q and not %q", what, got, want)
		}
	}
	step("installed", []string{"daemon-reload", "--no-reload preset timewait_exporter.service"}, "--install", rpm(older))
	step("upgraded", []string{"daemon-reload", "daemon-reload", "try-restart timewait_exporter.service"}, "--upgrade", rpm(newer))
	step("erased", []string{"--no-reload disable --now " + units, "daemon-reload"}, "--erase", name)
}

// The manual page and the completions, as users come by them.
func testDocuments(t *testing.T, m *machine) {
	host.Needs(t, "mandoc", "bash", "zsh", "script")
	m.run(t, "dpkg", "--install", deb(newer))

	page := "/usr/share/man/man8/timewait_exporter.8.gz"
	m.run(t, "mandoc", "-T", "lint", "-W", "warning", page)
	text := m.run(t, "mandoc", "-T", "ascii", "-O", "width=1000", page)
	text = regexp.MustCompile(".\b").ReplaceAllString(text, "")
	flags := regexp.MustCompile(`(?m)^ +(?:-\w, )?(--\S+?)(?:=|\s|$)`).FindAllStringSubmatch(m.run(t, "env", "COLUMNS=1000", "timewait_exporter", "--help"), -1)
	if len(flags) < 10 {
		t.Fatalf("%d flags were understood", len(flags))
	}
	for _, flag := range flags {
		if flag[1] != "--[no-]help" && flag[1] != "--[no-]version" && !strings.Contains(text, "\n       "+flag[1]) {
			t.Errorf("the manual page has no %s", flag[1])
		}
	}

	// The keys complete the flag, and the program prints its version.
	const keys = "timewait_exporter --vers\t\nexit\n"
	for shell, c := range map[string]struct{ file, rc, command string }{
		"bash": {"/run/rc", "PS1='$ '\n. /usr/share/bash-completion/completions/timewait_exporter\n", "bash --rcfile /run/rc -i"},
		"zsh":  {"/run/.zshrc", "autoload -Uz compinit\ncompinit -u -D\n", "ZDOTDIR=/run zsh -d -i"},
	} {
		t.Run(shell, func(t *testing.T) {
			m.write(t, c.file, c.rc, 0o644)
			m.write(t, "/run/keys", keys, 0o644)
			out := m.run(t, "sh", "-c", `timeout 30 script --quiet --command "$1" /dev/null </run/keys`, "-", c.command)
			if !strings.Contains(out, "timewait_exporter, version "+newer+" ") {
				t.Errorf("after the keys %q %s shows %q", keys, shell, out)
			}
		})
	}
}

// checkFiles checks that the package's files are those it should have, with the right
// owner and mode.
func checkFiles(t *testing.T, m *machine, listed, completion string) {
	t.Helper()
	want := maps.Clone(files)
	want[completion] = 0o644
	got := map[string]fs.FileMode{}
	for path := range strings.Lines(listed) {
		path = strings.TrimSpace(path)
		info, err := os.Lstat(filepath.Join(m.root, path))
		if err != nil {
			t.Error(err)
		} else if !info.IsDir() {
			got[path] = info.Mode()
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("the package has %v\n\nand should have %v", got, want)
	}
	for path := range got {
		if owner := m.run(t, "stat", "--format=%U:%G", path); owner != "root:root\n" {
			t.Errorf("%s belongs to %s", path, owner)
		}
	}
}

func checkVersion(t *testing.T, m *machine, version string) {
	t.Helper()
	if out := m.run(t, "timewait_exporter", "--version"); !strings.HasPrefix(out, "timewait_exporter, version "+version+" ") {
		t.Errorf("after the installation of %s:\n%s", version, out)
	}
}
