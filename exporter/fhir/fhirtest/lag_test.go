package fhirtest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

const patientP1 = `{"resourceType":"Patient","id":"p1","active":%t}`

func TestGoogleSearchSeesWritesLate(t *testing.T) {
	u := start(t, fhirtest.Google())
	u.put(patientP1, true)
	if got := u.do("GET", "/Patient/p1", "").status; got != http.StatusOK {
		t.Errorf("got %d: a read must see the write at once", got)
	}
	if got := len(u.get("/Patient/p1/_history").Entry); got != 1 {
		t.Errorf("got %d versions: a history must see the write at once", got)
	}
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, ""}, {10*time.Second - time.Millisecond, ""}, {time.Millisecond, "p1"}} {
		u.clock.add(step.after)
		for _, path := range []string{"/Patient", "/Patient?_id=p1", "/Patient?_lastUpdated=ge2024-05-01T12:00:00Z"} {
			if got := u.get(path).ids(t); got != step.want {
				t.Errorf("after %s: %s: got %q, want %q", step.after, path, got, step.want)
			}
		}
	}
	u.put(patientP1, false)
	if got := u.get("/Patient"); got.ids(t) != "p1" || headOf(t, got.Entry[0].Resource).Meta.VersionID != "1" {
		t.Errorf("got %q: the index must still have the old version", got.ids(t))
	}
	if err := u.Delete("Patient", "p1"); err != nil {
		t.Fatal(err)
	}
	if got := u.get("/Patient").ids(t); got != "p1" {
		t.Errorf("got %q: the index must not know of the deletion yet", got)
	}
	u.CatchUp()
	if got := u.get("/Patient").ids(t); got != "" {
		t.Errorf("got %q after the index has caught up", got)
	}
}

func TestGoogleTellsEstimatesAndRefusesMuch(t *testing.T) {
	u := start(t, fhirtest.Google())
	u.patients(5)
	u.CatchUp()
	_, pages := u.pagesOf("/Patient?_count=2")
	var totals []int
	for _, b := range pages {
		totals = append(totals, *b.Total)
	}
	if len(totals) != 3 || totals[0] == 5 || totals[1] == 5 || totals[2] != 5 {
		t.Errorf("got totals %v, want estimates and then 5", totals)
	}
	for path, want := range map[string]int{
		"/Patient?_summary=count": 400, "/_history": 405, "/Patient/_history": 405, "/Patient/p1/_history": 200, "/Patient/p1/_history/1": 200,
		"/Patient/p1/Observation": 405,
	} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	if got := u.do("POST", "/Patient/_search", "_id=p1", form).status; got != http.StatusMethodNotAllowed {
		t.Errorf("POST _search: got %d", got)
	}
	if metadata := string(u.do("GET", "/metadata", "").body); strings.Contains(metadata, "history-type") || strings.Contains(metadata, "history-system") {
		t.Error("the CapabilityStatement declares a history that is not offered")
	}
}

func TestHealthLakeHidesARowDuringAnUpdate(t *testing.T) {
	const strong = "x-amz-fhir-history-consistency-level: strong"
	u := start(t, fhirtest.HealthLake())
	u.patients(2)
	u.CatchUp()
	u.put(patientP1, true)
	for _, path := range []string{"/Patient", "/Patient?_id=p1,p2", "/Patient?_sort=_lastUpdated"} {
		if got := u.get(path).ids(t); got != "p2" {
			t.Errorf("%s: got %q, want neither version of p1", path, got)
		}
	}
	if got := *u.get("/Patient?_summary=count").Total; got != 1 {
		t.Errorf("got a count of %d, want 1", got)
	}
	if got := u.do("GET", "/Patient/p1", "").status; got != http.StatusOK {
		t.Errorf("read: got %d", got)
	}
	if got := u.get("/Patient", strong).ids(t); got != "p1 p2" {
		t.Errorf("strong: got %q", got)
	}
	u.clock.add(20 * time.Second)
	b := u.get("/Patient")
	if b.ids(t) != "p1 p2" || headOf(t, b.Entry[0].Resource).Meta.VersionID != "2" {
		t.Errorf("got %q after 20 s", b.ids(t))
	}
	if got := u.do("GET", "/Patient?_count=101", "").status; got != http.StatusBadRequest {
		t.Errorf("_count=101: got %d, want 400", got)
	}
}

