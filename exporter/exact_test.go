package exporter_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// isPage matches the reading of rows in a window.
func isPage(r *http.Request) bool {
	query := r.URL.Query()
	return query.Get("_count") == "20" && query.Get("_sort") == "_lastUpdated" && !strings.Contains(r.URL.Path, "_history")
}

// Ensure the export is the state at T, although rows are changed, deleted and made between its pages.
func TestExportIsExactWhileDataChange(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, personality, 60, nil)
			want := e.snapshot()
			keys := slices.Sorted(maps.Keys(want))
			random := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			writes := 0
			e.sample.Fail(fhirtest.Fault{Match: isPage, Times: -1, Do: func(*http.Request) {
				mu.Lock()
				defer mu.Unlock()
				for range 3 {
					typ, id, _ := strings.Cut(keys[random.IntN(len(keys))], "/")
					writes++
					var err error
					switch random.IntN(3) {
					case 0:
						_ = e.sample.Delete(typ, id) // it may be gone already
					case 1:
						err = e.sample.Put([]byte(fmt.Sprintf(`{"resourceType":%q,"id":%q,"language":"w%d"}`, typ, id, writes)))
					default:
						err = e.sample.Put([]byte(fmt.Sprintf(`{"resourceType":%q,"id":"new-%d"}`, typ, writes)))
					}
					if err != nil {
						t.Error(err)
					}
				}
			}})
			got := e.rows(e.await(e.kickOff(system())))
			if writes < 50 {
				t.Fatalf("only %d writes came between the pages", writes)
			}
			same(t, got, want)
		})
	}
}

// Ensure that more rows of one instant than a page holds are all exported, once.
func TestTransactionLargerThanAPage(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, personality, 5, func(c *exporter.Config) { c.PageSize = 100 })
			var rows [][]byte
			for i := range 1500 {
				rows = append(rows, []byte(fmt.Sprintf(`{"resourceType":"Observation","id":"burst-%d","valueQuantity":{"value":1.10}}`, i)))
			}
			if err := e.sample.Transaction(rows); err != nil {
				t.Fatal(err)
			}
			same(t, e.rows(e.await(e.kickOff(system()))), e.snapshot())
		})
	}
}

// Ensure the windows of a type's slices follow each other without gap or overlap, whatever the times of its rows.
func TestSlicesCoverTheWholeWindow(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	e := startEngine(t, fhirtest.Plain(), 0, nil)
	now := time.Now()
	for i := range 2000 {
		ago := time.Duration(random.ExpFloat64() * float64(time.Hour))
		if err := e.sample.PutAt([]byte(fmt.Sprintf(`{"resourceType":"Observation","id":"o%d"}`, i)), now.Add(-ago)); err != nil {
			t.Fatal(err)
		}
	}
	job := e.await(e.kickOff(system()))
	slices, err := e.store.Slices(t.Context(), job.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(slices) < 5 {
		t.Errorf("only %d slices", len(slices))
	}
	end := time.Time{}
	for _, slice := range slices {
		if slice.Type != "Observation" || slice.Strategy != state.Keyset {
			continue
		}
		if !slice.From.Equal(end) {
			t.Errorf("slice %d begins at %s, want %s", slice.Seq, slice.From, end)
		}
		end = slice.To
	}
	if want := job.TransactionTime.Add(time.Millisecond); !end.Equal(want) {
		t.Errorf("the last slice ends at %s, want %s", end, want)
	}
	same(t, e.rows(job), e.snapshot())
}

// Ensure an increment holds what was changed after _since and up to T, and nothing else.
func TestSinceIsExclusive(t *testing.T) {
	t.Parallel()
	e := startEngine(t, fhirtest.Plain(), 3, nil)
	first := e.await(e.kickOff(system()))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !time.Now().After(first.TransactionTime.Add(time.Second)) {
		<-tick.C
	}
	if err := e.sample.Put([]byte(`{"resourceType":"Patient","id":"later"}`)); err != nil {
		t.Fatal(err)
	}
	kickoff := system()
	kickoff.Since = first.TransactionTime
	got := e.rows(e.await(e.kickOff(kickoff)))
	if len(got) != 1 || got["Patient/later"] == "" {
		t.Errorf("%d resources after the first export's T, want the one that was written", len(got))
	}
}
