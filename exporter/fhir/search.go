package fhir

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
)

// search sends a search the way that q wants: in the address or as a form, of the type or in a Patient's compartment.
// With a form the address has no query at all, because one server ignores the form where it has one.
func (c *Client) search(ctx context.Context, verb string, q Query, params string, header http.Header) (*Page, error) {
	path := "/" + q.Type
	if q.Patient != "" {
		path = "/Patient/" + url.PathEscape(q.Patient) + path
	}
	if !q.Post {
		return c.page(ctx, verb, q.Type, "searchset", c.address(path, params), header)
	}
	op := verb + " " + q.Type
	body, _, err := c.send(ctx, op, http.MethodPost, c.address(path+"/_search", ""), params, c.credentials(header))
	if err != nil {
		return nil, err
	}
	return &Page{client: c, op: op, typ: q.Type, kind: "searchset", body: body}, nil
}

// ReadEntry reads one resource as an entry of a search would hold it. It fails with a ResponseError of status 404 or 410
// when the resource is not there.
func (c *Client) ReadEntry(ctx context.Context, typ, id string) (*Entry, error) {
	line, err := c.Read(ctx, typ, id)
	if err != nil {
		return nil, err
	}
	entry := &Entry{Resource: line}
	var meta struct {
		ID   string
		Meta struct {
			VersionID   string `json:"versionId"`
			LastUpdated string `json:"lastUpdated"`
		}
	}
	if json.Unmarshal(line, &meta) != nil || meta.ID != id {
		return nil, fmt.Errorf("read %s: not that resource: %w", typ, ErrMalformed)
	}
	entry.Type, entry.ID, entry.Version = typ, id, meta.Meta.VersionID
	if meta.Meta.LastUpdated != "" {
		if entry.LastUpdated, err = parseStamp(meta.Meta.LastUpdated); err != nil {
			return nil, fmt.Errorf("read %s: %w", typ, ErrMalformed)
		}
	}
	return entry, nil
}
