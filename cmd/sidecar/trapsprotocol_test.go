package main

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// protocolTraps are details of the protocol.
var protocolTraps = map[string]func(*testing.T, *trapHouse){
	"5.2.1": func(t *testing.T, h *trapHouse) { // the manifest is plain JSON, an OperationOutcome is FHIR's
		if got := ask(t, http.MethodGet, h.status, "Accept", "application/fhir+json"); got.header.Get("Content-Type") != "application/json" {
			t.Errorf("manifest: got %d %q", got.status, got.header)
		}
		checkOutcome(t, ask(t, http.MethodGet, h.status+"x", "Accept", "application/json"), http.StatusNotFound, "not-found")
	},
	"5.2.2": func(t *testing.T, h *trapHouse) { // each 202 is empty or JSON
		slow := h.slow.in(t)
		started := slow.begin("/$export")
		status := started.header.Get("Content-Location")
		running, deleted := ask(t, http.MethodGet, status), ask(t, http.MethodDelete, status)
		for _, got := range []reply{started, running, deleted} {
			if got.status != http.StatusAccepted || got.body != "" && !json.Valid([]byte(got.body)) {
				t.Errorf("got %d %q", got.status, got.body)
			}
		}
	},
	"5.2.3": func(t *testing.T, h *trapHouse) { // few whole seconds
		slow := h.slow.in(t)
		got := ask(t, http.MethodGet, slow.kickOff("/$export")).header.Get("Retry-After")
		if seconds, err := strconv.Atoi(got); err != nil || seconds < 1 || seconds > 2 {
			t.Errorf("Retry-After: got %q", got)
		}
	},
	"5.2.4": func(t *testing.T, h *trapHouse) { // whoever polls early and often is served
		slow := h.slow.in(t)
		status := slow.kickOff("/$export")
		for range 20 {
			if got := ask(t, http.MethodGet, status); got.status != http.StatusAccepted {
				t.Fatalf("poll: got %d %s", got.status, got.body)
			}
		}
	},
	"5.2.5": trapSlotOfADeletedExport,
	"5.2.6": trapTokenWithoutText,
	"5.2.7": func(t *testing.T, h *trapHouse) { // the token changes while the export runs
		slow := h.slow.in(t)
		status := slow.begin("/$export", "Authorization", "Bearer first").header.Get("Content-Location")
		if got := ask(t, http.MethodGet, status, "Authorization", "Bearer second"); got.status != http.StatusAccepted {
			t.Errorf("poll: got %d %s", got.status, got.body)
		}
		checkOutcome(t, ask(t, http.MethodDelete, status, "Authorization", "Bearer third"), http.StatusAccepted, "informational")
	},
	"5.2.8":  trapTokenThatEnds,
	"5.2.9":  trapKickoffAgain,
	"5.2.10": trapPrefer,
	"5.2.11": func(t *testing.T, h *trapHouse) { // $export in all its spellings
		slow := h.slow.in(t)
		for _, spelling := range []string{"$export", "%24export", "$export/", "%24export/"} {
			for _, level := range []string{"/", "/Patient/", "/Group/demo-group/"} {
				slow.kickOff(level + spelling)
			}
		}
		if slices.ContainsFunc(h.sample.Requests(), func(r fhirtest.Request) bool {
			return strings.Contains(r.Path, "$export")
		}) {
			t.Error("a kick-off was forwarded")
		}
	},
	"5.2.12": func(t *testing.T, h *trapHouse) { // the types of a body
		slow := h.slow.in(t)
		for _, media := range []string{"application/json", "application/fhir+json", "application/json;charset=utf-8", "application/fhir+json; charset=UTF-8"} {
			body := `{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"}]}`
			if got := send(t, http.MethodPost, slow.base+"/$export", body, "Content-Type", media); got.status != http.StatusAccepted {
				t.Errorf("%s: got %d %s", media, got.status, got.body)
			}
		}
	},
	"5.2.13": func(t *testing.T, h *trapHouse) { // the commas of the list of filters and of their values
		filters := url.QueryEscape("Patient?_id=pat-00001,pat-00002,Observation?_id=both&subject=Patient/pat-00001")
		_, manifest := h.s.in(t).export("/$export?_type=Patient,Observation&_typeFilter=" + filters)
		checkKeys(t, once(t, manifest), "Observation/both", "Patient/pat-00001", "Patient/pat-00002")
	},
	"5.2.14": func(t *testing.T, h *trapHouse) { // the plus of a zone that nobody encoded
		since := time.Now().AddDate(0, 0, -1).UTC().Format("2006-01-02T15:04:05") + "+00:00"
		_, manifest := h.s.in(t).export("/$export?_type=Patient&_since=" + since)
		rows := once(t, manifest)
		checkHas(t, rows, true, "Patient/pat-00001")
		checkHas(t, rows, false, "Patient/old")
	},
	"5.2.15": trapLines,
	"5.2.16": func(t *testing.T, h *trapHouse) { // a redirect that Inferno follows, with nothing in it
		link, err := url.Parse(h.stored.Output[0].URL)
		if err != nil {
			t.Fatal(err)
		}
		name, expires := path.Base(link.Path), strconv.FormatInt(time.Now().Add(time.Minute).Unix(), 10)
		mac := hmac.New(sha256.New, []byte(storeLinkKey))
		mac.Write([]byte("file/" + path.Base(h.storedStatus) + "/" + name + "/" + expires))
		got := ask(t, http.MethodGet, strings.Replace(h.storedStatus, "$export-status", "$export-file", 1)+"/"+name+
			"?expires="+expires+"&mac="+base64.RawURLEncoding.EncodeToString(mac.Sum(nil)))
		if !slices.Contains([]int{302, 303, 307}, got.status) || got.body != "" || got.header.Get("Content-Length") != "0" {
			t.Errorf("redirect: got %d %q %q", got.status, got.header, got.body)
		}
		if file := ask(t, http.MethodGet, got.header.Get("Location")); file.status != http.StatusOK || int64(strings.Count(file.body, "\n")) != h.stored.Output[0].Count {
			t.Errorf("file: got %d", file.status)
		}
	},
	"5.2.17": func(t *testing.T, h *trapHouse) { // links are signed for each manifest, and Expires moves with them
		link, err := url.Parse(h.stored.Output[0].URL)
		if err != nil || link.Query().Get("X-Amz-Expires") != "300" {
			t.Errorf("link: got %s, %v", link.Query().Get("X-Amz-Expires"), err)
		}
		until(t, "new link", func() bool {
			got := ask(t, http.MethodGet, h.storedStatus)
			expires, err := http.ParseTime(got.header.Get("Expires"))
			if err != nil || time.Until(expires) > 5*time.Minute || time.Until(expires) < 4*time.Minute {
				t.Fatalf("Expires: got %v, %v", expires, err)
			}
			return !strings.Contains(got.body, link.Query().Get("X-Amz-Signature"))
		})
	},
	"5.2.18": func(t *testing.T, h *trapHouse) { // a compressed file says so wherever it comes from
		checkCompressed(t, ask(t, http.MethodGet, h.stored.Output[0].URL, "Accept-Encoding", "gzip"), h.stored.Output[0].Count)
	},
	"5.2.19": func(t *testing.T, h *trapHouse) { // it is compressed once, and no header is lost on the way
		s := h.s.in(t)
		got := s.begin("/$export?_type=Group&_outputFormat=ndjson%2Bgzip", "Accept-Encoding", "gzip")
		manifest := s.manifest(got.header.Get("Content-Location"))
		checkCompressed(t, ask(t, http.MethodGet, manifest.Output[0].URL, "Accept-Encoding", "gzip"), manifest.Output[0].Count)
	},
	"5.2.20": trapStatement,
	"5.2.21": func(t *testing.T, h *trapHouse) { // valid OperationOutcomes
		s := h.s.in(t)
		for where, want := range map[string]struct {
			status int
			code   string
		}{
			"/$export?_type=Unicorn":  {http.StatusBadRequest, "not-supported"},
			"/$export?_since=never":   {http.StatusBadRequest, "invalid"},
			"/Group/nobody/$export":   {http.StatusNotFound, "not-found"},
			"/$export-status/nobody":  {http.StatusNotFound, "not-found"},
			"/$export-file/nobody/no": {http.StatusNotFound, "not-found"},
		} {
			checkOutcome(t, s.begin(where), want.status, want.code)
		}
		checkOutcome(t, ask(t, http.MethodPut, s.base+"/$export"), http.StatusMethodNotAllowed, "not-supported")
	},
	"5.2.22": func(t *testing.T, h *trapHouse) { // the percentage first, below 100 characters
		progress := ask(t, http.MethodGet, h.slow.in(t).kickOff("/$export")).header.Get("X-Progress")
		number, _, found := strings.Cut(progress, " %")
		if percent, err := strconv.Atoi(number); err != nil || !found || percent < 0 || percent > 99 || len(progress) >= 100 {
			t.Errorf("X-Progress: got %q", progress)
		}
	},
	"5.2.23": func(t *testing.T, h *trapHouse) { // no pages for those who have not asked for them
		if got := ask(t, http.MethodGet, h.slow.in(t).kickOff("/$export")); got.status != http.StatusAccepted || got.body != "" {
			t.Errorf("running: got %d %s", got.status, got.body)
		}
		if text := h.s.in(t).manifestText(h.status); strings.Contains(text, `"link"`) {
			t.Errorf("manifest: got %s", text)
		}
	},
	"5.2.24": func(t *testing.T, h *trapHouse) { // Provenance unless _type leaves it out
		checkHas(t, once(t, h.system), true, "Provenance/prov-3", "Provenance/prov-12")
		checkHas(t, once(t, h.patient), true, "Provenance/prov-3", "Provenance/prov-12")
		rows := once(t, h.group)
		checkHas(t, rows, true, "Provenance/prov-3")
		checkHas(t, rows, false, "Provenance/prov-12")
		if _, manifest := h.s.in(t).export("/Patient/$export?_type=Patient"); len(manifest.Output) != 1 || manifest.Output[0].Type != "Patient" {
			t.Errorf("output: got %v", manifest.Output)
		}
	},
}

