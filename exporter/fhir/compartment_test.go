package fhir_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"sidecar/exporter/fhir"
)

func TestPatientCompartmentHasTheSizeOfTheOfficialDefinition(t *testing.T) {
	for _, test := range []struct {
		version      string
		types, pairs int
	}{
		// Types and (type, parameter) pairs of the definition; Device by patient is ours up to R4B, and R5's "{def}" is
		// the 106th entry but no parameter.
		{"4.0.1", 66 + 1, 100 + 1},
		{"4.3.0", 66 + 1, 100 + 1},
		{"5.0.0", 73, 105},
	} {
		c := compartment(t, test.version)
		if got := len(c.Types()); got != test.types {
			t.Errorf("%s: %d types, want %d", test.version, got, test.types)
		}
		if got := len(pairs(c)); got != test.pairs {
			t.Errorf("%s: %d pairs, want %d", test.version, got, test.pairs)
		}
		if !slices.IsSorted(c.Types()) || !slices.Contains(c.Types(), "Patient") {
			t.Errorf("%s: types are not sorted or lack Patient", test.version)
		}
		for _, typ := range c.Types() {
			if !c.Contains(typ) || len(c.Params(typ)) == 0 {
				t.Errorf("%s: %s is listed without being contained", test.version, typ)
			}
		}
	}
}

func TestPatientCompartmentPicksByMajorAndMinor(t *testing.T) {
	for version, like := range map[string]string{
		"4.0": "4.0.1", "4.0.0": "4.0.1", "4.1.0": "4.3.0", "4.3.0-snapshot1": "4.3.0", "5.0": "5.0.0",
	} {
		if got, want := compartment(t, version), compartment(t, like); got != want {
			t.Errorf("%s: not the table of %s", version, like)
		}
	}
	for _, version := range []string{"", "4", "R4", "1.0.2", "3.0.2", "4.2.0", "4.6.0", "5.1", "6.0.0", "40.1", " 4.0.1"} {
		if c, err := fhir.PatientCompartment(version); err == nil || c != nil {
			t.Errorf("%q: got a table, want an error", version)
		}
	}
}

func TestPatientCompartmentOfR4AndR4BAreTheSame(t *testing.T) {
	if got, want := pairs(compartment(t, "4.3.0")), pairs(compartment(t, "4.0.1")); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPatientCompartmentParams(t *testing.T) {
	for _, test := range []struct{ version, typ, want string }{
		{"4.0.1", "Observation", "subject=subject performer=performer"},
		{"4.0.1", "AllergyIntolerance", "patient=patient recorder=recorder asserter=asserter"},
		{"4.0.1", "Appointment", "actor=participant.actor"},
		{"4.0.1", "AuditEvent", "patient=agent.who,entity.what"},
		{"4.0.1", "CarePlan", "patient=subject performer=activity.detail.performer"},
		{"4.0.1", "Composition", "subject=subject author=author attester=attester.party"},
		{"4.0.1", "Coverage", "policy-holder=policyHolder subscriber=subscriber beneficiary=beneficiary payor=payor"},
		{"4.0.1", "Device", "patient=patient"},
		{"4.0.1", "Encounter", "patient=subject"},
		{"4.0.1", "EnrollmentRequest", "subject=candidate"},
		{"4.0.1", "Group", "member=member.entity"},
		{"4.0.1", "Invoice", "subject=subject patient=subject recipient=recipient"},
		{"4.0.1", "MedicationAdministration", "patient=subject performer=performer.actor subject=subject"},
		{"4.0.1", "Patient", "link=link.other"},
		{"4.0.1", "Person", "patient=link.target"},
		{"4.0.1", "Provenance", "patient=target"},
		{"4.0.1", "RequestGroup", "subject=subject participant=action.participant"},
		{"4.0.1", "ResearchSubject", "individual=individual"},
		{"4.0.1", "SupplyRequest", "subject=deliverTo"},
		{"4.0.1", "Contract", ""},
		{"4.0.1", "GuidanceResponse", ""},
		{"4.0.1", "Organization", ""},
		{"4.0.1", "Task", ""},
		{"5.0.0", "AllergyIntolerance", "patient=patient participant=participant.actor"},
		{"5.0.0", "AuditEvent", "patient=patient"},
		{"5.0.0", "CarePlan", "patient=subject"},
		{"5.0.0", "CommunicationRequest", "subject=subject information-provider=informationProvider recipient=recipient requester=requester"},
		{"5.0.0", "Condition", "patient=subject participant-actor=participant.actor"},
		{"5.0.0", "Consent", "subject=subject"},
		{"5.0.0", "Contract", "patient=subject"},
		{"5.0.0", "Coverage", "policy-holder=policyHolder subscriber=subscriber beneficiary=beneficiary paymentby-party=paymentBy.party"},
		{"5.0.0", "Device", ""},
		{"5.0.0", "DeviceAssociation", "subject=subject operator=operation.operator"},
		{"5.0.0", "DeviceRequest", "subject=subject performer=performer.reference"},
		{"5.0.0", "Media", ""},
		{"5.0.0", "NutritionIntake", "subject=subject source=reportedReference"},
		{"5.0.0", "Patient", "link=link.other"},
		{"5.0.0", "Person", "patient=link.target"},
		{"5.0.0", "RequestOrchestration", "subject=subject participant=action.participant.actorReference"},
		{"5.0.0", "Task", "patient=for focus=focus"},
	} {
		c := compartment(t, test.version)
		if got := paramsText(c.Params(test.typ)); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.version, test.typ, got, test.want)
		}
		if got, want := c.Contains(test.typ), test.want != ""; got != want {
			t.Errorf("%s: contains %s is %v, want %v", test.version, test.typ, got, want)
		}
	}
}

