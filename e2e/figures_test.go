//go:build figures

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// figureRounds is how often each way of reading is measured; the median counts.
const figureRounds = 3

// TestFigures measures a system export beside plain paging with curl, on the same HAPI, in turn. It prints and never
// fails for a time: `make bench-hapi`.
func TestFigures(t *testing.T) {
	server := hapi(t)
	counts := map[string]int{}
	for key := range server.data.system() {
		typ, _, _ := strings.Cut(key, "/")
		counts[typ]++
	}
	var types []string
	total := 0
	for typ, n := range counts {
		types = append(types, typ)
		total += n
	}
	slices.SortFunc(types, func(a, b string) int { return counts[b] - counts[a] })

	var one, four, reading, whole []float64
	var peak int
	for round := range figureRounds + 1 { // the first warms up
		a := seconds(func() { curlTypes(t, server.base, types) })
		s := startSidecar(t, server.base, nil)
		read, all := s.timedExport(t, total)
		peak = max(peak, s.peakRSS(t))
		s.stop(t)
		b := seconds(func() { curlFour(t, server.base, types, counts) })
		if round == 0 {
			continue
		}
		one, four, reading, whole = append(one, a), append(four, b), append(reading, read), append(whole, all)
		fmt.Printf("round %d: curl %.1f s, four curls %.1f s, export: reading %.1f s, without the pause %.1f s\n", round, a, b, read, all)
	}
	rate := func(times []float64) float64 { return float64(total) / median(times) }
	fmt.Printf("resources %d\n", total)
	fmt.Printf("curl, one loop         %6.0f resources/s\n", rate(one))
	fmt.Printf("curl, four loops       %6.0f resources/s  %.2f x one loop\n", rate(four), rate(four)/rate(one))
	fmt.Printf("sidecar, reading       %6.0f resources/s  %.2f x one loop, %.2f x four loops\n", rate(reading), rate(reading)/rate(one), rate(reading)/rate(four))
	fmt.Printf("sidecar, all but pause %6.0f resources/s  %.2f x one loop\n", rate(whole), rate(whole)/rate(one))
	fmt.Printf("sidecar, peak RSS      %6.1f MiB\n", float64(peak)/1024)
}

func seconds(fn func()) float64 {
	began := time.Now()
	fn()
	return time.Since(began).Seconds()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// curlTypes pages through types by next links, one page after another.
func curlTypes(t *testing.T, base string, types []string) {
	page := filepath.Join(t.TempDir(), "page")
	for _, typ := range types {
		for address := base + "/" + typ + "?_count=500"; address != ""; {
			curl := exec.CommandContext(t.Context(), "curl", "-s", "-f", "-H", "Cache-Control: no-cache", "-o", page, address)
			if err := curl.Run(); err != nil {
				t.Errorf("curl: %v", err)
				return
			}
			address = nextLink(t, page)
		}
	}
}

// curlFour runs four loops over different types, the largest types first.
func curlFour(t *testing.T, base string, types []string, counts map[string]int) {
	var shares [4][]string
	var loads [4]int
	for _, typ := range types {
		least := slices.Index(loads[:], slices.Min(loads[:]))
		shares[least] = append(shares[least], typ)
		loads[least] += counts[typ]
	}
	var group sync.WaitGroup
	for _, share := range shares {
		group.Go(func() { curlTypes(t, base, share) })
	}
	group.Wait()
}

var nextPattern = regexp.MustCompile(`"relation":\s*"next",\s*"url":\s*"([^"]+)"`)

// nextLink reads the link from the head of a page, where HAPI puts it.
func nextLink(t *testing.T, page string) string {
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Error(err)
		return ""
	}
	if found := nextPattern.FindSubmatch(raw[:min(len(raw), 4096)]); found != nil {
		return string(bytes.ReplaceAll(found[1], []byte(`\u0026`), []byte("&")))
	}
	return ""
}

var secondsPattern = regexp.MustCompile(`seconds=([0-9.]+)`)

// timedExport runs a system export and returns the seconds of planning and reading, and of everything but the pause.
func (s *sidecar) timedExport(t *testing.T, want int) (reading, whole float64) {
	t.Helper()
	statusURL := s.kickOff(t, "$export")
	var result manifest
	for done := false; !done; {
		done, result, _ = s.poll(t, statusURL)
		pause(t, 50*time.Millisecond)
	}
	got := 0
	for _, file := range result.Output {
		got += *file.Count
	}
	if got != want {
		t.Errorf("%d resources exported, want %d", got, want)
	}
	for line := range strings.Lines(s.logs.tail(1 << 20)) {
		for _, part := range []struct {
			text string
			into []*float64
		}{
			{"export planned", []*float64{&reading, &whole}},
			{"slices read", []*float64{&reading, &whole}},
			{"history read", []*float64{&whole}},
			{"files stored", []*float64{&whole}},
		} {
			if found := secondsPattern.FindStringSubmatch(line); found != nil && strings.Contains(line, part.text) {
				n, err := strconv.ParseFloat(found[1], 64)
				if err != nil {
					t.Fatal(err)
				}
				for _, sum := range part.into {
					*sum += n
				}
			}
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, statusURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(t, request)
	return reading, whole
}

// peakRSS is the largest resident size of the process so far, in KiB.
func (s *sidecar) peakRSS(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(s.pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatal("the process has no VmHWM")
	return 0
}
