package fhir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Profile is what the upstream was seen to be able to do. Each answer comes with a negative control, because a
// parameter that a server does not know is often ignored, and then the answer is a superset.
type Profile struct {
	FHIRVersion string
	Software    string
	HAPI        bool
	// Keyset: both bounds of _lastUpdated and the ascending _sort=_lastUpdated are honoured.
	Keyset bool
	// Windows: both bounds of _lastUpdated are honoured, whether or not the sort is.
	Windows bool
	// PostSearch: POST Type/_search takes the parameters as a form.
	PostSearch bool
	// Milliseconds: bounds of _lastUpdated are honoured to the millisecond, not to the second.
	Milliseconds bool
	// Counts: _summary=count gives totals that honour filters.
	Counts bool
	// IDLists: _id takes a list of ids.
	IDLists bool
	// PageSize is the largest _count that the server was seen to honour, and no more than was wanted.
	PageSize int
	// TypeHistory: GET Type/_history works.
	TypeHistory bool
	// Settle is how long after a moment the server may still make writes of that moment visible.
	Settle time.Duration
	// Remarks are what an operator should know, one sentence each.
	Remarks []string
}

// never is a moment after all data. The year 9999 is a 500 on one server.
var never = time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	maxPageSize = 1000
	// probeRows is how many rows of a type are asked about.
	probeRows = 3
	// UnknownID is an id that no server has, for negative controls.
	UnknownID = "b8a6a9a2-0000-4000-8000-6e6f6e65"
)

// defaultSettle gives the settle time of a product (upstreams differ in how long a write takes to be seen).
func defaultSettle(software string) time.Duration {
	name := strings.ToLower(software)
	for _, row := range []struct {
		part   string
		settle time.Duration
	}{
		{"hapi", 10 * time.Second},
		{"firely", 10 * time.Second},
		{"vonk", 10 * time.Second},
		{"aidbox", 10 * time.Second},
		{"healthlake", 60 * time.Second},
		{"google", 60 * time.Second},
		{"linuxforhealth", 125 * time.Second},
		{"ibm", 125 * time.Second},
	} {
		if strings.Contains(name, row.part) {
			return row.settle
		}
	}
	return 5 * time.Second
}

// Probe asks the upstream what it can do, by about twenty small requests on a type that has rows. pageSize is the
// _count that is wanted, 0 for the largest useful one. It fails only when the upstream cannot be reached or refuses to be
// searched at all; what a server cannot do is an answer.
func (c *Client) Probe(ctx context.Context, pageSize int) (*Profile, error) {
	if pageSize == 0 {
		pageSize = maxPageSize
	}
	statement, err := c.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	p := &Profile{
		FHIRVersion: statement.FHIRVersion,
		Software:    strings.TrimSpace(statement.Software + " " + statement.Version),
		HAPI:        statement.IsHAPI(),
		PageSize:    min(pageSize, 100),
		Settle:      defaultSettle(statement.Software),
	}
	probe := &probe{client: c, profile: p, wanted: pageSize}
	if err := probe.findRows(ctx, statement.Types); err != nil {
		return nil, err
	}
	if len(probe.rows) == 0 {
		p.Remarks = append(p.Remarks, "no type has a row that can be read: nothing could be probed")
		return p, nil
	}
	for _, ask := range []func(context.Context) error{probe.counts, probe.bounds, probe.sort, probe.pageSize, probe.history} {
		if err := ask(ctx); err != nil && !isAnswer(err) {
			return nil, err
		}
	}
	return p, nil
}

// probe holds the type that is asked and one of its rows.
type probe struct {
	client  *Client
	profile *Profile
	wanted  int // page size
	typ     string
	rows    []probeRow
}

type probeRow struct {
	id      string
	updated time.Time
}

// isAnswer tells whether an error says that the server cannot do a thing, rather than that it cannot be reached.
func isAnswer(err error) bool {
	var response *ResponseError
	return errors.Is(err, ErrMalformed) || errors.As(err, &response) && !response.Temporary() && response.StatusCode != 401
}

// findRows takes the first type with a row. The types that nearly every server has come first.
func (p *probe) findRows(ctx context.Context, types []string) error {
	order := make([]string, 0, len(types))
	for _, typ := range []string{"Observation", "Encounter", "Condition", "Patient"} {
		if slices.Contains(types, typ) {
			order = append(order, typ)
		}
	}
	for _, typ := range types {
		if !slices.Contains(order, typ) {
			order = append(order, typ)
		}
	}
	for _, typ := range order {
		page, err := p.client.Search(ctx, Query{Type: typ, Count: probeRows})
		if err == nil {
			err = page.Each(func(e *Entry) error {
				if e.Type == typ && e.ID != "" && len(p.rows) < probeRows {
					p.rows = append(p.rows, probeRow{e.ID, e.LastUpdated})
				}
				return nil
			})
		}
		if err != nil && !isAnswer(err) {
			return err
		}
		if len(p.rows) > 0 {
			p.typ = typ
			return nil
		}
	}
	return nil
}

