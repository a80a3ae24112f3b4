package fhir

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// CountMethod is how a server is asked for the number of rows.
type CountMethod string

const (
	// CountSummary is _summary=count.
	CountSummary CountMethod = "summary"
	// CountTotal is _total=accurate with a page of one row.
	CountTotal CountMethod = "total-accurate"
	// CountNone says that the server cannot be asked, or that its counts do not honour filters.
	CountNone CountMethod = "none"
)

// Adopt makes the client speak as the profile says: it counts by its CountMethod and ends windows as its InclusiveLT
// needs. Before it the client counts by _summary=count and takes "lt" at its word.
func (c *Client) Adopt(p *Profile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counting, c.inclusive = p.CountMethod, p.InclusiveLT
}

// adapt gives a query the meaning of "lt" on this server.
func (c *Client) adapt(q Query) Query {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.inclusive = q.inclusive || c.inclusive
	return q
}

// dialect returns what a search needs on this server beside its own parameters. HAPI pretty-prints by default, and with
// no-store it writes no search into its database and is faster, but then gives no next link.
func (c *Client) dialect(q Query) ([]QueryParam, http.Header) {
	header := http.Header{"Prefer": {"handling=strict"}, "Cache-Control": {"no-cache"}}
	c.strong(header)
	if !c.isHAPI() {
		return nil, header
	}
	if !q.ServerPages && q.Count > 0 && q.Count <= hapiMaxResults {
		header.Set("Cache-Control", "no-store, max-results="+strconv.Itoa(q.Count))
	}
	return []QueryParam{{"_pretty", "false"}}, header
}

// strong asks HealthLake to find the version before an update for as long as the new one is not indexed; it finds neither
// otherwise (its documentation, "FHIR Search Consistency Levels").
func (c *Client) strong(header http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.capabilities != nil && strings.Contains(strings.ToLower(c.capabilities.Software), "healthlake") {
		header.Set("x-amz-fhir-history-consistency-level", "strong")
	}
}

// Count asks how many rows q has, by the method that Adopt was told. It fails with ErrMalformed when the answer has no
// total.
func (c *Client) Count(ctx context.Context, q Query) (int64, error) {
	c.mu.Lock()
	method := c.counting
	c.mu.Unlock()
	return c.countBy(ctx, c.adapt(q), method)
}

func (c *Client) countBy(ctx context.Context, q Query, method CountMethod) (int64, error) {
	return c.countAs(ctx, q, method, c.own)
}

// countAs counts with credentials that need not be the sidecar's own.
func (c *Client) countAs(ctx context.Context, q Query, method CountMethod, as Credentials) (int64, error) {
	q.Count, q.Sort, q.IDsOnly = 0, "", false
	how := QueryParam{"_summary", "count"}
	if method == CountTotal { // max-results would cut this total
		q.Count, q.ServerPages, how = 1, true, QueryParam{"_total", "accurate"}
	}
	q = q.With(how)
	extra, header := c.dialect(q)
	if c.isHAPI() && method != CountTotal { // a count writes no search into the database then, and is never cut to max-results
		header.Set("Cache-Control", "no-store, max-results=1")
	}
	page, err := c.ask(ctx, "count", q, extra, header, as)
	if err != nil {
		return 0, err
	}
	if err := page.Each(func(*Entry) error { return nil }); err != nil {
		return 0, err
	}
	if page.Total < 0 {
		return 0, fmt.Errorf("%s: no total: %w", page.op, ErrMalformed)
	}
	return page.Total, nil
}

// ClockSource is where the upstream's clock was read.
type ClockSource string

const (
	// ClockDate is the Date header, in whole seconds.
	ClockDate ClockSource = "date"
	// ClockBundle is meta.lastUpdated of a searchset.
	ClockBundle ClockSource = "bundle"
	// ClockLocal is the sidecar's own clock: the server shows none.
	ClockLocal ClockSource = "local"
)

// Now returns the upstream's clock: the Date header of an answer, else meta.lastUpdated of a searchset, else ours. It
// is at most one second behind, because Date has whole seconds.
func (c *Client) Now(ctx context.Context, typ string) (time.Time, error) {
	now, _, err := c.clock(ctx, typ)
	return now, err
}

func (c *Client) clock(ctx context.Context, typ string) (time.Time, ClockSource, error) {
	query := Query{Type: typ, Count: 1}.encode()
	body, header, err := c.small(ctx, "clock", c.address("/"+typ, query), http.Header{"Cache-Control": {"no-cache"}}, c.own)
	if err != nil {
		return time.Time{}, "", err
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		return date, ClockDate, nil
	}
	var bundle struct{ Meta struct{ LastUpdated string } }
	if json.Unmarshal(body, &bundle) == nil {
		if updated, err := parseStamp(bundle.Meta.LastUpdated); err == nil {
			return updated, ClockBundle, nil
		}
	}
	return time.Now(), ClockLocal, nil
}
