package fhir

import (
	"context"
	"net/http"
)

// OpenBinary sends a GET or HEAD for path, which names a Binary below the FHIR base, with header and the sidecar's own
// credentials. It returns the answer whatever its status, as the server encoded it; the body's Close ends the request.
func (c *Client) OpenBinary(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	const op = "read Binary"
	ctx, cancel := context.WithCancel(ctx)
	sent := c.rest.R().SetContext(ctx).SetDoNotParseResponse(true)
	sent.Header = c.credentials(header.Clone())
	sent.Header.Set("User-Agent", userAgent)
	if sent.Header.Get("Accept-Encoding") == "" { // else net/http would ask for gzip and take it off again
		sent.Header.Set("Accept-Encoding", "identity")
	}
	c.forwarded(sent.Header)
	if c.host != "" {
		sent.Header.Set("Host", c.host)
	}
	response, err := sent.Execute(method, c.address("/"+path, ""))
	if err != nil {
		cancel()
		return nil, unreachable(op, err)
	}
	answer := response.RawResponse
	answer.Body = newStallReader(answer.Body, cancel)
	return answer, nil
}
