package fhir_test

import (
	"net/http"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

func TestQueryIsWrittenAsServersReadIt(t *testing.T) {
	for _, test := range []struct {
		name string
		q    fhir.Query
		want string
	}{
		{"nothing", fhir.Query{}, ""},
		{
			"a window of whole seconds",
			fhir.Query{From: when, To: when.Add(time.Second), Sort: "_lastUpdated", Count: 100},
			"_lastUpdated=ge2024-05-01T12:00:00Z&_lastUpdated=lt2024-05-01T12:00:01Z&_sort=_lastUpdated&_count=100",
		},
		{
			"a window of milliseconds in another zone",
			fhir.Query{From: when.Add(5 * time.Millisecond).In(time.FixedZone("", 3600)), To: when.Add(6*time.Millisecond + 999)},
			"_lastUpdated=ge2024-05-01T12:00:00.005Z&_lastUpdated=lt2024-05-01T12:00:00.006Z",
		},
		{
			"criteria in their order",
			fhir.Query{Criteria: []fhir.QueryParam{{Name: "subject", Value: "Patient/1,Patient/2"}, {Name: "a:missing", Value: "a b&c=d+é%"}}},
			"subject=Patient/1,Patient/2&a:missing=a+b%26c%3Dd%2B%C3%A9%25",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			mock, last := recorded(searchset())
			test.q.Type = "Patient"
			page, err := mockClient(t, mock).Search(t.Context(), test.q)
			if err != nil {
				t.Fatal(err)
			}
			if err := page.Close(); err != nil {
				t.Error(err)
			}
			if got := (*last).URL.RawQuery; got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Ensure a history always names its beginning, and that an id cannot become a path or a query.
func TestHistoryAlwaysNamesItsBeginning(t *testing.T) {
	mock, last := recorded(`{"resourceType":"Bundle","type":"history"}`)
	client := mockClient(t, mock)
	for id, want := range map[string]string{
		"":      "/fhir/Patient/_history?_since=2024-05-01T12:00:00.000Z&_count=50",
		"a":     "/fhir/Patient/a/_history?_since=2024-05-01T12:00:00.000Z&_count=50",
		"a/b?c": "/fhir/Patient/a%2Fb%3Fc/_history?_since=2024-05-01T12:00:00.000Z&_count=50",
	} {
		page, err := client.History(t.Context(), "Patient", id, when, 50)
		if err != nil {
			t.Fatal(err)
		}
		if rows, err := read(page); err != nil || len(rows) != 0 {
			t.Errorf("%v, %v", rows, err)
		}
		if got := (*last).URL.RequestURI(); got != want || (*last).Method != http.MethodGet {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestQueryWithLeavesTheOriginalAlone(t *testing.T) {
	q := fhir.Query{Type: "Patient", Criteria: make([]fhir.QueryParam, 0, 4)}
	a, b := q.With(fhir.QueryParam{Name: "a", Value: "1"}), q.With(fhir.QueryParam{Name: "b", Value: "2"})
	if len(q.Criteria) != 0 || a.Criteria[0].Name != "a" || b.Criteria[0].Name != "b" {
		t.Errorf("q %v, a %v, b %v", q.Criteria, a.Criteria, b.Criteria)
	}
	if a.Equal(b) || !a.Equal(q.With(fhir.QueryParam{Name: "a", Value: "1"})) {
		t.Error("Equal compares something else than the page that is asked for")
	}
}
