package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// checkTimeout bounds all checks of one kick-off at the upstream together.
	checkTimeout = 10 * time.Second
	// checksAtOnce bounds how many of them run at once.
	checksAtOnce = 8
	// maxPatientReads is up to how many Patients of the parameter patient are looked for before the export. What
	// is wrong with longer lists the export itself finds out.
	maxPatientReads = 20
)

// mayKickOff checks a kick-off against the server's statement, the bucket, and the upstream's own rules for this client.
func (p *Proxy) mayKickOff(r *http.Request, kickoff *state.Kickoff, prefer preferences, who *asker) error {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	statement, err := p.Client.Capabilities(ctx)
	if err != nil {
		p.Log.WarnContext(ctx, "kick-off refused: the CapabilityStatement cannot be read", "check", whyNoStatement(err), "error", err)
		return &refusal{http.StatusServiceUnavailable, "transient", "the FHIR server's CapabilityStatement cannot be read now"}
	}
	wrong, err := wrongTypes(kickoff, statement, p.TypesOf)
	if err != nil {
		return err
	}
	wrong = append(wrong, wrongElements(kickoff, statement.FHIRVersion)...)
	wrong = append(wrong, wrongTimes(kickoff, time.Now().Add(statement.Ahead))...)
	if err := prefer.settle(kickoff, wrong); err != nil {
		return err
	}
	if err := p.Exports.Ready(ctx); err != nil {
		p.Log.WarnContext(ctx, "kick-off refused: the bucket does not work", "error", err) // its address is not for clients
		return &refusal{http.StatusServiceUnavailable, "transient", "the export files cannot be stored now; the sidecar's log says more"}
	}
	return p.narrow(ctx, r.Header, kickoff, statement, who)
}

// whyNoStatement says what to look at where the CapabilityStatement cannot be read.
func whyNoStatement(err error) string {
	if errors.Is(err, fhir.ErrCredentials) {
		return "the setting upstream_auth: the sidecar gets no credentials of its own"
	}
	switch fhir.StatusOf(err) {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "the setting upstream_auth: the server refuses the sidecar's own credentials"
	}
	return "the setting upstream: it must be the FHIR base"
}

// CheckKickoff tells whether the server of the statement can serve the types and bounds of a kick-off at its level. Its
// errors are for the client.
func CheckKickoff(kickoff state.Kickoff, statement *fhir.CapabilityStatement, typesOf TypesOf) error {
	wrong, err := wrongTypes(&kickoff, statement, typesOf)
	wrong = append(wrong, wrongTimes(&kickoff, time.Now().Add(statement.Ahead))...)
	if err == nil && len(wrong) > 0 {
		err = wrong
	}
	return err
}

// wrongTypes takes the types that an export of the kick-off's level cannot hold out of it, and says why.
func wrongTypes(kickoff *state.Kickoff, statement *fhir.CapabilityStatement, typesOf TypesOf) (wrong faults, err error) {
	allowed, beside, err := typesOf(kickoff.Level, statement)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "not-supported", "exports of Patients and Groups need FHIR R4, R4B or R5"}
	}
	inCompartment := slices.ContainsFunc(kickoff.Types, func(typ string) bool {
		return statement.Offers(typ) && slices.Contains(allowed, typ)
	})
	// why says what is wrong with a type in a parameter; empty where nothing is.
	why := func(typ, parameter string, alone bool) string {
		switch {
		case !statement.Offers(typ):
			return "the FHIR server offers no search of the type " + printable(typ) + " in " + parameter + meant(typ, statement)
		case slices.Contains(allowed, typ), !alone && slices.Contains(beside, typ):
			return ""
		case slices.Contains(beside, typ):
			return "the type " + typ + " in " + parameter + " is not part of the Patient compartment: name it beside a type that is, whose resources refer to it"
		}
		return "the type " + typ + " in " + parameter + " is not part of the Patient compartment"
	}
	keep := func(parameter, text string) bool {
		if text != "" {
			wrong = append(wrong, fault{parameter, "not-supported", text})
		}
		return text == ""
	}
	kickoff.Types = slices.DeleteFunc(slices.Clone(kickoff.Types), func(typ string) bool {
		return !keep("_type", why(typ, "_type", !inCompartment))
	})
	kickoff.Filters = slices.DeleteFunc(slices.Clone(kickoff.Filters), func(filter state.TypeFilter) bool {
		return !keep("_typeFilter", why(filter.Type, "_typeFilter", true))
	})
	if typ := kickoff.OrganizeBy; typ != "" && !keep("organizeOutputBy", why(typ, "organizeOutputBy", false)) {
		kickoff.OrganizeBy = ""
	}
	if _, err := fhir.PatientCompartment(statement.FHIRVersion); err != nil && kickoff.OrganizeBy == "Patient" {
		kickoff.OrganizeBy = ""
		keep("organizeOutputBy", "organizeOutputBy=Patient needs FHIR R4, R4B or R5")
	}
	if len(kickoff.Associated) > 0 && !keep("includeAssociatedData", why("Provenance", "includeAssociatedData", false)) {
		kickoff.Associated = nil
	}
	return wrong, nil
}

