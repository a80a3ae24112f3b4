package state

import (
	"slices"
	"time"
)

// Status is the place of a job in its life.
type Status string

const (
	// Accepted is set by the kick-off, before the client sees the 202. The exporter leaves it when it begins to work on
	// the job; a crash leaves it, and the next start begins the work.
	Accepted Status = "accepted"
	// InProgress is set by the exporter once the transaction time is fixed. The exporter leaves it for Completed or
	// Failed, a DELETE for Cancelled; a crash leaves it, and the next start goes on from the last checkpoints.
	InProgress Status = "in-progress"
	// Completed is set by the exporter in the transaction that makes the manifest readable. Only retention or a DELETE
	// ends it.
	Completed Status = "completed"
	// Failed is set by the exporter with a Failure that says why. Only retention or a DELETE ends it.
	Failed Status = "failed"
	// Cancelled is set by a DELETE, or by retention. From then on the job is gone for every client; the record stays as
	// a tombstone until the exporter has removed the objects, also over a crash.
	Cancelled Status = "cancelled"
)

// Level is one of the three places at which the Bulk Data guide defines $export.
type Level string

// The levels of the guide, section "Bulk Data Kick-off Request".
const (
	System  Level = "system"
	Patient Level = "patient"
	Group   Level = "group"
)

// Kickoff is what a client asked for, parsed and checked.
type Kickoff struct {
	Level Level `json:"level"`
	// Group is the id of the Group at Group level, otherwise empty.
	Group string `json:"group,omitempty"`
	// Types are the values of _type, sorted and without repeats; empty means every type of the level.
	Types []string `json:"types,omitempty"`
	// Since is the exclusive lower bound of _since, with the client's own precision; zero means none.
	Since time.Time `json:"since,omitzero"`
	// Until is the exclusive upper bound of _until, with the client's own precision; zero means none.
	Until time.Time `json:"until,omitzero"`
	// Patients are the ids of the parameter patient, sorted and without repeats; empty means every Patient of the level.
	Patients []string `json:"patients,omitempty"`
	// Filters are the values of _typeFilter, without repeats. Several of one type are alternatives.
	Filters []TypeFilter `json:"filters,omitempty"`
	// Elements are the values of _elements, "Type.element" or "element"; empty means all elements.
	Elements []string `json:"elements,omitempty"`
	// Associated are the values of includeAssociatedData.
	Associated []string `json:"associated,omitempty"`
	// OrganizeBy is the resource type of organizeOutputBy; empty means files of one type each.
	OrganizeBy string `json:"organizeBy,omitempty"`
	// PartialManifests is allowPartialManifests.
	PartialManifests bool `json:"partialManifests,omitempty"`
	// MinFileBytes and MaxFileBytes are _minimumFileSize and _maximumFileSize in bytes; 0 leaves it to the configuration.
	MinFileBytes int64 `json:"minFileBytes,omitempty"`
	MaxFileBytes int64 `json:"maxFileBytes,omitempty"`
	// Gzip tells that _outputFormat asked for compressed files.
	Gzip bool `json:"gzip,omitempty"`
	// Shape is the release of the guide whose manifest the client is answered with; empty means Shape3.
	Shape Shape `json:"shape,omitempty"`
	// SeparateStatus tells that the client prefers separate-export-status.
	SeparateStatus bool `json:"separateStatus,omitempty"`
	// Ignored are the remarks on parameters that were ignored because the client prefers handling=lenient.
	Ignored []Issue `json:"ignored,omitempty"`
	// Client names the client that asked, as its tokens do; empty where nothing names it. Only this one sees the job.
	Client string `json:"client,omitempty"`
	// Guarded tells that the kick-off needed a token, so that status and files need one, too.
	Guarded bool `json:"guarded,omitempty"`
	// ServerAttachments tells that Attachments lead to the server, because not every Binary is for this client, or because its
	// files need a token.
	ServerAttachments bool `json:"serverAttachments,omitempty"`
	// Withheld are the types that this client may not read: they are no part of the export, whatever refers to them. Sorted.
	Withheld []string `json:"withheld,omitempty"`
	// Request is the public URL of the kick-off with its query, as the manifest repeats it.
	Request string `json:"request"`
	// Base is the public FHIR base of the kick-off, without a slash at its end.
	Base string `json:"base"`
}

// Organizable are the types by whose instances an output can be organised.
var Organizable = []string{"Group", "Organization", "Patient", "Practitioner"}

