package state

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"regexp"
)

// binaryPath is the path of a Binary or of a version of one, below the FHIR base. What is no read of these is never signed:
// a link opens it with the sidecar's own rights, and whoever may write an Attachment chooses where it leads. No id begins with
// an underscore or a dot, so that neither "_search" nor ".." is one.
var binaryPath = regexp.MustCompile(`^Binary/[A-Za-z0-9-][A-Za-z0-9._-]*(?:/_history/[A-Za-z0-9-][A-Za-z0-9._-]*)?$`)

// NewAttachmentKey makes a key for Job.AttachmentKey.
func NewAttachmentKey() []byte { return randomKey() }

func randomKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it does not fail (crypto/rand)
	return key
}

// AttachmentAddress is where clients read the Binary at a path below the FHIR base without a token, as long as the job is
// there. It is always the same for the same job. ok is false where the job signs none and where the path is no Binary's.
func (j *Job) AttachmentAddress(path string) (address string, ok bool) {
	if len(j.AttachmentKey) == 0 || !binaryPath.MatchString(path) {
		return "", false
	}
	mac := base64.RawURLEncoding.EncodeToString(j.attachmentMAC(path))
	return j.Kickoff.Base + "/$export-attachment/" + j.ID + "/" + mac + "/" + path, true
}

// OpensAttachment tells whether mac is the one that AttachmentAddress gave to a path.
func (j *Job) OpensAttachment(mac, path string) bool {
	if len(j.AttachmentKey) == 0 || !binaryPath.MatchString(path) {
		return false
	}
	got, err := base64.RawURLEncoding.Strict().DecodeString(mac)
	return err == nil && hmac.Equal(got, j.attachmentMAC(path))
}

// attachmentMAC binds a path to the job: to its key, and to its id, should a key ever be shared.
func (j *Job) attachmentMAC(path string) []byte {
	mac := hmac.New(sha256.New, j.AttachmentKey)
	mac.Write([]byte(j.ID + "/" + path)) // it does not fail (hash.Hash)
	return mac.Sum(nil)
}
