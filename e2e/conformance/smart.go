package conformance

import "net/http"

func smartRows() []Row {
	return section("SMART Backend Services",
		row("S-1", shall, "a token is validated, with its expiry and its scopes", validated, needsTokens),
		row("S-2", should, "a 401 has WWW-Authenticate: Bearer", challenge, needsTokens),
		row("S-3", shall, "scopes are understood in both syntaxes", scopes, needsTokens),
		row("S-4", shall, "one export may be followed with several tokens of its client", severalTokens, needsTokens),
	)
}

func validated(c *check) {
	for what, token := range map[string]string{"an unknown token": "no-such-token", "an expired token": c.grant(Grant{Expired: true})} {
		c.refusedWith("a kick-off with "+what, c.try(kickoff{query: "_type=Patient", token: token}), 401)
		c.refusedWith("a status request with "+what, c.send(request{url: c.patients().status, token: token}), 401)
	}
	narrow := c.grant(Grant{Scopes: "system/Patient.rs"})
	c.refusedWith("a kick-off beyond the scopes", c.try(kickoff{query: "_type=Condition", token: narrow}), 401, 403)
}

func challenge(c *check) {
	a := c.try(kickoff{query: "_type=Patient", token: "no-such-token"})
	c.refusedWith("a kick-off with an unknown token", a, 401)
	if got := before(a.header.Get("WWW-Authenticate"), " "); got != "Bearer" {
		c.errorf("WWW-Authenticate %q, want Bearer", a.header.Get("WWW-Authenticate"))
	}
}

func scopes(c *check) {
	for _, scope := range []string{"system/*.read", "system/Patient.read", "system/*.rs", "system/Patient.rs"} {
		if a := c.try(kickoff{query: "_type=Patient", token: c.grant(Grant{Scopes: scope})}); a.status != http.StatusAccepted {
			c.errorf("%s: status %d, want 202", scope, a.status)
		}
	}
	c.refusedWith("a scope of another type", c.try(kickoff{query: "_type=Patient", token: c.grant(Grant{Scopes: "system/Condition.rs"})}), 401, 403)
}

// severalTokens relies on every request of the suite having a token of its own.
func severalTokens(c *check) {
	if first, second := c.Token(Grant{}), c.Token(Grant{}); first == second {
		c.lack("a new token for each request")
	}
	e := c.patients()
	if e.last.status != http.StatusOK {
		c.errorf("status %d, want 200", e.last.status)
	}
}