// checkCompressed fails the test unless a file is compressed once, says so, and has the lines.
func checkCompressed(t *testing.T, got reply, lines int64) {
	t.Helper()
	if !slices.Equal(got.header.Values("Content-Encoding"), []string{"gzip"}) || got.header.Get("Content-Type") != "application/fhir+ndjson" {
		t.Errorf("headers: got %q", got.header)
	}
	unpacked, err := gzip.NewReader(strings.NewReader(got.body))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil || int64(bytes.Count(text, []byte("\n"))) != lines || !strings.HasPrefix(string(text), `{"resourceType":`) {
		t.Errorf("file: got %.40q, %v", text, err)
	}
}

// trapSlotOfADeletedExport: one export may run, and three begin back to back while a search of the first hangs.
func trapSlotOfADeletedExport(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	s.export("/$export?_type=Patient") // the probes are over
	reached := make(chan struct{}, 100)
	sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") },
		Hang:  true, Times: -1, Do: func(*http.Request) { reached <- struct{}{} },
	})
	for round := range 3 {
		status := s.kickOff("/$export?_type=Patient")
		checkOutcome(t, s.begin("/$export"), http.StatusTooManyRequests, "throttled")
		if round == 0 {
			select {
			case <-reached:
			case <-time.After(patience):
				t.Fatal("no search was reached")
			}
		}
		checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
	}
}

