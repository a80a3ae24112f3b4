package proxy

import (
	"errors"
	"net/http"
	"slices"

	"sidecar/proxy/auth"
	"sidecar/state"
)

// asker is who sent a request, as far as its headers say.
type asker struct {
	// id names the client across its tokens; empty where nothing does.
	id string
	// guarded tells that the client had to show, or did show, who it is.
	guarded bool
	// scopes bound what it may read; nil leaves that to the FHIR server.
	scopes auth.Scopes
	// headers are those by which the FHIR server knows the client, where it is asked.
	headers http.Header
}

// GroupRule says of which Groups a client may have exports.
type GroupRule struct {
	// Allow are the ids of the only ones, none for all; Deny are those of which it may not.
	Allow, Deny []string
}

// allows tells whether a Group may be exported.
func (g GroupRule) allows(group string) bool {
	return !slices.Contains(g.Deny, group) && (len(g.Allow) == 0 || slices.Contains(g.Allow, group))
}

// AnyClient is the name of the rule for clients that have none of their own, those without a name among them.
const AnyClient = "*"

// mayExportGroup holds a Group export against the rules for its client.
func (p *Proxy) mayExportGroup(kickoff *state.Kickoff, id string) error {
	rule, own := p.GroupRules[id]
	if !own || id == "" {
		rule = p.GroupRules[AnyClient]
	}
	if kickoff.Level == state.Group && !rule.allows(kickoff.Group) {
		return &refusal{http.StatusForbidden, "forbidden", "this client may not export this Group"}
	}
	return nil
}

// who says who sent a request. In the mode auth.Upstream nothing is known of it until the FHIR server was asked.
func (p *Proxy) who(r *http.Request) (*asker, error) {
	switch p.AuthMode {
	case auth.None:
		return &asker{}, nil
	case auth.JWT, auth.Introspection:
		client, err := p.Auth.Authorize(r.Context(), r.Header)
		if err != nil {
			return nil, tokenRefusal(err)
		}
		return &asker{id: client.ID, guarded: true, scopes: client.Scopes, headers: p.clientHeaders(r)}, nil
	}
	headers := p.clientHeaders(r)
	return &asker{guarded: len(headers) > 0, headers: headers}, nil
}

// tokenRefusal is what a client is told of its token.
func tokenRefusal(err error) error {
	var refused *auth.Refusal
	if !errors.As(err, &refused) {
		return err
	}
	known := refusal{refused.Status, refused.Code, refused.Text}
	if refused.Challenge != "" {
		return &login{known, []string{refused.Challenge}}
	}
	return &known
}

// errNoToken is told to those who ask for a job without the credentials that its kick-off needed.
var errNoToken = &login{refusal{http.StatusUnauthorized, "login", "this export was begun with credentials: send those of its client"}, []string{"Bearer"}}

// asKicker calls next with who sent the request, and refuses those who may not ask at all.
func (p *Proxy) asKicker(next func(w http.ResponseWriter, r *http.Request, who *asker)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := p.mayAsk(r)
		var who *asker
		if err == nil {
			who, err = p.who(r)
		}
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		next(w, r, who)
	}
}

// asOwner calls next with the job of the request's path, for the client to which it belongs.
func (p *Proxy) asOwner(next func(w http.ResponseWriter, r *http.Request, job *state.Job)) http.HandlerFunc {
	return p.asKicker(func(w http.ResponseWriter, r *http.Request, who *asker) {
		job, err := p.job(r)
		event := eventOf(r)
		event.Client = who.id // also of an attempt that is refused
		if err == nil {
			event.Job, event.Level = job.ID, job.Kickoff.Level
			err = p.mayPoll(r, job) // before the server is asked for it
		}
		if err == nil {
			err = p.mayTouch(r, job, who)
		}
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		if job.Kickoff.Client != "" {
			event.Client = job.Kickoff.Client
		}
		if job.Running() {
			p.lend(r, job)
		}
		next(w, r, job)
	})
}

// lend hands the headers of a job's client to who reads for it. A job that was begun without any is read without any.
func (p *Proxy) lend(r *http.Request, job *state.Job) {
	headers := http.Header{}
	if job.Kickoff.Guarded {
		headers = p.clientHeaders(r)
	}
	p.Client.Lend(job.ID, headers)
}

// byLink calls next with the job of the request's path: its address is the permission, and next looks at the rest of it.
func (p *Proxy) byLink(next func(w http.ResponseWriter, r *http.Request, job *state.Job)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := p.mayAsk(r)
		var job *state.Job
		if err == nil {
			job, err = p.job(r)
		}
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		eventOf(r).Job, eventOf(r).Level = job.ID, job.Kickoff.Level
		next(w, r, job)
	}
}

// mayTouch tells whether a job is one of the client that asks for it. That of another client is not there for it. Whoever
// may read less than the job holds is refused, though the job be its own.
func (p *Proxy) mayTouch(r *http.Request, job *state.Job, who *asker) error {
	kickoff := &job.Kickoff
	switch p.AuthMode {
	case auth.None:
		return nil
	case auth.JWT, auth.Introspection:
		if who.id != kickoff.Client { // one without a client was begun in another mode
			return state.ErrNotFound
		}
		for _, typ := range holds(job) {
			if !who.scopes.Allow(typ) {
				return errNarrow
			}
		}
		return p.mayExportGroup(kickoff, who.id)
	}
	if !kickoff.Guarded {
		return nil
	}
	if !who.guarded {
		return errNoToken
	}
	said, err := auth.Accepted(r.Header) // to refuse by it, it need not be accepted yet
	if err != nil {
		return tokenRefusal(err)
	}
	err = p.mayStillRead(r.Context(), job, who.headers)
	var known *refusal
	if kickoff.Client != "" && said.ID != kickoff.Client && (err == nil || errors.As(err, &known) && known.status == http.StatusForbidden) {
		return state.ErrNotFound // it is told so by a server that takes its credentials
	}
	if err != nil {
		return err
	}
	return p.mayExportGroup(kickoff, said.ID)
}

// errNarrow is told to the owner of a job with a token that is not enough for it.
var errNarrow = &refusal{http.StatusForbidden, "forbidden", "the access token is not for all types that this export holds"}

// holds are the types of which a job may have files; before its plan those that it was asked for.
func holds(job *state.Job) []string {
	types := slices.Concat(job.Kickoff.Types, job.Types, job.Referenced)
	if job.Kickoff.Level == state.Group {
		types = append(types, "Group")
	}
	slices.Sort(types)
	return slices.Compact(types)
}
