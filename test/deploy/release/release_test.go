// Package release tests that `make release` builds what it says for every
// architecture, and the same bytes anywhere.
package release

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/program"
)

const version = "1.2.3-rc.1"

// architecture is one by the name that Go, ELF, Debian, RPM and QEMU have for it.
type architecture struct {
	goarch  string
	class   elf.Class
	machine elf.Machine
	deb     string
	rpm     string
	qemu    string
}

var architectures = []architecture{
	{"amd64", elf.ELFCLASS64, elf.EM_X86_64, "amd64", "x86_64", "qemu-x86_64-static"},
	{"arm64", elf.ELFCLASS64, elf.EM_AARCH64, "arm64", "aarch64", "qemu-aarch64-static"},
	{"386", elf.ELFCLASS32, elf.EM_386, "i386", "i386", "qemu-i386-static"},
	{"riscv64", elf.ELFCLASS64, elf.EM_RISCV, "riscv64", "riscv64", "qemu-riscv64-static"},
	{"s390x", elf.ELFCLASS64, elf.EM_S390, "s390x", "s390x", "qemu-s390x-static"},
}

// files returns the release's files for the architecture.
func (a architecture) files() []string {
	deb := strings.Replace(version, "-", "~", 1)
	return []string{
		"timewait_exporter-" + version + ".linux-" + a.goarch + ".tar.gz",
		"timewait-exporter_" + deb + "_" + a.deb + ".deb",
		"timewait-exporter-" + deb + "-1." + a.rpm + ".rpm",
	}
}

const sbom = "timewait_exporter-" + version + ".cdx.json"

