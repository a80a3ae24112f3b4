package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
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
	ForwardHeaders []string           `yaml:"forward_headers"`
	Intercept      bool               `yaml:"intercept"`

	Listen         string        `yaml:"listen"`
	AdminListen    string        `yaml:"admin_listen"`
	PublicURL      string        `yaml:"public_url"`
	TrustedProxies []string      `yaml:"trusted_proxies"`
	ShutdownGrace  time.Duration `yaml:"shutdown_grace"`
	LogLevel       string        `yaml:"log_level"`
	LogFormat      string        `yaml:"log_format"`

	Data         string        `yaml:"data"`
	Bucket       bucketConfig  `yaml:"bucket"`
	LinkLifetime time.Duration `yaml:"link_lifetime"`
	Retention    time.Duration `yaml:"retention"`

	MaxRunning   int           `yaml:"max_running"`
	Workers      int           `yaml:"workers"`
	QuietHours   string        `yaml:"quiet_hours"`
	Strategy     string        `yaml:"strategy"`
	PageSize     int           `yaml:"page_size"`
	Settle       time.Duration `yaml:"settle"`
	GiveUp       time.Duration `yaml:"give_up"`
	MaxFileBytes int64         `yaml:"max_file_bytes"`

	WritesPassHere bool                    `yaml:"writes_pass_here"`
	Referenced     bool                    `yaml:"referenced"`
	AllowPartial   bool                    `yaml:"allow_partial"`
	WithoutHistory exporter.WithoutHistory `yaml:"without_history"`
	Ledger         bool                    `yaml:"ledger"`

	Accounts []account `yaml:"accounts"`
}

type upstreamAuthConfig struct {
	Header struct {
		Name  string `yaml:"name"`
		Value secret `yaml:"value"`
	} `yaml:"header"`
	Basic struct {
		Username string `yaml:"username"`
		Password secret `yaml:"password"`
	} `yaml:"basic"`
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
	} `yaml:"s3"`
	GCS struct {
		Bucket              string `yaml:"bucket"`
		CredentialsFile     string `yaml:"credentials_file"`
		ServiceAccountEmail string `yaml:"service_account_email"`
		PrivateKey          secret `yaml:"private_key"`
		Endpoint            string `yaml:"endpoint"`
	} `yaml:"gcs"`
}

