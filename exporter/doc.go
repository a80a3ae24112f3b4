// Package exporter does the export jobs: it fixes the transaction time, plans slices, reads them from the upstream into
// spool files, adds what changed before it was read, counts every slice again, puts the finished files into the bucket
// and removes what has expired.
//
// An [Exporter] owns all work behind the 202. Its nouns are the job's run, the slice's walk, the spool file with the id
// index beside it, and the cohort, which is the membership of a Group at the transaction time.
//
// Promises: the output is the state of the server at the transaction time, each resource once; a job resumes after a
// crash from its last checkpoints with the same result; every row is filtered again on our side by type, time and
// compartment, so that a parameter that the server ignored never widens an export; an empty cohort exports nothing; a
// hole fails the job. Memory does not grow with pages or files.
package exporter
