package fhir_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
)

const tag = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}`

func output(t testing.TB, base string, elements ...string) *fhir.Output {
	t.Helper()
	o, err := fhir.NewOutput("4.0.1", base, elements)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// written is what an Output makes of a resource.
func written(t testing.TB, o *fhir.Output, typ, resource string) string {
	t.Helper()
	var b strings.Builder
	n, err := o.Write(&b, &fhir.Entry{Type: typ, Resource: []byte(resource)})
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("%d bytes are told of %d, %v", n, b.Len(), err)
	}
	return b.String()
}

// Ensure what stays keeps its bytes and its order, and what leaves is tagged.
func TestOutputKeepsTheElementsThatWereAskedFor(t *testing.T) {
	meta := `"meta":{"versionId":"1","lastUpdated":"2024-05-01T12:00:00.000\u002b00:00"`
	for _, test := range []struct {
		name, elements, typ, resource, want string
	}{
		{
			"mandatory ones stay, numbers and escapes too", "value", "Observation",
			`{"resourceType":"Observation","id":"o",` + meta + `},"status":"final","code":{"text":"K\u00f8"},"subject":{"reference":"Patient/1"},"valueQuantity":{"value":1.10e0}}`,
			`{"resourceType":"Observation","id":"o",` + meta + `,"tag":[` + tag + `]},"status":"final","code":{"text":"K\u00f8"},"valueQuantity":{"value":1.10e0}}`,
		},
		{
			"a member of a choice", "Observation.valueString", "Observation",
			`{"id":"o","valueString":"a","valueQuantity":{},"meta":{},"resourceType":"Observation"}`,
			`{"id":"o","valueString":"a","meta":{"tag":[` + tag + `]},"resourceType":"Observation"}`,
		},
		{
			"siblings go with their element", "birthDate", "Patient",
			`{"resourceType":"Patient","_birthDate":{"id":"b"},"_gender":{"id":"g"},"birthDate":"1970-01-01","meta":{"tag":[]}}`,
			`{"resourceType":"Patient","_birthDate":{"id":"b"},"birthDate":"1970-01-01","meta":{"tag":[` + tag + `]}}`,
		},
		{
			"siblings of a choice", "value", "Observation",
			`{"resourceType":"Observation","_valueString":{"id":"v"},"valueString":"x"}`,
			`{"resourceType":"Observation","_valueString":{"id":"v"},"valueString":"x","meta":{"tag":[` + tag + `]}}`,
		},
		{
			"other tags stay", "id", "Patient",
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"a","code":"SUBSETTED"}],"source":"s"},"active":true}`,
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"a","code":"SUBSETTED"},` + tag + `],"source":"s"}}`,
		},
		{
			"no tag comes twice", "id", "Patient",
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"SUBSETTED","display":"part","system":"http:\/\/terminology.hl7.org/CodeSystem/v3-ObservationValue"}]}}`,
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"SUBSETTED","display":"part","system":"http:\/\/terminology.hl7.org/CodeSystem/v3-ObservationValue"}]}}`,
		},
		{
			"no meta", "id", "Patient",
			`{"resourceType":"Patient","active":true}`, `{"resourceType":"Patient","meta":{"tag":[` + tag + `]}}`,
		},
		{
			"what is no meta", "id", "Patient",
			`{"meta":null,"resourceType":"Patient"}`, `{"meta":{"tag":[` + tag + `]},"resourceType":"Patient"}`,
		},
		{
			"what are no tags", "id", "Patient",
			`{"meta":{"tag":null,"source":"s"},"resourceType":"Patient"}`, `{"meta":{"tag":[` + tag + `],"source":"s"},"resourceType":"Patient"}`,
		},
		{
			"escaped names", "id", "Patient",
			`{"resourceType":"Patient","\u0069d":"p","n\u0061me":[],"met\u0061":{"t\u0061g":[]}}`,
			`{"resourceType":"Patient","\u0069d":"p","met\u0061":{"t\u0061g":[` + tag + `]}}`,
		},
		{
			"an element with a type is of that type alone", "Patient.birthDate", "Observation",
			`{"resourceType":"Observation","status":"final"}`, `{"resourceType":"Observation","status":"final"}`,
		},
		{
			"an element without a type is of every type", "birthDate", "Observation",
			`{"resourceType":"Observation","status":"final","note":[]}`,
			`{"resourceType":"Observation","status":"final","meta":{"tag":[` + tag + `]}}`,
		},
		{
			"both", "birthDate,Patient.name", "Patient",
			`{"resourceType":"Patient","name":[],"gender":"female","birthDate":"1970"}`,
			`{"resourceType":"Patient","name":[],"birthDate":"1970","meta":{"tag":[` + tag + `]}}`,
		},
		{
			"a type of the server's own", "id", "Custom",
			`{"resourceType":"Custom","other":1}`, `{"resourceType":"Custom","other":1}`,
		},
		{
			"URLs are completed in what stays", "photo", "Patient",
			`{"resourceType":"Patient","meta":{"tag":[` + tag + `]},"photo":[{"url":"Binary/1"}],"contained":[{"photo":[{"url":"Binary/2"}]}]}`,
			`{"resourceType":"Patient","meta":{"tag":[` + tag + `]},"photo":[{"url":"https://public.example/r4/Binary/1"}]}`,
		},
	} {
		got := written(t, output(t, publicBase, strings.Split(test.elements, ",")...), test.typ, test.resource)
		if got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
	}
}

// Ensure an Attachment on the server becomes the link that there is for its path, however it names the server, and that others
// stay or are completed.
func TestOutputLinksBinaries(t *testing.T) {
	o := output(t, publicBase)
	o.LinkBinaries([]string{"http://upstream.example", upstreamBase}, func(path string) (string, bool) {
		return "https://link/" + path, strings.HasPrefix(path, "Binary/")
	})
	for url, want := range map[string]string{
		"Binary/1":                               "https://link/Binary/1",
		`Binary\/1`:                              "https://link/Binary/1",
		"/r4/Binary/1":                           "https://link/Binary/1",
		publicBase + "/Binary/1":                 "https://link/Binary/1",
		upstreamBase + "/Binary/1":               "https://link/Binary/1",
		`https:\/\/public.example\/r4\/Binary/1`: "https://link/Binary/1",
		`\u0042inary/1`:                          "https://link/Binary/1",
		"Media/1":                                publicBase + "/Media/1",
		"/Binary/1":                              "https://public.example/Binary/1",
		"//host/r4/Binary/1":                     "https://host/r4/Binary/1",
		publicBase + "/Media/1":                  publicBase + "/Media/1",
		publicBase + "2/Binary/1":                publicBase + "2/Binary/1",
		"https://elsewhere.example/r4/Binary/1":  "https://elsewhere.example/r4/Binary/1",
		"#Binary/1":                              "#Binary/1",
	} {
		const head, tail = `{"resourceType":"Basic","url":"Binary/1","content":[{"attachment":{"title":"t","url":"`, `","size":1.10}}]}`
		got := written(t, o, "Basic", head+url+tail)
		if got != head+want+tail {
			t.Errorf("%s:\n got %s\nwant %s", url, got, head+want+tail)
		}
		if again := written(t, o, "Basic", got); again != got {
			t.Errorf("%s, written twice:\n got %s\nwant %s", url, again, got)
		}
		if alone := written(t, o, "Basic", `{"photo":[{"url":"`+url+`"}]}`); alone != `{"photo":[{"url":"`+want+`"}]}` {
			t.Errorf("%s alone: got %s", url, alone)
		}
	}
}

// Ensure a relative URL of an Attachment becomes absolute wherever the Attachment stands, and no other URL does.
func TestOutputCompletesAttachments(t *testing.T) {
	for _, test := range []struct{ resource, want string }{
		{`{"content":[{"attachment":{"url":"Binary/1","title":"t"}}]}`, `{"content":[{"attachment":{"url":"https://public.example/r4/Binary/1","title":"t"}}]}`},
		{`{"photo":[{"url":"/x/1"},{"url":"//host/1"}]}`, `{"photo":[{"url":"https://public.example/x/1"},{"url":"https://host/1"}]}`},
		{`{"photo":[{"url":"\/x\/1"},{"\u0075rl":"B"}]}`, `{"photo":[{"url":"https://public.example\/x\/1"},{"\u0075rl":"https://public.example/r4/B"}]}`},
		{`{"item":[{"item":[{"answer":[{"valueAttachment":{"url":"B"}}]}]}]}`, `{"item":[{"item":[{"answer":[{"valueAttachment":{"url":"https://public.example/r4/B"}}]}]}]}`},
		{`{"contained":[{"content":{"url":"B"}}]}`, `{"contained":[{"content":{"url":"https://public.example/r4/B"}}]}`},
		{`{"entry":[{"resource":{"presentedForm":[{"url":"B"}]}}]}`, `{"entry":[{"resource":{"presentedForm":[{"url":"https://public.example/r4/B"}]}}]}`},
		{`{"photo":[{"extension":[{"url":"a","valueAttachment":{"url":"B"}}]}]}`, `{"photo":[{"extension":[{"url":"a","valueAttachment":{"url":"https://public.example/r4/B"}}]}]}`},
		{`{"relatedArtifact":[{"url":"a","document":{"url":"B"}}]}`, `{"relatedArtifact":[{"url":"a","document":{"url":"https://public.example/r4/B"}}]}`},
		{`{"photo":{"url":"B?a=\"<>&"}}`, `{"photo":{"url":"https://public.example/r4/B?a=\"<>&"}}`},
		{`{"url":"B","link":[{"url":"B"}],"extension":[{"url":"ombCategory"}]}`, ""},
		{`{"photo":[{"url":"https://h/1"},{"url":"urn:uuid:1"},{"url":"data:a,b"},{"url":"a+b-c.1:x"},{"url":""},{"url":"#a"},{"url":"?a"},{"url":1},{"url":null},{"_url":{"id":"u"}}]}`, ""},
		{`{"photo":[{"hash":{"url":"B"},"title":"url"}]}`, ""},
	} {
		want := cmp.Or(test.want, test.resource)
		if got := written(t, output(t, publicBase), "Basic", test.resource); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
		if got := written(t, output(t, ""), "Basic", test.resource); got != test.resource {
			t.Errorf("without a base %s became %s", test.resource, got)
		}
	}
}

// Ensure names, tags and URLs are seen wherever the buffer of the reading ends.
func TestOutputAcrossTheBuffer(t *testing.T) {
	o := output(t, publicBase, "photo", "text")
	const before, after = `{"resourceType":"Patient","text":{"div":"`, `"},"gender":"x","photo":[{"url":"Binary/1"}],"meta":{"tag":[` + tag + `]}}`
	const want = `"},"photo":[{"url":"` + publicBase + `/Binary/1"}],"meta":{"tag":[` + tag + `]}}`
	for size := 64<<10 - len(before) - len(after) - 10; size < 64<<10; size++ {
		long := strings.Repeat("x", size)
		if got := written(t, o, "Patient", before+long+after); got != before+long+want {
			t.Fatalf("with %d bytes before them they are not", size)
		}
		if got := written(t, output(t, publicBase), "Patient", before+long+after); got != before+long+strings.Replace(after, "Binary", publicBase+"/Binary", 1) {
			t.Fatalf("with %d bytes before it the URL is not", size)
		}
	}
	long := strings.Repeat("x", 70<<10)
	for _, resource := range []string{
		`{"resourceType":"Patient","photo":[{"url":"` + long + `"}]`, // nobody looks at it
		`{"resourceType":"Patient","` + long + `":1`,
	} {
		if got := written(t, output(t, publicBase), "Patient", resource+"}"); got != resource+"}" {
			t.Errorf("a text longer than the buffer is changed")
		}
	}
	if got := written(t, o, "Patient", `{"`+long+`":1,"id":"p"}`); got != `{"id":"p","meta":{"tag":[`+tag+`]}}` {
		t.Errorf("a name longer than the buffer stays: %d bytes", len(got))
	}
}

