package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// secret is a value that is printed as ***.
type secret string

// String hides the value.
func (secret) String() string { return "***" }

// GoString hides the value.
func (secret) GoString() string { return "***" }

// MarshalText hides the value in JSON and YAML, and in log lines of either form.
func (secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// config is the configuration file. Each key is explained in config.example.yaml.
type config struct {
	Upstream       string             `yaml:"upstream"`
	UpstreamHost   string             `yaml:"upstream_host"`
	UpstreamAuth   upstreamAuthConfig `yaml:"upstream_auth"`
	UpstreamTLS    upstreamTLSConfig  `yaml:"upstream_tls"`
	Protocol       fhir.Protocol      `yaml:"upstream_protocol"`
	CrawlAs        crawlAs            `yaml:"crawl_as"`
	ForwardHeaders []string           `yaml:"forward_headers"`
	Intercept      bool               `yaml:"intercept"`
	Auth           authConfig         `yaml:"auth"`

	Listen          string        `yaml:"listen"`
	TLS             tlsConfig     `yaml:"tls"`
	AdminListen     string        `yaml:"admin_listen"`
	AdminToken      secret        `yaml:"admin_token"`
	PublicURL       string        `yaml:"public_url"`
	TrustedProxies  []string      `yaml:"trusted_proxies"`
	ShutdownGrace   time.Duration `yaml:"shutdown_grace"`
	LogLevel        string        `yaml:"log_level"`
	LogFormat       string        `yaml:"log_format"`
	AccessLog       bool          `yaml:"access_log"`
	RequestIDHeader string        `yaml:"request_id_header"`

	Data         string               `yaml:"data"`
	RemoveSpool  bool                 `yaml:"remove_spool"`
	Bucket       bucketConfig         `yaml:"bucket"`
	Links        proxy.Links          `yaml:"links"`
	LinkLifetime time.Duration        `yaml:"link_lifetime"`
	LinkKey      secret               `yaml:"link_key"`
	Attachments  exporter.Attachments `yaml:"attachments"`
	Retention    time.Duration        `yaml:"retention"`

	Audit        auditConfig   `yaml:"audit"`
	Limits       limitsConfig  `yaml:"limits"`
	MaxRunning   int           `yaml:"max_running"`
	Workers      int           `yaml:"workers"`
	LiveSlowdown float64       `yaml:"live_slowdown"`
	QuietHours   string        `yaml:"quiet_hours"`
	Strategy     string        `yaml:"strategy"`
	PageSize     int           `yaml:"page_size"`
	Settle       time.Duration `yaml:"settle"`
	GiveUp       time.Duration `yaml:"give_up"`
	MaxFileBytes int64         `yaml:"max_file_bytes"`
	PageRows     int64         `yaml:"manifest_page_rows"`
	Manifest     state.Shape   `yaml:"manifest"`
	Gzip         bool          `yaml:"gzip"`

	WritesPassHere bool                    `yaml:"writes_pass_here"`
	Referenced     bool                    `yaml:"referenced"`
	AllowPartial   bool                    `yaml:"allow_partial"`
	WithoutHistory exporter.WithoutHistory `yaml:"without_history"`
	Ledger         bool                    `yaml:"ledger"`

	Accounts []account `yaml:"accounts"`
}

// limitsConfig bounds what one client may ask for.
type limitsConfig struct {
	RequestsPerSecond int   `yaml:"requests_per_second"`
	JobsPerClient     int   `yaml:"jobs_per_client"`
	ExportBytes       int64 `yaml:"export_bytes"`
}

type bucketConfig struct {
	Kind   string `yaml:"kind"`
	Prefix string `yaml:"prefix"`
	Folder struct {
		Path string `yaml:"path"`
	} `yaml:"folder"`
	S3 struct {
		Bucket          string `yaml:"bucket"`
		Region          string `yaml:"region"`
		Endpoint        string `yaml:"endpoint"`
		PathStyle       bool   `yaml:"path_style"`
		AccessKeyID     string `yaml:"access_key_id"`
		SecretAccessKey secret `yaml:"secret_access_key"`
		SessionToken    secret `yaml:"session_token"`
		SSE             string `yaml:"sse"`
		KMSKey          string `yaml:"kms_key"`
	} `yaml:"s3"`
	GCS struct {
		Bucket              string `yaml:"bucket"`
		CredentialsFile     string `yaml:"credentials_file"`
		ServiceAccountEmail string `yaml:"service_account_email"`
		PrivateKey          secret `yaml:"private_key"`
		KMSKey              string `yaml:"kms_key"`
		Endpoint            string `yaml:"endpoint"`
	} `yaml:"gcs"`
}

// defaultConfig is what holds where nothing is said.
func defaultConfig() *config {
	c := &config{
		Protocol:      fhir.HTTP1,
		CrawlAs:       asSidecar,
		Intercept:     true,
		Listen:        ":8000",
		AdminListen:   ":8001",
		ShutdownGrace: 30 * time.Second,
		LogLevel:      "info",
		LogFormat:     "text",
		Data:          "./sidecar-data",
		Links:         proxy.Signed,
		LinkLifetime:  proxy.DefaultLinkLifetime,
		Attachments:   exporter.SignedAttachments,
		Retention:     exporter.DefaultRetention,
		Audit:         auditConfig{To: "off"},
		Limits:        limitsConfig{RequestsPerSecond: 1000, JobsPerClient: 1000},
		MaxRunning:    exporter.DefaultMaxRunning,
		Workers:       exporter.DefaultWorkers,
		LiveSlowdown:  exporter.DefaultLiveSlowdown,
		Strategy:      exporter.StrategyAuto,
		GiveUp:        exporter.DefaultGiveUp,
		MaxFileBytes:  exporter.DefaultMaxFileBytes,
		PageRows:      exporter.DefaultPageRows,
		Manifest:      state.Shape3,

		Referenced:     true,
		WithoutHistory: exporter.IncludeCurrent,
	}
	c.Bucket.Kind = "folder"
	c.Auth.Mode, c.Auth.Leeway = auth.Upstream, auth.DefaultLeeway
	return c
}

// loadConfig reads flags and file: a flag beats the file, the file the defaults. All faults are reported at once.
func loadConfig(name string, args []string, stderr io.Writer) (*config, error) {
	return loadConfigWith(name, args, stderr, func(*flag.FlagSet) {})
}

// loadConfigWith is loadConfig for a command with flags of its own, which more adds.
func loadConfigWith(name string, args []string, stderr io.Writer, more func(*flag.FlagSet)) (*config, error) {
	flags := flag.NewFlagSet("sidecar "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "YAML `file` with settings, see config.example.yaml")
	upstream := flags.String("upstream", "", "FHIR base `URL` of the server, such as http://localhost:8080/fhir")
	listen := new(string)
	if name == "serve" { // the others open no port
		flags.StringVar(listen, "listen", "", "`address` for clients (default :8000)")
	}
	data := flags.String("data", "", "`folder` for state, spool and files (default ./sidecar-data)")
	more(flags)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, errUsage // the flag package has printed it
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: settings are given by flags", flags.Arg(0))
	}
	c := defaultConfig()
	title, found := "configuration", newFaultList()
	if *path != "" {
		raw, err := os.ReadFile(*path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		title += " " + *path
		if err := c.decode(raw, os.LookupEnv, found); err != nil { // what is in it is not known
			return nil, fmt.Errorf("%s:\n%w", title, err)
		}
	}
	for _, set := range []struct {
		key, value string
		target     *string
	}{{"upstream", *upstream, &c.Upstream}, {"listen", *listen, &c.Listen}, {"data", *data, &c.Data}} {
		if set.value != "" {
			*set.target = set.value
			delete(found.lines, set.key)
			delete(found.faulty, set.key)
		}
	}
	if err := c.applyBox(os.LookupEnv); err != nil {
		found.errs = append(found.errs, err)
	}
	c.validate(found)
	if err := errors.Join(found.errs...); err != nil {
		return nil, fmt.Errorf("%s:\n%w", title, err)
	}
	return c, nil
}

// reference is one to a file or to the environment, such as ${file:/secrets/password} and ${NAME}.
var reference = regexp.MustCompile(`\$\{(?:file:([^}]+)|([A-Za-z_][A-Za-z0-9_]*))\}`)

// maxReferenced bounds the file behind a reference in bytes: secrets are small.
const maxReferenced = 1 << 20

// errNoYAML tells that the file as a whole cannot be read.
var errNoYAML = errors.New("not a YAML file")

// decode reads the file over what c holds. References to the environment are replaced in values, after the YAML was
// parsed, so that no value can change the structure. Unknown keys, wrong types and unset variables go to found. It fails
// with errNoYAML.
func (c *config) decode(raw []byte, lookup func(string) (string, bool), found *faultList) error {
	var document yaml.Node
	if err := yaml.Unmarshal(raw, &document); err != nil {
		return fmt.Errorf("  %w: %s", errNoYAML, hidden(err.Error()))
	}
	if document.Kind == 0 { // an empty file
		return nil
	}
	found.errs = append(found.errs, unknownKeys(raw)...)
	errs, unset := expand(&document, lookup)
	found.errs = append(found.errs, errs...)
	before := len(found.errs)
	found.look(document.Content[0], reflect.TypeFor[config](), "", unset)
	err := document.Decode(c)
	if len(found.errs) == before && len(errs) == 0 { // else what it finds is known, by better words
		found.errs = append(found.errs, faults(err)...)
	}
	return nil
}

// notFound is how the decoder begins to say that a key is unknown.
const notFound = " not found in type "

// unknownKeys looks at the file as it was written: only a decoder of text refuses keys that it does not know, and only
// there the lines are those of the file.
func unknownKeys(raw []byte) []error {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var errs []error
	var wrong *yaml.TypeError
	if !errors.As(decoder.Decode(defaultConfig()), &wrong) {
		wrong = &yaml.TypeError{}
	}
	if !errors.Is(decoder.Decode(&yaml.Node{}), io.EOF) {
		errs = append(errs, errors.New("  only one YAML document is read: there is more behind a line ---"))
	}
	for _, text := range wrong.Errors {
		if key, _, ok := strings.Cut(text, notFound); ok {
			errs = append(errs, errors.New("  "+strings.Replace(key, "field ", "there is no setting ", 1)))
		}
	}
	return errs
}

// quoted is how the YAML library shows a value, or the name of an anchor that a password with a star in front seems to be.
var quoted = regexp.MustCompile("(?s) `.*`| '[^']{2,}'")

// hidden takes values out of an error's text: one may be a secret in the wrong place.
func hidden(text string) string { return quoted.ReplaceAllString(text, "") }

// faults are the errors of a decoder, one each, without the values.
func faults(err error) []error {
	if err == nil {
		return nil
	}
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return []error{errors.New("  " + hidden(err.Error()))}
	}
	var errs []error
	for _, text := range wrong.Errors {
		errs = append(errs, errors.New("  "+hidden(text)))
	}
	return errs
}