// counts is probe P1.
func (p *probe) counts(ctx context.Context) error {
	all, err := p.client.Count(ctx, Query{Type: p.typ})
	if err != nil {
		return err
	}
	none, err := p.client.Count(ctx, Query{Type: p.typ, Criteria: []QueryParam{{"_id", UnknownID}}})
	if err != nil {
		return err
	}
	late, err := p.client.Count(ctx, Query{Type: p.typ, From: never})
	if err != nil {
		return err
	}
	p.profile.Counts = all > 0 && none == 0 && late == 0
	if !p.profile.Counts || len(p.rows) < 2 {
		return nil
	}
	both, err := p.client.Count(ctx, Query{Type: p.typ, Criteria: []QueryParam{{"_id", p.rows[0].id + "," + p.rows[1].id}}})
	p.profile.IDLists = both == 2
	return err
}

// bounds is P2 to P4: both bounds hold a row at one second (and at one millisecond), and its neighbours do not. One row
// that passes is enough; several are tried, since live traffic may change a row in between.
func (p *probe) bounds(ctx context.Context) error {
	for _, row := range p.rows {
		if row.updated.IsZero() {
			p.profile.Remarks = append(p.profile.Remarks, "resources carry no meta.lastUpdated")
			return nil
		}
		honoured, err := p.honours(ctx, row, time.Second)
		if err != nil {
			return err
		}
		if !honoured {
			continue
		}
		p.profile.Windows, p.profile.Keyset = true, true // the sort is asked next
		// A row in the first millisecond of a second looks the same on a server that cuts fractions.
		if row.updated.Truncate(time.Millisecond).Equal(row.updated.Truncate(time.Second)) {
			continue
		}
		p.profile.Milliseconds, err = p.honours(ctx, row, time.Millisecond)
		if err != nil || p.profile.Milliseconds {
			return err
		}
	}
	return nil
}

func (p *probe) honours(ctx context.Context, row probeRow, granule time.Duration) (bool, error) {
	floor := row.updated.Truncate(granule)
	for _, window := range []struct {
		from, to time.Time
		want     bool
	}{
		{floor, floor.Add(granule), true},
		{floor.Add(granule), never, false},
		{floor.Add(-granule), floor, false},
	} {
		got, err := p.contains(ctx, row.id, window.from, window.to)
		if err != nil || got != window.want {
			return false, err
		}
	}
	return true, nil
}

// contains tells whether the row is among the answer to a window, asked together with the row's own id.
func (p *probe) contains(ctx context.Context, id string, from, to time.Time) (bool, error) {
	page, err := p.client.Search(ctx, Query{
		Type: p.typ, Criteria: []QueryParam{{"_id", id}}, From: from, To: to, Count: 10,
	})
	if err != nil {
		return false, err
	}
	found := false
	err = page.Each(func(e *Entry) error {
		found = found || e.Type == p.typ && e.ID == id
		return nil
	})
	return found, err
}

// sort is P5.
func (p *probe) sort(ctx context.Context) error {
	if !p.profile.Keyset {
		return nil
	}
	p.profile.Keyset = false
	for _, order := range []string{"_lastUpdated", "-_lastUpdated"} {
		page, err := p.client.Search(ctx, Query{Type: p.typ, Sort: order, Count: 50})
		if err != nil {
			return err
		}
		var last time.Time
		monotone := true
		err = page.Each(func(e *Entry) error {
			if e.Type != p.typ {
				return nil
			}
			if !last.IsZero() {
				monotone = monotone && (e.LastUpdated.Equal(last) || e.LastUpdated.After(last) == (order == "_lastUpdated"))
			}
			last = e.LastUpdated
			return nil
		})
		if err != nil || !monotone {
			return err
		}
	}
	p.profile.Keyset = true
	return nil
}

// pageSize is P6. A server with fewer rows than a page says nothing about its limit; the walk copes with short pages.
func (p *probe) pageSize(ctx context.Context) error {
	page, err := p.client.Search(ctx, Query{Type: p.typ, Count: p.wanted, ServerPages: true})
	if err != nil {
		return err
	}
	rows := 0
	err = page.Each(func(e *Entry) error {
		if e.Type == p.typ {
			rows++
		}
		return nil
	})
	if err != nil {
		return err
	}
	next, err := page.Next()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	p.profile.PageSize = p.wanted
	if next != "" && rows > 0 {
		p.profile.PageSize = rows
	}
	return nil
}

// history is P8. It asks a type that has rows, since one server answers 404 for the others.
func (p *probe) history(ctx context.Context) error {
	page, err := p.client.History(ctx, p.typ, "", time.Now(), 1)
	if err != nil {
		return err
	}
	if err := page.Each(func(*Entry) error { return nil }); err != nil {
		return err
	}
	p.profile.TypeHistory = true
	return nil
}
