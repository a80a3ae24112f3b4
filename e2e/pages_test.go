package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// pageOf is a manifest page with what its files hold.
type pageOf struct {
	manifest
	status int
	Link   []struct{ Relation, URL string } `json:"link"`
	// files are the lines of the output, in its order.
	files [][]byte
}

// Ensure pages of a running export and files of bounded sizes are in a bucket as they are in the folder: they can be read while the
// export runs, stay as they were, and are the export together.
func TestPagesAndSizesInBuckets(t *testing.T) {
	for name, start := range map[string]func(*testing.T) (string, settings){"S3": s3Settings, "GCS": gcsSettings} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			linksBelow, bucket := start(t)
			sample := startSample(t, 30)
			held := make(chan struct{})
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/Patient") && r.URL.Query().Has("_lastUpdated") && !r.URL.Query().Has("_summary") {
					<-held
				}
				sample.ServeHTTP(w, r)
			}))
			t.Cleanup(front.Close)
			release := sync.OnceFunc(func() { close(held) })
			t.Cleanup(release) // before the server is closed
			s := startSidecar(t, front.URL+"/fhir", settings{
				"bucket": bucket, "writes_pass_here": true, "settle": "1ms", "manifest_page_rows": 20,
			})
			const most = 4000
			status := s.kickOff(t, "Patient/$export?_type=Condition,Encounter,Patient&allowPartialManifests=true&_minimumFileSize=1000&_maximumFileSize=4000")
			await := func(what string, come func(*pageOf) bool) *pageOf {
				for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); pause(t, 50*time.Millisecond) {
					if page := readPage(t, status); come(page) {
						return page
					}
				}
				t.Fatal(what)
				return nil
			}
			early := await("no page is shown before the end", func(p *pageOf) bool { return len(p.files) > 0 })
			if early.status != http.StatusAccepted {
				t.Errorf("the first page came with status %d, want 202", early.status)
			}
			release()
			await("the export does not end", func(p *pageOf) bool { return p.status == http.StatusOK })
			rows, counts, pages := map[string]json.RawMessage{}, map[string]int{}, 0
			for at := status; at != ""; pages++ {
				page := readPage(t, at)
				for i, file := range page.files {
					if pages == 0 && i < len(early.files) && !bytes.Equal(file, early.files[i]) {
						t.Errorf("%s file %d is not what it was", page.Output[i].Type, i)
					}
					if len(file) > most && bytes.Count(file, []byte("\n")) > 1 {
						t.Errorf("a %s file has %d bytes, want %d at most", page.Output[i].Type, len(file), most)
					}
					if !strings.HasPrefix(page.Output[i].URL, linksBelow) {
						t.Error("a link leads to the wrong server")
					}
					counts[page.Output[i].Type]++
				}
				for key, line := range download(t, page.manifest) {
					if rows[key] != nil {
						t.Errorf("%s stands in two pages", key)
					}
					rows[key] = line
				}
				if at = ""; len(page.Link) > 0 {
					at = page.Link[0].URL
				}
			}
			if pages < 2 || counts["Condition"] < 2 {
				t.Errorf("%d pages with %v files, want several of both", pages, counts)
			}
			equalRows(t, rows, startSidecar(t, sample.base, nil).export(t, "Patient/$export?_type=Condition,Encounter,Patient").rows)
		})
	}
}

// readPage reads a manifest page and its files; one without a body has none.
func readPage(t *testing.T, address string) *pageOf {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	page := &pageOf{}
	var body []byte
	if page.status, _, body = send(t, request); page.status/100 != 2 {
		t.Fatalf("a manifest page: status %d: %.400s", page.status, body)
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, page); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range page.Output {
		var whole []byte
		for _, line := range downloadFile(t, file) {
			whole = append(append(whole, line...), '\n')
		}
		page.files = append(page.files, whole)
	}
	return page
}
