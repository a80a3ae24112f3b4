package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// load reads a configuration as `sidecar serve -config` does, with more flags behind it.
func load(t *testing.T, text string, args ...string) (*config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return loadConfig("serve", append([]string{"-config", file}, args...), io.Discard)
}

// environ looks variables up in a map.
func environ(values map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := values[name]
		return value, ok
	}
}

func TestConfigNeedsNoFile(t *testing.T) {
	got, err := loadConfig("serve", []string{"-upstream", "http://localhost:8080/fhir"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Upstream = "http://localhost:8080/fhir"
	if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", *want) {
		t.Errorf("got %+v, want %+v", *got, *want)
	}
}

func TestConfigLetsAFlagBeatTheFile(t *testing.T) {
	text := "upstream: http://file/fhir\nlisten: :1\ndata: /file\nworkers: 2\n"
	got, err := load(t, text, "-upstream", "http://flag/fhir", "-listen", ":2", "-data", "/flag")
	if err != nil {
		t.Fatal(err)
	}
	if got.Upstream != "http://flag/fhir" || got.Listen != ":2" || got.Data != "/flag" {
		t.Errorf("with flags: got %s, %s, %s", got.Upstream, got.Listen, got.Data)
	}
	if got.Workers != 2 || got.Retention != 24*time.Hour {
		t.Errorf("the rest: got %d workers, retention %s", got.Workers, got.Retention)
	}
	if got, err = load(t, text); err != nil {
		t.Fatal(err)
	}
	if got.Upstream != "http://file/fhir" || got.Listen != ":1" || got.Data != "/file" {
		t.Errorf("without flags: got %s, %s, %s", got.Upstream, got.Listen, got.Data)
	}
}

// Ensure one run of the program tells everything that is wrong, with the lines of the file as it was written.
func TestConfigReportsAllFaultsAtOnce(t *testing.T) {
	_, err := load(t, `# A comment, and an empty line:

upstream: ftp://server/fhir
workerz: 3

workers: many
retention: 0s
log_format: ${SIDECAR_TEST_IS_NOT_SET}
bucket:
  kind: s3
  s3:
    buckets: exports
    access_key_id: key
public_url: server
trusted_proxies: [10.0.0.1]
upstream_auth:
  header: {name: X-Key}
`)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"line 3: upstream: address must begin with http",
		"line 4: there is no setting workerz",
		"line 6: workers must be a whole number",
		"line 7: retention must be from 1s to 8760h",
		"line 8: the environment has no SIDECAR_TEST_IS_NOT_SET",
		"line 12: there is no setting buckets",
		"bucket.s3.bucket is missing",
		"line 11: bucket.s3 needs both access_key_id and secret_access_key",
		"line 14: public_url: address must begin with http",
		`line 15: trusted_proxies: "10.0.0.1" is not a range of addresses such as 10.0.0.0/8; a single one is written 10.0.0.1/32`,
		"line 17: upstream_auth.header needs both name and value",
	} {
		if !strings.Contains(err.Error(), "\n  "+want) {
			t.Errorf("no line %q in:\n%v", want, err)
		}
	}
}

func TestConfigFaultsDoNotShowTheirValues(t *testing.T) {
	for name, text := range map[string]string{
		"secret for a number":    "upstream: http://a/fhir\nworkers: hunter2\n",
		"secret for a structure": "upstream: http://a/fhir\nupstream_auth: {basic: hunter2}\n",
		"secret for a duration":  "upstream: http://a/fhir\nretention: \"hunter2 `x` hunter2\"\n",
		"secret with a star":     "upstream: http://a/fhir\nupstream_auth: {basic: {username: u, password: *hunter2}}\n",
		"secret with a tag":      "upstream: http://a/fhir\nupstream_auth: {basic: {username: u, password: !!int hunter2}}\n",
		"secret alone":           "upstream: http://a/fhir\nupstream_auth: {basic: {password: hunter2}}\n",
		"secret in the address":  "upstream: http://user:hunter2@a/fhir\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, text)
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Errorf("the error holds the value: %v", err)
			}
		})
	}
}

func TestConfigRefusesWhatIsNoYAML(t *testing.T) {
	_, err := load(t, "upstream: [http://a/fhir\n")
	if !errors.Is(err, errNoYAML) {
		t.Errorf("got %v, want errNoYAML", err)
	}
	if strings.Contains(err.Error(), "missing") {
		t.Errorf("faults of a file that was not read: %v", err)
	}
	if _, err := load(t, "", "-upstream", "http://a/fhir"); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := load(t, "upstream: http://a/fhir\n---\nworkers: 2\n"); err == nil || !strings.Contains(err.Error(), "only one YAML document") {
		t.Errorf("two documents: got %v", err)
	}
	if _, err := load(t, "upstream: http://a/fhir\ndata: ./x 'y\n"); err != nil {
		t.Errorf("a quote within a value: %v", err)
	}
	if _, err := load(t, "- upstream\n"); err == nil {
		t.Error("a list is taken for a configuration")
	}
}

