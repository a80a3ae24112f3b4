package fhir

import (
	"context"
	"encoding/json"
	"fmt"
)

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
