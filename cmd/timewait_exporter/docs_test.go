package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// helpFlag is a flag as --help prints it, with more columns than any line needs:
//
//	-h, --[no-]help            Show context-sensitive help.
//	    --path.procfs="/proc"  Mount point of the proc file system.
//	    --web.listen-address=:10793 ...
//	                           Addresses on which to expose metrics.
var helpFlag = regexp.MustCompile(`(?m)^ +((?:-\w, )?--[\w\[\].-]+)(?:=(\S+))?(?: \.\.\.)?\s+(\S.*)$`)

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

// TestFlagsDoc holds docs/flags.md to --help: every flag with its default and its
// help, and no other.
func TestFlagsDoc(t *testing.T) {
	const printHelp = "PRINT_HELP"
	if os.Getenv(printHelp) != "" {
		_, err := parseFlags([]string{"--help"}, os.Stdout)
		t.Fatalf("--help did not end the program: %v", err)
	}
	program := exec.Command(os.Args[0], "-test.run=^TestFlagsDoc$")
	program.Env = append(os.Environ(), printHelp+"=1", "COLUMNS=1000")
	help, err := program.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, help)
	}
	flags := helpFlag.FindAllStringSubmatch(string(help), -1)
	if all := regexp.MustCompile(`(?m)^ +(-\w, )?--`).FindAll(help, -1); len(all) == 0 || len(flags) != len(all) {
		t.Fatalf("%d flags were understood of\n%s", len(flags), help)
	}
	var want strings.Builder
	want.WriteString(flagsIntro)
	for _, flag := range flags {
		value := strings.Trim(flag[2], `"`)
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", flag[1], value, strings.ReplaceAll(flag[3], "|", `\|`))
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
