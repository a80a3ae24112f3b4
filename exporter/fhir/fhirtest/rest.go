package fhirtest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// maxBody bounds a written resource or Bundle.
const maxBody = 256 << 20

// instance answers read, update and delete.
func (s *Server) instance(w http.ResponseWriter, c *call, read bool) error {
	switch {
	case read:
		r := s.current(c.path[0], c.path[1])
		if r == nil {
			return refuse(http.StatusNotFound, "resource is not known")
		}
		if s.isPoisoned(r) {
			return errPoisoned()
		}
		return s.writeRow(w, c, http.StatusOK, r)
	case c.r.Method == http.MethodPut:
		return s.update(w, c)
	case c.r.Method == http.MethodDelete:
		return s.remove(w, c)
	}
	w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
	return refuse(http.StatusMethodNotAllowed, "method is not offered here")
}

func (s *Server) vread(w http.ResponseWriter, c *call) error {
	if s.p.NoHistory {
		return refuse(http.StatusMethodNotAllowed, "versions are not kept")
	}
	for _, r := range s.versionsOf(c.path[0], c.path[1]) {
		if strconv.FormatInt(r.version, 10) == c.path[3] {
			return s.writeRow(w, c, http.StatusOK, r)
		}
	}
	return refuse(http.StatusNotFound, "version is not known")
}

// writeRow answers with one version; a deletion is 410.
func (s *Server) writeRow(w http.ResponseWriter, c *call, status int, r *row) error {
	h := w.Header()
	h.Set("ETag", etag(r))
	h.Set("Last-Modified", r.updated.Format(http.TimeFormat))
	if r.deleted() {
		return refuse(http.StatusGone, "resource was deleted")
	}
	return writeJSON(w, status, r.body, c.pretty)
}

func etag(r *row) string { return `W/"` + strconv.FormatInt(r.version, 10) + `"` }

func (s *Server) readResource(c *call) (*parsed, error) {
	body, err := io.ReadAll(io.LimitReader(c.r.Body, maxBody))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the body cannot be read")
	}
	res, err := s.params.parse(body, s.p.Pretty)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if len(c.path) > 0 && res.typ != c.path[0] {
		return nil, refuse(http.StatusBadRequest, "resourceType differs from the address")
	}
	return res, nil
}

// newID names a created resource.
func (s *Server) newID(typ string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		s.named++
		id := strconv.FormatInt(1000+s.named, 10)
		if s.currentLocked(typ, id) == nil {
			return id
		}
	}
}

func (s *Server) create(w http.ResponseWriter, c *call) error {
	res, err := s.readResource(c)
	if err != nil {
		return err
	}
	return s.store(w, c, write{http.MethodPost, res.typ, s.newID(res.typ), res}, http.StatusCreated)
}

func (s *Server) update(w http.ResponseWriter, c *call) error {
	res, err := s.readResource(c)
	if err != nil {
		return err
	}
	if res.id != c.path[1] {
		return refuse(http.StatusBadRequest, "id differs from the address")
	}
	status := http.StatusOK
	if r := s.current(res.typ, res.id); r == nil || r.deleted() {
		status = http.StatusCreated
	}
	return s.store(w, c, write{http.MethodPut, res.typ, res.id, res}, status)
}

func (s *Server) store(w http.ResponseWriter, c *call, one write, status int) error {
	rows, err := s.commit([]write{one}, s.usual(), true)
	if err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	r := rows[0]
	if status == http.StatusCreated {
		w.Header().Set("Location", fmt.Sprintf("%s/%s/_history/%d", c.base, r.name(), r.version))
	}
	return s.writeRow(w, c, status, r)
}

// remove answers 204 also when there was nothing to delete, as the specification allows.
func (s *Server) remove(w http.ResponseWriter, c *call) error {
	one := write{http.MethodDelete, c.path[0], c.path[1], nil}
	if _, err := s.commit([]write{one}, s.usual(), true); err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
