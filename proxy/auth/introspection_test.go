package auth_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"sidecar/proxy/auth"
)

func (s *issuer) introspection(t *testing.T, change func(*auth.Config)) auth.Authorizer {
	t.Helper()
	return s.authorizer(t, func(c *auth.Config) {
		*c = auth.Config{
			Mode: auth.Introspection, IntrospectionURL: s.URL + "/introspect", ClientID: "side car", ClientSecret: "p:ss word", Leeway: auth.DefaultLeeway,
		}
		if change != nil {
			change(c)
		}
	})
}

func TestIntrospectionJudgesByTheAnswer(t *testing.T) {
	s := newIssuer(t)
	plain := s.introspection(t, nil)
	bound := s.introspection(t, func(c *auth.Config) { c.Issuer, c.Audience = s.URL, audience })
	for name, row := range map[string]struct {
		change claims
		// want without issuer and audience in the configuration, and with them.
		want, wantBound int
	}{
		"active":             {nil, 200, 200},
		"no more than scope": {claims{"iss": nil, "aud": nil, "exp": nil, "iat": nil}, 200, 401},
		"wrong issuer":       {claims{"iss": "https://other"}, 200, 401},
		"wrong audience":     {claims{"aud": []string{"https://other"}}, 200, 401},
		"inactive":           {claims{"active": false}, 401, 401},
		"active in words":    {claims{"active": "true"}, 503, 503},
		"does not say":       {claims{"active": nil}, 401, 401},
		"expired":            {claims{"exp": s.now().Add(-time.Minute).Unix()}, 401, 401},
		"not yet":            {claims{"nbf": s.now().Add(2 * time.Minute).Unix()}, 401, 401},
		"issued later":       {claims{"iat": s.now().Add(2 * time.Minute).Unix()}, 401, 401},
		"nobody":             {claims{"client_id": nil, "sub": nil}, 401, 401},
		"no scope":           {claims{"scope": nil}, 403, 403},
		"scope in a list":    {claims{"scope": []string{"system/Patient.rs"}}, 200, 200},
		"a user's":           {claims{"scope": "user/*.rs system/*.rs"}, 403, 403},
		"a patient's":        {claims{"scope": "launch/patient patient/*.rs"}, 403, 403},
	} {
		answer := s.said(row.change)
		if active, said := row.change["active"]; !said {
			answer["active"] = true
		} else if active == nil {
			delete(answer, "active")
		}
		token := fmt.Sprintf("opaque-%x", name)
		s.with(func() { s.tokens[token] = answer })
		for authorizer, want := range map[auth.Authorizer]int{plain: row.want, bound: row.wantBound} {
			client, got := authorize(t, authorizer, "Bearer "+token)
			if got != want {
				t.Errorf("%s, bound %t: got %d, want %d", name, authorizer == bound, got, want)
			}
			if got == http.StatusOK && (client.ID != "warehouse" || !client.Scopes.Allow("Patient") || client.Scopes.Allow("Group")) {
				t.Errorf("%s: got %+v", name, client)
			}
		}
	}
	posts := len(s.posts)
	for _, wrong := range [][]string{nil, {"Bearer"}, {"Basic eDp5"}, {"Bearer a b"}, {"Bearer a&token=b"}, {"Bearer one-of", "Bearer two-of"}} {
		if _, got := authorize(t, plain, wrong...); got != http.StatusUnauthorized {
			t.Errorf("%q: got %d", wrong, got)
		}
	}
	if len(s.posts) != posts {
		t.Error("the identity server is asked about what is no token")
	}
	last := s.posts[posts-1]
	id, secret, _ := last.BasicAuth()
	if last.Method != http.MethodPost || last.PostForm.Get("token_type_hint") != "access_token" || last.URL.RawQuery != "" || id != "side+car" || secret != "p%3Ass+word" {
		t.Errorf("got %s, %v, %q, %s:%s", last.Method, last.PostForm, last.URL.RawQuery, id, secret)
	}
}

