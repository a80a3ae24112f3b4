package auth_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"sidecar/proxy/auth"
)

func TestAcceptedReadsATokenThatTheServerHasChecked(t *testing.T) {
	token := func(payload string) string {
		return "Bearer e30." + strings.TrimRight(encodedText(payload), "=") + ".c2ln"
	}
	for authorization, want := range map[string]string{
		"": "", "Bearer": "", "Basic dTpw": "", "Bearer opaque": "", "Bearer a.b.c": "", "Bearer a.b": "",
		token(`{"client_id":"a","azp":"b","sub":"c"}`):             "a",
		token(`{"azp":"b","sub":"c"}`):                             "b",
		token(`{"sub":"c","scope":"system/*.rs"}`):                 "c",
		token(`{"SUB":"c"}`):                                       "",
		token(`[1]`):                                               "403",
		token(`{"sub":"c","sub":"d"}`):                             "403",
		token(`{"sub":"c","exp":"whatever the server takes"}`):     "c",
		token(`{"sub":"c","scope":"user/*.rs"}`):                   "403",
		token(`{"sub":"c","scp":["patient/*.rs"]}`):                "403",
		token(`{"sub":"c","scope":{"patient/*.rs":true}}`):         "403",
		token(`{"sub":["c"]}`):                                     "403",
		token(`{"client_id":"","azp":"","sub":"","scope":"user"}`): "",
	} {
		client, err := auth.Accepted(http.Header{"Authorization": {authorization}})
		var refusal *auth.Refusal
		switch {
		case errors.As(err, &refusal):
			if want != "403" || refusal.Status != http.StatusForbidden {
				t.Errorf("%q: got %v", authorization, err)
			}
		case err != nil || client.ID != want || client.Scopes != nil:
			t.Errorf("%q: got %+v, %v, want %q", authorization, client, err, want)
		}
	}
	var refusal *auth.Refusal
	_, err := auth.Accepted(http.Header{"Authorization": {token(`{"sub":"c","scope":"user/*.rs"}`), "Bearer opaque"}})
	if !errors.As(err, &refusal) || refusal.Status != http.StatusUnauthorized {
		t.Errorf("two tokens: %v", err)
	}
}
