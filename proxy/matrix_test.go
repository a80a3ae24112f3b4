package proxy_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"sidecar/proxy"
	"sidecar/proxy/admin"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// matrix says what becomes of every request by the credentials that it comes with. The first two columns have no token; the
// next six a token that does not hold: signed by another key, of another issuer, past its end, before its beginning, without a
// signature, and signed by the public key taken for a shared secret. "patient" is for a single patient, "narrow" is the client's
// own but for Patients alone, "other" is the right token of another client, which may not export the Group.
//
// The three modes that know clients answer alike. JOB belongs to the client of "right" and holds Patients and Observations; MAC
// and LINK are what its own links to an attachment and to a file have.
const matrix = `
jwt introspection upstream                   none empty key issuer expired early alg:none RS/HS patient narrow other right
GET /$export                                  401   401 401    401     401   401      401   401     403    202   202   202
POST /$export                                 401   401 401    401     401   401      401   401     403    202   202   202
POST /$export-v4                              401   401 401    401     401   401      401   401     403    202   202   202
GET /$export?_type=Observation                401   401 401    401     401   401      401   401     403    403   202   202
GET /Patient/$export                          401   401 401    401     401   401      401   401     403    202   202   202
POST /Patient/$export                         401   401 401    401     401   401      401   401     403    202   202   202
POST /Patient/$export-v4                      401   401 401    401     401   401      401   401     403    202   202   202
GET /Group/demo-group/$export                 401   401 401    401     401   401      401   401     403    403   403   202
POST /Group/demo-group/$export                401   401 401    401     401   401      401   401     403    403   403   202
POST /Group/demo-group/$export-v4             401   401 401    401     401   401      401   401     403    403   403   202
GET /$export-status/JOB                       401   401 401    401     401   401      401   401     403    403   404   200
DELETE /$export-status/JOB                    401   401 401    401     401   401      401   401     403    403   404   202
GET /$export-file/JOB/Patient.1.ndjson        401   401 401    401     401   401      401   401     403    403   404   200
HEAD /$export-file/JOB/Patient.1.ndjson       401   401 401    401     401   401      401   401     403    403   404   200
GET /$export-file/JOB/Patient.1.ndjson?mac=   403   403 403    403     403   403      403   403     403    403   403   403
GET /$export-attachment/JOB/MAC/Binary/b      200   200 200    200     200   200      200   200     200    200   200   200
HEAD /$export-attachment/JOB/MAC/Binary/b     200   200 200    200     200   200      200   200     200    200   200   200
GET /$export-attachment/JOB/bad/Binary/b      404   404 404    404     404   404      404   404     404    404   404   404
GET /metadata                                 200   200 200    200     200   200      200   200     200    200   200   200
HEAD /metadata                                200   200 200    200     200   200      200   200     200    200   200   200
GET /Observation                              401   401 401    401     401   401      401   401     200    403   200   200
admin GET /jobs                               401   401 401    401     401   401      401   401     401    401   401   401

none                                         none empty key issuer expired early alg:none RS/HS patient narrow other right
GET /$export                                  202   202 202    202     202   202      202   202     202    202   202   202
POST /$export                                 202   202 202    202     202   202      202   202     202    202   202   202
POST /$export-v4                              202   202 202    202     202   202      202   202     202    202   202   202
GET /Patient/$export                          202   202 202    202     202   202      202   202     202    202   202   202
POST /Patient/$export                         202   202 202    202     202   202      202   202     202    202   202   202
POST /Patient/$export-v4                      202   202 202    202     202   202      202   202     202    202   202   202
GET /Group/demo-group/$export                 202   202 202    202     202   202      202   202     202    202   202   202
POST /Group/demo-group/$export                202   202 202    202     202   202      202   202     202    202   202   202
POST /Group/demo-group/$export-v4             202   202 202    202     202   202      202   202     202    202   202   202
GET /$export-status/JOB                       200   200 200    200     200   200      200   200     200    200   200   200
DELETE /$export-status/JOB                    202   202 202    202     202   202      202   202     202    202   202   202
GET /$export-file/JOB/Patient.1.ndjson        403   403 403    403     403   403      403   403     403    403   403   403
GET /$export-file/JOB/Patient.1.ndjson?LINK   200   200 200    200     200   200      200   200     200    200   200   200
HEAD /$export-file/JOB/Patient.1.ndjson?LINK  200   200 200    200     200   200      200   200     200    200   200   200
GET /$export-attachment/JOB/MAC/Binary/b      200   200 200    200     200   200      200   200     200    200   200   200
HEAD /$export-attachment/JOB/MAC/Binary/b     200   200 200    200     200   200      200   200     200    200   200   200
GET /$export-attachment/JOB/bad/Binary/b      404   404 404    404     404   404      404   404     404    404   404   404
GET /metadata                                 200   200 200    200     200   200      200   200     200    200   200   200
HEAD /metadata                                200   200 200    200     200   200      200   200     200    200   200   200
GET /Observation                              401   401 401    401     401   401      401   401     200    403   200   200
admin GET /jobs                               401   401 401    401     401   401      401   401     401    401   401   401
`

// matrixRow is a request and what becomes of it, by the name of the credentials.
type matrixRow struct {
	method, target string
	admin          bool
	want           map[string]int
}

