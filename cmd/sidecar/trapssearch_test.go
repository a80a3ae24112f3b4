package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// linkSignature is what changes in a link from one reading of a manifest to the next.
var linkSignature = regexp.MustCompile(`\?expires=\d{10}&mac=[\w-]{43}`)

// searchTraps are what an export by REST search can get wrong.
var searchTraps = map[string]func(*testing.T, *trapHouse){
	"5.3.1": trapIgnoredParameters,
	"5.3.2": trapEntriesThatAreNoMatches,
	"5.3.3": trapNextLinks,
	"5.3.4": func(t *testing.T, h *trapHouse) { // found by subject and by performer, in two filters, once
		checkHas(t, once(t, h.group), true, "Observation/both")
		filter := func(query string) string { return "&_typeFilter=" + url.QueryEscape("Observation?"+query) }
		_, manifest := h.s.in(t).export("/Group/demo-group/$export?_type=Observation" + filter("_id=both") + filter("performer=Patient/pat-00002"))
		checkKeys(t, once(t, manifest), "Observation/both")
	},
	"5.3.5": trapLongLists,
	"5.3.6": func(t *testing.T, h *trapHouse) { // the compartment, no more and no less
		rows := once(t, h.group)
		checkHas(t, rows, true, "AllergyIntolerance/told", "Encounter/in-ward") // one by recorder, whose patient is no member
		if got := patientsOf(rows); !slices.Equal(got, patientIDs(1, 9)) {
			t.Errorf("Patients: got %q", got)
		}
		_, manifest := h.s.in(t).export("/Group/linking/$export")
		checkKeys(t, once(t, manifest), "Patient/linked")
	},
	"5.3.7": func(t *testing.T, _ *trapHouse) { // who may not read the Group may not export it
		sample, upstream := newSample(t, fhirtest.Plain(), 1)
		sample.Fail(fhirtest.Fault{Times: -1, Status: http.StatusForbidden, Match: func(r *http.Request) bool {
			return r.URL.Path == "/fhir/Group/demo-group" && r.Header.Get("Authorization") == "Bearer narrow"
		}})
		s := startSidecar(t, upstream, nil)
		checkOutcome(t, s.begin("/Group/demo-group/$export", "Authorization", "Bearer narrow"), http.StatusForbidden, "forbidden")
		checkOutcome(t, s.begin("/Group/nobody/$export"), http.StatusNotFound, "not-found")
		s.kickOff("/Group/demo-group/$export")
	},
	"5.3.8": trapTypeRefused,
	"5.3.9": func(t *testing.T, h *trapHouse) { // a relative address in an attachment
		line := once(t, h.group)["DocumentReference/note"]
		var note struct {
			Content []struct{ Attachment struct{ URL string } }
		}
		decodeTrap(t, line, &note)
		if len(note.Content) != 1 || !strings.HasPrefix(note.Content[0].Attachment.URL, h.s.base+"/$export-attachment/") {
			t.Fatalf("attachment: got %s", line)
		}
		if got := ask(t, http.MethodGet, note.Content[0].Attachment.URL); got.status != http.StatusOK {
			t.Errorf("attachment: got %d", got.status)
		}
	},
	"5.3.10": func(t *testing.T, h *trapHouse) { // a restart
		trapRestart(t, h)
		trapRestartBetweenPages(t)
	},
	"5.3.11": func(t *testing.T, _ *trapHouse) { // the export is stored before its 202
		_, upstream := newSample(t, fhirtest.Plain(), 1)
		s := startSidecar(t, upstream, func(c *config) { c.Settle = time.Hour })
		status := s.kickOff("/$export")
		for range 2 {
			if got := ask(t, http.MethodGet, status); got.status != http.StatusAccepted {
				t.Errorf("poll: got %d %s", got.status, got.body)
			}
			s.stop()
			s.start()
		}
	},
	"5.3.12": trapEverythingElse,
}

// trapIgnoredParameters: a server that obeys no parameter makes no export wider.
func trapIgnoredParameters(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Superset(), 12)
	if err := sample.PutAt([]byte(`{"resourceType":"Patient","id":"old"}`), time.Now().AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, func(c *config) { c.MaxRunning = 3 })
	group := s.kickOff("/Group/demo-group/$export")
	since := s.kickOff("/$export?_type=Patient&_since=" + time.Now().AddDate(0, 0, -1).UTC().Format(time.RFC3339))
	filtered := s.begin("/$export?_type=Patient&_typeFilter=" + url.QueryEscape("Patient?_id=pat-00001"))
	checkFiles(t, s.manifest(group), expected(t, sample, patientIDs(1, 9), "Group"))
	if got := patientsOf(once(t, s.manifest(since))); !slices.Equal(got, patientIDs(1, 12)) {
		t.Errorf("_since: got %q", got)
	}
	if filtered.status == http.StatusAccepted {
		filtered = s.finish(filtered.header.Get("Content-Location"))
	}
	checkOutcome(t, filtered, http.StatusBadRequest, "not-supported")
}

