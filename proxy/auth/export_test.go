package auth

import "time"

// SetNow gives an Authorizer another clock.
func SetNow(authorizer Authorizer, now func() time.Time) {
	switch a := authorizer.(type) {
	case *verifier:
		a.now, a.keys.now = now, now
	case *introspector:
		a.now = now
	}
}

// MaxKnown is how many answers about tokens are kept.
const MaxKnown = maxKnown

// Known is how many answers about tokens are kept now.
func Known(authorizer Authorizer) int { return len(authorizer.(*introspector).known) }

// Fill keeps as many answers as there may be, that hold for a minute yet.
func Fill(authorizer Authorizer) {
	i := authorizer.(*introspector)
	for n := range maxKnown {
		i.known[tokenHash{byte(n), byte(n >> 8)}] = introspected{until: i.now().Add(knownLifetime)}
	}
}
