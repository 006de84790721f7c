package kernelstat

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writePool writes sysctls of net.ipv4 into a copy of a proc file system and
// returns its root.
func writePool(t testing.TB, sysctls map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range sysctls {
		writeFile(t, filepath.Join(root, "sys/net/ipv4", name), text)
	}
	return root
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestParsePorts(t *testing.T) {
	f := func(list string, want ...int) {
		t.Helper()
		got, err := parsePorts(list)
		if err != nil {
			t.Fatal(err)
		}
		var set PortSet
		for _, port := range want {
			set.Add(uint16(port))
		}
		if *got != set {
			t.Errorf("%q is %d ports, want %v", list, got.Len(), want)
		}
	}
	f("")
	f("\n")
	f("1\n", 1)
	f("65535", 65535)
	f("0", 0)
	f("1,3,5-9\n", 1, 3, 5, 6, 7, 8, 9)
	f("5-5", 5)
	f("8080,9090-9092,65534-65535", 8080, 9090, 9091, 9092, 65534, 65535)
	f("7,7,6-8", 6, 7, 8)
	f("63-65", 63, 64, 65)

	all, err := parsePorts("0-65535")
	if err != nil || all.Len() != 65536 {
		t.Errorf("%d ports and %v", all.Len(), err)
	}

	bad := func(list, item string) {
		t.Helper()
		if _, err := parsePorts(list); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", item)) {
			t.Errorf("%q: %v, which should name %q", list, err, item)
		}
	}
	bad("x", "x")
	bad("1,x,3", "x")
	bad("65536", "65536")
	bad("-1", "-1")
	bad("1-", "1-")
	bad("-", "-")
	bad("9-5", "9-5")
	bad("1-70000", "1-70000")
	bad("1,,3", "")
	bad("1,", "")
	bad("1, 2", " 2")
	bad("1-2-3", "1-2-3")
	bad("+1", "+1")
	bad("0x10", "0x10")
	bad("1 2", "1 2")
}

func TestReadPool(t *testing.T) {
	f := func(size, low, high int, sysctls map[string]string) {
		t.Helper()
		p, err := ReadPool(t.Context(), Sysctls{Root: writePool(t, sysctls)})
		if err != nil {
			t.Fatal(err)
		}
		if p.Size != size || p.Ports.Len() != size || p.Low != low || p.High != high {
			t.Errorf("%v: a pool of %d ports from %d to %d, want %d from %d to %d", sysctls, p.Size, p.Low, p.High, size, low, high)
		}
	}
	const ports, reserved = "ip_local_port_range", "ip_local_reserved_ports"
	f(28232, 32768, 60999, map[string]string{ports: "32768\t60999\n"})
	f(28232, 32768, 60999, map[string]string{ports: "32768\t60999\n", reserved: "\n"})
	f(28222, 32768, 60999, map[string]string{ports: "32768 60999", reserved: "32768-32777\n"})
	f(101, 40000, 40100, map[string]string{ports: "40000\t40100\n"})
	f(1, 40000, 40000, map[string]string{ports: "40000\t40000\n"})
	f(0, 40000, 40000, map[string]string{ports: "40000\t40000\n", reserved: "40000\n"})
	f(0, 40000, 40099, map[string]string{ports: "40000\t40099\n", reserved: "1-65535\n"})
	f(100, 40000, 40099, map[string]string{ports: "40000\t40099\n", reserved: "80,443,39999,40100-50000\n"})
	f(98, 40000, 40099, map[string]string{ports: "40000\t40099\n", reserved: "39990-40000,40099\n"})
	f(65535, 1, 65535, map[string]string{ports: "1\t65535\n"})

	bad := func(text string, sysctls map[string]string) {
		t.Helper()
		p, err := ReadPool(t.Context(), Sysctls{Root: writePool(t, sysctls)})
		if err == nil {
			t.Errorf("%v is taken for a pool of %d ports", sysctls, p.Size)
		} else if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not name %s", err, text)
		}
	}
	bad(ports, map[string]string{ports: "40099\t40000\n"})
	bad(ports, map[string]string{ports: "0\t100\n"})
	bad(ports, map[string]string{ports: "40000\t65536\n"})
	bad(ports, map[string]string{ports: "40000\n"})
	bad(ports, map[string]string{ports: "40000 40001 40002\n"})
	bad(ports, map[string]string{ports: ""})
	bad(ports, map[string]string{ports: "\n"})
	bad("one", map[string]string{ports: "one many\n"})
	bad(ports, map[string]string{ports: "-5 100\n"})
	bad(`"-1"`, map[string]string{ports: "1 2", "tcp_tw_reuse": "-1\n"})
	bad(reserved, map[string]string{ports: "1 2", reserved: "9-1\n"})
	bad("tcp_tw_reuse", map[string]string{ports: "1 2", "tcp_tw_reuse": "1 2\n"})
	bad("tcp_timestamps", map[string]string{ports: "1 2", "tcp_timestamps": "\n"})
	bad("yes", map[string]string{ports: "1 2", "tcp_tw_reuse_delay": "yes\n"})
	for _, seconds := range []string{"0", "601", "60000", "-1", "10 20"} {
		bad("tcp_tw_timeout", map[string]string{ports: "1 2", "tcp_tw_timeout": seconds + "\n"})
	}

	if p, err := ReadPool(t.Context(), Sysctls{Root: t.TempDir()}); p != nil || err != nil {
		t.Errorf("without the sysctl: %v and %v", p, err)
	}
	for _, name := range []string{ports, reserved, "tcp_tw_timeout", "tcp_tw_reuse", "tcp_timestamps", "tcp_tw_reuse_delay"} {
		root := writePool(t, map[string]string{ports: "1 2"})
		path := filepath.Join(root, "sys/net/ipv4", name)
		os.Remove(path)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPool(t.Context(), Sysctls{Root: root}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s can't be read: %v, which should name it", name, err)
		}
	}
}

