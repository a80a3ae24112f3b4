package proxy

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// checkTimeout bounds all checks of one kick-off at the upstream together.
	checkTimeout = 10 * time.Second
	// checksAtOnce bounds how many of them run at once.
	checksAtOnce = 8
)

// kickOff answers a kick-off request: parse, check, store, 202. Nothing slow happens before the 202, and nothing fails
// after the job is stored.
func (p *Proxy) kickOff(w http.ResponseWriter, r *http.Request, level state.Level) {
	kickoff, err := p.parseKickoff(r, level)
	if err == nil {
		err = p.mayKickOff(r, kickoff)
	}
	var job *state.Job
	if err == nil {
		job, err = p.Exports.KickOff(r.Context(), *kickoff)
	}
	if err != nil {
		p.Metrics.kickOffs.WithLabelValues(string(level), "refused").Inc()
		p.refuse(w, r, err)
		return
	}
	p.Metrics.kickOffs.WithLabelValues(string(level), "accepted").Inc()
	w.Header().Set("Content-Location", kickoff.Base+"/$export-status/"+job.ID)
	w.WriteHeader(http.StatusAccepted)
}

// outputFormats are the names of NDJSON (Bulk Data guide, _outputFormat). An unencoded plus arrives as a blank.
var outputFormats = []string{"application/fhir+ndjson", "application/fhir ndjson", "application/ndjson", "ndjson"}

// parseKickoff reads the parameters strictly: what is not understood is refused, never ignored.
func (p *Proxy) parseKickoff(r *http.Request, level state.Level) (*state.Kickoff, error) {
	base := p.publicBase(r)
	kickoff := &state.Kickoff{
		Level:   level,
		Base:    base,
		Request: base + strings.TrimPrefix(r.URL.EscapedPath(), p.basePath),
	}
	if r.URL.RawQuery != "" {
		kickoff.Request += "?" + r.URL.RawQuery
	}
	if level == state.Group {
		id, err := url.PathUnescape(mux.Vars(r)["group"])
		if err != nil || strings.ContainsAny(id, "/?#") || id == "." || id == ".." { // these would read another address
			return nil, &refusal{http.StatusBadRequest, "invalid", "the Group's id in the path is not an id"}
		}
		kickoff.Group = id
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "invalid", "the query cannot be read: check its percent signs and semicolons"}
	}
	names := slices.Sorted(maps.Keys(query))
	if err := checkParameters(names); err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := parseParameter(kickoff, name, query[name]); err != nil {
			return nil, err
		}
	}
	return kickoff, nil
}

// parameters are those of a kick-off that are supported.
var parameters = []string{"_outputFormat", "_since", "_type"}

