package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"sidecar/state"
)

// smallDisk mounts a disk of some KiB. That takes root, which CI is: there it has to work.
func smallDisk(t *testing.T, kib int) string {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, diskSize(kib)); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("a disk cannot be mounted: %v; these tests need the right to mount (CAP_SYS_ADMIN)", err)
		}
		t.Skipf("a disk cannot be mounted: %v; run as root", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return folder
}

func diskSize(kib int) string { return fmt.Sprintf("size=%dk,mode=0700", kib) }

// grow gives a disk more room.
func grow(t *testing.T, folder string, kib int) {
	t.Helper()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_REMOUNT, diskSize(kib)); err != nil {
		t.Fatal(err)
	}
}

// fill takes all the room that a disk has, by a file of that name.
func fill(t *testing.T, folder string) (file string) {
	t.Helper()
	path := filepath.Join(folder, "filler")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4<<10); err == nil; {
		_, err = out.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// diskPatients make some MiB of rows: more than the small disks take.
const diskPatients = 600

// Ensure an export outlasts a full disk, that of the data or that of the folder bucket: it waits, the sidecar forwards and
// is ready meanwhile, and with room again the export goes on and is whole. Nothing on the disk is damaged.
func TestDiskThatIsFullForAWhile(t *testing.T) {
	server := startSample(t, diskPatients)
	want := startSidecar(t, server.base, nil).export(t, "$export").rows
	for name, test := range map[string]struct {
		waits  string // in the log; of all, whichever comes first
		config func(disk string) settings
	}{
		"spool and state": {"disk is full", func(disk string) settings {
			return settings{"data": filepath.Join(disk, "data"), "bucket": settings{"folder": settings{"path": t.TempDir()}}}
		}},
		"folder bucket": {"bucket is waited for", func(disk string) settings {
			return settings{"bucket": settings{"folder": settings{"path": filepath.Join(disk, "files")}}}
		}},
		"all": {"no space left", func(disk string) settings { return settings{"data": filepath.Join(disk, "data")} }},
	} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, 700)
			config := test.config(disk)
			config["max_file_bytes"] = 256 << 10
			s := newSidecar(t, server.base, config)
			if path, ok := config["data"].(string); ok {
				s.data = path
			}
			s.start(t)
			s.awaitReady(t)
			statusURL := s.kickOff(t, "$export")
			s.awaitLog(t, test.waits)
			s.serves(t)
			if done, _, _ := s.poll(t, statusURL); done {
				t.Error("the export is complete on a full disk")
			}
			grow(t, disk, 64<<10)
			equalRows(t, download(t, s.await(t, statusURL)), want)
			s.stop(t)
			checkState(t, s.data, 1)
		})
	}
}

// Ensure a disk that is full before an export begins refuses it or lets it wait, that a process which is killed or stopped
// then finds its jobs again, and that exports work when there is room.
func TestDiskThatIsFullFromTheStart(t *testing.T) {
	server := startSample(t, 60)
	disk := smallDisk(t, 4<<10)
	s := newSidecar(t, server.base, settings{"data": filepath.Join(disk, "data"), "max_running": 9})
	s.data = filepath.Join(disk, "data")
	s.start(t)
	s.awaitReady(t)
	want := s.export(t, "$export").rows
	filler := fill(t, disk)
	var waiting []string
	for range 4 {
		status, header, body := s.get(t, s.base+"/$export")
		switch status {
		case http.StatusAccepted:
			waiting = append(waiting, header.Get("Content-Location"))
		case http.StatusServiceUnavailable:
			if !bytes.Contains(body, []byte("OperationOutcome")) || bytes.Contains(body, []byte(disk)) || header.Get("Retry-After") == "" {
				t.Errorf("kick-off on a full disk: %.400s", body)
			}
		default:
			t.Errorf("kick-off on a full disk: status %d: %.400s", status, body)
		}
	}
	s.serves(t)
	s.kill(t)
	checkState(t, s.data, 1+len(waiting))
	s.restart(t)
	s.serves(t)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	grow(t, disk, 64<<10)                                              // the exports that were accepted need more than the first one
	for deadline := time.Now().Add(crashTimeout); ; pause(t, glance) { // a refusal has the bucket tested anew
		status, header, body := s.get(t, s.base+"/$export")
		if status == http.StatusAccepted {
			waiting = append(waiting, header.Get("Content-Location"))
			break
		}
		if status != http.StatusServiceUnavailable || time.Now().After(deadline) {
			t.Fatalf("kick-off with room again: status %d: %.400s", status, body)
		}
	}
	for _, statusURL := range waiting {
		equalRows(t, download(t, s.await(t, statusURL)), want)
	}
}

// awaitLog waits for a text in the log.
func (s *sidecar) awaitLog(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(crashTimeout); !strings.Contains(s.logs.tail(1<<20), text); pause(t, glance) {
		if !s.running() || time.Now().After(deadline) {
			t.Fatalf("the log never says %q:\n%s", text, s.logs.tail(4000))
		}
	}
}

// serves checks that requests are forwarded and that the sidecar is ready and alive.
func (s *sidecar) serves(t *testing.T) {
	t.Helper()
	for _, url := range []string{s.base + "/Patient/pat-00001", s.admin + "/readyz", s.admin + "/livez"} {
		if status, _, body := s.get(t, url); status != http.StatusOK {
			t.Errorf("%s: status %d: %.200s", url, status, body)
		}
	}
}

func (s *sidecar) get(t *testing.T, url string) (int, http.Header, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, request)
}

// checkState reads every record of a state file that no process holds, and lets bbolt check its pages.
func checkState(t *testing.T, data string, jobs int) {
	t.Helper()
	path := filepath.Join(data, "state.db")
	pages, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = pages.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("the state file is damaged: %v", err)
		}
		return nil
	})
	if err := errors.Join(err, pages.Close()); err != nil {
		t.Fatal(err)
	}
	store, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := store.List(t.Context())
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	if len(list) != jobs {
		t.Errorf("the state file holds %d jobs, want %d", len(list), jobs)
	}
}
