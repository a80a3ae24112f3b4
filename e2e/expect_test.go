package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// set holds Type/id keys.
type set map[string]bool

// compartmentPaths is the Patient compartment of R4, typed by hand from the definition's page
// (hl7.org/fhir/R4/compartmentdefinition-patient.html): the element that each of its search parameters reads. It is
// deliberately not made from the product's generated tables. AuditEvent and Task are in optionalPaths.
var compartmentPaths = map[string][]string{
	"Account":                     {"subject"},
	"AdverseEvent":                {"subject"},
	"AllergyIntolerance":          {"patient", "recorder", "asserter"},
	"Appointment":                 {"participant.actor"},
	"AppointmentResponse":         {"actor"},
	"Basic":                       {"subject", "author"},
	"BodyStructure":               {"patient"},
	"CarePlan":                    {"subject", "activity.detail.performer"},
	"CareTeam":                    {"subject", "participant.member"},
	"ChargeItem":                  {"subject"},
	"Claim":                       {"patient", "payee.party"},
	"ClaimResponse":               {"patient"},
	"ClinicalImpression":          {"subject"},
	"Communication":               {"subject", "sender", "recipient"},
	"CommunicationRequest":        {"subject", "sender", "recipient", "requester"},
	"Composition":                 {"subject", "author", "attester.party"},
	"Condition":                   {"subject", "asserter"},
	"Consent":                     {"patient"},
	"Coverage":                    {"policyHolder", "subscriber", "beneficiary", "payor"},
	"CoverageEligibilityRequest":  {"patient"},
	"CoverageEligibilityResponse": {"patient"},
	"DetectedIssue":               {"patient"},
	"DeviceRequest":               {"subject", "performer"},
	"DeviceUseStatement":          {"subject"},
	"DiagnosticReport":            {"subject"},
	"DocumentManifest":            {"subject", "author", "recipient"},
	"DocumentReference":           {"subject", "author"},
	"Encounter":                   {"subject"},
	"EnrollmentRequest":           {"candidate"},
	"EpisodeOfCare":               {"patient"},
	"ExplanationOfBenefit":        {"patient", "payee.party"},
	"FamilyMemberHistory":         {"patient"},
	"Flag":                        {"subject"},
	"Goal":                        {"subject"},
	"Group":                       {"member.entity"},
	"ImagingStudy":                {"subject"},
	"Immunization":                {"patient"},
	"ImmunizationEvaluation":      {"patient"},
	"ImmunizationRecommendation":  {"patient"},
	"Invoice":                     {"subject", "recipient"},
	"List":                        {"subject", "source"},
	"MeasureReport":               {"subject"},
	"Media":                       {"subject"},
	"MedicationAdministration":    {"subject", "performer.actor"},
	"MedicationDispense":          {"subject", "receiver"},
	"MedicationRequest":           {"subject"},
	"MedicationStatement":         {"subject"},
	"MolecularSequence":           {"patient"},
	"NutritionOrder":              {"patient"},
	"Observation":                 {"subject", "performer"},
	"Person":                      {"link.target"},
	"Procedure":                   {"subject", "performer.actor"},
	"Provenance":                  {"target"},
	"QuestionnaireResponse":       {"subject", "author"},
	"RelatedPerson":               {"patient"},
	"RequestGroup":                {"subject", "action.participant"},
	"ResearchSubject":             {"individual"},
	"RiskAssessment":              {"subject"},
	"Schedule":                    {"actor"},
	"ServiceRequest":              {"subject", "performer"},
	"Specimen":                    {"subject"},
	"SupplyDelivery":              {"patient"},
	"SupplyRequest":               {"deliverTo"},
	"VisionPrescription":          {"patient"},
	// Not in the definition; exported all the same, since a device of a patient is the patient's.
	"Device": {"patient"},
}

// optionalPaths are exported only where _type names them.
var optionalPaths = map[string][]string{
	"AuditEvent": {"agent.who", "entity.what"},
	"Task":       {"for"},
}

// system is what an export at system level must hold: everything, or everything of the types.
func (d *dataset) system(types ...string) set {
	want := set{}
	for key := range d.rows {
		if len(types) == 0 || slices.Contains(types, typeOf(key)) {
			want[key] = true
		}
	}
	return want
}

