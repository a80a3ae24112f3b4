package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// narrow holds a kick-off against what its client may read. What it names has to be allowed, or the kick-off is refused; of
// the types that it does not name, those that are not are withheld. Then it has an owner.
func (p *Proxy) narrow(
	ctx context.Context, header http.Header, kickoff *state.Kickoff, statement *fhir.CapabilityStatement, who *asker,
) error {
	if p.AuthMode == auth.None {
		if err := p.mayExportGroup(kickoff, ""); err != nil {
			return err
		}
		return p.findNamed(ctx, kickoff, who)
	}
	kickoff.Client, kickoff.Guarded = who.id, who.guarded
	named, rest, err := p.typesAsked(kickoff, statement)
	if err != nil {
		return err
	}
	if p.AuthMode == auth.Upstream {
		if err := p.askUpstream(ctx, kickoff, named, rest, who); err != nil {
			return err
		}
		client, err := auth.Accepted(header)
		if err != nil {
			return tokenRefusal(err)
		}
		kickoff.Client = client.ID
	} else {
		if kickoff.Level == state.Group {
			named = append(named, "Group")
		}
		if err := narrowByScopes(kickoff, named, rest, who.scopes); err != nil {
			return err
		}
		if err := p.mayExportGroup(kickoff, who.id); err != nil {
			return err // before it is told whether there is such a Group
		}
		if err := p.findNamed(ctx, kickoff, who); err != nil {
			return err
		}
	}
	kickoff.ServerAttachments = p.needsToken(kickoff) || !p.mayReadBinary(ctx, kickoff, statement, who)
	if len(kickoff.Withheld) > 0 {
		kickoff.Ignored = append(kickoff.Ignored, state.Issue{
			Severity: "information", Code: "suppressed", Text: "left out, because this client may not read all of them: " + strings.Join(kickoff.Withheld, ", "),
		})
	}
	return p.mayExportGroup(kickoff, kickoff.Client)
}

// mayReadBinary tells whether a client may read any Binary, so that links of the export may open those that it names. Where that
// is not known, it may not.
func (p *Proxy) mayReadBinary(ctx context.Context, kickoff *state.Kickoff, statement *fhir.CapabilityStatement, who *asker) bool {
	switch {
	case !kickoff.Guarded:
		return true
	case slices.Contains(kickoff.Withheld, "Binary"):
		return false
	case p.AuthMode == auth.Upstream:
		return statement.Offers("Binary") && p.maySearch(ctx, "Binary", who.headers) == nil
	}
	return who.scopes.Allow("Binary")
}

// typesAsked are the types that a kick-off names, and those that it would export besides.
func (p *Proxy) typesAsked(kickoff *state.Kickoff, statement *fhir.CapabilityStatement) (named, rest []string, err error) {
	named = slices.Clone(kickoff.Types)
	for _, filter := range kickoff.Filters {
		named = append(named, filter.Type)
	}
	if kickoff.OrganizeBy != "" {
		named = append(named, kickoff.OrganizeBy)
	}
	if len(kickoff.Associated) > 0 {
		named = append(named, "Provenance")
	}
	slices.Sort(named)
	named = slices.Compact(named)
	if len(kickoff.Types) > 0 {
		return named, nil, nil
	}
	types, beside, err := p.TypesOf(kickoff.Level, statement)
	if err != nil {
		return nil, nil, err
	}
	for _, typ := range slices.Concat(types, beside) {
		if statement.Offers(typ) && !slices.Contains(named, typ) {
			rest = append(rest, typ)
		}
	}
	slices.Sort(rest)
	return named, slices.Compact(rest), nil
}

