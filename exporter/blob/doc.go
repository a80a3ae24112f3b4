// Package blob is the contract between an export and the place where its
// finished files go.
//
// A [Bucket] is that place: a folder ([Dir]), an S3 bucket (package s3blob) or a
// Google Cloud Storage bucket (package gcsblob). An object is one finished
// output file under a slash-separated name such as
// "20261124T104900Z_2f1c.../Patient.1.ndjson"; [WithPrefix] puts all names below
// a path of the bucket.
//
// Every bucket promises the same, and blobtest.Run proves it: an object is
// visible whole or not at all, whatever failed while it was written; writing a
// name again replaces the object; deleting what is not there is no error.
//
// Caveats: objects hold health data, so a back end never makes them public, and
// no error text carries a link, a credential or a byte of content. A bucket has
// no listing: what was written is remembered by the job, not by the store.
package blob
