package main

import (
	"bytes"
	"context"
	"errors"
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

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
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
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "node_modules") && path != top {
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

// Ensure the README has its two commands, each in a block of its own, and that CI runs the second one.
func TestReadmeHasItsTwoCommands(t *testing.T) {
	shown := blocks(documents(t)[filepath.Join(top, "README.md")], "sh")
	for _, want := range []string{"go run ./cmd/sidecar demo\n", "go test ./...\n"} {
		if !slices.Contains(shown, want) {
			t.Errorf("README.md has no block %q", want)
		}
	}
	ci, err := os.ReadFile(filepath.Join(top, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(ci), "\n  go test ./...\n") {
		t.Error(".ci/run does not run the README's test command")
	}
}

var (
	// span is code within a line.
	span = regexp.MustCompile("`([^`\n]+)`")
	// command is a call of the program as documents write it; what a shell would do with its output is left out.
	command = regexp.MustCompile(`(?m)^(?:[^#\n]*\s)?(?:go run \./cmd/sidecar|(?:\./|/)?sidecar) +([a-z][^#&|>\n]*)`)
)

// Ensure each command line of the documents is one that the program takes.
func TestDocumentedCommandsParse(t *testing.T) {
	seen := map[string]bool{}
	for path, text := range documents(t) {
		lines := strings.ReplaceAll(strings.Join(blocks(text, "sh", "bash", "console", ""), ""), "\\\n", " ")
		for _, found := range span.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			lines += found[1] + "\n"
		}
		for _, found := range command.FindAllStringSubmatch(lines, -1) {
			args := strings.Fields(found[1])
			seen[args[0]] = true
			checkCommand(t, path, args)
		}
	}
	for _, name := range []string{"serve", "check", "demo"} {
		if !seen[name] {
			t.Errorf("no document shows the command %s", name)
		}
	}
}

// knownFlags asks a command itself for its flags. -keep is the only one without a value.
func knownFlags(t *testing.T, name string) *flag.FlagSet {
	t.Helper()
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if name == "version" {
		return flags
	}
	var help bytes.Buffer
	if err := run(t.Context(), []string{name, "-h"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) {
		return nil
	}
	for _, found := range regexp.MustCompile(`(?m)^  -([a-z]+)`).FindAllStringSubmatch(help.String(), -1) {
		if found[1] == "keep" {
			flags.Bool(found[1], false, "")
		} else {
			flags.String(found[1], "", "")
		}
	}
	return flags
}

func checkCommand(t *testing.T, path string, args []string) {
	t.Helper()
	flags := knownFlags(t, args[0])
	if flags == nil {
		t.Errorf("%s: no command %q", path, args[0])
		return
	}
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		t.Errorf("%s: sidecar %s: %v", path, strings.Join(args, " "), err)
	}
}

// Ensure the README shows what `sidecar check` says of the sample server.
func TestDocumentedCheckIsTheRealOne(t *testing.T) {
	personality := fhirtest.Plain()
	personality.Types = fhirtest.AllTypes()
	_, upstream := newSample(t, personality, 5)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"check", "-upstream", upstream, "-data", filepath.Join(t.TempDir(), "data")}, &out, io.Discard); err != nil {
		t.Fatalf("check: %v\n%s", err, out.String())
	}
	if shown := blocks(documents(t)[filepath.Join(top, "README.md")], "text"); !slices.Contains(shown, out.String()) {
		t.Errorf("README.md does not show:\n%s", out.String())
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
			if err := decoded(c, []byte(block), func(string) (string, bool) { return "x", true }); err != nil {
				t.Errorf("%s: %v\n%s", path, err, block)
				continue
			}
			c.Upstream = "http://localhost/fhir"
			if err := validated(c); err != nil {
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
	if err := decoded(got, raw, func(string) (string, bool) { return "x", true }); err != nil {
		t.Fatal(err)
	}
	got.Upstream = want.Upstream // the only key that has a value and no default
	if !reflect.DeepEqual(emptyLists(got), emptyLists(want)) {
		t.Errorf("config.example.yaml differs from the defaults:\n%+v\n%+v", got, want)
	}
	examples := regexp.MustCompile(`(?m)^#(  .*)$`).ReplaceAll(bytes.Replace(raw, []byte("accounts: []"), []byte("accounts:"), 1), []byte("$1"))
	if err := decoded(got, examples, func(string) (string, bool) { return "x", true }); err != nil || len(got.Accounts) != 2 {
		t.Errorf("the commented accounts: %d read, %v", len(got.Accounts), err)
	}
	for _, key := range configKeys(reflect.TypeFor[config]()) {
		if !regexp.MustCompile(`(?m)^[ #-]*` + regexp.QuoteMeta(key) + `:`).Match(raw) {
			t.Errorf("config.example.yaml lacks the key %s", key)
		}
	}
}

// Ensure every setting of the example is explained by a sentence right above it.
func TestExampleConfigurationExplainsEachSetting(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(top, "config.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	above := ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && (!strings.HasPrefix(above, "# ") || !strings.HasSuffix(above, ".")) {
			t.Errorf("no sentence above %q", line)
		}
		above = line
	}
}

// emptyLists makes an empty list the same as none.
func emptyLists(c *config) config {
	out := *c
	for _, list := range []*[]string{&out.ForwardHeaders, &out.TrustedProxies, &out.Auth.Algorithms} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(out.Accounts) == 0 {
		out.Accounts = nil
	}
	if len(out.Auth.Clients) == 0 {
		out.Auth.Clients = nil
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

var link = regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)

// Ensure links between the documents lead somewhere.
func TestDocumentLinksExist(t *testing.T) {
	all := documents(t)
	for path, text := range all {
		for _, found := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			target := path
			if found[1] != "" {
				target = filepath.Join(filepath.Dir(path), found[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if found[2] != "" && !slices.Contains(anchors(all[target]), found[2]) {
				t.Errorf("%s: %s has no heading %s", path, target, found[2])
			}
		}
	}
}

// anchors are the names under which the headings of a document can be linked.
func anchors(text string) []string {
	var names []string
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		names = append(names, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

var metricName = regexp.MustCompile(`sidecar_[a-z_]+`)

// Ensure the table of metrics is complete and true.
func TestDocumentedMetricsAreTheRegisteredOnes(t *testing.T) {
	described := make(chan *prometheus.Desc, 100)
	for _, collector := range slices.Concat(exporter.NewMetrics().Collectors(), proxy.NewMetrics().Collectors(), proxy.NewLive().Collectors(), []prometheus.Collector{newAuditFailures(), newAuditEventFailures()}) {
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
			for _, series := range []string{"_bucket", "_count", "_sum"} { // of a histogram
				if histogram, ok := strings.CutSuffix(name, series); ok && registered[histogram] {
					name = histogram
				}
			}
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
	var out bytes.Buffer
	if err := run(t.Context(), []string{"demo"}, &out, io.Discard); err != nil {
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
	ctx, cancel := context.WithCancel(t.Context()) // the demo itself gives up what takes too long
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
	if len(addresses) != 6 {
		t.Fatalf("%d curl commands, want three kick-offs, metadata, metrics and jobs:\n%s", len(addresses), text.String())
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
