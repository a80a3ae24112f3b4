package state_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"time"

	"sidecar/state"
)

func TestJobLivesFromKickOffToRemoval(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	job := newJob("a")
	job.Kickoff.Since = time.Date(2023, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	job.Kickoff.Types = []string{"Observation", "Patient"}
	create(t, store, job)
	if got, err := store.Get(ctx, "a"); err != nil || !reflect.DeepEqual(got, job) {
		t.Fatalf("Get: %+v, %v; want %+v", got, err, job)
	}
	setStatus(t, store, "a", state.InProgress)
	plan := []state.Slice{{Seq: 0, Type: "Patient", Counted: -1}, {Seq: 1, Type: "Observation", Counted: 7}}
	err := store.PutPlan(ctx, "a", plan, func(job *state.Job) { job.Types = []string{"Patient", "Observation"} })
	if err != nil {
		t.Fatal(err)
	}
	plan[1].Met, plan[1].Boundary = 5, []string{"x", "y"}
	if err := store.Checkpoint(ctx, "a", &plan[1]); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Slices(ctx, "a"); err != nil || !reflect.DeepEqual(got, plan) {
		t.Errorf("Slices: %+v, %v; want %+v", got, err, plan)
	}
	file, err := store.Allot(ctx, "a", state.File{Kind: state.Output, Type: "Patient", Count: 3})
	if err != nil || file.Stored {
		t.Fatalf("Allot: %+v, %v", file, err)
	}
	plan[0].Done = true
	if err := store.MarkStored(ctx, "a", file, plan[:1]); err != nil {
		t.Fatal(err)
	}
	if got, err := store.File(ctx, "a", file.Name); err != nil || !got.Stored || got.Count != 3 {
		t.Errorf("File: %+v, %v; want it stored with 3 lines", got, err)
	}
	if got, err := store.Slices(ctx, "a"); err != nil || !got[0].Done {
		t.Errorf("MarkStored did not write its slice: %+v, %v", got, err)
	}
	setStatus(t, store, "a", state.Completed)
	got, err := store.Get(ctx, "a")
	if err != nil || !got.Planned || len(got.Types) != 2 || got.Running() {
		t.Errorf("at the end: %+v, %v", got, err)
	}
	if err := store.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, store, "a")
}

