package fhir_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// searchset wraps resources in a page.
func searchset(resources ...string) string {
	var b strings.Builder
	b.WriteString(`{"resourceType":"Bundle","type":"searchset","link":[{"relation":"self","url":"x"}],"entry":[`)
	for i, resource := range resources {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"fullUrl":"http://x/Patient/%d","resource":%s,"search":{"mode":"match"}}`, i, resource)
	}
	b.WriteString(`]}`)
	return b.String()
}

// pretty indents as HAPI's printer does, without touching the tokens.
func pretty(t testing.TB, page string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(page), "", "  "); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPageKeepsTheBytesOfAResource(t *testing.T) {
	for _, test := range []struct{ name, value string }{
		{"1.10", `1.10`},
		{"100.00", `100.00`},
		{"minus zero", `-0.0`},
		{"exponent", `1E+05`},
		{"30 digits", `0.123456789012345678901234567890`},
		{"beyond 64 bits", `18446744073709551617`},
		{"beyond float64", `1e400`},
		{"escapes", `"\u00e9 \/ \u0041 \" \\"`},
		{"raw UTF-8", `"é 漢 🙂"`},
		{"line separator", "\"\u2028\u2029\""},
		{"HTML", `"<a href='x'>&amp;</a>"`},
		{"surrogates", `"\ud83d\ude42 \ud83d lone"`},
		{"blanks and brackets in a string", `"{ \" : [ 1 ,  2 ] } \\"`},
		{"order and odd names", `{"z":1,"a":2,"":3,"a":4}`},
		{"nested names", `{"resource":{"resourceType":"Other","id":"no","meta":{"lastUpdated":"x"}},"entry":[{"id":1}]}`},
		{"empties", `[{},[],null,true,false,""]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			line := `{"v":` + test.value + `,"resourceType":"Patient","id":"a-1","meta":{"versionId":"3","lastUpdated":"2024-05-01T12:00:00.25+02:00"}}`
			for form, page := range map[string]string{"compact": searchset(line), "pretty": pretty(t, searchset(line))} {
				rows, _, err := search(t, page)
				if err != nil {
					t.Errorf("%s: %v", form, err)
					continue
				}
				want := row{"Patient", "a-1", "3", "2024-05-01T10:00:00.25Z", "match", line, false}
				if len(rows) != 1 || rows[0] != want {
					t.Errorf("%s: got %+v\nwant %+v", form, rows, want)
				}
			}
		})
	}
}

