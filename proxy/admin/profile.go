package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"sidecar/exporter/fhir"
)

// profiler knows what the FHIR server was seen to be able to do, and since when; nil before it was asked.
type profiler interface {
	Profile(ctx context.Context) (*fhir.Profile, time.Time)
}

// shownProfile is the profile as JSON.
type shownProfile struct {
	Asked    time.Time      `json:"asked"`
	Profile  *fhir.Profile  `json:"profile"`
	Findings []fhir.Finding `json:"findings"`
}

// showProfile answers with the profile of the server, as text, or as JSON where that is accepted by name.
func showProfile(server profiler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		profile, at := server.Profile(r.Context())
		if profile == nil {
			answer(w, http.StatusNotFound, "the server has not been asked yet: the first export does\n")
			return
		}
		w.Header().Add("Vary", "Accept")
		if !strings.Contains(r.Header.Get("Accept"), "application/json") {
			answer(w, http.StatusOK, profileText(profile, at))
			return
		}
		body, err := json.Marshal(shownProfile{at, profile, profile.Findings()})
		if err != nil {
			answer(w, http.StatusInternalServerError, "the profile cannot be written\n")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // an operator who has left wants no answer
	})
}

func profileText(p *fhir.Profile, at time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, FHIR %s, asked %s about %s\n\n", p.Software, p.FHIRVersion, at.UTC().Format(time.RFC3339), strings.Join(p.Types, ", "))
	for _, line := range p.Lines() {
		b.WriteString(line + "\n")
	}
	for _, remark := range p.Remarks {
		b.WriteString("\n" + remark)
	}
	if len(p.Remarks) > 0 {
		b.WriteString("\n")
	}
	return b.String()
}
