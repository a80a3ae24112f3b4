package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// verdictLifetime is how long the server's judgement of a client holds: no longer may a token be used here that it takes
	// no more.
	verdictLifetime = time.Minute
	// maxVerdicts bounds how many are remembered.
	maxVerdicts = 20_000
)

// verdicts are what the server said of clients and types. It remembers a hash of the headers that it was asked with, never
// these themselves.
type verdicts struct {
	flights singleflight.Group

	mu    sync.Mutex
	known map[string]verdict
}

type verdict struct {
	err   error
	until time.Time
}

// of returns what the server says of a client and a type, and asks it by ask where that is not known. Those who want to know
// the same at once wait for one question, which goes on for a while when they leave: they may come again.
func (v *verdicts) of(ctx context.Context, client http.Header, typ string, ask func(ctx context.Context) error) error {
	key := verdictKey(client, typ)
	v.mu.Lock()
	known, ok := v.known[key]
	v.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known.err
	}
	answer := v.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*checkTimeout)
		defer cancel()
		err := ask(ctx)
		if err == nil || isDenial(err) {
			v.keep(key, err)
		}
		return nil, err
	})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case said := <-answer:
		return said.Err
	}
}

func (v *verdicts) keep(key string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if len(v.known) >= maxVerdicts {
		maps.DeleteFunc(v.known, func(_ string, old verdict) bool { return !now.Before(old.until) })
	}
	if v.known == nil || len(v.known) >= maxVerdicts { // too many that hold: they are asked again
		v.known = map[string]verdict{}
	}
	v.known[key] = verdict{err, now.Add(verdictLifetime)}
}

// verdictKey tells apart clients and types. No name or value can be taken for a part of another, since each has its length in
// front.
func verdictKey(client http.Header, typ string) string {
	hash := sha256.New()
	add := func(text string) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(text)))
		hash.Write(length[:])
		hash.Write([]byte(text))
	}
	for _, name := range slices.Sorted(maps.Keys(client)) {
		add(name)
		for _, value := range client[name] {
			add(value)
		}
		add("")
	}
	return string(hash.Sum([]byte(typ + " ")))
}
