package fhirtest

import "time"

// Personality is a set of habits. Start from one of the constructors and change fields; the zero value is an
// unlimited server with offset pages.
type Personality struct {
	// Name is a label for test names.
	Name string
	// Software and Version appear in the CapabilityStatement.
	Software, Version string

	// DefaultCount is the page size without `_count` (0: 20); MaxCount cuts larger ones (0: no limit).
	DefaultCount, MaxCount int
	// RefuseLargeCount answers 400 to a `_count` above MaxCount instead of cutting it (HealthLake).
	RefuseLargeCount bool
	// ReportClamp adds an informational outcome entry when `_count` was cut.
	ReportClamp bool
	// Paging is the form of the page links.
	Paging Paging
	// PageParam renames the parameter of OffsetPages ("_page") or KeysetPages ("ct").
	PageParam string
	// PageSkips counts rows, not pages, in the parameter of OffsetPages (`_skip=20`, `_offset=20`).
	PageSkips bool
	// MaxOffset answers 400 when OffsetPages would skip more rows (0: no limit; Medplum: 10 000, 1upHealth: 9990).
	MaxOffset int
	// RawPadding ends the token of KeysetPages in `==`, not escaped (HealthLake).
	RawPadding bool
	// Cursors makes OffsetPages link by a cursor where `_sort` is just `_lastUpdated`, `_count` is 20 or more and no
	// offset is given; the cursor is a time and the ids seen at it (Medplum).
	Cursors bool
	// CursorStall answers a page of Cursors with 500 when its first row and the next page's share a lastUpdated.
	CursorStall bool
	// RememberSearches bounds the results that CachedPages and SnapshotPages keep, oldest out first (0: 2000).
	RememberSearches int
	// RerunPages runs the query again for every page of CachedPages and skips: neither a list of ids nor a snapshot
	// (OpenMRS).
	RerunPages bool
	// ShiftWarning lets links of OffsetPages name the row before the page, and adds a warning outcome entry when another
	// one stands there (LinuxForHealth PR #4002).
	ShiftWarning bool
	// LoopingNext makes every next link the address of its own page.
	LoopingNext bool
	// EmptyFirst answers the first page of every result of KeysetPages without rows and with a next link, EmptyBetween
	// every second page (Microsoft on Cosmos, PR #3177).
	EmptyFirst, EmptyBetween bool
	// PagesLive is how long CachedPages and SnapshotPages answer (0: for ever); afterwards 410.
	PagesLive time.Duration
	// LinkHost ("http://host") replaces scheme and host of the request in every link.
	LinkHost string
	// Links is the form of the self and next links.
	Links Links
	// ForwardedHost builds links from X-Forwarded-Host and X-Forwarded-Proto where the client sends them.
	ForwardedHost bool
	// ResultCap ends a result after so many rows with neither link nor error (0: never); `_total=accurate` then
	// tells the cap, `_summary=count` the truth.
	ResultCap int
	// PatientCap ends a search of Patient after so many rows with an outcome entry of severity error and code 4127 in it
	// (0: never; Epic).
	PatientCap int
	// TotalAlways counts on every search unless `_total=none` (Aidbox, OpenMRS).
	TotalAlways bool
	// EstimateAbove makes a total above it an estimate, also under `_total=accurate` (0: never; Medplum: 1 000 000).
	EstimateAbove int
	// EstimateUntilLast makes the total of every page but the last an estimate (Google).
	EstimateUntilLast bool

	// Unknown is the treatment of unknown search parameters.
	Unknown Unknown
	// ReuseFor gives the result of an equal, earlier search for so long, unless Cache-Control forbids it.
	ReuseFor time.Duration
	// NoStore honours `Cache-Control: no-store, max-results=N`: N rows (at most 1000, above it 400) and no next link.
	NoStore bool
	// QueryBeatsForm ignores the form of a POST _search that has a query as well (hapi-fhir #5783).
	QueryBeatsForm bool
	// NoPostSearch answers POST _search with 405 (Google: form bodies are not supported).
	NoPostSearch bool
	// MaxOrValues answers 400 to a parameter with more values in its list, MaxURLBytes 414 to a longer path and query
	// (0: no limits).
	MaxOrValues, MaxURLBytes int
	// MaxConcurrent answers 429 with Retry-After and x-ms-retry-after-ms when more requests are under way (0: no limit;
	// Microsoft on SQL: 75).
	MaxConcurrent int
	// ByTime orders results without `_sort` by lastUpdated; otherwise they come by id.
	ByTime bool
	// NewestFirst orders results without `_sort` by lastUpdated, newest first (Firely).
	NewestFirst bool
	// Compartments is the treatment of `Patient/{id}/{Type}`.
	Compartments CompartmentSearch
	// RequirePatient answers 400 to a search of any type but Patient that has none of patient, subject and _id (Epic,
	// Oracle Millennium).
	RequirePatient bool
	// ProvenanceByTarget lets a search of Provenance by its target alone pass RequirePatient (Oracle Millennium).
	ProvenanceByTarget bool
	// RevIncludes offers `_revinclude=Provenance:target`, which is otherwise an unknown parameter.
	RevIncludes bool
	// NoHas makes `_has`, also in a chain, an unknown parameter; NoMissing answers 400 to the modifier `:missing`.
	NoHas, NoMissing bool
	// NoLastUpdated makes `_lastUpdated` an unknown parameter, and so `_sort` by it (Epic).
	NoLastUpdated bool

	// OutcomeFirst puts an outcome entry of this severity in front of every searchset.
	OutcomeFirst string
	// LinkEntries leaves the resource out of every entry of a searchset: only its fullUrl tells what matched.
	LinkEntries bool
	// NoDate sends no Date header (Firely).
	NoDate bool

	// Granule is the precision of lastUpdated, in the resource and in comparisons (0: 1 ms; Aidbox: 1 µs).
	Granule time.Duration
	// InclusiveLT lets `lt X` find all of the time that X names at its precision: `lt2024-01-01T00:00:01Z` finds that
	// whole second (Aidbox without BOX_SEARCH_FHIR__COMPARISONS).
	InclusiveLT bool
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
	// RelativeFullURL writes Type/id as fullUrl of history entries (LinuxForHealth #2026).
	RelativeFullURL bool

	// IndexLag lets a search, not a read or a history, see a write only so long after it was made: until then it finds
	// the version before (Google, HealthLake).
	IndexLag time.Duration
	// HistoryLag is the same for a history (HealthLake was once measured at minutes).
	HistoryLag time.Duration
	// HiddenOnUpdate lets a search find neither version for so long after an update, unless the client sends the header
	// `x-amz-fhir-history-consistency-level: strong` (HealthLake).
	HiddenOnUpdate time.Duration
	// CommitLag lets nobody see a write before a random time up to CommitLag has gone by, though it is stamped when it
	// begins (LinuxForHealth: 120 s). It strikes one of LateOneIn writes (0: each). PutAt and Load are never late.
	CommitLag time.Duration
	LateOneIn int
	// Seed is the seed of everything random.
	Seed uint64
	// BodiesLater loads the bodies of a page after its rows were found, so a row may show a later version than the one
	// that matched. See Server.BeforeBodies.
	BodiesLater bool
	// PoisonOutcome leaves poisoned rows out of a page and adds an outcome entry of this severity; empty: any page with
	// one is 500. See Server.Poison.
	PoisonOutcome string

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
	// NoSystemHistory answers the system's history with 405 (Aidbox), HistoryInstanceOnly also that of a type (Google,
	// HealthLake).
	NoSystemHistory, HistoryInstanceOnly bool
	// NoPatientLists accepts reference parameters and `_has` and does not filter by them.
	NoPatientLists bool
	// IgnoreEverything accepts every parameter, also under strict handling, and obeys none but paging.
	IgnoreEverything bool
}