func TestHistoryLagDelaysTheHistoryAlone(t *testing.T) {
	u := start(t, with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.HistoryLag = time.Minute }))
	u.patients(1) // a second passes
	if got, rows := len(u.get("/Patient/_history").Entry), u.get("/Patient").ids(t); got != 0 || rows != "p1" {
		t.Errorf("got %d versions and %q", got, rows)
	}
	u.clock.add(59 * time.Second)
	if got := len(u.get("/Patient/_history").Entry); got != 1 {
		t.Errorf("got %d versions after a minute", got)
	}
}

func TestIBMCommitsLateWithAnEarlyStamp(t *testing.T) {
	u := start(t, with(fhirtest.IBM(), func(p *fhirtest.Personality) { p.LateOneIn, p.Seed = 0, 7 }))
	for i := range 20 {
		u.put(`{"resourceType":"Patient","id":"p%02d"}`, i)
	}
	if got := u.do("GET", "/Patient/p00", "").status; got != http.StatusNotFound {
		t.Errorf("read: got %d before the commit", got)
	}
	if b := u.get("/Patient"); len(b.Entry) != 0 || len(u.get("/_history").Entry) != 0 {
		t.Errorf("got %d rows before the commits", len(b.Entry))
	}
	seen := map[int]bool{}
	for range 120 {
		u.clock.add(time.Second)
		seen[len(u.get("/Patient?_count=100").Entry)] = true
	}
	if !seen[20] || len(seen) < 10 {
		t.Errorf("got results of %v rows over two minutes: commits must come one by one", slices.Sorted(maps.Keys(seen)))
	}
	for _, e := range u.Log() {
		if !e.Updated.Equal(begin) || !e.Visible.After(begin) || e.Visible.After(begin.Add(2*time.Minute)) {
			t.Errorf("got stamp %s, visible %s", e.Updated, e.Visible)
		}
	}
	if b := u.get("/_history"); b.Entry[0].FullURL[:8] != "Patient/" || !strings.HasPrefix(b.Entry[0].Response.LastModified, "2024-05-01T12:00:00.25") {
		t.Errorf("got fullUrl %s, lastModified %s", b.Entry[0].FullURL, b.Entry[0].Response.LastModified)
	}
}

func TestIBMIsStrictUnlessAskedToBeLenient(t *testing.T) {
	u := start(t, fhirtest.IBM())
	for prefer, want := range map[string]int{"Prefer: x": 400, "Prefer: handling=strict": 400, "Prefer: handling=lenient": 200} {
		if got := u.do("GET", "/Patient?no-such=1", "", prefer).status; got != want {
			t.Errorf("%s: got %d, want %d", prefer, got, want)
		}
	}
}

