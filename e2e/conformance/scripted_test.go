package conformance

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// scripted is a server that does what some rows ask for, and one thing wrong where it has a lie. Its exports are complete
// at the first poll, unless they are held.
type scripted struct {
	lie    string
	origin string // its address; the FHIR bases are below it: fhir, and guarded, whose files need a token

	mu     sync.Mutex
	data   map[string]string // by Type/id
	jobs   map[string]*scriptedJob
	grants map[string]Grant
	fails  map[string]int
	held   map[string]bool
}

// scriptedJob is one export.
type scriptedJob struct {
	Grant
	id, base, request string
	guarded           bool // its files need a token
	separate          bool
	partial           bool
	types             []string
	since, at         time.Time
	rows              map[string]string
	// again are its rows as they would be now.
	again func() map[string]string
	// looks counts how often a manifest or a file was asked for.
	looks int
}

// startScripted gives the server as the suite knows it.
func startScripted(t *testing.T, lie string) Server {
	s := &scripted{
		lie: lie, data: map[string]string{}, jobs: map[string]*scriptedJob{}, grants: map[string]Grant{}, fails: map[string]int{},
		held: map[string]bool{},
	}
	front := httptest.NewServer(s)
	t.Cleanup(front.Close)
	s.origin = front.URL
	for n := 1; n <= 3; n++ {
		s.put(fmt.Sprintf("Patient/p%d", n), `"birthDate":"2000-01-01","gender":"female"`, n)
		s.put(fmt.Sprintf("Condition/c%d", n), fmt.Sprintf(`"subject":{"reference":"Patient/p%d"}`, n), 3+n)
	}
	s.put("Observation/o", `"status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p1"}`, 8)
	s.put("DocumentReference/d", `"subject":{"reference":"Patient/p1"},"content":[{"attachment":{"contentType":"text/plain","url":"BASE/Binary/b"}}]`, 9)
	s.put("Group/g", `"member":[{"entity":{"reference":"Patient/p1"}},{"entity":{"reference":"Patient/p2"}}]`, 10)
	s.put("Group/denied", `"member":[]`, 11)
	return Server{
		Base: s.origin + "/fhir", Parallel: 4, Token: s.token, DeniedGroup: "denied", Writable: true, Fail: s.fail, Hold: s.hold,
		TokenFiles: s.origin + "/guarded",
	}
}

func (s *scripted) put(key, fields string, version int) {
	typ, id, _ := strings.Cut(key, "/")
	at := time.Date(2024, 1, 1, 0, 0, version, 0, time.UTC)
	if typ == "Basic" {
		at = time.Now()
	}
	s.data[key] = fmt.Sprintf(`{"resourceType":%q,"id":%q,"meta":{"versionId":"%d","lastUpdated":%q},%s}`, typ, id, version, at.Format(time.RFC3339Nano), fields)
}

func (s *scripted) token(grant Grant) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := fmt.Sprintf("token-%d", len(s.grants))
	s.grants[token] = grant
	return token
}

func (s *scripted) fail(typ string, status int) (mend func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[typ] = status
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.fails, typ)
	}
}

func (s *scripted) hold(typ string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[typ] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, typ)
	}
}

// allows tells whether a token is for a type.
func allows(g Grant, typ string) bool {
	return g.Scopes == "" || strings.Contains(g.Scopes, "/"+typ+".") || strings.Contains(g.Scopes, "/*.")
}

