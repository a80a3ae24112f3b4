package state

import (
	"context"

	"go.etcd.io/bbolt"
)

// Restart takes a job back to where its kick-off left it: there are no slices and files any more, and the transaction time will
// be fixed again. The caller has removed the files from the bucket. It fails with ErrFinal when the job does not run any more.
func (s *Store) Restart(ctx context.Context, id string) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, job *Job) error {
		for _, bucket := range [][]byte{slicesBucket, filesBucket} {
			if err := deletePrefix(tx.Bucket(bucket), id); err != nil {
				return err
			}
		}
		return put(tx.Bucket(jobsBucket), []byte(id), &Job{
			ID: id, Folder: job.Folder, Status: Accepted, Accepted: job.Accepted,
			Kickoff: job.Kickoff, Issues: job.Kickoff.Ignored, AttachmentKey: job.AttachmentKey,
		})
	})
}
