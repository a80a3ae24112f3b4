package exporter_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// organized is an organised output as a client reads it: the resources by Type/id, and of each the instances in whose blocks
// it stands.
type organized struct {
	rows   map[string]string
	blocks map[string][]string
}

// organized reads the output of a completed job, and checks what every block and file owes.
func (e *engine) organized(job *state.Job) *organized {
	e.t.Helper()
	if job.Status != state.Completed {
		e.t.Fatalf("export ended %s: %+v", job.Status, job.Failure)
	}
	files, err := e.store.Files(e.t.Context(), job.ID)
	must(e.t, err)
	byName := map[string]state.File{}
	for _, file := range files {
		if byName[file.Name] = file; file.Kind == state.Output && file.Type != job.Kickoff.OrganizeBy {
			e.t.Errorf("%s is not organised", file.Name)
		}
	}
	o := &organized{map[string]string{}, map[string][]string{}}
	instance, continues, seen := "", "", map[string]bool{}
	for n := 1; byName[state.FileName(job.Kickoff.OrganizeBy, n)].Name != ""; n++ {
		file := byName[state.FileName(job.Kickoff.OrganizeBy, n)]
		if continues != "" && continues != file.Name {
			e.t.Errorf("a block goes on in %s, and not in %s", continues, file.Name)
		}
		lines, headers, begun := e.lines(job.Folder+"/"+file.Name), int64(0), false
		for i, line := range lines {
			next, isHeader := headerOf(e.t, line)
			switch {
			case isHeader && i == 0 && continues != "" && next != instance:
				e.t.Errorf("%s goes on with %s, want %s", file.Name, next, instance)
			case isHeader && (i > 0 || continues == "") && seen[next]:
				e.t.Errorf("%s has a second block of %s", file.Name, next)
			case !isHeader && i == 0:
				e.t.Errorf("%s begins without a header", file.Name)
			}
			if isHeader {
				if begun {
					e.t.Errorf("%s has a block of nothing", file.Name)
				}
				begun, instance, seen[next] = true, next, true
				headers++
				continue
			}
			o.take(e.t, job.Kickoff.OrganizeBy, instance, line, begun && (i > 1 || continues == ""))
			begun = false
		}
		if begun || int64(len(lines))-headers != file.Count || file.Count == 0 {
			e.t.Errorf("%s has %d lines and %d headers, count %d", file.Name, len(lines), headers, file.Count)
		}
		e.checkSize(job, file, lines)
		if continues = file.ContinuesIn; headers > 1 && continues != "" {
			e.t.Errorf("%s has %d blocks and goes on in %q", file.Name, headers, continues)
		}
		delete(byName, file.Name)
	}
	for name, file := range byName {
		if file.Kind == state.Output || name == continues {
			e.t.Errorf("%s is behind a gap", name)
		}
	}
	return o
}

// take takes a row of a block. An instance stands at the beginning of its block.
func (o *organized) take(t *testing.T, by, instance, line string, first bool) {
	t.Helper()
	key := keyOf(t, line)
	if slices.Contains(o.blocks[key], instance) {
		t.Errorf("%s stands twice in the block of %s", key, instance)
	}
	if before, known := o.rows[key]; known && before != line {
		t.Errorf("%s differs from block to block", key)
	}
	if !first && key == by+"/"+instance {
		t.Errorf("%s stands within its block", key)
	}
	o.rows[key] = line
	o.blocks[key] = append(o.blocks[key], instance)
}

// headerOf reads the id of a header.
func headerOf(t *testing.T, line string) (id string, ok bool) {
	t.Helper()
	var header struct {
		ResourceType string
		Parameter    []struct {
			Name           string
			ValueReference struct{ Reference string }
		}
	}
	must(t, json.Unmarshal([]byte(line), &header))
	if header.ResourceType != "Parameters" {
		return "", false
	}
	if len(header.Parameter) != 1 || header.Parameter[0].Name != "header" {
		t.Fatalf("the header is %s", line)
	}
	_, id, ok = strings.Cut(header.Parameter[0].ValueReference.Reference, "/")
	return id, ok
}

