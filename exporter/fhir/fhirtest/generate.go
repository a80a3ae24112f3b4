package fhirtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// generator writes records; its random numbers make them vary and its seed makes them repeat.
type generator struct {
	rnd *rand.Rand
	out [][]byte
}

// Words of the records, chosen to be awkward for whoever copies JSON by halves: Unicode beside escapes.
var (
	families = []string{`Müller`, `Ó Briain`, `Nguyễn`, `Garc\u00eda`, `山田`, `O'Neill \"Jr.\"`, `Smith`, `Kowalczyk`, `Al-\u0627\u0644`}
	givens   = []string{`Ada`, `José`, `Zo\u00eb`, `Łukasz`, `太郎`, `Mia`, `Noah`, `Ayşe`, `\ud83d\ude00`}
	cities   = []string{`Zürich`, `São Paulo`, `Springfield`, `K\u00f8benhavn`}
	// labs are LOINC code, name, unit and a value whose trailing zero must survive.
	labs = [][4]string{
		{"8302-2", "Body height", "cm", "172.50"},
		{"29463-7", "Body weight", "kg", "70.0"},
		{"2339-0", "Glucose [Mass/volume] in Blood", "mg/dL", "1.10"},
		{"718-7", "Hemoglobin", "g/dL", "13.70"},
		{"6298-4", "Potassium", "mmol/L", "4.0e0"},
		{"38483-4", "Creatinine", "mg/dL", "0.90"},
	}
	problems = [][2]string{
		{"44054006", "Diabetes mellitus type 2"},
		{"38341003", "Hypertensive disorder, systemic arterial"},
		{"195967001", "Asthma"},
		{"444814009", "Viral sinusitis"},
	}
	allergens = [][2]string{{"91935009", "Allergy to peanuts"}, {"300916003", "Latex allergy"}, {"232350006", "House dust mite allergy"}}
	vaccines  = [][2]string{{"140", "Influenza, seasonal, injectable, preservative free"}, {"113", "Td (adult) preservative free"}}
)

// Generate writes a small clinic as single resources: organizations and practitioners, the patients with encounters,
// conditions, observations, immunizations, allergies (now and then recorded by another patient), devices and
// provenances, then the Groups. Group "demo-group" has ten members where there are patients enough: seven plain ones, an
// inactive one, one whose period has ended, and the Group "demo-nested" of two more; "demo-empty" has none. The result
// depends on nothing but seed and patients, and each resource follows the ones it refers to.
func Generate(seed uint64, patients int) [][]byte {
	g := &generator{rnd: rand.New(rand.NewPCG(seed, 0x66686972))}
	for i := range max(1, patients/50) {
		g.add(`{"resourceType":"Organization","id":"org-%d","active":true,"name":"Clinic %d \u2013 %s","telecom":[{"system":"phone","value":"+41 44 555 %02d %02d"}]}`,
			i+1, i+1, g.pick(cities), i%100, g.rnd.IntN(100))
		g.add(`{"resourceType":"Practitioner","id":"pract-%d","active":true,"name":[{"family":"%s","given":["%s"],"prefix":["Dr."]}]}`,
			i+1, g.pick(families), g.pick(givens))
	}
	for n := 1; n <= patients; n++ {
		g.patient(n, max(1, patients/50))
	}
	for n := 1; n <= patients; n++ {
		g.record(n, patients)
	}
	g.groups(patients)
	return g.out
}

func (g *generator) add(format string, args ...any) {
	g.out = append(g.out, fmt.Appendf(nil, format, args...))
}

func (g *generator) pick(words []string) string { return words[g.rnd.IntN(len(words))] }

func (g *generator) pair(words [][2]string) (code, text string) {
	w := words[g.rnd.IntN(len(words))]
	return w[0], w[1]
}

// date gives an instant of the ten years before 2025, to the second.
func (g *generator) date() time.Time {
	return time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(g.rnd.IntN(315_360_000)) * time.Second)
}

func patientID(n int) string { return fmt.Sprintf("pat-%05d", n) }

func (g *generator) patient(n, clinics int) {
	gender := []string{"female", "male", "other", "unknown"}[g.rnd.IntN(100)%3]
	g.add(`{"resourceType":"Patient","id":"%s","meta":{"profile":["http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient"]},`+
		`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Patient %d \u003cgenerated\u003e<\/div>"},`+
		`"identifier":[{"system":"urn:oid:2.16.756.5.32","value":"%09d"}],"active":true,`+
		`"name":[{"use":"official","family":"%s","given":["%s"]}],"gender":"%s","birthDate":"%d-%02d-%02d",`+
		`"address":[{"city":"%s","country":"CH"}],"managingOrganization":{"reference":"Organization/org-%d"}}`,
		patientID(n), n, g.rnd.IntN(1_000_000_000), g.pick(families), g.pick(givens), gender,
		1935+g.rnd.IntN(85), 1+g.rnd.IntN(12), 1+g.rnd.IntN(28), g.pick(cities), 1+g.rnd.IntN(clinics))
}

