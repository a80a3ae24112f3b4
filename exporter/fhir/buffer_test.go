package fhir_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// pageLimit is the limit of these tests; it is one for the whole process.
const pageLimit = 64 << 10

// closing notes that a body was closed.
type closing struct {
	io.Reader
	closed int
}

func (c *closing) Close() error { c.closed++; return nil }

// bodied returns an unread page with a body.
func bodied(t *testing.T, body io.ReadCloser) *fhir.Page {
	t.Helper()
	mock := httpmock.NewMockTransport()
	mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: body, Request: r}, nil
	})
	page, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// stamps are what a page says before it is read.
func stamps(page *fhir.Page) (times []string) {
	for at := range page.Times() {
		times = append(times, at.Format(time.RFC3339Nano))
	}
	return times
}

func patient(id, stamp, rest string) string {
	return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"lastUpdated":%q}%s}`, id, stamp, rest)
}

// Ensure that a page is read the same from memory as from the connection: whole, longer than the limit, or broken off.
func TestBufferChangesNothingOfAPage(t *testing.T) {
	short := searchset(patient("1", "2024-05-01T10:00:00Z", ""), patient("2", "2024-05-01T10:00:01Z", ""))
	var many []string
	for i := range 2000 {
		many = append(many, patient(fmt.Sprint(i), "2024-05-01T10:00:00Z", ""))
	}
	long := searchset(many...)
	filled := short + strings.Repeat(" ", pageLimit-len(short))
	broken := func() io.Reader {
		return io.MultiReader(strings.NewReader(short[:len(short)-5]), iotest.ErrReader(errors.New("connection reset")))
	}
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for _, test := range []struct {
		name  string
		body  func() io.Reader
		whole bool
		rows  int
		fails bool
	}{
		{"short", text(short), true, 2, false},
		{"byte by byte", func() io.Reader { return iotest.OneByteReader(strings.NewReader(short)) }, true, 2, false},
		{"as long as the limit", text(filled), true, 2, false},
		{"longer by a byte", text(filled + " "), false, 2, false},
		{"long", text(long), false, 2000, false},
		{"broken off", broken, false, 1, true},
		{"ended too early", func() io.Reader {
			return io.MultiReader(strings.NewReader(short), iotest.ErrReader(io.ErrUnexpectedEOF))
		}, false, 2, true},
		{"cut", text(short[:len(short)-2]), true, 2, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			count := func(page *fhir.Page) (rows int, err error) {
				err = page.Each(func(*fhir.Entry) error { rows++; return nil })
				return rows, err
			}
			plain, want := count(bodied(t, io.NopCloser(test.body())))
			body := &closing{Reader: test.body()}
			page := bodied(t, body)
			if whole := page.Buffer(pageLimit); whole != test.whole {
				t.Errorf("whole: %v, want %v", whole, test.whole)
			}
			if told := len(stamps(page)) > 0 || page.Full(1); told != test.whole {
				t.Errorf("it tells of its rows: %v, want %v", told, test.whole)
			}
			rows, err := count(page)
			if rows != test.rows || rows != plain || (err != nil) != test.fails || fmt.Sprint(err) != fmt.Sprint(want) {
				t.Errorf("%d rows, %v; without a buffer %d, %v; want %d", rows, err, plain, want, test.rows)
			}
			if body.closed != 1 {
				t.Errorf("closed %d times", body.closed)
			}
		})
	}
}

// Ensure that a buffer goes to another page only when its page is read or closed.
func TestBuffersAreNotShared(t *testing.T) {
	var pages []*fhir.Page
	for i := range 4 {
		page := bodied(t, io.NopCloser(strings.NewReader(searchset(patient(fmt.Sprint(i), "2024-05-01T10:00:00Z", "")))))
		if !page.Buffer(pageLimit) {
			t.Fatal("not whole")
		}
		if i == 0 { // its buffer may serve the others
			if err := errors.Join(page.Close(), page.Close()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		pages = append(pages, page)
	}
	for i, page := range pages {
		err := page.Each(func(e *fhir.Entry) error {
			if e.ID != fmt.Sprint(i+1) {
				t.Errorf("page %d has row %s", i+1, e.ID)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// Ensure that the times are those of the text from its end, whatever else it holds, and that odd ones are passed over.
func TestTimesOfAPage(t *testing.T) {
	const first, second = "2024-05-01T10:00:00Z", "2024-05-01T10:00:00.25Z"
	for _, test := range []struct {
		name, page string
		want       []string
	}{
		{"rows", searchset(patient("1", first, ""), patient("2", second, "")), []string{second, first}},
		{"with an offset", searchset(patient("1", "2024-05-01T12:00:00+02:00", "")), []string{first}},
		{"pretty", pretty(t, searchset(patient("1", first, ""), patient("2", second, ""))), []string{second, first}},
		{"contained", searchset(patient("1", second, `,"contained":[`+patient("2", first, "")+`]`)), []string{first, second}},
		{"none", searchset(`{"resourceType":"Patient","id":"1"}`), nil},
		{"no times", searchset(patient("1", "yesterday", ""), patient("2", first, ""), patient("3", "", "")), []string{first}},
		{"no text", searchset(patient("1", first, `,"lastUpdated":7`)), []string{first}},
		{"in a text", searchset(patient("1", first, `,"v":"\"lastUpdated\""`)), []string{first}},
		{"cut in a time", searchset(patient("1", first, ""))[:190], nil},
		{"a name at the end", `{"lastUpdated"`, nil},
		{"nothing", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			page := bodied(t, io.NopCloser(strings.NewReader(test.page)))
			page.Buffer(pageLimit)
			if got := stamps(page); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			for at := range page.Times() { // which may be left early
				if at.Format(time.RFC3339Nano) != test.want[0] {
					t.Errorf("began at %v", at)
				}
				break
			}
			if err := page.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Ensure that a page is full when it has the rows that were asked for, or a next link before its rows.
func TestPageIsFull(t *testing.T) {
	two := searchset(patient("1", "2024-05-01T10:00:00Z", ""), patient("2", "2024-05-01T10:00:01Z", ""))
	const link = `{"relation":"next","url":"y"}`
	for _, test := range []struct {
		name, page string
		n          int
		want       bool
	}{
		{"as many", two, 2, true},
		{"fewer", two, 3, false},
		{"a link before", strings.Replace(two, `"link":[`, `"link":[`+link+`,`, 1), 3, true},
		{"a link behind", strings.TrimSuffix(two, "}") + `,"link":[` + link + `]}`, 3, false},
		{"a row that says so", searchset(patient("1", "2024-05-01T10:00:00Z", `,"next":"next"`)), 3, false},
		{"nothing", "", 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			page := bodied(t, io.NopCloser(strings.NewReader(test.page)))
			page.Buffer(pageLimit)
			if got := page.Full(test.n); got != test.want {
				t.Errorf("full: %v, want %v", got, test.want)
			}
			if err := page.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