// trapEntriesThatAreNoMatches: outcomes among the entries are no resources, and no filter asks for includes.
func trapEntriesThatAreNoMatches(t *testing.T, _ *trapHouse) {
	noisy := fhirtest.Plain()
	noisy.OutcomeFirst = "information"
	sample, upstream := newSample(t, noisy, 2)
	s := startSidecar(t, upstream, nil)
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))
	checkOutcome(t, s.begin("/$export?_typeFilter="+url.QueryEscape("Encounter?_id=enc-1-0&_include=Encounter:subject")), http.StatusBadRequest, "invalid")
}

// trapNextLinks: they name a host that clients cannot reach, or expire in the middle.
func trapNextLinks(t *testing.T, _ *trapHouse) {
	for _, personality := range []fhirtest.Personality{fhirtest.Microsoft(), fhirtest.HAPI()} {
		sample := fhirtest.New(personality, "/fhir")
		upstream := newUpstreamOf(t, sample)
		for i := range 12 { // of one instant, so that nothing but the links leads on
			if err := sample.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":"p%02d"}`, i), time.Now().Add(-time.Hour).Truncate(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		s := startSidecar(t, upstream, func(c *config) { c.PageSize = 4 })
		var met atomic.Int64
		count := func(*http.Request) { met.Add(1) }
		if personality.Paging == fhirtest.CachedPages {
			sample.Fail(fhirtest.Fault{ExpirePages: http.StatusGone, Do: count})
		} else {
			sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("ct") }, Do: count})
		}
		_, manifest := s.export("/$export?_type=Patient")
		if got := len(once(t, manifest)); got != 12 || met.Load() == 0 {
			t.Errorf("%s: got %d Patients, %d links were followed", personality.Name, got, met.Load())
		}
	}
}

