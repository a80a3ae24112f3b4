package state_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"sidecar/state"
)

var seed = flag.Uint64("seed", 0, "seed of the simulation, 0 for one of the clock")

// model is what the store should hold: plain maps, and the rules of the package in their shortest form.
type model map[string]*modelJob

type modelJob struct {
	job    state.Job
	slices map[int]state.Slice
	files  map[string]state.File
}

func (m model) running() int {
	n := 0
	for _, entry := range m {
		if entry.job.Running() {
			n++
		}
	}
	return n
}

// live returns a job that may be written below.
func (m model) live(id string) (*modelJob, error) {
	if entry := m[id]; entry != nil && entry.job.Running() {
		return entry, nil
	}
	return nil, state.ErrFinal
}

// simulation runs one random step after another on the store and on the model.
type simulation struct {
	t     *testing.T
	rand  *rand.Rand
	path  string
	store *state.Store
	model model
}

// Ensure random steps with restarts leave in the file exactly what they leave in a model of maps.
func TestStoreBehavesLikeAModel(t *testing.T) {
	seed := cmp.Or(*seed, uint64(time.Now().UnixNano()))
	t.Logf("go test ./state -run %s -seed %d", t.Name(), seed)
	s := &simulation{t: t, rand: rand.New(rand.NewPCG(seed, 1)), path: filepath.Join(t.TempDir(), "state.db"), model: model{}}
	s.store = open(t, s.path)
	steps := []func(id string) (got, want error){
		s.create, s.update, s.plan, s.checkpoint, s.checkpoint, s.allot, s.markStored, s.begin, s.remove,
	}
	for n := range 600 {
		id := fmt.Sprintf("job%d", s.rand.IntN(6))
		if got, want := steps[s.rand.IntN(len(steps))](id); !errors.Is(got, want) {
			t.Fatalf("step %d on %s: %v, want %v", n, id, got, want)
		}
		if n%20 == 19 {
			s.restart()
		}
		if n%5 == 0 {
			s.compare(n)
		}
	}
	s.restart()
	s.compare(-1)
	if err := s.store.Close(); err != nil {
		t.Error(err)
	}
}

func (s *simulation) restart() {
	s.t.Helper()
	if err := s.store.Close(); err != nil {
		s.t.Fatal(err)
	}
	check(s.t, s.path)
	s.store = open(s.t, s.path)
}

func (s *simulation) create(id string) (got, want error) {
	if s.model[id] != nil { // ids are random UUIDs in the product and never come twice
		return nil, nil
	}
	const limit = 3
	job := newJob(id)
	if s.model.running() >= limit {
		want = state.ErrBusy
	} else {
		s.model[id] = &modelJob{*job, map[int]state.Slice{}, map[string]state.File{}}
	}
	return s.store.Create(s.t.Context(), job, limit), want
}

func (s *simulation) update(id string) (got, want error) {
	next := []state.Status{state.InProgress, state.InProgress, state.Completed, state.Failed, state.Cancelled}[s.rand.IntN(5)]
	change := func(job *state.Job) error {
		if !job.Running() && next != state.Cancelled {
			return state.ErrFinal
		}
		job.Status = next
		return nil
	}
	entry := s.model[id]
	if entry == nil || entry.job.Status == state.Cancelled {
		want = state.ErrNotFound
	} else {
		want = change(&entry.job)
	}
	return s.store.Update(s.t.Context(), id, change), want
}

func (s *simulation) slice() state.Slice {
	return state.Slice{Seq: s.rand.IntN(400), Type: "Patient", Met: s.rand.Int64N(1000), Done: s.rand.IntN(2) == 0}
}

func (s *simulation) plan(id string) (got, want error) {
	plan := make([]state.Slice, s.rand.IntN(5))
	for i := range plan {
		plan[i] = s.slice()
	}
	entry, want := s.model.live(id)
	if want == nil {
		clear(entry.slices)
		for _, slice := range plan {
			entry.slices[slice.Seq] = slice
		}
		entry.job.Planned, entry.job.Types = true, []string{"Patient"}
	}
	return s.store.PutPlan(s.t.Context(), id, plan, func(job *state.Job) { job.Types = []string{"Patient"} }), want
}

