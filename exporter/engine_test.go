package exporter_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// patience bounds every wait of these tests.
const patience = time.Minute

// apart is the time between two of the sample's rows: a few rows a second.
const apart = 300 * time.Millisecond

// engine is an exporter over a sample server, with everything below one folder.
type engine struct {
	t        *testing.T
	sample   *fhirtest.Server
	upstream string
	folder   string
	edit     func(*exporter.Config)

	store  *state.Store
	bucket *blob.Dir
	*exporter.Exporter
	cancel context.CancelFunc
	ended  chan error
}

// newSample makes a server that offers few types where the personality names none: each type costs an export several requests,
// and what one empty type does another one does, too. All of them are in TestEveryProductAtRest and in some runs of TestChaos.
func newSample(personality fhirtest.Personality) *fhirtest.Server {
	if personality.Types == nil {
		personality.Types = fhirtest.FewTypes()
	}
	return fhirtest.New(personality, "/fhir")
}

// startEngine serves the personality with some generated patients and runs an exporter on it.
func startEngine(t *testing.T, personality fhirtest.Personality, patients int, edit func(*exporter.Config)) *engine {
	t.Helper()
	sample := newSample(personality)
	for i, resource := range fhirtest.Generate(1, patients) {
		if err := sample.PutAt(resource, time.Now().Add(time.Duration(i)*apart-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(sample)
	t.Cleanup(server.Close)
	e := &engine{t: t, sample: sample, upstream: server.URL + "/fhir", folder: t.TempDir(), edit: edit}
	e.start()
	t.Cleanup(e.stop)
	return e
}

// start opens what is in the folder and runs an exporter on it, as the process does when it starts.
func (e *engine) start() {
	e.t.Helper()
	var err error
	if e.store, err = state.Open(filepath.Join(e.folder, "state.db")); err != nil {
		e.t.Fatal(err)
	}
	if e.bucket, err = blob.NewDir(filepath.Join(e.folder, "files")); err != nil {
		e.t.Fatal(err)
	}
	client, err := fhir.NewClient(fhir.Config{BaseURL: e.upstream})
	if err != nil {
		e.t.Fatal(err)
	}
	cfg := exporter.Config{
		Client: client, Store: e.store, Bucket: e.bucket, Spool: filepath.Join(e.folder, "spool"),
		Settle: time.Millisecond, PageSize: 20, Log: slog.New(slog.DiscardHandler),
	}
	if e.edit != nil {
		e.edit(&cfg)
	}
	if e.Exporter, err = exporter.New(cfg); err != nil {
		e.t.Fatal(err)
	}
	var ctx context.Context
	ctx, e.cancel = context.WithCancel(context.WithoutCancel(e.t.Context()))
	e.ended = make(chan error, 1)
	run := e.Exporter
	go func() { e.ended <- run.Run(ctx) }()
}

// stop ends the exporter as SIGTERM does, and checks the state file.
func (e *engine) stop() {
	if e.cancel == nil {
		return
	}
	e.cancel()
	e.cancel = nil
	if err := errors.Join(<-e.ended, e.store.Close()); err != nil {
		e.t.Errorf("stop: %v", err)
	}
}

// kickOff starts an export.
func (e *engine) kickOff(kickoff state.Kickoff) string {
	e.t.Helper()
	job, err := e.KickOff(e.t.Context(), kickoff)
	if err != nil {
		e.t.Fatal(err)
	}
	return job.ID
}

// await polls a job until it has ended.
func (e *engine) await(id string) *state.Job {
	e.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		job, err := e.store.Get(e.t.Context(), id)
		if err != nil {
			e.t.Fatal(err)
		}
		if !job.Running() {
			return job
		}
	}
	e.t.Fatalf("the export has not ended within %s", patience)
	return nil
}

// rows reads the files of a completed job: the lines by Type/id. It checks what every file owes.
func (e *engine) rows(job *state.Job) map[string]string {
	e.t.Helper()
	if job.Status != state.Completed {
		e.t.Fatalf("export ended %s: %+v", job.Status, job.Failure)
	}
	files, err := e.store.Files(e.t.Context(), job.ID)
	if err != nil {
		e.t.Fatal(err)
	}
	if job.Kickoff.OrganizeBy != "" {
		return e.organized(job).rows
	}
	rows := map[string]string{}
	for _, file := range files {
		if file.Kind != state.Output {
			continue
		}
		lines := e.lines(job.Folder + "/" + file.Name)
		if int64(len(lines)) != file.Count || len(lines) == 0 {
			e.t.Errorf("%s: %d lines, count %d", file.Name, len(lines), file.Count)
		}
		e.checkSize(job, file, lines)
		for _, line := range lines {
			key := keyOf(e.t, line)
			if _, twice := rows[key]; twice {
				e.t.Errorf("%s stands twice in the export", key)
			}
			rows[key] = line
		}
	}
	return rows
}

// checkSize holds a file against the sizes that were asked for. A row that is larger is alone in its file.
func (e *engine) checkSize(job *state.Job, file state.File, lines []string) {
	e.t.Helper()
	size, most := int64(0), e.MaxFileBytes
	for _, line := range lines {
		size += int64(len(line)) + 1
	}
	if size != file.Bytes {
		e.t.Errorf("%s has %d bytes, recorded are %d", file.Name, size, file.Bytes)
	}
	if asked := job.Kickoff.MaxFileBytes; asked > 0 {
		most = min(most, asked)
	}
	if size > most && file.Count > 1 {
		e.t.Errorf("%s has %d bytes and %d rows, more than %d bytes", file.Name, size, file.Count, most)
	}
}

func (e *engine) lines(name string) []string {
	e.t.Helper()
	file, err := os.Open(filepath.Join(e.folder, "files", name))
	var rows io.Reader = file
	if errors.Is(err, fs.ErrNotExist) {
		if file, err = os.Open(filepath.Join(e.folder, "files", name+".gz")); err == nil {
			rows, err = gzip.NewReader(file)
		}
	}
	if err != nil {
		e.t.Fatal(err)
	}
	var lines []string
	scanner := bufio.NewScanner(rows)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	if err := errors.Join(scanner.Err(), file.Close()); err != nil {
		e.t.Fatal(err)
	}
	return lines
}

func keyOf(t *testing.T, line string) string {
	t.Helper()
	var resource struct{ ResourceType, ID string }
	if err := json.Unmarshal([]byte(line), &resource); err != nil {
		t.Fatal(err)
	}
	return resource.ResourceType + "/" + resource.ID
}

// snapshot is what the sample server holds now.
func (e *engine) snapshot() map[string]string {
	rows := map[string]string{}
	for _, typ := range e.sample.Types() {
		for _, resource := range e.sample.Resources(typ) {
			rows[keyOf(e.t, string(resource))] = string(resource)
		}
	}
	return rows
}

// same compares an export with what it should be.
func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	lost, extra, other := 0, 0, 0
	example := ""
	for key, line := range want {
		switch found, ok := got[key]; {
		case !ok:
			lost++
			example = key
		case found != line:
			other++
			example = fmt.Sprintf("%s\n got %s\nwant %s", key, found, line)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			extra++
			example = key
		}
	}
	if lost+extra+other > 0 {
		t.Errorf("%d resources: %d lost, %d extra, %d in another version, such as %s", len(want), lost, extra, other, example)
	}
}

// system is the kick-off of a system export.
func system() state.Kickoff { return state.Kickoff{Level: state.System, Base: "http://public/fhir"} }

// personalities are the products that the sample server can be.
func personalities() []fhirtest.Personality {
	return []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI(), fhirtest.Blaze(), fhirtest.Microsoft()}
}