// Ensure the URLs of resources are seen that come from a page, wherever they stand in it: there a reading before has looked
// for them.
func TestOutputOfAPage(t *testing.T) {
	o := output(t, publicBase)
	const none = `{"resourceType":"Patient","id":"n","photo":[{"title":"curl"},{"title":"none"}]}`
	for _, url := range []string{`"url":"B"`, `"url" : "B"`, `"\u0075rl":"B"`, `"ur\u006C":"B"`, `"url":"\/B"`} {
		one := `{"resourceType":"Patient","id":"p","photo":[{` + url + `}]}`
		want := written(t, o, "Patient", strings.ReplaceAll(one, " : ", ":"))
		if want == one {
			t.Fatalf("nothing is written in place of %s", one)
		}
		before := len(searchset(none, "", none)) - len(none) - len(`,"search":{"mode":"match"}},{"fullUrl":"http://x/Patient/2","resource":}]}`)
		for size := 64<<10 - before - len(one) - 10; size < 64<<10-before; size++ {
			long := `"` + strings.Repeat("x", size-len(`{"resourceType":"Patient","id":"n","name":""}`)+len(none)) + `"`
			page := searchset(`{"resourceType":"Patient","id":"n","name":`+long+`}`, one, none, one)
			var got []string
			read, err := mockClient(t, fixed(page)).Search(t.Context(), fhir.Query{Type: "Patient", Count: 9})
			if err == nil {
				err = read.Each(func(e *fhir.Entry) error {
					var line strings.Builder
					_, err := o.Write(&line, e)
					got = append(got, line.String())
					return err
				})
			}
			if err != nil || len(got) != 4 || got[1] != want || got[2] != none || got[3] != want {
				t.Fatalf("with %d bytes before it: %v\n got %.200q", size, err, got[1:])
			}
		}
	}
}

