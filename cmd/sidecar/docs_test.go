package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/exporter"
	"sidecar/proxy"
)

const top = "../.."

// documents are the Markdown files of the project by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != top {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			raw, err := os.ReadFile(path)
			found[path] = string(raw)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 5 {
		t.Fatalf("%d documents found", len(found))
	}
	return found
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```")

// blocks are the fenced blocks of a document in one of the languages.
func blocks(text string, languages ...string) []string {
	var out []string
	for _, block := range fence.FindAllStringSubmatch(text, -1) {
		if slices.Contains(languages, block[1]) {
			out = append(out, block[2])
		}
	}
	return out
}

// Ensure the README's two commands are these, since CI runs the second one.
func TestReadmeHasItsTwoCommands(t *testing.T) {
	readme := documents(t)[filepath.Join(top, "README.md")]
	for _, command := range []string{"go run ./cmd/sidecar demo", "go test ./..."} {
		if !strings.Contains(strings.Join(blocks(readme, "sh", "bash", ""), "\n"), command) {
			t.Errorf("README.md has no block with %q", command)
		}
	}
	ci, err := os.ReadFile(filepath.Join(top, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(ci), "go test ./...") {
		t.Error(".ci/run does not run the README's test command")
	}
}

// Ensure each command line of the documents is one that the program takes.
func TestDocumentedCommandsParse(t *testing.T) {
	seen := 0
	for path, text := range documents(t) {
		for _, block := range blocks(text, "sh", "bash", "console", "") {
			for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
				fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "$ "))
				at := slices.IndexFunc(fields, func(f string) bool { return f == "sidecar" || f == "./sidecar" || strings.HasSuffix(f, "cmd/sidecar") })
				if at < 0 || at > 2 || at+1 >= len(fields) || at == 1 && fields[0] != "go" || fields[0] == "go" && fields[1] != "run" {
					continue
				}
				seen++
				checkCommand(t, path, fields[at+1:])
			}
		}
	}
	if seen < 3 {
		t.Errorf("only %d command lines found", seen)
	}
}

func checkCommand(t *testing.T, path string, args []string) {
	t.Helper()
	known := map[string][]string{
		"serve": {"upstream", "listen", "data", "config"}, "check": {"upstream", "listen", "data", "config"},
		"demo": {"keep"}, "version": {},
	}
	names, ok := known[args[0]]
	if !ok {
		t.Errorf("%s: no command %q", path, args[0])
		return
	}
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, name := range names {
		if name == "keep" {
			flags.Bool(name, false, "")
		} else {
			flags.String(name, "", "")
		}
	}
	if end := slices.IndexFunc(args, func(a string) bool { return strings.ContainsAny(a, "#&|>") }); end > 0 {
		args = args[:end]
	}
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		t.Errorf("%s: sidecar %s: %v", path, strings.Join(args, " "), err)
	}
}

// Ensure each YAML block of the documents that is a configuration can be loaded.
func TestDocumentedConfigurationsLoad(t *testing.T) {
	for path, text := range documents(t) {
		for _, block := range blocks(text, "yaml") {
			if strings.Contains(block, "apiVersion:") || strings.Contains(block, "kind: Secret") {
				continue
			}
			c := defaultConfig()
			if err := c.decode([]byte(block), func(string) (string, bool) { return "x", true }); err != nil {
				t.Errorf("%s: %v\n%s", path, err, block)
				continue
			}
			c.Upstream = "http://localhost/fhir"
			if err := c.validate(); err != nil {
				t.Errorf("%s: %v\n%s", path, err, block)
			}
		}
	}
}

// Ensure the example configuration says what the defaults are.
func TestExampleConfigurationIsTheDefault(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(top, "config.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, want := defaultConfig(), defaultConfig()
	if err := got.decode(raw, func(string) (string, bool) { return "x", true }); err != nil {
		t.Fatal(err)
	}
	got.Upstream = want.Upstream // the only key without a default
	if !reflect.DeepEqual(emptyLists(got), emptyLists(want)) {
		t.Errorf("config.example.yaml differs from the defaults:\n%+v\n%+v", got, want)
	}
	for _, key := range configKeys(reflect.TypeFor[config]()) {
		if !regexp.MustCompile(`(?m)^[ #-]*` + regexp.QuoteMeta(key) + `:`).Match(raw) {
			t.Errorf("config.example.yaml lacks the key %s", key)
		}
	}
}