func TestPageRefusesDamage(t *testing.T) {
	const patient = `{"resourceType":"Patient","id":"1","n":[1,2]}`
	whole := searchset(patient, patient)
	replace := func(old, with string) string { return strings.Replace(whole, old, with, 1) }
	for _, test := range []struct{ name, body string }{
		{"cut in an entry", whole[:len(whole)/2]},
		{"cut in a string", whole[:strings.Index(whole, "Patient")+3]},
		{"cut before the last bracket", whole[:len(whole)-1]},
		{"missing comma", replace(`},{`, `}{`)},
		{"word", replace(`[1,2]`, `ture`)},
		{"leading zero", replace(`[1,2]`, `01`)},
		{"number without its fraction", replace(`[1,2]`, `1.`)},
		{"NaN", replace(`[1,2]`, `NaN`)},
		{"trailing comma", replace(`[1,2]`, `[1,]`)},
		{"raw newline in a string", replace(`[1,2]`, "\"a\nb\"")},
		{"bad UTF-8", replace(`[1,2]`, "\"\xff\"")},
		{"half a character", replace(`[1,2]`, "\"\xe6\xbc\"")},
		{"a surrogate as UTF-8", replace(`[1,2]`, "\"\xed\xa0\xbd\"")},
		{"bad UTF-8 outside of a resource", replace(`"x"`, "\"\xff\"")},
		{"short escape", replace(`[1,2]`, `"\u00e"`)},
		{"unknown escape", replace(`[1,2]`, `"\x"`)},
		{"wrong bracket", replace(`[1,2]`, `[1,2}`)},
		{"data behind", whole + `{}`},
		{"a second Bundle", whole + whole},
		{"entry is an object", `{"resourceType":"Bundle","type":"searchset","entry":{}}`},
		{"entry is null", `{"resourceType":"Bundle","type":"searchset","entry":[null]}`},
		{"resource is text", `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":"x"}]}`},
		{"resource without a type", `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"id":"1"}}]}`},
		{"lastUpdated that is no instant", searchset(`{"resourceType":"Patient","meta":{"lastUpdated":"2024-05-01"}}`)},
		{"HTML", "<html><body>Log in</body></html>"},
		{"empty", ""},
		{"null", "null"},
		{"an OperationOutcome", `{"resourceType":"OperationOutcome","issue":[]}`},
		{"a resource", patient},
		{"another kind of Bundle", strings.Replace(whole, "searchset", "history", 1)},
		{"a Bundle without its kind", `{"resourceType":"Bundle","entry":[]}`},
		{"total is text", `{"resourceType":"Bundle","type":"searchset","total":"5"}`},
		{"links are text", `{"resourceType":"Bundle","type":"searchset","link":"x"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := search(t, test.body)
			if !errors.Is(err, fhir.ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
}

func TestPageReadsMembersInAnyOrder(t *testing.T) {
	rows, page, err := search(t, `{"entry":[{"search":{"mode":"include"},"resource":{"meta":{"tag":[{}],"lastUpdated":"2024-05-01T12:00:00Z"},
		"id":"1","name":"x","resourceType":"Patient"},"fullUrl":"http://x/Patient/1"}],"total":3,"type":"searchset","resourceType":"Bundle",
		"meta":{"x":1},"signature":{"entry":[1]}}`)
	want := row{
		Type: "Patient", ID: "1", Updated: "2024-05-01T12:00:00Z", Mode: "include",
		Line: `{"meta":{"tag":[{}],"lastUpdated":"2024-05-01T12:00:00Z"},"id":"1","name":"x","resourceType":"Patient"}`,
	}
	if err != nil || len(rows) != 1 || rows[0] != want || page.Total != 3 || page.Entries != 1 {
		t.Errorf("got %+v, total %d, %d entries, %v; want %+v", rows, page.Total, page.Entries, err, want)
	}
	if next, err := page.Next(); next != "" || err != nil {
		t.Errorf("next %q, %v; want none", next, err)
	}
}

// Ensure a name that comes twice does not hide the members behind it.
func TestPageReadsTheHeaderOfAResourceWithRepeatedNames(t *testing.T) {
	rows, _, err := search(t, searchset(`{"id":"0","id":"1","resourceType":"Patient","meta":{"versionId":"2","lastUpdated":"2024-05-01T12:00:00Z"}}`))
	if err != nil || len(rows) != 1 || rows[0].ID != "1" || rows[0].Version != "2" || rows[0].Updated != "2024-05-01T12:00:00Z" {
		t.Errorf("got %+v, %v", rows, err)
	}
}

func TestPageTellsOutcomeEntriesAndThoseWithoutAResource(t *testing.T) {
	rows, page, err := search(t, `{"resourceType":"Bundle","type":"searchset","entry":[
		{"resource":{"resourceType":"OperationOutcome","issue":[]},"search":{"mode":"outcome"}},
		{"fullUrl":"http://x/fhir/Patient/7"},{}]}`)
	want := []row{
		{Type: "OperationOutcome", Mode: "outcome", Line: `{"resourceType":"OperationOutcome","issue":[]}`},
		{Type: "Patient", ID: "7"},
		{},
	}
	if err != nil || fmt.Sprint(rows) != fmt.Sprint(want) || page.Total != -1 || page.Entries != 3 {
		t.Errorf("got %+v, total %d, %d entries, %v; want %+v", rows, page.Total, page.Entries, err, want)
	}
}

func TestHistoryReadsEveryFormOfADeletion(t *testing.T) {
	for _, test := range []struct {
		name, entry string
		want        row
	}{
		{
			"with the time (Blaze)",
			`{"fullUrl":"http://x/Patient/1","request":{"method":"DELETE","url":"Patient/1"},
			 "response":{"status":"204","lastModified":"2024-05-01T12:00:00Z"}}`,
			row{Type: "Patient", ID: "1", Updated: "2024-05-01T12:00:00Z", Deleted: true},
		},
		{
			"without a time (HAPI)",
			`{"fullUrl":"http://x/Patient/1","request":{"method":"DELETE","url":"Patient/1/_history/2"},"response":{"status":"200"}}`,
			row{Type: "Patient", ID: "1", Version: "2", Deleted: true},
		},
		{
			"with a stub, whose time is the one of the version before (Microsoft)",
			`{"resource":{"resourceType":"Patient","id":"1","meta":{"versionId":"3","lastUpdated":"2024-05-01T11:00:00Z"}},
			 "request":{"method":"DELETE","url":"http://x/Patient/1"}}`,
			row{
				Type: "Patient", ID: "1", Version: "3", Deleted: true,
				Line: `{"resourceType":"Patient","id":"1","meta":{"versionId":"3","lastUpdated":"2024-05-01T11:00:00Z"}}`,
			},
		},
		{
			"with the body and an address of the type alone (Aidbox)",
			`{"resource":{"resourceType":"Patient","id":"1","name":[]},"request":{"method":"DELETE","url":"Patient"},
			 "response":{"lastModified":"2024-05-01T12:00:00.123456Z"}}`,
			row{
				Type: "Patient", ID: "1", Updated: "2024-05-01T12:00:00.123456Z", Deleted: true,
				Line: `{"resourceType":"Patient","id":"1","name":[]}`,
			},
		},
		{
			"a version that is none",
			`{"fullUrl":"urn:x","resource":{"resourceType":"Patient","id":"1","meta":{"versionId":"1"}},"request":{"method":"PUT","url":"Patient/1"}}`,
			row{Type: "Patient", ID: "1", Version: "1", Line: `{"resourceType":"Patient","id":"1","meta":{"versionId":"1"}}`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := answering(t, http.StatusOK, `{"resourceType":"Bundle","type":"history","entry":[`+test.entry+`]}`)
			page, err := client.History(t.Context(), "Patient", "", when, 10)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := read(page)
			if err != nil || len(rows) != 1 || rows[0] != test.want {
				t.Errorf("got %+v, %v\nwant %+v", rows, err, test.want)
			}
		})
	}
}

func TestPageReturnsTheErrorOfItsCaller(t *testing.T) {
	page, err := answering(t, http.StatusOK, searchset(`{"resourceType":"Patient"}`)).Search(t.Context(), fhir.Query{Type: "Patient"})
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Errorf("disk: %w", fhir.ErrForeignLink)
	if err := page.Each(func(*fhir.Entry) error { return own }); !errors.Is(err, own) || errors.Is(err, fhir.ErrMalformed) {
		t.Errorf("got %v, want the caller's error", err)
	}
}

// Ensure a page or a resource that does not end is given up at its limit, by an error that names the type.
func TestWhatIsTooLargeIsGivenUp(t *testing.T) {
	const most = 10 << 20
	page := `{"resourceType":"Bundle","type":"searchset","entry":[`
	for name, body := range map[string]io.Reader{
		"page":        repeated(page, `{"resource":{"resourceType":"Binary","id":"b"}}`, ",", 1<<20, ""),
		"resource":    repeated(page+`{"resource":{"resourceType":"Binary","id":"b","data":"`, "x", "", 30<<20, ""),
		"white space": repeated(page, " ", "", 30<<20, ""),
		"ids":         repeated(page+`{"resource":{"resourceType":"Binary","id":"`, "x", "", 30<<20, ""),
	} {
		t.Run(name, func(t *testing.T) {
			mock := httpmock.NewMockTransport()
			mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body), Request: r}, nil
			})
			client, err := fhir.NewClient(fhir.Config{BaseURL: upstreamBase, Transport: mock, Spill: t.TempDir(), MaxPage: 2 * most, MaxResource: most})
			if err != nil {
				t.Fatal(err)
			}
			got, err := client.Search(t.Context(), fhir.Query{Type: "Binary"})
			if err != nil {
				t.Fatal(err)
			}
			err = got.Each(func(*fhir.Entry) error { return nil })
			if !errors.Is(err, fhir.ErrTooLarge) || !strings.Contains(err.Error(), "search Binary: ") {
				t.Errorf("got %v", err)
			}
			if strings.Contains(err.Error(), "resource of more") != (name == "resource" || name == "ids") {
				t.Errorf("the limit of the other is named: %v", err)
			}
		})
	}
}
