package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
)

// generatedRecords makes a small set for machines that lack the Synthea file, the same at each call.
func generatedRecords() []json.RawMessage {
	random := rand.New(rand.NewPCG(3, 12_000))
	records := []json.RawMessage{
		row(`{"resourceType":"Organization","id":"gen-org","name":"Sample hospital"}`),
		row(`{"resourceType":"Practitioner","id":"gen-doc","name":[{"family":"Sample"}]}`),
	}
	for p := range 60 {
		patient := fmt.Sprintf("gen-patient-%03d", p)
		records = append(records, row(`{"resourceType":"Patient","id":%q,"gender":"female","birthDate":"19%02d-01-13",`+
			`"name":[{"family":"Family%d","given":["Given"]}],"managingOrganization":{"reference":"Organization/gen-org"}}`,
			patient, 30+p, p))
		for e := range 6 {
			records = append(records, generatedVisit(random, patient, e)...)
		}
	}
	return records
}

func generatedVisit(random *rand.Rand, patient string, number int) []json.RawMessage {
	visit := fmt.Sprintf("%s-visit-%d", patient, number)
	day := fmt.Sprintf("2019-%02d-%02dT08:%02d:00Z", 1+random.IntN(12), 1+random.IntN(28), random.IntN(60))
	records := []json.RawMessage{
		row(`{"resourceType":"Encounter","id":%q,"status":"finished","class":{"code":"AMB"},"subject":{"reference":"Patient/%s"},`+
			`"participant":[{"individual":{"reference":"Practitioner/gen-doc"}}],"period":{"start":%q}}`, visit, patient, day),
		row(`{"resourceType":"Condition","id":"%s-c","subject":{"reference":"Patient/%s"},"encounter":{"reference":"Encounter/%s"},`+
			`"code":{"text":"sample"}}`, visit, patient, visit),
		row(`{"resourceType":"Immunization","id":"%s-i","status":"completed","patient":{"reference":"Patient/%s"},`+
			`"vaccineCode":{"text":"sample"},"occurrenceDateTime":%q}`, visit, patient, day),
		row(`{"resourceType":"Coverage","id":"%s-v","status":"active","beneficiary":{"reference":"Patient/%s"},`+
			`"payor":[{"display":"sample"}]}`, visit, patient),
	}
	for o := range 10 {
		records = append(records, row(`{"resourceType":"Observation","id":"%s-o%d","status":"final","code":{"text":"sample"},`+
			`"subject":{"reference":"Patient/%s"},"encounter":{"reference":"Encounter/%s"},"effectiveDateTime":%q,`+
			`"valueQuantity":{"value":%d.%02d,"unit":"mg"}}`, visit, o, patient, visit, day, random.IntN(300), random.IntN(100)))
	}
	return records
}

// row makes one resource of a JSON text with fmt's verbs in it.
func row(format string, args ...any) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(format, args...))
}
