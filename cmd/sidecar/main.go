// Command sidecar gives a FHIR server the Bulk Data Export API: it stands in front of the server, forwards everything,
// and answers $export itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the linker in releases.
var version = ""

const usage = `sidecar gives any FHIR server the Bulk Data Export API.

  sidecar serve -upstream URL   forward to the FHIR server and answer $export
  sidecar check -upstream URL   say what the server, the bucket and the data folder can do
  sidecar plan -upstream URL    say what an export would ask of the server, and make none
  sidecar demo                  show an export against a built-in sample server
  sidecar version               print the version

"sidecar COMMAND -h" lists the flags of a command. config.example.yaml explains every setting.
`

// errUsage ends the process with status 2; what is wrong was printed.
var errUsage = errors.New("usage")

func main() {
	stdlog.SetOutput(io.Discard) // net/http writes pieces of odd answers there, which may be health data; our log is slog's
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil && errors.Is(err, context.Canceled)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "sidecar: stopped")
		os.Exit(130)
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "sidecar:", err)
		os.Exit(1)
	}
}

// run is the whole program behind its arguments. It returns when its command has ended or ctx is cancelled.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:], stderr)
	case "check":
		return check(ctx, args[1:], stdout, stderr)
	case "plan":
		return plan(ctx, args[1:], stdout, stderr)
	case "demo":
		return demo(ctx, args[1:], stdout, stderr)
	case "version", "-version", "--version":
		_, err := fmt.Fprintln(stdout, "sidecar", versionText())
		return err
	case "help", "-h", "-help", "--help":
		_, err := fmt.Fprint(stdout, usage)
		return err
	}
	fmt.Fprintf(stderr, "sidecar: there is no command %q\n\n%s", args[0], usage)
	return errUsage
}

// versionText is the version set by the linker, else what Go knows of the build.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
