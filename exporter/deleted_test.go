package exporter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// deleted reads the deleted files of a job: "Type/id" of each DELETE.
func (e *engine) deleted(job *state.Job) []string {
	e.t.Helper()
	files, err := e.store.Files(e.t.Context(), job.ID)
	if err != nil {
		e.t.Fatal(err)
	}
	var urls []string
	for _, file := range files {
		if file.Kind != state.Deleted {
			continue
		}
		lines := e.lines(job.Folder + "/" + file.Name)
		if file.Type != "Bundle" || int64(len(lines)) != file.Count {
			e.t.Errorf("%s: type %s, %d lines, count %d", file.Name, file.Type, len(lines), file.Count)
		}
		for _, line := range lines {
			var bundle struct {
				ResourceType, Type string
				Entry              []struct{ Request struct{ Method, URL string } }
			}
			if err := json.Unmarshal([]byte(line), &bundle); err != nil || bundle.ResourceType != "Bundle" || bundle.Type != "transaction" {
				e.t.Fatalf("no transaction Bundle: %v", err)
			}
			for _, entry := range bundle.Entry {
				if entry.Request.Method != "DELETE" {
					e.t.Errorf("request %s", entry.Request.Method)
				}
				urls = append(urls, entry.Request.URL)
			}
		}
	}
	slices.Sort(urls)
	return urls
}

// must fails the test on an error of a write.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func dose(id, patient string) []byte {
	return fmt.Appendf(nil, `{"resourceType":"Immunization","id":%q,"patient":{"reference":"Patient/%s"}}`, id, patient)
}

// Ensure an increment names what was deleted since, at each level only what belonged to it, and never what it exports: a
// resource that was deleted and made again is not deleted, one that is deleted after T not yet. What has left by an edit is
// counted, and named once it is deleted in the same time.
func TestIncrementNamesDeletions(t *testing.T) {
	levels := map[string]struct {
		kickoff state.Kickoff
		want    []string
		rows    []string
		left    map[string]int64 // by an edit
	}{
		"system": {
			system(),
			[]string{"Immunization/i0", "Immunization/i1", "Immunization/i7", "Immunization/short", "Organization/org", "Patient/p3"},
			[]string{"Immunization/i2", "Immunization/i3", "Immunization/i4", "Immunization/i9", "Immunization/i16"},
			map[string]int64{},
		},
		"patient": {
			state.Kickoff{Level: state.Patient, Base: "http://public/fhir"},
			[]string{"Immunization/i0", "Immunization/i1", "Immunization/i7", "Immunization/short", "Patient/p3"},
			[]string{"Immunization/i2", "Immunization/i3", "Immunization/i4", "Immunization/i9"},
			map[string]int64{"Immunization": 1},
		},
		"group": {
			groupOf("g"),
			[]string{"Immunization/i1", "Immunization/i7", "Immunization/short", "Patient/p3"},
			[]string{"Immunization/i4"},
			map[string]int64{"Immunization": 3},
		},
	}
	for _, personality := range personalities() {
		for name, level := range levels {
			t.Run(personality.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				fill := clinic(t, 6, 4, group("g", member("Patient/p1"), member("Patient/p3"), member("Patient/p4")))
				inBubble(t, personality, smallPages, func(s *fhirtest.Server) {
					fill(s)
					must(t, s.PutAt([]byte(`{"resourceType":"Organization","id":"org"}`), time.Now().Add(-time.Hour)))
				}, func(t *testing.T, b *bubble) {
					first := b.finish(b.kickOff(level.kickoff))
					if got := b.deleted(first); len(got) > 0 {
						t.Errorf("an export without _since names %d deletions", len(got))
					}
					<-time.After(5 * time.Minute)
					must(t, b.sample.Delete("Immunization", "i0"), b.sample.Delete("Immunization", "i1"), b.sample.Delete("Organization", "org"),
						b.sample.Delete("Immunization", "i2"), b.sample.Delete("Immunization", "i3"), b.sample.Delete("Patient", "p3"))
					<-time.After(5 * time.Second)
					must(t, b.sample.Put(dose("i2", "p2")), b.sample.Put(dose("i3", "p3")), b.sample.Put(dose("short", "p1")), b.sample.Put(bytes.Replace(dose("i4", "p4"), []byte("{"), []byte(`{"language":"en",`), 1)))
					<-time.After(5 * time.Second)
					must(t, b.sample.Delete("Immunization", "i3"), b.sample.Put(dose("i3", "p5")), b.sample.Delete("Immunization", "short"),
						b.sample.Put(dose("i7", "p5")), b.sample.Put(dose("i9", "p5")), b.sample.Put([]byte(`{"resourceType":"Immunization","id":"i16"}`)))
					<-time.After(5 * time.Second)
					must(t, b.sample.Delete("Immunization", "i7"))
					<-time.After(5 * time.Minute)
					want := map[string]string{}
					for key, line := range b.snapshot() {
						if slices.Contains(level.rows, key) {
							want[key] = line
						}
					}
					kickoff := level.kickoff
					kickoff.Since = first.TransactionTime
					id := b.kickOff(kickoff)
					<-time.After(2500 * time.Millisecond) // T is fixed: what follows belongs to the next increment
					must(t, b.sample.Delete("Immunization", "i8"), b.sample.Delete("Immunization", "i10"))
					second := b.finish(id)
					same(t, b.rows(second), want)
					if got := b.deleted(second); !slices.Equal(got, level.want) {
						t.Errorf("deleted %s, want %s", strings.Join(got, " "), strings.Join(level.want, " "))
					}
					if got := departed(second); !maps.Equal(got, level.left) {
						t.Errorf("counted as departed %v, want %v", got, level.left)
					}
					if len(second.Issues) > 0 {
						t.Errorf("remarks %+v", second.Issues)
					}
				})
			})
		}
	}
}