// emptyLists makes an empty list the same as none.
func emptyLists(c *config) config {
	out := *c
	for _, list := range []*[]string{&out.ForwardHeaders, &out.TrustedProxies} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(out.Accounts) == 0 {
		out.Accounts = nil
	}
	return out
}

func configKeys(structure reflect.Type) []string {
	var keys []string
	for i := range structure.NumField() {
		field := structure.Field(i)
		keys = append(keys, field.Tag.Get("yaml"))
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, configKeys(inner)...)
		}
	}
	return keys
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// Ensure links between the documents lead somewhere.
func TestDocumentLinksExist(t *testing.T) {
	for path, text := range documents(t) {
		for _, found := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), found[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

var metricName = regexp.MustCompile(`sidecar_[a-z_]+`)

// Ensure the table of metrics is complete and true.
func TestDocumentedMetricsAreTheRegisteredOnes(t *testing.T) {
	described := make(chan *prometheus.Desc, 100)
	for _, collector := range append(exporter.NewMetrics().Collectors(), proxy.NewMetrics().Collectors()...) {
		collector.Describe(described)
	}
	close(described)
	registered := map[string]bool{}
	for desc := range described {
		registered[metricName.FindString(desc.String())] = true
	}
	documented := map[string]bool{}
	for path, text := range documents(t) {
		for _, name := range metricName.FindAllString(text, -1) {
			documented[name] = true
			if !registered[name] {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
	}
	for name := range registered {
		if !documented[name] {
			t.Errorf("no document names the metric %s", name)
		}
	}
}

// Ensure that the demo does a whole export by itself and compares it.
func TestDemoExportsAndCompares(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, []string{"demo"}, &out, io.Discard); err != nil {
		t.Fatalf("demo: %v\n%s", err, out.String())
	}
	for _, want := range []string{"202 Accepted", "200 OK", `"transactionTime"`, "lines  Patient", "each equal to the sample server's record"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not print %q:\n%s", want, out.String())
		}
	}
}

// Ensure that -keep leaves everything running at the addresses that it prints, for all three levels.
func TestDemoKeepsRunning(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"demo", "-keep"}, writer, io.Discard)
		if err := writer.Close(); err != nil {
			t.Error(err)
		}
	}()
	commands := regexp.MustCompile(`curl (?:-i )?'([^']+)'`)
	var addresses []string
	var text strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(text.String(), "go when the demo ends") {
		n, err := reader.Read(buffer)
		if err != nil {
			t.Fatalf("the demo ended: %v\n%s", err, text.String())
		}
		text.Write(buffer[:n])
	}
	for _, found := range commands.FindAllStringSubmatch(text.String(), -1) {
		addresses = append(addresses, found[1])
	}
	if len(addresses) != 5 {
		t.Fatalf("%d curl commands, want three kick-offs, metadata and metrics:\n%s", len(addresses), text.String())
	}
	for _, address := range addresses {
		checkAddress(ctx, t, address)
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	if err := <-ended; err != nil {
		t.Errorf("demo -keep: %v", err)
	}
}

// checkAddress asks an address of the demo, and deletes the export that it started.
func checkAddress(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	response, err := demoGet(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(address, "$export") {
		if response.StatusCode != http.StatusOK {
			t.Errorf("GET %s: %s", address, response.Status)
		}
		return
	}
	if response.StatusCode != http.StatusAccepted {
		t.Fatalf("GET %s: %s", address, response.Status)
	}
	remove, err := http.NewRequestWithContext(ctx, http.MethodDelete, response.Header.Get("Content-Location"), nil)
	if err != nil {
		t.Fatal(err)
	}
	deleted, err := http.DefaultClient.Do(remove)
	if err != nil {
		t.Fatal(err)
	}
	if err := deleted.Body.Close(); err != nil {
		t.Fatal(err)
	}
}