func (s *simulation) checkpoint(id string) (got, want error) {
	slice := s.slice()
	entry, want := s.model.live(id)
	if want == nil {
		entry.slices[slice.Seq] = slice
	}
	return s.store.Checkpoint(s.t.Context(), id, &slice), want
}

func (s *simulation) allot(id string) (got, want error) {
	file := state.File{Kind: state.Output, Type: []string{"Patient", "Observation"}[s.rand.IntN(2)], Count: s.rand.Int64N(9)}
	entry, want := s.model.live(id)
	if want == nil {
		n := 1
		for entry.files[fmt.Sprintf("%s.%d.ndjson", file.Type, n)].Name != "" {
			n++
		}
		file.Name = fmt.Sprintf("%s.%d.ndjson", file.Type, n)
		entry.files[file.Name] = file
	}
	allotted, got := s.store.Allot(s.t.Context(), id, file)
	if got == nil && allotted.Name != file.Name {
		s.t.Errorf("allotted %s, want %s", allotted.Name, file.Name)
	}
	return got, want
}

// markStored marks a file of the job as stored, with one slice.
func (s *simulation) markStored(id string) (got, want error) {
	slice, file := s.slice(), state.File{Name: "Patient.1.ndjson", Type: "Patient", Bytes: s.rand.Int64N(99)}
	entry, want := s.model.live(id)
	if want == nil {
		entry.slices[slice.Seq] = slice
		stored := file
		stored.Stored = true
		entry.files[file.Name] = stored
	}
	return s.store.MarkStored(s.t.Context(), id, file, []state.Slice{slice}), want
}

// begin takes a job back to its kick-off, now and then.
func (s *simulation) begin(id string) (got, want error) {
	if s.rand.IntN(3) > 0 {
		return nil, nil
	}
	entry, want := s.model.live(id)
	if want == nil {
		s.model[id] = &modelJob{*newJob(id), map[int]state.Slice{}, map[string]state.File{}}
		s.model[id].job.Accepted = entry.job.Accepted
	}
	return s.store.Restart(s.t.Context(), id), want
}

func (s *simulation) remove(id string) (got, want error) {
	if s.rand.IntN(3) > 0 { // else few jobs live long enough
		return nil, nil
	}
	delete(s.model, id)
	return s.store.Remove(s.t.Context(), id), nil
}

func (s *simulation) compare(step int) {
	s.t.Helper()
	ctx := s.t.Context()
	jobs, err := s.store.List(ctx)
	if err != nil || len(jobs) != len(s.model) {
		s.t.Fatalf("step %d: %d jobs (%v), want %d", step, len(jobs), err, len(s.model))
	}
	for _, job := range jobs {
		entry := s.model[job.ID]
		if entry == nil || !reflect.DeepEqual(*job, entry.job) {
			s.t.Fatalf("step %d: job %+v, want %+v", step, job, entry)
		}
		got, err := s.store.Slices(ctx, job.ID)
		want := inOrder(entry.slices)
		if err != nil || !slices.EqualFunc(got, want, func(a, b state.Slice) bool { return reflect.DeepEqual(a, b) }) {
			s.t.Fatalf("step %d: slices %+v (%v), want %+v", step, got, err, want)
		}
		files, err := s.store.Files(ctx, job.ID)
		wantFiles := inOrder(entry.files)
		if err != nil || !slices.EqualFunc(files, wantFiles, func(a, b state.File) bool { return reflect.DeepEqual(a, b) }) {
			s.t.Fatalf("step %d: files %+v (%v), want %+v", step, files, err, wantFiles)
		}
	}
}

// inOrder returns the values by key.
func inOrder[K cmp.Ordered, V any](m map[K]V) []V {
	var values []V
	for _, key := range slices.Sorted(maps.Keys(m)) {
		values = append(values, m[key])
	}
	return values
}
