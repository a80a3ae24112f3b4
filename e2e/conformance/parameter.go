package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

func parameterRows() []Row {
	return slices.Concat(
		section("Parameters that cannot be honoured",
			row("H-01", should, "what is not supported or invalid is refused with an OperationOutcome", strict),
			row("H-02", may, "with handling=lenient it is accepted", lenient),
			row("H-03", should, "what was ignored stands in error, one OperationOutcome for each parameter", ignored),
		),
		section("Parameters",
			row("C-01", shall, "_outputFormat takes three names of NDJSON and refuses others", outputFormats),
			row("C-02", shall, "_since: only what was changed after the instant", since),
			row("C-03", may, "_until: only what was changed before the instant", until),
			row("C-04", shall, "_type: only these types; without it everything", types),
			row("C-05", should, "types outside of the Patient compartment alone are refused at Patient and Group level", typesOutside),
			row("C-06", may, "_elements: what is neither listed nor mandatory is left out, with the tag SUBSETTED", elements),
			row("C-07", may, "patient: only what is theirs; strangers, GET and the system level are refused", patientList),
			row("C-08", may, "includeAssociatedData adds the latest or all relevant Provenance", associated),
			row("C-09", may, "_typeFilter: only what matches one of a type's filters, other types whole", typeFilter),
			row("C-10", shall, "_typeFilter refuses result parameters and anything but a search of one type", typeFilterLimits),
			row("C-11", may, "organizeOutputBy is honoured or refused; without it each file has one type", organizeOutputBy),
			row("C-12", may, "allowPartialManifests still ends with a valid manifest", allowPartial),
		),
	)
}

func strict(c *check) {
	for what, test := range map[string]kickoff{
		"_type=x":                     {query: "_type=x"},
		"an unknown parameter":        {query: "noSuchParameter=1"},
		"handling=strict":             {query: "noSuchParameter=1", prefer: "respond-async, handling=strict"},
		"_elements=a.b.c":             {query: "_elements=a.b.c"},
		"_typeFilter of no type":      {query: query("_typeFilter", "x")},
		"includeAssociatedData=x":     {query: "includeAssociatedData=x"},
		"organizeOutputBy=NoSuchType": {query: "organizeOutputBy=NoSuchType"},
	} {
		c.rejected(what, c.try(test))
	}
}

// lenientExport has two parameters that nobody can honour.
func (c *check) lenientExport() *export {
	e, err := c.lenientOnce()
	c.orNotOffered(err, "handling=lenient is refused")
	return c.complete(e)
}

func (c *check) lenientOnce() (*export, error) {
	return c.once("lenient", kickoff{query: "_type=Patient&_elements=a.b.c&noSuchParameter=1", prefer: "respond-async, handling=lenient"})
}

func lenient(c *check) { c.lenientExport() }

func ignored(c *check) {
	e := c.lenientExport()
	notes := 0
	for _, item := range e.manifest.Error {
		for _, line := range e.files[item.URL].lines {
			o, err := parseOutcome(line)
			if err != nil {
				c.errorf("a line of error is %v", err)
				continue
			}
			if severity := o.Issue[0].Severity; severity == "warning" || severity == "information" {
				notes++
			}
		}
	}
	if notes < 2 {
		c.errorf("error holds %d OperationOutcomes of severity warning or information for two parameters", notes)
	}
}

func outputFormats(c *check) {
	for _, format := range []string{"application/fhir+ndjson", "application/ndjson", "ndjson"} {
		if a := c.try(kickoff{query: query("_type", "Patient", "_outputFormat", format)}); a.status != http.StatusAccepted {
			c.errorf("_outputFormat=%s: status %d, want 202", format, a.status)
		}
	}
	c.rejected("_outputFormat=x", c.try(kickoff{query: "_outputFormat=x"}))
}

// moment is a lastUpdated in the middle of those that the rows have.
func (c *check) moment(e *export) time.Time {
	var moments []time.Time
	for _, line := range e.rows {
		if at := parseResource(line).Meta.LastUpdated; !at.IsZero() {
			moments = append(moments, at)
		}
	}
	slices.SortFunc(moments, time.Time.Compare)
	moments = slices.CompactFunc(moments, time.Time.Equal)
	if len(moments) < 3 {
		c.lack("Patients and Conditions of three times at least")
	}
	return moments[len(moments)/2]
}

func since(c *check) {
	c.bounded("_since", c.export, func(at, bound time.Time) bool { return at.After(bound) })
}

func until(c *check) {
	optional := func(k kickoff) *export { return c.optional("_until", k) }
	c.bounded("_until", optional, func(at, bound time.Time) bool { return at.Before(bound) })
}