// Ensure whatever a variable holds is the value, and no YAML.
func TestConfigTakesVariablesAsValues(t *testing.T) {
	for _, value := range []string{
		"plain", "a: b", "{a: b}", "[a]", "x # y", "*x", "&x", "!x", "- x", "'", `"`, `a\nb`, "~", "null", "true", "0x1F", "1e3",
		" blanks ", "-----BEGIN-----\nline\n-----END-----\n", "password: x\nupstream: http://other/fhir", "${OTHER}", "$", "", "ü|>%@`",
	} {
		c := defaultConfig()
		c.UpstreamAuth.Basic.Password = "before"
		err := decoded(c, []byte("upstream_auth:\n  basic:\n    password: ${PASSWORD}\n    username: in-${PASSWORD}-out\n"), environ(map[string]string{"PASSWORD": value}))
		if err != nil {
			t.Errorf("%q: %v", value, err)
			continue
		}
		if got := string(c.UpstreamAuth.Basic.Password); got != value {
			t.Errorf("password: got %q, want %q", got, value)
		}
		if got, want := c.UpstreamAuth.Basic.Username, "in-"+value+"-out"; got != want {
			t.Errorf("username: got %q, want %q", got, want)
		}
		if c.Upstream != "" {
			t.Errorf("%q has changed another setting", value)
		}
	}
}

// Ensure a file's content is a value, but for the line break at its end, and that what is in it is neither YAML nor a reference.
func TestConfigTakesFilesAsValues(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "password of ours")
	for content, want := range map[string]string{
		"plain": "plain", "line\n": "line", "line\r\n": "line", "two\nlines\n\n": "two\nlines\n", "": "", "\n": "", "a: b\n": "a: b", "*x": "*x",
		"${NAME}": "${NAME}", "${file:/etc/passwd}": "${file:/etc/passwd}", " blanks \n": " blanks ",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := defaultConfig()
		text := "upstream_auth:\n  basic:\n    password: ${file:" + path + "}\n    username: ${NAME}-${file:" + path + "}\n"
		if err := decoded(c, []byte(text), environ(map[string]string{"NAME": "n"})); err != nil {
			t.Errorf("%q: %v", content, err)
		}
		if got := string(c.UpstreamAuth.Basic.Password); got != want || c.UpstreamAuth.Basic.Username != "n-"+want {
			t.Errorf("%q: got %q and %q, want %q", content, got, c.UpstreamAuth.Basic.Username, want)
		}
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("hunter2"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path: "is larger than", folder: "cannot be read", filepath.Join(folder, "none"): "no such file"} {
		err := decoded(defaultConfig(), []byte("\nadmin_token: ${file:"+name+"}\n"), environ(nil))
		if err == nil || !strings.Contains(err.Error(), "line 2: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestConfigTakesNumbersFromVariables(t *testing.T) {
	c := defaultConfig()
	text := "workers: ${WORKERS}\nretention: ${HOURS}h\nintercept: ${INTERCEPT}\nforward_headers: [\"${HEADER}\"]\n"
	values := map[string]string{"WORKERS": "7", "HOURS": "3", "INTERCEPT": "false", "HEADER": "X-Tenant"}
	if err := decoded(c, []byte(text), environ(values)); err != nil {
		t.Fatal(err)
	}
	if c.Workers != 7 || c.Retention != 3*time.Hour || c.Intercept || !slices.Equal(c.ForwardHeaders, []string{"X-Tenant"}) {
		t.Errorf("got %d, %s, %t, %q", c.Workers, c.Retention, c.Intercept, c.ForwardHeaders)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		less := maps.Clone(values)
		delete(less, name)
		err := decoded(defaultConfig(), []byte(text), environ(less))
		if err == nil || !strings.Contains(err.Error(), "the environment has no "+name) {
			t.Errorf("without %s: got %v", name, err)
		}
	}
}

// Ensure no way of printing a configuration shows what is secret in it.
func TestConfigNeverPrintsSecrets(t *testing.T) {
	c := defaultConfig()
	err := decoded(c, []byte(`
admin_token: hunter2-hunter2-hunter2
link_key: hunter2-hunter2-hunter2
auth: {client_secret: hunter2}
upstream_auth: {header: {name: X-Key, value: hunter2}, basic: {username: u, password: hunter2}, oauth2: {client_secret: hunter2, private_key: hunter2}}
bucket: {s3: {secret_access_key: hunter2, session_token: hunter2}, gcs: {private_key: hunter2}}
accounts: [{private-key: hunter2, secret-access-key: hunter2}]
`), environ(nil))
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	printed := map[string]string{
		"YAML": string(asYAML), "JSON": string(asJSON),
		"%v": fmt.Sprintf("%v", *c), "%+v": fmt.Sprintf("%+v", *c), "%#v": fmt.Sprintf("%#v", *c),
		"%s": fmt.Sprintf("%s.", c.UpstreamAuth.Basic.Password), "%q": fmt.Sprintf("%q", c.UpstreamAuth.Basic.Password),
	}
	var text, object bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&text, nil), slog.NewJSONHandler(&object, nil)} {
		log := slog.New(handler)
		log.InfoContext(t.Context(), "configuration", "all", *c, "password", c.UpstreamAuth.Basic.Password, "accounts", c.Accounts)
	}
	for _, path := range secretsIn(reflect.ValueOf(*c), "") { // a secret of which this test does not know
		t.Errorf("%s has no value in this test", path)
	}
	printed["log as text"], printed["log as JSON"] = text.String(), object.String()
	for way, got := range printed {
		if strings.Contains(got, "hunter2") || !strings.Contains(got, "***") {
			t.Errorf("%s: %s", way, got)
		}
	}
}

