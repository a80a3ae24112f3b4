package main

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// serverTraps are where servers fail the published tests.
var serverTraps = map[string]func(*testing.T, *trapHouse){
	"5.1.1": func(t *testing.T, h *trapHouse) { // after DELETE the very next GET is 404, of running and of finished exports
		s, slow := h.s.in(t), h.slow.in(t)
		done, _ := s.export("/$export?_type=Group")
		for _, status := range []string{done, slow.kickOff("/$export")} {
			checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
			checkOutcome(t, ask(t, http.MethodGet, status), http.StatusNotFound, "not-found")
			checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusNotFound, "not-found")
		}
	},
	"5.1.2": func(t *testing.T, h *trapHouse) { // error is there when it is empty
		var manifest map[string]any
		decodeTrap(t, h.s.in(t).manifestText(h.status), &manifest)
		for _, name := range []string{"error", "output"} {
			if _, ok := manifest[name].([]any); !ok {
				t.Errorf("%s: got %v", name, manifest[name])
			}
		}
	},
	"5.1.3": func(t *testing.T, h *trapHouse) { // every name of NDJSON, with a raw + too
		slow := h.slow.in(t)
		for _, format := range []string{"application/fhir+ndjson", "application/fhir%2Bndjson", "application%2Ffhir+ndjson", "application/ndjson", "ndjson"} {
			slow.kickOff("/$export?_outputFormat=" + format)
		}
		checkOutcome(t, slow.begin("/$export?_outputFormat=text/csv"), http.StatusBadRequest, "not-supported")
	},
	"5.1.4": func(t *testing.T, h *trapHouse) { // the type of a file, also where the store sends it
		for _, link := range []string{h.system.Output[0].URL, h.stored.Output[0].URL} {
			if got := ask(t, http.MethodGet, link); got.status != http.StatusOK || got.header.Get("Content-Type") != "application/fhir+ndjson" {
				t.Errorf("file: got %d %q", got.status, got.header)
			}
		}
	},
	"5.1.5": func(t *testing.T, h *trapHouse) { // absolute addresses
		addresses := []string{h.status, h.system.Request}
		for _, file := range h.system.Output {
			addresses = append(addresses, file.URL)
		}
		for _, address := range addresses {
			if parsed, err := url.Parse(address); err != nil || !parsed.IsAbs() || parsed.Host == "" {
				t.Errorf("%s is not absolute: %v", address, err)
			}
		}
	},
	"5.1.6": func(t *testing.T, h *trapHouse) { // behind a TLS proxy all addresses are the public ones
		s := h.s.in(t)
		through := []string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "fhir.example.org"}
		got := s.begin("/$export?_type=Group", through...)
		status, ok := strings.CutPrefix(got.header.Get("Content-Location"), "https://fhir.example.org/fhir/")
		if !ok {
			t.Fatalf("kick-off: got %d %q", got.status, got.header)
		}
		var text string
		until(t, "export", func() bool {
			text = ask(t, http.MethodGet, s.base+"/"+status, through...).body
			return text != ""
		})
		if strings.Contains(text, "127.0.0.1") || !strings.Contains(text, `"url":"https://fhir.example.org/fhir/`) ||
			!strings.Contains(text, `"request":"https://fhir.example.org/fhir/$export?_type=Group"`) {
			t.Errorf("manifest: got %s", text)
		}
	},
	"5.1.7": func(t *testing.T, h *trapHouse) { // a signed link and a token at once are refused by S3: the client is told to send none
		link := h.stored.Output[0].URL
		if h.stored.RequiresAccessToken || !strings.Contains(link, "X-Amz-Signature") {
			t.Errorf("requiresAccessToken: got %t for %s", h.stored.RequiresAccessToken, link)
		}
		if got := ask(t, http.MethodGet, link); got.status != http.StatusOK {
			t.Errorf("without a token: got %d %s", got.status, got.body)
		}
	},
	"5.1.8": func(t *testing.T, h *trapHouse) { // no 403 for a file that needs no token, and never a need that is not said
		if h.system.RequiresAccessToken {
			t.Error("requiresAccessToken is true, and nobody checks the token")
		}
		for _, file := range h.system.Output {
			if got := ask(t, http.MethodGet, file.URL); got.status != http.StatusOK {
				t.Errorf("%s without a token: got %d", file.Type, got.status)
			}
		}
	},
	"5.1.9": trapTransactionTime,
	"5.1.10": func(t *testing.T, h *trapHouse) { // _type is optional
		var types []string
		for _, file := range h.system.Output {
			types = append(types, file.Type)
		}
		slices.Sort(types)
		if want := h.sample.Types(); !slices.Equal(types, want) {
			t.Errorf("types: got %q, want %q", types, want)
		}
	},
	"5.1.11": func(t *testing.T, h *trapHouse) { // one type a file, although others are added
		for _, file := range h.group.Output {
			for line := range strings.Lines(ask(t, http.MethodGet, file.URL).body) {
				if typ, _, _ := strings.Cut(keyOf(t, []byte(line)), "/"); typ != file.Type {
					t.Errorf("a file of %s holds %s", file.Type, typ)
				}
			}
		}
	},
	"5.1.12": func(t *testing.T, h *trapHouse) { // the Patients themselves
		checkHas(t, once(t, h.patient), true, "Patient/pat-00001", "Patient/pat-00012", "Patient/old")
		checkHas(t, once(t, h.group), true, "Patient/pat-00001", "Patient/pat-00009")
	},
	"5.1.13": func(t *testing.T, h *trapHouse) { // what their records refer to
		checkHas(t, once(t, h.group), true, "Practitioner/pract-1", "Organization/org-1", "Location/ward")
	},
	"5.1.14": func(t *testing.T, h *trapHouse) { // an empty Group is nobody
		if _, manifest := h.s.in(t).export("/Group/demo-empty/$export"); len(manifest.Output) > 0 {
			t.Errorf("output: got %v", manifest.Output)
		}
	},
	"5.1.15": func(t *testing.T, h *trapHouse) { // not the other Groups in which a member is
		checkHas(t, once(t, h.group), false, "Group/foreign")
		_, manifest := h.s.in(t).export("/Group/demo-group/$export?_type=Group")
		checkKeys(t, once(t, manifest), "Group/demo-group", "Group/demo-nested")
	},
	"5.1.16": func(t *testing.T, h *trapHouse) { // members that are Groups; a Group without a list
		checkHas(t, once(t, h.group), true, "Patient/pat-00008", "Patient/pat-00009")
		checkOutcome(t, h.s.in(t).begin("/Group/by-trait/$export"), http.StatusBadRequest, "not-supported")
	},
	"5.1.17": trapMissingParameter,
	"5.1.18": func(t *testing.T, h *trapHouse) { // two filters that match one resource
		filter := func(ids string) string { return "_typeFilter=" + url.QueryEscape("Patient?_id="+ids) }
		_, manifest := h.s.in(t).export("/$export?_type=Patient&" + filter("pat-00001,pat-00002") + "&" + filter("pat-00002,pat-00003"))
		checkKeys(t, once(t, manifest), "Patient/pat-00001", "Patient/pat-00002", "Patient/pat-00003")
	},
	"5.1.19": trapOffsetPages,
}

