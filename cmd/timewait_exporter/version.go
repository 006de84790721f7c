package main

import (
	"runtime/debug"
	"strings"
)

// moduleVersion returns the version that Go has put into a program built without our
// Makefile: that of the module by "go install", one made of the commit by "go build"
// in a checkout, with "+dirty" for changes that are not committed. "go run" puts none
// there.
func moduleVersion(info *debug.BuildInfo, ok bool) string {
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return strings.TrimPrefix(info.Main.Version, "v")
}
