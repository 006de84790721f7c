package kernelstat

import (
	"math"
	"testing"
)

func TestReadSynLimit(t *testing.T) {
	f := func(want uint64, backlog, cookies string) {
		t.Helper()
		sysctls := make(map[string]string)
		for name, text := range map[string]string{"tcp_max_syn_backlog": backlog, "tcp_syncookies": cookies} {
			if text != "" {
				sysctls[name] = text + "\n"
			}
		}
		got, err := ReadSynLimit(t.Context(), Sysctls{Root: writePool(t, sysctls)})
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("tcp_max_syn_backlog %q, tcp_syncookies %q: %d and %v, want %d", backlog, cookies, got, err, want)
		}
	}
	f(49, "64", "0")
	f(97, "128", "0")
	f(1, "0", "0")
	f(2, "1", "0")
	f(4, "3", "0")
	f(4, "4", "0")
	f(math.MaxUint64, "64", "1")
	f(math.MaxUint64, "64", "2")
	f(math.MaxUint64, "64", "") // built without cookies
	f(0, "", "1")
	f(0, "x", "1")
	f(0, "64", "x")
	f(0, "64", "0 0")
}