// Ensure what is not one JSON object fails, and so does a writer.
func TestOutputFails(t *testing.T) {
	o := output(t, publicBase, "id")
	for _, resource := range []string{``, `[]`, `{`, `{"id":}`, `{"id":"a"}x`, `{"id":"a",}`, `{"meta":{"tag":[}}`, `{"meta":{"tag":[{"system":1]}}`, "{\"id\":\"\xff\"}"} {
		if _, err := o.Write(io.Discard, &fhir.Entry{Type: "Patient", Resource: []byte(resource)}); !errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("%q: %v", resource, err)
		}
	}
	full := errors.New("full")
	for n := range 3 {
		w := &failingWriter{after: n, err: full}
		if _, err := o.Write(w, &fhir.Entry{Type: "Patient", Resource: []byte(`{"id":"a","meta":{}}`)}); !errors.Is(err, full) || errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("the error of the writer's call %d came as %v", n, err)
		}
	}
	if _, err := fhir.NewOutput("3.0.2", publicBase, []string{"id"}); err == nil {
		t.Error("elements are taken for a release without a table")
	}
	if _, err := fhir.NewOutput("3.0.2", publicBase, nil); err != nil {
		t.Errorf("without elements no table is needed: %v", err)
	}
	if _, err := fhir.NewOutput("4.0.1", "public", nil); err == nil {
		t.Error("a base that is no URL is taken")
	}
}