func TestIntrospectionIsKeptForAMinuteAndNotBeyondTheExpiry(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.introspection(t, nil)
	for name, row := range map[string]struct {
		expires, kept time.Duration
	}{"long": {time.Hour, time.Minute}, "short": {20 * time.Second, 20 * time.Second}, "endless": {0, time.Minute}} {
		answer := s.said(claims{"active": true, "exp": s.now().Add(row.expires).Unix()})
		if row.expires == 0 {
			delete(answer, "exp")
		}
		s.with(func() { s.tokens[name] = answer; s.asked = map[string]int{} })
		ask := func(wantStatus, wantAsked int) {
			t.Helper()
			if _, got := authorize(t, authorizer, "Bearer "+name); got != wantStatus || s.count("/introspect") != wantAsked {
				t.Errorf("%s: got %d, asked %d times, want %d and %d", name, got, s.count("/introspect"), wantStatus, wantAsked)
			}
		}
		ask(http.StatusOK, 1)
		s.with(func() { s.tokens[name] = nil }) // revoked
		s.later(row.kept - time.Second)
		ask(http.StatusOK, 1)
		s.later(time.Second)
		ask(http.StatusUnauthorized, 2)
		ask(http.StatusUnauthorized, 3) // what does not hold is not kept
	}
}

func TestIntrospectionNeedsTheIdentityServer(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.introspection(t, nil)
	s.tokens["opaque"] = s.said(claims{"active": true})
	for _, status := range []int{http.StatusUnauthorized, http.StatusInternalServerError, http.StatusFound} {
		s.with(func() { s.status = status })
		if _, got := authorize(t, authorizer, "Bearer opaque"); got != http.StatusServiceUnavailable {
			t.Errorf("its status %d: got %d, want 503", status, got)
		}
	}
	s.with(func() { s.status = http.StatusOK })
	if _, got := authorize(t, authorizer, "Bearer opaque"); got != http.StatusOK {
		t.Errorf("back: got %d", got)
	}
	s.Close()
	if _, got := authorize(t, authorizer, "Bearer opaque"); got != http.StatusOK {
		t.Errorf("known: got %d", got)
	}
	if _, got := authorize(t, authorizer, "Bearer other"); got != http.StatusServiceUnavailable {
		t.Errorf("away: got %d, want 503", got)
	}
}

// Ensure a question that meets the end of a kept connection is asked again over a new one.
func TestIntrospectionOutlivesItsConnection(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.introspection(t, nil)
	answer := s.said(claims{"active": true})
	s.with(func() { s.tokens["first"], s.tokens["second"] = answer, answer })
	if _, got := authorize(t, authorizer, "Bearer first"); got != http.StatusOK {
		t.Errorf("over a new connection: got %d", got)
	}
	s.with(func() { s.cut = true })
	if _, got := authorize(t, authorizer, "Bearer second"); got != http.StatusOK || s.count("/introspect") != 3 {
		t.Errorf("over one that ends: got %d, asked %d times, want 200 and 3", got, s.count("/introspect"))
	}
}

func TestIntrospectionKeepsABoundedNumberOfAnswers(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.introspection(t, nil)
	answer := s.said(claims{"active": true})
	auth.Fill(authorizer)
	s.tokens["opaque"] = answer
	if _, got := authorize(t, authorizer, "Bearer opaque"); got != http.StatusOK || auth.Known(authorizer) != auth.MaxKnown {
		t.Errorf("got %d, %d answers", got, auth.Known(authorizer))
	}
	s.later(2 * time.Minute)
	s.tokens["another"] = answer
	if _, got := authorize(t, authorizer, "Bearer another"); got != http.StatusOK || auth.Known(authorizer) != 1 {
		t.Errorf("when the others have run out: got %d, %d answers", got, auth.Known(authorizer))
	}
}