// Ensure a test can commit later than any settling time, and that the truth knows what searches could not.
func TestLateCommits(t *testing.T) {
	u := start(t, fhirtest.Plain())
	row := func(id string, n int) []byte {
		return fmt.Appendf(nil, `{"resourceType":"Patient","id":%q,"multipleBirthInteger":%d}`, id, n)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	check(u.TransactionLate([][]byte{row("a", 1), row("b", 1)}, at(0), at(300)))
	u.patients(1) // p1 at 0 s
	u.put(`{"resourceType":"Patient","id":"a","multipleBirthInteger":2}`)
	check(u.DeleteLate("Patient", "p1", at(1), at(200)))
	check(u.PutLate(row("c", 1), at(1), at(0))) // in the past: at once
	if got := u.get("/Patient").ids(t); got != "a c p1" {
		t.Errorf("got %q before the late commits", got)
	}
	u.clock.add(199 * time.Second) // 200 s
	if got := u.get("/Patient").ids(t); got != "a c" {
		t.Errorf("got %q after the late deletion", got)
	}
	u.clock.add(100 * time.Second) // 300 s
	if got := u.get("/Patient").ids(t); got != "a b c" {
		t.Errorf("got %q after the late transaction", got)
	}
	if h := u.get("/Patient/a/_history"); len(h.Entry) != 2 || h.Entry[0].Response.Etag != `W/"1"` || h.Entry[1].Response.Etag != `W/"2"` {
		t.Errorf("got %+v: the late version has the later number and the earlier stamp", h.Entry)
	}
	state := func(second int) string { return strings.Join(slices.Sorted(maps.Keys(u.AsOf(at(second)))), " ") }
	for second, want := range map[int]string{-1: "", 0: "Patient/a Patient/b Patient/p1", 1: "Patient/a Patient/b Patient/c", 300: "Patient/a Patient/b Patient/c"} {
		if got := state(second); got != want {
			t.Errorf("as of %d s: got %q, want %q", second, got, want)
		}
	}
	if got := u.DeletedAsOf(at(1)); len(got) != 1 || !got["Patient/p1"].Equal(at(1)) {
		t.Errorf("deleted: got %v", got)
	}
	if got := len(u.DeletedAsOf(at(0))); got != 0 {
		t.Errorf("deleted as of 0 s: got %d", got)
	}
	if body := u.AsOf(at(300))["Patient/a"]; !strings.Contains(string(body), `"multipleBirthInteger":1`) || !strings.Contains(string(body), `"versionId":"2"`) {
		t.Errorf("got %s: the newest version is the one that committed last", body)
	}
}

// Ensure the truth agrees with a model that was kept beside the server.
func TestAsOfAgreesWithAModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	u := start(t, fhirtest.Superset())
	model := map[string]string{}
	var snapshots []map[string]string
	for n := range 300 {
		u.clock.add(time.Millisecond)
		id := fmt.Sprintf("p%d", random.IntN(20))
		if random.IntN(4) == 0 && model["Patient/"+id] != "" {
			if err := u.Delete("Patient", id); err != nil {
				t.Fatal(err)
			}
			delete(model, "Patient/"+id)
		} else {
			u.put(`{"resourceType":"Patient","id":%q,"language":"w%d"}`, id, n)
			model["Patient/"+id] = fmt.Sprintf("w%d", n)
		}
		snapshots = append(snapshots, maps.Clone(model))
	}
	for n, want := range snapshots {
		got := map[string]string{}
		for name, body := range u.AsOf(begin.Add(time.Duration(n+1) * time.Millisecond)) {
			var r struct{ Language string }
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			got[name] = r.Language
		}
		if !maps.Equal(got, want) {
			t.Fatalf("after write %d: got %v, want %v", n, got, want)
		}
	}
}

func TestBodiesAreLoadedAfterTheSearch(t *testing.T) {
	u := start(t, with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.BodiesLater = true }))
	u.patients(3)
	strikes := 0
	u.BeforeBodies = func(*http.Request) {
		if strikes++; strikes > 1 {
			return
		}
		u.clock.add(time.Hour)
		u.put(patientP1, true)
		if err := u.Delete("Patient", "p2"); err != nil {
			t.Error(err)
		}
	}
	b := u.get("/Patient?_lastUpdated=lt2024-05-01T12:30:00Z")
	if got := b.ids(t); got != "p1 p3" {
		t.Fatalf("got %q", got)
	}
	if got := headOf(t, b.Entry[0].Resource).Meta.LastUpdated; got != "2024-05-01T13:00:03.250Z" {
		t.Errorf("got lastUpdated %s: the body must be newer than the window", got)
	}
	if got := u.get("/Patient?_lastUpdated=lt2024-05-01T12:30:00Z").ids(t); got != "p3" {
		t.Errorf("got %q the second time", got)
	}
}
