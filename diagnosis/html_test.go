package diagnosis

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// fill sets every string, gives every list one element and every number something.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Uint64, reflect.Uint16:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text)
		fill(value, text)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), text)
			}
		}
	}
}

// structure is what a browser makes of a page: each tag with the names of its attributes, and
// no text.
func structure(t *testing.T, page []byte) (all []string, text string) {
	t.Helper()
	z := html.NewTokenizer(bytes.NewReader(page))
	for {
		switch z.Next() {
		case html.ErrorToken:
			if !errors.Is(z.Err(), io.EOF) {
				t.Fatal(z.Err())
			}
			return all, text
		case html.TextToken:
			text += z.Token().Data
		default:
			token := z.Token()
			tag := token.Type.String() + " " + token.Data
			for _, a := range token.Attr {
				tag += " " + a.Key
				if (a.Key == "href" || a.Key == "src") && !strings.HasPrefix(a.Val, "./") && !strings.HasPrefix(a.Val, "report.") {
					t.Errorf("a link to %q", a.Val)
				}
			}
			all = append(all, tag)
		}
	}
}

// TestHostileNames has names of anybody's in every place where a report has a text: they stay
// text.
func TestHostileNames(t *testing.T) {
	write := func(text string) (page []byte) {
		r := new(Report)
		fill(reflect.ValueOf(r).Elem(), text)
		inJSON, err := json.Marshal(r)
		if err != nil || bytes.ContainsAny(inJSON, "<>&") {
			t.Errorf("%v: %s", err, inJSON)
		}
		r.Findings[0].Runbook = "/runbooks/" + text // of the program's own
		var b bytes.Buffer
		if err := r.WriteHTML(&b, []Link{{"./metrics", text}}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	want, _ := structure(t, write("plain"))
	for _, hostile := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</title><svg onload=alert(1)>`, `--><b>`, `{{.}}`, "`${1}`", `javascript:alert(1)`, "\x00</p\x00>", "\xff<b>",
	} {
		page := write(hostile)
		got, text := structure(t, page)
		if !slices.Equal(got, want) {
			t.Errorf("%q changes the page:\n%s", hostile, page)
		}
		if printable(hostile) == hostile && !strings.Contains(text, hostile) {
			t.Errorf("%q is not to be read", hostile)
		}
	}
	if page := write("a\u202eb\x1b\u200f"); bytes.ContainsAny(page, "\u202e\u200f\x1b") {
		t.Error("characters that turn text around are left")
	}
}