// secretsIn are the settings below a value that are secret and empty, but for those of lists.
func secretsIn(value reflect.Value, path string) (empty []string) {
	switch {
	case value.Type() == reflect.TypeFor[secret]() && value.Len() == 0:
		return []string{path}
	case value.Kind() == reflect.Struct:
		for i := range value.NumField() {
			empty = append(empty, secretsIn(value.Field(i), path+"."+value.Type().Field(i).Name)...)
		}
	}
	return empty
}

func TestConfigFlagsAskedForHelpOrWrong(t *testing.T) {
	var out bytes.Buffer
	if _, err := loadConfig("serve", []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v", err)
	}
	for _, want := range []string{"-config", "-data", "-listen", "-upstream", "(default :8000)", "(default ./sidecar-data)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help lacks %q:\n%s", want, out.String())
		}
	}
	if _, err := loadConfig("serve", []string{"-workers", "2"}, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("unknown flag: got %v", err)
	}
	for _, command := range []string{"check", "plan"} { // they open no port
		if _, err := loadConfig(command, []string{"-upstream", "http://localhost:8080/fhir", "-listen", ":1"}, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s -listen: got %v", command, err)
		}
	}
	if _, err := loadConfig("serve", []string{"-config", filepath.Join(t.TempDir(), "none")}, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
}

// decoded reads a file over what c holds, and returns what is wrong with it.
func decoded(c *config, raw []byte, lookup func(string) (string, bool)) error {
	found := newFaultList()
	if err := c.decode(raw, lookup, found); err != nil {
		return err
	}
	return errors.Join(found.errs...)
}

// validated returns what is wrong with the values of c.
func validated(c *config) error {
	found := newFaultList()
	c.validate(found)
	return errors.Join(found.errs...)
}

// Ensure a fault names its setting, its line and what is right, in words for people, and that nothing is said that is false.
func TestConfigFaultsAreForPeople(t *testing.T) {
	for text, want := range map[string]string{
		"upstream: http://a/fhir\nsettle: 5\n":                                     "line 2: settle must be a time such as 5s, 10m or 24h",
		"upstream: http://a/fhir\nretention: 1d\n":                                 "line 2: retention must be a time such as 5s, 10m or 24h",
		"upstream: http://a/fhir\nretention: 9000h\n":                              "line 2: retention must be from 1s to 8760h",
		"upstream: http://a/fhir\nmax_file_bytes: lots\n":                          "line 2: max_file_bytes must be a whole number",
		"upstream: http://a/fhir\nmax_running: 0\n":                                "line 2: max_running must be from 1 to 100",
		"upstream: http://a/fhir\nattachments: maybe\n":                            "line 2: attachments must be signed or server",
		"upstream: http://a/fhir\nintercept: maybe\n":                              "line 2: intercept must be true or false",
		"upstream: http://a/fhir\nforward_headers: X-Key\n":                        "line 2: forward_headers must be a list",
		"upstream: http://a/fhir\nbucket: s3\n":                                    "line 2: bucket must be a group of settings",
		"upstream: http://a/fhir\nlive_slowdown: abc\n":                            "line 2: live_slowdown must be a number such as 1.1",
		"upstream: http://a/fhir\nbucket:\n  kind: s3\n  s3: {bucket: [x]}\n":      "line 4: bucket.s3.bucket must be a text",
		"upstream: http://a/fhir\nworkers: 2\nupstream: http://b/fhir\n":           "line 3: upstream is said twice, first in line 1",
		"upstream: ${SIDECAR_TEST_IS_NOT_SET}\n":                                   "line 1: the environment has no SIDECAR_TEST_IS_NOT_SET",
		"upstream: http://a/fhir\nlisten: 99999999\n":                              "line 2: listen must be an address such as :8000 or 127.0.0.1:8000",
		"upstream: http://a/fhir\nlisten: \":8000\"\nadmin_listen: nope\n":         "line 3: admin_listen must be an address such as :8000 or 127.0.0.1:8000",
		"upstream: http://a/fhir\nadmin_token: short\n":                            "line 2: admin_token must have at least 16 characters and no white space",
		"upstream: http://a/fhir\nstrategy: best\n":                                "line 2: strategy must be one of auto, crawl, lists, patients, compartment, has",
		"upstream: http://a/fhir\nupstream_auth: {header: {value: \"${NOPE}\"}}\n": "line 2: the environment has no NOPE",
	} {
		_, err := load(t, text)
		if err == nil {
			t.Errorf("%q is taken", text)
			continue
		}
		if _, got, _ := strings.Cut(err.Error(), "\n"); got != "  "+want {
			t.Errorf("%q:\ngot  %q\nwant %q", text, got, "  "+want)
		}
	}
}
