package exporter_test

import (
	"net/http"
	"slices"

	"sidecar/exporter/fhir/fhirtest"
)

// faultRows are the faults and what an export makes of each: it is exact, or the cell says what is missing and why. Of 55
// Immunizations 30 stand alone in their second; their server pages, where a product is read by those, hold 10.
func faultRows() []faultRow {
	return slices.Concat(passingRows(), lastingRows())
}

// passingRows are faults that go away: nothing is missing.
func passingRows() []faultRow {
	// The answer hides from the plan that a Patient is wanted; the walk, which has none to name, is refused.
	planHidden := otherCell{cell: cell{code: "incomplete", holes: 1, rows: -1, written: 28, reason: "not-supported"}}
	later := http.Header{"Retry-After": {"3"}}
	return []faultRow{
		{name: "500 once", cell: strike(fhirtest.Fault{Status: 500})},
		{name: "500 twice", cell: strike(fhirtest.Fault{Status: 500, Times: 2})},
		{name: "502 burst", cell: strike(fhirtest.Fault{Status: 502, Times: 4})},
		{name: "503 burst", cell: strike(fhirtest.Fault{Status: 503, Times: 12})},
		{name: "504 burst", cell: strike(fhirtest.Fault{Status: 504, Times: 4})},
		{name: "429 with Retry-After", cell: strike(fhirtest.Fault{Status: 429, Header: later, Times: 4})},
		{name: "401 once", cell: strike(fhirtest.Fault{Status: 401})},
		{
			name: "409 once", cell: strike(fhirtest.Fault{Status: 409}),
			but: map[string]otherCell{"epic": planHidden, "oracle": planHidden},
		},
		{name: "cut body", cell: strike(fhirtest.Fault{CutBody: true, Times: 2})},
		{name: "aborted body", cell: strike(fhirtest.Fault{CutBody: true, Chunked: true, Times: 2})},
		{name: "HTML page", cell: strike(fhirtest.Fault{HTML: true, Times: 2})},
		{name: "no answer", cell: strike(fhirtest.Fault{Hang: true, Times: 2})},
		{name: "410 on a next link", cell: strike(fhirtest.Fault{ExpirePages: 410, Match: func(*http.Request) bool { return true }})},
		{name: "404 on a next link", cell: strike(fhirtest.Fault{ExpirePages: 404, Match: func(*http.Request) bool { return true }})},
		{name: "remark", cell: func() cell { return cell{after: onImmunizations(tell("i03", "information", "informational", -1))} }},
		{name: "severe outcome once", cell: func() cell { return cell{after: onImmunizations(tell("i03", "error", "too-costly", 1))} }},
		{name: "rows without resource", cell: func() cell { return cell{after: onImmunizations(bare)} }},
	}
}

// lastingRows are faults that stay: what they cost is missing, and nothing else.
func lastingRows() []faultRow {
	holes := func(holes int, rows, written int64, reason string) cell {
		return cell{code: "incomplete", holes: holes, rows: rows, written: written, reason: reason}
	}
	lasting := func(after func(*http.Request, *bundle) int, c cell) func() cell {
		return func() cell { c.after = onImmunizations(after); return c }
	}
	but := func(c cell) otherCell { return otherCell{cell: c} }
	unseen := but(cell{lacks: "Immunization/i17", says: "does not count"})
	noWindow := otherCell{unfit: "no window is asked for that a row could be out of"}
	return []faultRow{
		{
			name: "poison row", cell: lasting(poison("i17"), holes(1, 1, 82, "exception")),
			but: map[string]otherCell{ // behind the row nothing is reached by links, and rows that are not counted are not numbered
				"google": but(holes(1, -1, 82, "exception")), "superset": but(holes(1, -1, 45, "exception")),
				"epic": but(holes(1, -1, 70, "exception")), "oracle": but(holes(1, 13, 70, "exception")),
			},
		},
		{
			name: "500 on a window", cell: lasting(poisons("i10", "i11", "i12"), holes(3, 3, 80, "exception")),
			but: map[string]otherCell{ // one row of each of the three Patients
				"google": but(holes(3, -3, 80, "exception")), "superset": but(holes(1, -1, 38, "exception")),
				"epic": but(holes(3, -3, 38, "exception")), "oracle": but(holes(3, 45, 38, "exception")),
			},
		},
		{name: "severe outcome for a row", cell: lasting(tell("i17", "error", "suppressed", -1), holes(1, -1, 83, "suppressed"))},
		{
			name: "row left out", cell: lasting(without("i17"), holes(1, 1, 82, "incomplete")),
			but: map[string]otherCell{ // where nothing is counted nobody can see it, and the job says that
				"google": unseen, "superset": unseen, "epic": unseen, "oracle": but(holes(1, -1, 82, "incomplete")),
			},
		},
		{
			name: "superset", cell: lasting(stranger, holes(2, 45, 38, "not-supported")),
			but: map[string]otherCell{
				"unsorted": but(holes(1, 55, 28, "not-supported")), "clamped": but(holes(3, 55, 28, "not-supported")),
				"google": but(holes(1, -1, 38, "not-supported")), "oracle": but(holes(1, -1, 48, "incomplete")),
				"superset": noWindow, "epic": noWindow,
			},
		},
	}
}

// poisons fails every answer that holds one of the rows.
func poisons(ids ...string) func(*http.Request, *bundle) int {
	return func(_ *http.Request, b *bundle) int {
		if slices.ContainsFunc(ids, b.has) {
			return http.StatusInternalServerError
		}
		return 0
	}
}