// trapTransactionTime: it is that of the beginning, and what is written later comes with the next export.
func trapTransactionTime(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	s.export("/$export?_type=Patient") // the probes are over
	var written atomic.Int64
	sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") },
		Do: func(*http.Request) {
			written.Store(time.Now().UnixMilli())
			if err := sample.Put([]byte(`{"resourceType":"Patient","id":"late"}`)); err != nil {
				t.Error(err)
			}
		},
	})
	_, manifest := s.export("/$export?_type=Patient")
	at, err := time.Parse(time.RFC3339, manifest.TransactionTime)
	if err != nil || written.Load() == 0 || at.UnixMilli() > written.Load() {
		t.Errorf("transactionTime: got %s, %v, written at %d", manifest.TransactionTime, err, written.Load())
	}
	checkKeys(t, once(t, manifest), "Patient/pat-00001")
	_, next := s.export("/$export?_type=Patient&_since=" + manifest.TransactionTime)
	checkKeys(t, once(t, next), "Patient/late")
}

// trapMissingParameter: a type cannot be searched by patient, and the rest of the export is as it should be.
func trapMissingParameter(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 12)
	var met atomic.Int64
	sample.Fail(fhirtest.Fault{
		Times: -1, Status: http.StatusBadRequest,
		Match: func(r *http.Request) bool {
			return r.URL.Path == "/fhir/Immunization" && strings.Contains(r.URL.RawQuery, "atient")
		},
		Do: func(*http.Request) { met.Add(1) },
	})
	one := `{"resourceType":"Group","id":"one","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/pat-00001"}}]}`
	if err := sample.Put([]byte(one)); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, func(c *config) { c.PageSize = 1 }) // so that types are dear to read whole
	_, manifest := s.export("/Group/one/$export?_type=Patient,Immunization,Condition")
	checkKeys(t, once(t, manifest), "Condition/cond-1", "Immunization/imm-1", "Patient/pat-00001")
	if met.Load() == 0 {
		t.Error("no search by patient was refused")
	}
}

// trapOffsetPages: rows that go while pages are read by offset move others to pages that were read already.
func trapOffsetPages(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 0)
	at := time.Now().Add(-time.Hour)
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} { // of one instant
		if err := sample.PutAt([]byte(`{"resourceType":"Patient","id":"`+id+`"}`), at); err != nil {
			t.Fatal(err)
		}
	}
	s := startSidecar(t, upstream, func(c *config) { c.PageSize = 4 })
	s.export("/$export?_type=Group")
	var met atomic.Int64
	sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Patient" && r.URL.Query().Get("_page") != "" },
		Do: func(*http.Request) {
			met.Add(1)
			for _, id := range []string{"a", "b"} {
				if err := sample.Delete("Patient", id); err != nil {
					t.Error(err)
				}
			}
		},
	})
	_, manifest := s.export("/$export?_type=Patient")
	if got := patientsOf(once(t, manifest)); strings.Join(got, "") != "abcdefghijkl" {
		t.Errorf("Patients: got %q", got)
	}
	if met.Load() == 0 {
		t.Error("no page was read by offset")
	}
}
