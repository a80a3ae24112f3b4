package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"sidecar/e2e/conformance"
)

// sidecarToken is what the sidecar of the conformance tests reads with.
const sidecarToken = "the-sidecars-own"

// guard stands in front of a FHIR server that asks for tokens, and breaks it for exports when it is told to. It knows the
// tokens that it gave out, as an authorization server and its resource server do together.
type guard struct {
	next http.Handler
	base string // the path of the FHIR base

	mu     sync.Mutex
	grants map[string]conformance.Grant
	fails  map[string]int                    // the status by type
	holds  map[string]map[chan struct{}]bool // by type
}

func newGuard(next http.Handler, base string) *guard {
	return &guard{
		next: next, base: base,
		grants: map[string]conformance.Grant{}, fails: map[string]int{}, holds: map[string]map[chan struct{}]bool{},
	}
}

// token gives out a new token. It says of which client it is, as those of many authorization servers do, and only the guard can
// tell whether it holds.
func (g *guard) token(grant conformance.Grant) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	client := map[bool]string{false: "first", true: "second"}[grant.Other]
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	token := part(`{"alg":"RS256"}`) + "." + part(fmt.Sprintf(`{"client_id":%q,"jti":"%d"}`, client, len(g.grants)+1)) + "." + part("by the guard")
	g.grants[token] = grant
	return token
}

func (g *guard) fail(typ string, status int) (mend func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fails[typ] = status
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.fails, typ)
	}
}

func (g *guard) hold(typ string) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	held := make(chan struct{})
	if g.holds[typ] == nil {
		g.holds[typ] = map[chan struct{}]bool{}
	}
	g.holds[typ][held] = true
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.holds[typ], held)
		close(held)
	})
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, g.base), "/"), "/")
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	status, held := http.StatusOK, []chan struct{}(nil)
	if token == sidecarToken {
		// A kick-off is checked by a search without a window and its count, and exports begin with a look at the clock: none of
		// them is a read of an export. Counts are, but the rows are what is held.
		query := r.URL.Query()
		if query.Has("_lastUpdated") || !query.Has("_summary") && query.Get("_count") != "1" {
			status, held = g.trouble(path[0])
		}
		if query.Has("_summary") {
			held = nil
		}
	} else if path[0] != "metadata" {
		if status = g.judge(token, path, r.Method); status == http.StatusOK {
			status, _ = g.trouble("")
		}
	}
	for _, let := range held {
		select {
		case <-let:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	if status == http.StatusOK {
		g.next.ServeHTTP(w, r)
		return
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.Header().Set("Content-Type", "application/fhir+json")
	w.WriteHeader(status)
	outcome := map[string]any{"resourceType": "OperationOutcome", "issue": []any{map[string]string{"severity": "error", "code": "security"}}}
	_ = json.NewEncoder(w).Encode(outcome) // who has left reads nothing
}

// trouble is what the sidecar gets for a read of a type.
func (g *guard) trouble(typ string) (int, []chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, typ := range []string{typ, ""} {
		if status := g.fails[typ]; status != 0 {
			return status, nil
		}
	}
	return http.StatusOK, slices.Collect(maps.Keys(g.holds[typ]))
}

// judge is what a client's token is good for.
func (g *guard) judge(token string, path []string, method string) int {
	g.mu.Lock()
	grant, known := g.grants[token]
	g.mu.Unlock()
	if !known || grant.Expired {
		return http.StatusUnauthorized
	}
	if grant.Scopes == "" {
		return http.StatusOK
	}
	if method == http.MethodGet && slices.ContainsFunc(strings.Fields(grant.Scopes), func(scope string) bool { return reads(scope, path[0]) }) {
		return http.StatusOK
	}
	return http.StatusForbidden
}

// reads tells whether a SMART scope, in either syntax, lets a type be read and searched.
func reads(scope, typ string) bool {
	rest, _ := strings.CutPrefix(scope, "system/")
	of, rights, _ := strings.Cut(rest, ".")
	return (of == "*" || of == typ) && (rights == "read" || rights == "*" || strings.Contains(rights, "rs"))
}

// Ensure the guard itself tells the tokens apart.
func TestGuardKnowsTokens(t *testing.T) {
	g := newGuard(nil, "/fhir")
	for _, test := range []struct {
		token, path, method string
		want                int
	}{
		{"", "Patient", "GET", 401},
		{"unknown", "Patient", "GET", 401},
		{g.token(conformance.Grant{Expired: true}), "Patient", "GET", 401},
		{g.token(conformance.Grant{}), "Patient", "GET", 200},
		{g.token(conformance.Grant{}), "Patient/1", "PUT", 200},
		{g.token(conformance.Grant{Scopes: "system/Patient.rs"}), "Patient", "GET", 200},
		{g.token(conformance.Grant{Scopes: "system/Patient.rs"}), "Patient/1", "PUT", 403},
		{g.token(conformance.Grant{Scopes: "system/Patient.read"}), "Observation", "GET", 403},
		{g.token(conformance.Grant{Scopes: "system/*.read"}), "Observation", "GET", 200},
	} {
		if got := g.judge(test.token, strings.Split(test.path, "/"), test.method); got != test.want {
			t.Errorf("%s %s with %q: %d, want %d", test.method, test.path, test.token, got, test.want)
		}
	}
}
