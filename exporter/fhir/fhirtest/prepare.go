package fhirtest

import (
	"net/http"
	"slices"
	"strings"
)

// tooManyPatients is what Epic adds to a search of patients that it cuts.
var tooManyPatients = []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"too-costly",` +
	`"details":{"coding":[{"code":"4127"}],"text":"The search found too many patients."}}]}`)

// Poison makes a row one that the server cannot write: a read of it answers 500, and so does every search page that
// would hold it, or, with PoisonOutcome, such a page lacks it.
func (s *Server) Poison(typ, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.poisoned[typ+"/"+id] = true
}

// Heal takes Poison back.
func (s *Server) Heal(typ, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.poisoned, typ+"/"+id)
}

func (s *Server) isPoisoned(r *row) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.poisoned[r.name()]
}

// errPoisoned is the answer in place of a row that cannot be written.
func errPoisoned() error {
	return refuse(http.StatusInternalServerError, "a resource cannot be written")
}

// prepare brings a page into the form that the personality gives it. It fails when the page cannot be written.
func (s *Server) prepare(c *call, p *page) error {
	if p.next != "" && s.p.LoopingNext {
		p.next = c.base + strings.TrimPrefix(c.r.URL.Path, s.base)
		if c.r.URL.RawQuery != "" {
			p.next += "?" + c.r.URL.RawQuery
		}
	}
	if p.kind == searchset {
		if err := s.prepareRows(c, p); err != nil {
			return err
		}
		if p.total != nil {
			total := s.p.total(*p.total, p.next != "")
			p.total = &total
		}
	}
	p.self = s.dress(c, p.self)
	if p.next != "" {
		p.next = s.dress(c, p.next)
	}
	return nil
}

// prepareRows loads the bodies where that comes after the search, and deals with what cannot be written.
func (s *Server) prepareRows(c *call, p *page) error {
	if len(p.rows) > 0 && (s.p.BodiesLater || s.p.Paging == CachedPages) {
		if s.BeforeBodies != nil {
			s.BeforeBodies(c.r)
		}
		p.rows = s.today(p.rows)
	}
	if s.p.OutcomeFirst != "" {
		p.notes = slices.Insert(slices.Clone(p.notes), 0, outcome(s.p.OutcomeFirst, "processing", "an outcome is part of this answer"))
	}
	if !slices.ContainsFunc(p.rows, s.isPoisoned) {
		return nil
	}
	if s.p.PoisonOutcome == "" {
		return errPoisoned()
	}
	p.rows = keep(p.rows, func(r *row) bool { return !s.isPoisoned(r) })
	p.notes = append(slices.Clone(p.notes), outcome(s.p.PoisonOutcome, "exception", "a resource cannot be written and was left out"))
	return nil
}

// total is the number that the server tells for a result of n rows, of which some are still to come or not.
func (p *Personality) total(n int, more bool) int {
	if p.EstimateAbove > 0 && n > p.EstimateAbove || p.EstimateUntilLast && more {
		return n + n/8 + 1
	}
	return n
}

// dress brings a link, made as a whole address, into the form of the personality.
func (s *Server) dress(c *call, link string) string {
	scheme, address, _ := strings.Cut(link, "://")
	rest := strings.TrimPrefix(link, c.base)
	switch s.p.Links {
	case BasePathLinks:
		return s.base + rest
	case PathOnlyLinks:
		return rest
	case RelativeLinks:
		return strings.TrimPrefix(rest, "/")
	case QueryLinks:
		_, query, _ := strings.Cut(rest, "?")
		return "?" + query
	case SchemelessLinks:
		return address
	case DoublePortLinks:
		host, path, _ := strings.Cut(address, "/")
		_, port, ok := strings.Cut(host, ":")
		if !ok {
			host, port = host+":80", "80"
		}
		return scheme + "://" + host + ":" + port + "/" + path
	case BaselessLinks:
		return strings.TrimSuffix(c.base, s.base) + rest
	}
	return link
}

// today replaces rows by their current versions: a server that caches ids loads the bodies when the page is read.
func (s *Server) today(rows []*row) []*row {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make([]*row, 0, len(rows))
	for _, r := range rows {
		if r = s.currentLocked(r.typ, r.id); r != nil && !r.deleted() {
			now = append(now, r)
		}
	}
	return now
}