// bounded makes an export with a bound in time and compares it with what the one without it has on that side.
func (c *check) bounded(name string, export func(kickoff) *export, within func(at, bound time.Time) bool) {
	all := c.repeated()
	bound := c.moment(all)
	want := map[string]json.RawMessage{}
	for key, line := range all.rows {
		if within(parseResource(line).Meta.LastUpdated, bound) {
			want[key] = line
		}
	}
	k := kickoff{query: query("_type", "Patient,Condition", name, bound.Format("2006-01-02T15:04:05.999999999Z07:00"))}
	c.sameKeys(name, export(k).rows, want)
}

func types(c *check) {
	for key := range c.repeated().rows {
		if typ := typeOf(key); typ != "Patient" && typ != "Condition" {
			c.errorf("an export of Patient and Condition holds %s", typ)
		}
	}
	all := c.system()
	for _, typ := range []string{"Patient", "Condition"} {
		c.sameKeys(typ+" with _type=Patient,Condition", c.repeated().ofType(typ), all.ofType(typ))
	}
	for _, typ := range []string{"Patient", "Condition", "Observation", "Encounter", "Practitioner", "Organization", "Group"} {
		if got, want := len(all.ofType(typ)), c.count(typ); got != want {
			c.errorf("without _type there are %d %s, the server has %d", got, typ, want)
		}
	}
}

func typesOutside(c *check) {
	c.rejected("_type=Organization at Patient level", c.try(kickoff{path: "Patient/$export", query: "_type=Organization"}))
	c.rejected("_type=Organization at Group level", c.try(kickoff{path: "Group/" + c.groupID() + "/$export", query: "_type=Organization"}))
	c.rejected("_type=Foo at Patient level", c.try(kickoff{path: "Patient/$export", query: "_type=Foo"}))
}

const subsetted = "SUBSETTED"

func elements(c *check) {
	e := c.optional("_elements", kickoff{query: query("_type", "Patient,Observation", "_elements", "Patient.birthDate,Observation.effective")})
	kept := map[string][]string{
		"Patient":     {"resourceType", "id", "meta", "birthDate"},
		"Observation": {"resourceType", "id", "meta", "effectiveDateTime", "effectivePeriod", "effectiveInstant", "effectiveTiming", "status", "code"},
	}
	all := c.system()
	for typ := range kept {
		c.sameKeys(typ+" with _elements", e.ofType(typ), all.ofType(typ))
		if len(e.ofType(typ)) == 0 {
			c.lack("Patients and Observations")
		}
	}
	for key, line := range e.rows {
		var fields, whole map[string]json.RawMessage
		c.must(errors.Join(json.Unmarshal(line, &fields), json.Unmarshal(all.rows[key], &whole)))
		typ := typeOf(key)
		for name := range whole {
			asked := slices.Contains(kept[typ], strings.TrimPrefix(name, "_"))
			switch got := fields[name] != nil; {
			case got && !asked:
				c.errorf("%s has %s, which was not asked for", typ, name)
			case !got && asked:
				c.errorf("%s lacks %s, which was asked for or is mandatory", typ, name)
			}
		}
		tagged := false
		for _, tag := range parseResource(line).Meta.Tag {
			tagged = tagged || tag.Code == subsetted && tag.System == "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
		}
		if !tagged {
			c.errorf("%s lacks the tag SUBSETTED", typ)
		}
	}
	c.rejected("an element below the root", c.try(kickoff{query: "_elements=Patient.name.family"}))
}

// patientsWithConditions are two Patients who have Conditions, and what they have.
func (c *check) patientsWithConditions() (chosen []string, rows map[string]json.RawMessage) {
	all := c.repeated()
	rows = map[string]json.RawMessage{}
	for _, key := range slices.Sorted(maps.Keys(all.ofType("Patient"))) {
		for of, line := range all.ofType("Condition") {
			if refersTo(line, key) {
				rows[of], rows[key] = line, all.rows[key]
			}
		}
		if rows[key] != nil {
			chosen = append(chosen, key)
		}
		if len(chosen) == 2 {
			return chosen, rows
		}
	}
	c.lack("two Patients with Conditions")
	return nil, nil
}

func patientList(c *check) {
	chosen, want := c.patientsWithConditions()
	if len(want) == len(c.repeated().rows) {
		c.lack("a third Patient")
	}
	reference := func(key string) [3]string {
		return [3]string{"patient", "Reference", fmt.Sprintf(`{"reference":%q}`, key)}
	}
	some := [3]string{"_type", "String", `"Patient,Condition"`}
	e := c.optional("patient", kickoff{path: "Patient/$export", body: parameters(some, reference(chosen[0]), reference(chosen[1]))})
	c.sameKeys("patient", e.rows, want)

	id := c.groupID()
	members, stranger := c.members(id), ""
	for key := range c.repeated().ofType("Patient") {
		if !slices.Contains(members, strings.TrimPrefix(key, "Patient/")) {
			stranger = key
		}
	}
	if stranger == "" {
		c.lack("a Patient who is no member of the Group")
	}
	c.refusedSooner("a Patient who is no member", kickoff{path: "Group/" + id + "/$export", body: parameters(reference(stranger))})
	c.refusedSooner("an unknown Patient", kickoff{path: "Patient/$export", body: parameters(reference("Patient/no-such-patient-0"))})
	c.rejected("patient at system level", c.try(kickoff{body: parameters(reference(chosen[0]))}))
	c.rejected("patient in a GET", c.try(kickoff{path: "Patient/$export", query: query("patient", chosen[0])}))
}

