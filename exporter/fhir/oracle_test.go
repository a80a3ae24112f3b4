package fhir_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"sidecar/exporter/fhir"
)

// boundary is the size of the scanner's buffer, around which tests place what must not be torn.
const boundary = 64 << 10

// lenient lets through what an export must not stop at. Bad UTF-8 is looked for beside it.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// isJSON is the verdict of two other readers: valid JSON of valid UTF-8, whatever its names.
func isJSON(text []byte) bool {
	valid := jsontext.Value(text).IsValid(lenient...)
	if valid != json.Valid(text) {
		panic("the two oracles do not agree")
	}
	return valid && utf8.Valid(text)
}

// tooDeep tells whether the text is nested deeper than the reader follows.
func tooDeep(text []byte) bool {
	return bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) > 1000
}

// shortOnes drops the references that no server has: those that are longer than the buffer.
func shortOnes(found []string) []string {
	return slices.DeleteFunc(found, func(s string) bool { return len(s) > boundary/6 })
}

// FuzzPage compares with jsontext and encoding/json: the same verdict, the same fields, order, bytes, and references, also
// when the answer comes byte by byte and when it lies across the end of the buffer.
func FuzzPage(f *testing.F) {
	f.Add([]byte(`{"resourceType":"Patient","id":"1"}`), uint16(0))
	f.Add([]byte(`{"n":1.10 , "s":" a", "id":"2","resourceType":"Patient","meta":{"versionId":"7","lastUpdated":"2024-05-01T12:00:00+05:30"}}`), uint16(10))
	f.Add([]byte(`{"resourceType":"B","v":[1e5, {} , -0, "\u00e9\ud83d\ude42\ud83d", "é漢🙂"],"subject":{"r\u0065ference":"Patient\/1"}}`), uint16(60))
	f.Add([]byte(`{"resourceType":"Patient","link":[{"other":{"reference":"Patient/2"}}],"contained":[{"x":{"reference":"A/1"}}]}`), uint16(33))
	f.Add([]byte(`{"resourceType":"A"`), uint16(1))
	f.Add([]byte("{\"resourceType\":\"A\",\"x\":\"\xe6\xbc\xa2\xff\"}"), uint16(31))
	f.Add([]byte("{\"resourceType\" : \"A\" ,\t\"x\" : [ true , false , null , \"\" ]\r\n}"), uint16(12))
	f.Fuzz(func(t *testing.T, resource []byte, back uint16) {
		if tooDeep(resource) {
			return
		}
		const head, tail = `{"resourceType":"Bundle","type":"searchset","entry":[{"fullUrl":"u","resource":`, `}]}`
		// The white space in front puts the buffer's end somewhere into the resource.
		pad := strings.Repeat(" ", max(0, boundary-len(head)-int(back)%(len(resource)+2)))
		text := head + pad + string(resource) + tail
		if !json.Valid(resource) && json.Valid([]byte(text)) {
			return // two members of the entry, or two entries
		}
		want := oracle(resource)
		for name, body := range map[string]io.Reader{
			"whole":        strings.NewReader(text),
			"byte by byte": iotest.OneByteReader(strings.NewReader(head + string(resource) + tail)),
			"with its end": iotest.DataErrReader(strings.NewReader(text)),
		} {
			if got := readOne(t, body); got != want {
				t.Errorf("%s: got  %s\nwant %s", name, got, want)
			}
		}
	})
}

// readOne reads a page with one entry by the product and shows all of it.
func readOne(t testing.TB, body io.Reader) string {
	t.Helper()
	page, err := streaming(t, body).Search(t.Context(), fhir.Query{Type: "Patient"})
	if err != nil {
		t.Fatal(err)
	}
	page.Collect(compartment(t, "4.0.1"), true)
	got := "nothing"
	err = page.Each(func(e *fhir.Entry) error {
		var all, params []string
		if err := e.AllReferences(func(reference string) bool { all = append(all, reference); return true }); err != nil {
			t.Error(err)
		}
		err := e.References(compartment(t, "4.0.1"), func(_, reference string) bool { params = append(params, reference); return true })
		if err != nil {
			t.Error(err)
		}
		got = show(e.Type, e.ID, e.Version, e.LastUpdated, e.Resource, all, params)
		return nil
	})
	if err != nil {
		return "refused"
	}
	return got
}

