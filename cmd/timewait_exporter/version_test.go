package main

import (
	"runtime/debug"
	"testing"
)

func TestModuleVersion(t *testing.T) {
	f := func(version, want string) {
		t.Helper()
		if got := moduleVersion(&debug.BuildInfo{Main: debug.Module{Version: version}}, true); got != want {
			t.Errorf("%q: got %q, want %q", version, got, want)
		}
	}
	f("v1.2.3", "1.2.3")
	f("v0.0.0-20260102030405-0123456789ab+dirty", "0.0.0-20260102030405-0123456789ab+dirty")
	f("(devel)", "devel")
	f("", "devel")
	if got := moduleVersion(nil, false); got != "devel" {
		t.Errorf("without build info: %q", got)
	}
}