func TestRelease(t *testing.T) {
	host.Needs(t, "make", "git", "dpkg-deb", "rpm")
	// The compiler takes most of the time; fewer of ARCHS take less.
	built := architectures
	if names := strings.Fields(os.Getenv("ARCHS")); len(names) > 0 {
		built = slices.DeleteFunc(slices.Clone(built), func(a architecture) bool { return !slices.Contains(names, a.goarch) })
	}
	repo := host.Commit(t)
	host.Run(t, "", "git", "--git-dir="+repo, "tag", "v"+version)
	tools := "TOOLS=" + filepath.Join(host.Checkout(t), ".tools/bin")

	clone := filepath.Join(t.TempDir(), "first")
	host.Run(t, "", "git", "clone", "--quiet", repo, clone)
	host.Run(t, clone, "make", "release", tools)
	dist := filepath.Join(clone, "dist")

	t.Run("Files", func(t *testing.T) {
		want := []string{"build", sbom, "sha256sums.txt"}
		for _, a := range built {
			want = append(want, a.files()...)
		}
		entries, err := os.ReadDir(dist)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, entry := range entries {
			got = append(got, entry.Name())
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("dist has\n%s\n\nand should have\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		host.Run(t, dist, "sha256sum", "--check", "--strict", "sha256sums.txt")
		if lines := strings.Count(host.Read(t, filepath.Join(dist, "sha256sums.txt")), "\n"); lines != len(want)-2 {
			t.Errorf("sha256sums.txt has %d files", lines)
		}
	})

	// Another time, directory, branch, umask, language and time zone, and nothing compiled
	// before.
	t.Run("Reproducible", func(t *testing.T) {
		again := filepath.Join(t.TempDir(), "somewhere", "else")
		host.Run(t, "", "git", "clone", "--quiet", repo, again)
		host.Run(t, again, "git", "checkout", "--quiet", "-b", "feature")
		cache := t.TempDir()
		host.Run(t, again, "env", "GOCACHE="+cache, "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "HOSTNAME=elsewhere", "USER=somebody",
			"sh", "-c", `umask 077 && chmod -R go= . && exec make release "$@"`, "-", tools, "ARCHS="+runtime.GOARCH,
			// Building the tools again would prove nothing about the release.
			"--old-file="+filepath.Join(host.Checkout(t), ".tools/bin/nfpm"),
			"--old-file="+filepath.Join(host.Checkout(t), ".tools/bin/cyclonedx-gomod"))
		for _, a := range architectures {
			if a.goarch != runtime.GOARCH {
				continue
			}
			for _, name := range append(a.files(), sbom) {
				if host.Read(t, filepath.Join(dist, name)) != host.Read(t, filepath.Join(again, "dist", name)) {
					t.Errorf("%s is not the same", name)
				}
			}
		}
	})

	var components map[string]string
	t.Run("SBOM", func(t *testing.T) {
		type component struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		}
		var bom struct {
			Format   string `json:"bomFormat"`
			Metadata struct {
				Component component `json:"component"`
			} `json:"metadata"`
			Components []component `json:"components"`
		}
		if err := json.Unmarshal([]byte(host.Read(t, filepath.Join(dist, sbom))), &bom); err != nil {
			t.Fatal(err)
		}
		if c := bom.Metadata.Component; bom.Format != "CycloneDX" || c.Name != "timewait_exporter" || c.Version != "v"+version {
			t.Errorf("%s is the %s of %s %s", sbom, bom.Format, c.Name, c.Version)
		}
		components = map[string]string{}
		for _, c := range bom.Components {
			components[c.Name] = c.Version
		}
	})

	for _, a := range built {
		t.Run(a.goarch, func(t *testing.T) {
			files := a.files()
			unpacked := t.TempDir()
			host.Run(t, unpacked, "tar", "-xf", filepath.Join(dist, files[0]), "--strip-components=1")
			program := filepath.Join(unpacked, "timewait_exporter")
			host.CheckProgram(t, program, a.class, a.machine)

			info, err := buildinfo.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			modules := map[string]string{"std": info.GoVersion}
			for _, module := range info.Deps {
				modules[module.Path] = module.Version
			}
			if !maps.Equal(components, modules) {
				t.Errorf("the SBOM has the modules\n%v\n\nand the program has\n%v", components, modules)
			}

			deb := filepath.Join(dist, files[1])
			if got := host.Run(t, "", "dpkg-deb", "--showformat=${Architecture}", "--show", deb); got != a.deb {
				t.Errorf("the deb is for %s", got)
			}
			rpm := filepath.Join(dist, files[2])
			if got := host.Run(t, "", "rpm", "-qp", "--nosignature", "--queryformat=%{ARCH} %{BUILDHOST}", rpm); got != a.rpm+" localhost" {
				t.Errorf("the rpm is for %s", got)
			}
			md5, _, _ := strings.Cut(host.Run(t, "", "md5sum", program), " ")
			if sums := host.Run(t, "", "sh", "-c", `dpkg-deb --ctrl-tarfile "$1" | tar -xO ./md5sums`, "-", deb); !strings.Contains(sums, md5+"  ./usr/bin/timewait_exporter\n") {
				t.Errorf("the deb has another program than the tarball:\n%s", sums)
			}
			sha256, _, _ := strings.Cut(host.Run(t, "", "sha256sum", program), " ")
			if sums := host.Run(t, "", "rpm", "-qp", "--nosignature", "--dump", rpm); !strings.Contains(sums, sha256) {
				t.Errorf("the rpm has another program than the tarball:\n%s", sums)
			}

			if !a.native() {
				host.Needs(t, a.qemu)
			}
			revision := strings.TrimSpace(host.Run(t, clone, "git", "rev-parse", "HEAD"))
			want := "timewait_exporter, version " + version + " (branch: HEAD, revision: " + revision + ")\n"
			command := append(a.command(program), "--version")
			if got := host.Run(t, "", command[0], command[1:]...); !strings.HasPrefix(got, want) {
				t.Errorf("--version prints\n%s\nand should print\n%s", got, want)
			}
		})
	}

	// A kernel prints an address as numbers in its own byte order (get_tcp4_sock in
	// net/ipv4/tcp_ipv4.c), so each word of a big-endian machine's table is the other way.
	t.Run("BigEndian", func(t *testing.T) {
		little, big := architectures[0], architectures[len(architectures)-1]
		for _, a := range []architecture{little, big} {
			if !slices.Contains(built, a) {
				t.Skipf("%s is not built", a.goarch)
			}
			if !a.native() {
				host.Needs(t, a.qemu)
			}
		}
		machines, err := filepath.Glob(filepath.Join(clone, "collector/testdata/*/proc"))
		if err != nil || len(machines) == 0 {
			t.Fatalf("no machine: %v", err)
		}
		for _, proc := range machines {
			t.Run(filepath.Base(filepath.Dir(proc)), func(t *testing.T) {
				// What is not /proc is read through its PID 1.
				tables := filepath.Join(proc, "1", "net")
				if _, err := os.Stat(tables); err != nil {
					if err := os.MkdirAll(filepath.Dir(tables), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.Symlink("../net", tables); err != nil {
						t.Fatal(err)
					}
				}
				want := scrape(t, little.command(dist+"/build/timewait_exporter-"+version+".linux-"+little.goarch+"/timewait_exporter"), proc)
				swapWords(t, filepath.Join(tables, "tcp"))
				swapWords(t, filepath.Join(tables, "tcp6"))
				got := scrape(t, big.command(dist+"/build/timewait_exporter-"+version+".linux-"+big.goarch+"/timewait_exporter"), proc)
				if !slices.Equal(got, want) {
					t.Errorf("%s says\n%s\n\nand %s says\n%s", big.goarch, strings.Join(got, "\n"), little.goarch, strings.Join(want, "\n"))
				}
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, "tcp_connections{") }) {
					t.Errorf("no connections were counted: %s", strings.Join(got, "\n"))
				}
			})
		}
	})
}

