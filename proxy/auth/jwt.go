package auth

import (
	"context"
	"net/http"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// verifier checks tokens that are JWTs by the issuer's keys.
type verifier struct {
	rules
	algorithms []jose.SignatureAlgorithm
	keys       *keySet
}

// Authorize checks the token's signature, issuer, audience and times.
func (v *verifier) Authorize(ctx context.Context, header http.Header) (*Client, error) {
	token, err := bearer(header)
	if err != nil {
		return nil, err
	}
	signed, err := jose.ParseSignedCompact(token, v.algorithms)
	if err != nil {
		return nil, invalid("the access token is not a JWT with a signature that is allowed here")
	}
	if _, critical := signed.Signatures[0].Protected.ExtraHeaders["crit"]; critical { // no extension is understood here
		return nil, invalid("the access token needs an extension that is not known here")
	}
	payload, err := v.payload(ctx, signed)
	if err != nil {
		return nil, err
	}
	var said claims
	if err := json.Unmarshal(payload, &said); err != nil {
		return nil, invalid("what the access token says cannot be read")
	}
	if err := v.check(&said); err != nil {
		return nil, err
	}
	if said.Expiry == nil {
		return nil, invalid("the access token never expires")
	}
	return said.exporting()
}

// payload returns what is signed. Where no key that is known fits, the issuer may have new ones. Keys that the token itself
// names or holds (jku, x5u, jwk, x5c) count for nothing.
func (v *verifier) payload(ctx context.Context, signed *jose.JSONWebSignature) ([]byte, error) {
	header := signed.Signatures[0].Protected
	v.keys.renew(ctx, false)
	for _, again := range []bool{false, true} {
		if again {
			v.keys.renew(ctx, true)
		}
		for _, key := range v.keys.find(header.KeyID, header.Algorithm) {
			if payload, err := signed.Verify(key); err == nil {
				return payload, nil
			}
		}
	}
	if v.keys.away() {
		return nil, unavailable()
	}
	return nil, invalid("the access token is not signed by a key of its issuer")
}
