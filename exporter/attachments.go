package exporter

import (
	"sidecar/exporter/fhir"
	"sidecar/state"
)

// Attachments says how clients read the Binary that an Attachment names.
type Attachments string

const (
	// SignedAttachments are read by a link of the job, without a token and with the sidecar's own credentials.
	SignedAttachments Attachments = "signed"
	// ServerAttachments are read at the server's own address, with whatever it asks of the client.
	ServerAttachments Attachments = "server"
)

// attachmentKey is the key of a new job, empty where it signs no attachments. So a job goes through with what held at its
// kick-off, and gives an attachment the same link in each of its rows.
func (e *Exporter) attachmentKey(kickoff *state.Kickoff) []byte {
	if e.Attachments == SignedAttachments && !kickoff.ServerAttachments {
		return state.NewAttachmentKey()
	}
	return nil
}

// newOutput returns how the job's resources are written, with these elements. It is the same after a restart.
func (r *run) newOutput(elements []string) (*fhir.Output, error) {
	output, err := fhir.NewOutput(r.profile.FHIRVersion, r.job.Kickoff.Base, elements)
	if err == nil && len(r.job.AttachmentKey) > 0 {
		output.LinkBinaries(r.Client.Bases(), r.job.AttachmentAddress)
	}
	return output, err
}
