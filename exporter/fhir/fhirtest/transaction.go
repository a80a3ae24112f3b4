package fhirtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// bundleEntry is one entry of a transaction or batch.
type bundleEntry struct {
	FullURL  string          `json:"fullUrl"`
	Resource json.RawMessage `json:"resource"`
	Request  struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	} `json:"request"`
}

// bundle answers a transaction (all entries with one lastUpdated, or none) or a batch (each for itself). Entries create,
// update and delete; conditional ones and reads are refused.
func (s *Server) bundle(w http.ResponseWriter, c *call) error {
	body, err := io.ReadAll(io.LimitReader(c.r.Body, maxBody))
	if err != nil {
		return refuse(http.StatusBadRequest, "the body cannot be read")
	}
	var in struct {
		ResourceType string        `json:"resourceType"`
		Type         string        `json:"type"`
		Entry        []bundleEntry `json:"entry"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.ResourceType != "Bundle" {
		return refuse(http.StatusBadRequest, "the body is not a Bundle")
	}
	switch in.Type {
	case "transaction":
		return s.transaction(w, c, in.Entry)
	case "batch":
		return s.batch(w, c, in.Entry)
	}
	return refuse(http.StatusBadRequest, "the Bundle is neither a transaction nor a batch")
}

func (s *Server) transaction(w http.ResponseWriter, c *call, entries []bundleEntry) error {
	ids := make([]string, len(entries))
	var names []string
	for i, e := range entries {
		if e.Request.Method != http.MethodPost || !s.offers(e.Request.URL) {
			continue
		}
		ids[i] = s.newID(e.Request.URL)
		if strings.HasPrefix(e.FullURL, "urn:") {
			names = append(names, quote(e.FullURL), quote(e.Request.URL+"/"+ids[i]))
		}
	}
	replacer := strings.NewReplacer(names...)
	writes := make([]write, 0, len(entries))
	for i, e := range entries {
		if len(names) > 0 && bytes.Contains(e.Resource, []byte("urn:")) {
			e.Resource = []byte(replacer.Replace(string(e.Resource)))
		}
		one, err := s.entryWrite(e, ids[i])
		if err != nil {
			return err
		}
		writes = append(writes, one)
	}
	rows, err := s.commit(writes, s.usual(), true)
	if err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	responses := make([]string, len(rows))
	for i, r := range rows {
		responses[i] = s.entryResponse(writes[i].method, r)
	}
	return writeResponses(w, c, "transaction-response", responses)
}

func (s *Server) batch(w http.ResponseWriter, c *call, entries []bundleEntry) error {
	responses := make([]string, len(entries))
	for i, e := range entries {
		one, err := s.entryWrite(e, "")
		if err == nil {
			var rows []*row
			if rows, err = s.commit([]write{one}, s.usual(), true); err == nil {
				responses[i] = s.entryResponse(one.method, rows[0])
				continue
			}
		}
		responses[i] = `{"response":{"status":"400 Bad Request","outcome":` + string(statusOutcome(http.StatusBadRequest, err.Error())) + `}}`
	}
	return writeResponses(w, c, "batch-response", responses)
}

// entryWrite reads one entry. id names a created resource; empty takes a new one.
func (s *Server) entryWrite(e bundleEntry, id string) (write, error) {
	typ, inURL, _ := strings.Cut(e.Request.URL, "/")
	method := e.Request.Method
	if !s.offers(typ) || strings.ContainsAny(inURL, "/?") {
		return write{}, refuse(http.StatusBadRequest, "an entry has no usable request.url")
	}
	if method == http.MethodDelete && inURL != "" {
		return write{method, typ, inURL, nil}, nil
	}
	if method != http.MethodPost && method != http.MethodPut || (method == http.MethodPut) != (inURL != "") {
		return write{}, refuse(http.StatusBadRequest, "an entry has no usable request.method")
	}
	res, err := s.params.parse(e.Resource, s.p.Pretty)
	if err != nil {
		return write{}, refuse(http.StatusBadRequest, "%v", err)
	}
	if res.typ != typ || inURL != "" && res.id != inURL {
		return write{}, refuse(http.StatusBadRequest, "an entry's resource differs from its request.url")
	}
	if inURL != "" {
		id = inURL
	} else if id == "" {
		id = s.newID(typ)
	}
	return write{method, typ, id, res}, nil
}

// entryResponse describes the row that an entry made; nil stands for a deletion of nothing.
func (s *Server) entryResponse(method string, r *row) string {
	switch {
	case r == nil || method == http.MethodDelete:
		return `{"response":{"status":"204 No Content"}}`
	case r.created:
		return fmt.Sprintf(`{"response":{"status":"201 Created","location":%s,"etag":%s,"lastModified":%s}}`,
			quote(fmt.Sprintf("%s/_history/%d", r.name(), r.version)), quote(etag(r)), quote(s.p.instant(r.updated)))
	}
	return fmt.Sprintf(`{"response":{"status":"200 OK","location":%s,"etag":%s,"lastModified":%s}}`,
		quote(fmt.Sprintf("%s/_history/%d", r.name(), r.version)), quote(etag(r)), quote(s.p.instant(r.updated)))
}

func writeResponses(w http.ResponseWriter, c *call, kind string, responses []string) error {
	body := `{"resourceType":"Bundle","type":` + quote(kind) + `,"link":[{"relation":"self","url":` + quote(c.base) + `}],"entry":[` +
		strings.Join(responses, ",") + `]}`
	return writeJSON(w, http.StatusOK, []byte(body), c.pretty)
}