// checkParameters names all those that are not supported, so that a client need not find them one by one.
func checkParameters(names []string) error {
	var unknown []string
	for _, name := range names {
		if !slices.Contains(parameters, name) {
			unknown = append(unknown, printable(name))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	text := "the parameter " + unknown[0] + " is"
	if len(unknown) > 1 {
		text = "the parameters " + strings.Join(unknown[:min(maxShown, len(unknown))], ", ") + " are"
	}
	return &refusal{http.StatusBadRequest, "not-supported", text + " not supported; a kick-off takes " + strings.Join(parameters, ", ")}
}

// maxShown is how many unknown parameters are named.
const maxShown = 10

func parseParameter(kickoff *state.Kickoff, name string, values []string) error {
	if len(values) > 1 && name != "_type" {
		return &refusal{http.StatusBadRequest, "invalid", "the parameter " + printable(name) + " may be given once only"}
	}
	switch name {
	case "_outputFormat":
		if !slices.Contains(outputFormats, values[0]) {
			return &refusal{http.StatusBadRequest, "not-supported", "_outputFormat must be application/fhir+ndjson, application/ndjson or ndjson"}
		}
	case "_since":
		since, err := fhir.ParseInstant(mendPlus(values[0]))
		if err != nil {
			return &refusal{http.StatusBadRequest, "invalid", "_since is " + err.Error()}
		}
		kickoff.Since = since
	case "_type":
		return parseTypes(kickoff, values)
	}
	return nil
}

// mendPlus puts the plus of a zone back that a client did not encode: it arrives as a blank.
func mendPlus(instant string) string {
	if i := strings.LastIndexByte(instant, ' '); i > 0 && i == len(instant)-len(" 00:00") {
		return instant[:i] + "+" + instant[i+1:]
	}
	return instant
}

// parseTypes joins repeats and comma lists, which mean the same.
func parseTypes(kickoff *state.Kickoff, values []string) error {
	for _, value := range values {
		for typ := range strings.SplitSeq(value, ",") {
			if !isTypeName(typ) {
				return &refusal{http.StatusBadRequest, "invalid", "_type holds " + printable(typ) + ", which is not the name of a resource type"}
			}
			kickoff.Types = append(kickoff.Types, typ)
		}
	}
	slices.Sort(kickoff.Types)
	kickoff.Types = slices.Compact(kickoff.Types)
	return nil
}

func isTypeName(s string) bool {
	if s == "" || s[0] < 'A' || s[0] > 'Z' || len(s) > 64 {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// printable quotes what a client sent, without its odd characters and not longer than a line.
func printable(s string) string {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
	if len(clean) > 60 {
		clean = clean[:60] + "..."
	}
	return `"` + clean + `"`
}

// mayKickOff checks a kick-off against the server's statement, the bucket, and the upstream's own rules for this client.
func (p *Proxy) mayKickOff(r *http.Request, kickoff *state.Kickoff) error {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	statement, err := p.Client.Capabilities(ctx)
	if err != nil {
		p.Log.WarnContext(ctx, "kick-off refused: the CapabilityStatement cannot be read", "check", whyNoStatement(err), "error", err)
		return &refusal{http.StatusServiceUnavailable, "transient", "the FHIR server's CapabilityStatement cannot be read now"}
	}
	if err := CheckTypes(*kickoff, statement, p.TypesOf); err != nil {
		return err
	}
	if err := p.Exports.Ready(); err != nil {
		p.Log.WarnContext(ctx, "kick-off refused: the bucket does not work", "error", err) // its address is not for clients
		return &refusal{http.StatusServiceUnavailable, "transient", "the export files cannot be stored now; the sidecar's log says more"}
	}
	return p.checkAccess(ctx, kickoff, p.clientHeaders(r))
}

// whyNoStatement says what to look at where the CapabilityStatement cannot be read.
func whyNoStatement(err error) string {
	switch fhir.StatusOf(err) {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "the setting upstream_auth: the server refuses the sidecar's own credentials"
	}
	return "the setting upstream: it must be the FHIR base"
}

// CheckTypes tells whether an export of the kick-off's level may name its types on the server of the statement. Its errors
// are for the client.
func CheckTypes(kickoff state.Kickoff, statement *fhir.CapabilityStatement, typesOf TypesOf) error {
	allowed, beside, err := typesOf(kickoff.Level, statement)
	if err != nil {
		return &refusal{http.StatusBadRequest, "not-supported", "exports of Patients and Groups need FHIR R4, R4B or R5"}
	}
	inCompartment := slices.ContainsFunc(kickoff.Types, func(typ string) bool { return slices.Contains(allowed, typ) })
	for _, typ := range kickoff.Types {
		text := ""
		switch {
		case !statement.Offers(typ):
			text = "the FHIR server offers no search of the type " + printable(typ) + " in _type"
		case slices.Contains(allowed, typ), inCompartment && slices.Contains(beside, typ):
			continue
		case slices.Contains(beside, typ):
			text = "the type " + typ + " in _type is not part of the Patient compartment: name it beside a type that is, whose resources refer to it"
		default:
			text = "the type " + typ + " in _type is not part of the Patient compartment"
		}
		return &refusal{http.StatusBadRequest, "not-supported", text}
	}
	return nil
}

// clientHeaders are the headers by which the upstream knows this client. "Bearer" with nothing behind it is what some
// clients send where no authorisation is configured.
func (p *Proxy) clientHeaders(r *http.Request) http.Header {
	headers := http.Header{}
	for _, name := range append([]string{"Authorization"}, p.ForwardHeaders...) {
		if values := r.Header.Values(name); len(values) > 0 {
			headers[http.CanonicalHeaderKey(name)] = values
		}
	}
	if strings.EqualFold(strings.TrimSpace(headers.Get("Authorization")), "bearer") {
		headers.Del("Authorization")
	}
	return headers
}

// checkAccess asks the upstream, as the client, for the Group and for one row of each type that is named.
func (p *Proxy) checkAccess(ctx context.Context, kickoff *state.Kickoff, client http.Header) error {
	types := kickoff.Types
	if len(types) == 0 {
		types = []string{"Patient"}
	}
	group, checkCtx := errgroup.WithContext(ctx)
	group.SetLimit(checksAtOnce)
	if kickoff.Level == state.Group {
		group.Go(func() error { return p.checkGroup(checkCtx, kickoff.Group, client) })
	}
	for _, typ := range types {
		group.Go(func() error {
			if err := p.Client.MaySearch(checkCtx, typ, client); err != nil {
				return orTimeout(ctx, upstreamRefusal(err, "a search of "+typ))
			}
			return nil
		})
	}
	return group.Wait()
}

// orTimeout replaces the error of a check that was cut off.
func orTimeout(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &refusal{http.StatusServiceUnavailable, "timeout", "the FHIR server did not answer the checks of this kick-off within 10 seconds"}
	}
	return err
}

// checkGroup reads the Group as the client.
func (p *Proxy) checkGroup(ctx context.Context, id string, client http.Header) error {
	raw, err := p.Client.MayRead(ctx, "Group", id, client)
	return orTimeout(ctx, CheckGroup(raw, err))
}

// CheckGroup tells whether a Group can be exported, by the answer to a read of it. One that is described by characteristics
// alone has no members that anybody here could find. Its errors are for the client.
func CheckGroup(raw []byte, err error) error {
	if err != nil {
		return upstreamRefusal(err, "this Group")
	}
	group, err := fhir.ParseGroup(raw)
	if err != nil {
		return &refusal{http.StatusBadRequest, "invalid", "the members of this Group cannot be read"}
	}
	if !group.Person {
		return &refusal{http.StatusBadRequest, "not-supported", "the members of this Group are not persons"}
	}
	if group.Characteristic && len(group.Members) == 0 {
		return &refusal{http.StatusBadRequest, "not-supported", "this Group is described by characteristics and lists no members"}
	}
	return nil
}