// patientLevel is what an export of all patients must hold, of the types only where any are named.
func (d *dataset) patientLevel(t *testing.T, types ...string) set {
	t.Helper()
	return d.whole(t, types, func(string) bool { return true }, func(string) bool { return true })
}

// groupLevel is what an export of a Group must hold at a moment, of the types only where any are named.
func (d *dataset) groupLevel(t *testing.T, id string, at time.Time, types ...string) set {
	t.Helper()
	members, groups := set{}, set{}
	d.collectMembers(t, id, at, members, groups)
	// A Group that shares a member would tell about other cohorts.
	want := d.whole(t, types, func(patient string) bool { return members[patient] }, func(typ string) bool { return typ != "Group" })
	if slices.Contains(types, "Group") {
		for group := range groups {
			want["Group/"+group] = true
		}
	}
	return want
}

// aroundTypes are nobody's compartment; what an export's resources refer to in them goes along.
var aroundTypes = []string{"Device", "Location", "Medication", "Organization", "Practitioner", "PractitionerRole", "Substance"}

// whole is a compartment with the Provenance of what is in it, and what all of that refers to in two steps.
func (d *dataset) whole(t *testing.T, types []string, wanted, allowed func(string) bool) set {
	t.Helper()
	asked := func(typ string) bool { return len(types) == 0 || slices.Contains(types, typ) }
	drop := func(key string, _ bool) bool { return !allowed(typeOf(key)) }
	members, want := d.compartment(t, nil, wanted), d.compartment(t, types, wanted)
	maps.DeleteFunc(members, drop)
	maps.DeleteFunc(want, drop)
	for key := range d.rows {
		if typeOf(key) == "Provenance" && asked("Provenance") &&
			slices.ContainsFunc(d.read(t, key).targets, func(target string) bool { return members[target] }) {
			want[key] = true
		}
	}
	frontier := maps.Clone(want)
	for range 2 {
		next := set{}
		for key := range frontier {
			for _, reference := range d.read(t, key).references {
				typ := typeOf(reference)
				if _, there := d.rows[reference]; there && !want[reference] && asked(typ) && slices.Contains(aroundTypes, typ) {
					want[reference], next[reference] = true, true
				}
			}
		}
		frontier = next
	}
	return want
}

// allReferences are the texts of all members called reference.
func allReferences(node any) (found []string) {
	switch node := node.(type) {
	case []any:
		for _, item := range node {
			found = append(found, allReferences(item)...)
		}
	case map[string]any:
		for name, value := range node {
			if text, ok := value.(string); ok && name == "reference" {
				found = append(found, text)
				continue
			}
			found = append(found, allReferences(value)...)
		}
	}
	return found
}

// compartment walks all rows: a row counts where one of its type's paths names a Patient who is wanted.
func (d *dataset) compartment(t *testing.T, types []string, wanted func(patient string) bool) set {
	t.Helper()
	want := set{}
	for key := range d.rows {
		typ := typeOf(key)
		if len(types) > 0 && !slices.Contains(types, typ) {
			continue
		}
		if typ == "Patient" {
			if wanted(strings.TrimPrefix(key, "Patient/")) {
				want[key] = true
			}
			continue
		}
		if len(optionalPaths[typ]) > 0 && !slices.Contains(types, typ) {
			continue
		}
		if slices.ContainsFunc(d.read(t, key).patients, wanted) {
			want[key] = true
		}
	}
	return want
}

// reading is what the expectations need of a record. It is kept: each of them asks for it of every record.
type reading struct {
	patients, targets, references []string
}

func (d *dataset) read(t *testing.T, key string) *reading {
	t.Helper()
	if r := d.readings[key]; r != nil {
		return r
	}
	tree, typ := parse(t, d.rows[key]), typeOf(key)
	r := &reading{
		patients: patientsAt(tree, slices.Concat(compartmentPaths[typ], optionalPaths[typ])),
		targets:  references(tree, []string{"target"}), references: allReferences(tree),
	}
	if d.readings == nil {
		d.readings = map[string]*reading{}
	}
	d.readings[key] = r
	return r
}