// matrixOf are the rows by mode.
func matrixOf(t *testing.T) map[auth.Mode][]matrixRow {
	t.Helper()
	rows := map[auth.Mode][]matrixRow{}
	for block := range strings.SplitSeq(strings.TrimSpace(matrix), "\n\n") {
		head, lines, _ := strings.Cut(block, "\n")
		const columns = 12
		words := strings.Fields(head)
		modes, names := words[:len(words)-columns], words[len(words)-columns:]
		for line := range strings.SplitSeq(lines, "\n") {
			row := matrixRow{want: map[string]int{}}
			line, row.admin = strings.CutPrefix(line, "admin ")
			words := strings.Fields(line)
			if len(words) != 2+columns {
				t.Fatalf("a row with %d words: %s", len(words), line)
			}
			row.method, row.target = words[0], words[1]
			for i, name := range names {
				status, err := strconv.Atoi(words[2+i])
				if err != nil {
					t.Fatal(err)
				}
				row.want[name] = status
			}
			for _, mode := range modes {
				rows[auth.Mode(mode)] = append(rows[auth.Mode(mode)], row)
			}
		}
	}
	return rows
}

// lasting is an engine whose jobs stay whatever is asked of it, so that the next request finds what this one found.
type lasting struct{ *exports }

func (lasting) KickOff(_ context.Context, kickoff state.Kickoff) (*state.Job, error) {
	return &state.Job{ID: "new", Kickoff: kickoff}, nil
}
func (lasting) Cancel(context.Context, string) error { return nil }

// Ensure that every request gets what the matrix says, in every mode and with all kinds of credentials, and that no route of
// ours is missing there.
func TestMatrixOfWhoMayDoWhat(t *testing.T) {
	authority := newAuthority(t)
	for mode, rows := range matrixOf(t) {
		t.Run(string(mode), func(t *testing.T) {
			h, sample := newFHIRHouse(t, func(c *proxy.Config) {
				asSidecar(t)(c)
				c.AuthMode, c.Auth, c.Links = mode, authority.authorizer(t, mode), proxy.Stream
				c.GroupRules = map[string]proxy.GroupRule{"laboratory": {Deny: []string{"demo-group"}}}
				c.Exports = lasting{&exports{retention: time.Hour}}
			})
			sample.Gate = authority.gate
			if err := sample.Put([]byte(`{"resourceType":"Binary","id":"b"}`)); err != nil {
				t.Fatal(err)
			}
			job := completed()
			job.AttachmentKey = state.NewAttachmentKey()
			job.Kickoff.Types = []string{"Observation", "Patient"}
			job.Types = job.Kickoff.Types
			if mode != auth.None {
				job.Kickoff.Client, job.Kickoff.Guarded = "warehouse", true
			}
			h.addJob(job, twoFiles)
			operators := admin.New(admin.Config{Metrics: prometheus.NewRegistry(), Exports: h.store, Token: "the-operators-own-token"})
			_, mac, _ := strings.Cut(h.attachment(&job, "Binary/b"), job.ID+"/")
			mac, _, _ = strings.Cut(mac, "/")
			named := strings.NewReplacer("JOB", job.ID, "MAC", mac, "LINK", linkQuery(h, job.ID, authority.authorization["right"]))
			for _, row := range rows {
				for name, want := range row.want {
					var handler http.Handler = operators
					target := named.Replace(row.target)
					if !row.admin {
						handler, target = h.handler, "/fhir"+target
					}
					if got := asked(t, handler, row.method, target, authority.authorization[name]); got != want {
						t.Errorf("%s %s with %q: got %d, want %d", row.method, row.target, name, got, want)
					}
				}
			}
			checkEachRouteHasARow(t, proxy.Routes(h.handler), rows)
		})
	}
}

// linkQuery is what the link to a file of Patients has behind its path.
func linkQuery(h *house, job, authorization string) string {
	h.t.Helper()
	got := h.ask(http.MethodGet, h.base+"/$export-status/"+job, "Authorization", authorization)
	var manifest state.Manifest
	if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
		h.t.Fatalf("%v: %s", err, got.body)
	}
	for _, item := range manifest.Output {
		if item.Type == "Patient" {
			_, query, _ := strings.Cut(item.URL, "?")
			return query
		}
	}
	h.t.Fatal("no file of Patients")
	return ""
}

// asked is the status of a request from another machine.
func asked(t *testing.T, handler http.Handler, method, target, authorization string) int {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	request.Header.Set("Prefer", "respond-async")
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	response := recorder.Result()
	_, _ = io.Copy(io.Discard, response.Body)
	if (response.StatusCode == http.StatusUnauthorized) != (response.Header.Get("WWW-Authenticate") != "") {
		t.Errorf("%s %s: status %d with the challenge %q", method, target, response.StatusCode, response.Header.Get("WWW-Authenticate"))
	}
	return response.StatusCode
}

// checkEachRouteHasARow walks the router: each of its paths has to stand in the matrix with each method that it takes.
func checkEachRouteHasARow(t *testing.T, router *mux.Router, rows []matrixRow) {
	t.Helper()
	covered, example := map[string]bool{}, map[string]string{}
	for _, row := range rows {
		var match mux.RouteMatch
		request := httptest.NewRequestWithContext(t.Context(), row.method, "/fhir"+row.target, nil)
		if row.admin || !router.Match(request, &match) || match.Route == nil { // it is forwarded
			continue
		}
		template, err := match.Route.GetPathTemplate()
		if err != nil {
			t.Fatal(err)
		}
		covered[row.method+" "+template], example[template] = true, request.URL.Path
	}
	err := router.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		template, err := route.GetPathTemplate()
		if err != nil {
			return err
		}
		methods, err := route.GetMethods()
		if err != nil && example[template] != "" { // one of ours, which says itself what it takes
			recorder := httptest.NewRecorder()
			router.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodPut, example[template], nil))
			methods = strings.Split(strings.TrimSuffix(recorder.Header().Get("Allow"), ", "+http.MethodOptions), ", ")
		}
		if len(methods) == 0 {
			t.Errorf("the matrix has no row for the route %s", template)
		}
		for _, method := range methods {
			if !covered[method+" "+template] {
				t.Errorf("the matrix has no row for %s of the route %s", method, template)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
