package proxy_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// identities is an identity server that knows tokens by heart.
type identities map[string]auth.Client

func (i identities) Authorize(_ context.Context, header http.Header) (*auth.Client, error) {
	client, ok := i[strings.TrimPrefix(header.Get("Authorization"), "Bearer ")]
	if !ok {
		return nil, &auth.Refusal{Status: http.StatusUnauthorized, Code: "login", Text: "no such token", Challenge: `Bearer realm="fhir"`}
	}
	return &client, nil
}

// known are the tokens of these tests.
var known = identities{
	"right":  {ID: "client-1", Scopes: auth.ParseScopes("system/*.rs")},
	"narrow": {ID: "client-1", Scopes: auth.ParseScopes("system/Patient.rs system/Condition.read")},
	"other":  {ID: "client-2", Scopes: auth.ParseScopes("system/*.rs")},
	"blind":  {ID: "client-3", Scopes: auth.ParseScopes("system/Basic.rs")},
}

// judged makes a house whose clients are judged by their tokens.
func judged(c *proxy.Config) {
	c.AuthMode, c.Auth = auth.JWT, known
	c.GroupRules = map[string]proxy.GroupRule{
		"client-1": {Deny: []string{"forbidden-group"}}, proxy.AnyClient: {Allow: []string{"demo-group"}},
	}
}

// accepting makes the engine take every kick-off.
func (h *house) accepting() *house {
	h.exports.kickOff = func(kickoff state.Kickoff) (*state.Job, error) { return &state.Job{ID: "new", Kickoff: kickoff}, nil }
	return h
}

// want is what becomes of a kick-off.
type want struct {
	status   int
	withheld string // beginning and number of the types, or all of them
}

func (h *house) checkKickoff(target, token string, want want) {
	h.t.Helper()
	asked := len(h.exports.asked)
	got := h.ask(http.MethodGet, h.base+target, "Authorization", token)
	if got.status != want.status {
		h.t.Errorf("%s with %q: got %d, want %d: %s", target, token, got.status, want.status, got.body)
	}
	if want.status != http.StatusAccepted {
		if code := map[int]string{401: "login", 403: "forbidden"}[want.status]; code != "" {
			checkOutcome(h.t, got, want.status, code)
		}
		if (want.status == http.StatusUnauthorized) != (got.header.Get("WWW-Authenticate") != "") {
			h.t.Errorf("%s with %q: WWW-Authenticate %q", target, token, got.header.Get("WWW-Authenticate"))
		}
		if len(h.exports.asked) != asked {
			h.t.Errorf("%s with %q is refused and done", target, token)
		}
		return
	}
	kickoff := h.exports.asked[len(h.exports.asked)-1]
	if withheld := strings.Join(kickoff.Withheld, " "); withheld != want.withheld {
		h.t.Errorf("%s with %q: withheld %q, want %q", target, token, withheld, want.withheld)
	}
	told := slices.ContainsFunc(kickoff.Ignored, func(i state.Issue) bool { return i.Code == "suppressed" })
	if told != (len(kickoff.Withheld) > 0) {
		h.t.Errorf("%s with %q: what is withheld is told: %v", target, token, told)
	}
}

// Ensure that a kick-off holds what its token is for, and is refused where it names more.
func TestScopesNarrowAKickoff(t *testing.T) {
	h, _ := newFHIRHouse(t, judged)
	h.accepting()
	for _, row := range []struct {
		target, token string
		want          want
	}{
		{"/Patient/$export", "Bearer right", want{202, ""}},
		{"/Patient/$export", "Bearer narrow", want{202, "Group Observation Practitioner"}},
		{"/Patient/$export?_type=Patient", "Bearer narrow", want{202, ""}},
		{"/Patient/$export?_type=Patient,Observation", "Bearer narrow", want{403, ""}},
		{"/Patient/$export?_typeFilter=Observation%3Fcode%3D1", "Bearer narrow", want{403, ""}},
		{"/$export?_type=Patient&includeAssociatedData=RelevantProvenanceResources", "Bearer narrow", want{403, ""}},
		{"/$export?_type=Patient&organizeOutputBy=Practitioner", "Bearer narrow", want{403, ""}},
		{"/$export?_type=Patient&organizeOutputBy=Patient", "Bearer narrow", want{202, ""}},
		{"/Patient/$export", "Bearer blind", want{403, ""}},
		{"/$export", "", want{401, ""}},
		{"/$export", "Bearer", want{401, ""}},
		{"/$export", "Bearer nobody", want{401, ""}},
		{"/Group/demo-group/$export", "Bearer right", want{202, ""}},
		{"/Group/demo-group/$export", "Bearer narrow", want{403, ""}},
		{"/Group/demo-group/$export", "Bearer other", want{202, ""}},
		{"/Group/forbidden-group/$export", "Bearer right", want{403, ""}},
		{"/Group/another-group/$export", "Bearer other", want{403, ""}},
	} {
		h.checkKickoff(row.target, row.token, row.want)
	}
	got := h.ask(http.MethodGet, h.base+"/$export?_type=Observation", "Authorization", "Bearer narrow", "Prefer", "respond-async, handling=lenient")
	checkOutcome(t, got, http.StatusForbidden, "forbidden") // leniency is for what is not understood
	for _, kickoff := range h.exports.asked {
		if kickoff.Client == "" || !kickoff.Guarded {
			t.Errorf("a kick-off with a token is of %q, guarded: %v", kickoff.Client, kickoff.Guarded)
		}
	}
}

