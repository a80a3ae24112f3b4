package exporter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// profileLifetime is how long the answers of the probes are trusted, uncertainLifetime how long those with an error
	// among them are.
	profileLifetime, uncertainLifetime = 24 * time.Hour, 10 * time.Minute
	// probesVersion rises when the probes ask something new, so that a newer binary does not trust what an older one asked.
	probesVersion = 1
)

// known is a profile with the circumstances in which it was found. It is stored as JSON, so that a restart does not ask again.
type known struct {
	Version int
	// PageSize is the number of rows in a page that was wanted.
	PageSize int
	Profile  *fhir.Profile
	// at is when the server was asked; doubtful tells that it did not keep to its answers since.
	at       time.Time
	doubtful bool
}

// holds tells whether the profile may be used at a time, with the settings of now, for the server of the statement.
func (k *known) holds(now time.Time, pageSize int, statement *fhir.CapabilityStatement) bool {
	if k.Profile == nil || k.doubtful || k.Version != probesVersion || k.PageSize != pageSize {
		return false
	}
	lifetime := profileLifetime
	if k.Profile.Uncertain {
		lifetime = uncertainLifetime
	}
	age := now.Sub(k.at) // below 0 where our clock was wrong then
	return age >= 0 && age < lifetime && k.Profile.Of(statement)
}

// Profile returns what the server was seen to be able to do, and when it was asked; nil before the first export. It never
// asks the server.
func (e *Exporter) Profile(ctx context.Context) (*fhir.Profile, time.Time) {
	k := e.recall(ctx)
	return k.Profile, k.at
}

// Doubt says that the server did not keep what its profile promised: the next job asks it anew.
func (e *Exporter) Doubt(ctx context.Context, reason string) {
	e.mu.Lock()
	first := !e.known.doubtful && e.known.Profile != nil
	e.known.doubtful = true
	e.mu.Unlock()
	if !first {
		return
	}
	e.Log.WarnContext(ctx, "server did not keep what its profile promised: it is probed anew by the next export", "reason", reason)
	if err := e.Store.PutProfile(ctx, e.profileKey(), []byte("{}")); err != nil && ctx.Err() == nil { // a restart must not trust it either
		e.Log.ErrorContext(ctx, "profile not removed", "error", err)
	}
}

// learn returns what the server can do: as it is remembered or stored, else by asking it.
func (e *Exporter) learn(ctx context.Context) (*fhir.Profile, error) {
	statement, err := e.Client.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	k := e.recall(ctx)
	if !k.holds(time.Now(), e.PageSize, statement) {
		profile, err := e.Client.Probe(ctx, e.PageSize)
		if err != nil {
			return nil, err
		}
		e.Log.InfoContext(ctx, "server probed", "software", profile.Software, "fhir", profile.FHIRVersion, "keyset", profile.Keyset,
			"milliseconds", profile.Milliseconds, "counts", string(profile.CountMethod), "page", profile.PageSize, "history", profile.TypeHistory)
		k = known{Version: probesVersion, PageSize: e.PageSize, Profile: profile, at: time.Now()}
		if !profile.Empty() { // an empty server says nothing about itself; it is asked again by the next job
			e.remember(ctx, k)
		}
	}
	e.Client.Adopt(k.Profile)
	return k.Profile, nil
}

// recall returns what is known without asking, from the store where this process has not asked yet.
func (e *Exporter) recall(ctx context.Context) known {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known.Profile != nil || e.known.doubtful {
		return e.known
	}
	if e.Store == nil { // a dry run has none
		return e.known
	}
	stored, err := e.stored(ctx)
	if err != nil && !errors.Is(err, state.ErrNotFound) && ctx.Err() == nil {
		e.Log.WarnContext(ctx, "stored profile cannot be read: the server is probed anew", "error", err)
	}
	if err == nil {
		e.known = stored
	}
	return e.known
}

func (e *Exporter) stored(ctx context.Context) (known, error) {
	raw, at, err := e.Store.Profile(ctx, e.profileKey())
	if err != nil {
		return known{}, err
	}
	var k known
	if err := json.Unmarshal(raw, &k); err != nil {
		return known{}, fmt.Errorf("read profile: %w", err)
	}
	k.at = at
	return k, nil
}

// remember keeps a profile for the jobs to come. That it cannot be stored costs a probing after the next start only.
func (e *Exporter) remember(ctx context.Context, k known) {
	e.mu.Lock()
	e.known = k
	e.mu.Unlock()
	if e.Store == nil {
		return
	}
	raw, err := json.Marshal(k)
	if err == nil {
		err = e.Store.PutProfile(ctx, e.profileKey(), raw)
	}
	if err != nil && ctx.Err() == nil {
		e.Log.ErrorContext(ctx, "profile not stored", "error", err)
	}
}

// profileKey names the upstream in the store, without showing its address.
func (e *Exporter) profileKey() string {
	sum := sha256.Sum256([]byte(e.Client.Base()))
	return hex.EncodeToString(sum[:])
}
