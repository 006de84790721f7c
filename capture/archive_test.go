package capture

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"timewait_exporter/collector/kernelstat"
	"timewait_exporter/collector/snapshot"
	"timewait_exporter/collector/tcptable"
)

// sosFiles are what an archive of sos has, by name.
func sosFiles() map[string]string {
	return map[string]string{
		"sos_commands/networking/ss_-peaonmi":        ssText,
		"sos_commands/networking/netstat_-W_-neopa":  netstatText,
		"sos_commands/networking/ss_-s":              "Total: 5\nTCP: 4\n",
		"sos_commands/kernel/sysctl_-a":              "net.ipv4.ip_local_port_range = 40000\t40009\nnet.ipv4.tcp_max_tw_buckets = 5000\nnet.ipv4.tcp_mem = 1\t2\t3\n",
		"sos_commands/host/hostname":                 "web1\n",
		"sos_commands/date/date":                     "Sun Mar  1 03:00:00 UTC 2026\n",
		"proc/net/tcp":                               procText,
		"proc/net/tcp6":                              "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n",
		"proc/net/sockstat":                          "sockets: used 5\nTCP: inuse 4 orphan 2 tw 1 alloc 5 mem 1\n",
		"sos_commands/networking/netstat_-s":         "Ip:\n    1 total packets received\n",
		"var/log/messages":                           strings.Repeat("noise\n", 1000),
		"sos_commands/networking/ss_-peaonmi.broken": "",
	}
}

// pack makes an archive of the files below sosreport-web1.
func pack(t *testing.T, files map[string]string, wrap func(io.Writer) io.WriteCloser) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	packed := wrap(out)
	archive := tar.NewWriter(packed)
	for name, text := range files {
		if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "..") {
			name = "sosreport-web1/" + name
		}
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, text); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []io.Closer{archive, packed, out} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

func asTar(w io.Writer) io.WriteCloser  { return plain{w} }
func asGzip(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func asXZ(w io.Writer) io.WriteCloser {
	packed, err := xz.NewWriter(w)
	if err != nil {
		panic(err)
	}
	return packed
}

// unpackTo writes the files below a directory.
func unpackTo(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSOS reads one table of an archive, however it is packed, with the limits that stand
// beside it.
func TestSOS(t *testing.T) {
	littleEndian(t)
	without := func(parts ...string) map[string]string {
		files := sosFiles()
		for name := range files {
			if slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(name, part) }) {
				delete(files, name)
			}
		}
		return files
	}
	for name, v := range map[string]struct {
		path   string
		source string
		others int
	}{
		"directory":  {unpackTo(t, sosFiles()), SS, 2},
		"tar":        {pack(t, sosFiles(), asTar), SS, 2},
		"gz":         {pack(t, sosFiles(), asGzip), SS, 2},
		"xz":         {pack(t, sosFiles(), asXZ), SS, 2},
		"without ss": {pack(t, without("ss_-"), asXZ), Proc, 1},
		"netstat":    {pack(t, without("ss_-", "proc/net/tcp"), asXZ), Netstat, 0},
	} {
		c, err := Read(t.Context(), v.path, nil, Options{Limits: limits, Owners: 20})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ns := c.Namespace
		others := 0
		for _, m := range c.Missing {
			if strings.Contains(m.Reason, "another moment") {
				others++
			}
		}
		if c.Kind != SOS || ns.Sockets.Source != v.source || others != v.others || c.Host != "web1" || c.Taken.Format("2006-01-02") != "2026-03-01" {
			t.Errorf("%s: %+v, of %s", name, c, ns.Sockets.Source)
		}
		if ns.Pool == nil || ns.Pool.Size != 10 || ns.Sockets.Ports.Connect != .2 || ns.Sockets.Connections[snapshot.IPv4][snapshot.Outbound][tcptable.Established] != 1 {
			t.Errorf("%s: %+v %+v", name, ns.Pool, ns.Sockets.Ports)
		}
		if ns.Kernel[kernelstat.Sysctl("net.ipv4.tcp_max_tw_buckets")] != 5000 || ns.Kernel[kernelstat.Sockstat("tw")] != 1 ||
			c.Node.Kernel[kernelstat.Sockstat("orphan")] != 2 || c.Node.Kernel[kernelstat.SysctlPlace("net.ipv4.tcp_mem", 2, 3)] != 3 {
			t.Errorf("%s: %v %v", name, ns.Kernel, c.Node.Kernel)
		}
	}
}

// TestShortTable has a table of five sockets where the kernel counts many.
func TestShortTable(t *testing.T) {
	files := sosFiles()
	files["proc/net/sockstat"] = "sockets: used 5\nTCP: inuse 4000 orphan 2 tw 1 alloc 5 mem 1\n"
	c, err := Read(t.Context(), pack(t, files, asGzip), nil, Options{Limits: limits})
	if err != nil || !slices.ContainsFunc(c.Missing, func(m Missing) bool { return strings.Contains(m.Reason, "the table has 5, and the kernel counts 4001") }) {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestBadArchive refuses what leads out of the archive, what unpacks without end, and what is
// not whole.
func TestBadArchive(t *testing.T) {
	whole, err := os.ReadFile(pack(t, sosFiles(), asGzip))
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	greedy := filepath.Join(t.TempDir(), "greedy")
	head := append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46"), 2, 0, 0x21, 1, 40, 0, 0, 0)
	if err := os.WriteFile(greedy, append(head, make([]byte, 100)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		pack(t, map[string]string{"../etc/passwd": "x"}, asGzip):       `a path that leads out of it: "../etc/passwd"`,
		pack(t, map[string]string{"/proc/net/tcp": procText}, asTar):   `a path that leads out of it: "/proc/net/tcp"`,
		pack(t, map[string]string{"var/log/messages": "x"}, asXZ):      "has no output of ss or netstat",
		pack(t, map[string]string{"proc/net/tcp": ssText[:9]}, asGzip): "has no output of ss or netstat",
		cut:    "not a whole archive",
		greedy: "unpacking it takes 4095 MiB of memory",
	} {
		_, err := Read(t.Context(), path, nil, Options{Limits: limits})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestBound ends what unpacks to more than it may.
func TestBound(t *testing.T) {
	b := &bound{r: bytes.NewReader(make([]byte, 100)), left: 99}
	if _, err := io.ReadAll(b); err == nil || !strings.Contains(err.Error(), "more than 8 GiB") {
		t.Error(err)
	}
}

// TestLinkOut has a directory with a link that leads out of it, and one that leads to itself.
func TestLinkOut(t *testing.T) {
	dir := unpackTo(t, map[string]string{"sos_commands/host/hostname": "web1\n"})
	out := unpackTo(t, map[string]string{"ss": ssText})
	for from, to := range map[string]string{"sos_commands/networking": out, "sos_commands/loop": ".", "sos_commands/host/ss_-tan": filepath.Join(out, "ss")} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(t.Context(), dir, nil, Options{Limits: limits}); err == nil || !strings.Contains(err.Error(), "has no output of ss or netstat") {
		t.Error(err)
	}
}
