// Package runbooks holds the runbooks of the alerts and serves them as HTML, so that those of the version that runs are always at hand.
package runbooks

import (
	"bytes"
	"cmp"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
)

// Path is where Handler expects to be mounted; the alerts' runbook_url is made of it and the alert's name.
const Path = "/runbooks/"

const (
	index = "README"
	// missing is no name of a file: the index, told as the answer to an unknown name.
	missing = ""
)

//go:embed *.md
var files embed.FS

// The page needs nothing else: no script, no font, no image. It is read on a phone at night.
var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
pre, table { display: block; overflow-x: auto; }
pre { padding: .75rem; background: #8882; border-radius: .25rem; line-height: 1.35; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
:not(pre) > code { background: #8882; padding: 0 .2em; border-radius: .2em; }
table { border-collapse: collapse; } th, td { border: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }
</style>
<nav><a href="` + Path + `">All runbooks</a> <a href="/">This machine now</a></nav>
{{if .Missing}}<p><strong>There is no such runbook.</strong></p>{{end}}
<main>
{{.Body}}</main>
</html>
`))

// Handler serves the index at Path and each runbook at Path followed by the name of its alert.
// An unknown name is answered with 404 and the index. The pages are rendered here, once:
// they can't change while the program runs.
func Handler() (http.Handler, error) {
	pages, err := render()
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The pages link to each other's files, as a repository browser wants it.
		name := cmp.Or(strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, Path), ".md"), index)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		page, ok := pages[name]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			page = pages[missing]
		}
		_, _ = w.Write(page) // the client has gone: nobody to tell
	}), nil
}

// render returns the page of each embedded file by its name, and the one for names
// that have none.
func render() (map[string][]byte, error) {
	markdown := goldmark.New(
		goldmark.WithExtensions(extension.Table),
		goldmark.WithParserOptions(parser.WithAutoHeadingID()), // links go to headings
	)
	names, err := fs.Glob(files, "*.md")
	if err != nil {
		return nil, err
	}
	pages := make(map[string][]byte, len(names)+1)
	add := func(name, file string) error {
		source, err := fs.ReadFile(files, file)
		if err != nil {
			return err
		}
		var body, html bytes.Buffer
		if err := markdown.Convert(source, &body); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		err = page.Execute(&html, struct {
			Title   string
			Missing bool
			Body    template.HTML
		}{title(source), name == missing, template.HTML(body.String())}) // #nosec G203 -- made from the embedded files
		pages[name] = html.Bytes()
		return err
	}
	for _, file := range names {
		if err := add(strings.TrimSuffix(file, ".md"), file); err != nil {
			return nil, err
		}
	}
	return pages, add(missing, index+".md")
}

// title returns the text of the heading that every page begins with.
func title(source []byte) string {
	line, _, _ := bytes.Cut(source, []byte("\n"))
	return string(bytes.TrimPrefix(line, []byte("# ")))
}
