package auth

import (
	"context"
	"errors"
	"fmt"
)

// Check asks the identity server of an Authorizer that New has made, as it will be asked for clients, and says in a few
// words what it found. It fails where tokens could not be checked now.
func Check(ctx context.Context, authorizer Authorizer) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	switch a := authorizer.(type) {
	case *verifier:
		keys, lifetime, err := a.keys.download(ctx)
		return fmt.Sprintf("%d keys of the issuer, kept for %s", len(keys), lifetime), err
	case *introspector:
		said, err := a.introspect(ctx, "a-token-that-nobody-has")
		if err == nil && said.Active {
			err = errors.New("it takes any token")
		}
		return "it says of a made-up token that it does not hold", err
	}
	return "", errors.New("auth: nothing to check")
}
