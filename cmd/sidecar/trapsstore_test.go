package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// storeLinkKey signs the links of that sidecar which lead to itself.
const storeLinkKey = "a key of the links, 32 characters"

// startStoreSidecar runs a sidecar whose files lie in a store with the habits of S3 that clients meet.
func startStoreSidecar(t *testing.T, upstream string) *sidecar {
	t.Helper()
	return startBeforeStore(t, upstream, &signedStore{}, func(*config) {})
}

func startBeforeStore(t *testing.T, upstream string, handler *signedStore, edit func(*config)) *sidecar {
	t.Helper()
	handler.objects = map[string]storedObject{}
	store := httptest.NewServer(handler)
	t.Cleanup(store.Close)
	return startSidecar(t, upstream, func(c *config) {
		edit(c)
		c.Bucket.Kind, c.LinkLifetime, c.LinkKey = "s3", 5*time.Minute, storeLinkKey
		b := &c.Bucket.S3
		b.Bucket, b.Region, b.Endpoint, b.PathStyle, b.AccessKeyID, b.SecretAccessKey = "exports", "us-east-1", store.URL, true, "id", "secret"
	})
}

type storedObject struct {
	header http.Header
	body   []byte
}

// signedStore keeps objects. It sends them with the headers that they came with, refuses requests without a signature, and
// such with a token beside the signature of the link.
type signedStore struct {
	mu      sync.Mutex
	objects map[string]storedObject
	headers []http.Header // of all requests
}

func (s *signedStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers = append(s.headers, r.Header.Clone())
	signed, token := r.URL.Query().Has("X-Amz-Signature"), r.Header.Get("Authorization") != ""
	object, found := s.objects[r.URL.Path]
	switch {
	case signed && token:
		w.WriteHeader(http.StatusBadRequest)
	case !signed && !token:
		w.WriteHeader(http.StatusForbidden)
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		header := http.Header{}
		for _, name := range []string{"Content-Type", "Content-Encoding"} {
			if value := r.Header.Get(name); value != "" {
				header.Set(name, value)
			}
		}
		s.objects[r.URL.Path] = storedObject{header, body}
	case r.Method == http.MethodDelete:
		delete(s.objects, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	case !found:
		w.WriteHeader(http.StatusNotFound)
	default:
		for name := range object.header {
			w.Header().Set(name, object.header.Get(name))
		}
		if _, err := w.Write(object.body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}