// trapTokenWithoutText: a client without a token sends the word Bearer alone, which is nobody's credential.
func trapTokenWithoutText(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	bare := []string{"Authorization", "Bearer "}
	status := s.kickOff("/$export?_type=Patient")
	until(t, "export", func() bool {
		got := ask(t, http.MethodGet, status, bare...)
		if got.status != http.StatusOK && got.status != http.StatusAccepted {
			t.Fatalf("poll: got %d %s", got.status, got.body)
		}
		return got.status == http.StatusOK
	})
	checkOutcome(t, ask(t, http.MethodDelete, status, bare...), http.StatusAccepted, "informational")
	for _, request := range sample.Requests() {
		if got, ok := request.Header["Authorization"]; ok {
			t.Errorf("the upstream got %q with %s", got, request.Path)
		}
	}
}

// trapTokenThatEnds: the token of the kick-off is good for that alone, and the export goes on with the sidecar's own.
func trapTokenThatEnds(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	const own = "Basic c2lkZWNhcjpzZWNyZXQ="
	var ended atomic.Bool
	good := map[bool]string{false: "Bearer good", true: "Bearer better"}
	sample.Fail(fhirtest.Fault{Times: -1, Status: http.StatusUnauthorized, Match: func(r *http.Request) bool {
		token := r.Header.Get("Authorization")
		return r.URL.Path != "/fhir/metadata" && token != own && token != good[ended.Load()]
	}})
	s := startSidecar(t, upstream, func(c *config) { c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password = "sidecar", "secret" })
	got := s.begin("/$export", "Authorization", "Bearer good")
	ended.Store(true)
	checkFiles(t, s.manifest(got.header.Get("Content-Location"), "Authorization", good[true]), expected(t, sample, nil))
	checkOutcome(t, s.begin("/$export?_type=Patient", "Authorization", "Bearer old"), http.StatusUnauthorized, "login")
}

