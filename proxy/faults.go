package proxy

import (
	"slices"
	"strconv"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// maxShown is how many faults of one kick-off are named. One with more of them is refused whatever the client prefers.
const maxShown = 20

// fault is one thing in a kick-off that cannot be honoured.
type fault struct {
	// parameter is the name of the one at fault, without a modifier.
	parameter string
	code      string
	// text is for the client. It repeats no value that could tell of a person.
	text string
}

// neverIgnored are the parameters of which a client that prefers handling=lenient must not get the opposite: data of other
// persons, of another time or in another form. The guide allows leniency for the others only, _until aside, which bounds
// time as _since does.
var neverIgnored = []string{"patient", "_since", "_until", "_outputFormat"}

// ignorable tells whether the parameter may be passed over under handling=lenient. A type may where another is left: without
// any the export would hold every type.
func (f fault) ignorable(kickoff *state.Kickoff) bool {
	return !slices.Contains(neverIgnored, f.parameter) && (f.parameter != "_type" || len(kickoff.Types) > 0)
}

// faults are all that is wrong with a kick-off, so that a client need not find it one by one. As an error they are a 400.
type faults []fault

// Error joins the texts.
func (f faults) Error() string {
	texts := make([]string, len(f))
	for i := range f {
		texts[i] = f[i].text
	}
	return strings.Join(texts, "; ")
}

// outcome has one issue for each fault.
func (f faults) outcome() *fhir.OperationOutcome {
	outcome := &fhir.OperationOutcome{ResourceType: "OperationOutcome"}
	for _, one := range f[:min(len(f), maxShown)] {
		outcome.Issue = append(outcome.Issue, fhir.OutcomeIssue{Severity: "error", Code: one.code, Diagnostics: one.text})
	}
	if more := len(f) - maxShown; more > 0 {
		text := "and " + strconv.Itoa(more) + " more like these"
		outcome.Issue = append(outcome.Issue, fhir.OutcomeIssue{Severity: "error", Code: "invalid", Diagnostics: text})
	}
	return outcome
}