// TypeFilter is one value of _typeFilter: only resources of the type that match the query belong to the output.
type TypeFilter struct {
	Type string `json:"type"`
	// Query is the part after the question mark, in the client's own encoding.
	Query string `json:"query"`
}

// Shape is the form of a manifest, named by the release of the Bulk Data guide that defines it.
type Shape string

// The two forms that are spoken.
const (
	Shape3 Shape = "3.0"
	Shape4 Shape = "4.0"
)

// Failure says why a job failed, in words that a client may see.
type Failure struct {
	// Status is the HTTP status of later status requests, 4xx or 5xx.
	Status int `json:"status"`
	// Code is a code of FHIR's issue-type value set.
	Code string `json:"code"`
	// Text holds no resource content, id or search value.
	Text string `json:"text"`
}

// Issue is one remark on a finished export: an OperationOutcome line of the manifest's error file.
type Issue struct {
	// Severity is information, warning or error.
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Text     string `json:"text"`
}

// Job is one export.
type Job struct {
	// ID is a random UUID (version 4): whoever has no other authorisation has this one.
	ID string `json:"id"`
	// Folder is "<datetime>_<uuid>", the folder of the job's files in the bucket.
	Folder  string  `json:"folder"`
	Status  Status  `json:"status"`
	Kickoff Kickoff `json:"kickoff"`

	// AttachmentKey signs the addresses at which clients read attachments without a token; fixed at the kick-off, empty where
	// none is signed. It ends with the job, and every link with it.
	AttachmentKey []byte `json:"attachmentKey,omitempty"`

	// Accepted is the sidecar's time of the kick-off.
	Accepted time.Time `json:"accepted"`
	// TransactionTime is T, a whole second of the upstream's clock; fixed once, with InProgress. A job that begins anew has a new
	// one, which no client has seen before.
	TransactionTime time.Time `json:"transactionTime,omitzero"`
	// ReadAt is T by the sidecar's clock as it was then. It is kept for people: that clock may be set at any time, so nothing
	// is decided by it.
	ReadAt time.Time `json:"readAt,omitzero"`
	// Types are the types that the job reads, fixed with the plan.
	Types []string `json:"types,omitempty"`
	// Referenced are the types of which the job holds what its resources refer to, fixed with the plan.
	Referenced []string `json:"referenced,omitempty"`
	// Anew tells that what the job had read was removed at a start: it goes back to where its kick-off left it, see Store.Restart.
	Anew bool `json:"anew,omitempty"`
	// Planned tells that the slices stand in the store.
	Planned bool `json:"planned,omitempty"`
	// Pages are the parts of the output that can be fetched before the rest, in the order in which they came. A page never
	// changes, and neither do the files of its types.
	Pages []Page `json:"pages,omitempty"`
	// Finished is when the job was completed or failed; retention counts from it.
	Finished time.Time `json:"finished,omitzero"`

	Failure *Failure `json:"failure,omitempty"`
	Issues  []Issue  `json:"issues,omitempty"`
	// Proof says for each type what was counted and what was written, fixed when the job is completed.
	Proof []Proof `json:"proof,omitempty"`
}

// kickedOff is the job as its kick-off made it.
func (j *Job) kickedOff() *Job {
	return &Job{
		ID: j.ID, Folder: j.Folder, Status: Accepted, Kickoff: j.Kickoff, AttachmentKey: j.AttachmentKey, Accepted: j.Accepted,
		Issues: j.Kickoff.Ignored,
	}
}

// Page is what a manifest shows while others are not there yet: all output files of some types.
type Page struct {
	Types []string `json:"types"`
	Proof []Proof  `json:"proof"`
}

// PageOf is the number of the page that has a type's files, from 1; 0 where none has.
func (j *Job) PageOf(typ string) int {
	return 1 + slices.IndexFunc(j.Pages, func(page Page) bool { return slices.Contains(page.Types, typ) })
}

// HasPage tells whether there is a manifest page of a number. The one behind Pages has all that they have not, when the
// job is completed.
func (j *Job) HasPage(number int) bool {
	return number >= 1 && (number <= len(j.Pages) || number == len(j.Pages)+1 && j.Status == Completed)
}

// Shows tells whether a file stands in a manifest that clients can read.
func (j *Job) Shows(file File) bool {
	return file.Stored && (j.Status == Completed || file.Kind == Output && j.PageOf(file.Type) > 0)
}

// Verdict says how far the completeness of a slice or a type was shown.
type Verdict string

