package diagnosis

import (
	"bytes"
	"cmp"
	"embed"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// htmlRows is how many rows of each table the page shows; the JSON has all.
const htmlRows = 20

//go:embed html
var htmlFiles embed.FS

var htmlPage = template.Must(template.New("report.html").Funcs(template.FuncMap{
	"amount":  Evidence.amount,
	"amounts": amounts,
	"binds":   Capacity.binds,
	"count":   count[uint64],
	"counts":  counts,
	"nearest": nearest,
	"now":     Capacity.now,
	"number":  number,
	"part":    func(limit *float64, share float64) float64 { return *limit * share },
	"percent": percent,
	"queue":   ListenerRow.queue,
	"remote":  DestinationRow.remote,
	"share":   Evidence.share,
	"shown":   func(rows int) int { return min(rows, htmlRows) },
	"states":  sumStates,
	"upper":   func(l Level) string { return strings.ToUpper(string(l)) },
	"who":     (*Finding).who,
	"words":   words,
}).ParseFS(htmlFiles, "html/report.html"))

// HTMLFiles are the files that the page of WriteHTML wants beside it: report.css and report.js,
// which takes the page anew every five seconds. Both are the same as long as the program runs.
func HTMLFiles() fs.FS {
	files, err := fs.Sub(htmlFiles, "html")
	if err != nil {
		panic(err) // of embedded files: never
	}
	return files
}

// Link leads from the page to another one, at an address relative to the page's.
type Link struct{ Address, Text string }

// htmlView is what the page is made of.
type htmlView struct {
	*Report
	Links []Link
}

// Where says which namespace a row is of, if there are several.
func (v htmlView) Where(netns string) string {
	for _, row := range v.Tables.States {
		if row.Netns != v.Tables.States[0].Netns {
			return ", netns " + netns
		}
	}
	return ""
}

// WriteHTML writes the report as a page with links: it shows what the text does, and more rows
// of each table. It has neither script nor style in it, so a Content-Security-Policy
// of 'self' for both is enough, and it can be read without any of them.
func (r *Report) WriteHTML(w io.Writer, links []Link) error {
	var page bytes.Buffer
	if err := htmlPage.Execute(&page, htmlView{r, links}); err != nil {
		return err
	}
	// Names may be anybody's. html/template makes them text; what turns the direction of text
	// is none to read.
	_, err := w.Write(bytes.Map(func(c rune) rune {
		if c == '\n' {
			return c
		}
		return printableRune(c)
	}, page.Bytes()))
	return err
}

// nearest sorts limits, those first of which most is used.
func nearest(limits []Evidence) []Evidence {
	used := func(e Evidence) float64 {
		if e.Limit == nil || *e.Limit <= 0 {
			return -1
		}
		return e.Value / *e.Limit
	}
	return slices.SortedStableFunc(slices.Values(limits), func(a, b Evidence) int { return cmp.Compare(used(b), used(a)) })
}

// counts says how many findings there are of each level, the worst first.
func counts(findings []*Finding) string {
	n := make(map[Level]int)
	for _, f := range findings {
		n[f.Level]++
	}
	var all []string
	for _, level := range []Level{Critical, Warning, Info} {
		if n[level] > 0 {
			all = append(all, fmt.Sprintf("%d %s", n[level], level))
		}
	}
	return strings.Join(all, ", ")
}
