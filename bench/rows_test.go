//go:build figures

package bench

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// instant is the layout of lastUpdated.
const instant = "2006-01-02T15:04:05.000Z"

// started is the lastUpdated of every type's first row.
var started = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// rows are the resources of one type. None is stored: row i is computed from i, and the window of a search by arithmetic.
type rows struct {
	typ  string
	n    int64
	step time.Duration // between the lastUpdated of one row and the next
	// entry is one entry of a page, with a comma before it, in which id and lastUpdated are overwritten.
	entry     []byte
	ids       []int // where the last digits of ids begin
	at        int   // where lastUpdated begins
	bodyAt    int   // where the body goes in, 0 where the entry is whole
	bodyBytes int64 // the size of the body, which is sent piece by piece
}

// idDigits is the number of digits in which ids differ; the rest is there because ids are UUIDs on most servers.
const (
	idDigits = 8
	idHead   = "5f0c2f6e-5a3b-4c1d-9e00-0000"
)

// newRows returns n rows of about size bytes each, written step apart.
func newRows(typ string, n int64, step time.Duration, size int) *rows {
	id := idHead + strings.Repeat("#", idDigits)
	head := fmt.Sprintf(`{"resourceType":"%s","id":"%s","meta":{"versionId":"1","lastUpdated":"%s"},`, typ, id, instant)
	rest := `"status":"final","code":{"coding":[{"system":"http://loinc.org","code":"8302-2"}]},"valueQuantity":{"value":150.10,"unit":"cm"},"note":[{"text":"`
	const tail = `"}]}`
	rest += strings.Repeat("as it was ", max(0, size-len(head)-len(rest)-len(tail))/10) + tail
	return measured(&rows{typ: typ, n: n, step: step}, id, head+rest)
}

// newBinaries returns n Binaries whose data has size bytes.
func newBinaries(n int64, step time.Duration, size int64) *rows {
	id := idHead + strings.Repeat("#", idDigits)
	head := fmt.Sprintf(`{"resourceType":"Binary","id":"%s","meta":{"versionId":"1","lastUpdated":"%s"},"contentType":"image/png","data":"`, id, instant)
	r := measured(&rows{typ: "Binary", n: n, step: step, bodyBytes: size}, id, head+`"}`)
	r.bodyAt = bytes.Index(r.entry, []byte(`"data":"`)) + len(`"data":"`)
	return r
}

// measured makes the entry of a resource and notes where to write into it.
func measured(r *rows, id, resource string) *rows {
	r.entry = fmt.Appendf(nil, `,{"fullUrl":"http://plain.example/fhir/%s/%s","resource":%s,"search":{"mode":"match"}}`, r.typ, id, resource)
	for from := 0; ; {
		n := bytes.Index(r.entry[from:], []byte("####"))
		if n < 0 {
			break
		}
		r.ids = append(r.ids, from+n)
		from += n + idDigits
	}
	r.at = bytes.Index(r.entry, []byte(instant))
	return r
}

// window returns the numbers [first, end) of the rows with lastUpdated in [from, to); a zero time is no bound.
func (r *rows) window(from, to time.Time) (first, end int64) {
	first, end = 0, r.n
	if !from.IsZero() {
		first = min(r.n, r.since(from))
	}
	if !to.IsZero() {
		end = min(r.n, r.since(to))
	}
	return first, max(first, end)
}

// since is the number of the first row at or after a time.
func (r *rows) since(at time.Time) int64 {
	if at.Before(started) {
		return 0
	}
	if at.Year() > 2100 { // a Duration is too short for the end of time
		return r.n
	}
	return int64((at.Sub(started) + r.step - 1) / r.step)
}

// number returns the number of the row with an id, false where there is none.
func (r *rows) number(id string) (int64, bool) {
	digits, ok := strings.CutPrefix(id, idHead)
	var i int64
	if _, err := fmt.Sscanf(digits, "%08d", &i); !ok || err != nil || i >= r.n {
		return 0, false
	}
	return i, true
}

// append writes the entry of row i without its body behind page.
func (r *rows) append(page []byte, i int64) []byte {
	begin := len(page)
	page = append(page, r.entry...)
	entry := page[begin:]
	for _, at := range r.ids {
		for digit, rest := at+idDigits-1, i; digit >= at; digit, rest = digit-1, rest/10 {
			entry[digit] = byte('0' + rest%10)
		}
	}
	var stamp [64]byte
	copy(entry[r.at:], started.Add(time.Duration(i)*r.step).AppendFormat(stamp[:0], instant))
	return page
}
