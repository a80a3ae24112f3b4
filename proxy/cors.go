package proxy

import (
	"context"
	"net/http"
	"time"

	"sidecar/exporter/fhir"
)

// corsTimeout bounds the question whether an origin is allowed; without an answer it is not.
const corsTimeout = time.Second

// exposed are the headers of our answers that a script in a browser has to read.
const exposed = "Content-Location, Expires, Preference-Applied, Retry-After, X-Export-Status, X-Progress"

// allowOrigin lets scripts of other origins read our answer where the upstream would let them read its own: a preflight
// for the same path says so.
func (p *Proxy) allowOrigin(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), corsTimeout)
	defer cancel()
	preflight, err := http.NewRequestWithContext(ctx, http.MethodOptions, p.Upstream.String()+"/metadata", nil)
	if err != nil {
		return
	}
	preflight.Header.Set("Origin", origin)
	preflight.Header.Set("Access-Control-Request-Method", http.MethodGet)
	answer, err := p.Transport.RoundTrip(preflight)
	if err != nil {
		p.Log.DebugContext(ctx, "preflight not answered", "error", fhir.Cause(err))
		return
	}
	defer func() { _ = answer.Body.Close() }() // nothing in it is wanted
	for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
		if value := answer.Header.Get(name); value != "" {
			w.Header().Set(name, value)
		}
	}
	if w.Header().Get("Access-Control-Allow-Origin") != "" {
		w.Header().Set("Access-Control-Expose-Headers", exposed)
		w.Header().Add("Vary", "Origin")
	}
}
