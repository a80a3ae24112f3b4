package exporter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// asExported is what the files hold of a resource of the sample server, by encoding/json: the relative URLs of its
// Attachments are absolute, and where elements were asked for it has no others.
func asExported(t *testing.T, kickoff state.Kickoff, typ, body string) string {
	t.Helper()
	body = strings.ReplaceAll(body, `"url":"Binary/`, `"url":"`+kickoff.Base+`/Binary/`)
	keeps := slices.Concat([]string{"resourceType", "id", "meta"}, map[string][]string{
		"Condition": {"subject"}, "Encounter": {"status", "class"}, "Group": {"type", "actual"},
		"Immunization": {"status", "vaccineCode", "patient"}, "Observation": {"status", "code"},
		"Provenance": {"target", "recorded", "agent"},
		"Binary":     {"contentType"}, "DocumentReference": {"status", "content"},
	}[typ])
	subsetted := false
	for _, element := range kickoff.Elements {
		of, name, typed := strings.Cut(element, ".")
		if !typed {
			name = element
		}
		if !typed || of == typ {
			subsetted, keeps = true, append(keeps, name)
		}
	}
	if !subsetted {
		return body
	}
	decoder := json.NewDecoder(strings.NewReader(body))
	if _, err := decoder.Token(); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			t.Fatal(err)
		}
		const tag = `"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]`
		if name == "meta" {
			if value = bytes.TrimSuffix(value, []byte("}")); bytes.Contains(value, []byte(`"tag"`)) {
				t.Fatal("the sample server has tags of its own")
			}
			value = append(value, `,`+tag+`}`...)
		}
		if slices.Contains(keeps, name.(string)) {
			kept = append(kept, fmt.Sprintf(`%q:%s`, name, value))
		}
	}
	return "{" + strings.Join(kept, ",") + "}"
}

// documents are resources with Attachments, and the Binary that one of them is in.
var documents = []string{
	`{"resourceType":"Patient","id":"p","name":[{"family":"K\u00f8"}],"photo":[{"contentType":"image/png","url":"Binary/photo"}]}`,
	`{"resourceType":"Binary","id":"photo","contentType":"image/png","securityContext":{"reference":"Patient/p"},"data":"QUJD"}`,
	`{"resourceType":"Binary","id":"logo","contentType":"image/png","data":"QUJD"}`,
	`{"resourceType":"DocumentReference","id":"d","status":"current","description":"scan","subject":{"reference":"Patient/p"},"content":[{"attachment":{"url":"Binary/photo","size":3}},{"attachment":{"url":"https://elsewhere.example/1"}}]}`,
	`{"resourceType":"Observation","id":"o","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p"},"derivedFrom":[{"reference":"Binary/photo"}],"valueQuantity":{"value":1.10}}`,
	`{"resourceType":"Group","id":"g","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/p"}}]}`,
}

// Ensure the files hold the elements that were asked for and absolute URLs of attachments, and that a Binary travels as the
// Attachment of what refers to it, unless the whole system is exported (Bulk Data guide, section Attachments).
func TestElementsAndAttachments(t *testing.T) {
	for _, elements := range [][]string{nil, {"id"}, {"Patient.photo", "DocumentReference.content"}, {"subject"}} {
		for _, level := range []state.Level{state.System, state.Patient, state.Group} {
			t.Run(fmt.Sprint(level, elements), func(t *testing.T) {
				t.Parallel()
				e := startEngine(t, fhirtest.Plain(), 0, nil)
				for _, resource := range documents {
					if err := e.sample.Put([]byte(resource)); err != nil {
						t.Fatal(err)
					}
				}
				kickoff := kickoffOf(level)
				kickoff.Elements = elements
				want := map[string]string{}
				for key, body := range e.snapshot() {
					typ, _, _ := strings.Cut(key, "/")
					theirs := []string{"Patient/p", "DocumentReference/d", "Observation/o"}
					if level == state.System || slices.Contains(theirs, key) || key == "Group/g" && level == state.Patient {
						want[key] = asExported(t, kickoff, typ, body)
					}
				}
				same(t, e.rows(e.await(e.kickOff(kickoff))), want)
			})
		}
	}
}