// trapLongLists: more members than an address or a list of values may hold.
func trapLongLists(t *testing.T, _ *trapHouse) {
	narrow := fhirtest.Plain()
	narrow.MaxURLBytes, narrow.MaxOrValues = 900, 30
	sample := fhirtest.New(narrow, "/fhir")
	upstream := newUpstreamOf(t, sample)
	var members, want []string
	for i := range 80 {
		id := fmt.Sprintf("patient-with-a-rather-long-id-%04d", i)
		members = append(members, `{"entity":{"reference":"Patient/`+id+`"}}`)
		want = append(want, "Observation/o"+id[len(id)-4:], "Patient/"+id)
		for _, record := range []string{
			`{"resourceType":"Patient","id":"` + id + `"}`,
			`{"resourceType":"Observation","id":"o` + id[len(id)-4:] + `","status":"final","code":{},"subject":{"reference":"Patient/` + id + `"}}`,
		} {
			if err := sample.Put([]byte(record)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, record := range []string{
		`{"resourceType":"Group","id":"many","type":"person","actual":true,"member":[` + strings.Join(members, ",") + `]}`,
		`{"resourceType":"Patient","id":"stranger"}`,
		`{"resourceType":"Observation","id":"strange","status":"final","code":{},"subject":{"reference":"Patient/stranger"}}`,
	} {
		if err := sample.Put([]byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	s := startSidecar(t, upstream, func(c *config) { c.Strategy = "lists" })
	_, manifest := s.export("/Group/many/$export?_type=Patient,Observation")
	slices.Sort(want)
	checkKeys(t, once(t, manifest), want...)
	if !slices.ContainsFunc(sample.Requests(), func(r fhirtest.Request) bool { return strings.Count(r.RawQuery+r.Form, "patient-with") > 1 }) {
		t.Error("no list was sent")
	}
}

// trapTypeRefused: one type cannot be read, and the operator allows a partial export: it says what it lacks. Without that
// leave it fails, see TestUpstreamRefusesATypeLater.
func trapTypeRefused(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	s := startSidecar(t, upstream, func(c *config) { c.AllowPartial = true })
	s.export("/$export?_type=Patient") // the probes are over
	sample.Fail(fhirtest.Fault{Status: http.StatusForbidden, Times: -1, Match: func(r *http.Request) bool {
		return r.URL.Path == "/fhir/Condition" && r.URL.Query().Has("_sort")
	}})
	_, manifest := s.export("/$export?_type=Patient,Condition")
	if got := patientsOf(once(t, manifest)); !slices.Equal(got, patientIDs(1, 2)) || len(manifest.Error) != 1 {
		t.Fatalf("manifest: got %q and %v", got, manifest.Error)
	}
	text := ask(t, http.MethodGet, manifest.Error[0].URL).body
	if manifest.Error[0].Type != "OperationOutcome" || !strings.Contains(text, "Condition") || !strings.Contains(text, `"severity":"error"`) {
		t.Errorf("error: got %s", text)
	}
}

// trapRestart: what a manifest named stays as it was, and what ran goes on.
func trapRestart(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	s := startSidecar(t, upstream, nil)
	status, manifest := s.export("/$export")
	read := func() string {
		// Links are renewed, and those of before have to go on working.
		text := bytes.NewBufferString(linkSignature.ReplaceAllString(ask(t, http.MethodGet, status).body, ""))
		for _, file := range manifest.Output {
			text.WriteString(ask(t, http.MethodGet, file.URL).body)
		}
		return text.String()
	}
	before := read()
	hanging := make(chan struct{}, 100)
	sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") },
		Hang:  true, Times: -1, Do: func(*http.Request) { hanging <- struct{}{} },
	})
	next := s.kickOff("/$export")
	select {
	case <-hanging:
	case <-time.After(patience):
		t.Fatal("no search was reached")
	}
	s.stop()
	sample.ClearFaults()
	if err := sample.Put([]byte(`{"resourceType":"Patient","id":"new"}`)); err != nil {
		t.Fatal(err)
	}
	s.start()
	if read() != before {
		t.Error("the manifest or its files have changed")
	}
	rows := once(t, s.manifest(next))
	checkHas(t, rows, false, "Patient/new")
	if want := strings.Count(before, `"resourceType":`); len(rows) != want {
		t.Errorf("resumed export: got %d resources, want %d", len(rows), want)
	}
}

// trapRestartBetweenPages: a page of the manifest that was returned while the export ran, and its files, stay as they are over a
// restart and after the end.
func trapRestartBetweenPages(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	sample.Fail(fhirtest.Fault{ // holds the last type back
		Match: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/Patient") && r.URL.Query().Has("_sort")
		},
		Hang: true, Times: -1,
	})
	s := startSidecar(t, upstream, func(c *config) {
		c.PageRows, c.WritesPassHere = 1, true
		c.Settle = time.Microsecond // what is read within it is not shown at once
	})
	status := s.kickOff("/$export?_type=Observation,Patient&allowPartialManifests=true")
	var first reply
	until(t, "first page", func() bool {
		first = ask(t, http.MethodGet, status)
		return first.body != ""
	})
	if first.status != http.StatusAccepted {
		t.Fatalf("the first page came with %d", first.status)
	}
	var page state.Manifest
	read := func(body string) string {
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, file := range page.Output {
			text.WriteString(file.Type + linkSignature.ReplaceAllString(file.URL, "") + ask(t, http.MethodGet, file.URL).body)
		}
		return text.String()
	}
	before := read(first.body)
	if !strings.Contains(before, `"resourceType":"Observation"`) {
		t.Fatalf("the first page has no Observation: %s", first.body)
	}
	s.stop()
	sample.ClearFaults()
	for _, late := range []string{`{"resourceType":"Observation","id":"new"}`, `{"resourceType":"Observation","id":"` + firstID.FindStringSubmatch(before)[1] + `"}`} {
		if err := sample.Put([]byte(late)); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	if read(ask(t, http.MethodGet, status).body) != before {
		t.Error("after the restart: the page or its files have changed")
	}
	if read(s.finish(status).body) != before {
		t.Error("after the end: the page or its files have changed")
	}
	if !slices.ContainsFunc(page.Link, func(link state.ManifestLink) bool { return link.Relation == "next" }) {
		t.Error("no page follows")
	}
}

// firstID finds the id of the first resource of a file.
var firstID = regexp.MustCompile(`"id":"([^"]+)"`)

// trapEverythingElse: other operations, and what only looks like ours, reach the server as they are.
func trapEverythingElse(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	for _, where := range []string{
		"/Patient/pat-00001/$everything", "/$reindex", "/Observation/$export", "/Patient/pat-00001/$export", "/$exporter", "/x$export",
		"/$export/x", "/$export-statuses/x", "/Group/$export", "/Patient/pat-00001?x=$export", "/Group/a/b/$export",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			direct := ask(t, method, upstream+where, "Prefer", "respond-async")
			sample.ResetRequests()
			got := ask(t, method, s.base+where, "Prefer", "respond-async")
			if got.status != direct.status || strings.ReplaceAll(got.body, s.base, upstream) != direct.body {
				t.Errorf("%s %s: got %d, want %d, or another body", method, where, got.status, direct.status)
			}
			requests := sample.Requests()
			if len(requests) != 1 || requests[0].Method != method || requests[0].Header.Get("Prefer") != "respond-async" ||
				strings.TrimSuffix(requests[0].Path+"?"+requests[0].RawQuery, "?") != "/fhir"+where {
				t.Errorf("%s %s: the server got %d requests, or another one", method, where, len(requests))
			}
		}
	}
}
