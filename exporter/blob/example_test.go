package blob_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"sidecar/exporter/blob"
)

func ExampleDir() {
	folder, err := os.MkdirTemp("", "bucket")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	bucket, err := blob.NewDir(folder)
	if err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	line := strings.NewReader(`{"resourceType":"Patient","id":"1"}` + "\n")
	if err := bucket.Put(ctx, "job/Patient.1.ndjson", blob.Media{Type: "application/fhir+ndjson"}, line); err != nil {
		log.Fatal(err)
	}
	file, err := bucket.Open(ctx, "job/Patient.1.ndjson", 0)
	if err != nil {
		log.Fatal(err)
	}
	content, err := io.ReadAll(file)
	if err != nil {
		log.Fatal(err)
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(content))
	// Output: {"resourceType":"Patient","id":"1"}
}
