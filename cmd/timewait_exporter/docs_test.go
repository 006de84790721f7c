package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
)

var update = flag.Bool("update", false, "write the table of docs/flags.md anew instead of comparing")

// TestFlagsDoc holds the table of docs/flags.md to the flags: each with its default and its
// help, and no other.
func TestFlagsDoc(t *testing.T) {
	app, _ := newFlags()
	const file, head = "../../docs/flags.md", "| Flag | Default | Meaning |\n|---|---|---|\n"
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	intro, table, _ := strings.Cut(string(got), head)
	_, rest, found := strings.Cut(table, "\n\n")
	if !found {
		t.Fatalf("%s has no table, or nothing behind it", file)
	}
	var want strings.Builder
	want.WriteString(intro + head)
	rows := func(of string, flags []*kingpin.FlagModel) {
		for _, flag := range flags {
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
			fmt.Fprintf(&want, "| `%s%s` | %s | %s |\n", of, name, value, strings.ReplaceAll(flag.Help, "|", `\|`))
		}
	}
	rows("", app.Model().Flags)
	for _, command := range app.Model().Commands {
		rows(command.Name+" ", command.Flags)
	}
	want.WriteString("\n" + rest)
	if *update {
		if err := os.WriteFile(file, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(got) != want.String() {
		t.Errorf("%s is not what --help says: run make docs", file)
	}
}
