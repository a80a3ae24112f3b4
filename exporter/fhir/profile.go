package fhir

import (
	"strings"
	"time"
)

// Profile is what the upstream was seen to be able to do. Each answer comes with a negative control, because a
// parameter that a server does not know is often ignored, and then the answer is a superset. Where the types that were
// asked disagree, the weaker answer stands and a remark says so.
type Profile struct {
	FHIRVersion string `json:"fhir_version"`
	Software    string `json:"software"`
	HAPI        bool   `json:"hapi"`
	// Types are the types that were asked; none on a server without a row that can be read.
	Types []string `json:"types"`
	// CountMethod is how rows are counted, and Counts that they can be: with totals that honour filters (P1).
	CountMethod CountMethod `json:"count_method"`
	Counts      bool        `json:"counts"`
	// CountsUpTo is the largest count that is not an estimate; 0 means that all are exact.
	CountsUpTo int64 `json:"counts_up_to,omitempty"`
	// IDLists: _id takes a list of ids.
	IDLists bool `json:"id_lists"`
	// Filter: a bound of _lastUpdated is honoured (P2). Bounds: so are two together (P3).
	Filter bool `json:"last_updated_filter"`
	Bounds bool `json:"last_updated_bounds"`
	// InclusiveLT: the bound "lt" holds the second, or millisecond, that it names (P3). See Client.Adopt.
	InclusiveLT bool `json:"inclusive_lt"`
	// Milliseconds: bounds of _lastUpdated are honoured to the millisecond, not to the second (P4).
	Milliseconds bool `json:"milliseconds"`
	// Sort: _sort=_lastUpdated is honoured, ascending and descending (P5).
	Sort bool `json:"last_updated_sort"`
	// Keyset: both bounds of _lastUpdated and its ascending sort are honoured, and no row is without it (P2, P3, P5, P11).
	Keyset bool `json:"keyset"`
	// PageSize is the largest _count that the server was seen to honour, and no more than was wanted (P6).
	PageSize int `json:"page_size"`
	// StrictHandling: a parameter that the server does not know is refused under Prefer: handling=strict (P7).
	StrictHandling bool `json:"strict_handling"`
	// TypeHistory, InstanceHistory and SystemHistory: _history works on a type (one at least: exports find out for each), on
	// a resource, on the server. VRead: a version can be read by its number (P8).
	TypeHistory     bool `json:"type_history"`
	InstanceHistory bool `json:"instance_history"`
	SystemHistory   bool `json:"system_history"`
	VRead           bool `json:"vread"`
	// PatientLists: a list of Patients finds the rows of each of them (P9), spelled as ListSpelling says.
	PatientLists bool         `json:"patient_lists"`
	ListSpelling ListSpelling `json:"list_spelling,omitempty"`
	// MissingModifier: ":missing" of that parameter is honoured (P9).
	MissingModifier bool `json:"missing_modifier"`
	// HasGroupMember: Patient?_has:Group:member:_id= finds members of a Group and nobody else (P9).
	HasGroupMember bool `json:"has_group_member"`
	// CompartmentSearch: Patient/{id}/{Type} finds rows of that Patient and nothing else (P9).
	CompartmentSearch bool `json:"compartment_search"`
	// PostSearch: a search may be sent as a form (P10).
	PostSearch bool `json:"post_search"`
	// Undated is the number of rows without lastUpdated in the types that were asked, as far as it can be counted (P11).
	Undated int64 `json:"undated"`
	// ClockSource is where the server's clock was read, and Skew how far it is ahead of ours; 0 where the difference is
	// smaller than what the source can show (P12).
	ClockSource ClockSource   `json:"clock_source"`
	Skew        time.Duration `json:"skew_ns"`
	// Settle is how long after a moment the server may still make writes of that moment visible.
	Settle time.Duration `json:"settle_ns"`
	// Uncertain tells that a question was answered with an error twice, so that a "no" here may be a mistake.
	Uncertain bool `json:"uncertain"`
	// Remarks are what an operator should know beside the answers, one sentence each. They name types, never ids or values.
	Remarks []string `json:"remarks,omitempty"`
}

// ListSpelling is how a list of Patients is written.
type ListSpelling string

const (
	// SpelledPatient is patient=a,b.
	SpelledPatient ListSpelling = "patient"
	// SpelledSubject is subject=Patient/a,Patient/b.
	SpelledSubject ListSpelling = "subject"
)

// Param returns the search parameter that lists the Patients with these ids.
func (s ListSpelling) Param(ids ...string) QueryParam {
	if s == SpelledSubject {
		return QueryParam{"subject", "Patient/" + strings.Join(ids, ",Patient/")}
	}
	return QueryParam{"patient", strings.Join(ids, ",")}
}

// Empty tells that the server had no row to be asked about, so that the profile says nothing about it.
func (p *Profile) Empty() bool { return len(p.Types) == 0 }

// Of tells whether the profile is one of the server that the statement describes: the same product, version and release.
func (p *Profile) Of(s *CapabilityStatement) bool {
	return p.Software == softwareOf(s) && p.FHIRVersion == s.FHIRVersion
}

func softwareOf(s *CapabilityStatement) string {
	return strings.TrimSpace(s.Software + " " + s.Version)
}

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
