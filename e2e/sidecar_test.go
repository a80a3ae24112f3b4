package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

const (
	readyTimeout = time.Minute
	stopTimeout  = 60 * time.Second
)

// build is one binary of the sidecar, which is built once for the whole run.
type build struct {
	// flags are those of go build.
	flags func(folder string) ([]string, error)
	once  sync.Once
	path  string
	err   error
}

var (
	theBinary = &build{}
	// failingBinary can be ended at each moment that its code marks.
	failingBinary = &build{flags: func(string) ([]string, error) { return []string{"-tags", "failpoints"}, nil }}
	// raceBinary finds races between requests while it serves them.
	raceBinary = &build{flags: func(string) ([]string, error) { return []string{"-race"}, nil }}
)

// get gives the path of the binary.
func (b *build) get(t *testing.T) string {
	t.Helper()
	b.once.Do(func() { b.path, b.err = b.run() })
	if b.err != nil {
		t.Fatalf("build the sidecar: %v", b.err)
	}
	return b.path
}

func (b *build) run() (string, error) {
	folder, err := os.MkdirTemp("", "sidecar-e2e-bin-")
	if err != nil {
		return "", err
	}
	var flags []string
	if b.flags != nil {
		if flags, err = b.flags(folder); err != nil {
			return "", errors.Join(err, os.RemoveAll(folder))
		}
	}
	path := filepath.Join(folder, "sidecar")
	build := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, "./cmd/sidecar")...)
	build.Dir = ".."
	if output, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("go build: %w\n%s", err, output), os.RemoveAll(folder))
	}
	return path, nil
}

func removeSidecarBinaries() error {
	var errs []error
	for _, b := range []*build{theBinary, failingBinary, clockBinary, raceBinary} {
		if b.path != "" {
			errs = append(errs, os.RemoveAll(filepath.Dir(b.path)))
		}
	}
	return errors.Join(errs...)
}

// settings are keys of the sidecar's configuration file.
type settings map[string]any

// sidecar is one installation: a configuration and a data folder, on which a process runs, is stopped and restarted.
type sidecar struct {
	base  string // FHIR base of the sidecar, without a slash at the end
	admin string // base of the health port
	data  string
	pid   int // of the last process, for its memory figures

	binary string
	env    []string // beside that of the tests
	config string
	cmd    *exec.Cmd
	exited chan struct{}
	result error // of Wait, to be read after exited
	logs   *logBuffer
}

// startSidecar starts the built binary in front of an upstream and waits until it is ready. The settings are added to
// those that every test needs. The process is stopped at the end of the test, its log shown where the test failed.
func startSidecar(t *testing.T, upstream string, more settings) *sidecar {
	t.Helper()
	s := newSidecar(t, upstream, more)
	s.start(t)
	s.awaitReady(t)
	return s
}

// newSidecar makes an installation without a process.
func newSidecar(t *testing.T, upstream string, more settings) *sidecar {
	t.Helper()
	folder := t.TempDir()
	listen, admin := freeAddress(t), freeAddress(t)
	s := &sidecar{
		base: "http://" + listen + pathOf(upstream), admin: "http://" + admin,
		data: filepath.Join(folder, "data"), config: filepath.Join(folder, "config.yaml"),
		binary: theBinary.get(t), logs: &logBuffer{},
	}
	config := settings{
		"listen": listen, "admin_listen": admin, "data": s.data, "upstream": upstream, "settle": "1s",
		"live_slowdown": 100, // writers must not slow what they are to disturb; what users feel is measured by make bench-polite
	}
	maps.Copy(config, more)
	// JSON is YAML, too.
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		t.Fatalf("encode the configuration: %v", err)
	}
	if err := os.WriteFile(s.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.running() {
			s.stop(t)
		}
		if t.Failed() {
			t.Logf("log of the sidecar:\n%s", s.logs.tail(8000))
		}
	})
	return s
}

// start runs a process on the installation without waiting for it to be ready.
func (s *sidecar) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command(s.binary, "serve", "-config", s.config)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.logs, s.logs
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start the sidecar: %v", err)
	}
	s.pid = s.cmd.Process.Pid
	exited := make(chan struct{})
	s.exited = exited
	go func(cmd *exec.Cmd) {
		s.result = cmd.Wait()
		close(exited)
	}(s.cmd)
}

func (s *sidecar) awaitReady(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(readyTimeout)
	for {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.admin+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = do(request); err == nil {
			return
		}
		if !s.running() {
			t.Fatalf("the sidecar ended before it was ready: %v\n%s", s.result, s.logs.tail(4000))
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sidecar was not ready after %v: %v\n%s", readyTimeout, err, s.logs.tail(4000))
		}
		pause(t, 20*time.Millisecond)
	}
}

func (s *sidecar) running() bool {
	if s.exited == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// stop ends the process by SIGTERM; anything but exit status 0 fails the test.
func (s *sidecar) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stop the sidecar: %v", err)
	}
	select {
	case <-s.exited:
		if s.result != nil {
			t.Errorf("the sidecar ended after SIGTERM with %v, want exit status 0", s.result)
		}
	case <-time.After(stopTimeout):
		t.Errorf("the sidecar did not end within %v after SIGTERM", stopTimeout)
		s.kill(t)
	}
}

// kill ends the process by SIGKILL and waits until it is gone.
func (s *sidecar) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("kill the sidecar: %v", err)
	}
	<-s.exited
}

// restart runs a new process on the same data folder and addresses.
func (s *sidecar) restart(t *testing.T) {
	t.Helper()
	s.start(t)
	s.awaitReady(t)
}

// freeAddress gives a local address at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := fhirtest.FreeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// pathOf gives the path of an address, "/fhir" for one.
func pathOf(address string) string {
	_, rest, _ := strings.Cut(address, "://")
	if slash := strings.Index(rest, "/"); slash >= 0 {
		return rest[slash:]
	}
	return ""
}

// pause waits between two looks at another process; it ends early with the test.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
	if t.Context().Err() != nil {
		t.Fatal("the test ended while it waited")
	}
}

// keptLog is how many bytes of a log are kept at least.
const keptLog = 1 << 20

// logBuffer keeps the end of what the processes of an installation print.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text.Len() > 8*keptLog {
		b.text.Next(b.text.Len() - keptLog)
	}
	return b.text.Write(p)
}

func (b *logBuffer) tail(most int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := b.text.Bytes()
	return string(text[max(0, len(text)-most):])
}
