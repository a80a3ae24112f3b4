//go:build figures

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// memory is what the processes run with: the image's GOGC, and the GOMEMLIMIT of the manifests.
var memory = []string{"GOGC=50", "GOMEMLIMIT=48MiB"}

// sidecar is a process of the built binary.
type sidecar struct {
	base, folder string
	cmd          *exec.Cmd
	log          logLines
}

var binary = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "sidecar-bench-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "sidecar")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/sidecar")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, output)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	if server := os.Getenv(downloadFrom); server != "" {
		if err := download(server); err != nil {
			fmt.Fprintln(os.Stderr, "download:", err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// startSidecar runs the binary in front of a server, with settings beside those that every run has.
func startSidecar(t *testing.T, upstream string, settings map[string]any) *sidecar {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	s := &sidecar{folder: t.TempDir()}
	listen, admin := freeAddress(t), freeAddress(t)
	s.base = "http://" + listen + "/fhir"
	config := map[string]any{
		"listen": listen, "admin_listen": admin, "data": filepath.Join(s.folder, "data"), "upstream": upstream, "settle": "1s", "log_format": "json",
	}
	for name, value := range settings {
		config[name] = value
	}
	text, err := json.Marshal(config) // JSON is YAML, too
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.folder, "config.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(path, "serve", "-config", file)
	s.cmd.Env = append(os.Environ(), memory...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		// The bucket is tested at the start: before that an export is refused.
		if response, err := http.Get("http://" + admin + "/readyz"); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK && strings.Contains(s.log.all(), "bucket works") {
				return s
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sidecar is not ready:\n%s", s.log.all())
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := fhirtest.FreeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (s *sidecar) stop(t *testing.T) {
	if s.cmd.ProcessState != nil {
		return
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the sidecar ended with %v:\n%s", err, s.log.all())
	}
}

// logLines takes the log of the process.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// export runs one system export, checks how many resources it has, and deletes it. It returns how long its stages took
// together, without the pause before the first of them.
func (s *sidecar) export(t *testing.T, want int64) time.Duration {
	t.Helper()
	before := len(s.log.all())
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/$export", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/fhir+json")
	request.Header.Set("Prefer", "respond-async")
	status := ask(t, request, http.StatusAccepted).header.Get("Content-Location")
	got := s.await(t, status)
	if got != want {
		t.Fatalf("%d resources exported, want %d:\n%s", got, want, s.log.all())
	}
	took := stages(s.log.all()[before:])
	if request, err = http.NewRequestWithContext(t.Context(), http.MethodDelete, status, nil); err != nil {
		t.Fatal(err)
	}
	ask(t, request, http.StatusAccepted)
	return took
}

// await polls an export until it is complete, and returns how many resources it has.
func (s *sidecar) await(t *testing.T, status string) (resources int64) {
	t.Helper()
	for {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, status, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer := ask(t, request, http.StatusAccepted, http.StatusOK)
		if answer.status == http.StatusOK {
			var manifest struct{ Output []struct{ Count int64 } }
			if err := json.Unmarshal(answer.body, &manifest); err != nil {
				t.Fatal(err)
			}
			for _, file := range manifest.Output {
				resources += file.Count
			}
			return resources
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func ask(t *testing.T, request *http.Request, want ...int) answer {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	for _, status := range want {
		if response.StatusCode == status {
			return answer{response.StatusCode, response.Header, body.Bytes()}
		}
	}
	t.Fatalf("status %d:\n%s", response.StatusCode, body.Bytes())
	return answer{}
}

// stages adds up the times that the log tells of the stages of an export, and prints them.
func stages(log string) (sum time.Duration) {
	var parts []string
	for line := range strings.Lines(log) {
		var entry struct {
			Msg, Stage string
			Seconds    float64
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "stage done" {
			sum += time.Duration(entry.Seconds * float64(time.Second))
			parts = append(parts, fmt.Sprintf("%s in %.3f s", entry.Stage, entry.Seconds))
		}
	}
	fmt.Println(strings.Join(parts, ", "))
	return sum
}

// peakRSS is the largest resident size of the process so far, in MiB.
func (s *sidecar) peakRSS(t *testing.T) float64 {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatal("the process has no VmHWM")
	return 0
}

// stateSize is the size of the state file, which never shrinks, in MiB.
func (s *sidecar) stateSize(t *testing.T) float64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(s.folder, "data", "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	return float64(info.Size()) / (1 << 20)
}
