package conformance

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Ensure no row is met by a server that does nothing of what the guide wants, and none that lacks an access is tried.
func TestNothingIsMetByServersThatDoNothing(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"empty answers": func(w http.ResponseWriter, _ *http.Request) {},
		"an object": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "{}")
		},
		"not found":              http.NotFound,
		"server errors":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"accepted and forgotten": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(answer)
			defer server.Close()
			s := newSuite(t, Server{Base: server.URL})
			for _, row := range Rows() {
				result := s.run(t.Context(), row)
				if result.Outcome == Met {
					t.Errorf("%s is met: %s", row.ID, row.Text)
				}
				if len(row.needs) > 0 && result.Outcome != Needs {
					t.Errorf("%s, which needs %v: %s %s", row.ID, row.needs, result.Outcome, result.Reason)
				}
			}
		})
	}
}

// Ensure the rows are those of the guide, each once.
func TestRowsAreComplete(t *testing.T) {
	seen := map[string]int{}
	for _, row := range Rows() {
		if seen[row.ID]++; seen[row.ID] > 1 {
			t.Errorf("%s stands twice", row.ID)
		}
		if row.Section == "" || row.Text == "" || row.test == nil {
			t.Errorf("%s lacks its section, text or test", row.ID)
		}
	}
	for _, group := range []struct {
		form  string
		count int
	}{
		{"T-%02d", 11},
		{"K-%02d", 19},
		{"H-%02d", 3},
		{"C-%02d", 12},
		{"S-%02d", 13},
		{"M-%02d", 14},
		{"D-%02d", 4},
		{"F-%02d", 11},
		{"A-%02d", 3},
		{"P-%02d", 7},
		{"Q-%02d", 6},
		{"S-%d", 4},
	} {
		for n := 1; n <= group.count; n++ {
			if id := fmt.Sprintf(group.form, n); seen[id] == 0 {
				t.Errorf("%s is missing", id)
			}
		}
	}
	if got, want := len(seen), 107; got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
}