// owned is a job that client-1 began.
func owned(t *testing.T, edit func(*proxy.Config)) *house {
	t.Helper()
	h, sample := newFHIRHouse(t, edit)
	sample.Gate = gate
	job := completed()
	job.Kickoff.Client, job.Kickoff.Guarded, job.Kickoff.Types = "client-1", true, []string{"Observation", "Patient"}
	job.Types = job.Kickoff.Types
	h.addJob(job, twoFiles)
	return h
}

// Ensure that a job is there for its client alone, with a token that is enough for it.
func TestJobBelongsToItsClient(t *testing.T) {
	modes := map[string]struct {
		edit   func(*proxy.Config)
		tokens map[string]int
	}{
		"jwt": {judged, map[string]int{
			"": 401, "Bearer": 401, "Bearer nobody": 401, "Bearer other": 404, "Bearer narrow": 403, "Bearer right": 200,
		}},
		"upstream": {nil, map[string]int{
			"": 401, "Bearer": 401, "Bearer nobody": 401, "Bearer opaque": 404, bearer("client-1", "forged"): 401, bearer("client-2", "right"): 404,
			bearer("client-1", "narrow"): 403, bearer("client-1", "part"): 403, bearer("client-1", "right"): 200, bearer("client-1", "user"): 403,
		}},
	}
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			h := owned(t, mode.edit)
			for token, status := range mode.tokens {
				for _, method := range []string{http.MethodGet, http.MethodDelete} {
					if method == http.MethodDelete && status == http.StatusOK {
						continue
					}
					got := h.ask(method, h.base+"/$export-status/0b6a", "Authorization", token)
					if got.status != status {
						t.Errorf("%s with %.12q: got %d, want %d: %s", method, token, got.status, status, got.body)
					}
					if status == http.StatusUnauthorized && got.header.Get("WWW-Authenticate") == "" {
						t.Errorf("%s with %.12q: no WWW-Authenticate", method, token)
					}
					if status == http.StatusNotFound {
						unknown := h.ask(method, h.base+"/$export-status/unknown", "Authorization", token)
						if unknown.unnamed() != got.unnamed() || unknown.status != got.status {
							t.Errorf("a job of another client is not answered like one that is not there: %s", got.body)
						}
					}
				}
			}
			if got := h.ask(http.MethodDelete, h.base+"/$export-status/0b6a", "Authorization", bearer("client-1", "right")); mode.edit == nil && got.status != http.StatusAccepted {
				t.Errorf("DELETE by its client: got %d %s", got.status, got.body)
			}
		})
	}
}

// Ensure that the status of an export without _type is for a token that may read all that the export shows; while it shows
// nothing, for one that may read something of it.
func TestStatusNeedsWhatTheExportShows(t *testing.T) {
	h, sample := newFHIRHouse(t, func(c *proxy.Config) {
		asSidecar(t)(c)
		c.GroupRules = map[string]proxy.GroupRule{"client-1": {Deny: []string{"closed"}}} // since the kick-off
	})
	sample.Gate = gate
	job := completed()
	job.Kickoff.Client, job.Kickoff.Guarded = "client-1", true
	h.addJob(job, twoFiles)
	organized := job
	organized.ID, organized.Folder, organized.Kickoff.OrganizeBy = "organized", "organized", "Patient"
	organized.Types = []string{"Observation", "Patient"}
	h.addJob(organized, map[string]string{"Patient": "{}\n"})
	beside := job // what it shows besides what was named came by includeAssociatedData
	beside.ID, beside.Folder, beside.Kickoff.Types = "beside", "beside", []string{"Patient"}
	h.addJob(beside, twoFiles)
	group := job
	group.ID, group.Folder, group.Kickoff.Level, group.Kickoff.Group = "group", "group", state.Group, "closed"
	h.addJob(group, twoFiles)
	running := job
	running.ID, running.Folder, running.Status = "running", "running", state.InProgress
	h.addJob(running, nil)
	withheld := running // as long as there is no file its client is asked for what it was let have
	withheld.ID, withheld.Folder, withheld.Kickoff.Types = "withheld", "withheld", nil
	withheld.Kickoff.Withheld = []string{"Condition", "Group", "Patient", "Practitioner"}
	h.addJob(withheld, nil)
	for _, row := range []struct {
		job, kind string
		want      int
	}{
		{job.ID, "right", 200},
		{job.ID, "narrow", 403},
		{job.ID, "part", 403},
		{beside.ID, "right", 200},
		{beside.ID, "narrow", 403},
		{group.ID, "right", 403},
		{organized.ID, "right", 200},
		{organized.ID, "narrow", 403},
		{running.ID, "right", 202},
		{running.ID, "narrow", 202},
		{running.ID, "forged", 401},
		{withheld.ID, "observations", 202},
		{withheld.ID, "forged", 401},
	} {
		if got := h.ask(http.MethodGet, h.base+"/$export-status/"+row.job, "Authorization", bearer("client-1", row.kind)); got.status != row.want {
			t.Errorf("status of %s with %s: got %d, want %d: %s", row.job, row.kind, got.status, row.want, got.body)
		}
	}
}

