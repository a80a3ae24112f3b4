//go:build figures

package fhir_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// figureRounds is how often each way of reading is measured, in turn; the median counts.
const figureRounds = 5

// TestFigureReader compares the reader with encoding/json on the same pages, as the benchmarks beside it do. The figure is
// the ratio of the times for all pages together.
func TestFigureReader(t *testing.T) {
	mixed, name := synthea(t), "synthea"
	if len(mixed) == 0 {
		mixed, name = stamped(fhirtest.Generate(1, 60)), "generated"
	}
	var sumOurs, sumAgain, sumTheirs float64
	for _, page := range []struct {
		name string
		text string
		rows int
	}{
		{"observations, compact", searchset(observations(1000)...), 1000},
		{"observations, pretty", pretty(t, searchset(observations(1000)...)), 1000},
		{name + ", compact", searchset(mixed...), len(mixed)},
		{name + ", pretty", pretty(t, searchset(mixed...)), len(mixed)},
	} {
		var ours, again, theirs []float64
		for range figureRounds {
			ours = append(ours, timed(func() { readPage(t, page.text, page.rows) }))
			theirs = append(theirs, timed(func() {
				if got, err := decodeByLibrary([]byte(page.text)); err != nil || got != page.rows {
					t.Fatalf("%d rows, %v", got, err)
				}
			}))
			again = append(again, timed(func() { readPage(t, page.text, page.rows) }))
		}
		a, b, c := middle(ours), middle(again), middle(theirs)
		sumOurs, sumAgain, sumTheirs = sumOurs+a, sumAgain+b, sumTheirs+c
		fmt.Printf("%s: %.0f MB/s, %.1f x encoding/json (A/A %.2f)\n", page.name, float64(len(page.text))/1e6/a, c/a, b/a)
	}
	fmt.Printf("figure: reader/decoder %.1f >= 11 (A/A %.2f)\n", sumTheirs/sumOurs, sumAgain/sumOurs)
}

