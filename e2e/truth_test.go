package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"
)

// historyPage is how many versions are asked for at once.
const historyPage = 1000

// version is one entry of HAPI's history. See stamp for from and to.
type version struct {
	stamp
	number int
	body   json.RawMessage // nil of a deletion
}

// truth is what HAPI held at any time, told by its own history and, for the times of deletions, by the writer's ledger.
type truth struct {
	server   *hapiServer
	ledger   *ledger
	versions map[string]map[int]*version // by Type/id and number
	read     time.Time                   // the newest version that was read
}

// catchUp reads the history since the last time. No writer may run: pages shift under writes.
func (r *truth) catchUp(t *testing.T) {
	t.Helper()
	page := fmt.Sprintf("_history?_count=%d", historyPage)
	if !r.read.IsZero() {
		page += "&_since=" + url.QueryEscape(r.read.UTC().Format(instantLayout))
	}
	for page != "" {
		page = r.readPage(t, page)
	}
	r.ledger.check(t, r.versions)
}

// readPage takes up a page of the history and gives the next one, "" after the last.
func (r *truth) readPage(t *testing.T, path string) string {
	t.Helper()
	body, err := r.server.read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var bundle struct {
		Link []struct {
			Relation string `json:"relation"`
			URL      string `json:"url"`
		} `json:"link"`
		Entry []struct {
			Resource json.RawMessage `json:"resource"`
			Request  struct {
				Method string `json:"method"`
				URL    string `json:"url"`
			} `json:"request"`
		} `json:"entry"`
	}
	if err := json.Unmarshal(body, &bundle); err != nil {
		t.Fatalf("decode the history: %v", err)
	}
	for _, entry := range bundle.Entry {
		key, number, err := versionAt(entry.Request.URL)
		if err != nil {
			t.Fatalf("read the history: %v", err)
		}
		v := &version{number: number}
		if entry.Request.Method == "DELETE" {
			v.stamp = r.deletion(t, key, number)
		} else {
			at := lastUpdatedOf(t, entry.Resource)
			v.stamp, v.body = stamp{from: at, to: at}, entry.Resource
		}
		r.add(key, v)
	}
	for _, link := range bundle.Link {
		if link.Relation == "next" {
			return strings.TrimPrefix(strings.TrimPrefix(link.URL, r.server.base), "/")
		}
	}
	return ""
}

func (r *truth) add(key string, v *version) {
	if r.versions[key] == nil {
		r.versions[key] = map[int]*version{}
	}
	if r.versions[key][v.number] == nil {
		r.versions[key][v.number] = v
	}
	if v.to.After(r.read) {
		r.read = v.to
	}
}

func (r *truth) deletion(t *testing.T, key string, number int) stamp {
	t.Helper()
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	s, ok := r.ledger.stamps[key][number]
	if !ok || !s.deleted {
		t.Fatalf("HAPI's history has a deletion of %s that nobody asked for", key)
	}
	return s
}

// at gives the version that a resource had at a time, nil where it had none yet.
func (r *truth) at(t *testing.T, key string, at time.Time) *version {
	t.Helper()
	var newest *version
	for _, v := range r.versions[key] {
		if (newest == nil || v.number > newest.number) && !r.after(t, key, v, at) {
			newest = v
		}
	}
	return newest
}

// after tells whether a version is from after a time. Of a deletion that was under way then HAPI is asked whether it lists
// it since then.
func (r *truth) after(t *testing.T, key string, v *version, at time.Time) bool {
	t.Helper()
	if !v.from.Before(v.to) || v.from.After(at) || !v.to.After(at) {
		return v.from.After(at)
	}
	next := at.Add(time.Millisecond)
	probe := &truth{server: r.server, ledger: r.ledger, versions: map[string]map[int]*version{}}
	probe.readPage(t, key+"/_history?_since="+url.QueryEscape(next.UTC().Format(instantLayout)))
	if probe.versions[key][v.number] != nil {
		v.from = next
		return true
	}
	v.to = at
	return false
}

// state gives the versions of all resources that existed at a time.
func (r *truth) state(t *testing.T, at time.Time) map[string]*version {
	t.Helper()
	live := map[string]*version{}
	for key := range r.versions {
		if v := r.at(t, key, at); v != nil && !v.deleted {
			live[key] = v
		}
	}
	return live
}

// deletedBetween gives what existed at one time and does not at a later one.
func (r *truth) deletedBetween(t *testing.T, since, until time.Time) set {
	t.Helper()
	gone := set{}
	for key := range r.versions {
		before, v := r.at(t, key, since), r.at(t, key, until)
		if before != nil && !before.deleted && v.deleted {
			gone[key] = true
		}
	}
	return gone
}

// changedBetween counts the resources that were written after one time, up to another.
func (r *truth) changedBetween(t *testing.T, since, until time.Time) int {
	t.Helper()
	changed := 0
	for key := range maps.Keys(r.versions) {
		if r.at(t, key, since) != r.at(t, key, until) {
			changed++
		}
	}
	return changed
}
