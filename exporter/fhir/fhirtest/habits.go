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
	// UnknownStrict answers 400 unless the client asked for lenient handling: then it drops it in silence (LinuxForHealth).
	UnknownStrict
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
	// TombstoneBody carries the last body with the tag "deleted", and `request.url` is just the type (Aidbox).
	TombstoneBody
)

// Links is the form of the self and next links.
type Links int

const (
	// AbsoluteLinks are whole addresses, as the specification asks for.
	AbsoluteLinks Links = iota
	// BasePathLinks begin with the base path: "/fhir/Patient?x=1".
	BasePathLinks
	// PathOnlyLinks begin with a slash and leave the base path out: "/Patient?x=1" (Canvas).
	PathOnlyLinks
	// RelativeLinks count from the base: "Patient?x=1" (Aidbox without a base URL).
	RelativeLinks
	// QueryLinks are the query alone: "?x=1".
	QueryLinks
	// SchemelessLinks are addresses without a scheme: "host/fhir/Patient?x=1" (Zus until 2024).
	SchemelessLinks
	// DoublePortLinks name the port twice: "http://host:80:80/fhir/Patient" (hapi-fhir-jpaserver-starter #258).
	DoublePortLinks
	// BaselessLinks are whole addresses that lost the base path (hapi-fhir #2885).
	BaselessLinks
)

// CompartmentSearch says what `Patient/{id}/{Type}` answers.
type CompartmentSearch int

const (
	// NoCompartments answers 405.
	NoCompartments CompartmentSearch = iota
	// OwnTypes searches the types of the compartment and answers 400 for others.
	OwnTypes
	// ForeignTypesAll searches the types of the compartment, and gives *every* row of any other type (Firely).
	ForeignTypesAll
)

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
	switch {
	case p.granule() >= time.Second:
		layout = "2006-01-02T15:04:05"
	case p.granule() < time.Millisecond:
		layout = "2006-01-02T15:04:05.000000"
	}
	zone := "Z"
	if p.OffsetZone {
		zone = "+00:00"
	}
	return t.UTC().Format(layout) + zone
}
