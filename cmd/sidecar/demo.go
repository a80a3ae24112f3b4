package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

const (
	// demoSeed and demoPatients make the sample: the same at each run.
	demoSeed     = 1
	demoPatients = 500
	// demoLine bounds in bytes one line of a file.
	demoLine = 16 << 20
)

// errDifference ends the demo when the files do not hold what the sample server has.
var errDifference = errors.New("the exported files differ from the sample server's records")

// demo is `sidecar demo`: a whole export against a built-in sample server, shown and compared.
func demo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("sidecar demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	keep := flags.Bool("keep", false, "leave everything running and print how to use it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: the demo takes -keep only", flags.Arg(0))
	}
	data, err := os.MkdirTemp("", "sidecar-demo-")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	sample, upstream, err := startSample(ctx, group)
	if err == nil {
		var s *server
		if s, err = newDemoServer(ctx, data, upstream); err == nil {
			group.Go(func() error { return s.run(ctx) })
			base := "http://" + s.front.Addr().String() + "/fhir"
			fmt.Fprintf(stdout, "sample FHIR server  %s\nthe sidecar         %s\n\n", upstream, base)
			err = showInTime(ctx, stdout, base, sample)
			if err == nil && *keep {
				printKeep(stdout, base, s.back.Addr().String(), data)
				<-ctx.Done()
			}
		}
	}
	stop()
	return errors.Join(err, group.Wait(), os.RemoveAll(data))
}

// startSample serves generated records on a free port.
func startSample(ctx context.Context, group *errgroup.Group) (*fhirtest.Server, string, error) {
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	for _, resource := range fhirtest.Generate(demoSeed, demoPatients) {
		if err := sample.Put(resource); err != nil {
			return nil, "", err
		}
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	front := &http.Server{Handler: sample, ReadHeaderTimeout: headerTimeout}
	group.Go(func() error { return serveOn(front, listener) })
	group.Go(func() error {
		<-ctx.Done()
		return front.Close()
	})
	return sample, "http://" + listener.Addr().String() + "/fhir", nil
}

// newDemoServer is the wiring of `sidecar serve` on free ports, with a short pause because the sample server shows its
// writes at once.
func newDemoServer(ctx context.Context, data, upstream string) (*server, error) {
	c := defaultConfig()
	c.Upstream, c.Data = upstream, data
	c.Listen, c.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	c.Settle = time.Second
	c.ShutdownGrace = time.Second
	return newServer(ctx, c, slog.New(slog.DiscardHandler))
}

// demoTimeout is when the demo gives up: it takes some seconds.
const demoTimeout = time.Minute

func showInTime(ctx context.Context, out io.Writer, base string, sample *fhirtest.Server) error {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	return showExport(ctx, out, base, sample)
}

func showExport(ctx context.Context, out io.Writer, base string, sample *fhirtest.Server) error {
	kickOff := base + "/$export"
	fmt.Fprintf(out, "kick-off            GET %s\n", kickOff)
	status, err := demoKickOff(ctx, kickOff)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "202 Accepted        Content-Location: %s\n\n", status)
	raw, err := demoPoll(ctx, out, status)
	if err != nil {
		return err
	}
	var manifest state.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return err
	}
	if manifest.Extension != nil { // 128 types, most of them empty, would hide the rest
		fmt.Fprintf(out, "\n%d types are accounted for in extension.completeness, which is left out here:", len(manifest.Extension.Completeness))
		manifest.Extension = nil
	}
	pretty, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\n\n", pretty)
	return compareFiles(ctx, out, manifest.Output, sample)
}

func demoGet(ctx context.Context, address string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(request)
}

// demoKickOff starts the export and returns its status address. The bucket's first test may still run.
func demoKickOff(ctx context.Context, address string) (string, error) {
	for {
		response, err := demoGet(ctx, address)
		if err != nil {
			return "", err
		}
		if err := response.Body.Close(); err != nil {
			return "", err
		}
		switch response.StatusCode {
		case http.StatusAccepted:
			return response.Header.Get("Content-Location"), nil
		case http.StatusServiceUnavailable:
			if err := wait(ctx, 100*time.Millisecond); err != nil {
				return "", err
			}
		default:
			return "", fmt.Errorf("kick-off: %s", response.Status)
		}
	}
}

// isTerminal tells whether a line can be written over.
func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// demoPoll shows the progress until the manifest comes: one living line on a terminal, else a line a change.
func demoPoll(ctx context.Context, out io.Writer, address string) ([]byte, error) {
	format, last := "status request      %s\n", ""
	if isTerminal(out) {
		format = "\rstatus request      %-60s"
		defer fmt.Fprintln(out)
	}
	show := func(text string) {
		if text != last {
			fmt.Fprintf(out, format, text)
			last = text
		}
	}
	for {
		response, err := demoGet(ctx, address)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			return nil, err
		}
		switch response.StatusCode {
		case http.StatusOK:
			show("200 OK")
			return body, nil
		case http.StatusAccepted:
			show("202, " + response.Header.Get("X-Progress"))
			if err := wait(ctx, 50*time.Millisecond); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("status request: %s %s", response.Status, body)
		}
	}
}

func wait(ctx context.Context, pause time.Duration) error {
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// compareFiles reads all files and holds them against the sample server's records, line by line.
func compareFiles(ctx context.Context, out io.Writer, files []state.ManifestFile, sample *fhirtest.Server) error {
	missing := map[string]int{}
	for _, typ := range sample.Types() {
		for _, resource := range sample.Resources(typ) {
			missing[string(resource)]++
		}
	}
	total, wrong := 0, 0
	for _, file := range files {
		lines := 0
		err := eachLine(ctx, file.URL, func(line string) {
			lines++
			if missing[line]--; missing[line] < 0 {
				wrong++
			}
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%8d lines  %s\n", lines, file.Type)
		if int64(lines) != file.Count {
			return fmt.Errorf("%s: the manifest says %d lines: %w", file.Type, file.Count, errDifference)
		}
		total += lines
	}
	for _, n := range missing {
		wrong += max(0, n)
	}
	if wrong > 0 {
		return fmt.Errorf("%d lines: %w", wrong, errDifference)
	}
	_, err := fmt.Fprintf(out, "\n%d resources exported, each equal to the sample server's record.\n", total)
	return err
}

func eachLine(ctx context.Context, address string, fn func(string)) (err error) {
	response, err := demoGet(ctx, address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return errors.New("file request: " + strconv.Itoa(response.StatusCode))
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, demoLine)
	for lines.Scan() {
		fn(lines.Text())
	}
	return lines.Err()
}

func printKeep(out io.Writer, base, adminAddress, data string) {
	fmt.Fprintf(out, `
Everything keeps running until you press Ctrl-C. Try it:

  curl -i '%[1]s/$export'
  curl -i '%[1]s/Patient/$export?_type=Patient,Observation'
  curl -i '%[1]s/Group/demo-group/$export'

one after another: while one runs, the next is answered with 429. Poll the address in Content-Location with curl -i until it
answers 200; curl -X DELETE on it ends the export. Or look at

  curl '%[1]s/metadata'
  curl 'http://%[2]s/metrics'
  curl 'http://%[2]s/jobs'

Files and state lie in %[3]s and go when the demo ends.
`, base, adminAddress, data)
}
