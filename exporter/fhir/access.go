package fhir

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"
)

// MaySearch asks the upstream for one row of the type with the headers of a client instead of the sidecar's own. It
// fails with the ResponseError of the upstream: 401 and 403 say that the client may not.
func (c *Client) MaySearch(ctx context.Context, typ string, credentials http.Header) error {
	return c.maySearch(ctx, typ, Static(credentials))
}

func (c *Client) maySearch(ctx context.Context, typ string, as Credentials) error {
	q := Query{Type: typ, Count: 1}
	extra, dialect := c.dialect(q)
	header := http.Header{"Cache-Control": dialect["Cache-Control"]} // strict handling is not asked for: a row is all that counts
	page, err := c.ask(ctx, "search", q, extra, header, as)
	if err != nil {
		return err
	}
	return page.Each(func(*Entry) error { return nil }) // a row may be a Binary of any size: it is not held
}

// CanSearch is MaySearch with the sidecar's own credentials.
func (c *Client) CanSearch(ctx context.Context, typ string) error {
	return c.maySearch(ctx, typ, c.own)
}

// SeesAll tells whether the upstream counts as many rows of a type for a client as for the sidecar: one that answers each
// user a part of what it has says so by no status. More for the client than for the sidecar are another part, such as those of
// another tenant. Where it does not count, it is taken to see all. It fails as MaySearch does.
//
// A write between the two counts must not look like a row that is hidden. So where the first two differ, only those count that
// were written before this second, and if the client sees all of these, those that were written before the next one, once it
// has come.
func (c *Client) SeesAll(ctx context.Context, typ string, credentials http.Header) (bool, error) {
	if c.Borrows() { // nobody sees more than the client does
		return true, nil
	}
	if own, static := c.own.(Static); static && (len(own) == 0 && len(credentials) == 0 || reflect.DeepEqual(own, Static(credentials))) {
		return true, nil
	}
	if all, err := c.countsAlike(ctx, Query{Type: typ}, credentials); all || err != nil {
		return all, err
	}
	statement, err := c.Capabilities(ctx)
	if err != nil {
		return false, err
	}
	second := time.Now().Add(statement.Ahead).Truncate(time.Second)
	for _, end := range []time.Time{second, second.Add(time.Second)} {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(time.Until(end.Add(-statement.Ahead))):
		}
		all := false
		for range countTries {
			if all, err = c.countsAlike(ctx, Query{Type: typ, To: end}, credentials); all || err != nil {
				break
			}
		}
		if !all {
			return false, err
		}
	}
	return true, nil
}

// countTries is how often the counts of one window are compared: a write that had begun in it may end between them.
const countTries = 2

// countsAlike tells whether a query has as many rows for a client as for the sidecar. The client's are counted first, so that
// what leaves a window in between cannot be missing in its count alone; where it has more, they are counted once more behind,
// when what has left is missing in both.
func (c *Client) countsAlike(ctx context.Context, q Query, credentials http.Header) (bool, error) {
	c.mu.Lock()
	method := c.counting
	c.mu.Unlock()
	if method == CountNone {
		return true, nil
	}
	q = c.adapt(q)
	theirs, err := c.countAs(ctx, q, method, Static(credentials))
	if err != nil && !doesNotCount(err) {
		return false, err
	}
	ours, failed := c.countAs(ctx, q, method, c.own)
	if status := StatusOf(failed); err == nil && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
		return true, nil // what the sidecar may not read it cannot hand out
	}
	if err != nil && failed != nil && doesNotCount(failed) { // whoever asks; of windows alone that says nothing
		return q.To.IsZero(), nil
	}
	if err = cmp.Or(err, failed); err == nil && theirs > ours {
		again, err := c.countAs(ctx, q, method, Static(credentials))
		return again <= ours, err
	}
	return theirs == ours, err
}

// doesNotCount tells whether a count failed for good, and not because of who asked.
func doesNotCount(err error) bool {
	switch status := StatusOf(err); status {
	case 0:
		return errors.Is(err, ErrMalformed)
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	default:
		return status < http.StatusInternalServerError || status == http.StatusNotImplemented
	}
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