// collectMembers adds the patients of a Group and of the Groups in it, and the ids of these Groups.
func (d *dataset) collectMembers(t *testing.T, id string, at time.Time, members, groups set) {
	t.Helper()
	if groups[id] {
		return
	}
	groups[id] = true
	tree, ok := parse(t, d.rows["Group/"+id]).(map[string]any)
	if !ok {
		t.Fatalf("Group/%s is not among the records", id)
	}
	list, _ := tree["member"].([]any)
	for _, item := range list {
		member, _ := item.(map[string]any)
		if member["inactive"] == true || !covers(t, member["period"], at) {
			continue
		}
		for _, reference := range references(member, []string{"entity"}) {
			if patient, ok := localID(reference, "Patient"); ok {
				members[patient] = true
			}
			if nested, ok := localID(reference, "Group"); ok {
				d.collectMembers(t, nested, at, members, groups)
			}
		}
	}
}

// covers tells whether a FHIR period holds a moment; an absent bound is open, an end without a time includes its day.
func covers(t *testing.T, period any, at time.Time) bool {
	t.Helper()
	bounds, _ := period.(map[string]any)
	if start, ok := bounds["start"].(string); ok {
		if first, _ := instants(t, start); at.Before(first) {
			return false
		}
	}
	if end, ok := bounds["end"].(string); ok {
		if _, after := instants(t, end); !at.Before(after) {
			return false
		}
	}
	return true
}

// instants gives the first moment of a FHIR dateTime and the first moment after it.
func instants(t *testing.T, text string) (first, after time.Time) {
	t.Helper()
	for _, form := range []struct {
		layout              string
		years, months, days int
		more                time.Duration
	}{
		{"2006", 1, 0, 0, 0}, {"2006-01", 0, 1, 0, 0}, {"2006-01-02", 0, 0, 1, 0}, {time.RFC3339, 0, 0, 0, time.Second},
	} {
		if first, err := time.Parse(form.layout, text); err == nil {
			return first, first.AddDate(form.years, form.months, form.days).Add(form.more)
		}
	}
	t.Fatalf("a period holds %q", text)
	return first, after
}

// patientsAt gives the ids of the Patients that a resource names at the paths.
func patientsAt(tree any, paths []string) []string {
	var patients []string
	for _, path := range paths {
		for _, reference := range references(tree, strings.Split(path, ".")) {
			if patient, ok := localID(reference, "Patient"); ok {
				patients = append(patients, patient)
			}
		}
	}
	return patients
}

// references gives the literal references at a path; a list stands for each of its items.
func references(node any, path []string) []string {
	switch node := node.(type) {
	case []any:
		var found []string
		for _, item := range node {
			found = append(found, references(item, path)...)
		}
		return found
	case map[string]any:
		if len(path) > 0 {
			return references(node[path[0]], path[1:])
		}
		if reference, ok := node["reference"].(string); ok {
			return []string{reference}
		}
	}
	return nil
}

// localID gives the id of a reference to a type of this server, with or without a version. The records hold no
// absolute references: the server's port differs from run to run.
func localID(reference, typ string) (string, bool) {
	parts := strings.Split(reference, "/")
	if len(parts) != 2 && (len(parts) != 4 || parts[2] != "_history") {
		return "", false
	}
	return parts[1], parts[0] == typ
}

func parse(t *testing.T, resource json.RawMessage) any {
	t.Helper()
	if resource == nil {
		return nil
	}
	var tree any
	if err := json.Unmarshal(resource, &tree); err != nil {
		t.Fatalf("decode a record: %v", err)
	}
	return tree
}

func typeOf(key string) string {
	typ, _, _ := strings.Cut(key, "/")
	return typ
}

// equalSets fails the test where an export lacks a row or holds one too many.
func equalSets(t *testing.T, got map[string]json.RawMessage, want set) {
	t.Helper()
	var missing, extra []string
	for key := range want {
		if got[key] == nil {
			missing = append(missing, key)
		}
	}
	for key := range got {
		if !want[key] {
			extra = append(extra, key)
		}
	}
	if len(missing)+len(extra) > 0 {
		t.Errorf("the export has %d rows, want %d: missing %s; too many %s", len(got), len(want), summary(missing), summary(extra))
	}
}

// summary tells of many keys how many of each type there are, and the first few.
func summary(keys []string) string {
	if len(keys) == 0 {
		return "none"
	}
	slices.Sort(keys)
	types := map[string]int{}
	for _, key := range keys {
		types[typeOf(key)]++
	}
	return fmt.Sprintf("%v, such as %v", types, keys[:min(5, len(keys))])
}
