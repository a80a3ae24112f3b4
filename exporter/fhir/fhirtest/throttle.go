package fhirtest

import "net/http"

// enter counts a request in; false means that the personality answers too many at once already. leave counts it out.
func (s *Server) enter() bool {
	return s.p.MaxConcurrent == 0 || int(s.inFlight.Add(1)) <= s.p.MaxConcurrent
}

func (s *Server) leave() {
	if s.p.MaxConcurrent > 0 {
		s.inFlight.Add(-1)
	}
}

// throttle answers as Microsoft does: the pause in seconds, which cannot be less than one, and in milliseconds.
func (s *Server) throttle(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("X-Ms-Retry-After-Ms", "250")
	s.fail(w, r, refuse(http.StatusTooManyRequests, "too many requests at the same time"))
}
