package runbooks

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func get(t *testing.T, path string) *httptest.ResponseRecorder {
	t.Helper()
	handler, err := Handler()
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, Path, nil)
	r.URL.Path = path
	handler.ServeHTTP(w, r)
	return w
}

func names(t *testing.T) []string {
	t.Helper()
	found, err := fs.Glob(files, "*.md")
	if err != nil || len(found) < 2 {
		t.Fatalf("embedded files: %v, %v", found, err)
	}
	for i := range found {
		found[i] = strings.TrimSuffix(found[i], ".md")
	}
	return found
}

func TestIndexListsEveryRunbook(t *testing.T) {
	w := get(t, Path)
	if w.Code != http.StatusOK {
		t.Fatalf("status %d", w.Code)
	}
	if got := w.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	for _, want := range []string{"<title>Runbooks</title>", "<table>", "Cannot assign requested address"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the index has no %q", want)
		}
	}
	for _, name := range names(t) {
		if name != index && !strings.Contains(w.Body.String(), `href="`+name+`.md"`) {
			t.Errorf("the index does not link to %s", name)
		}
	}
}

func TestRunbook(t *testing.T) {
	for _, name := range names(t) {
		if name == index {
			continue
		}
		w := get(t, Path+name)
		if w.Code != http.StatusOK {
			t.Errorf("%s: status %d", name, w.Code)
		}
		body := w.Body.String()
		for _, want := range []string{"<title>" + name + "</title>", ">" + name + "</h1>", "<strong>Meaning.</strong>", "<strong>Who is hurt.</strong>", `id="run-first"`} {
			if !strings.Contains(body, want) {
				t.Errorf("%s has no %q", name, want)
			}
		}
		if file := get(t, Path+name+".md"); file.Body.String() != body {
			t.Errorf("%s.md is not the same page as %s", name, name)
		}
	}
}

func TestUnknownRunbook(t *testing.T) {
	for _, name := range []string{"TCPNoSuchAlert", "../runbooks.go", "runbooks.go", "<script>"} {
		w := get(t, Path+name)
		if w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", name, w.Code)
		}
		body := w.Body.String()
		if !strings.Contains(body, `href="TCPCloseWaitLeak.md"`) || !strings.Contains(body, "There is no such runbook") {
			t.Errorf("%s: the answer is not the index:\n%.500s", name, body)
		}
		if strings.Contains(body, name) && name != "" {
			t.Errorf("%s: the answer has the name in it", name)
		}
	}
}

var (
	linkRE   = regexp.MustCompile(`href="([^"]+)"`)
	anchorRE = regexp.MustCompile(`id="([^"]+)"`)
)

// Every link leads to a page that is served and a heading that is there.
func TestLinks(t *testing.T) {
	for _, name := range names(t) {
		from, err := url.Parse(Path + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range linkRE.FindAllStringSubmatch(get(t, from.Path).Body.String(), -1) {
			target, err := from.Parse(link[1])
			if err != nil {
				t.Errorf("%s: link %s: %v", name, link[1], err)
				continue
			}
			if target.Path == "/" {
				continue // the program's page
			}
			w := get(t, target.Path)
			if w.Code != http.StatusOK {
				t.Errorf("%s: link %s: status %d", name, link[1], w.Code)
				continue
			}
			if target.Fragment == "" {
				continue
			}
			found := false
			for _, id := range anchorRE.FindAllStringSubmatch(w.Body.String(), -1) {
				found = found || id[1] == target.Fragment
			}
			if !found {
				t.Errorf("%s: link %s: no such heading", name, link[1])
			}
		}
	}
}

var (
	codeRE = regexp.MustCompile("`([^`]+)`|\\b(E[A-Z]{3,}|WSA[A-Z]+)\\b")
	pageRE = regexp.MustCompile(`\]\(([^)]+)\)`)
)

// errorRow is a row of the index's first table: the words of an error, each as a
// pattern, and the pages or headings to go on with.
type errorRow struct {
	words   []*regexp.Regexp
	targets []string
}

func errorRows(t *testing.T) []errorRow {
	t.Helper()
	source, err := fs.ReadFile(files, index+".md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(source), "\n|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var rows []errorRow
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 4 {
			t.Fatalf("%d cells in %q", len(cells), line)
		}
		var row errorRow
		for _, found := range codeRE.FindAllStringSubmatch(cells[0], -1) {
			words := found[1] + found[2]
			if strings.HasSuffix(words, "()") || strings.HasPrefix(words, "::") { // a call or an address: no error yet
				continue
			}
			pattern := strings.ReplaceAll(regexp.QuoteMeta(words), `\.\.\.`, ".*")
			row.words = append(row.words, regexp.MustCompile(`(?i)(^|\W)`+pattern+`(\W|$)`))
		}
		for _, link := range pageRE.FindAllStringSubmatch(cells[2]+cells[3], -1) {
			row.targets = append(row.targets, strings.TrimSuffix(link[1], ".md"))
		}
		rows = append(rows, row)
	}
	return rows
}

// What programs print leads to the pages with the causes that it can have: testdata/errors.txt.
func TestErrorTable(t *testing.T) {
	text, err := os.ReadFile("testdata/errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	rows := errorRows(t)
	var want []string
	checked := 0
	for line := range strings.Lines(string(text)) {
		pasted, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "\t")
		if !ok {
			want = strings.Fields(line)
			continue
		}
		checked++
		var got []string
		for _, row := range rows {
			if slices.ContainsFunc(row.words, func(words *regexp.Regexp) bool { return words.MatchString(pasted) }) {
				for _, target := range row.targets {
					if !slices.Contains(got, target) {
						got = append(got, target)
					}
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q leads to %q, want %q", pasted, got, want)
		}
	}
	if checked < 20 {
		t.Errorf("only %d errors were checked", checked)
	}
}
