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
	header = header.Clone()
	if header.Get("Accept-Encoding") == "" { // else net/http would ask for gzip and take it off again
		header.Set("Accept-Encoding", "identity")
	}
	response, err := c.execute(ctx, request{op: op, method: method, address: c.address("/"+path, ""), header: header, as: c.own})
	if err != nil {
		cancel()
		return nil, err
	}
	answer := response.RawResponse
	answer.Body = newStallReader(answer.Body, cancel)
	return answer, nil
}