// Ensure that what an export holds only since its rows refer to it needs a scope, too.
func TestStatusNeedsScopesForReferencedTypes(t *testing.T) {
	h, _ := newFHIRHouse(t, judged)
	job := completed()
	job.Kickoff.Client, job.Kickoff.Guarded, job.Types = "client-1", true, []string{"Patient"}
	job.Referenced = []string{"Practitioner"}
	h.addJob(job, twoFiles)
	for token, want := range map[string]int{"Bearer right": 200, "Bearer narrow": 403} {
		if got := h.ask(http.MethodGet, h.base+"/$export-status/"+job.ID, "Authorization", token); got.status != want {
			t.Errorf("%s: got %d, want %d: %s", token, got.status, want, got.body)
		}
	}
}

// bearer is a token that names its client and is not signed: what it is worth is the server's to say.
func bearer(client, kind string) string {
	scope := "system/*.rs"
	if kind == "user" {
		scope = "user/*.rs"
	}
	text := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return "Bearer " + text(`{"alg":"RS256"}`) + "." + text(fmt.Sprintf(`{"client_id":%q,"scope":%q}`, client, scope)) + "." + text(kind)
}

// gate is a FHIR server's own rules for the tokens of bearer and for an opaque one.
func gate(r *http.Request) *fhirtest.Access {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	kind, err := base64.RawURLEncoding.DecodeString(token[strings.LastIndex(token, ".")+1:])
	if err != nil {
		kind = nil
	}
	switch {
	case token == "", r.Header.Get("Authorization") == "Basic sidecar", token == "opaque", string(kind) == "right", string(kind) == "user":
		return &fhirtest.Access{}
	case string(kind) == "narrow":
		return &fhirtest.Access{Types: []string{"Patient", "Group"}}
	case string(kind) == "observations":
		return &fhirtest.Access{Types: []string{"Observation"}}
	case string(kind) == "part":
		return &fhirtest.Access{Sees: func(typ, id string) bool { return typ != "Observation" || id < "obs-00002" }}
	}
	return nil
}

// asSidecar gives the sidecar credentials of its own.
func asSidecar(t *testing.T) func(*proxy.Config) {
	return func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: c.Upstream.String(), Credentials: fhir.Static{"Authorization": {"Basic sidecar"}}})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	}
}

// Ensure that the FHIR server's own rules for a client narrow its kick-offs, be they told by a status or by fewer rows.
func TestUpstreamNarrowsAKickoff(t *testing.T) {
	h, sample := newFHIRHouse(t, asSidecar(t))
	sample.Gate = gate
	h.accepting()
	for _, row := range []struct {
		target, token string
		want          want
	}{
		{"/Patient/$export", bearer("client-1", "right"), want{202, ""}},
		{"/Patient/$export", "Bearer opaque", want{202, ""}},
		{"/Patient/$export", bearer("client-1", "narrow"), want{202, "Condition Observation Practitioner"}},
		{"/Patient/$export?_type=Condition", bearer("client-1", "narrow"), want{403, ""}},
		{"/Patient/$export", bearer("client-1", "part"), want{202, "Observation"}},
		{"/Patient/$export?_type=Observation", bearer("client-1", "part"), want{403, ""}},
		{"/Patient/$export?_type=Patient", bearer("client-1", "part"), want{202, ""}},
		{"/Patient/$export", bearer("client-1", "user"), want{403, ""}},
		{"/Patient/$export", bearer("client-1", "forged"), want{401, ""}},
		{"/Group/demo-group/$export?_type=Patient", bearer("client-1", "narrow"), want{202, ""}},
	} {
		h.checkKickoff(row.target, row.token, row.want)
	}
	for _, kickoff := range h.exports.asked {
		if !kickoff.Guarded || kickoff.Client != "client-1" && kickoff.Client != "" {
			t.Errorf("a kick-off is of %q, guarded: %v", kickoff.Client, kickoff.Guarded)
		}
	}
}

// Ensure that a search that the server refuses to everybody is not held against the client.
func TestSearchThatNobodyMayIsNotADenial(t *testing.T) {
	for _, status := range []int{400, 500} {
		h, sample := newFHIRHouse(t, asSidecar(t))
		h.accepting()
		sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Condition" }, Status: status, Times: -1})
		h.checkKickoff("/Patient/$export", "Bearer opaque", want{202, ""})
		sample.ClearFaults()
		sample.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool {
				return r.URL.Path == "/fhir/Condition" && r.Header.Get("Authorization") != "Basic sidecar"
			},
			Status: status, Times: -1,
		})
		if status == 400 {
			h.checkKickoff("/Patient/$export", "Bearer another", want{202, "Condition"})
		}
	}
}