// expand replaces references to the environment and to files, and returns the values that refer to what is not there.
func expand(node *yaml.Node, lookup func(string) (string, bool)) (errs []error, unset map[*yaml.Node]bool) {
	unset = map[*yaml.Node]bool{}
	if node.Kind == yaml.ScalarNode && reference.MatchString(node.Value) {
		node.Value = reference.ReplaceAllStringFunc(node.Value, func(text string) string {
			value, err := resolve(reference.FindStringSubmatch(text), lookup)
			if err != nil {
				errs = append(errs, fmt.Errorf("  line %d: %w", node.Line, err))
				unset[node] = true
				return text
			}
			return value
		})
		node.Tag = "" // a number may have come in
		switch node.Value {
		case "", "~", "null", "Null", "NULL": // YAML would take it for no value at all
			node.Style = yaml.DoubleQuotedStyle
		}
	}
	for _, child := range node.Content {
		more, others := expand(child, lookup)
		errs = append(errs, more...)
		maps.Copy(unset, others)
	}
	return errs, unset
}

// resolve is what a reference, matched by its expression, stands for. Of a file the line break at its end is left out, which
// editors and echo put there.
func resolve(match []string, lookup func(string) (string, bool)) (string, error) {
	path, name := match[1], match[2]
	if path == "" {
		value, ok := lookup(name)
		if !ok {
			return "", fmt.Errorf("the environment has no %s", name)
		}
		return value, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the file of a reference cannot be read: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(file, maxReferenced+1))
	if err != nil {
		return "", fmt.Errorf("the file of a reference cannot be read: %w", err)
	}
	if len(content) > maxReferenced {
		return "", fmt.Errorf("the file %s of a reference is larger than %d bytes", path, maxReferenced)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
}

// filesFolder is where the folder bucket keeps its files.
func (c *config) filesFolder() string {
	if c.Bucket.Folder.Path != "" {
		return c.Bucket.Folder.Path
	}
	return filepath.Join(c.Data, "files")
}
