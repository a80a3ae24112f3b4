package fhir_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"sidecar/exporter/fhir"
)

// asked are elements that a client may ask for, with the members of an Observation that they stand for.
var asked = []struct {
	element string
	members string
}{
	{"value", "value(Quantity|CodeableConcept|String|Boolean|Integer|Range|Ratio|SampledData|Time|DateTime|Period)"},
	{"Observation.note", "note"},
	{"valueQuantity", "valueQuantity"},
	{"birthDate", ""},
	{"contained", "contained"},
	{"Patient.subject", ""},
}

var (
	attachmentName = regexp.MustCompile("^(content|attachment|photo|image|form|presentedForm|document|sequenceAttachment|" +
		"(content|source|legallyBinding|defaultValue|fixed|pattern|value)Attachment)$")
	absoluteURL = regexp.MustCompile("^([a-zA-Z][a-zA-Z0-9+.-]*:|[#?]|$)")
)

// projected is what an Observation is behind an Output that keeps the members of these names, nil for all.
func projected(resource map[string]any, kept *regexp.Regexp) map[string]any {
	want := map[string]any{}
	for name, value := range resource {
		if kept == nil || kept.MatchString(name) {
			want[name] = completed(value, attachmentName.MatchString(name))
		}
	}
	if kept == nil {
		return want
	}
	meta, _ := want["meta"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	tags, _ := meta["tag"].([]any)
	const system, code = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "SUBSETTED"
	if !slices.ContainsFunc(tags, func(tag any) bool {
		one, _ := tag.(map[string]any)
		return one["code"] == code && one["system"] == system
	}) {
		tags = append(tags, map[string]any{"system": system, "code": code})
	}
	meta["tag"], want["meta"] = tags, meta
	return want
}

// completed makes the relative URLs of Attachments absolute.
func completed(value any, attachment bool) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = completed(v[i], attachment)
		}
	case map[string]any:
		for name := range v {
			if url, ok := v[name].(string); ok && attachment && name == "url" {
				v[name] = absolute(url)
				continue
			}
			v[name] = completed(v[name], attachmentName.MatchString(name))
		}
	}
	return value
}

func absolute(url string) string {
	switch {
	case absoluteURL.MatchString(url):
		return url
	case strings.HasPrefix(url, "//"):
		return "https:" + url
	case strings.HasPrefix(url, "/"):
		return "https://public.example" + url
	}
	return publicBase + "/" + url
}

// FuzzOutput compares with encoding/json: what is written is the same as what that makes of the resource, and what is kept
// has the same bytes in the same order.
func FuzzOutput(f *testing.F) {
	f.Add([]byte(`{"resourceType":"Observation","id":"1","meta":{"tag":[{"code":"a"}]},"valueQuantity":{"value":1.10},"note":[]}`), uint8(3))
	f.Add([]byte(`{"status":"a","_status":{},"contained":[{"photo":[{"url":"Binary\/1"}]}],"code":{"valueAttachment":{"url":"/B"}}}`), uint8(20))
	f.Add([]byte(`{"m\u0065ta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]},"x":[1e5,-0]}`), uint8(8))
	f.Add([]byte(`{"meta":[],"note":[{"photo":{"\u0075rl":"é"}}],"valueString":"\ud83d"}`), uint8(31))
	f.Add([]byte(`{"photo":[[{"url":"//x"}],{"url":""},{"url":{"url":"a"}}],"meta":{"tag":"x"}}`), uint8(0))
	f.Add([]byte(`{"id":"1"`), uint8(1))
	f.Fuzz(func(t *testing.T, resource []byte, mask uint8) {
		if tooDeep(resource) || isJSON(resource) && !jsontext.Value(resource).IsValid(jsontext.AllowInvalidUTF8(true)) {
			return // of a name that comes twice encoding/json sees the last one only
		}
		var elements []string
		kept := "^_?(resourceType|id|meta|status|code"
		reduced := false
		for i, one := range asked {
			if mask&(1<<i) != 0 {
				elements = append(elements, one.element)
				reduced = reduced || !strings.HasPrefix(one.element, "Patient.")
				if one.members != "" {
					kept += "|" + one.members
				}
			}
		}
		var keeps *regexp.Regexp
		if reduced {
			keeps = regexp.MustCompile(kept + ")$")
		}
		var got, plain bytes.Buffer
		_, err := output(t, publicBase, elements...).Write(&got, &fhir.Entry{Type: "Observation", Resource: resource})
		var want map[string]any
		decode(resource, &want)
		if !isJSON(resource) || want == nil {
			if keeps != nil && !errors.Is(err, fhir.ErrMalformed) {
				t.Fatalf("what is no resource is written: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var have map[string]any
		decode(got.Bytes(), &have)
		if want = projected(want, keeps); !reflect.DeepEqual(have, want) {
			t.Fatalf("\n got %s\nwant %v", got.Bytes(), want)
		}
		if _, err := output(t, "", elements...).Write(&plain, &fhir.Entry{Type: "Observation", Resource: resource}); err != nil {
			t.Fatal(err)
		}
		sameBytes(t, resource, plain.Bytes(), keeps)
	})
}

func decode(text []byte, into any) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	_ = decoder.Decode(into) // the caller sees nothing then
}

// sameBytes checks that the members that are kept have their bytes and their order, white space aside.
func sameBytes(t *testing.T, resource, got []byte, keeps *regexp.Regexp) {
	t.Helper()
	if keeps == nil {
		if !bytes.Equal(got, resource) {
			t.Fatalf("\n got %s\nwant %s", got, resource)
		}
		return
	}
	var want, have []string
	for _, m := range rootMembers(t, resource) {
		if keeps.MatchString(m.name) && m.name != "meta" {
			want = append(want, m.raw)
		}
	}
	for _, m := range rootMembers(t, got) {
		if m.name != "meta" {
			have = append(have, m.raw)
		}
	}
	if !slices.Equal(have, want) {
		t.Fatalf("\n got %q\nwant %q", have, want)
	}
}

type rootMember struct{ name, raw string }

// rootMembers lists the members of an object with their bytes, white space between tokens aside.
func rootMembers(t *testing.T, object []byte) []rootMember {
	t.Helper()
	decoder := jsontext.NewDecoder(bytes.NewReader(object), lenient...)
	if _, err := decoder.ReadToken(); err != nil {
		t.Fatal(err)
	}
	var members []rootMember
	for decoder.PeekKind() != '}' {
		name, err := decoder.ReadValue()
		if err != nil {
			t.Fatal(err)
		}
		m := rootMember{raw: string(name)}
		decode(name, &m.name)
		value, err := decoder.ReadValue()
		if err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, value); err != nil {
			t.Fatal(err)
		}
		m.raw += ":" + compact.String()
		members = append(members, m)
	}
	return members
}
