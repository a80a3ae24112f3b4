package fhir

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
)

// MaySearch asks the upstream for one row of the type with the headers of a client instead of the sidecar's own. It
// fails with the ResponseError of the upstream: 401 and 403 say that the client may not.
func (c *Client) MaySearch(ctx context.Context, typ string, credentials http.Header) error {
	op := "search " + typ
	q := Query{Type: typ, Count: 1}
	extra, dialect := c.dialect(q)
	query := q.encode(extra...)
	header := http.Header{"Cache-Control": dialect["Cache-Control"]} // strict handling is not asked for: a row is all that counts
	maps.Copy(header, credentials)
	body, _, err := c.small(ctx, op, c.address("/"+typ, query), header)
	if err != nil {
		return err
	}
	var bundle struct{ ResourceType string }
	if json.Unmarshal(body, &bundle) != nil || bundle.ResourceType != "Bundle" {
		return fmt.Errorf("%s: not a Bundle: %w", op, ErrMalformed)
	}
	return nil
}

// MayRead reads a resource with the headers of a client instead of the sidecar's own. It fails as MaySearch does.
func (c *Client) MayRead(ctx context.Context, typ, id string, credentials http.Header) ([]byte, error) {
	header := http.Header{}
	maps.Copy(header, credentials)
	return c.readWith(ctx, typ, id, "", header)
}
