package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// errFilter ends a job with a _typeFilter that the server does not evaluate: without it the export would hold more than was
// asked for.
var errFilter = errors.New("the FHIR server does not evaluate a _typeFilter")

// filtersOf are the queries of _typeFilter for a type, of which a resource has to match one; none where it is not filtered.
func (r *run) filtersOf(typ string) []string {
	if r.associates(typ) { // it is added behind the filters
		return nil
	}
	var queries []string
	for _, filter := range r.job.Kickoff.Filters {
		if filter.Type == typ {
			queries = append(queries, filter.Query)
		}
	}
	return queries
}

// asOfAlone tells whether a resource's version as of T alone decides that it belongs to the export, so that no newer one may
// stand for it.
func (r *run) asOfAlone(typ string) bool {
	return !r.job.Kickoff.Until.IsZero() && !r.associates(typ) || len(r.filtersOf(typ)) > 0
}

// filterBy puts the type's filters into a slice, after a look at how the server takes each of them.
func (r *run) filterBy(ctx context.Context, slice *state.Slice) error {
	slice.Filters = r.filtersOf(slice.Type)
	for _, query := range slice.Filters {
		slice.Post = slice.Post || len(query) > maxListBytes && r.profile.PostSearch
	}
	if len(slice.Filters) == 0 {
		return nil
	}
	if err := r.selfLinkIsHonest(ctx, slice.Type); err != nil {
		return err
	}
	for _, q := range windowQueries(slice) {
		err := r.evaluates(ctx, q)
		if isTooLong(err) && !slice.Post && r.profile.PostSearch {
			slice.Post, q.Post = true, true
			err = r.evaluates(ctx, q)
		}
		if isTooLong(err) {
			err = fmt.Errorf("%w: one of %s is longer than the server takes (status %d)", errFilter, q.Type, fhir.StatusOf(err))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isTooLong tells whether a server finds an address or a form too long.
func isTooLong(err error) bool {
	status := fhir.StatusOf(err)
	return status == http.StatusRequestURITooLong || status == http.StatusRequestEntityTooLarge
}

// evaluates asks for one row that matches a filter. A server that refuses the type without the filter too wants something
// else, such as a Patient.
func (r *run) evaluates(ctx context.Context, q fhir.Query) error {
	q.From, q.To, q.Count = time.Time{}, time.Time{}, 1
	err := r.firstPage(ctx, q)
	if status := fhir.StatusOf(err); status != http.StatusBadRequest && status != http.StatusUnprocessableEntity {
		return err
	}
	q.Filter = nil
	if without := r.firstPage(ctx, q); without != nil {
		return notAnswered(without)
	}
	return fmt.Errorf("%w: it refuses one of %s (status %d)", errFilter, q.Type, fhir.StatusOf(err))
}

// selfLinkIsHonest tells whether the server's self links lack a parameter that it does not know, or its searches refuse one.
// Where a link repeats whatever was asked it says nothing about what was applied.
func (r *run) selfLinkIsHonest(ctx context.Context, typ string) error {
	if r.profile.StrictHandling {
		return nil
	}
	unknown := []fhir.QueryParam{{Name: "no-such-param-x", Value: "1"}}
	err := r.firstPage(ctx, fhir.Query{Type: typ, Count: 1, Filter: unknown})
	switch {
	case err == nil:
		return fmt.Errorf("%w: its self links repeat what it ignores", errFilter)
	case errors.Is(err, fhir.ErrNotApplied):
		return nil
	}
	return notAnswered(err)
}

// firstPage asks for a page of which only the answer is of interest.
func (r *run) firstPage(ctx context.Context, q fhir.Query) error {
	return r.pace.do(ctx, func() error {
		page, err := r.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		return eachRow(page, func(*fhir.Entry) error { return nil })
	})
}

// windowQueries are the searches of a slice's window without its lists: one for each filter.
func windowQueries(slice *state.Slice) []fhir.Query {
	q := fhir.Query{Type: slice.Type, From: slice.From, To: slice.To, Post: slice.Post}
	if len(slice.Filters) == 0 {
		return []fhir.Query{q}
	}
	queries := make([]fhir.Query, len(slice.Filters))
	for i, filter := range slice.Filters {
		queries[i] = q
		queries[i].Filter = fhir.ParseCriteria(filter)
	}
	return queries
}

// fitsFilters tells whether a slice's lists ask by other parameters than its filters: of the same one twice some servers take
// one only.
func fitsFilters(slice *state.Slice) bool {
	for _, filter := range slice.Filters {
		for _, criterion := range fhir.ParseCriteria(filter) {
			name, _, _ := strings.Cut(criterion.Name, ":")
			name, _, _ = strings.Cut(name, ".")
			if slices.ContainsFunc(slice.Lists, func(list string) bool { return strings.TrimPrefix(list, hasPrefix) == name }) {
				return false
			}
		}
	}
	return true
}

// unmatched tells which resources of a filtered type are not added to the output although they were changed and the crawl did
// not write what they were at T: they do not match, as far as they have not changed since. Of the others nobody knows.
func (t *typeRepair) unmatched(ctx context.Context, w *walk, ids []string) (map[string]bool, error) {
	if len(t.filtersOf(t.typ)) == 0 {
		return nil, nil
	}
	unmatched, still := map[string]bool{}, []string{}
	for _, id := range ids {
		c := t.changes.byID[id]
		if c.captured || !c.known || c.deleted {
			continue
		}
		belongs := true
		if c.size > 0 {
			row, err := t.log.body(c, id)
			if err != nil {
				return nil, err
			}
			if belongs, err = w.filter.keep(row); err != nil {
				return nil, err
			}
		}
		switch {
		case belongs && c.topVersion == c.version:
			still = append(still, id)
			continue
		case belongs:
			t.left++
		}
		unmatched[id] = true
	}
	size := 1
	if t.profile.IDLists {
		size = min(maxListIDs, t.pageSize())
		size = min(size, maxListBytes/(longestID+1))
	}
	for part := range slices.Chunk(still, size) {
		found, err := t.matching(ctx, part)
		if err != nil {
			return nil, fmt.Errorf("ask which changed resources match _typeFilter: %w", err)
		}
		for _, id := range part {
			version, matches := found[id]
			if unmatched[id] = version != t.changes.byID[id].version; matches && unmatched[id] { // changed meanwhile
				t.left++
			}
		}
	}
	return unmatched, nil
}

// longestID is how long FHIR lets an id be.
const longestID = 64

// matching asks for some resources with each of the type's filters, and returns the versions of those that match. It asks
// by POST only where the address is too long: the self links of HAPI do not repeat the parameters of a form.
func (t *typeRepair) matching(ctx context.Context, ids []string) (map[string]string, error) {
	whole := &state.Slice{Type: t.typ, Filters: t.filtersOf(t.typ)}
	found := map[string]string{}
	for _, q := range windowQueries(whole) {
		q.Count, q.ServerPages = len(ids), true
		q = q.With(fhir.QueryParam{Name: "_id", Value: strings.Join(ids, ",")})
		keep := func(row *fhir.Entry) error {
			if row.Type == t.typ {
				found[row.ID] = row.Version
			}
			return nil
		}
		err := t.eachPage(ctx, q, keep)
		if isTooLong(err) && t.profile.PostSearch {
			q.Post = true
			err = t.eachPage(ctx, q, keep)
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// sayLeft says how many resources were left out, because it is not known whether they matched at T.
func (t *typeRepair) sayLeft(ctx context.Context) error {
	if t.left == 0 {
		return nil
	}
	return t.remark(ctx, state.Issue{
		Severity: "warning", Code: "incomplete",
		Text: numbered(t.left, t.typ+" resource was", t.typ+" resources were") + " changed after the transaction time and before being read: those " +
			"that matched _typeFilter at the transaction time are missing, since a server only tells what matches now",
	})
}

// eachPage hands the rows of a search to fn, over all its pages.
func (r *run) eachPage(ctx context.Context, q fhir.Query, fn func(*fhir.Entry) error) error {
	link := ""
	var links chain
	noted := func(row *fhir.Entry) error {
		links.saw(row)
		return fn(row)
	}
	for {
		next := ""
		err := r.pace.do(ctx, func() error {
			page, err := r.pageOf(ctx, q, link)
			if err != nil {
				return err
			}
			links.begin()
			if err := eachRow(page, noted); err != nil {
				return err
			}
			next, err = page.Next()
			return err
		})
		if err != nil || next == "" {
			return err
		}
		if !links.goesOn(next, links.fresh()) {
			return fmt.Errorf("the server's next links do not end: %w", errIncomplete)
		}
		link = next
	}
}

// pageOf asks for the first page of a search, or the one behind link.
func (r *run) pageOf(ctx context.Context, q fhir.Query, link string) (*fhir.Page, error) {
	if link != "" {
		return r.Client.Follow(ctx, q.Type, "searchset", link)
	}
	return r.Client.Search(ctx, q)
}