// timed returns the seconds of one call, measured over at least a quarter of a second.
func timed(fn func()) float64 {
	began := time.Now()
	for n := 1; ; n++ {
		fn()
		if took := time.Since(began); took > 250*time.Millisecond {
			return took.Seconds() / float64(n)
		}
	}
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// readPage reads a page as a crawl does.
func readPage(t *testing.T, text string, rows int) {
	page, err := mockClient(t, fixed(text)).Search(t.Context(), fhir.Query{Type: "Observation", Count: 1000})
	if err != nil {
		t.Fatal(err)
	}
	page.Collect(compartment(t, "4.0.1"), false)
	got := 0
	err = page.Each(func(e *fhir.Entry) error {
		if e.ID != "" && !e.LastUpdated.IsZero() && e.Mode == "match" {
			got++
		}
		_, err := e.WriteTo(io.Discard)
		return err
	})
	if err != nil || got != rows {
		t.Fatalf("%d rows, %v", got, err)
	}
}

// TestFigureAllocations counts the allocations that each further resource of a page costs.
func TestFigureAllocations(t *testing.T) {
	one := searchset(observations(1)...)
	const rows = 1000
	many := searchset(observations(rows)...)
	perPage := testing.AllocsPerRun(20, func() { readPage(t, one, 1) })
	all := testing.AllocsPerRun(20, func() { readPage(t, many, rows) })
	fmt.Printf("figure: reader-allocs %.2f <= 1\n", (all-perPage)/(rows-1))
}

// figureBytes are the 15 cases whose bytes have to stay.
var figureBytes = []string{
	`1.10`, `100.00`, `-0.0`, `1E+05`, `0.123456789012345678901234567890`, `18446744073709551617`, `1e400`, `"\u00e9"`, `"\/"`, `"\u0041"`,
	`"é 漢 🙂"`, "\"\u2028 <>&\"", `"\ud83d\ude42 \ud83d"`, `{"z":1,"a":"{ [ ","":3,"a":4}`, `[{"resource":{"id":"no"},"entry":[]},{},[],null]`,
}

// figureDamage are the 17 damages that have to be refused, as what becomes of a whole page.
func figureDamage(whole string) []string {
	with := func(value string) string { return strings.Replace(whole, `[1,2]`, value, 1) }
	return []string{
		whole[:len(whole)/2], whole[:strings.Index(whole, "Patient")+3], whole[:len(whole)-1], strings.Replace(whole, `},{`, `}{`, 1),
		with(`ture`), with(`01`), with(`1.`), with(`NaN`), with(`[1,]`), with("\"a\nb\""), with(`"\x"`), with("\"\xff\""), with(`[1,2}`), whole + `{}`,
		`{"resourceType":"Bundle","type":"searchset","entry":{}}`, "<html><body>Log in</body></html>", "",
	}
}

// TestFigureBytes counts the bytes kept and the damage refused.
func TestFigureBytes(t *testing.T) {
	kept, refused := 0, 0
	for _, value := range figureBytes {
		line := `{"v":` + value + `,"resourceType":"Patient","id":"a-1"}`
		if got, _, err := search(t, pretty(t, searchset(line))); err == nil && len(got) == 1 && got[0].Line == line {
			kept++
		}
	}
	const patient = `{"resourceType":"Patient","id":"1","n":[1,2]}`
	whole := searchset(patient, patient)
	if got, _, err := search(t, whole); err != nil || len(got) != 2 {
		t.Fatalf("the whole page: %d rows, %v", len(got), err)
	}
	for _, page := range figureDamage(whole) {
		if _, _, err := search(t, page); err != nil {
			refused++
		}
	}
	fmt.Printf("figure: reader-allocs/kept %d >= %d\n", kept, len(figureBytes))
	fmt.Printf("figure: reader-allocs/refused %d >= %d\n", refused, len(figureDamage(whole)))
}

// figurePages are the answers of which the memory is compared. Made piece by piece, they take no memory themselves.
var figurePages = []struct {
	name string
	page func() io.Reader
}{
	{"a page of 48 MB", func() io.Reader { return pageOf(48_000_000) }},
	{"a page of 488 MB", func() io.Reader { return pageOf(488_000_000) }},
	{"a Binary of 30 MB", func() io.Reader {
		const head = `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"resourceType":"Binary","id":"b","data":"`
		return repeated(head, "QUJD", "", 30<<18, `"}}]}`)
	}},
}

func pageOf(size int) io.Reader {
	entry := `{ "resource" : ` + observations(1)[0] + ` }`
	return repeated(`{"resourceType":"Bundle","type":"searchset","entry":[`, entry, ",\n  ", size/(len(entry)+4), `]}`)
}

// TestFigureMemory compares the peaks of whole processes, each of which converts one page.
func TestFigureMemory(t *testing.T) {
	if number := os.Getenv("FIGURE_PAGE"); number != "" {
		convert(t, number)
		return
	}
	var peaks []float64
	for i, page := range figurePages {
		var rounds []float64
		for range figureRounds {
			child := exec.Command(os.Args[0], "-test.run=^TestFigureMemory$")
			child.Env = append(os.Environ(), "FIGURE_PAGE="+strconv.Itoa(i), "GOGC=50")
			out, err := child.CombinedOutput()
			_, text, found := bytes.Cut(out, []byte("peak "))
			text, _, _ = bytes.Cut(text, []byte("\n"))
			kib, parseErr := strconv.Atoi(string(text))
			if err != nil || !found || parseErr != nil {
				t.Fatalf("%v %v\n%s", err, parseErr, out)
			}
			rounds = append(rounds, float64(kib)/1024)
		}
		peaks = append(peaks, middle(rounds))
		fmt.Printf("%s: %.1f MiB at the peak of the process, %.1f to %.1f\n", page.name, middle(rounds), slices.Min(rounds), slices.Max(rounds))
	}
	fmt.Printf("figure: reader-memory %.1f <= 2\n", slices.Max(peaks)-slices.Min(peaks))
}

// convert reads one of the pages and prints the peak of this process in KiB.
func convert(t *testing.T, number string) {
	i, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	page, err := streaming(t, figurePages[i].page()).Search(t.Context(), fhir.Query{Type: "Observation"})
	if err != nil {
		t.Fatal(err)
	}
	page.Collect(compartment(t, "4.0.1"), false)
	err = page.Each(func(e *fhir.Entry) error {
		_, err := e.WriteTo(io.Discard)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Println("peak", strings.Fields(peak)[0])
}