// record writes what belongs to one patient.
func (g *generator) record(n, patients int) {
	id := patientID(n)
	for e := range 1 + g.rnd.IntN(3) {
		start := g.date()
		g.add(`{"resourceType":"Encounter","id":"enc-%d-%d","status":"finished","class":{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"AMB"},`+
			`"subject":{"reference":"Patient/%s","display":"%s"},"period":{"start":"%s","end":"%s"},"participant":[{"individual":{"reference":"Practitioner/pract-1"}}]}`,
			n, e, id, g.pick(givens), start.Format(time.RFC3339), start.Add(20*time.Minute).Format(time.RFC3339))
		for o := range 1 + g.rnd.IntN(4) {
			lab := labs[g.rnd.IntN(len(labs))]
			g.add(`{"resourceType":"Observation","id":"obs-%d-%d-%d","status":"final",`+
				`"category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/observation-category","code":"laboratory"}]}],`+
				`"code":{"coding":[{"system":"http://loinc.org","code":"%s","display":"%s"}],"text":"%s"},"subject":{"reference":"Patient/%s"},`+
				`"encounter":{"reference":"Encounter/enc-%d-%d"},"effectiveDateTime":"%s","valueQuantity":{"value":%s,"unit":"%s","system":"http://unitsofmeasure.org"}}`,
				n, e, o, lab[0], lab[1], lab[1], id, n, e, start.Format(time.RFC3339), lab[3], lab[2])
		}
	}
	code, text := g.pair(problems)
	g.add(`{"resourceType":"Condition","id":"cond-%d","clinicalStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/condition-clinical","code":"active"}]},`+
		`"code":{"coding":[{"system":"http://snomed.info/sct","code":"%s","display":"%s"}]},"subject":{"reference":"Patient/%s"},"onsetDateTime":"%s","note":[{"text":"line 1\nline 2\t\u2603 %s"}]}`,
		n, code, text, id, g.date().Format("2006-01-02"), g.pick(givens))
	code, text = g.pair(vaccines)
	g.add(`{"resourceType":"Immunization","id":"imm-%d","status":"completed","vaccineCode":{"coding":[{"system":"http://hl7.org/fhir/sid/cvx","code":"%s","display":"%s"}]},`+
		`"patient":{"reference":"Patient/%s"},"occurrenceDateTime":"%s","primarySource":true,"doseQuantity":{"value":0.50,"unit":"mL"}}`,
		n, code, text, id, g.date().Format("2006-01-02"))
	if n%2 == 0 {
		code, text = g.pair(allergens)
		recorder := "Practitioner/pract-1"
		if n%4 == 0 {
			recorder = "Patient/" + patientID(1+g.rnd.IntN(patients))
		}
		g.add(`{"resourceType":"AllergyIntolerance","id":"all-%d","code":{"coding":[{"system":"http://snomed.info/sct","code":"%s","display":"%s"}]},`+
			`"patient":{"reference":"Patient/%s"},"recordedDate":"%s","recorder":{"reference":"%s"}}`, n, code, text, id, g.date().Format("2006-01-02"), recorder)
	}
	if n%5 == 0 {
		g.add(`{"resourceType":"Device","id":"dev-%d","status":"active","deviceName":[{"name":"Pacemaker™ %d","type":"user-friendly-name"}],"patient":{"reference":"Patient/%s"}}`, n, n, id)
	}
	if n%3 == 0 {
		g.add(`{"resourceType":"Provenance","id":"prov-%d","target":[{"reference":"Patient/%s"},{"reference":"Condition/cond-%d"}],"recorded":"%s","agent":[{"who":{"reference":"Organization/org-1"}}]}`,
			n, id, n, g.date().Format("2006-01-02T15:04:05.000Z07:00"))
	}
}

// groups writes the three Groups; members for whom there are no patients are left out.
func (g *generator) groups(patients int) {
	group := func(id string, members []string) {
		list := ""
		if len(members) > 0 {
			list = `,"member":[` + strings.Join(members, ",") + `]`
		}
		g.add(`{"resourceType":"Group","id":"%s","type":"person","actual":true,"name":"%s","quantity":%d%s}`, id, id, len(members), list)
	}
	member := func(n int, more string) []string {
		if n > patients {
			return nil
		}
		return []string{fmt.Sprintf(`{"entity":{"reference":"Patient/%s"}%s}`, patientID(n), more)}
	}
	group("demo-empty", nil)
	group("demo-nested", append(member(8, ""), member(9, "")...))
	var members []string
	for n := 1; n <= 7; n++ {
		members = append(members, member(n, "")...)
	}
	members = append(members, `{"entity":{"reference":"Group/demo-nested"}}`)
	members = append(members, member(10, `,"inactive":true`)...)
	members = append(members, member(11, `,"period":{"start":"2015-01-01","end":"2020-12-31"}`)...)
	group("demo-group", members)
}
