package state

// completenessURL names the extension that holds a Proof.
const completenessURL = "urn:x-bulk-export-sidecar:completeness"

// manifest4 is a manifest as the ballot of the guide's version 4 has it: the errors are called outcome, the request is not
// repeated, extensions are FHIR's own. It has no status: the guide means to use that name for something else.
type manifest4 struct {
	ManifestType        string         `json:"manifestType"`
	TransactionTime     string         `json:"transactionTime"`
	RequiresAccessToken bool           `json:"requiresAccessToken"`
	OutputFormat        string         `json:"outputFormat"`
	OutputOrganizedBy   string         `json:"outputOrganizedBy,omitempty"`
	Output              []file4        `json:"output"`
	Deleted             []file4        `json:"deleted"`
	Outcome             []file4        `json:"outcome"`
	Link                []ManifestLink `json:"link,omitempty"`
	Extension           []extension4   `json:"extension,omitempty"`
}

// file4 is one file of a manifest4. Type is given for those of the output only, unless that is organised.
type file4 struct {
	Type            string `json:"type,omitempty"`
	URL             string `json:"url"`
	ContinuesInFile string `json:"continuesInFile,omitempty"`
	Count           int64  `json:"count"`
	// FileSize is the size of the NDJSON in bytes, whatever coding it is sent with.
	FileSize      int64           `json:"fileSize"`
	CountSeverity []severityCount `json:"countSeverity,omitempty"`
	Extension     []extension4    `json:"extension,omitempty"`
}

type severityCount struct {
	Code  string `json:"code"`
	Count int64  `json:"count"`
}

// extension4 is a FHIR Extension: a value, or extensions of its own.
type extension4 struct {
	URL       string       `json:"url"`
	Code      string       `json:"valueCode,omitempty"`
	Integer   *int64       `json:"valueInteger,omitempty"`
	Extension []extension4 `json:"extension,omitempty"`
}

func newManifest4(job *Job, files []File, proofs map[string]*Proof, address func(File) string) manifest4 {
	m := manifest4{
		ManifestType:    OperationDefinition(job.Kickoff.Level, Shape4),
		TransactionTime: job.TransactionTime.UTC().Format(instantLayout),
		OutputFormat:    "application/fhir+ndjson",
		Output:          []file4{},
		Deleted:         []file4{},
		Outcome:         []file4{},

		OutputOrganizedBy: job.Kickoff.OrganizeBy,
	}
	for i := range job.Proof {
		m.Extension = append(m.Extension, completeness4(&job.Proof[i]))
	}
	for _, file := range files {
		entry := file4{URL: address(file), Count: file.Count, FileSize: file.Bytes}
		switch file.Kind {
		case Error:
			entry.CountSeverity = countSeverity(job.Issues)
			m.Outcome = append(m.Outcome, entry)
		case Deleted:
			m.Deleted = append(m.Deleted, entry)
		default:
			if job.Kickoff.OrganizeBy != "" {
				entry.ContinuesInFile = continuation(file, files, address)
				m.Output = append(m.Output, entry)
				continue
			}
			entry.Type = file.Type
			if proof := proofs[file.Type]; proof != nil {
				entry.Extension = []extension4{completeness4(proof)}
			}
			m.Output = append(m.Output, entry)
		}
	}
	return m
}

// OperationDefinition is the canonical address of the guide's definition of a level's export. That of Shape3 has no version:
// it is the one that clients of every release look for.
func OperationDefinition(level Level, shape Shape) string {
	canonical := "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
	switch level {
	case Patient:
		canonical += "patient-export"
	case Group:
		canonical += "group-export"
	default:
		canonical += "export"
	}
	if shape == Shape4 {
		canonical += "|4.0.0-ballot"
	}
	return canonical
}

// countSeverity counts the remarks, each of which is an OperationOutcome, from the worst to the mildest.
func countSeverity(issues []Issue) []severityCount {
	var counts []severityCount
	for _, severity := range []string{"fatal", "error", "warning", "information"} {
		n := int64(0)
		for _, issue := range issues {
			if issue.Severity == severity {
				n++
			}
		}
		if n > 0 {
			counts = append(counts, severityCount{severity, n})
		}
	}
	return counts
}

// completeness4 is a Proof as an Extension. What is not known is absent.
func completeness4(proof *Proof) extension4 {
	e := extension4{URL: completenessURL, Extension: []extension4{{URL: "type", Code: proof.Type}}}
	for _, number := range []struct {
		name   string
		value  int64
		always bool
	}{
		{"expected", proof.Expected, true},
		{"met", proof.Met, true},
		{"exported", proof.Exported, true},
		{"repaired", proof.Repaired, true},
		{"replaced", proof.Replaced, false},
		{"deleted", proof.Deleted, false},
		{"departed", proof.Departed, false},
	} {
		if number.value > 0 || number.value == 0 && number.always {
			e.Extension = append(e.Extension, extension4{URL: number.name, Integer: &number.value})
		}
	}
	e.Extension = append(e.Extension, extension4{URL: "verdict", Code: string(proof.Verdict)})
	return e
}