// narrowByScopes narrows a kick-off by what a token is for.
func narrowByScopes(kickoff *state.Kickoff, named, rest []string, scopes auth.Scopes) error {
	for _, typ := range named {
		if !scopes.Allow(typ) {
			return &refusal{http.StatusForbidden, "forbidden", "the access token is not for " + typ + " resources"}
		}
	}
	for _, typ := range rest {
		if !scopes.Allow(typ) {
			kickoff.Withheld = append(kickoff.Withheld, typ)
		}
	}
	if len(rest) > 0 && len(kickoff.Withheld) == len(rest) && len(named) == 0 {
		return &refusal{http.StatusForbidden, "forbidden", "the access token is for none of the types of this export"}
	}
	return nil
}

// askUpstream narrows a kick-off by what the FHIR server lets its client read.
func (p *Proxy) askUpstream(ctx context.Context, kickoff *state.Kickoff, named, rest []string, who *asker) error {
	asked, checkCtx := newQuestions(ctx)
	client := who.headers
	for _, typ := range named {
		asked.ask(func() error { return searchRefusal(p.maySearch(checkCtx, typ, client), typ) })
	}
	p.askNamed(checkCtx, asked, kickoff, who)
	said := make([]error, len(rest))
	for i, typ := range rest {
		asked.ask(func() error {
			said[i] = p.mayExport(checkCtx, typ, client)
			if isDenial(said[i]) || isFinal(said[i]) {
				return nil
			}
			return searchRefusal(said[i], typ)
		})
	}
	if err := asked.wait(); err != nil {
		return orTimeout(ctx, err)
	}
	return withhold(kickoff, len(named) > 0, rest, said)
}

// findNamed asks whether the Group and the Patients that a kick-off names are there: the export would only find it out later.
func (p *Proxy) findNamed(ctx context.Context, kickoff *state.Kickoff, who *asker) error {
	asked, checkCtx := newQuestions(ctx)
	p.askNamed(checkCtx, asked, kickoff, who)
	return orTimeout(ctx, asked.wait())
}

// askNamed adds the questions of findNamed to others.
func (p *Proxy) askNamed(ctx context.Context, asked questions, kickoff *state.Kickoff, who *asker) {
	if kickoff.Level == state.Group {
		asked.ask(func() error { return CheckGroup(p.read(ctx, "Group", kickoff.Group, who)) })
	}
	if len(kickoff.Patients) > maxPatientReads {
		return
	}
	for _, id := range kickoff.Patients {
		asked.ask(func() error {
			_, err := p.read(ctx, "Patient", id, who)
			return refused(err, "a Patient that is named in patient")
		})
	}
}

// read reads a resource as the client where the server judges clients, or exports are read as them; else as the sidecar,
// whose own credentials are none of the client's business.
func (p *Proxy) read(ctx context.Context, typ, id string, who *asker) ([]byte, error) {
	defer p.giveWay(ctx)()
	if p.AuthMode == auth.Upstream || p.Client.Borrows() {
		return p.Client.MayRead(ctx, typ, id, who.headers)
	}
	raw, err := p.Client.Read(ctx, typ, id)
	if isDenial(err) {
		err = &refusal{http.StatusForbidden, "forbidden", "the FHIR server does not let the export sidecar read this " + typ}
	}
	return raw, err
}

// withhold takes out of a kick-off the types of which the server does not let its client read all. Where nothing is left the
// client is told why the first was refused.
func withhold(kickoff *state.Kickoff, more bool, types []string, said []error) error {
	for i, typ := range types {
		switch err := said[i]; {
		case fhir.StatusOf(err) == http.StatusUnauthorized:
			return searchRefusal(err, typ) // the credentials do not hold at all
		case err != nil:
			kickoff.Withheld = append(kickoff.Withheld, typ)
		}
	}
	if more || len(types) == 0 || len(kickoff.Withheld) < len(types) {
		return nil
	}
	first := max(0, slices.Index(types, "Patient"))
	return searchRefusal(said[first], types[first])
}

// errPart tells that the server does not show a client what it shows the sidecar.
var errPart = errors.New("not the same resources are shown to this client")

