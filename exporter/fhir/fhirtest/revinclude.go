package fhirtest

import "slices"

// revInclude is the only `_revinclude` that is offered, as US Core asks for it.
const revInclude = "Provenance:target"

// writeProvenance adds the Provenance that targets a row of the page, behind the rows.
func (s *Server) writeProvenance(b *bundleWriter, c *call, p *page) {
	for _, r := range s.find(&query{typ: "Provenance", order: byID, strong: true}) {
		targets := func(row *row) bool { return slices.Contains(r.refs, ref{"target", row.name()}) }
		if slices.ContainsFunc(p.rows, targets) {
			full := []byte(quote(c.base + "/" + r.name()))
			b.entry(false, []string{"fullUrl", "resource", "search"}, full, r.body, []byte(`{"mode":"include"}`))
		}
	}
}