func TestRemoveTakesOnlyItsOwnJob(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	for _, id := range []string{"a", "ab", "a0"} { // one id is the beginning of another
		create(t, store, newJob(id))
		if err := store.PutPlan(ctx, id, []state.Slice{{Seq: 3}}, func(*state.Job) {}); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Allot(ctx, id, state.File{Type: "Patient"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing, which is no error
		if err := store.Remove(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	wantNothing(t, store, "a")
	for _, id := range []string{"ab", "a0"} {
		slices, err := store.Slices(ctx, id)
		files, err2 := store.Files(ctx, id)
		if err != nil || err2 != nil || len(slices) != 1 || len(files) != 1 {
			t.Errorf("%s has %d slices and %d files (%v, %v), want one of each", id, len(slices), len(files), err, err2)
		}
	}
}

func wantNothing(t *testing.T, store *state.Store, id string) {
	t.Helper()
	ctx := t.Context()
	if _, err := store.Get(ctx, id); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	if _, err := store.File(ctx, id, "Patient.1.ndjson"); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("File: %v, want ErrNotFound", err)
	}
	slices, err := store.Slices(ctx, id)
	files, err2 := store.Files(ctx, id)
	if err != nil || err2 != nil || len(slices) > 0 || len(files) > 0 {
		t.Errorf("left: %d slices, %d files (%v, %v)", len(slices), len(files), err, err2)
	}
}

func TestCreateIsBusyAtTheLimitUntilAJobEnds(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	for i, end := range []state.Status{state.Completed, state.Failed, state.Cancelled} {
		running, refused := "r"+strconv.Itoa(i), "f"+strconv.Itoa(i)
		if err := store.Create(ctx, newJob(running), 1); err != nil {
			t.Fatalf("after job %d ended: %v", i-1, err)
		}
		for _, status := range []state.Status{state.Accepted, state.InProgress} {
			setStatus(t, store, running, status)
			if err := store.Create(ctx, newJob(refused), 1); !errors.Is(err, state.ErrBusy) {
				t.Errorf("beside a job that is %s: %v, want ErrBusy", status, err)
			}
		}
		if _, err := store.Get(ctx, refused); !errors.Is(err, state.ErrNotFound) {
			t.Errorf("the refused job is stored: %v", err)
		}
		setStatus(t, store, running, end)
	}
}

// Ensure count and write are one transaction: of many kick-offs at once only as many pass as there are slots.
func TestCreateNeverExceedsTheLimit(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	const limit, clients = 3, 16
	var group sync.WaitGroup
	results := make([]error, clients)
	for i := range clients {
		group.Go(func() { results[i] = store.Create(ctx, newJob("job"+strconv.Itoa(i)), limit) })
	}
	group.Wait()
	passed := 0
	for _, err := range results {
		switch {
		case err == nil:
			passed++
		case !errors.Is(err, state.ErrBusy):
			t.Error(err)
		}
	}
	if jobs, err := store.List(ctx); err != nil || passed != limit || len(jobs) != limit {
		t.Errorf("%d passed and %d are stored (%v), want %d", passed, len(jobs), err, limit)
	}
}

// Ensure nothing can be written below a job that has ended (hfs#1272, LinuxForHealth#2742: a worker revives a job).
func TestEndedJobRefusesWrites(t *testing.T) {
	for _, end := range []state.Status{state.Completed, state.Failed, state.Cancelled} {
		t.Run(string(end), func(t *testing.T) {
			ctx, store := t.Context(), openNew(t)
			create(t, store, newJob("a"))
			if err := store.PutPlan(ctx, "a", []state.Slice{{Seq: 1}}, func(*state.Job) {}); err != nil {
				t.Fatal(err)
			}
			file, err := store.Allot(ctx, "a", state.File{Type: "Patient"})
			if err != nil {
				t.Fatal(err)
			}
			setStatus(t, store, "a", end)
			wantRefused(t, store, "a", file)
			slices, err := store.Slices(ctx, "a")
			if err != nil || len(slices) != 1 || slices[0].Met != 0 {
				t.Errorf("slices changed: %+v, %v", slices, err)
			}
			files, err := store.Files(ctx, "a")
			if err != nil || len(files) != 1 || files[0].Stored {
				t.Errorf("files changed: %+v, %v", files, err)
			}
		})
	}
	t.Run("removed", func(t *testing.T) {
		wantRefused(t, openNew(t), "gone", state.File{Name: "Patient.1.ndjson", Type: "Patient"})
	})
}

func wantRefused(t *testing.T, store *state.Store, id string, file state.File) {
	t.Helper()
	ctx := t.Context()
	_, allot := store.Allot(ctx, id, state.File{Type: "Patient"})
	for name, err := range map[string]error{
		"Allot":      allot,
		"Checkpoint": store.Checkpoint(ctx, id, &state.Slice{Seq: 1, Met: 9}),
		"MarkStored": store.MarkStored(ctx, id, file, []state.Slice{{Seq: 1, Met: 9}}),
		"PutPlan":    store.PutPlan(ctx, id, nil, func(*state.Job) { t.Error("PutPlan called its change") }),
	} {
		if !errors.Is(err, state.ErrFinal) {
			t.Errorf("%s: %v, want ErrFinal", name, err)
		}
	}
}

func TestCancelledJobIsGoneButListed(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	create(t, store, newJob("a"))
	setStatus(t, store, "a", state.Cancelled)
	if _, err := store.Get(ctx, "a"); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	err := store.Update(ctx, "a", func(*state.Job) error {
		t.Error("Update reached a cancelled job")
		return nil
	})
	if !errors.Is(err, state.ErrNotFound) {
		t.Errorf("Update: %v, want ErrNotFound", err)
	}
	if jobs, err := store.List(ctx); err != nil || len(jobs) != 1 || jobs[0].Status != state.Cancelled {
		t.Errorf("List: %+v, %v; want the tombstone, from which the objects are removed", jobs, err)
	}
}

func TestUpdateWithAnErrorLeavesTheJob(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	create(t, store, newJob("a"))
	refusal := errors.New("no")
	err := store.Update(ctx, "a", func(job *state.Job) error {
		job.Status = state.Failed
		return refusal
	})
	if !errors.Is(err, refusal) {
		t.Errorf("got %v, want the error of the change", err)
	}
	if job, err := store.Get(ctx, "a"); err != nil || job.Status != state.Accepted {
		t.Errorf("job is %+v (%v), want it unchanged", job, err)
	}
}

// Ensure the job's record stays as it is however many files and slices the job has.
func TestFilesAndSlicesDoNotGrowTheJobsRecord(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	create(t, store, newJob("a"))
	record := func() string {
		job, err := store.Get(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(job)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	before := record()
	plan := make([]state.Slice, 500)
	for i := range plan {
		plan[i].Seq = i
	}
	if err := store.PutPlan(ctx, "a", plan, func(*state.Job) {}); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := store.Allot(ctx, "a", state.File{Type: "Patient"}); err != nil {
			t.Fatal(err)
		}
	}
	if after := record(); len(after) > len(before)+100 {
		t.Errorf("the record had %d bytes and has %d", len(before), len(after))
	}
}

// Ensure numbers count per type, and that a number is never given twice, also for a file that was not stored.
func TestAllotNumbersFilesPerType(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	create(t, store, newJob("a"))
	create(t, store, newJob("b"))
	for _, step := range []struct{ job, typ, want string }{
		{"a", "Patient", "Patient.1.ndjson"},
		{"a", "Patient", "Patient.2.ndjson"},
		{"a", "PatientX", "PatientX.1.ndjson"},
		{"b", "Patient", "Patient.1.ndjson"},
		{"a", "Patient", "Patient.3.ndjson"},
	} {
		file, err := store.Allot(ctx, step.job, state.File{Type: step.typ})
		if err != nil || file.Name != step.want {
			t.Errorf("%s in %s: %q, %v; want %q", step.typ, step.job, file.Name, err, step.want)
		}
	}
	if files, err := store.Files(ctx, "a"); err != nil || len(files) != 4 {
		t.Errorf("Files: %+v, %v; want 4", files, err)
	}
}

func TestSlicesComeInTheOrderOfTheirNumbers(t *testing.T) {
	ctx, store := t.Context(), openNew(t)
	create(t, store, newJob("a"))
	if err := store.PutPlan(ctx, "a", []state.Slice{{Seq: 99}}, func(*state.Job) {}); err != nil {
		t.Fatal(err)
	}
	order := []int{2, 10, 1, 300, 70_000, 0}
	var plan []state.Slice
	for _, seq := range order {
		plan = append(plan, state.Slice{Seq: seq})
	}
	if err := store.PutPlan(ctx, "a", plan, func(*state.Job) {}); err != nil {
		t.Fatal(err)
	}
	slices, err := store.Slices(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, slice := range slices {
		got = append(got, slice.Seq)
	}
	if want := []int{0, 1, 2, 10, 300, 70_000}; !reflect.DeepEqual(got, want) { // and 99, of the plan before, is gone
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPingWritesAndAnEndedContextStopsEveryCall(t *testing.T) {
	store := openNew(t)
	if err := store.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := ended(t)
	defer cancel()
	_, get := store.Get(ctx, "a")
	for name, err := range map[string]error{"Ping": store.Ping(ctx), "Get": get, "Create": store.Create(ctx, newJob("a"), 1)} {
		if err == nil {
			t.Errorf("%s went on after its context ended", name)
		}
	}
}

func TestReopenedFileHasEverything(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "state.db")
	store := open(t, path)
	create(t, store, newJob("a"))
	if err := store.PutPlan(ctx, "a", []state.Slice{{Seq: 1, Boundary: []string{"x"}}}, func(*state.Job) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Allot(ctx, "a", state.File{Type: "Patient"}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = open(t, path)
	job, err := store.Get(ctx, "a")
	slices, err2 := store.Slices(ctx, "a")
	file, err3 := store.File(ctx, "a", "Patient.1.ndjson")
	if err := errors.Join(err, err2, err3); err != nil || !job.Planned || len(slices) != 1 || file.Type != "Patient" {
		t.Errorf("after reopening: %+v, %+v, %+v, %v", job, slices, file, err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	check(t, path)
}

// Ensure the key of the links is random and outlives a restart.
func TestLinkKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var keys [][]byte
	for _, path := range []string{path, path, filepath.Join(t.TempDir(), "state.db")} {
		store, err := state.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			key, err := store.LinkKey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, key)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i, key := range keys {
		if len(key) != 32 || bytes.Equal(key, keys[0]) != (i < 4) {
			t.Errorf("key %d: got %d bytes; of another file: %t", i, len(key), !bytes.Equal(key, keys[0]))
		}
	}
}