// Ensure a deletion of which no version is left is not reported at Patient and Group level, where nobody can say whose it was,
// and that this is told; at system level nothing has to be known of it but that it is gone.
func TestDeletionOfWhichNoVersionIsLeft(t *testing.T) {
	for name, kickoff := range map[string]state.Kickoff{
		"system": system(), "patient": {Level: state.Patient, Base: "http://public/fhir"}, "group": groupOf("g"),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, fhirtest.Plain(), smallPages, ward(t), func(t *testing.T, b *bubble) {
				kickoff.Since = b.finish(b.kickOff(kickoff)).TransactionTime
				<-time.After(time.Minute)
				must(t, b.sample.Delete("Observation", "o1"), b.sample.Delete("MedicationRequest", "m1"))
				const path = "/fhir/Observation/o1/_history"
				b.sample.Fail(fhirtest.Fault{
					Match: func(r *http.Request) bool { return r.URL.Path == path }, Status: http.StatusOK, Body: newestOnly(t, b.sample, path), Times: -1,
				})
				<-time.After(time.Minute)
				job := b.finish(b.kickOff(kickoff))
				want := []string{"MedicationRequest/m1"}
				if kickoff.Level == state.System {
					want = append(want, "Observation/o1")
				}
				if got := b.deleted(job); !slices.Equal(got, want) {
					t.Errorf("deleted: got %q, want %q (%s %+v)", got, want, job.Status, job.Failure)
				}
				told := slices.ContainsFunc(job.Issues, func(i state.Issue) bool {
					return strings.HasPrefix(i.Text, "1 deleted Observation resource has no version left")
				})
				if told != (kickoff.Level != state.System) {
					t.Errorf("it is told: %v: %v", told, job.Issues)
				}
			})
		})
	}
}

// newestOnly is a history of which the server has kept the newest version alone.
func newestOnly(t *testing.T, sample http.Handler, path string) []byte {
	t.Helper()
	recorder := httptest.NewRecorder()
	sample.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	var bundle map[string]any
	must(t, json.Unmarshal(recorder.Body.Bytes(), &bundle))
	entries, _ := bundle["entry"].([]any)
	if len(entries) != 2 {
		t.Fatalf("%d versions, want 2", len(entries))
	}
	bundle["entry"], bundle["total"] = entries[:1], 1
	text, err := json.Marshal(bundle)
	must(t, err)
	return text
}

// Ensure rows that a late write made stale are taken out of files that the bucket has already.
func TestStaleRowsAreTakenOutOfStoredFiles(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			trail := &auditTrail{}
			small := func(c *exporter.Config) {
				smallPages(c)
				c.MaxFileBytes, c.Gzip, c.Audit = 700, personality.Name != "plain", trail
			}
			inBubble(t, personality, small, thirtyRows(t), func(t *testing.T, b *bubble) {
				clock := b.sample.Now
				pages := 0
				b.link.hook = func(r *http.Request) {
					if !isRowPage(r) {
						return
					}
					if pages++; pages != 3 {
						return
					}
					jobs, err := b.store.List(t.Context())
					must(t, err)
					b.sample.Now = func() time.Time { return jobs[0].TransactionTime.Add(-time.Second) }
					for i := range 5 {
						must(t, b.sample.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":"Obs-%d","language":"late"}`, 2*i)))
					}
					must(t, b.sample.Delete("Observation", "Obs-9"))
					b.sample.Now = clock
				}
				job := b.finish(b.kickOff(system()))
				same(t, b.rows(job), b.snapshot())
				files, err := b.store.Files(t.Context(), job.ID)
				must(t, err)
				rewritten := 0
				for _, file := range files {
					if file.Rewritten {
						rewritten++
					}
				}
				if rewritten == 0 {
					t.Error("no stored file was rewritten: the test shows nothing")
				}
				b.checkHashes(job, trail)
			})
		})
	}
}