// From the strongest to the weakest.
const (
	// Proved: the server's count equals what was met, less what its history shows to have left the window since.
	Proved Verdict = "proved"
	// Counted: the server counts no more than was met. It has no history that could say what has left.
	Counted Verdict = "counted"
	// Paged: the server's own pages held as many rows as it counted before and after.
	Paged Verdict = "paged"
	// Unverified: the server does not count.
	Unverified Verdict = "unverified"
	// Incomplete: rows are missing, and the operator allows that.
	Incomplete Verdict = "incomplete"
)

// Proof is the account of one type.
type Proof struct {
	Type string `json:"type"`
	// Expected is how many rows were to be met in the export's window: the server's count after the reading, and those that
	// were met and have left the window since. -1 where it does not count. It counts before our filter of compartment and _since.
	Expected int64 `json:"expected"`
	// Met is how many rows the crawl met, before the filter.
	Met int64 `json:"met"`
	// Exported is how many resources the output holds, Repaired how many of them were taken from the history.
	Exported int64 `json:"exported"`
	Repaired int64 `json:"repaired"`
	// Replaced is how many resources were taken out again, because a write showed after the settle pause.
	Replaced int64 `json:"replaced,omitempty"`
	// Deleted is how many deletions are reported.
	Deleted int64 `json:"deleted,omitempty"`
	// Departed is how many resources belonged to the export at _since and have left it by an edit: they exist, so that no
	// deletion names them. -1 where that cannot be known. Resources that left with a member are not among them.
	Departed int64   `json:"departed,omitempty"`
	Verdict  Verdict `json:"verdict"`
}

// Hole is a part of a type that the server does not give, whatever it is asked.
type Hole struct {
	Type string `json:"type"`
	// From and To bound lastUpdated: [From, To). Both are zero where the hole is the type or has no known place in time.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// History tells that it is the type's history that is missing: what changed while the export ran is not known.
	History bool `json:"history,omitempty"`
	// Rows is how many rows the hole has by the server's count, -1 where that is not known.
	Rows int64 `json:"rows"`
	// Reason is a code of FHIR's issue-type value set: exception, forbidden, incomplete, not-supported, structure,
	// too-long, transient, or what the server's own outcome says.
	Reason string `json:"reason"`
}

// Running tells whether the job takes a slot.
func (j *Job) Running() bool { return j.Status == Accepted || j.Status == InProgress }

// Strategy is how the rows of a slice are read.
type Strategy string

const (
	// Keyset asks for first pages only, each beginning at the last row's time ("time keyset").
	Keyset Strategy = "keyset"
	// Bisect asks for windows that are halved until each fits into one page, where the server does not sort.
	Bisect Strategy = "bisect"
	// Paging follows the server's next links and is verified by a count.
	Paging Strategy = "paging"
	// History reads the type's history after the crawl and adds what changed before it was read.
	History Strategy = "history"
	// Referenced holds resources that the others refer to, read by their ids.
	Referenced Strategy = "referenced"
	// Deletions holds the type's deletions since _since, as transaction Bundles.
	Deletions Strategy = "deletions"
)

