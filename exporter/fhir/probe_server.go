package fhir

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// pageSize is probe P6. A server with fewer rows than a page says nothing about its limit; the walk copes with short pages.
func (p *probe) pageSize(ctx context.Context) error {
	_, err := p.first(ctx, "the size of a page", func(ctx context.Context, s *sample) (answer, error) {
		rows := 0
		page, err := p.page(ctx, Query{Type: s.typ, Count: p.wanted, ServerPages: true}, func(*Entry) { rows++ })
		if err != nil {
			return no, err
		}
		next, err := page.Next()
		if err != nil {
			return no, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		p.profile.PageSize = p.wanted
		if next != "" && rows > 0 {
			p.profile.PageSize = rows
		}
		return yes, nil
	})
	return err
}

// strict is probe P7; the same search without the unknown parameter has been answered before.
func (p *probe) strict(ctx context.Context) error {
	got, err := p.first(ctx, "strict handling", func(ctx context.Context, s *sample) (answer, error) {
		err := p.read(ctx, Query{Type: s.typ, Criteria: []QueryParam{{"no-such-param-x", "1"}}, Count: 1}, func(*Entry) {})
		if StatusOf(err) == http.StatusBadRequest {
			return yes, nil
		}
		return no, err
	})
	p.profile.StrictHandling = got
	return err
}

// history is probe P8. It asks types that have rows, since one server answers 404 for the others. One type with a history is
// enough: exports find out for each type by themselves, and should not do without where there is one.
func (p *probe) history(ctx context.Context) error {
	_, err := p.all(ctx, "history of a type", func(ctx context.Context, s *sample) (answer, error) {
		got, err := p.typeHistory(ctx, s.typ)
		p.profile.TypeHistory = p.profile.TypeHistory || got == yes
		return got, err
	})
	for _, row := range []struct {
		what string
		ask  question
		set  *bool
	}{
		{"history of a resource", p.instanceHistory, &p.profile.InstanceHistory},
		{"history of the server", func(ctx context.Context, _ *sample) (answer, error) { return p.typeHistory(ctx, "") }, &p.profile.SystemHistory},
		{"reading a version", p.vread, &p.profile.VRead},
	} {
		if err == nil {
			*row.set, err = p.first(ctx, row.what, row.ask)
		}
	}
	return err
}

// typeHistory asks for what changed from now on, of a type or of the whole server. A server that answers with older
// versions ignores _since; the history is whole then, and only longer than needed.
func (p *probe) typeHistory(ctx context.Context, typ string) (answer, error) {
	since, older := time.Now().Truncate(time.Second), false
	page, err := p.client.History(ctx, typ, "", since, 1)
	if err != nil {
		return no, err
	}
	err = page.Each(func(e *Entry) error {
		older = older || !e.LastUpdated.IsZero() && e.LastUpdated.Before(since)
		return nil
	})
	if err == nil && older && typ != "" {
		p.remark("the history ignores _since: it is read from its newest version down, which takes longer")
	}
	return verdict(err == nil), err
}

// instanceHistory asks for all versions of a row, and as its control for those of nobody. A history that lags may not have the
// newest rows, so it is the oldest one, where the server tells.
func (p *probe) instanceHistory(ctx context.Context, s *sample) (answer, error) {
	versions := func(id string) (own, others int, err error) {
		page, err := p.client.History(ctx, s.typ, id, time.Unix(0, 0), 10)
		if err != nil {
			return 0, 0, err
		}
		err = page.Each(func(e *Entry) error {
			if e.Type == s.typ && e.ID == id {
				own++
			} else if e.Mode != "outcome" && e.Type != "OperationOutcome" {
				others++
			}
			return nil
		})
		return own, others, err
	}
	id := s.rows[0].id
	if p.profile.Sort {
		if err := p.read(ctx, Query{Type: s.typ, Sort: "_lastUpdated", Count: 1}, func(e *Entry) { id = e.ID }); err != nil {
			return no, err
		}
	}
	own, others, err := versions(id)
	if err != nil || own == 0 || others > 0 {
		return no, err
	}
	own, others, err = versions(UnknownID)
	return nothing(own+others == 0, err)
}

// nothing is the verdict on a control that has to find nothing: a refusal is as good as an empty answer.
func nothing(none bool, err error) (answer, error) {
	if err != nil && isAnswer(err) && !errors.Is(err, ErrMalformed) {
		return yes, nil
	}
	return verdict(none), err
}

// vread reads the version of a row, and as its control one that does not exist.
func (p *probe) vread(ctx context.Context, s *sample) (answer, error) {
	row := s.rows[0]
	if row.version == "" {
		return no, nil
	}
	if _, err := p.client.VRead(ctx, s.typ, row.id, row.version); err != nil {
		return no, err
	}
	_, err := p.client.VRead(ctx, s.typ, row.id, UnknownID)
	return nothing(false, err)
}

// post is probe P10.
func (p *probe) post(ctx context.Context) error {
	got, err := p.first(ctx, "searches by POST", func(ctx context.Context, s *sample) (answer, error) {
		for _, control := range []struct {
			id   string
			want int
		}{{UnknownID, 0}, {s.rows[0].id, 1}} {
			rows := 0
			q := Query{Type: s.typ, Criteria: []QueryParam{{"_id", control.id}}, Count: 10, Post: true}
			err := p.read(ctx, q, func(*Entry) { rows++ })
			if err != nil || rows != control.want {
				return no, err
			}
		}
		return yes, nil
	})
	p.profile.PostSearch = got
	return err
}

// clock is probe P12. A clock of whole seconds shows the second that has begun, so the skew is how far that second lies
// outside of the time that the request took.
func (p *probe) clock(ctx context.Context) error {
	_, err := p.first(ctx, "the clock", func(ctx context.Context, s *sample) (answer, error) {
		before := time.Now()
		shown, source, err := p.client.clock(ctx, s.typ)
		if err != nil {
			return no, err
		}
		after, granule := time.Now(), time.Millisecond
		if source == ClockDate {
			granule = time.Second
		}
		p.profile.ClockSource, p.profile.Skew = source, 0
		switch end := shown.Add(granule); {
		case source == ClockLocal:
		case shown.After(after):
			p.profile.Skew = shown.Sub(after).Round(time.Millisecond)
		case end.Before(before):
			p.profile.Skew = end.Sub(before).Round(time.Millisecond)
		}
		return yes, nil
	})
	return err
}
