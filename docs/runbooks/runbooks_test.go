package runbooks

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
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