// Slice is the unit of planning, of parallel work and of resuming: one query window over one type.
type Slice struct {
	Seq      int      `json:"seq"`
	Type     string   `json:"type"`
	Strategy Strategy `json:"strategy"`
	// From and To bound lastUpdated: [From, To), whole seconds (To may carry a millisecond), UTC.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Lists are the reference parameters that are asked for lists of members, one after another; empty means that the
	// type is searched without them. "_id" asks for the Patients themselves.
	Lists []string `json:"lists,omitempty"`
	// Filters are the queries of _typeFilter for the type, which are asked one after another as well: a row has to match one.
	Filters []string `json:"filters,omitempty"`
	// Newcomers tells that the slice reads what is older than _since, of the members who have come since then.
	Newcomers bool `json:"newcomers,omitempty"`
	// ListSize is the number of members in one list.
	ListSize int `json:"listSize,omitempty"`
	// Counted is the server's count of the window when it was planned, -1 where it was not asked.
	Counted int64 `json:"counted"`

	// Query is the number of the list that is being read.
	Query int `json:"query,omitempty"`
	// Cursor is where the next first page begins; zero means at From.
	Cursor time.Time `json:"cursor,omitzero"`
	// Boundary holds the ids met since the beginning of the cursor's second.
	Boundary []string `json:"boundary,omitempty"`
	// Met counts the rows of the window that the crawl saw, Written those that passed the filter.
	Met     int64 `json:"met"`
	Written int64 `json:"written"`
	// Shown is the largest Met so far: a slice that is read again does not take progress back.
	Shown int64 `json:"shown"`
	// SpoolSize and IndexSize are the durable sizes in bytes of the slice's open spool file and id index.
	SpoolSize int64 `json:"spoolSize"`
	IndexSize int64 `json:"indexSize"`
	// SpoolFrom is where the rows begin in the open spool file that no output file has. SpoolRows is how many they are.
	SpoolFrom int64 `json:"spoolFrom,omitempty"`
	SpoolRows int64 `json:"spoolRows"`
	// SpoolFile is the number of the open spool file: what remained of an earlier one was copied into it.
	SpoolFile int `json:"spoolFile,omitempty"`
	// Reread tells that the slice was begun again: rows that it meets may be in the index already.
	Reread bool `json:"reread,omitempty"`
	// Open tells that the window is kept on our side only, because the server refuses to be asked for one.
	Open bool `json:"open,omitempty"`
	// Post tells that searches are sent as forms, because the server takes no longer addresses.
	Post bool `json:"post,omitempty"`
	Done bool `json:"done,omitempty"`

	// MetSize is the durable size in bytes of the file of met rows, which begins anew with each reading of the slice.
	MetSize int64 `json:"metSize,omitempty"`
	// RefsSize is the durable size in bytes of the file of what the slice's rows refer to.
	RefsSize int64 `json:"refsSize,omitempty"`
	// AboutSize is the durable size in bytes of the file of what the slice's Provenance is about, where only the latest is wanted.
	AboutSize int64 `json:"aboutSize,omitempty"`
	// Left is how many met rows the history showed to have left the window, Expected the count of the proof with them.
	Left     int64   `json:"left,omitempty"`
	Expected int64   `json:"expected,omitempty"`
	Verdict  Verdict `json:"verdict,omitempty"`
	// Holes are the windows that could not be read. What lies around them was.
	Holes []Hole `json:"holes,omitempty"`
	// Dropped are rows that do not belong to the output after all, by their number in the slice's index, ascending.
	Dropped []int64 `json:"dropped,omitempty"`
	// Superseded is how many of Dropped are Provenance of which there is a later one.
	Superseded int64 `json:"superseded,omitempty"`
	// Departed is Proof.Departed, on the slice of strategy History.
	Departed int64 `json:"departed,omitempty"`
}

// Kind tells in which array of the manifest a file is listed.
type Kind string

// The arrays of the manifest.
const (
	Output  Kind = "output"
	Deleted Kind = "deleted"
	Error   Kind = "error"
)

// File is one object of a job in the bucket.
type File struct {
	// Name is "<Type>.<n>.ndjson", without the job's folder.
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Type is the type of the resources, or the one by whose instances the output is organised.
	Type string `json:"type"`
	// Count is the number of resources; the headers of blocks are none.
	Count int64 `json:"count"`
	// Bytes is the size of the rows, Compressed that of the object in the bucket where it is gzip, 0 where it is not.
	Bytes      int64 `json:"bytes"`
	Compressed int64 `json:"compressed,omitempty"`
	// SHA256 is the hash of the rows before any compression, in hexadecimal digits; empty where no audit trail was kept when the
	// bucket got them.
	SHA256 string `json:"sha256,omitempty"`
	// ContinuesIn is the name of the file in which the last block of this one goes on, where the output is organised; empty
	// where the block ends here.
	ContinuesIn string `json:"continuesIn,omitempty"`
	// Stored tells that the bucket has the whole object. A file that is not stored is put again by the next start.
	Stored bool `json:"stored"`
	// Slices are the numbers of the slices whose open rows, one after another, are the content.
	Slices []int `json:"slices,omitempty"`
	// LastSize and LastRows tell how much of the last of these slices' open rows is in the file, in bytes and lines of its spool
	// file; 0 means all of it.
	LastSize int64 `json:"lastSize,omitempty"`
	LastRows int64 `json:"lastRows,omitempty"`
	// First is the number in its slice's index of the first row of a file that was made while the slice was read.
	First int64 `json:"first,omitempty"`
	// Sealed tells that the rows that were dropped are not in the file: it was made when that was known, or rewritten since.
	// Count says then no more which rows of the index it holds, so that nothing may be taken out of it again.
	Sealed bool `json:"sealed,omitempty"`
	// Rewritten tells that the content is a local copy without rows that were dropped, no more the slices' spool files. One
	// without a row is to be removed.
	Rewritten bool `json:"rewritten,omitempty"`
}
