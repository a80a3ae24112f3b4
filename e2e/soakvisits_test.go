//go:build soak

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync/atomic"
)

// visit is one kind of request. Its error is errUnavailable or tells what was wrong.
type visit struct {
	name string
	do   func(c *soakClient, ctx context.Context, random *rand.Rand) error
	once bool // see errOnce
}

var visits = []visit{
	{"small", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.read(ctx, random, "length", 4000)
	}, false},
	{"small, again", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.read(ctx, random, "length", 4000)
	}, false},
	{"large", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.read(ctx, random, "length", 3<<20)
	}, false},
	{"chunked", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.read(ctx, random, "chunked", 300<<10)
	}, false},
	{"cut", (*soakClient).readCut, false},
	{"head", (*soakClient).head, false},
	{"conditional", (*soakClient).conditional, false},
	{"post", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.post(ctx, random, 4000, true)
	}, false},
	{"post large", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.post(ctx, random, 1<<20, true)
	}, true},
	{"post chunked", func(c *soakClient, ctx context.Context, random *rand.Rand) error {
		return c.post(ctx, random, 1<<20, false)
	}, true},
	{"websocket", (*soakClient).upgrade, true},
	{"expect", (*soakClient).expect, true},
	{"expect in vain", (*soakClient).expectInVain, true},
	{"trailers", (*soakClient).trailers, false},
	{"post trailers", (*soakClient).postTrailers, true},
	{"early hints", (*soakClient).hints, false},
	{"events", (*soakClient).events, false},
	{"leave while reading", (*soakClient).leaveReading, false},
	{"leave while sending", (*soakClient).leaveSending, false},
}

// expect holds a body back until the server wants it.
func (c *soakClient) expect(ctx context.Context, random *rand.Rand) error {
	var wanted atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: func() { wanted.Store(true) }})
	seed, size := random.Uint64N(1<<32), 1+random.IntN(tooMuchEchoed)
	content := soakBody(seed, size)
	response, err := c.send(ctx, random, http.MethodPost, address(seed, size, ""), http.Header{"Expect": {"100-continue"}}, bytes.NewReader(content))
	if err != nil {
		return err
	}
	if err := whole(response, http.StatusCreated, content); err != nil {
		return err
	}
	if !wanted.Load() {
		return errors.New("the server has got a body that nobody asked for by a 100")
	}
	return nil
}

// expectInVain holds a body back that the server does not want.
func (c *soakClient) expectInVain(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), 1+random.IntN(tooMuchEchoed)
	response, err := c.send(ctx, random, http.MethodPost, address(seed, size, "refuse"), http.Header{"Expect": {"100-continue"}}, bytes.NewReader(soakBody(seed, size)))
	if err != nil {
		return err
	}
	return whole(response, http.StatusRequestEntityTooLarge, soakBody(seed, 100))
}

// trailers reads an answer that has one.
func (c *soakClient) trailers(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), random.IntN(300<<10)
	response, err := c.send(ctx, random, http.MethodGet, address(seed, size, "trailers"), nil, nil)
	if err != nil {
		return err
	}
	if err := whole(response, http.StatusOK, soakBody(seed, size)); err != nil {
		return err
	}
	if got := response.Trailer.Get(soakTrailer); got != soakTag(seed) {
		return fmt.Errorf("trailer %q, want %q", got, soakTag(seed))
	}
	return nil
}

// postTrailers sends a body that has one.
func (c *soakClient) postTrailers(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), random.IntN(300<<10)
	content := soakBody(seed, size)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+address(seed, size, "trailers"), io.MultiReader(bytes.NewReader(content)))
	if err != nil {
		return err
	}
	request.Trailer = http.Header{soakTrailer: {soakTag(seed)}}
	response, err := c.roundTrip(random, request)
	if err != nil {
		return err
	}
	return whole(response, http.StatusCreated, content[:min(size, tooMuchEchoed)])
}

// hints reads an answer that another one comes before.
func (c *soakClient) hints(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), random.IntN(4000)
	early := make(chan string, 10)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(status int, header textproto.MIMEHeader) error {
		early <- fmt.Sprint(status, header.Get("Link"))
		return nil
	}})
	response, err := c.send(ctx, random, http.MethodGet, address(seed, size, "hints"), nil, nil)
	if err != nil {
		return err
	}
	link := response.Header.Get("Link")
	if err := whole(response, http.StatusOK, soakBody(seed, size)); err != nil {
		return err
	}
	if got, want := len(early), fmt.Sprint(http.StatusEarlyHints, soakTag(seed)); got != 1 || <-early != want || link != "" {
		return fmt.Errorf("%d interim answers, want %s once and a link there alone", got, want)
	}
	return nil
}

// events reads all of a stream that has no end, and leaves: what is held back on the way does not come.
func (c *soakClient) events(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), 1+random.IntN(20)
	response, err := c.send(ctx, random, http.MethodGet, address(seed, size, "events"), nil, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	want := soakEvents(seed, size)
	for i, event := range want {
		got := make([]byte, len(event))
		if n, err := io.ReadFull(response.Body, got); err != nil {
			return fmt.Errorf("%w: %w after %d events and %d bytes", errUnavailable, err, i, n)
		}
		if string(got) != event {
			return fmt.Errorf("event %d is %.100q, want %.100q", i, got, event)
		}
	}
	return nil
}
