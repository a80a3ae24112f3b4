package fhirtest_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

func TestTransactionHasOneInstant(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		u.put(`{"resourceType":"Basic","id":"old"}`)
		a := u.do("POST", "", `{"resourceType":"Bundle","type":"transaction","entry":[
			{"fullUrl":"urn:uuid:1","resource":{"resourceType":"Patient","active":true},"request":{"method":"POST","url":"Patient"}},
			{"resource":{"resourceType":"Observation","id":"o","subject":{"reference":"urn:uuid:1"},"valueQuantity":{"value":1.10}},"request":{"method":"PUT","url":"Observation/o"}},
			{"request":{"method":"DELETE","url":"Basic/old"}}]}`)
		if got := strings.Fields(statuses(t, a.body)); a.status != 200 || strings.Join(got, " ") != "201 201 204" {
			t.Fatalf("got %d %v: %s", a.status, got, a.body)
		}
		patient, observation := headOf(t, u.Resources("Patient")[0]), u.Resources("Observation")[0]
		if patient.ID == "" || patient.Meta.LastUpdated != headOf(t, observation).Meta.LastUpdated {
			t.Errorf("got %+v", patient)
		}
		if !bytes.Contains(observation, []byte(`"value":1.10`)) {
			t.Errorf("got %s", observation)
		}
		if got := u.get("/Observation?patient=" + patient.ID).ids(t); got != "o" {
			t.Errorf("search: got %q", got)
		}
		if got := u.do("GET", "/Basic/old", "").status; got != 410 {
			t.Errorf("deleted: got %d", got)
		}
	})
}

func statuses(t *testing.T, body []byte) string {
	t.Helper()
	var b bundle
	if err := json.Unmarshal(body, &b); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range b.Entry {
		list = append(list, strings.Fields(e.Response.Status)[0])
	}
	return strings.Join(list, " ")
}

const oneBadEntry = `"entry":[
	{"resource":{"resourceType":"Basic","id":"a"},"request":{"method":"PUT","url":"Basic/a"}},
	{"resource":{"resourceType":"Basic","id":"x"},"request":{"method":"PUT","url":"Basic/b"}},
	{"resource":{"resourceType":"Basic","id":"c"},"request":{"method":"PUT","url":"Basic/c"}}]}`

func TestTransactionIsAllOrNothing(t *testing.T) {
	u := start(t, fhirtest.Plain())
	if got := u.do("POST", "/", `{"resourceType":"Bundle","type":"transaction",`+oneBadEntry).status; got != 400 {
		t.Errorf("got %d", got)
	}
	if got := len(u.Resources("Basic")); got != 0 {
		t.Errorf("got %d rows", got)
	}
	if err := u.Transaction([][]byte{[]byte(`{"resourceType":"Basic","id":"a"}`), []byte(`{"resourceType":"Basic","id":"b","meta":1}`)}); err == nil || len(u.Resources("Basic")) != 0 {
		t.Errorf("got %v, %d rows", err, len(u.Resources("Basic")))
	}
}

func TestBatchGoesOnAfterABadEntry(t *testing.T) {
	u := start(t, fhirtest.Plain())
	a := u.do("POST", "", `{"resourceType":"Bundle","type":"batch",`+oneBadEntry)
	if got := statuses(t, a.body); got != "201 400 201" {
		t.Errorf("got %s", got)
	}
	for _, body := range []string{`{}`, `x`, `{"resourceType":"Bundle","type":"collection"}`} {
		if got := u.do("POST", "", body).status; got != 400 {
			t.Errorf("%s: got %d", body, got)
		}
	}
}

func TestDeleteOfNothingFails(t *testing.T) {
	u := start(t, fhirtest.Plain())
	if err := u.Delete("Patient", "x"); err == nil {
		t.Error("no error")
	}
}