// meant says which type has the name in other letters; empty for none.
func meant(typ string, statement *fhir.CapabilityStatement) string {
	n := slices.IndexFunc(statement.Types, func(offered string) bool { return strings.EqualFold(offered, typ) })
	if n < 0 {
		return ""
	}
	return ": that is written " + statement.Types[n]
}

// wrongElements takes the elements that the FHIR release does not have out of the kick-off, and says so.
func wrongElements(kickoff *state.Kickoff, release string) (wrong faults) {
	if len(kickoff.Elements) == 0 {
		return nil
	}
	table, err := fhir.Elements(release)
	if err != nil {
		kickoff.Elements = nil
		return faults{{"_elements", "not-supported", "_elements needs FHIR R4, R4B or R5"}}
	}
	kickoff.Elements = slices.DeleteFunc(kickoff.Elements, func(entry string) bool {
		typ, element, ofType := strings.Cut(entry, ".")
		if !ofType {
			typ, element = "", entry
		}
		unknown := !table.Known(typ, element)
		if unknown {
			wrong = append(wrong, fault{"_elements", "not-supported", "_elements holds " + printable(entry) + ", which the FHIR release does not have"})
		}
		return unknown
	})
	return wrong
}

// clockLeeway is how far a bound may be ahead of what we take for the server's clock: transaction times are rounded up to a second,
// and its Date header is a second old or two when it is read.
const clockLeeway = 5 * time.Second

// wrongTimes says which bounds lie in the future of the server: nobody can know yet what will have changed by then.
func wrongTimes(kickoff *state.Kickoff, now time.Time) (wrong faults) {
	bound := func(name string, at time.Time) {
		if at.After(now.Add(clockLeeway)) {
			wrong = append(wrong, fault{name, "invalid", name + " is in the future by the FHIR server's clock"})
		}
	}
	bound("_since", kickoff.Since)
	bound("_until", kickoff.Until)
	return wrong
}

// clientHeaders are the headers by which the upstream knows this client. "Bearer" with nothing behind it, or nothing at all, is what some
// clients send where no authorisation is configured.
func (p *Proxy) clientHeaders(r *http.Request) http.Header {
	headers := http.Header{}
	for _, name := range append([]string{"Authorization"}, p.ForwardHeaders...) {
		if values := r.Header.Values(name); len(values) > 0 {
			headers[http.CanonicalHeaderKey(name)] = values
		}
	}
	if said := strings.TrimSpace(headers.Get("Authorization")); said == "" || strings.EqualFold(said, "bearer") {
		headers.Del("Authorization")
	}
	return headers
}

// orTimeout replaces the error of a check that was cut off.
func orTimeout(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &refusal{http.StatusServiceUnavailable, "timeout", "the FHIR server did not answer the checks of this request within 10 seconds"}
	}
	return err
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
