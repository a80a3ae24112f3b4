package fhirtest

import "time"

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
		BodiesLater: true, Tombstone: TombstoneUndated,
	}
}

// Blaze behaves like Blaze: whole seconds, pages of a stable snapshot, version ids that are transaction numbers.
func Blaze() Personality {
	return Personality{
		Name: "blaze", Software: "Blaze", Version: "1.2.0",
		DefaultCount: 50, MaxCount: 10_000, Paging: SnapshotPages, PagesLive: time.Hour, ForwardedHost: true,
		Granule: time.Second, TransactionVersions: true, Compartments: OwnTypes,
	}
}

// Microsoft behaves like Microsoft's FHIR server on SQL: keyset tokens, clamped `_count`, outcome entries, links to a
// host that clients cannot reach.
func Microsoft() Personality {
	return Personality{
		Name: "microsoft", Software: "Microsoft FHIR Server", Version: "4.0.0",
		DefaultCount: 10, MaxCount: 1000, ReportClamp: true, Paging: KeysetPages, LinkHost: "http://internal.example",
		Unknown: UnknownReported, ByTime: true, OffsetZone: true, Tombstone: TombstoneStub,
		Compartments: OwnTypes, MaxOrValues: 2000, MaxConcurrent: 75,
	}
}

// Aidbox behaves like Aidbox as installed: microseconds, an `lt` that includes what it names, relative links, totals on
// every search, deletions that keep their body.
func Aidbox() Personality {
	return Personality{
		Name: "aidbox", Software: "Aidbox", Version: "2505",
		DefaultCount: 100, MaxCount: 1000, PageParam: "page", Links: RelativeLinks, TotalAlways: true,
		Granule: time.Microsecond, InclusiveLT: true, Tombstone: TombstoneBody, NoSystemHistory: true,
	}
}

// Medplum behaves like Medplum: cursors that stall on a full millisecond, offsets up to 10 000, estimated big totals.
func Medplum() Personality {
	return Personality{
		Name: "medplum", Software: "medplum", Version: "4.1.0",
		DefaultCount: 20, MaxCount: 1000, PageParam: "_offset", PageSkips: true, MaxOffset: 10_000,
		Cursors: true, CursorStall: true, EstimateAbove: 1_000_000, Unknown: UnknownRefused,
	}
}

// Google behaves like the Cloud Healthcare API: a late index, estimated totals, no `_summary=count`, no POST search, the
// history of single resources only. How late the index is differs; 10 s is our choice.
func Google() Personality {
	return Personality{
		Name: "google", Software: "Google Cloud Healthcare API", Version: "1.0.0",
		DefaultCount: 100, MaxCount: 1000, Paging: KeysetPages, PageParam: "_page_token",
		TotalAlways: true, EstimateUntilLast: true, NoSummaryCount: true, NoPostSearch: true,
		OffsetZone: true, HistoryInstanceOnly: true, IndexLag: 10 * time.Second,
	}
}

// HealthLake behaves like AWS HealthLake: at most 100 rows, tokens in raw padding, searches that lag by 20 s and lose a
// row for as long after an update.
func HealthLake() Personality {
	return Personality{
		Name: "healthlake", Software: "Amazon HealthLake", Version: "1.0.0",
		DefaultCount: 100, MaxCount: 100, RefuseLargeCount: true, Paging: KeysetPages, PageParam: "page", RawPadding: true,
		HistoryInstanceOnly: true, IndexLag: 20 * time.Second, HiddenOnUpdate: 20 * time.Second,
	}
}

// Firely behaves like Firely Server: 50 rows at most, newest first and by offset, compartments that are all of a foreign
// type, no Date header.
func Firely() Personality {
	return Personality{
		Name: "firely", Software: "Firely Server", Version: "6.0.0",
		DefaultCount: 10, MaxCount: 50, PageParam: "_skip", PageSkips: true, NewestFirst: true,
		OffsetZone: true, Compartments: ForeignTypesAll, NoDate: true,
	}
}

// IBM behaves like LinuxForHealth FHIR: strict, microseconds, one commit of 20 up to two minutes late, a warning when
// pages have shifted.
func IBM() Personality {
	return Personality{
		Name: "ibm", Software: "LinuxForHealth FHIR Server", Version: "5.1.1",
		DefaultCount: 10, MaxCount: 1000, ShiftWarning: true, Unknown: UnknownStrict, Granule: time.Microsecond,
		Compartments: OwnTypes, RelativeFullURL: true, CommitLag: 2 * time.Minute, LateOneIn: 20,
	}
}

// OpenMRS behaves like its fhir2 module: 100 remembered searches, each page of which runs the query again, whole seconds,
// no history.
func OpenMRS() Personality {
	return Personality{
		Name: "openmrs", Software: "OpenMRS FHIR2", Version: "2.5.0",
		DefaultCount: 10, MaxCount: 100, Paging: CachedPages, RememberSearches: 100, RerunPages: true, ForwardedHost: true,
		TotalAlways: true, Unknown: UnknownRefused, Granule: time.Second, OffsetZone: true, NoHistory: true,
	}
}

// Oracle behaves like Oracle Health Millennium: a patient is required, a row that cannot be written fails its whole page,
// no history.
func Oracle() Personality {
	return Personality{
		Name: "oracle", Software: "Oracle Health Millennium", Version: "1.0.0",
		DefaultCount: 50, MaxCount: 200, Paging: KeysetPages, PageParam: "pageContext", ByTime: true,
		RequirePatient: true, NoHas: true, NoMissing: true, NoSummaryCount: true, NoPostSearch: true, NoHistory: true,
		ProvenanceByTarget: true, RevIncludes: true,
	}
}

// Superset is a server that obeys no parameter at all, so that every answer is the whole type.
func Superset() Personality {
	return Personality{
		Name: "superset", Software: "Superset FHIR Server", Version: "1.0.0",
		DefaultCount: 20, MaxCount: 1000, IgnoreEverything: true,
	}
}

// Canvas behaves like Canvas in its links, which lack scheme, host and base path.
func Canvas() Personality {
	return Personality{
		Name: "canvas", Software: "Canvas", Version: "1.0.0",
		DefaultCount: 10, MaxCount: 100, PageParam: "_offset", PageSkips: true, Links: PathOnlyLinks, TotalAlways: true,
	}
}

// Zus behaves like Zus before May 2024 in its links, which lack the scheme.
func Zus() Personality {
	return Personality{
		Name: "zus", Software: "Zus", Version: "1.0.0",
		DefaultCount: 20, MaxCount: 1000, Paging: KeysetPages, Links: SchemelessLinks,
	}
}

// Epic behaves like Epic: a patient is required, there is no `_lastUpdated`, a search of patients ends at 100, pages live
// in a session, no history.
func Epic() Personality {
	return Personality{
		Name: "epic", Software: "Epic", Version: "November 2024",
		DefaultCount: 20, MaxCount: 1000, Paging: CachedPages, PagesLive: 10 * time.Minute, PatientCap: 100,
		RequirePatient: true, NoLastUpdated: true, NoHas: true, NoMissing: true, NoSummaryCount: true, NoHistory: true,
		RevIncludes: true,
	}
}

// All lists every personality, always in the same order. Their searches may lag and their commits be late: see
// Server.CatchUp for what a test puts in beforehand.
func All() []Personality {
	return []Personality{
		Plain(), HAPI(), Microsoft(), Blaze(), Aidbox(), Medplum(), Google(), HealthLake(), Firely(), IBM(), OpenMRS(),
		Oracle(), Superset(), Canvas(), Zus(), Epic(),
	}
}