// Ensure a kick-off that has its attachments at the server gets no key for links, whatever is configured.
func TestServerAttachmentsHaveNoKey(t *testing.T) {
	t.Parallel()
	e := startEngine(t, fhirtest.Plain(), 1, func(c *exporter.Config) { c.Attachments = exporter.SignedAttachments })
	for _, server := range []bool{false, true} {
		kickoff := kickoffOf(state.Patient, "Patient")
		kickoff.ServerAttachments = server
		if job := e.await(e.kickOff(kickoff)); (len(job.AttachmentKey) == 0) != server {
			t.Errorf("at the server %t: a key of %d bytes", server, len(job.AttachmentKey))
		}
	}
}

// Ensure a Binary of the server is named by the job's own link, the same one in each row, however the server names it and
// whether the row was crawled, repaired from the history or organised; and that nothing else is named so.
func TestAttachmentsAreLinksOfTheJob(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"", "Patient"} {
		changed := make(chan struct{})
		e := startEngine(t, fhirtest.Plain(), 0, func(c *exporter.Config) { c.PageSize, c.Attachments = 10, exporter.SignedAttachments })
		const moved = `{"resourceType":"DocumentReference","id":"moved","status":"current","subject":{"reference":"Patient/p"},"content":[{"attachment":{"url":"%s"}}]}`
		for _, resource := range append(documents, fmt.Sprintf(moved, e.upstream+"/Binary/photo")) {
			if err := e.sample.Put([]byte(resource)); err != nil {
				t.Fatal(err)
			}
		}
		e.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/DocumentReference") && r.URL.Query().Get("_count") == "10" && r.URL.Query().Get("_sort") != ""
		}, Times: 1, Do: func(*http.Request) {
			if err := e.sample.Put(fmt.Appendf(nil, moved, "Binary/later")); err != nil {
				t.Error(err)
			}
			close(changed)
		}})
		kickoff := kickoffOf(state.Patient, "DocumentReference", "Patient")
		kickoff.OrganizeBy = by
		job := e.await(e.kickOff(kickoff))
		select {
		case <-changed:
		default:
			t.Fatal("nothing changed while the export ran")
		}
		files, err := e.store.Files(t.Context(), job.ID)
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, file := range files {
			all += strings.Join(e.lines(job.Folder+"/"+file.Name), "\n") + "\n"
		}
		link, ok := job.AttachmentAddress("Binary/photo")
		if got := strings.Count(all, `"url":"`+link+`"`); !ok || got != 3 || strings.Count(all, "Binary/") != 3 {
			t.Errorf("organised by %q: %q stands in %d rows, want 3:\n%s", by, link, got, all)
		}
		if !strings.Contains(all, `"url":"https://elsewhere.example/1"`) {
			t.Errorf("organised by %q: a URL elsewhere did not stay:\n%s", by, all)
		}
	}
}

// Ensure what is left out of the files still decides: a resource belongs to a patient by a reference that nobody asked for,
// and brings along what it refers to. And rows that changed while the export ran are cut like the others.
func TestElementsAreCutWhenAllElseIsDecided(t *testing.T) {
	t.Parallel()
	changed := make(chan struct{})
	e := startEngine(t, fhirtest.Plain(), 20, func(c *exporter.Config) { c.PageSize = 10 })
	kickoff := kickoffOf(state.Patient)
	kickoff.Elements = []string{"language"}
	want := map[string]string{}
	for key, body := range e.snapshot() {
		switch typ, _, _ := strings.Cut(key, "/"); typ {
		case "Patient", "Practitioner", "Organization":
			want[key] = asExported(t, kickoff, typ, body)
		}
	}
	kickoff.Types = []string{"Encounter", "Organization", "Patient", "Practitioner"}
	e.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/Patient") && r.URL.Query().Get("_count") == "10" && r.URL.Query().Get("_sort") != ""
	}, Times: 1, Do: func(*http.Request) {
		if err := e.sample.Put([]byte(`{"resourceType":"Patient","id":"pat-00001","language":"new"}`)); err != nil {
			t.Error(err)
		}
		close(changed)
	}})
	got := e.rows(e.await(e.kickOff(kickoff)))
	select {
	case <-changed:
	default:
		t.Fatal("nothing changed while the export ran")
	}
	encounters := 0
	for key, line := range got {
		if strings.HasPrefix(key, "Encounter/") {
			encounters++
			delete(got, key)
			if strings.Contains(line, "subject") || !strings.Contains(line, "SUBSETTED") {
				t.Errorf("%s is %s", key, line)
			}
		}
	}
	if encounters < 20 {
		t.Errorf("%d Encounters are exported", encounters)
	}
	same(t, got, want)
}