// TestReadPoolReuse reads the rules, and how long TIME_WAIT lasts, and has the kernel's defaults where a kernel
// has no such sysctl.
func TestReadPoolReuse(t *testing.T) {
	f := func(mode uint64, timestamps bool, delay, lasts time.Duration, sysctls map[string]string) {
		t.Helper()
		sysctls["ip_local_port_range"] = "32768\t60999\n"
		p, err := ReadPool(t.Context(), Sysctls{Root: writePool(t, sysctls)})
		if err != nil {
			t.Fatal(err)
		}
		if p.ReuseMode != mode || p.Timestamps != timestamps || p.ReuseDelay != delay || p.TimeWait != lasts {
			t.Errorf("%v: mode %d, timestamps %v, delay %v, TIME_WAIT lasts %v", sysctls, p.ReuseMode, p.Timestamps, p.ReuseDelay, p.TimeWait)
		}
	}
	f(0, true, time.Second, time.Minute, map[string]string{})
	f(2, true, time.Second, time.Minute, map[string]string{"tcp_tw_reuse": "2\n"})
	f(1, false, time.Second, time.Minute, map[string]string{"tcp_tw_reuse": "1\n", "tcp_timestamps": "0\n"})
	f(1, true, 250*time.Millisecond, time.Minute, map[string]string{"tcp_tw_reuse": "1\n", "tcp_timestamps": "2\n", "tcp_tw_reuse_delay": "250\n"})
	for text, lasts := range map[string]time.Duration{"1": time.Second, "5": 5 * time.Second, "10": 10 * time.Second, "60": time.Minute, "600": 10 * time.Minute} {
		f(0, true, time.Second, lasts, map[string]string{"tcp_tw_timeout": text + "\n"})
	}
}

// TestReadPoolSet has some sysctls set otherwise than the kernel says, and all of them without
// a kernel.
func TestReadPoolSet(t *testing.T) {
	const kernel = "1000 1099"
	for _, root := range []string{"", writePool(t, map[string]string{"ip_local_port_range": kernel, "tcp_tw_reuse": "2"})} {
		set := map[string]string{"net.ipv4.ip_local_port_range": "1024 65535", "net.ipv4.ip_local_reserved_ports": "2000-2009", "net.ipv4.tcp_tw_reuse": "1"}
		p, err := ReadPool(t.Context(), Sysctls{Root: root, Set: set})
		if err != nil || p.Size != 64502 || p.ReuseMode != 1 || p.TimeWait != TimeWaitLength {
			t.Errorf("below %q: %v and %v", root, p, err)
		}
		set["net.ipv4.ip_local_port_range"] = "1"
		if _, err := ReadPool(t.Context(), Sysctls{Root: root, Set: set}); err == nil || !strings.HasPrefix(err.Error(), "net.ipv4.ip_local_port_range: ") {
			t.Error(err)
		}
		delete(set, "net.ipv4.ip_local_port_range")
		if p, err := ReadPool(t.Context(), Sysctls{Root: root, Set: set}); err != nil || (p == nil) != (root == "") || p != nil && (p.Size != 100 || p.ReuseMode != 1) {
			t.Errorf("below %q without a range: %v and %v", root, p, err)
		}
	}
}

// TestReadReservedPorts reads lists that are longer than one read of the kernel's
// usual size.
func TestReadReservedPorts(t *testing.T) {
	f := func(every int) {
		t.Helper()
		var list strings.Builder
		var want PortSet
		for port := 1; port < 65536; port += every {
			fmt.Fprintf(&list, "%d,", port)
			want.Add(uint16(port))
		}
		text := strings.TrimSuffix(list.String(), ",") + "\n"
		got, err := readReservedPorts(t.Context(), Sysctls{Root: writePool(t, map[string]string{"ip_local_reserved_ports": text})})
		if err != nil {
			t.Fatal(err)
		}
		if *got != want {
			t.Errorf("a list of %d bytes has %d ports, want %d", len(text), got.Len(), want.Len())
		}
	}
	f(100) // 4 KiB
	f(11)  // more than 32 KiB
	f(2)   // the longest that the kernel can print
}

// TestAddRange adds all ranges of some ports, beside others.
func TestAddRange(t *testing.T) {
	bounds := []int{0, 1, 62, 63, 64, 65, 127, 128, 129, 191, 192, 1000, 65471, 65472, 65534, 65535}
	for i, low := range bounds {
		for _, high := range bounds[i:] {
			var got, want PortSet
			got.Add(500)
			want.Add(500)
			got.addRange(low, high)
			for port := low; port <= high; port++ {
				want.Add(uint16(port))
			}
			if got != want {
				t.Errorf("%d to %d has %d ports, want %d", low, high, got.Len(), want.Len())
			}
		}
	}
}
