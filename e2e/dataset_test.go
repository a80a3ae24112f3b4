package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// loaderVersion is part of the cache's key. Change it when the order or the way of loading changes.
	loaderVersion = "1"
	recordsFile   = "../../shared/data/synthea-100.ndjson.gz"
	usualRecords  = 12_000
	bundleSize    = 200
)

// dataset is what the server holds: the records in the order in which they are written, and a newest version of each.
type dataset struct {
	name  string
	steps []step
	rows  map[string]json.RawMessage // by Type/id
	// readings are what was read of the rows so far.
	readings map[string]*reading
	// patients are the ids of the base set in its order; the extras refer to them by position.
	patients []string
}

// A step is a part of the load that begins when the one before it is done.
type step struct {
	resources  []json.RawMessage
	bundleSize int
}

// readDataset gives the Synthea records, or generated ones where the folder beside the project is absent, and the
// extras that neither set has.
func readDataset() (*dataset, error) {
	data := &dataset{rows: map[string]json.RawMessage{}}
	base, err := data.base()
	if err != nil {
		return nil, err
	}
	isPatient := func(resource json.RawMessage) bool {
		key, err := keyOf(resource)
		return err == nil && strings.HasPrefix(key, "Patient/")
	}
	var patients, others []json.RawMessage
	for _, resource := range base {
		if isPatient(resource) {
			patients = append(patients, resource)
		} else {
			others = append(others, resource)
		}
	}
	// Patients first: HAPI does not index a reference to a Patient that it does not have yet, and which rows of two
	// concurrent Bundles that strikes would be left to chance. The extras hold such rows on purpose.
	data.plan(bundleSize, patients...)
	for _, patient := range patients {
		key, err := keyOf(patient)
		if err != nil {
			return nil, err
		}
		data.patients = append(data.patients, strings.TrimPrefix(key, "Patient/"))
	}
	if len(data.patients) < 30 {
		return nil, fmt.Errorf("the records hold %d patients, the extras need 30", len(data.patients))
	}
	data.plan(bundleSize, others...)
	data.planExtras()
	return data, data.index()
}

// base reads the Synthea file, the first records only unless E2E_FULL is set: they are ordered patient by patient.
func (d *dataset) base() ([]json.RawMessage, error) {
	limit := usualRecords
	d.name = fmt.Sprintf("synthea-%d", limit)
	if os.Getenv("E2E_FULL") == "1" {
		limit, d.name = 0, "synthea-full"
	}
	file, err := os.Open(filepath.FromSlash(recordsFile))
	if errors.Is(err, os.ErrNotExist) {
		d.name = "generated"
		say("%s is absent: generated patients are used instead", recordsFile)
		return generatedRecords(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the records: %w", err)
	}
	records, err := readLines(file, limit)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("read the records: %w", err)
	}
	return records, nil
}

func readLines(file *os.File, limit int) ([]json.RawMessage, error) {
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	lines := bufio.NewScanner(unpacked)
	lines.Buffer(nil, 16<<20)
	var records []json.RawMessage
	for lines.Scan() && (limit == 0 || len(records) < limit) {
		records = append(records, bytes.Clone(lines.Bytes()))
	}
	return records, lines.Err()
}

func (d *dataset) plan(size int, resources ...json.RawMessage) {
	d.steps = append(d.steps, step{resources, size})
}

func (d *dataset) index() error {
	for _, step := range d.steps {
		for _, resource := range step.resources {
			key, err := keyOf(resource)
			if err != nil {
				return err
			}
			if d.rows[key] != nil {
				return fmt.Errorf("the records hold %s twice", key)
			}
			d.add(key, resource)
		}
	}
	return nil
}

func (d *dataset) add(key string, resource json.RawMessage) {
	d.rows[key] = resource
	delete(d.readings, key)
}

func (d *dataset) hash() string {
	sum := sha256.New()
	for _, step := range d.steps {
		sum.Write(fmt.Appendf(nil, "%d\n", step.bundleSize))
		for _, resource := range step.resources {
			sum.Write(resource)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// load writes all steps in their order, two Bundles at once within a step.
func (d *dataset) load(ctx context.Context, base string) error {
	for _, step := range d.steps {
		if err := step.load(ctx, base); err != nil {
			return err
		}
	}
	return nil
}

func (s step) load(ctx context.Context, base string) error {
	bundles := make(chan []json.RawMessage)
	results := make(chan error, 2)
	for range cap(results) {
		go func() {
			var firstErr error
			for bundle := range bundles {
				if firstErr == nil {
					firstErr = postTransaction(ctx, base, bundle)
				}
			}
			results <- firstErr
		}()
	}
	for bundle := range slices.Chunk(s.resources, s.bundleSize) {
		bundles <- bundle
	}
	close(bundles)
	return errors.Join(<-results, <-results)
}

// postTransaction PUTs the resources in one transaction Bundle.
func postTransaction(ctx context.Context, base string, resources []json.RawMessage) error {
	type entryRequest struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	}
	type entry struct {
		Resource json.RawMessage `json:"resource"`
		Request  entryRequest    `json:"request"`
	}
	entries := make([]entry, 0, len(resources))
	for _, resource := range resources {
		key, err := keyOf(resource)
		if err != nil {
			return err
		}
		entries = append(entries, entry{resource, entryRequest{http.MethodPut, key}})
	}
	body, err := json.Marshal(map[string]any{"resourceType": "Bundle", "type": "transaction", "entry": entries})
	if err != nil {
		return fmt.Errorf("encode the transaction: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post the transaction: %w", err)
	}
	request.Header.Set("Content-Type", "application/fhir+json")
	// Without this the answer repeats every resource.
	request.Header.Set("Prefer", "return=minimal")
	if _, err := do(request); err != nil {
		return fmt.Errorf("transaction of %d: %w", len(resources), err)
	}
	return nil
}

// keyOf gives Type/id of a resource.
func keyOf(resource []byte) (string, error) {
	var head struct {
		ResourceType string `json:"resourceType"`
		ID           string `json:"id"`
	}
	if err := json.Unmarshal(resource, &head); err != nil {
		return "", fmt.Errorf("decode a resource: %w", err)
	}
	if head.ResourceType == "" || head.ID == "" {
		return "", errors.New("a resource has no resourceType or no id")
	}
	return head.ResourceType + "/" + head.ID, nil
}

func lastUpdatedOf(t *testing.T, resource []byte) time.Time {
	t.Helper()
	var head struct {
		Meta struct {
			LastUpdated time.Time `json:"lastUpdated"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(resource, &head); err != nil {
		t.Fatalf("decode meta.lastUpdated: %v", err)
	}
	return head.Meta.LastUpdated
}