func show(typ, id, version string, updated time.Time, line []byte, all, params []string) string {
	return fmt.Sprintf("%q %q %q %v %q %q %q", typ, id, version, updated, line, shortOnes(all), shortOnes(params))
}

// oracle reads a resource by jsontext, token by token, and compacts it by encoding/json.
func oracle(resource []byte) string {
	if !isJSON(resource) || jsontext.Value(resource).Kind() != '{' {
		return "refused"
	}
	o := oracleReader{dec: jsontext.NewDecoder(bytes.NewReader(resource), lenient...)}
	o.value(nil, false)
	if o.damaged || o.typ == "" {
		return "refused"
	}
	var line bytes.Buffer
	if err := json.Compact(&line, resource); err != nil {
		panic(err)
	}
	if o.typ != "Patient" { // Patient.link.other is the only path of a Patient
		c, err := fhir.PatientCompartment("4.0.1")
		if err != nil {
			panic(err)
		}
		o.params = nil
		_ = c.References(o.typ, resource, func(_, reference string) bool { o.params = append(o.params, reference); return true })
	}
	return show(o.typ, o.id, o.version, o.updated, line.Bytes(), o.all, o.params)
}

type oracleReader struct {
	dec              *jsontext.Decoder
	typ, id, version string
	updated          time.Time
	all, params      []string
	damaged          bool
}

// value reads a value at the path of names that leads to it, direct where no array stands between the last name and it.
func (o *oracleReader) value(path []string, direct bool) {
	token, err := o.dec.ReadToken()
	if err != nil {
		panic(err)
	}
	place := placeOf(path)
	if place == "meta" && direct && token.Kind() != '{' {
		o.damaged = true
	}
	switch place {
	case "resourceType", "id", "meta.versionId", "meta.lastUpdated":
		o.damaged = o.damaged || direct && token.Kind() != '"'
	}
	switch token.Kind() {
	case '{':
		for o.dec.PeekKind() != '}' {
			name, err := o.dec.ReadToken()
			if err != nil {
				panic(err)
			}
			o.value(append(path[:len(path):len(path)], name.String()), true)
		}
		_, _ = o.dec.ReadToken()
	case '[':
		for o.dec.PeekKind() != ']' {
			o.value(path, false)
		}
		_, _ = o.dec.ReadToken()
	case '"':
		o.text(path, place, token.String(), direct)
	}
}

// placeOf joins names that have no dot themselves.
func placeOf(path []string) string {
	for _, name := range path {
		if strings.Contains(name, ".") {
			return "elsewhere"
		}
	}
	return strings.Join(path, ".")
}

func (o *oracleReader) text(path []string, place, text string, direct bool) {
	switch place {
	case "resourceType":
		o.typ = text
	case "id":
		o.id = text
	case "meta.versionId":
		o.version = text
	case "meta.lastUpdated":
		if updated, err := time.Parse(time.RFC3339Nano, text); err == nil {
			o.updated = updated.UTC()
		} else {
			o.damaged = o.damaged || direct
		}
	}
	if len(path) > 0 && path[len(path)-1] == "reference" {
		o.all = append(o.all, text)
	}
	if slices.Equal(path, []string{"link", "other", "reference"}) {
		o.params = append(o.params, text)
	}
}

// streaming returns a client whose only answer is read from body.
func streaming(t testing.TB, body io.Reader) *fhir.Client {
	t.Helper()
	return mockClient(t, roundTrip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body), Request: r}, nil
	}))
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
