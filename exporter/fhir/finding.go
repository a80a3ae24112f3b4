package fhir

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Finding is the answer to one question of the probes, and what follows from it for exports.
type Finding struct {
	// Probe is the number of the probe: P1 to P12.
	Probe string `json:"probe"`
	// Question and Answer are a few words each, Follows is one sentence without its full stop.
	Question string `json:"question"`
	Answer   string `json:"answer"`
	Follows  string `json:"follows"`
	// OK tells that exports lack nothing for it.
	OK bool `json:"ok"`
}

// Findings returns one finding for each thing that was asked, in the order of the probes; none for an empty server.
func (p *Profile) Findings() []Finding {
	if p.Empty() {
		return nil
	}
	findings := append(p.rowFindings(), p.historyFindings()...)
	return append(append(findings, p.patientFindings()...), p.otherFindings()...)
}

// Lines returns the findings as text, one line each, in columns.
func (p *Profile) Lines() []string {
	findings := p.Findings()
	var question, answer int
	for _, f := range findings {
		question, answer = max(question, utf8.RuneCountInString(f.Question)), max(answer, utf8.RuneCountInString(f.Answer))
	}
	lines := make([]string, len(findings))
	for i, f := range findings {
		lines[i] = fmt.Sprintf("%-3s  %-*s  %-*s  %s", f.Probe, question, f.Question, answer, f.Answer, f.Follows)
	}
	return lines
}

// either makes a finding of a yes or no.
func either(probe, question string, ok bool, yes, no string) Finding {
	if ok {
		return Finding{probe, question, "yes", yes, true}
	}
	return Finding{probe, question, "no", no, false}
}

// rowFindings are about counting, windows and pages.
func (p *Profile) rowFindings() []Finding {
	counting := either("P1", "counts rows, with filters", p.Counts,
		"every slice is counted again after it was read", "completeness cannot be verified, and manifests say so")
	switch p.CountMethod {
	case CountSummary:
		counting.Answer = "by _summary=count"
	case CountTotal:
		counting.Answer = "by _total=accurate"
	}
	paged := "types are read through the server's own pages, slower"
	if p.Counts {
		paged += ", and verified by counting"
	}
	bounds := either("P3", "honours two bounds", p.Bounds, "types are cut into time windows", paged)
	if p.InclusiveLT {
		bounds.Answer = "yes, lt includes its end"
		bounds.Follows = "types are cut into time windows, whose ends are named one step earlier"
	}
	millis := optional(either("P4", "compares milliseconds", p.Milliseconds,
		"a second with many rows is read by milliseconds", "windows are whole seconds; a second with many rows is read in one piece"))
	if !p.Bounds {
		millis.Follows = "it makes no difference: there are no time windows"
	}
	pages := Finding{"P6", "rows in a page", fmt.Sprintf("up to %d", p.PageSize), "pages are asked for in this size", true}
	return []Finding{
		counting,
		either("P2", "filters by _lastUpdated", p.Filter, "only what belongs to a window or to _since is read", paged),
		bounds,
		millis,
		either("P5", "sorts by _lastUpdated", p.Sort, "each page begins at the time of the last row, whatever is written meanwhile", paged),
		pages,
		optional(either("P7", "refuses unknown parameters", p.StrictHandling, "a filter that is not known is an error, not a wider answer",
			"a filter that is not known is ignored; rows are filtered again on this side")),
	}
}

// historyFindings are about versions.
func (p *Profile) historyFindings() []Finding {
	without := "deletions cannot be reported, and what changes while an export runs is not as of the transaction time: see without_history; export at quiet hours"
	if p.Keyset && p.InstanceHistory {
		without = "deletions cannot be reported, and what is deleted while an export runs may be missing; what changes is as of the transaction time, from the resources' own histories"
	}
	return []Finding{
		either("P8", "history of a type", p.TypeHistory, "exports are exact as of the transaction time while data change; deletions can be found", without),
		either("P8", "history of a resource", p.InstanceHistory, "the version as of the transaction time can be found",
			"the version as of the transaction time cannot be found where the type's history does not hold it"),
		optional(either("P8", "history of the server", p.SystemHistory, "it is not needed", "types are asked one by one")),
		optional(either("P8", "reads one version", p.VRead, "it is not needed: versions are taken from histories", "versions are taken from histories")),
	}
}

// optional marks a finding about something that only makes exports faster.
func optional(f Finding) Finding {
	f.OK = true
	return f
}

// patientFindings are about asking for some Patients. What is missing there costs time, not exactness.
func (p *Profile) patientFindings() []Finding {
	const whole = "exports of a Group read types whole and filter on this side"
	lists := either("P9", "takes lists of Patients", p.PatientLists, "a small Group is asked for by lists of its members", whole)
	switch p.ListSpelling {
	case SpelledPatient:
		lists.Answer = "as patient=a,b"
	case SpelledSubject:
		lists.Answer = "as subject=Patient/a"
	}
	if p.Bounds && !p.Counts && p.PatientLists {
		lists.Follows = "it makes no difference: what is not counted is read whole"
	}
	return []Finding{
		optional(lists),
		optional(either("P9", "takes :missing", p.MissingModifier, "lists can be shown to be complete", "lists cannot be shown to be complete")),
		optional(either("P9", "finds members of a Group", p.HasGroupMember, "members are read from the Group itself; strategy: has may be forced", "members are read from the Group itself; strategy: has cannot be forced")),
		optional(either("P9", "searches in a compartment", p.CompartmentSearch, "not used unless strategy: compartment is forced", "it is not needed; strategy: compartment cannot be forced")),
		optional(either("P10", "searches by POST", p.PostSearch, "lists may be longer than an address", "lists are kept as short as an address")),
	}
}

// otherFindings are about rows without a time, the clock and the settle pause.
func (p *Profile) otherFindings() []Finding {
	undated := Finding{"P11", "rows without lastUpdated", "none seen", "every row lies in a window", true}
	switch {
	case p.Undated > 0:
		undated.Answer, undated.OK = fmt.Sprintf("%d", p.Undated), false
		undated.Follows = "no window holds them: types are read through the server's own pages, and _since does not leave them out"
	case !p.Counts || !p.Bounds:
		undated.Answer, undated.Follows = "not counted", "types are read whole, so none is lost"
		if p.Bounds {
			undated.Follows, undated.OK = "rows that have no time would be missed", false
		}
	}
	return []Finding{undated, p.clockFinding()}
}

func (p *Profile) clockFinding() Finding {
	f := Finding{Probe: "P12", Question: "clock", OK: true}
	switch p.ClockSource {
	case ClockDate:
		f.Answer = "Date header"
	case ClockBundle:
		f.Answer = "Bundle.meta.lastUpdated"
	default:
		return Finding{"P12", "clock", "none shown", "the transaction time is taken from this machine's clock: keep both in step (NTP)", false}
	}
	f.Follows = "the transaction time is the server's"
	if p.Skew != 0 {
		ahead := "ahead of"
		if p.Skew < 0 {
			ahead = "behind"
		}
		f.Answer += ", " + strings.TrimPrefix(p.Skew.Round(time.Second/10).String(), "-") + " " + ahead + " ours"
		f.Follows += ", whatever this machine's clock says"
	}
	return f
}
