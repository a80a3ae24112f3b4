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

// verdicts remembers which clients the server let search which types, by a hash of the headers that it was asked with. What it
// refused is asked again: the rules may have been changed for this client.
type verdicts struct {
	flights singleflight.Group

	mu    sync.Mutex
	until map[string]time.Time
}

// of returns what the server says of a client and a type, and asks it by ask where that is not known. Those who want to know
// the same at once wait for one question, which goes on for a while when they leave: they may come again.
func (v *verdicts) of(ctx context.Context, client http.Header, typ string, ask func(ctx context.Context) error) error {
	key := verdictKey(client, typ)
	v.mu.Lock()
	until := v.until[key]
	v.mu.Unlock()
	if time.Now().Before(until) {
		return nil
	}
	answer := v.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*checkTimeout)
		defer cancel()
		asked := time.Now()
		err := guarded(func() error { return ask(ctx) })
		if err == nil {
			v.keep(key, asked)
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

func (v *verdicts) keep(key string, asked time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if len(v.until) >= maxVerdicts {
		maps.DeleteFunc(v.until, func(_ string, until time.Time) bool { return !now.Before(until) })
	}
	if v.until == nil || len(v.until) >= maxVerdicts { // too many that hold: they are asked again
		v.until = map[string]time.Time{}
	}
	v.until[key] = asked.Add(verdictLifetime)
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
