package state

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Audit is what an audit trail says of one thing that was done. It holds no content, no id of a resource and no value of a
// search.
type Audit struct {
	Time time.Time `json:"time"`
	// What is "kick-off", "cancel", "download", "attachment", "completed", "failed" or "expired".
	What string `json:"what"`
	// Request is the id of the request, empty for what none has caused.
	Request string `json:"request,omitempty"`
	// Status is the HTTP status of the answer, or the one that polls of a failed export get.
	Status int `json:"status,omitempty"`
	// Aborted tells that the answer broke off before its end, or before its status where there is none.
	Aborted bool `json:"aborted,omitempty"`
	// Job is empty where there is none, or none that the client may know of.
	Job string `json:"job,omitempty"`
	// Client is who asked, or for whom the export was done, by its name in its token; empty where nothing says it.
	Client string `json:"client,omitempty"`
	Level  Level  `json:"level,omitempty"`
	// Group is GroupHash of the Group's id.
	Group string `json:"group,omitempty"`
	// Types are those that an accepted kick-off named, or those of which a completed export has files.
	Types []string `json:"types,omitempty"`
	// File is the name of an output file; Range tells that a part of it was sent.
	File  string `json:"file,omitempty"`
	Range bool   `json:"range,omitempty"`
	// SHA256 is File.SHA256 of the whole file, whatever was sent of it.
	SHA256 string `json:"sha256,omitempty"`
	// Files, Resources and Bytes are the numbers of a completed export; Bytes of a download are those that were sent.
	Files     int   `json:"files,omitempty"`
	Resources int64 `json:"resources,omitempty"`
	Bytes     int64 `json:"bytes,omitempty"`
	// Hashes are File.SHA256 of the files of a completed export, by their names.
	Hashes map[string]string `json:"hashes,omitempty"`
}

// GroupHash stands for a Group's id in an audit trail: the SHA-256 of the id in hexadecimal digits, empty for none.
func GroupHash(id string) string { return AuditHash(id) }

// AuditHash stands for a text in an audit trail by which it can be looked for and not be known: its SHA-256 in hexadecimal digits,
// empty for none.
func AuditHash(text string) string {
	if text == "" {
		return ""
	}
	hash := sha256.Sum256([]byte(text))
	return hex.EncodeToString(hash[:])
}
