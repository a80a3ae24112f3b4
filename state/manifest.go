package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// Manifest is the answer to a completed export: version 3 of the guide, with the status that clients of the original
// product read. Arrays are always there.
type Manifest struct {
	// Status is absent from manifests of several pages, which have to be alike in it from the first one on.
	Status              string `json:"status,omitempty"`
	TransactionTime     string `json:"transactionTime"`
	Request             string `json:"request"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	// OutputOrganizedBy is the type by whose instances the output is organised, absent where it is not.
	OutputOrganizedBy string         `json:"outputOrganizedBy,omitempty"`
	Output            []ManifestFile `json:"output"`
	Deleted           []ManifestFile `json:"deleted"`
	Error             []ManifestFile `json:"error"`
	// Link leads to the next page, where there is one.
	Link []ManifestLink `json:"link,omitempty"`
	// Extension holds the proofs under "completeness", one a type of the export. It is absent where there are several pages.
	Extension *ManifestExtension `json:"extension,omitempty"`
}

// ManifestLink leads to another manifest of the same export.
type ManifestLink struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

// ManifestExtension is the extension of a manifest: a plain JSON object (Bulk Data guide, section "Response - Complete
// Status", versions 1 to 3).
type ManifestExtension struct {
	// Completeness holds one account for each type that was read, also for those without a resource.
	Completeness []Proof `json:"completeness"`
}

// ManifestFile is one file of a manifest.
type ManifestFile struct {
	// Type is absent where the output is organised.
	Type string `json:"type,omitempty"`
	URL  string `json:"url"`
	// ContinuesInFile is the url of the file in which the last block of this one goes on.
	ContinuesInFile string `json:"continuesInFile,omitempty"`
	Count           int64  `json:"count"`
	// Extension repeats the account of the file's type, absent for error files.
	Extension *FileExtension `json:"extension,omitempty"`
}

// FileExtension is the extension of an item of a manifest.
type FileExtension struct {
	Completeness *Proof `json:"completeness"`
}

// instantLayout is FHIR's instant in UTC.
const instantLayout = "2006-01-02T15:04:05.000Z"

// EncodeManifest writes the manifest of all of a completed job in the shape that its kick-off chose; address gives the url of
// each file, and token tells whether these need the access token.
func EncodeManifest(job *Job, files []File, token bool, address func(File) string) ([]byte, error) {
	return encode(job, files, proofsByType(job.Proof), token, address, "completed", nil)
}

// EncodePage is EncodeManifest for one page of a job with Pages: a manifest of the files of its types, the last one of all other
// files. In all else but the link the pages of a job are alike (Bulk Data guide, section "Manifest Link"), so that no page
// says what is not known with the first one. next is where the next page is read, empty while there is none.
func EncodePage(job *Job, number int, files []File, token bool, address func(File) string, next string) ([]byte, error) {
	proofs := job.Proof
	if number <= len(job.Pages) {
		proofs = job.Pages[number-1].Proof
	}
	paged := *job
	paged.Proof = nil
	var link []ManifestLink
	if next != "" {
		link = []ManifestLink{{Relation: "next", URL: next}}
	}
	return encode(&paged, PageFiles(job, number, files), proofsByType(proofs), token, address, "", link)
}

// PageFiles are those of a job's files that stand in a page.
func PageFiles(job *Job, number int, files []File) []File {
	return slices.DeleteFunc(slices.Clone(files), func(file File) bool {
		page := len(job.Pages) + 1
		if shown := job.PageOf(file.Type); shown > 0 && file.Kind == Output {
			page = shown
		}
		return page != number
	})
}

func proofsByType(proofs []Proof) map[string]*Proof {
	byType := make(map[string]*Proof, len(proofs))
	for i := range proofs {
		byType[proofs[i].Type] = &proofs[i]
	}
	return byType
}

func encode(
	job *Job, files []File, proofs map[string]*Proof, token bool, address func(File) string, status string, link []ManifestLink,
) ([]byte, error) {
	var manifest any
	switch job.Kickoff.Shape {
	case "", Shape3:
		m := newManifest(job, files, proofs, address)
		m.Status, m.RequiresAccessToken, m.Link = status, token, link
		manifest = m
	case Shape4:
		m := newManifest4(job, files, proofs, address)
		m.RequiresAccessToken, m.Link = token, link
		manifest = m
	default:
		return nil, fmt.Errorf("manifest of shape %s is not known", job.Kickoff.Shape)
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // addresses hold "&", and people copy them out of the manifest
	err := encoder.Encode(manifest)
	return body.Bytes(), err
}

func newManifest(job *Job, files []File, proofs map[string]*Proof, address func(File) string) Manifest {
	m := Manifest{
		TransactionTime: job.TransactionTime.UTC().Format(instantLayout),
		Request:         job.Kickoff.Request,
		Output:          []ManifestFile{},
		Deleted:         []ManifestFile{},
		Error:           []ManifestFile{},

		OutputOrganizedBy: job.Kickoff.OrganizeBy,
	}
	if len(job.Proof) > 0 {
		m.Extension = &ManifestExtension{Completeness: job.Proof}
	}
	for _, file := range files {
		entry := ManifestFile{Type: file.Type, URL: address(file), Count: file.Count}
		switch file.Kind {
		case Error:
			m.Error = append(m.Error, entry)
		case Deleted:
			m.Deleted = append(m.Deleted, entry)
		default:
			if job.Kickoff.OrganizeBy != "" {
				entry.Type, entry.ContinuesInFile = "", continuation(file, files, address)
			} else if proof := proofs[file.Type]; proof != nil {
				entry.Extension = &FileExtension{proof}
			}
			m.Output = append(m.Output, entry)
		}
	}
	return m
}

// continuation is the address of the file in which another's last block goes on, empty where there is none.
func continuation(file File, files []File, address func(File) string) string {
	n := slices.IndexFunc(files, func(other File) bool { return other.Name == file.ContinuesIn })
	if n < 0 {
		return ""
	}
	return address(files[n])
}