type failingWriter struct {
	after int
	err   error
}

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

// Ensure a long resource is written as a short one is, without being in memory.
func TestOutputOfALongResource(t *testing.T) {
	const head, data, tail = `{"resourceType":"DocumentReference","id":"d","status":"current","description":"a","content":[{"attachment":{"data":"`, `QUJD`, `","url":"Binary/1"}}]}`
	const size = 30 << 18
	body := repeated(`{"resourceType":"Bundle","type":"searchset","entry":[{"resource":`+head, data, "", size, tail+"}]}")
	page, err := streaming(t, body).Search(t.Context(), fhir.Query{Type: "DocumentReference"})
	if err != nil {
		t.Fatal(err)
	}
	o := output(t, publicBase, "content")
	before := heapInUse()
	err = page.Each(func(e *fhir.Entry) error {
		hash, want := sha256.New(), sha256.New()
		peak := &heapWriter{}
		n, err := o.Write(io.MultiWriter(hash, peak), e)
		if err != nil {
			return err
		}
		long := strings.Replace(strings.Replace(tail, "Binary", publicBase+"/Binary", 1), "]}", `],"meta":{"tag":[`+tag+`]}}`, 1)
		wantSize, err := io.Copy(want, repeated(strings.Replace(head, `"description":"a",`, "", 1), data, "", size, long))
		if err != nil || n != wantSize || !bytes.Equal(hash.Sum(nil), want.Sum(nil)) {
			t.Errorf("%d bytes are written, want %d, %v", n, wantSize, err)
		}
		if peak.peak > before+4<<20 {
			t.Errorf("the heap grew by %d bytes", peak.peak-before)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// heapWriter notes now and then how much heap is in use.
type heapWriter struct {
	n, next int
	peak    uint64
}

func (h *heapWriter) Write(p []byte) (int, error) {
	if h.n += len(p); h.n >= h.next {
		h.next = h.n + 4<<20
		h.peak = max(h.peak, heapInUse())
	}
	return len(p), nil
}
