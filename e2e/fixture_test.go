package e2e

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"
)

// Ensure the server holds the records that the other tests expect, and the traps that HAPI makes of some.
func TestHAPIHoldsTheRecords(t *testing.T) {
	server := hapi(t)
	want := map[string]int{}
	for key := range server.data.rows {
		want[typeOf(key)]++
	}
	for _, typ := range slices.Sorted(maps.Keys(want)) {
		if got := server.count(t, typ); got != want[typ] {
			t.Errorf("HAPI holds %d %s, want %d", got, typ, want[typ])
		}
	}
	if got := server.count(t, "Observation?patient=Patient/e2e-late"); got != 0 {
		t.Errorf("HAPI finds %d rows of the Patient who was written late, want 0: its index would have no hole", got)
	}
	one, err := server.read(t.Context(), "Observation/e2e-burst-0000")
	if err != nil {
		t.Fatal(err)
	}
	moment := lastUpdatedOf(t, one)
	within := "Observation?_lastUpdated=ge" + moment.UTC().Format(instantLayout) +
		"&_lastUpdated=lt" + moment.Add(time.Millisecond).UTC().Format(instantLayout)
	if got := server.count(t, within); got != burstRows {
		t.Errorf("HAPI holds %d rows of one millisecond, want %d", got, burstRows)
	}
}

// count asks for the number of matches of a search.
func (s *hapiServer) count(t *testing.T, search string) int {
	t.Helper()
	separator := "?"
	if slices.Contains([]byte(search), '?') {
		separator = "&"
	}
	body, err := s.read(t.Context(), search+separator+"_summary=count")
	if err != nil {
		t.Fatal(err)
	}
	var bundle struct {
		Total int `json:"total"`
	}
	if err := json.Unmarshal(body, &bundle); err != nil {
		t.Fatalf("decode a count: %v", err)
	}
	return bundle.Total
}

// Ensure the expectations themselves are right where the answer can be told by hand.
func TestExpectedSets(t *testing.T) {
	data, err := readDataset()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	patients := func(positions ...int) []string {
		var keys []string
		for _, position := range positions {
			keys = append(keys, data.patient(position))
		}
		return keys
	}
	for _, test := range []struct {
		name     string
		got      set
		has, not []string
		size     int // 0: not told by hand
	}{
		{"system", data.system(), []string{"Location/e2e-location", "Task/e2e-task", "Group/" + groupDevices}, nil, len(data.rows)},
		{"system by type", data.system("Location", "Medication"), []string{"Location/e2e-location", "Medication/e2e-medication"}, nil, 2},
		{
			"Patient", data.patientLevel(t),
			[]string{
				"Patient/e2e-linked", "Observation/e2e-early-observation", "Observation/e2e-only-performer", "Observation/e2e-versioned", "Device/e2e-device",
				"Provenance/e2e-provenance-patient", "Provenance/e2e-provenance-both", "Group/" + groupTen, "Person/e2e-person", "Appointment/e2e-appointment",
			},
			[]string{
				"Task/e2e-task", "AuditEvent/e2e-audit", "Device/e2e-device-of-nobody", "Group/" + groupDevices,
				"Group/" + groupEmpty, "Observation/e2e-contained", "Observation/e2e-of-device", "Observation/e2e-of-group",
				"Observation/e2e-logical", "Observation/e2e-focus",
			},
			0,
		},
		{"Patient by type", data.patientLevel(t, "Task", "AuditEvent", "Location"), []string{"Task/e2e-task", "AuditEvent/e2e-audit"}, nil, 2},
		{
			groupTen, data.groupLevel(t, groupTen, now),
			[]string{
				"Patient/e2e-late", "Observation/e2e-early-observation", "Encounter/e2e-early-encounter", "Observation/e2e-two-observation",
				"AllergyIntolerance/e2e-two-recorder", "AllergyIntolerance/e2e-two-asserter", "Coverage/e2e-coverage",
			},
			[]string{"Patient/e2e-linked", "Device/e2e-device-of-other", "Group/" + groupTen},
			0,
		},
		{"patients of " + groupTen, data.groupLevel(t, groupTen, now, "Patient"), append(patients(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), "Patient/e2e-late"), nil, 11},
		{"patients of " + groupNested, data.groupLevel(t, groupNested, now, "Patient"), patients(10, 11, 20), nil, 3},
		{"groups of " + groupNested, data.groupLevel(t, groupNested, now, "Group"), []string{"Group/" + groupNested, "Group/" + groupInner}, nil, 2},
		{"patients of " + groupEnded, data.groupLevel(t, groupEnded, now, "Patient"), patients(12, 16, 17), nil, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.size != 0 && len(test.got) != test.size {
				t.Errorf("%d rows, want %d", len(test.got), test.size)
			}
			for _, key := range test.has {
				if !test.got[key] {
					t.Errorf("%s is left out", key)
				}
			}
			for _, key := range test.not {
				if test.got[key] {
					t.Errorf("%s is in", key)
				}
			}
			t.Logf("%d rows", len(test.got))
		})
	}
	if got := len(data.groupLevel(t, groupEmpty, now)); got != 0 {
		t.Errorf("the empty Group has %d rows, want 0", got)
	}
	t.Logf("%s: %d rows", groupBig, len(data.groupLevel(t, groupBig, now)))
}