// blocksOf are the instances in whose blocks a resource belongs, by its whole content.
func blocksOf(t *testing.T, kickoff state.Kickoff, key, body string, members []string) []string {
	t.Helper()
	by := kickoff.OrganizeBy
	typ, id, _ := strings.Cut(key, "/")
	if by == "Group" && kickoff.Level == state.Group {
		return []string{kickoff.Group}
	}
	found := map[string]bool{}
	if typ == by {
		found[id] = true
	}
	if typ != "Patient" || by != "Patient" {
		var tree any
		must(t, json.Unmarshal([]byte(body), &tree))
		for _, reference := range references(tree) {
			if target, ok := strings.CutPrefix(reference, by+"/"); ok {
				found[target] = true
			}
		}
	}
	cohort := kickoff.Patients
	if kickoff.Level == state.Group {
		cohort = named(kickoff, members)
	}
	if by == "Patient" && (kickoff.Level == state.Group || len(cohort) > 0) {
		maps.DeleteFunc(found, func(id string, _ bool) bool { return !slices.Contains(cohort, id) })
	}
	return slices.Sorted(maps.Keys(found))
}

func references(tree any) (all []string) {
	switch node := tree.(type) {
	case []any:
		for _, element := range node {
			all = append(all, references(element)...)
		}
	case map[string]any:
		if reference, ok := node["reference"].(string); ok {
			all = append(all, reference)
		}
		for _, element := range node {
			all = append(all, references(element)...)
		}
	}
	return all
}

// checkBlocks compares the blocks with those of the resources as they were, and takes out of want what belongs in none.
func checkBlocks(t *testing.T, e *engine, truth *ledger, job *state.Job, want map[string]string, late map[string]bool) {
	t.Helper()
	whole, got := truth.asOf(job.TransactionTime), e.organized(job)
	members := membersOf(t, whole, job.Kickoff.Group)
	left := false
	for key := range want {
		blocks := blocksOf(t, job.Kickoff, key, whole[key], members)
		if len(blocks) == 0 {
			delete(want, key)
			left = left || !late[key]
		}
		if !late[key] && !slices.Equal(got.blocks[key], blocks) {
			t.Errorf("%s stands in the blocks of %v, want %v", key, got.blocks[key], blocks)
		}
	}
	said := slices.ContainsFunc(job.Issues, func(issue state.Issue) bool { return strings.Contains(issue.Text, "left out of the organised output") })
	if left && !said {
		t.Errorf("resources are left out, and the remarks are %+v", job.Issues)
	}
}

// Ensure an organised output is the golden one, with blocks that are moved and blocks that are split.
func TestOrganisedOutputIsTheGoldenOne(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		for i, line := range []string{
			`{"resourceType":"Patient","id":"b","managingOrganization":{"reference":"Organization/o"},"link":[{"other":{"reference":"Patient/a"}}]}`,
			`{"resourceType":"Patient","id":"a"}`,
			`{"resourceType":"Organization","id":"o"}`,
			`{"resourceType":"Observation","id":"of-b","subject":{"reference":"Patient/b"},"performer":[{"reference":"Practitioner/p"}]}`,
			`{"resourceType":"Observation","id":"of-a","subject":{"reference":"http://public/fhir/Patient/a"}}`,
			`{"resourceType":"Observation","id":"elsewhere","subject":{"reference":"http://else.example/fhir/Patient/a"}}`,
			`{"resourceType":"AllergyIntolerance","id":"of-both","patient":{"reference":"Patient/a"},"asserter":{"reference":"Patient/b/_history/1"}}`,
			`{"resourceType":"Observation","id":"of-nobody-here","subject":{"reference":"Patient/z"}}`,
			`{"resourceType":"Task","id":"of-a","for":{"reference":"Patient/a"}}`,
			`{"resourceType":"Observation","id":"long-1","subject":{"reference":"Patient/b"},"note":[{"text":"` + strings.Repeat("x", 900) + `"}]}`,
			`{"resourceType":"Observation","id":"long-2","subject":{"reference":"Patient/b"},"note":[{"text":"` + strings.Repeat("y", 900) + `"}]}`,
		} {
			must(t, s.PutAt([]byte(line), time.Now().Add(time.Duration(i)*time.Minute-time.Hour)))
		}
	}
	small := func(c *exporter.Config) { c.MaxFileBytes = 1700 }
	all := with(fhirtest.HAPI(), func(p *fhirtest.Personality) { p.Types = fhirtest.AllTypes() }) // the account names each
	inBubble(t, all, small, fill, func(t *testing.T, b *bubble) {
		kickoff := system()
		kickoff.OrganizeBy = "Patient"
		job := b.finish(b.kickOff(kickoff))
		b.organized(job)
		text := b.everything(t, job)
		golden := filepath.Join("testdata", "organized.golden.txt")
		if *update {
			must(t, os.MkdirAll("testdata", 0o755), os.WriteFile(golden, []byte(text), 0o644))
		}
		want, err := os.ReadFile(golden)
		must(t, err)
		if text != string(want) {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
	})
}

