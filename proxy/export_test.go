package proxy

import (
	"net/http"
	"time"

	"github.com/gorilla/mux"
)

// Routes are those of a handler that New returned.
func Routes(handler http.Handler) *mux.Router { return handler.(*front).routes }

// RetryAfter is the pause until the next poll of a job that has come this far in that time.
func RetryAfter(elapsed time.Duration, percent int64) int { return retryAfter(elapsed, percent) }

// SignLink is the query by which a file can be read until it dies.
func SignLink(key []byte, job, name string, dies time.Time) string {
	return signLink(key, job, name, dies)
}