func TestWithTaskAddsTaskWhereTheReleaseLacksIt(t *testing.T) {
	r4 := compartment(t, "4.0.1")
	with := r4.WithTask()
	if got, want := paramsText(with.Params("Task")), "patient=for"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := len(with.Types()), len(r4.Types())+1; got != want {
		t.Errorf("%d types, want %d", got, want)
	}
	if r4.Contains("Task") {
		t.Error("the compartment without Task has changed")
	}
	got, err := references(with, "Task", `{"for":{"reference":"Patient/a"},"focus":{"reference":"Patient/b"}}`)
	if want := "patient:Patient/a"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if r5 := compartment(t, "5.0.0"); r5.WithTask() != r5 {
		t.Error("R5 has Task already, want the same table")
	}
}

func TestReferences(t *testing.T) {
	for _, test := range []struct{ name, version, typ, resource, want string }{
		{"one", "4.0.1", "Encounter", `{"resourceType":"Encounter","subject":{"reference":"Patient/a"}}`, "patient:Patient/a"},
		{
			"in the order of the resource", "4.0.1", "Observation",
			`{"performer":[{"reference":"Practitioner/p"},{"reference":"Patient/b"}],"subject":{"reference":"Patient/a"}}`,
			"performer:Practitioner/p performer:Patient/b subject:Patient/a",
		},
		{
			"arrays of arrays", "4.0.1", "CarePlan",
			`{"activity":[{"detail":{"performer":[{"reference":"Patient/a"},{"display":"x"}]}},[[{"detail":[{"performer":{"reference":"Patient/b"}}]}]],{}]}`,
			"performer:Patient/a performer:Patient/b",
		},
		{"two parameters share a path", "4.0.1", "Invoice", `{"subject":{"reference":"Patient/a"}}`, "subject:Patient/a patient:Patient/a"},
		{
			"one parameter has two paths", "4.0.1", "AuditEvent",
			`{"agent":[{"who":{"reference":"Patient/a"}}],"entity":[{"what":{"reference":"Patient/b"}}],"source":{"observer":{"reference":"Patient/c"}}}`,
			"patient:Patient/a patient:Patient/b",
		},
		{
			"off the path", "4.0.1", "Observation",
			`{"contained":[{"resourceType":"Observation","subject":{"reference":"Patient/a"}}],
			  "focus":[{"reference":"Patient/b"}],"reference":"Patient/c",
			  "extension":[{"url":"x","valueReference":{"reference":"Patient/d"}}],
			  "subject":{"extension":[{"url":"x","valueReference":{"reference":"Patient/e"}}],"identifier":{"assigner":{"reference":"Patient/f"}}}}`,
			"",
		},
		{
			"no literal string", "4.0.1", "Observation",
			`{"subject":{"reference":null},"performer":["Patient/a",7,true,null,{"reference":{"reference":"Patient/b"}},{"reference":1}]}`,
			"",
		},
		{
			"repeated members", "4.0.1", "Encounter",
			`{"subject":{"reference":"Patient/a","reference":"Patient/b"},"subject":{"reference":"Patient/c"}}`,
			"patient:Patient/a patient:Patient/b patient:Patient/c",
		},
		{
			"pretty-printed", "4.0.1", "Encounter",
			" \r\n{\n\t\"subject\" : {\n\t\t\"reference\" :\r\n \"Patient/a\"\n\t}\n}\n ", "patient:Patient/a",
		},
		{"escapes", "4.0.1", "Encounter", `{"\u0073ubject":{"r\u0065ference":"\u0050atient\/x\"y"}}`, `patient:Patient/x"y`},
		{"names are whole", "4.0.1", "Encounter", `{"subjec":{"reference":"Patient/a"},"subjects":{"reference":"Patient/b"},"Subject":{"reference":"Patient/c"}}`, ""},
		{"lone surrogate", "4.0.1", "Encounter", `{"language":"\ud800","\ud800":1,"subject":{"reference":"Patient/a"}}`, "patient:Patient/a"},
		{
			"CodeableReference", "5.0.0", "DeviceRequest",
			`{"performer":{"reference":{"reference":"Patient/a"},"concept":{"text":"x"}},"subject":{"reference":"Patient/b"}}`,
			"performer:Patient/a subject:Patient/b",
		},
		{"CodeableReference needs its Reference", "5.0.0", "DeviceRequest", `{"performer":{"reference":"Patient/a"}}`, ""},
		{
			"canonical is no reference", "5.0.0", "RequestOrchestration",
			`{"action":[{"participant":[{"actorCanonical":"Patient/a"},{"actorReference":{"reference":"Patient/b"}}]}]}`,
			"participant:Patient/b",
		},
		{"choice of another type", "5.0.0", "NutritionIntake", `{"reportedBoolean":true,"reported":{"reference":"Patient/a"}}`, ""},
		{"type outside", "4.0.1", "Organization", `not even JSON`, ""},
		{"no reference", "4.0.1", "Observation", `{}`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := references(compartment(t, test.version), test.typ, test.resource)
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestReferencesStopsWhenToldSo(t *testing.T) {
	for _, resource := range []string{
		`{"subject":{"reference":"Patient/a"},"recipient":{"reference":"Patient/b"}}`,
		`{"subject":[[{"reference":"Patient/a"},{"reference":"Patient/b"}]]}`,
		`{"subject":{"reference":"Patient/a"},"recipient":`,
	} {
		calls := 0
		err := compartment(t, "4.0.1").References("Invoice", []byte(resource), func(string, string) bool {
			calls++
			return false
		})
		if err != nil || calls != 1 {
			t.Errorf("%s: %d calls, %v, want 1 call", resource, calls, err)
		}
	}
}

func TestReferencesFailsOnMalformedJSONWithoutShowingIt(t *testing.T) {
	for _, resource := range []string{
		``, ` `, `null`, `"x"`, `7`, `[]`, `[{"subject":{"reference":"Patient/secret"}}]`, `{`, `{"subject"`, `{"subject":`,
		`{"subject":{"reference":"Patient/secret`, `{"subject":{"reference":"Patient/secret"}`, `{"subject":[}`, `{"a":1,}`,
		`{"subject":{"reference":"Patient/secret"}} x`, `{}{}`, `{"secret":secret}`, `{"subject":{"secret":[secret]}}`,
		`{secret:1}`, `{"subject":{"reference":"\x"}}`, "{\"language\":\"\xff\"}",
	} {
		_, err := references(compartment(t, "4.0.1"), "Encounter", resource)
		if !errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", resource, err)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows content: %v", resource, err)
		}
	}
}

func TestReferencesLeavesTheResourceAsItIs(t *testing.T) {
	resource := []byte(`{"subject":{"reference":"\u0050atient/a"},"participant":[{"individual":{"reference":"Patient/b"}}]}`)
	before := string(resource)
	c := compartment(t, "4.0.1")
	for range 3 { // the decoder is used again and must not write into an earlier resource
		if _, err := references(c, "Encounter", string(resource)); err != nil {
			t.Fatal(err)
		}
		if err := c.References("Encounter", resource, func(string, string) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(resource); got != before {
		t.Errorf("got %s, want %s", got, before)
	}
}

func TestReferencesMayBeNested(t *testing.T) {
	c := compartment(t, "4.0.1")
	resource := `{"subject":{"reference":"Patient/a"},"recipient":{"reference":"Patient/b"}}`
	var got []string
	err := c.References("Invoice", []byte(resource), func(param, reference string) bool {
		inner, err := references(c, "Encounter", `{"subject":{"reference":"Patient/c"}}`)
		got = append(got, param+":"+reference, inner)
		return err == nil
	})
	want := "subject:Patient/a patient:Patient/c patient:Patient/a patient:Patient/c recipient:Patient/b patient:Patient/c"
	if err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

func TestLocalReference(t *testing.T) {
	bases := []string{"http://fhir.example/r4", "https://proxy.example:8000/fhir/", "", "/"}
	for _, test := range []struct{ reference, id string }{
		{"Patient/x", "x"},
		{"Patient/x/_history/3", "x"},
		{"Patient/MRN:1|2 ü", "MRN:1|2 ü"},
		{"Patient/_history", "_history"},
		{"http://fhir.example/r4/Patient/x", "x"},
		{"http://fhir.example/r4/Patient/x/_history/3", "x"},
		{"https://proxy.example:8000/fhir/Patient/x", "x"},
		{"", ""},
		{"Patient", ""},
		{"Patient/", ""},
		{"Patient//x", ""},
		{"Patient/x/", ""},
		{"Patient/x/_history", ""},
		{"Patient/x/_history/", ""},
		{"Patient/x/_history/3/4", ""},
		{"Patient/x/Observation/3", ""},
		{"Patient/x#part", ""},
		{"Patient/x/_history/3#part", ""},
		{"Patient/x?y=z", ""},
		{"Patient?identifier=x", ""},
		{"patient/x", ""},
		{"/Patient/x", ""},
		{"//Patient/x", ""},
		{"PatientX/x", ""},
		{"RelatedPerson/x", ""},
		{"x", ""},
		{"#x", ""},
		{"#Patient/x", ""},
		{"urn:uuid:7b1d1a3e-6b0f-4a50-9d32-0f6c8a1d5a11", ""},
		{"urn:oid:1.2.3", ""},
		{"http://other.example/r4/Patient/x", ""},
		{"https://fhir.example/r4/Patient/x", ""},
		{"http://fhir.example/r4b/Patient/x", ""},
		{"http://fhir.example/r4/r4/Patient/x", ""},
		{"http://fhir.example/r4/Group/x", ""},
		{"http://fhir.example/r4Patient/x", ""},
		{"http://fhir.example/r4", ""},
	} {
		id, ok := fhir.LocalReference("Patient", test.reference, bases)
		if id != test.id || ok != (test.id != "") {
			t.Errorf("%q: got %q, %v, want %q", test.reference, id, ok, test.id)
		}
	}
	if id, ok := fhir.LocalReference("Patient", "http://fhir.example/r4/Patient/x", nil); ok {
		t.Errorf("without a base: got %q, want none", id)
	}
}

// FuzzReferences holds the walk against a tree built by encoding/json.
func FuzzReferences(f *testing.F) {
	f.Add("Observation", []byte(`{"subject":{"reference":"Patient/a"},"performer":[{"reference":"Patient/b"}]}`))
	f.Add("CarePlan", []byte(`{"activity":[[{"detail":{"performer":[{"reference":"\u0050atient\/a"}]}}]]}`))
	f.Add("Invoice", []byte("{\n \"subject\": {\"reference\": \"Patient/a\"}, \"subject\": []\n}"))
	f.Add("DeviceRequest", []byte(`{"performer":{"reference":{"reference":"Patient/a"}}}`))
	f.Add("Encounter", []byte(`{"subject":{"reference":"Patient/a"}`))
	f.Add("AuditEvent", []byte("{\"agent\":[{\"who\":{\"reference\":\"\xff\"}}],\"x\":\"\\ud800\"}"))
	tables := []*fhir.Compartment{compartment(f, "4.0.1"), compartment(f, "5.0.0")}
	f.Fuzz(func(t *testing.T, typ string, resource []byte) {
		for _, c := range tables {
			if !c.Contains(typ) {
				continue
			}
			var got []string
			err := c.References(typ, resource, func(param, reference string) bool {
				got = append(got, param+":"+reference)
				return true
			})
			value := jsontext.Value(resource)
			if valid := isJSON(resource) && value.Kind() == '{'; valid != (err == nil) {
				t.Fatalf("error %v, want one: %v", err, !valid)
			}
			if err != nil || !value.IsValid() { // the tree keeps one of several members and replaces lone surrogates
				continue
			}
			var tree any
			if err := json.Unmarshal(resource, &tree); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, p := range c.Params(typ) {
				for _, path := range p.Paths {
					want = treeReferences(want, p.Name, tree, strings.Split(path+".reference", "."))
				}
			}
			want = shortOnes(want)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	})
}

func BenchmarkReferences(b *testing.B) {
	c := compartment(b, "4.0.1")
	resource := []byte(`{"resourceType":"Observation","id":"o1","meta":{"versionId":"1","lastUpdated":"2024-01-01T00:00:00Z"},"status":"final",` +
		`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"laboratory"}]}],` +
		`"code":{"coding":[{"system":"http://loinc.org","code":"2339-0","display":"Glucose"}],"text":"Glucose"},` +
		`"subject":{"reference":"Patient/a"},"encounter":{"reference":"Encounter/e"},"effectiveDateTime":"2024-01-01T00:00:00Z",` +
		`"performer":[{"reference":"Practitioner/p","display":"Dr. P"}],` +
		`"valueQuantity":{"value":80.5,"unit":"mg/dL","system":"http://unitsofmeasure.org","code":"mg/dL"}}`)
	b.SetBytes(int64(len(resource)))
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		err := c.References("Observation", resource, func(string, string) bool { n++; return true })
		if err != nil || n != 2 {
			b.Fatalf("%d references, %v, want 2", n, err)
		}
	}
}

func compartment(tb testing.TB, version string) *fhir.Compartment {
	tb.Helper()
	c, err := fhir.PatientCompartment(version)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// references renders what References finds as "param:reference param:reference".
func references(c *fhir.Compartment, typ, resource string) (string, error) {
	var found []string
	err := c.References(typ, []byte(resource), func(param, reference string) bool {
		found = append(found, param+":"+reference)
		return true
	})
	return strings.Join(found, " "), err
}

func treeReferences(found []string, param string, value any, path []string) []string {
	switch value := value.(type) {
	case []any:
		for _, v := range value {
			found = treeReferences(found, param, v, path)
		}
	case map[string]any:
		if len(path) > 0 {
			found = treeReferences(found, param, value[path[0]], path[1:])
		}
	case string:
		if len(path) == 0 {
			found = append(found, param+":"+value)
		}
	}
	return found
}

func pairs(c *fhir.Compartment) []string {
	found := map[string]bool{}
	for _, typ := range c.Types() {
		for _, p := range c.Params(typ) {
			found[fmt.Sprint(typ, p)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func paramsText(params []fhir.Param) string {
	var texts []string
	for _, p := range params {
		texts = append(texts, p.Name+"="+strings.Join(p.Paths, ","))
	}
	return strings.Join(texts, " ")
}
