package proxy

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Ensure who waits for a moment without users is told of it, by the last answer or at once.
func TestIdle(t *testing.T) {
	l, read := NewLive(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/Patient/1", nil)
	if l.Idle() != nil {
		t.Error("nobody has asked, yet somebody waits")
	}
	one, two := l.begin(read, "/fhir", time.Now()), l.begin(read, "/fhir", time.Now())
	idle := l.Idle()
	l.answered(&one, http.StatusOK, time.Millisecond)
	select {
	case <-idle:
		t.Error("idle while one waits")
	default:
	}
	l.end(&two)
	<-idle
	if l.Idle() != nil {
		t.Error("all are answered, yet somebody waits")
	}
}