// isDenial tells whether an error is the server's judgement of the client.
func isDenial(err error) bool {
	status := fhir.StatusOf(err)
	return status == http.StatusUnauthorized || status == http.StatusForbidden || errors.Is(err, errPart)
}

// searchRefusal is what a client is told where it may not search a type.
func searchRefusal(err error, typ string) error {
	if errors.Is(err, errPart) {
		return &refusal{http.StatusForbidden, "forbidden", "the FHIR server does not show this client the same " + typ + " resources as the export sidecar"}
	}
	return refused(err, "a search of "+typ)
}

// refused is upstreamRefusal of what may be no error.
func refused(err error, what string) error {
	if err == nil {
		return nil
	}
	return upstreamRefusal(err, what)
}

// maySearch asks the server, as the client, for one row of a type, and whether that client sees as many rows as the sidecar.
// Its answer holds for a minute.
func (p *Proxy) maySearch(ctx context.Context, typ string, client http.Header) error {
	return p.verdicts.of(ctx, client, typ, func(ctx context.Context) error {
		defer p.giveWay(ctx)()
		err := p.Client.MaySearch(ctx, typ, client)
		if err != nil {
			return err
		}
		all, err := p.Client.SeesAll(ctx, typ, client)
		if err == nil && !all {
			err = errPart
		}
		return err
	})
}

// mayExport is maySearch for a type that was not asked for by name. A search that the server refuses to everybody, the sidecar
// included, says nothing of this client.
func (p *Proxy) mayExport(ctx context.Context, typ string, client http.Header) error {
	err := p.maySearch(ctx, typ, client)
	if isFinal(err) && !isDenial(err) && (p.Client.Borrows() || fhir.StatusOf(p.Client.CanSearch(ctx, typ)) == fhir.StatusOf(err)) {
		return nil
	}
	return err
}

// isFinal tells whether the server has answered, and would answer the same again.
func isFinal(err error) bool {
	var response *fhir.ResponseError
	return errors.As(err, &response) && !response.Temporary()
}

// mayStillRead asks whether the server lets whoever sent these headers read what a job was asked for, and what it shows.
func (p *Proxy) mayStillRead(ctx context.Context, job *state.Job, client http.Header) error {
	all, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	types, err := p.typesShown(all, job)
	if err != nil {
		return err
	}
	asked, checkCtx := newQuestions(all)
	for _, typ := range types {
		asked.ask(func() error { return searchRefusal(p.mayExport(checkCtx, typ, client), typ) })
	}
	return orTimeout(all, asked.wait())
}

// typesShown are the types that a job's kick-off named and those of the files that its manifest shows, or where there are
// none one that it may hold: as long as there is nothing to read, one will do.
func (p *Proxy) typesShown(ctx context.Context, job *state.Job) ([]string, error) {
	files, err := p.Jobs.Files(ctx, job.ID)
	if err != nil {
		return nil, err
	}
	types := slices.Clone(job.Kickoff.Types)
	for _, file := range files {
		if file.Kind == state.Output && job.Shows(file) {
			types = append(types, file.Type)
		}
	}
	if job.Kickoff.OrganizeBy != "" && job.Status == state.Completed { // its files hold all types
		types = append(types, slices.Concat(job.Types, job.Referenced)...)
	}
	if slices.Sort(types); len(types) > 0 {
		return slices.Compact(types), nil
	}
	statement, err := p.Client.Capabilities(ctx)
	if err != nil {
		return nil, &refusal{http.StatusServiceUnavailable, "transient", "the FHIR server's CapabilityStatement cannot be read now"}
	}
	_, rest, err := p.typesAsked(&job.Kickoff, statement)
	if err != nil {
		return nil, err
	}
	rest = slices.DeleteFunc(rest, func(typ string) bool { return slices.Contains(job.Kickoff.Withheld, typ) })
	if i := slices.Index(rest, "Patient"); i > 0 {
		rest = rest[i:]
	}
	return rest[:min(1, len(rest))], nil
}
