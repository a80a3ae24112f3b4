package conformance

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	fhirJSON = "application/fhir+json"
	ndjson   = "application/fhir+ndjson"
)

// request is one request of the suite. Unless it says otherwise it carries the first client's token.
type request struct {
	method string // empty for GET
	url    string
	header http.Header
	body   []byte
	// token replaces the usual one: noToken for none.
	token string
}

const noToken = "-"

// answer is a whole answer.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// send sends a request. What is compressed is left so.
func (s *suite) send(ctx context.Context, r request) (answer, error) {
	if r.method == "" {
		r.method = http.MethodGet
	}
	out, err := http.NewRequestWithContext(ctx, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return answer{}, fmt.Errorf("request: %w", err)
	}
	for name, values := range r.header {
		out.Header[name] = values
	}
	token := r.token
	if token == "" && s.Token != nil {
		token = s.Token(Grant{})
	}
	if token != "" && token != noToken {
		out.Header.Set("Authorization", "Bearer "+token)
	}
	in, err := s.client.Do(out)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", r.method, err)
	}
	body, err := io.ReadAll(in.Body)
	if err := errors.Join(err, in.Body.Close()); err != nil {
		return answer{}, fmt.Errorf("%s: read the answer: %w", r.method, err)
	}
	return answer{in.StatusCode, in.Header, body}, nil
}

// send is send for a row, which ends where there is no answer.
func (c *check) send(r request) answer {
	a, err := c.suite.send(c.ctx, r)
	c.must(err)
	return a
}

// get asks for an address of the server.
func (c *check) get(url string) answer { return c.send(request{url: url}) }

// read asks for a file of an export: with the token where its manifest says so, and else without, as it may lie elsewhere.
func (c *check) read(e *export, url string) answer { return c.send(e.fileRequest(url)) }

func (e *export) fileRequest(url string) request {
	if !e.manifest.RequiresAccessToken {
		return request{url: url, token: noToken}
	}
	return request{url: url}
}

// media is the media type of the answer without its parameters.
func (a answer) media() string {
	media, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return media
}

// decoded is the body without its compression.
func (a answer) decoded() ([]byte, error) {
	switch coding := a.header.Get("Content-Encoding"); coding {
	case "", "identity":
		return a.body, nil
	case "gzip":
		unpacked, err := gzip.NewReader(bytes.NewReader(a.body))
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return io.ReadAll(unpacked)
	default:
		return nil, fmt.Errorf("Content-Encoding %q is neither gzip nor absent", coding)
	}
}

// short is the beginning of the body, for a reason.
func (a answer) short() string {
	return strings.Join(strings.Fields(string(a.body[:min(len(a.body), 120)])), " ")
}

// outcome is an OperationOutcome.
type outcome struct {
	ResourceType string `json:"resourceType"`
	Issue        []struct {
		Severity string `json:"severity"`
		Code     string `json:"code"`
	} `json:"issue"`
}

// parseOutcome reads an OperationOutcome with an issue that has a severity of FHIR and a code.
func parseOutcome(body []byte) (outcome, error) {
	var o outcome
	if err := json.Unmarshal(body, &o); err != nil {
		return o, errors.New("no JSON")
	}
	if o.ResourceType != "OperationOutcome" || len(o.Issue) == 0 {
		return o, errors.New("no OperationOutcome with an issue")
	}
	for _, issue := range o.Issue {
		switch issue.Severity {
		case "fatal", "error", "warning", "information":
		default:
			return o, fmt.Errorf("an issue of severity %q", issue.Severity)
		}
		if issue.Code == "" {
			return o, errors.New("an issue without a code")
		}
	}
	return o, nil
}

// refused checks that an answer is a refusal as the guide wants it: 4xx or 5xx and an OperationOutcome.
func (c *check) refused(what string, a answer) outcome {
	if a.status < 400 {
		c.errorf("%s: status %d, want 4xx or 5xx", what, a.status)
		return outcome{}
	}
	o, err := parseOutcome(a.body)
	if err != nil {
		c.errorf("%s: the body of the %d is %v", what, a.status, err)
	}
	return o
}

// rejected is refused for what is the client's fault, at which no server may fail.
func (c *check) rejected(what string, a answer) {
	if c.refused(what, a); a.status >= 500 {
		c.errorf("%s: status %d, want 4xx", what, a.status)
	}
}

// refusedWith checks that the status is one of those.
func (c *check) refusedWith(what string, a answer, statuses ...int) {
	for _, status := range statuses {
		if a.status == status {
			return
		}
	}
	c.errorf("%s: status %d, want one of %v", what, a.status, statuses)
}

func newClient(server Server) *http.Client {
	return &http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{
			DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 2 * time.Second, // servers keep them longer
			TLSClientConfig: &tls.Config{RootCAs: server.Roots, MinVersion: tls.VersionTLS12},
		},
	}
}
