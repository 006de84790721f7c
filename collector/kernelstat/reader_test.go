package kernelstat

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestReader reads several namespaces with one Reader, which has to say of each what Read
// does, whatever it knows of the one before.
func TestReader(t *testing.T) {
	numbers := []Number{
		Sockstat("inuse"), Sockstat("tw"), Sockstat6("inuse"), SNMP("ActiveOpens"), SNMP("CurrEstab"),
		Netstat("TW"), Netstat("Missing"), Conntrack("entries"), Conntrack("drop"),
	}
	r := NewReader(numbers)
	f := func(files map[string]string) {
		t.Helper()
		path := t.TempDir()
		for name, text := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(path, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		want, wantErr := Read(t.Context(), Sysctls{}, path, numbers)
		got, err := r.Read(int(dir.Fd()))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("of %q:\n%v, want\n%v", files, got, want)
		}
		if wantErr != nil && err == nil || err != nil && (wantErr == nil || !sameErrors(err, wantErr, path)) {
			t.Errorf("of %q:\n%v, want\n%v", files, err, wantErr)
		}
	}
	whole := map[string]string{
		"sockstat":          "sockets: used 9\nTCP: inuse 5 orphan 3 tw 7 alloc 9 mem 11\n",
		"sockstat6":         "TCP6: inuse 2\n",
		"snmp":              "Ip: Forwarding\nIp: 1\nTcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 3 4\nUdp: A\nUdp: 1\n",
		"netstat":           "TcpExt: SyncookiesSent TW\nTcpExt: 1 2\nIpExt: A\nIpExt: 1\n",
		"stat/nf_conntrack": "entries drop\n0000000a 00000001\n0000000a 000000ff\n",
	}
	with := func(name, text string) map[string]string {
		files := maps.Clone(whole)
		files[name] = text
		return files
	}
	f(nil)
	for range 2 {
		f(whole)
		for _, text := range []string{
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 30 40\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 30 40",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 30\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 30 40 50\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 -30 40\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1  30 40\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\n",
			"Tcp: MaxConn ActiveOpens CurrEstab\nTcp: -1 30 40\nTcp: 1 1 1\n",
			"Tcp: CurrEstab ActiveOpens\nTcp: 30 40\n", // another kernel's
			"Tcp: ActiveOpens ActiveOpens\nTcp: 30 40\n",
			"",
			strings.Repeat("x", 2*maxFile),
		} {
			f(with("snmp", text))
		}
		f(with("netstat", "TcpExt: SyncookiesSent TW Missing\nTcpExt: 1 2 3\n"))
		f(with("sockstat", "TCP: inuse x\n"))
		f(with("stat/nf_conntrack", strings.Repeat("entries drop\n00000001 00000001\n", 1)+strings.Repeat("00000001 00000001\n", 2000)))
	}
}

// sameErrors reports whether two errors are of the same text but for the path.
func sameErrors(got, want error, path string) bool {
	return got.Error() == strings.ReplaceAll(want.Error(), path+"/", "")
}