// defaultConfig is what holds where nothing is said.
func defaultConfig() *config {
	c := &config{
		Intercept:     true,
		Listen:        ":8000",
		AdminListen:   ":8001",
		ShutdownGrace: 30 * time.Second,
		LogLevel:      "info",
		LogFormat:     "text",
		Data:          "./sidecar-data",
		LinkLifetime:  proxy.DefaultLinkLifetime,
		Retention:     exporter.DefaultRetention,
		MaxRunning:    exporter.DefaultMaxRunning,
		Workers:       exporter.DefaultWorkers,
		Strategy:      exporter.StrategyAuto,
		GiveUp:        exporter.DefaultGiveUp,
		MaxFileBytes:  exporter.DefaultMaxFileBytes,

		Referenced:     true,
		WithoutHistory: exporter.IncludeCurrent,
	}
	c.Bucket.Kind = "folder"
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
	listen := flags.String("listen", "", "`address` for clients (default :8000)")
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
	title, inFile := "configuration", error(nil)
	if *path != "" {
		raw, err := os.ReadFile(*path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		title += " " + *path
		if inFile = c.decode(raw, os.LookupEnv); errors.Is(inFile, errNoYAML) { // what is in it is not known
			return nil, fmt.Errorf("%s:\n%w", title, inFile)
		}
	}
	for _, set := range []struct {
		value  string
		target *string
	}{{*upstream, &c.Upstream}, {*listen, &c.Listen}, {*data, &c.Data}} {
		if set.value != "" {
			*set.target = set.value
		}
	}
	if err := errors.Join(inFile, c.applyBox(os.LookupEnv), c.validate()); err != nil {
		return nil, fmt.Errorf("%s:\n%w", title, err)
	}
	return c, nil
}

// environment is a reference such as ${NAME}.
var environment = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// errNoYAML tells that the file as a whole cannot be read.
var errNoYAML = errors.New("not a YAML file")

// decode reads the file over what c holds. References to the environment are replaced in values, after the YAML was
// parsed, so that no value can change the structure. Unknown keys, wrong types and unset variables are errors, each on a
// line of its own.
func (c *config) decode(raw []byte, lookup func(string) (string, bool)) error {
	var document yaml.Node
	if err := yaml.Unmarshal(raw, &document); err != nil {
		return fmt.Errorf("  %w: %s", errNoYAML, hidden(err.Error()))
	}
	if document.Kind == 0 { // an empty file
		return nil
	}
	errs := unknownKeys(raw)
	errs = append(errs, expand(&document, lookup)...)
	return errors.Join(append(errs, faults(document.Decode(c))...)...)
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

func expand(node *yaml.Node, lookup func(string) (string, bool)) []error {
	var errs []error
	if node.Kind == yaml.ScalarNode && environment.MatchString(node.Value) {
		node.Value = environment.ReplaceAllStringFunc(node.Value, func(reference string) string {
			name := environment.FindStringSubmatch(reference)[1]
			value, ok := lookup(name)
			if !ok {
				errs = append(errs, fmt.Errorf("  line %d: the environment has no %s", node.Line, name))
				return reference
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
		errs = append(errs, expand(child, lookup)...)
	}
	return errs
}

// validate joins all faults into one error, a line each.
func (c *config) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf("  "+format, args...)) }
	if c.Upstream == "" {
		fault("upstream is missing: say -upstream http://my-fhir-server:8080/fhir")
	} else if _, err := fhir.ParseBase(c.Upstream); err != nil {
		fault("upstream: %w", err)
	}
	if c.PublicURL != "" {
		if _, err := fhir.ParseBase(c.PublicURL); err != nil {
			fault("public_url: %w", err)
		}
	}
	for _, hop := range c.TrustedProxies {
		if _, err := netip.ParsePrefix(hop); err != nil {
			fault("trusted_proxies: %q is not a range of addresses such as 10.0.0.0/8", hop)
		}
	}
	if (c.UpstreamAuth.Header.Name == "") != (c.UpstreamAuth.Header.Value == "") {
		fault("upstream_auth.header needs both name and value")
	}
	if c.UpstreamAuth.Basic.Username == "" && c.UpstreamAuth.Basic.Password != "" {
		fault("upstream_auth.basic has a password but no username")
	}
	if c.UpstreamAuth.Basic.Username != "" && strings.EqualFold(c.UpstreamAuth.Header.Name, "Authorization") {
		fault("upstream_auth: basic and an Authorization header exclude each other")
	}
	for _, number := range []struct {
		name  string
		value int64
		least int64
		most  int64
	}{
		{"max_running", int64(c.MaxRunning), 1, 100},
		{"workers", int64(c.Workers), 1, 64},
		{"page_size", int64(c.PageSize), 0, 10000},
		{"max_file_bytes", c.MaxFileBytes, 1 << 10, 2 << 30},
		{"settle", int64(c.Settle), 0, int64(time.Hour)},
		{"link_lifetime", int64(c.LinkLifetime), int64(time.Second), int64(7 * 24 * time.Hour)},
		{"retention", int64(c.Retention), int64(time.Second), int64(365 * 24 * time.Hour)},
		{"give_up", int64(c.GiveUp), int64(time.Second), int64(24 * time.Hour)},
		{"shutdown_grace", int64(c.ShutdownGrace), 0, int64(time.Hour)},
	} {
		if number.value < number.least || number.value > number.most {
			fault("%s is out of range", number.name)
		}
	}
	if _, err := exporter.ParseHours(c.QuietHours); err != nil {
		fault("quiet_hours: %w", err)
	}
	if !slices.Contains(exporter.Strategies(), c.Strategy) {
		fault("strategy must be one of %s", strings.Join(exporter.Strategies(), ", "))
	}
	if c.Listen == "" || c.AdminListen == "" {
		fault("listen and admin_listen must be addresses such as :8000")
	}
	if c.Data == "" {
		fault("data is empty")
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		fault("log_level must be debug, info, warn or error")
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		fault("log_format must be text or json")
	}
	switch c.WithoutHistory {
	case exporter.IncludeCurrent, exporter.OmitChanged, exporter.Strict:
	default:
		fault("without_history must be include, omit or strict")
	}
	errs = append(errs, c.validateBucket()...)
	return errors.Join(errs...)
}

func (c *config) validateBucket() []error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf("  bucket."+format, args...)) }
	b := &c.Bucket
	if prefix := strings.Trim(b.Prefix, "/"); prefix != "" {
		if err := blob.ValidateName(prefix); err != nil {
			fault("prefix: %w", err)
		}
	}
	switch b.Kind {
	case "folder":
	case "s3":
		if b.S3.Bucket == "" {
			fault("s3.bucket is missing")
		}
		if (b.S3.AccessKeyID == "") != (b.S3.SecretAccessKey == "") {
			fault("s3 needs both access_key_id and secret_access_key, or neither for the SDK's own chain")
		}
		if b.S3.Endpoint != "" {
			if u, err := url.Parse(b.S3.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				fault("s3.endpoint must be an address such as http://minio:9000")
			}
		}
	case "gcs":
		if b.GCS.Bucket == "" {
			fault("gcs.bucket is missing")
		}
		if (b.GCS.ServiceAccountEmail == "") != (b.GCS.PrivateKey == "") {
			fault("gcs needs both service_account_email and private_key, or neither")
		}
		if b.GCS.CredentialsFile != "" && b.GCS.PrivateKey != "" {
			fault("gcs takes credentials_file or private_key, not both")
		}
	default:
		fault("kind must be folder, s3 or gcs")
	}
	return errs
}

// filesFolder is where the folder bucket keeps its files.
func (c *config) filesFolder() string {
	if c.Bucket.Folder.Path != "" {
		return c.Bucket.Folder.Path
	}
	return filepath.Join(c.Data, "files")
}
