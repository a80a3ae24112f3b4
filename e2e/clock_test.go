package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clockBinary is the sidecar with a wall clock that a test can set: its Go library reads from a file by how many seconds
// the clock is wrong. The monotonic clock goes on as it does when somebody sets the real one.
var clockBinary = &build{flags: settableClock}

// wallJump is added to the library's package time, which may not import os. Now may be called where no system call is
// allowed, so that the file is read beside it.
const wallJump = `package time

import (
	"sync/atomic"
	"syscall"
)

var wallJump atomic.Int64

func init() {
	if path, _ := syscall.Getenv("SIDECAR_CLOCK"); path != "" {
		go func() {
			for ; ; Sleep(5 * Millisecond) {
				wallJump.Store(readJump(path))
			}
		}()
	}
}

func readJump(path string) int64 {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	var text [32]byte
	n, err := syscall.Read(fd, text[:])
	syscall.Close(fd)
	seconds, sign := int64(0), int64(1)
	for _, c := range text[:max(0, n)] {
		switch {
		case c == '-':
			sign = -1
		case c >= '0' && c <= '9':
			seconds = seconds*10 + int64(c-'0')
		}
	}
	return sign * seconds
}
`

// settableClock gives the flags of a build with that library.
func settableClock(folder string) ([]string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go: %w", err)
	}
	library := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err != nil {
		return nil, err
	}
	const reading = "sec, nsec, mono := runtimeNow()\n"
	_, now, found := strings.Cut(string(source), "\nfunc Now() Time {\n")
	if !found || !strings.HasPrefix(strings.TrimSpace(now), reading[:len(reading)-1]) {
		return nil, errors.New("this Go reads its clock in another way: adapt clock_test.go")
	}
	changed := strings.Replace(string(source), "\nfunc Now() Time {\n\t"+reading, "\nfunc Now() Time {\n\t"+reading+"\tsec += wallJump.Load()\n", 1)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(library, "time.go"):     filepath.Join(folder, "time.go"),
		filepath.Join(library, "walljump.go"): filepath.Join(folder, "walljump.go"),
	}})
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{"time.go": []byte(changed), "walljump.go": []byte(wallJump), "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			return nil, err
		}
	}
	return []string{"-overlay", filepath.Join(folder, "overlay.json")}, nil
}

// Ensure an export is the same when the sidecar's clock is set an hour forward or back while it runs, at each stage, and
// that its T is the server's, its settle pause is kept, and it takes no hour.
func TestClockThatJumps(t *testing.T) {
	const settle, aMoment = 2 * time.Second, time.Minute // of a busy machine, and far less than an hour
	moments := map[string]func(*http.Request) bool{
		"before the settle pause is over": func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/_history") }, // a probe
		"between pages":                   isSamplePage,
	}
	for name, isMoment := range moments {
		for _, seconds := range []int{3600, -3600} {
			t.Run(fmt.Sprintf("%s/%d", name, seconds), func(t *testing.T) {
				t.Parallel()
				server := startSample(t, 60)
				want := server.AsOf(time.Now())
				clock := filepath.Join(t.TempDir(), "clock")
				jumped, firstPage := time.Time{}, time.Time{}
				server.onRequest(func(r *http.Request) {
					if isSamplePage(r) && firstPage.IsZero() {
						firstPage = time.Now()
					}
					if !jumped.IsZero() || !isMoment(r) {
						return
					}
					jumped = time.Now()
					if err := os.WriteFile(clock, fmt.Append(nil, seconds), 0o600); err != nil {
						t.Error(err)
					}
				})
				s := newSidecar(t, server.base, settings{
					"page_size": samplePage, "max_file_bytes": 8 << 10, "settle": settle.String(), "log_format": "json",
				})
				s.binary, s.env = clockBinary.get(t), []string{"SIDECAR_CLOCK=" + clock}
				s.start(t)
				s.awaitReady(t)
				before := time.Now()
				statusURL := s.kickOff(t, "$export")
				done, m, _ := s.poll(t, statusURL)
				for deadline := before.Add(crashTimeout); !done && time.Now().Before(deadline); pause(t, glance) {
					done, m, _ = s.poll(t, statusURL) // Retry-After takes the job for an hour old
				}
				server.onRequest(nil)
				if jumped.IsZero() || !done {
					t.Fatalf("the moment was reached: %v, the export is complete: %v", !jumped.IsZero(), done)
				}
				if off := m.TransactionTime.Sub(before); off < 0 || off > aMoment {
					t.Errorf("T is %s from the kick-off, want the server's clock", off)
				}
				if waited := firstPage.Sub(m.TransactionTime); waited < settle || waited > settle+aMoment {
					t.Errorf("reading began %s after T, want %s and a little", waited, settle)
				}
				rows := download(t, m)
				for key, body := range want {
					if string(rows[key]) != string(body) {
						t.Errorf("%s: got %.200s, want %.200s", key, rows[key], body)
					}
				}
				if len(rows) != len(want) {
					t.Errorf("%d rows, want %d", len(rows), len(want))
				}
				s.logJumped(t, seconds)
				s.release(t, statusURL)
			})
		}
	}
}

// logJumped checks that the process took the clock for set: a log line has its time.
func (s *sidecar) logJumped(t *testing.T, seconds int) {
	t.Helper()
	for line := range strings.Lines(s.logs.tail(1 << 20)) {
		var entry struct{ Time time.Time }
		if json.Unmarshal([]byte(line), &entry) == nil && time.Until(entry.Time).Round(time.Minute) == time.Duration(seconds)*time.Second {
			return
		}
	}
	t.Errorf("no line of the log is %d seconds off: the clock was not set\n%s", seconds, s.logs.tail(2000))
}
