package exporter_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// rewrite puts a new version of an Observation.
func rewrite(s *fhirtest.Server, id string, n int) error {
	return s.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":%q,"language":"v%d"}`, id, n))
}

// Ensure a slow transaction that brings a deleted resource back is found although the deletion has a later time: the
// order of versions counts, and that of a deletion without a resource stands in its ETag.
func TestDeletionIsOrderedByItsVersion(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		err := b.sample.Delete("Observation", "Obs-29")
		row := []byte(`{"resourceType":"Observation","id":"Obs-29","language":"back"}`)
		if err := errors.Join(err, b.sample.PutAt(row, time.Now().Add(-2*time.Second))); err != nil {
			t.Fatal(err)
		}
		want := b.snapshot()
		changed := false
		b.link.hook = func(r *http.Request) {
			if isRowPage(r) && !changed {
				changed = true
				if err := rewrite(b.sample, "Obs-29", 4); err != nil {
					t.Error(err)
				}
			}
		}
		same(t, b.rows(b.finish(b.kickOff(system()))), want)
	})
}

// Ensure a deletion without a time that comes between the two histories that are to place it is not taken for one
// before T.
func TestDeletionBetweenTwoHistories(t *testing.T) {
	inBubble(t, fhirtest.HAPI(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		want := b.snapshot()
		pages, histories := 0, 0
		b.link.hook = func(r *http.Request) {
			history := strings.HasSuffix(r.URL.Path, "/Obs-29/_history")
			if isRowPage(r) {
				pages++
			} else if history {
				histories++
			}
			var err error
			switch {
			case history && histories == 2:
				err = errors.Join(rewrite(b.sample, "Obs-29", 2), b.sample.Delete("Observation", "Obs-29"))
			case isRowPage(r) && pages == 1:
				err = b.sample.Delete("Observation", "Obs-29")
			}
			if err != nil {
				t.Error(err)
			}
		}
		got := b.rows(b.finish(b.kickOff(system())))
		if histories < 2 {
			t.Fatalf("%d histories of the row were read, want two", histories)
		}
		same(t, got, want)
	})
}

// Ensure a nested Group that is deleted between T and its reading still has the members of T.
func TestNestedGroupDeletedAfterTheTransactionTime(t *testing.T) {
	fill := clinic(t, 6, 4, group("g", member("Patient/p1"), member("Group/h")), group("h", member("Patient/p4")))
	inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
		want := ofPatients(t, b.snapshot(), "p1", "p4")
		deleted := false
		b.link.hook = func(r *http.Request) {
			if !deleted && strings.HasSuffix(r.URL.Path, "/Group/g") {
				deleted = true
				if err := b.sample.Delete("Group", "h"); err != nil {
					t.Error(err)
				}
			}
		}
		same(t, b.rows(b.finish(b.kickOff(groupOf("g")))), want)
	})
}
