package fhir

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
)

// MaySearch asks the upstream for one row of the type with the headers of a client instead of the sidecar's own. It
// fails with the ResponseError of the upstream: 401 and 403 say that the client may not.
func (c *Client) MaySearch(ctx context.Context, typ string, credentials http.Header) error {
	return c.maySearch(ctx, typ, Static(credentials))
}

func (c *Client) maySearch(ctx context.Context, typ string, as Credentials) error {
	op := "search " + typ
	q := Query{Type: typ, Count: 1}
	extra, dialect := c.dialect(q)
	query := q.encode(extra...)
	header := http.Header{"Cache-Control": dialect["Cache-Control"]} // strict handling is not asked for: a row is all that counts
	body, _, err := c.small(ctx, op, c.address("/"+typ, query), header, as)
	if err != nil {
		return err
	}
	var bundle struct{ ResourceType string }
	if json.Unmarshal(body, &bundle) != nil || bundle.ResourceType != "Bundle" {
		return fmt.Errorf("%s: not a Bundle: %w", op, ErrMalformed)
	}
	return nil
}

// CanSearch is MaySearch with the sidecar's own credentials.
func (c *Client) CanSearch(ctx context.Context, typ string) error {
	return c.maySearch(ctx, typ, c.own)
}

// countTries is how often the counts of a client and of the sidecar are compared: a write may have come between them.
const countTries = 3

// SeesAll tells whether the upstream counts as many rows of a type for a client as for the sidecar: one that answers each
// user a part of what it has says so by no status. Where it does not count, it is taken to. It fails as MaySearch does.
func (c *Client) SeesAll(ctx context.Context, typ string, credentials http.Header) (bool, error) {
	c.mu.Lock()
	method := c.counting
	c.mu.Unlock()
	if c.Borrows() { // nobody sees more than the client does
		return true, nil
	}
	own, static := c.own.(Static)
	if method == CountNone || static && (len(own) == 0 && len(credentials) == 0 || reflect.DeepEqual(own, Static(credentials))) {
		return true, nil
	}
	for range countTries {
		theirs, err := c.countAs(ctx, Query{Type: typ}, method, Static(credentials))
		if err != nil {
			if status := StatusOf(err); status == http.StatusUnauthorized || status == http.StatusForbidden {
				return false, err
			}
		}
		ours, failed := c.countAs(ctx, Query{Type: typ}, method, c.own)
		switch {
		case err != nil && failed != nil && sameFailure(err, failed): // whoever asks, it does not count
			return true, nil
		case err != nil || failed != nil:
			return false, cmp.Or(err, failed)
		case theirs >= ours:
			return true, nil
		}
	}
	return false, nil
}

// sameFailure tells whether two answers failed in the same way.
func sameFailure(a, b error) bool {
	return StatusOf(a) == StatusOf(b) && (StatusOf(a) != 0 || errors.Is(a, ErrMalformed) && errors.Is(b, ErrMalformed))
}

// MayRead reads a resource with the headers of a client instead of the sidecar's own. It fails as MaySearch does.
func (c *Client) MayRead(ctx context.Context, typ, id string, credentials http.Header) ([]byte, error) {
	return c.readAs(ctx, typ, id, "", Static(credentials))
}

// Borrows tells whether jobs are read with the credentials of their clients.
func (c *Client) Borrows() bool {
	_, borrows := c.own.(*Loans)
	return borrows
}

// Lend takes the headers of the client to which a job belongs, where jobs are read with them.
func (c *Client) Lend(job string, header http.Header) {
	if loans, borrows := c.own.(*Loans); borrows {
		loans.Lend(job, header)
	}
}

// Forget removes what was lent to a job.
func (c *Client) Forget(job string) {
	if loans, borrows := c.own.(*Loans); borrows {
		loans.Forget(job)
	}
}
