//go:build figures

package bench

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// nullStore takes what S3 takes and drops it, so that the sidecar alone is measured. Only small objects are kept, with which
// the sidecar tests its bucket.
type nullStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	taken   int64 // bytes
}

// keptBytes is the size up to which an object can be read again.
const keptBytes = 64 << 10

func startNullStore(t *testing.T) (store *nullStore, endpoint string) {
	t.Helper()
	store = &nullStore{objects: map[string][]byte{}}
	listening := httptest.NewServer(store)
	t.Cleanup(listening.Close)
	return store, listening.URL
}

// ServeHTTP answers PUT, GET and DELETE of objects.
func (s *nullStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPut:
		s.put(w, r)
	case http.MethodDelete:
		s.mu.Lock()
		delete(s.objects, r.URL.Path)
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		s.mu.Lock()
		object, ok := s.objects[r.URL.Path]
		s.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(object)
	}
}

func (s *nullStore) put(w http.ResponseWriter, r *http.Request) {
	head, err := io.ReadAll(io.LimitReader(r.Body, keptBytes))
	if err != nil {
		http.Error(w, "broken off", http.StatusBadRequest)
		return
	}
	dropped, err := io.Copy(io.Discard, r.Body)
	if err != nil || int64(len(head))+dropped != r.ContentLength {
		http.Error(w, "broken off", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken += r.ContentLength
	if dropped == 0 {
		s.objects[r.URL.Path] = head
	}
}