// trapKickoffAgain: clients repeat a kick-off that got a 5xx, which must not have begun an export.
func trapKickoffAgain(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Settle = time.Hour })
	sample.Fail(fhirtest.Fault{Times: -1, Status: http.StatusBadGateway, Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Observation" }})
	for range 2 {
		checkOutcome(t, s.begin("/$export?_type=Patient,Observation"), http.StatusServiceUnavailable, "transient")
	}
	sample.ClearFaults()
	s.kickOff("/$export?_type=Patient,Observation")
	if jobs, err := s.server.store.List(t.Context()); err != nil || len(jobs) != 1 {
		t.Errorf("exports: got %d, %v", len(jobs), err)
	}
}

// trapPrefer: one header or several, lists, parameters, any case, blanks.
func trapPrefer(t *testing.T, h *trapHouse) {
	slow := h.slow.in(t)
	for _, test := range []struct {
		prefer []string
		status int
	}{
		{[]string{"respond-async, handling=lenient"}, http.StatusAccepted},
		{[]string{"respond-async", "handling=lenient"}, http.StatusAccepted},
		{[]string{"Respond-Async; wait=10 , HANDLING = \"lenient\""}, http.StatusAccepted},
		{[]string{"respond-async,handling=strict"}, http.StatusBadRequest},
		{[]string{"respond-async;handling=lenient"}, http.StatusAccepted}, // as some clients write a list
		{[]string{`respond-async; x="a, handling=lenient"`}, http.StatusBadRequest},
	} {
		var header []string
		for _, value := range test.prefer {
			header = append(header, "Prefer", value)
		}
		if got := slow.begin("/$export?unheard-of=1", header...); got.status != test.status {
			t.Errorf("%q: got %d %s", test.prefer, got.status, got.body)
		}
	}
	got := slow.begin("/$export", "Prefer", "respond-async", "Prefer", "Separate-Export-Status")
	if applied := strings.Join(got.header.Values("Preference-Applied"), ","); !strings.Contains(applied, "respond-async") || !strings.Contains(applied, "separate-export-status") {
		t.Errorf("Preference-Applied: got %q", applied)
	}
}

// trapLines: an upstream that indents its JSON, and a type without a row.
func trapLines(t *testing.T, _ *trapHouse) {
	sample, upstream := newSample(t, fhirtest.HAPI(), 2)
	number := `{"resourceType":"Observation","id":"number","status":"final","code":{"text":"a  b"},"valueQuantity":{"value":1.10}}`
	if err := sample.Put([]byte(number)); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, nil)
	_, manifest := s.export("/$export?_type=Patient,Observation,Task")
	if len(manifest.Output) != 2 {
		t.Errorf("files: got %v", manifest.Output)
	}
	for _, file := range manifest.Output {
		body := ask(t, http.MethodGet, file.URL).body
		if body == "" || body[0] != '{' || !strings.HasSuffix(body, "}\n") || strings.ContainsAny(body, "\r\ufeff") {
			t.Errorf("%s: the file begins %.10q", file.Type, body)
		}
		for line := range strings.Lines(body) {
			var compact bytes.Buffer
			if err := json.Compact(&compact, []byte(line)); err != nil || compact.String() != strings.TrimSuffix(line, "\n") {
				t.Errorf("%s: a line is not compact JSON: %v", file.Type, err)
			}
		}
	}
	if line := once(t, manifest)["Observation/number"]; !strings.Contains(line, `"value":1.10}`) || !strings.Contains(line, `"a  b"`) {
		t.Errorf("line: got %q", line)
	}
}
