// Package runbooks holds the runbooks of the alerts and serves them as HTML, so that those of the version that runs are always at hand.
package runbooks

import (
	"bytes"
	"embed"
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

const index = "README"

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
<nav><a href="` + Path + `">All runbooks</a></nav>
{{with .Missing}}<p><strong>There is no runbook {{.}}.</strong></p>{{end}}
<main>
{{.Body}}</main>
</html>
`))

// Handler serves the index at Path and each runbook at Path followed by the name of its alert.
// An unknown name is answered with 404 and the index.
func Handler() http.Handler {
	markdown := goldmark.New(
		goldmark.WithExtensions(extension.Table),
		goldmark.WithParserOptions(parser.WithAutoHeadingID()), // links go to headings
	)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The pages link to each other's files, as a repository browser wants it.
		name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, Path), ".md")
		if name == "" {
			name = index
		}
		status, missing := http.StatusOK, ""
		source, err := fs.ReadFile(files, name+".md")
		if err != nil {
			status, missing = http.StatusNotFound, name
			name = index
			source, err = fs.ReadFile(files, name+".md")
		}
		var body, html bytes.Buffer
		if err == nil {
			err = markdown.Convert(source, &body)
		}
		if err == nil {
			err = page.Execute(&html, struct {
				Title, Missing string
				Body           template.HTML
			}{title(source), missing, template.HTML(body.String())}) // #nosec G203 -- made from the embedded files
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.WriteHeader(status)
		_, _ = w.Write(html.Bytes()) // the client has gone: nobody to tell
	})
}

// title returns the text of the heading that every page begins with.
func title(source []byte) string {
	line, _, _ := bytes.Cut(source, []byte("\n"))
	return string(bytes.TrimPrefix(line, []byte("# ")))
}
