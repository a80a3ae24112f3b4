package fhirtest

import "time"

// Paging says how the pages of a result are linked.
type Paging int

const (
	// OffsetPages runs the search again for each page and skips (`_page=n`): rows shift under writes.
	OffsetPages Paging = iota
	// CachedPages keeps the list of ids and links pages on the base (`?_getpages=`); bodies are loaded when a page is read.
	CachedPages
	// SnapshotPages keeps the versions that were found (`Type/__page/<token>`): a page never changes.
	SnapshotPages
	// KeysetPages links to "after this row" (`ct=<token>`): stateless, and in the order of lastUpdated by default.
	KeysetPages
)

// Unknown says what a search parameter that the server does not know does.
type Unknown int

const (
	// UnknownIgnored drops it in silence, unless the client asked for strict handling: then 400.
	UnknownIgnored Unknown = iota
	// UnknownRefused answers 400 whatever the client asked for.
	UnknownRefused
	// UnknownReported drops it and puts an OperationOutcome entry first; 400 under strict handling.
	UnknownReported
)

// Tombstone says how a deletion looks in a history.
type Tombstone int

const (
	// TombstoneDated has no resource, `request.url` is Type/id, `response.lastModified` is there.
	TombstoneDated Tombstone = iota
	// TombstoneUndated has no resource and no lastModified; `request.url` names the version (hapi-fhir #5296).
	TombstoneUndated
	// TombstoneStub carries a resource of id and meta only: nothing but the method tells that it is a deletion.
	TombstoneStub
)

// Personality is a set of habits. Start from one of the constructors and change fields; the zero value is an
// unlimited server with offset pages.
type Personality struct {
	// Name is a label for test names.
	Name string
	// Software and Version appear in the CapabilityStatement.
	Software, Version string

	// DefaultCount is the page size without `_count` (0: 20); MaxCount cuts larger ones (0: no limit).
	DefaultCount, MaxCount int
	// ReportClamp adds an informational outcome entry when `_count` was cut.
	ReportClamp bool
	// Paging is the form of the page links.
	Paging Paging
	// PagesLive is how long CachedPages and SnapshotPages answer (0: for ever); afterwards 410.
	PagesLive time.Duration
	// LinkHost ("http://host") replaces scheme and host of the request in every link.
	LinkHost string
	// ForwardedHost builds links from X-Forwarded-Host and X-Forwarded-Proto where the client sends them.
	ForwardedHost bool
	// ResultCap ends a result after so many rows with neither link nor error (0: never); `_total=accurate` then
	// tells the cap, `_summary=count` the truth.
	ResultCap int

	// Unknown is the treatment of unknown search parameters.
	Unknown Unknown
	// ReuseFor gives the result of an equal, earlier search for so long, unless Cache-Control forbids it.
	ReuseFor time.Duration
	// NoStore honours `Cache-Control: no-store, max-results=N`: N rows (at most 1000, above it 400) and no next link.
	NoStore bool
	// QueryBeatsForm ignores the form of a POST _search that has a query as well (hapi-fhir #5783).
	QueryBeatsForm bool
	// ByTime orders results without `_sort` by lastUpdated; otherwise they come by id.
	ByTime bool

	// Granule is the precision of lastUpdated, in the resource and in comparisons (0: 1 ms).
	Granule time.Duration
	// OffsetZone writes UTC as +00:00, not Z.
	OffsetZone bool
	// Pretty indents every answer unless `_pretty=false`; resources are then kept compact.
	Pretty bool

	// References indexes a reference only if its target exists when the row is written.
	References bool
	// KeepUnchanged makes no new version of an update that changes nothing.
	KeepUnchanged bool
	// TransactionVersions takes versionId from a counter of transactions, so versions have gaps.
	TransactionVersions bool
	// CreatedByPost shows the first version as POST in the history, also where it was a PUT.
	CreatedByPost bool
	// Tombstone is the form of a deletion in the history.
	Tombstone Tombstone

	// Types are the types of the CapabilityStatement and the only ones that can be searched (nil: every R4 type).
	Types []string

	// IgnoreLastUpdated accepts `_lastUpdated` and does not filter by it.
	IgnoreLastUpdated bool
	// IgnoreSort accepts `_sort` and does not sort.
	IgnoreSort bool
	// NoSummaryCount refuses `_summary=count` with 400.
	NoSummaryCount bool
	// NoHistory answers every history with 405, and a vread too.
	NoHistory bool
	// NoPatientLists accepts reference parameters and `_has` and does not filter by them.
	NoPatientLists bool
	// IgnoreEverything accepts every parameter, also under strict handling, and obeys none but paging.
	IgnoreEverything bool
}

// Plain is a small, well-behaved server: `_page=n` links, milliseconds, unknown parameters ignored unless strict.
func Plain() Personality {
	return Personality{
		Name: "plain", Software: "Plain FHIR Server", Version: "1.0.0",
		DefaultCount: 20, MaxCount: 1000,
	}
}

// HAPI behaves like HAPI FHIR JPA 8.8 with its default settings.
func HAPI() Personality {
	return Personality{
		Name: "hapi", Software: "HAPI FHIR Server", Version: "8.8.0",
		DefaultCount: 20, Paging: CachedPages, PagesLive: time.Hour,
		Unknown: UnknownRefused, ReuseFor: time.Minute, NoStore: true, QueryBeatsForm: true,
		OffsetZone: true, Pretty: true, References: true, KeepUnchanged: true, CreatedByPost: true,
		Tombstone: TombstoneUndated,
	}
}

// Blaze behaves like Blaze: whole seconds, pages of a stable snapshot, version ids that are transaction numbers.
func Blaze() Personality {
	return Personality{
		Name: "blaze", Software: "Blaze", Version: "1.2.0",
		DefaultCount: 50, MaxCount: 10_000, Paging: SnapshotPages, PagesLive: time.Hour, ForwardedHost: true,
		Granule: time.Second, TransactionVersions: true,
	}
}

// Microsoft behaves like Microsoft's FHIR server on SQL: keyset tokens, clamped `_count`, outcome entries, links to a
// host that clients cannot reach.
func Microsoft() Personality {
	return Personality{
		Name: "microsoft", Software: "Microsoft FHIR Server", Version: "4.0.0",
		DefaultCount: 10, MaxCount: 1000, ReportClamp: true, Paging: KeysetPages, LinkHost: "http://internal.example",
		Unknown: UnknownReported, ByTime: true, OffsetZone: true, Tombstone: TombstoneStub,
	}
}

// granule is the precision of the server's lastUpdated.
func (p *Personality) granule() time.Duration {
	if p.Granule == 0 {
		return time.Millisecond
	}
	return p.Granule
}

// instant writes a time the way the server does.
func (p *Personality) instant(t time.Time) string {
	layout := "2006-01-02T15:04:05.000"
	if p.granule() >= time.Second {
		layout = "2006-01-02T15:04:05"
	}
	zone := "Z"
	if p.OffsetZone {
		zone = "+00:00"
	}
	return t.UTC().Format(layout) + zone
}
