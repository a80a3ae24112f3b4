//go:build figures

package bench

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rounds is how often each way is measured, in turn; the median counts.
const rounds = 5

// TestDownload measures an export beside the bare download of the same pages. The server does not count, so that an export
// is one slice, which asks for one page after another as the download does.
func TestDownload(t *testing.T) {
	for _, test := range []struct {
		name     string
		rows     int64
		thinking time.Duration // per row
		goal     string
	}{
		{"export/download-10k", 100_000, 100 * time.Microsecond, "<= 1.02"},
		{"export/download-instant", 200_000, 0, "<= 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			upstream := startServer(t, &server{
				// Access is asked for by a search of Patients, so there has to be that type.
				types:    []*rows{newRows("Observation", test.rows, 20*time.Millisecond, 1000), newRows("Patient", 0, time.Hour, 0)},
				thinking: test.thinking,
			})
			s := startSidecar(t, upstream.base(), nil)
			s.export(t, test.rows) // warms up
			var exports, downloads, again []float64
			for round := range rounds {
				upstream.take()
				export := s.export(t, test.rows).Seconds()
				pages, onThem := upstream.take()
				download, bytes := bareDownload(t, upstream, pages)
				second, _ := bareDownload(t, upstream, pages)
				fmt.Printf("round %d: export %.3f s, download %.3f s and %.3f s; %d pages, %.1f MB, %.3f rows a resource\n",
					round+1, export, download, second, len(pages), float64(bytes)/1e6, float64(onThem)/float64(test.rows))
				exports, downloads, again = append(exports, export), append(downloads, download), append(again, second)
			}
			fmt.Printf("figure: %s %.3f %s (A/A %.3f)\n", test.name, median(exports)/median(downloads), test.goal, median(again)/median(downloads))
		})
	}
}

// bareDownload reads pages one after another and drops them, in a process of its own as the sidecar is one: a client within
// the server's process would be served faster than any other can be.
func bareDownload(t *testing.T, upstream *server, pages []string) (seconds float64, bytes int64) {
	t.Helper()
	client := exec.CommandContext(t.Context(), os.Args[0])
	client.Env = append(os.Environ(), downloadFrom+"="+upstream.http.URL)
	client.Stdin, client.Stderr = strings.NewReader(strings.Join(pages, "\n")), os.Stderr
	output, err := client.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(output), &seconds, &bytes); err != nil {
		t.Fatal(err)
	}
	return seconds, bytes
}

// downloadFrom is the variable of the environment that makes a process of this binary a download from a server: it reads the
// addresses from its standard input, and prints how many seconds that took and how many bytes there were.
const downloadFrom = "BENCH_DOWNLOAD_FROM"

func download(server string) error {
	pages, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	began, bytes := time.Now(), int64(0)
	for page := range strings.Lines(string(pages)) {
		response, err := http.Get(server + strings.TrimSpace(page))
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %w", response.StatusCode, err)
		}
		bytes += n
	}
	_, err = fmt.Println(time.Since(began).Seconds(), bytes)
	return err
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

const (
	// smallSize is the size in bytes of the small resources, binarySize of the data of a Binary.
	smallSize, binarySize = 400, 30 << 20
	// binaries is how many Binaries are among ten million resources.
	binaries = 20
	// diskPerRow is what a resource takes of the disk at most, in the spool and in the folder.
	diskPerRow = 2 * smallSize
)

// TestTenMillion measures the memory of the whole process and the size of its state file over an export of ten million
// resources (BENCH_ROWS changes that) with Binaries of 30 MB among them.
func TestTenMillion(t *testing.T) {
	n := int64(10_000_000)
	if text := os.Getenv("BENCH_ROWS"); text != "" {
		var err error
		if n, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatalf("BENCH_ROWS: %v", err)
		}
	}
	var disk syscall.Statfs_t
	folder := t.TempDir() // those of the exports lie beside it
	if err := syscall.Statfs(folder, &disk); err != nil {
		t.Fatal(err)
	}
	if need, free := n*diskPerRow+2*binaries*binarySize, int64(disk.Bavail)*disk.Bsize; free < need {
		t.Fatalf("%d MB of disk are needed in %s, %d MB are free: set TMPDIR or BENCH_ROWS", need>>20, folder, free>>20)
	}
	const step = 20 * time.Millisecond
	upstream := startServer(t, &server{counts: true, types: []*rows{
		newBinaries(binaries, time.Duration(n)*step/binaries, binarySize), newRows("Observation", n, step, smallSize),
		newRows("Patient", 10, time.Hour, smallSize),
	}})
	store, endpoint := startNullStore(t)
	fmt.Printf("%d resources of %d bytes and %d Binaries of %d MiB; the sidecar runs with %v\n", n, smallSize, binaries, binarySize>>20, memory)
	for _, test := range []struct {
		name     string
		settings map[string]any
	}{
		{"folder", nil},
		{"s3", map[string]any{"bucket": map[string]any{"kind": "s3", "s3": map[string]any{
			"bucket": "null", "region": "us-east-1", "endpoint": endpoint, "path_style": true, "access_key_id": "id", "secret_access_key": "secret",
		}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startSidecar(t, upstream.base(), test.settings)
			took := s.export(t, n+10+binaries)
			fmt.Printf("%s: %.0f s, %.0f resources/s\n", test.name, took.Seconds(), float64(n)/took.Seconds())
			fmt.Printf("figure: rss-10m/%s %.1f <= 64\n", test.name, s.peakRSS(t))
			if test.name == "folder" {
				fmt.Printf("figure: state-10m %.1f <= 64\n", s.stateSize(t))
			}
		})
	}
	fmt.Printf("s3 is a store in this process that checks nothing and drops %.1f GB\n", float64(store.taken)/1e9)
}