// everything is what the bucket holds of a job, in one text.
func (b *bubble) everything(t *testing.T, job *state.Job) (text string) {
	t.Helper()
	for _, name := range (&sealing{bubble: b}).objects(t, job) {
		text += "== " + name + "\n" + strings.Join(b.lines(job.Folder+"/"+name), "\n") + "\n"
	}
	return text
}

// generated puts what the demo has: patients with all that refers to them, Organizations, Practitioners, and a Group.
func generated(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		for i, line := range fhirtest.Generate(1, 12) {
			must(t, s.PutAt(line, time.Now().Add(time.Duration(i)*apart-time.Hour)))
		}
	}
}

func smallFiles(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers = 20, 6<<10, 2 }

// Ensure an organised export holds, whatever it is organised by, what the plain one does, each resource in the blocks of all
// that it refers to.
func TestOrganisedExportsHoldWhatPlainOnesDo(t *testing.T) {
	n := 0
	for _, level := range []state.Level{state.System, state.Patient, state.Group} {
		for _, by := range state.Organizable {
			if n++; sparse(n) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", level, by), func(t *testing.T) {
				t.Parallel()
				inBubble(t, fhirtest.HAPI(), smallFiles, generated(t), func(t *testing.T, b *bubble) {
					kickoff := kickoffOf(level)
					if level == state.Group {
						kickoff.Group = "demo-group"
					}
					want := b.rows(b.finish(b.kickOff(kickoff)))
					members := []string{}
					for key := range want {
						if id, ok := strings.CutPrefix(key, "Patient/"); ok {
							members = append(members, id)
						}
					}
					kickoff.OrganizeBy = by
					got := b.organized(b.finish(b.kickOff(kickoff)))
					kickoff.Elements = []string{"id"}
					slim := b.organized(b.finish(b.kickOff(kickoff)))
					if len(got.rows) == 0 {
						t.Error("the export holds nothing")
					}
					for key, line := range want {
						blocks := blocksOf(t, kickoff, key, line, members)
						if len(blocks) == 0 {
							delete(want, key)
						}
						if !slices.Equal(got.blocks[key], blocks) || !slices.Equal(slim.blocks[key], blocks) {
							t.Errorf("%s stands in the blocks of %v, with elements left out %v, want %v", key, got.blocks[key], slim.blocks[key], blocks)
						}
					}
					same(t, got.rows, want)
				})
			})
		}
	}
}

// Ensure an organised export is the undisturbed one wherever its process is ended while its files are made, also twice, and
// also where they are compressed.
func TestKilledWhileOrganising(t *testing.T) {
	type death struct {
		at, again int64
		hard      bool
		gzip      bool
	}
	export := func(t *testing.T, d death) (text string, puts int64) {
		inBubble(t, fhirtest.HAPI(), smallFiles, generated(t), func(t *testing.T, b *bubble) {
			kickoff := system()
			kickoff.OrganizeBy, kickoff.Gzip = "Patient", d.gzip
			id := ""
			var passed *atomic.Int64
			for _, at := range []int64{d.at, d.again, 0} {
				n := &atomic.Int64{} // a process that was killed counts for itself
				passed = n
				reached := b.events.freezeWhen(func(name string) bool {
					if strings.Contains(name, " put ") && strings.Contains(name, "json") {
						n.Add(1)
					}
					return n.Load() == at && at > 0
				})
				if id == "" {
					id = b.kickOff(kickoff)
				}
				if at == 0 {
					continue
				}
				select {
				case <-reached:
					b.resume(d.hard)
				case <-time.After(10 * patience): // the export ended before
				}
			}
			job := b.finish(id)
			b.organized(job)
			text, puts = b.everything(t, job), passed.Load()
		})
		return text, puts
	}
	want, events := export(t, death{})
	if events < 12 {
		t.Fatalf("%d events show little", events)
	}
	packed, _ := export(t, death{gzip: true})
	if !strings.Contains(packed, ".ndjson.gz") {
		t.Error("the files are not compressed")
	}
	for at := int64(1); at <= events; at++ {
		if sparse(int(at)) {
			continue
		}
		want, d := want, death{at: at, again: at % 4, hard: at%2 == 0 || at%5 == 0, gzip: at%3 == 0}
		if d.gzip {
			want = packed
		}
		t.Run(fmt.Sprintf("%+v", d), func(t *testing.T) {
			t.Parallel()
			if got, _ := export(t, d); got != want {
				t.Errorf("the export is another one:\n%s", got)
			}
		})
	}
}
