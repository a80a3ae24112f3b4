package fhir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// never is a moment after all data. The year 9999 is a 500 on one server.
var never = time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	maxPageSize = 1000
	// UnknownID is an id that no server has, for negative controls.
	UnknownID = "b8a6a9a2-0000-4000-8000-6e6f6e65"
)

// Probe asks the upstream what it can do, by some dozens of small requests, one after another, on its two biggest types
// and a small one. pageSize is the _count that is wanted, 0 for the largest useful one. It fails only when the upstream
// cannot be reached or refuses to be searched at all; what a server cannot do is an answer. A question that is answered
// with an error is asked once more and then taken as "cannot", which the profile says (Uncertain).
func (c *Client) Probe(ctx context.Context, pageSize int) (*Profile, error) {
	if pageSize == 0 {
		pageSize = maxPageSize
	}
	statement, err := c.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	p := &probe{client: c, statement: statement, wanted: pageSize, profile: &Profile{
		FHIRVersion: statement.FHIRVersion,
		Software:    softwareOf(statement),
		HAPI:        statement.IsHAPI(),
		Types:       []string{},
		CountMethod: CountNone,
		PageSize:    min(pageSize, 100),
		Settle:      defaultSettle(statement.Software),
		ClockSource: ClockLocal,
	}}
	if err := p.findSamples(ctx); err != nil {
		return nil, err
	}
	if len(p.samples) == 0 {
		p.remark("no type has a row that can be read: nothing could be probed")
		return p.profile, nil
	}
	for _, ask := range []func(context.Context) error{
		p.counts, p.filter, p.bounds, p.milliseconds, p.sort, p.pageSize, p.strict, p.history,
		p.patients, p.post, p.undated, p.clock,
	} {
		if err := ask(ctx); err != nil {
			return nil, err
		}
	}
	return p.profile, nil
}

// probe is one run of the questions. Those that depend on the type are put to each sample, the others to the first.
type probe struct {
	client    *Client
	statement *CapabilityStatement
	profile   *Profile
	wanted    int // page size
	samples   []*sample
	// summaryFails and totalFails are how many types in a row could not be counted while samples were looked for.
	summaryFails, totalFails int
}

// remark notes a sentence, once.
func (p *probe) remark(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(p.profile.Remarks, text) {
		p.profile.Remarks = append(p.profile.Remarks, text)
	}
}

// answer is what one type says to a question.
type answer int

const (
	unasked answer = iota // the type has nothing to ask about
	yes
	no
)

func verdict(ok bool) answer {
	if ok {
		return yes
	}
	return no
}

// question is put to one sample.
type question func(context.Context, *sample) (answer, error)

// all puts a question to every sample and takes the weaker answer.
func (p *probe) all(ctx context.Context, what string, ask question) (answer, error) {
	return p.among(ctx, p.samples, what, ask)
}

// among puts a question to some samples. A remark names the types that cannot what others can.
func (p *probe) among(ctx context.Context, samples []*sample, what string, ask question) (answer, error) {
	var can, cannot []string
	for _, s := range samples {
		got, err := p.one(ctx, what, s, ask)
		switch {
		case err != nil:
			return no, err
		case got == yes:
			can = append(can, s.typ)
		case got == no:
			cannot = append(cannot, s.typ)
		}
	}
	switch {
	case len(cannot) > 0 && len(can) > 0:
		p.remark("%s: not of %s, but of %s", what, strings.Join(cannot, ", "), strings.Join(can, ", "))
		return no, nil
	case len(cannot) > 0:
		return no, nil
	case len(can) > 0:
		return yes, nil
	}
	return unasked, nil
}

// one puts a question to a sample. An error says nothing about the server, so the question is asked once more.
func (p *probe) one(ctx context.Context, what string, s *sample, ask question) (answer, error) {
	got, err := ask(ctx, s)
	if isUnknown(ctx, err) {
		got, err = ask(ctx, s)
	}
	switch {
	case err == nil:
		return got, nil
	case isUnknown(ctx, err):
		p.doubt(what, s.typ, err)
		return no, nil
	case isAnswer(err):
		return no, nil
	}
	return no, err
}

// first puts a question to the first sample.
func (p *probe) first(ctx context.Context, what string, ask question) (bool, error) {
	got, err := p.one(ctx, what, p.samples[0], ask)
	return got == yes, err
}

func (p *probe) doubt(what, typ string, err error) {
	p.profile.Uncertain = true
	p.remark("%s: %s was answered with an error twice (%s) and is taken as not able; the server is asked again soon", what, typ, reason(err))
}

// reason is an error without the request's name.
func reason(err error) string {
	if status := StatusOf(err); status != 0 {
		return fmt.Sprintf("status %d", status)
	}
	return Cause(err)
}

// isAnswer tells whether an error says that the server cannot do a thing, rather than that it cannot be reached.
func isAnswer(err error) bool {
	var response *ResponseError
	return errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) || errors.As(err, &response) && !response.Temporary() && response.StatusCode != 401
}

// isUnknown tells whether an error says nothing about what the server can do: it broke, or took too long over this one
// request. 429, 502 and 503 concern all requests: the whole probing waits for those.
func isUnknown(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil {
		return false
	}
	var timeout interface{ Timeout() bool }
	switch StatusOf(err) {
	case 500, 504, 408:
		return true
	case 0:
		return errors.Is(err, errStalled) || errors.As(err, &timeout) && timeout.Timeout()
	}
	return false
}