// refusedSooner checks that a kick-off is refused, or the export that it began fails.
func (c *check) refusedSooner(what string, k kickoff) {
	e, err := c.runExport(c.ctx, k)
	if refused, ok := asRefusal(err); ok {
		c.refused(what, refused.answer)
		return
	}
	c.must(err)
	c.drop(e)
	c.refused(what, e.last)
}

func associated(c *check) {
	exports := map[string]func(*check) *export{}
	for _, values := range []string{"LatestProvenanceResources", "RelevantProvenanceResources", "LatestProvenanceResources,RelevantProvenanceResources"} {
		exports[values] = func(c *check) *export {
			return c.shareOptional(values, "includeAssociatedData is refused", kickoff{query: query("_type", "Patient", "includeAssociatedData", values)})
		}
	}
	c.ahead(slices.Collect(maps.Values(exports))...)
	run := func(values string) map[string]json.RawMessage { return exports[values](c).ofType("Provenance") }
	patients := c.repeated().ofType("Patient")
	relevant, latest := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	newest := map[string]string{} // the key of the newest Provenance by its target
	all := c.system().ofType("Provenance")
	for key, line := range all {
		for _, target := range targets(line) {
			if patients[target] == nil {
				continue
			}
			relevant[key] = line
			if other := newest[target]; other == "" || recorded(all[other]).Before(recorded(line)) {
				newest[target] = key
			}
		}
	}
	for _, key := range newest {
		latest[key] = all[key]
	}
	if len(relevant) <= len(latest) {
		c.lack("a Patient with two Provenance")
	}
	c.sameKeys("LatestProvenanceResources", run("LatestProvenanceResources"), latest)
	c.sameKeys("RelevantProvenanceResources", run("RelevantProvenanceResources"), relevant)
	c.sameKeys("both", run("LatestProvenanceResources,RelevantProvenanceResources"), relevant)
}

func recorded(line []byte) time.Time {
	var p struct {
		Recorded time.Time `json:"recorded"`
	}
	// One without it is older than any other.
	_ = json.Unmarshal(line, &p)
	return p.Recorded
}

func typeFilter(c *check) {
	chosen, want := c.patientsWithConditions()
	all := c.repeated()
	for key, line := range all.ofType("Patient") {
		want[key] = line
	}
	if len(want) == len(all.rows) {
		c.lack("a third Patient with Conditions")
	}
	e := c.optional("_typeFilter", kickoff{query: query("_type", "Patient,Condition",
		"_typeFilter", "Condition?patient="+chosen[0], "_typeFilter", "Condition?patient="+chosen[1])})
	c.sameKeys("_typeFilter", e.rows, want)
	if len(e.twice) > 0 {
		c.errorf("%d resources came twice", len(e.twice))
	}
}

func typeFilterLimits(c *check) {
	if a := c.try(kickoff{query: query("_typeFilter", "Condition?_lastUpdated=ge2000")}); a.status != http.StatusAccepted {
		c.notOffered("_typeFilter is refused")
	}
	for _, filter := range []string{
		"Condition?_include=Condition:subject", "Patient?_revinclude=Condition:subject", "Condition?_sort=_id", "Condition?_count=1",
		"Condition?_elements=id", "Condition?_summary=true", "Patient/1/Condition?code=x", "?_lastUpdated=ge2000", "*?_lastUpdated=ge2000",
	} {
		c.rejected("_typeFilter="+filter, c.try(kickoff{query: "_typeFilter=" + url.QueryEscape(filter)}))
	}
}

// organised is an export in blocks of Patients.
func (c *check) organised() *export {
	e, err := c.organisedOnce()
	c.orNotOffered(err, "organizeOutputBy is refused")
	return c.complete(e)
}

func (c *check) organisedOnce() (*export, error) {
	return c.once("organised", kickoff{path: "Patient/$export", query: "organizeOutputBy=Patient&_type=Patient,Condition,Observation"})
}

func organizeOutputBy(c *check) {
	c.rejected("organizeOutputBy=Foo", c.try(kickoff{query: "organizeOutputBy=Foo"}))
	c.oneTypeEach()
	if e := c.organised(); len(e.manifest.Output) == 0 {
		c.errorf("no files came")
	}
}

func allowPartial(c *check) {
	k := kickoff{query: "_type=Patient,Condition&allowPartialManifests=true"}
	c.sameKeys("allowPartialManifests", c.optional("allowPartialManifests", k).rows, c.repeated().rows)
}
