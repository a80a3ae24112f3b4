package conformance

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

func kickoffRows() []Row {
	return section("Kick-off",
		row("K-01", shall, "$export stands at the base, at Patient and at Group/[id]", levels),
		row("K-02", shall, "a kick-off by GET is accepted", byGet),
		row("K-03", may, "a kick-off by POST takes a Parameters resource and nothing else", byPost),
		row("K-04", shall, "a repeated parameter means what its comma list means", repeats),
		row("K-05", may, "without Accept or Prefer a kick-off is accepted or refused properly", bareKickoff),
		row("K-06", shall, "an accepted kick-off is 202 with an absolute Content-Location", acceptedAt),
		row("K-07", may, "the body of the 202 is empty or an OperationOutcome", acceptedBody),
		row("K-08", shall, "every refusal is 4xx or 5xx with an OperationOutcome", refusals),
		row("K-09", should, "one export too many is refused with 429 and Retry-After", tooMany).alone(),
		row("K-10", shall, "a granted separate-export-status is named in Preference-Applied", preferenceApplied),
		row("K-11", should, "Patient and Group exports hold the compartments and the Patients themselves", compartments),
		row("K-12", may, "Patient and Group exports may hold what their resources refer to", referredTo),
		row("K-13", shall, "patients' Binary content travels as DocumentReference, not as Binary", binaryOfPatients),
		row("K-14", may, "system exports may hold Binary", binaryOfSystem),
		row("K-15", may, "references are relative or absolute", referenceForms),
		row("K-16", may, "Groups of others than patients may be exported", untestable("what such an export holds is not said; the members of such a Group are not in any patient's record")),
		row("K-17", should, "Groups can be read and searched", groupsReadable),
		row("K-18", shall, "every Provenance of what is exported comes along, unless _type leaves it out", provenance),
		row("K-19", may, "a type that is not supported is refused with an OperationOutcome", unknownType),
	)
}

var referenceForm = regexp.MustCompile(`^(#.*|urn:.+|https?://.+|[A-Z][A-Za-z]+/[A-Za-z0-9.\-]+(/_history/.+)?)$`)

func levels(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		if e.accepted.status != http.StatusAccepted {
			c.errorf("status %d, want 202", e.accepted.status)
		}
	}
}

// posted is an export that was kicked off by POST.
func (c *check) posted() *export {
	return c.shareOptional("posted", "POST is refused", kickoff{body: parameters([3]string{"_type", "String", `"Patient"`})})
}

func byPost(c *check) {
	e := c.posted()
	for key := range e.rows {
		if typeOf(key) != "Patient" {
			c.errorf("_type in the body did not hold: the export holds %s", typeOf(key))
		}
	}
	if len(e.rows) == 0 {
		c.errorf("no Patient came")
	}
	c.rejected("a body that is no Parameters", c.try(kickoff{body: `{"resourceType":"Patient"}`}))
}

// repeated is an export of two types by repeats.
func (c *check) repeated() *export {
	return c.share("repeats", kickoff{query: "_type=Patient&_type=Condition"})
}

func repeats(c *check) {
	list := c.export(kickoff{query: query("_type", "Patient,Condition")})
	c.sameKeys("repeats against the comma list", c.repeated().rows, list.rows)
	if len(list.ofType("Patient")) == 0 || len(list.ofType("Condition")) == 0 {
		c.lack("Patients and Conditions")
	}
}

func bareKickoff(c *check) {
	for _, header := range []http.Header{{}, {"Accept": {fhirJSON}}, {"Prefer": {"respond-async"}}} {
		a := c.try(kickoff{query: "_type=Patient", header: header})
		if a.status == http.StatusAccepted && a.header.Get("Content-Location") != "" {
			continue
		}
		c.refused("a kick-off without Accept or Prefer", a)
	}
}

func refusals(c *check) {
	base := c.Base
	for _, test := range []struct {
		what string
		request
		statuses []int
	}{
		{"a Group that is not there", request{url: base + "/Group/no-such-group-0/$export"}, []int{404, 400}},
		{"a parameter that is not known", request{url: base + "/$export?noSuchParameter=1"}, []int{400, 422}},
		{"an instant that is none", request{url: base + "/$export?_since=yesterday"}, []int{400, 422}},
		{"PUT of $export", request{method: http.MethodPut, url: base + "/$export"}, []int{400, 404, 405}},
		{"a body that is not JSON", request{method: http.MethodPost, url: base + "/$export", body: []byte("{"), header: http.Header{"Content-Type": {fhirJSON}}}, []int{400, 422}},
		{"a status address that is not known", request{url: c.unknownStatus()}, []int{404}},
	} {
		a := c.send(test.request)
		c.refused(test.what, a)
		c.refusedWith(test.what, a, test.statuses...)
	}
	if c.has(needsTokens) {
		c.refused("a token that is not known", c.try(kickoff{token: "no-such-token"}))
	}
	if refusal := c.burst().refusal; refusal.status != 0 {
		c.refused("one export too many", refusal)
	}
}

// unknownStatus is the address of a status, of which another letter makes one that was never given out.
func (c *check) unknownStatus() string {
	status := c.system().status
	last := status[len(status)-1]
	other := byte('0')
	if last == other {
		other = '1'
	}
	return status[:len(status)-1] + string(other)
}

