package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
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

// The README has every flag with its default and its help, and no other.
func TestReadmeFlags(t *testing.T) {
	const printHelp = "PRINT_HELP"
	if os.Getenv(printHelp) != "" {
		_, err := parseFlags([]string{"--help"}, os.Stdout)
		t.Fatalf("--help did not end the program: %v", err)
	}
	program := exec.Command(os.Args[0], "-test.run=^TestReadmeFlags$")
	program.Env = append(os.Environ(), printHelp+"=1", "COLUMNS=1000")
	help, err := program.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, help)
	}

	var want []string
	for _, flag := range helpFlag.FindAllStringSubmatch(string(help), -1) {
		value := strings.Trim(flag[2], `"`)
		if value != "" {
			value = "`" + value + "`"
		}
		want = append(want, "| `"+flag[1]+"` | "+value+" | "+strings.ReplaceAll(flag[3], "|", `\|`)+" |")
	}
	if all := regexp.MustCompile(`(?m)^ +(-\w, )?--`).FindAll(help, -1); len(all) == 0 || len(want) != len(all) {
		t.Fatalf("%d flags were understood of\n%s", len(want), help)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile("(?m)^\\| `-.*$").FindAllString(string(readme), -1)
	if !slices.Equal(got, want) {
		t.Errorf("the flags in README.md are\n%s\n\nand should be\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
