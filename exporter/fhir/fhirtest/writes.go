package fhirtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Put creates or updates a resource by its type and id. It fails when the bytes are not one JSON object with both.
func (s *Server) Put(resource []byte) error { return s.putAll([][]byte{resource}, s.usual()) }

// PutAt is Put with a lastUpdated of the caller's choice, cut to the server's granule. It fails as Put does.
func (s *Server) PutAt(resource []byte, lastUpdated time.Time) error {
	return s.putAll([][]byte{resource}, timing{stamp: lastUpdated})
}

// Transaction puts all resources with one lastUpdated, or none of them: it fails as Put does.
func (s *Server) Transaction(resources [][]byte) error { return s.putAll(resources, s.usual()) }

// PutLate is Put by a transaction that is stamped at one time and that nobody sees before another, be it after any
// settling time. The version follows the one that is current when the row becomes visible. It fails as Put does.
func (s *Server) PutLate(resource []byte, stamp, visible time.Time) error {
	return s.TransactionLate([][]byte{resource}, stamp, visible)
}

// TransactionLate is Transaction with the times of PutLate. It fails as Put does.
func (s *Server) TransactionLate(resources [][]byte, stamp, visible time.Time) error {
	return s.putAll(resources, timing{stamp, visible})
}

func (s *Server) putAll(resources [][]byte, at timing) error {
	writes := make([]write, 0, len(resources))
	for _, resource := range resources {
		res, err := s.params.parse(resource, s.p.Pretty)
		if err != nil {
			return fmt.Errorf("put: %w", err)
		}
		if res.id == "" {
			return errors.New("put: resource has no id")
		}
		writes = append(writes, write{http.MethodPut, res.typ, res.id, res})
	}
	if _, err := s.commit(writes, at, false); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	return nil
}

// Delete deletes a resource; its history stays. It fails when the resource is not there.
func (s *Server) Delete(typ, id string) error {
	_, err := s.commit([]write{{http.MethodDelete, typ, id, nil}}, s.usual(), false)
	return err
}

// DeleteLate is Delete with the times of PutLate. It fails when the resource is not there now.
func (s *Server) DeleteLate(typ, id string, stamp, visible time.Time) error {
	_, err := s.commit([]write{{http.MethodDelete, typ, id, nil}}, timing{stamp, visible}, false)
	return err
}

// Load puts the resource of every line, each as a write of its own, and returns how many it put. It stops at the first
// line that fails and names its number.
func (s *Server) Load(ndjson io.Reader) (int, error) {
	lines := bufio.NewReaderSize(ndjson, 1<<16)
	loaded := 0
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return loaded, fmt.Errorf("load: %w", err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			if err := s.PutAt(line, s.Now()); err != nil {
				return loaded, fmt.Errorf("load line %d: %w", n, err)
			}
			loaded++
		}
		if err != nil {
			return loaded, nil
		}
	}
}
