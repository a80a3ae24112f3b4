package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stamp is one version of a resource as the answer to its write told it. HAPI tells no time of a deletion, neither
// then nor in its history: from and to are when the request was sent and answered, by the clock of this machine,
// which is HAPI's own. Otherwise both are its lastUpdated.
type stamp struct {
	deleted  bool
	from, to time.Time
}

// ledger holds what HAPI has acknowledged, by Type/id and version.
type ledger struct {
	mu     sync.Mutex
	stamps map[string]map[int]stamp
}

func (l *ledger) note(key string, number int, s stamp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stamps[key] == nil {
		l.stamps[key] = map[int]stamp{}
	}
	l.stamps[key][number] = s
}

// noteRead takes up the answer to a PUT, which repeats the resource.
func (l *ledger) noteRead(key string, body []byte) error {
	var head struct {
		Meta struct {
			VersionID   string    `json:"versionId"`
			LastUpdated time.Time `json:"lastUpdated"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return fmt.Errorf("decode the answer to a PUT: %w", err)
	}
	number, err := strconv.Atoi(head.Meta.VersionID)
	if err != nil {
		return fmt.Errorf("version of a PUT: %w", err)
	}
	l.note(key, number, stamp{from: head.Meta.LastUpdated, to: head.Meta.LastUpdated})
	return nil
}

// noteTransaction takes up the answer to a transaction. Its entries have one lastUpdated, which HAPI tells with those that
// made a resource, the first of which is one. Not so its deletions: each has a time of its own, later within the request.
func (l *ledger) noteTransaction(changes []change, body []byte, request stamp) error {
	var bundle struct {
		Entry []struct {
			Response struct {
				Location     string    `json:"location"`
				LastModified time.Time `json:"lastModified"`
			} `json:"response"`
		} `json:"entry"`
	}
	if err := json.Unmarshal(body, &bundle); err != nil {
		return fmt.Errorf("decode the answer to a transaction: %w", err)
	}
	if len(bundle.Entry) != len(changes) || bundle.Entry[0].Response.LastModified.IsZero() {
		return fmt.Errorf("a transaction of %d has an answer of %d, or without a time", len(changes), len(bundle.Entry))
	}
	at := bundle.Entry[0].Response.LastModified
	for place, entry := range bundle.Entry {
		key, number, err := versionAt(entry.Response.Location)
		if err != nil {
			return err
		}
		if key != changes[place].key {
			return fmt.Errorf("a transaction answers for %s in the place of %s", key, changes[place].key)
		}
		s := stamp{from: at, to: at}
		if changes[place].body == nil {
			s = stamp{deleted: true, from: request.from, to: request.to}
		}
		l.note(key, number, s)
	}
	return nil
}

// check fails the test where the history lacks an acknowledged write, or has it at another time.
func (l *ledger) check(t *testing.T, versions map[string]map[int]*version) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, stamps := range l.stamps {
		for number, s := range stamps {
			switch v := versions[key][number]; {
			case v == nil:
				t.Errorf("HAPI's history lacks version %d of %s", number, key)
			case v.deleted != s.deleted || !s.deleted && !v.from.Equal(s.from):
				t.Errorf("version %d of %s: deleted %v at %v in HAPI's history, %v at %v in the answer to the write",
					number, key, v.deleted, v.from, s.deleted, s.from)
			}
		}
	}
}

// versionAt reads an address that ends in Type/id/_history/version.
func versionAt(address string) (key string, number int, err error) {
	parts := strings.Split(address, "/")
	if len(parts) < 4 || parts[len(parts)-2] != "_history" {
		return "", 0, fmt.Errorf("%q is no address of a version", address)
	}
	parts = parts[len(parts)-4:]
	number, err = strconv.Atoi(parts[3])
	return parts[0] + "/" + parts[1], number, err
}