func compartments(c *check) {
	all := c.patients()
	if got, want := len(all.ofType("Patient")), c.count("Patient"); got != want {
		c.errorf("the Patient export holds %d Patients, the server has %d", got, want)
	}
	// The subject of each Condition is a Patient, or a Group in rare cases.
	ofPatients := map[string]json.RawMessage{}
	for key, line := range c.system().ofType("Condition") {
		if slices.ContainsFunc(references(line), func(reference string) bool { return typeOf(localKey(reference)) == "Patient" }) {
			ofPatients[key] = line
		}
	}
	c.sameKeys("Conditions of Patients", all.ofType("Condition"), ofPatients)
	members := c.members(c.groupID())
	var got []string
	group := c.group()
	for key := range group.ofType("Patient") {
		got = append(got, strings.TrimPrefix(key, "Patient/"))
	}
	slices.Sort(got)
	if !slices.Equal(got, members) {
		c.errorf("the Group export holds %d Patients, the Group has %d members", len(got), len(members))
	}
	want := map[string]json.RawMessage{}
	for key, line := range all.ofType("Condition") {
		if slices.ContainsFunc(members, func(id string) bool { return refersTo(line, "Patient/"+id) }) {
			want[key] = line
		}
	}
	c.sameKeys("Conditions of the Group", group.ofType("Condition"), want)
	if len(want) == 0 || len(want) == len(ofPatients) {
		c.lack("Conditions of members of a Group, and of others")
	}
}

func provenance(c *check) {
	system, patients := c.system(), c.patients()
	all := system.ofType("Provenance")
	if len(all) == 0 {
		c.lack("a Provenance")
	}
	if got, want := len(all), c.count("Provenance"); got != want {
		c.errorf("the system export holds %d Provenance, the server has %d", got, want)
	}
	for level, e := range map[string]*export{"Patient": patients, "Group": c.group()} {
		want := map[string]json.RawMessage{}
		for key, line := range all {
			if e.holdsTarget(line) {
				want[key] = line
			}
		}
		c.sameKeys("Provenance at "+level+" level", e.ofType("Provenance"), want)
		if len(want) == 0 {
			c.lack("a Provenance of what the " + level + " export holds")
		}
	}
	if rows := c.repeated().ofType("Provenance"); len(rows) > 0 {
		c.errorf("an export with _type=Patient,Condition holds %d Provenance", len(rows))
	}
}

// holdsTarget tells whether the export holds a target of a Provenance. What an export holds beside the compartment, such
// as Practitioner, is no target that counts.
func (e *export) holdsTarget(line []byte) bool {
	for _, key := range targets(line) {
		switch typeOf(key) {
		case "Practitioner", "Organization", "Location", "Medication", "Device", "PractitionerRole", "Provenance", "Substance":
		default:
			if e.rows[key] != nil {
				return true
			}
		}
	}
	return false
}

// targets are what a Provenance is about.
func targets(line []byte) []string {
	var p struct {
		Target []struct {
			Reference string `json:"reference"`
		} `json:"target"`
	}
	if json.Unmarshal(line, &p) != nil {
		return nil
	}
	var keys []string
	for _, target := range p.Target {
		keys = append(keys, localKey(target.Reference))
	}
	return keys
}

func byGet(c *check) {
	if e := c.system(); e.request.body != nil || e.accepted.status != http.StatusAccepted {
		c.errorf("GET $export: status %d, want 202", e.accepted.status)
	}
}

func acceptedAt(c *check) {
	for _, e := range []*export{c.system(), c.patients()} {
		if !strings.HasPrefix(e.status, "http://") && !strings.HasPrefix(e.status, "https://") || e.accepted.status != http.StatusAccepted {
			c.errorf("status %d and Content-Location %q, want 202 and an absolute address", e.accepted.status, e.status)
		}
	}
}

func acceptedBody(c *check) {
	if body := c.system().accepted.body; len(body) > 0 {
		if _, err := parseOutcome(body); err != nil {
			c.errorf("the body of the 202 is %v", err)
		}
	}
}

func preferenceApplied(c *check) {
	applied := strings.Join(c.separate().accepted.header.Values("Preference-Applied"), ",")
	for _, name := range []string{"respond-async", "separate-export-status"} {
		if !strings.Contains(applied, name) {
			c.errorf("Preference-Applied %q does not name %s", applied, name)
		}
	}
}

func referredTo(c *check) {
	e := c.patients()
	for _, typ := range []string{"Practitioner", "Organization", "Location", "Medication"} {
		if len(e.ofType(typ)) > 0 {
			return
		}
	}
	c.notOffered("none of Practitioner, Organization, Location, Medication")
}

func binaryOfPatients(c *check) {
	e := c.patients()
	if len(e.ofType("Binary"))+len(c.group().ofType("Binary")) > 0 {
		c.errorf("there are files of Binary")
	}
	if len(e.ofType("DocumentReference")) == 0 {
		c.lack("a DocumentReference")
	}
}

func binaryOfSystem(c *check) {
	if len(c.system().ofType("Binary")) == 0 {
		c.notOffered("no Binary in the system export")
	}
}

func referenceForms(c *check) {
	found := 0
	for _, line := range c.system().rows {
		for _, reference := range references(line) {
			found++
			if !referenceForm.MatchString(reference) {
				c.errorf("a reference of %s is neither relative nor absolute", typeOf(keyOf(line)))
			}
		}
	}
	if found == 0 {
		c.lack("a resource with a reference")
	}
}

func groupsReadable(c *check) {
	if a := c.get(c.Base + "/Group?_count=1"); a.status != http.StatusOK {
		c.fatalf("a search of Groups: status %d, want 200", a.status)
	}
	id := c.groupID()
	if a := c.get(c.Base + "/Group/" + id); a.status != http.StatusOK {
		c.errorf("GET of a Group: status %d, want 200", a.status)
	}
	if found := c.search("Group?_id=" + id); len(found.Entry) != 1 {
		c.errorf("a search of the Group finds %d, want 1", len(found.Entry))
	}
}

func unknownType(c *check) {
	c.rejected("_type=Foo", c.try(kickoff{query: "_type=Foo"}))
}
