package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/flags.md instead of comparing")

const flagsIntro = `# Flags

Written from the code by ` + "`make docs`" + `; a test holds it to the code.

| Flag | Default | Meaning |
|---|---|---|
`

const flagsRest = `
A wrong flag ends the program with exit code 2, a failure to serve with 1. SIGTERM, SIGINT and SIGHUP end it within 5 s, SIGHUP not under ` + "`nohup`" + `: there is
nothing to reload, certificates and passwords are read as they are needed.
` + "`/-/healthy` and `/-/ready` answer 200 while it serves, `/runbooks/`" + ` has the runbooks. What the two sources of the socket table
differ in: [operations.md](operations.md#the-two-sources).
`

// TestFlagsDoc holds docs/flags.md to the flags: each with its default and its help, and
// no other.
func TestFlagsDoc(t *testing.T) {
	app, _ := newFlags()
	var want strings.Builder
	want.WriteString(flagsIntro)
	for _, flag := range app.Model().Flags {
		if flag.Hidden {
			continue
		}
		name, value := "--"+flag.Name, strings.Join(flag.Default, ", ")
		if flag.IsBoolFlag() {
			name, value = "--[no-]"+flag.Name, ""
		}
		if flag.Short != 0 {
			name = fmt.Sprintf("-%c, %s", flag.Short, name)
		}
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", name, value, strings.ReplaceAll(flag.Help, "|", `\|`))
	}
	want.WriteString(flagsRest)

	const file = "../../docs/flags.md"
	if *update {
		if err := os.WriteFile(file, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Errorf("%s is not what --help says: run make docs", file)
	}
}