// native reports whether this machine runs programs of the architecture.
func (a architecture) native() bool {
	return a.goarch == runtime.GOARCH || a.goarch == "386" && runtime.GOARCH == "amd64"
}

// command returns what starts a program of the architecture here.
func (a architecture) command(program string) []string {
	if a.native() {
		return []string{program}
	}
	return []string{a.qemu, program}
}

// address is one of the two of a row; queues have longer numbers after the colon.
var address = regexp.MustCompile(` ((?:[0-9A-F]{8})+):[0-9A-F]{4} `)

// swapWords turns the table of a little-endian machine into that of a big-endian one.
func swapWords(t *testing.T, table string) {
	t.Helper()
	text, err := os.ReadFile(table)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	swapped := 0
	// A match takes the space that the next one needs.
	for at := 0; ; {
		match := address.FindSubmatchIndex(text[at:])
		if match == nil {
			break
		}
		for word := text[at+match[2] : at+match[3]]; len(word) > 0; word = word[8:] {
			copy(word, []byte{word[6], word[7], word[4], word[5], word[2], word[3], word[0], word[1]})
		}
		at += match[1] - 1
		swapped++
	}
	if rows := bytes.Count(text, []byte("\n")) - 1; swapped != 2*rows {
		t.Fatalf("%s: %d addresses in %d rows", table, swapped, rows)
	}
	if err := os.WriteFile(table, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scrape returns the samples of the kernel's metrics that the program exports of a
// proc file system.
func scrape(t *testing.T, command []string, proc string) []string {
	t.Helper()
	exporter := program.Start(t, exec.Command(command[0], append(command[1:], "--path.procfs="+proc, "--web.listen-address=127.0.0.1:0")...))
	var samples []string
	for line := range strings.Lines(program.Get(t, "http://"+exporter.Address(t)+"/metrics")) {
		if strings.HasPrefix(line, "tcp_") || strings.HasPrefix(line, "kernel_") || strings.HasPrefix(line, "timewait_exporter_collector_success") {
			samples = append(samples, strings.TrimSuffix(line, "\n"))
		}
	}
	return samples
}

// Packages of a commit must replace those of older ones, with both package managers.
func TestVersionOrder(t *testing.T) {
	host.Needs(t, "make", "git", "dpkg", "rpm")
	repo := host.Commit(t)
	clone := filepath.Join(t.TempDir(), "clone")
	host.Run(t, "", "git", "clone", "--quiet", repo, clone)
	git := func(args ...string) {
		t.Helper()
		host.Run(t, clone, "git", append([]string{"-c", "user.name=test", "-c", "user.email=test@localhost"}, args...)...)
	}
	// As nfpm turns a semantic version into that of a package.
	current := func() string {
		t.Helper()
		v := strings.TrimSpace(host.Run(t, clone, "make", "--silent", "--eval=version: ; @echo '$(VERSION)'", "version"))
		return strings.Replace(v, "-", "~", 1)
	}

	var versions []string
	versions = append(versions, current())
	for _, tag := range []string{"v0.9.0-rc.1", "v0.9.0", "v0.10.0"} {
		git("commit", "--quiet", "--allow-empty", "--message=next")
		versions = append(versions, current())
		git("tag", tag)
		versions = append(versions, current())
	}
	if err := os.WriteFile(filepath.Join(clone, "README.md"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	versions = append(versions, current())

	forms := []string{
		`0\.0\.0~\d{14}\.g[0-9a-f]{12}`, `0\.0\.0~\d{14}\.g[0-9a-f]{12}`,
		`0\.9\.0~rc\.1`, `0\.9\.0~rc\.1\+1\.g[0-9a-f]{12}`,
		`0\.9\.0`, `0\.9\.0\+1\.g[0-9a-f]{12}`,
		`0\.10\.0`, `0\.10\.0\+0\.g[0-9a-f]{12}\.dirty`,
	}
	for i, v := range versions {
		if !regexp.MustCompile(`^` + forms[i] + `$`).MatchString(v) {
			t.Errorf("version %d is %s, not of the form %s", i, v, forms[i])
		}
		// The first two may be of the same second.
		if i < 2 {
			continue
		}
		host.Run(t, "", "dpkg", "--compare-versions", versions[i-1], "lt", v)
		if got := strings.TrimSpace(host.Run(t, "", "rpm", "--eval", fmt.Sprintf("%%{lua:print(rpm.vercmp('%s', '%s'))}", versions[i-1], v))); got != "-1" {
			t.Errorf("rpm: %s against %s is %s", versions[i-1], v, got)
		}
	}
}
