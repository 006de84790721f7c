package contract

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	markdownLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	markdownHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fencedBlock     = regexp.MustCompile("(?ms)^```.*?^```$")
	inlineCode      = regexp.MustCompile("`[^`\n]*`")
	notInAnchor     = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchor returns the fragment that a repository browser gives a heading.
func anchor(heading string) string {
	heading = notInAnchor.ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(strings.TrimSpace(heading), " ", "-")
}

// TestLinks follows every relative link of the documents to a file, and to a heading
// in it.
func TestLinks(t *testing.T) {
	var documents []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/runbooks/*.md", "dashboards/*.md", "deploy/*/*.md", "deploy/*/*/*.md", "collector/testdata/*.md"} {
		found, err := filepath.Glob(root + pattern)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, found...)
	}
	if len(documents) < 30 {
		t.Fatalf("only %q", documents)
	}
	anchors := make(map[string]map[string]bool)
	for _, document := range documents {
		headings := make(map[string]bool)
		for _, heading := range markdownHeading.FindAllStringSubmatch(fencedBlock.ReplaceAllString(readText(t, document), ""), -1) {
			headings[anchor(heading[1])] = true
		}
		anchors[filepath.Clean(document)] = headings
	}
	links := 0
	for _, document := range documents {
		text := inlineCode.ReplaceAllString(fencedBlock.ReplaceAllString(readText(t, document), ""), "")
		for _, link := range markdownLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			links++
			path, fragment, _ := strings.Cut(link[1], "#")
			target := filepath.Clean(document)
			if path != "" {
				target = filepath.Join(filepath.Dir(document), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link %s: %v", document, link[1], err)
				continue
			}
			if fragment != "" && !anchors[target][fragment] {
				t.Errorf("%s: link %s: no such heading in %s", document, link[1], target)
			}
		}
	}
	if links < 100 {
		t.Errorf("only %d links were found", links)
	}
}