func say(w http.ResponseWriter, status int, media, body string) {
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func refuse(w http.ResponseWriter, status int, code string) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	say(w, status, fhirJSON, fmt.Sprintf(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":%q}]}`, code))
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	grant, known := s.grants[token]
	known = known && !grant.Expired
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	guarded, path := path[0] == "guarded", path[1:]
	open := path[0] == "Binary" && (!guarded && s.lie != "attachments that need a token" || s.lie == "attachments for everybody")
	switch what := path[len(path)-1]; {
	case path[0] == "file":
		s.file(w, path[1], path[2], grant, known)
	case !known && !open:
		refuse(w, http.StatusUnauthorized, "login")
	case s.fails[""] != 0 && s.lie == "a poll says that the export is gone":
		refuse(w, http.StatusNotFound, "not-found")
	case s.fails[""] != 0 && s.lie != "polls that never fail":
		refuse(w, http.StatusServiceUnavailable, "transient")
	case what == "$export":
		s.kickOff(w, r, path, grant, guarded)
	case path[0] == "status":
		s.status(w, r, s.jobs[what], grant)
	default:
		s.rest(w, r, strings.Join(path, "/"))
	}
}

// rest is what is no export.
func (s *scripted) rest(w http.ResponseWriter, r *http.Request, key string) {
	body, _ := io.ReadAll(r.Body)
	switch {
	case r.Method == http.MethodPut:
		var had resource
		_ = json.Unmarshal([]byte(s.data[key]), &had)
		var version int
		_, _ = fmt.Sscan(had.Meta.VersionID, &version)
		_, fields, _ := strings.Cut(strings.TrimSuffix(string(body), "}"), `"code"`)
		s.put(key, `"code"`+fields, version+1)
		w.WriteHeader(http.StatusOK)
	case r.Method == http.MethodDelete:
		delete(s.data, key)
		w.WriteHeader(http.StatusNoContent)
	case key == "Binary/b":
		say(w, http.StatusOK, "text/plain", "hello")
	case strings.Contains(key, "/"):
		if s.data[key] == "" {
			refuse(w, http.StatusNotFound, "not-found")
			return
		}
		say(w, http.StatusOK, fhirJSON, s.data[key])
	default:
		var entries []string
		for _, of := range slices.Sorted(maps.Keys(s.data)) {
			if typeOf(of) == key {
				entries = append(entries, `{"resource":`+s.data[of]+`}`)
			}
		}
		say(w, http.StatusOK, fhirJSON, fmt.Sprintf(`{"resourceType":"Bundle","total":%d,"entry":[%s]}`, len(entries), strings.Join(entries, ",")))
	}
}

func (s *scripted) kickOff(w http.ResponseWriter, r *http.Request, path []string, grant Grant, guarded bool) {
	query := r.URL.Query()
	job := &scriptedJob{
		Grant: grant, id: fmt.Sprint(len(s.jobs)), base: s.origin + "/fhir", guarded: guarded, at: time.Now(),
		separate: strings.Contains(r.Header.Get("Prefer"), "separate-export-status"), partial: query.Has("allowPartialManifests"),
	}
	if guarded {
		job.base = s.origin + "/guarded"
	}
	job.request = s.origin + r.URL.RequestURI()
	for _, list := range query["_type"] {
		job.types = append(job.types, strings.Split(list, ",")...)
	}
	job.since, _ = time.Parse(time.RFC3339Nano, query.Get("_since"))
	switch {
	case !s.knows(r.Method, query) && s.lie != "parameters that are ignored":
		refuse(w, http.StatusBadRequest, "not-supported")
		return
	case !s.mayExport(grant, job.types, path):
		refuse(w, http.StatusForbidden, "forbidden")
		return
	}
	job.again = func() map[string]string { return s.rowsOf(job, path, query) }
	job.rows = job.again()
	s.jobs[job.id] = job
	w.Header().Set("Content-Location", job.base+"/status/"+job.id)
	if job.separate {
		w.Header().Set("Preference-Applied", "respond-async, separate-export-status")
	}
	w.WriteHeader(http.StatusAccepted)
}

// knows tells whether the server has all that a kick-off asks for.
func (s *scripted) knows(method string, query url.Values) bool {
	for name := range query {
		if !slices.Contains([]string{"_type", "_since", "_elements", "allowPartialManifests"}, name) {
			return false
		}
	}
	return method == http.MethodGet && query.Get("_type") != "x" && !strings.Contains(query.Get("_elements"), "a.b.c") &&
		query.Get("_elements") != "Patient.name.family"
}

func (s *scripted) mayExport(grant Grant, types, path []string) bool {
	for _, typ := range types {
		if !allows(grant, typ) && s.lie != "types beyond the scopes" {
			return false
		}
	}
	if path[0] == "Group" && (path[1] == "denied" && s.lie != "no Group that is denied" || !allows(grant, "Group") && s.lie != "Groups for everybody") {
		return false
	}
	return grant.Scopes == "" || s.lie != "narrow tokens that are refused"
}

// rowsOf are the rows of an export, as they are now.
func (s *scripted) rowsOf(job *scriptedJob, path []string, query url.Values) map[string]string {
	rows := map[string]string{}
	for key, line := range s.data {
		typ := typeOf(key)
		ofOthers := path[0] == "Group" && strings.Contains(key+line, "p3") && s.lie != "Groups that hold everybody"
		outside := path[0] != "$export" && (typ == "Group" || typ == "Basic")
		late := !job.since.IsZero() && !parseResource([]byte(line)).Meta.LastUpdated.After(job.since) && s.lie != "_since that is ignored"
		unwanted := len(job.types) > 0 && !slices.Contains(job.types, typ) && s.lie != "_type that is ignored"
		if ofOthers || outside || late || unwanted || !allows(job.Grant, typ) && s.lie != "scopes that are ignored" {
			continue
		}
		if s.lie == "Conditions that are lost" && typ == "Condition" && len(job.types) > 0 {
			continue
		}
		if query.Has("_elements") {
			line = s.subset(line)
		}
		rows[key] = strings.ReplaceAll(line, "BASE", job.base)
	}
	return rows
}

// subset leaves the elements out that C-06 does not want.
func (s *scripted) subset(line string) string {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal([]byte(line), &fields)
	delete(fields, "gender")
	delete(fields, "subject")
	if s.lie == "elements that were asked for are left out" {
		delete(fields, "birthDate")
	}
	meta := strings.TrimSuffix(string(fields["meta"]), "}")
	fields["meta"] = json.RawMessage(meta + `,"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}`)
	short, _ := json.Marshal(fields)
	return string(short)
}

func (s *scripted) status(w http.ResponseWriter, r *http.Request, job *scriptedJob, grant Grant) {
	if job == nil || grant.Other != job.Other && s.lie != "exports for every client" {
		refuse(w, http.StatusNotFound, "not-found")
		return
	}
	failed, running := false, false
	for key := range job.rows {
		if !allows(grant, typeOf(key)) && s.lie != "a status for narrower tokens" && s.lie != "scopes that are ignored" {
			refuse(w, http.StatusForbidden, "forbidden")
			return
		}
		failed = failed || s.fails[typeOf(key)] != 0
		running = running || s.held[typeOf(key)]
	}
	page := r.URL.Query().Get("page")
	switch {
	case r.Method == http.MethodDelete:
		if s.lie != "deletions that are forgotten" {
			delete(s.jobs, job.id)
		}
		w.WriteHeader(http.StatusAccepted)
	case failed:
		s.failed(w, job)
	case running && page != "" && s.lie == "a next manifest that is not found":
		refuse(w, http.StatusNotFound, "not-found")
	case running && page != "" && s.lie == "a next manifest that is complete too early":
		say(w, http.StatusOK, "application/json", s.manifest(job, page, false))
	case running && (page != "" || !job.partial):
		s.running(w, job)
	case running:
		say(w, http.StatusAccepted, "application/json", s.manifest(job, page, true))
	default:
		if s.lie == "rows of the end of the export" {
			job.rows = job.again()
		}
		if job.separate {
			w.Header().Set("X-Export-Status", "200 OK")
		}
		say(w, http.StatusOK, "application/json", s.manifest(job, page, false))
	}
}

func (s *scripted) failed(w http.ResponseWriter, job *scriptedJob) {
	if !job.separate {
		refuse(w, http.StatusInternalServerError, "exception")
		return
	}
	w.Header().Set("X-Export-Status", "500 Internal Server Error")
	say(w, http.StatusOK, fhirJSON, `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception"}]}`)
}

func (s *scripted) running(w http.ResponseWriter, job *scriptedJob) {
	status := http.StatusAccepted
	if job.separate || s.lie == "a separate status unasked" {
		w.Header().Set("X-Export-Status", "202 Accepted")
		status = http.StatusOK
	}
	if s.lie == "a separate status that is forgotten" {
		w.Header().Del("X-Export-Status")
		status = http.StatusAccepted
	}
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(status)
}

// manifest is a page of an export with partial manifests, the Patients being the second, or the manifest of another one.
func (s *scripted) manifest(job *scriptedJob, page string, running bool) string {
	job.looks++
	var files []string
	for _, typ := range typesIn(job.rows) {
		if job.partial && (typ == "Patient") != (page != "") || running && s.held[typ] || job.looks > 1 && s.lie == "a file that is listed no more" {
			continue
		}
		files = append(files, fmt.Sprintf(`{"type":%q,"url":"%s/file/%s/%s"}`, typ, job.base, job.id, typ))
	}
	link := ""
	if job.partial && page == "" {
		link = fmt.Sprintf(`,"link":[{"relation":"next","url":"%s/status/%s?page=2"}]`, job.base, job.id)
	}
	at := job.at
	if page != "" && s.lie == "another transactionTime on each page" || job.looks > 1 && s.lie == "another transactionTime at each look" {
		at = at.Add(time.Second)
	}
	return fmt.Sprintf(`{"transactionTime":%q,"request":%q,"requiresAccessToken":%t,"output":[%s],"error":[]%s}`,
		at.Format(time.RFC3339Nano), job.request, job.guarded != (s.lie == "requiresAccessToken that is wrong"), strings.Join(files, ","), link)
}

func typesIn(rows map[string]string) []string {
	var types []string
	for key := range rows {
		types = append(types, typeOf(key))
	}
	slices.Sort(types)
	return slices.Compact(types)
}

func (s *scripted) file(w http.ResponseWriter, id, typ string, grant Grant, known bool) {
	job := s.jobs[id]
	if job == nil || !slices.Contains(typesIn(job.rows), typ) && s.lie != "files of any name" || s.lie == "files that are not there" {
		refuse(w, http.StatusNotFound, "not-found")
		return
	}
	if job.guarded && s.lie != "files for everybody" {
		for _, of := range typesIn(job.rows) {
			switch {
			case !known:
				refuse(w, http.StatusUnauthorized, "login")
				return
			case !allows(grant, of) && s.lie != "files for narrower tokens":
				refuse(w, http.StatusForbidden, "forbidden")
				return
			case grant.Other != job.Other && s.lie != "files for every client":
				refuse(w, http.StatusNotFound, "not-found")
				return
			}
		}
	}
	var body strings.Builder
	for _, key := range slices.Sorted(maps.Keys(job.rows)) {
		if typeOf(key) == typ {
			body.WriteString(job.rows[key] + "\n")
			if s.lie == "rows that come twice" {
				body.WriteString(job.rows[key] + "\n")
			}
		}
	}
	if job.looks > 1 && s.lie == "a file that changes" {
		body.WriteString("{}\n")
	}
	text := body.String()
	if s.lie == "gzip that nobody is told of" && !job.guarded {
		body.Reset()
		packed := gzip.NewWriter(&body)
		_, _ = io.WriteString(packed, text)
		_ = packed.Close()
		text = body.String()
	}
	say(w, http.StatusOK, ndjson, text)
}
