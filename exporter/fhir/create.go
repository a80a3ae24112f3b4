package fhir

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// createTimeout bounds a create: the resources that are written here are small.
const createTimeout = 30 * time.Second

// Create stores a resource, in JSON, of which the server chooses the id. It fails with a ResponseError for any status but 200, 201
// and 204. Done again after an error it may store the resource twice.
func (c *Client) Create(ctx context.Context, typ string, resource []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	sent := request{
		op: "create " + typ, method: http.MethodPost, address: c.address("/"+typ, ""), form: string(resource), media: "application/fhir+json", once: true,
		header: http.Header{"Accept": {"application/fhir+json"}, "Prefer": {"return=minimal"}}, as: c.own,
	}
	began := time.Now()
	response, err := c.execute(ctx, sent)
	if err != nil {
		c.observe(sent.asked(), 0, time.Since(began))
		return err
	}
	c.observe(sent.asked(), response.StatusCode(), time.Since(began))
	body := response.RawBody()
	defer func() { err = errors.Join(err, body.Close()) }()
	switch response.StatusCode() {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
	default: // also a 202, behind which the resource comes later or never
		return c.refusal(sent.op, response, body)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(body, 1<<20)) // so that the connection can be used again
	return err
}
