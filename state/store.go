package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"sidecar/state/failpoint"
)

// formatVersion is the version of the file's layout. A change that an older binary cannot read raises it.
const formatVersion = 1

var (
	// ErrNotFound is returned when there is no such job, or it was cancelled, and when there is no such profile.
	ErrNotFound = errors.New("no such job")
	// ErrFinal is returned when a step is refused because the job has ended.
	ErrFinal = errors.New("job has ended")
	// ErrBusy is returned by Create when as many jobs run as may.
	ErrBusy = errors.New("an export is running")
	// ErrTooMany is what a kick-off fails with when as many exports of its client are kept as may be.
	ErrTooMany = errors.New("too many exports of the client are kept")
	// ErrLocked is returned by Open when another process has the file.
	ErrLocked = errors.New("state file is in use by another process")
	// ErrNewer is returned by Open when a newer binary wrote the file.
	ErrNewer = errors.New("state file was written by a newer version")
)

// DiskFull tells whether an error is that of a disk without room, or of a user's share of it. A change of the Store
// that failed with it is not made.
func DiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

var (
	metaBucket     = []byte("meta")
	jobsBucket     = []byte("jobs")
	slicesBucket   = []byte("slices")
	filesBucket    = []byte("files")
	profilesBucket = []byte("profiles")
	versionKey     = []byte("version")
	linkKeyKey     = []byte("linkKey")
)

// Store keeps jobs, slices, files and profiles of servers in one bbolt file. Its methods may be called from any goroutine.
//
// Keys are ordered: "<job>" in jobs, "<job>/<seq>" in slices, "<job>/<name>" in files. Profiles have keys of their owner's.
type Store struct {
	db *bbolt.DB
}

// Open opens or creates the file at path and takes its lock. It fails with ErrLocked when another process holds the
// file, and with ErrNewer when the file's format is newer than this binary.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 500 * time.Millisecond, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open state %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	if err := db.Update(prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("open state %s: %w", path, err), db.Close())
	}
	return &Store{db: db}, nil
}

// prepare creates the buckets and checks the format's version.
func prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{metaBucket, jobsBucket, slicesBucket, filesBucket, profilesBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(metaBucket)
	raw := meta.Get(versionKey)
	if raw == nil {
		return meta.Put(versionKey, []byte(strconv.Itoa(formatVersion)))
	}
	version, err := strconv.Atoi(string(raw))
	if err != nil {
		return fmt.Errorf("format version: %w", err)
	}
	if version > formatVersion {
		return fmt.Errorf("format %d, this binary knows %d: %w", version, formatVersion, ErrNewer)
	}
	return nil
}

// Close releases the file.
func (s *Store) Close() error { return s.db.Close() }

// Create stores a new job, unless limit jobs run already: then it fails with ErrBusy. Count and write are one
// transaction, so that two kick-offs cannot both take the last slot.
func (s *Store) Create(ctx context.Context, job *Job, limit int) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		running := 0
		err := eachJob(tx, func(other *Job) error {
			if other.Running() {
				running++
			}
			return nil
		})
		if err != nil {
			return err
		}
		if running >= limit {
			return ErrBusy
		}
		return put(tx.Bucket(jobsBucket), []byte(job.ID), job)
	})
}

// Get returns the job. It fails with ErrNotFound also for a cancelled one.
func (s *Store) Get(ctx context.Context, id string) (*Job, error) {
	var job *Job
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		var err error
		job, err = getJob(tx, id)
		return err
	})
	return job, err
}

// List returns all jobs, cancelled ones among them, in no particular order.
func (s *Store) List(ctx context.Context) ([]*Job, error) {
	var jobs []*Job
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		return eachJob(tx, func(job *Job) error {
			jobs = append(jobs, job)
			return nil
		})
	})
	return jobs, err
}

// Update changes a job: change reads it, decides and edits it, and what it leaves is written in the same transaction.
// An error of change leaves the job as it was and is returned. A cancelled job is not found.
func (s *Store) Update(ctx context.Context, id string, change func(*Job) error) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		job, err := getJob(tx, id)
		if err != nil {
			return err
		}
		if err := change(job); err != nil {
			return err
		}
		return put(tx.Bucket(jobsBucket), []byte(id), job)
	})
}

// PutPlan stores the slices of a job and marks it as planned, together with what change does to it. It fails with
// ErrFinal when the job does not run.
func (s *Store) PutPlan(ctx context.Context, id string, slices []Slice, change func(*Job)) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, job *Job) error {
		if err := deletePrefix(tx.Bucket(slicesBucket), id); err != nil {
			return err
		}
		for i := range slices {
			if err := put(tx.Bucket(slicesBucket), sliceKey(id, slices[i].Seq), &slices[i]); err != nil {
				return err
			}
		}
		job.Planned = true
		change(job)
		return put(tx.Bucket(jobsBucket), []byte(id), job)
	})
}

// Slices returns the slices of a job in the order of their numbers.
func (s *Store) Slices(ctx context.Context, id string) ([]Slice, error) {
	var slices []Slice
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		return each(tx.Bucket(slicesBucket), id, func(slice Slice) error {
			slices = append(slices, slice)
			return nil
		})
	})
	return slices, err
}

// Checkpoint stores how far slices were read, together. The caller has synced each slice's files to the sizes in it. It
// fails with ErrFinal when the job does not run any more.
func (s *Store) Checkpoint(ctx context.Context, id string, slices ...*Slice) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, _ *Job) error {
		for _, slice := range slices {
			if err := put(tx.Bucket(slicesBucket), sliceKey(id, slice.Seq), slice); err != nil {
				return err
			}
		}
		return nil
	})
}

// Allot records a file before it is put into the bucket and gives it its number, so that a crash in between leaves
// neither an object that nobody knows nor two of one name. It fails with ErrFinal when the job does not run any more.
func (s *Store) Allot(ctx context.Context, id string, file File) (File, error) {
	err := s.updateRunning(ctx, id, func(tx *bbolt.Tx, _ *Job) error {
		n, prefix := 1, string(fileKey(id, file.Type+"."))
		cursor := tx.Bucket(filesBucket).Cursor()
		for key, _ := cursor.Seek([]byte(prefix)); strings.HasPrefix(string(key), prefix); key, _ = cursor.Next() {
			known, err := strconv.Atoi(strings.TrimSuffix(string(key[len(prefix):]), ".ndjson"))
			if err != nil {
				return fmt.Errorf("file %s: %w", key[len(id)+1:], err)
			}
			n = max(n, known+1)
		}
		file.Name = FileName(file.Type, n)
		return put(tx.Bucket(filesBucket), fileKey(id, file.Name), &file)
	})
	return file, err
}

// FileName is the name of the nth file of a type.
func FileName(typ string, n int) string { return fmt.Sprintf("%s.%d.ndjson", typ, n) }

// PutFile records a change of a file that has its number. It fails with ErrFinal when the job does not run any more.
func (s *Store) PutFile(ctx context.Context, id string, file File) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, _ *Job) error {
		return put(tx.Bucket(filesBucket), fileKey(id, file.Name), &file)
	})
}

// DropFile forgets a file that was removed from the bucket. It fails with ErrFinal when the job does not run any more.
func (s *Store) DropFile(ctx context.Context, id, name string) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, _ *Job) error { return tx.Bucket(filesBucket).Delete(fileKey(id, name)) })
}

// MarkStored records that the bucket has the file, together with the slices whose spool it took. It fails with
// ErrFinal when the job does not run any more.
func (s *Store) MarkStored(ctx context.Context, id string, file File, slices []Slice) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, _ *Job) error {
		for i := range slices {
			if err := put(tx.Bucket(slicesBucket), sliceKey(id, slices[i].Seq), &slices[i]); err != nil {
				return err
			}
		}
		file.Stored = true
		return put(tx.Bucket(filesBucket), fileKey(id, file.Name), &file)
	})
}

// Files returns the files of a job in the order of their names, those not yet stored among them.
func (s *Store) Files(ctx context.Context, id string) ([]File, error) {
	var files []File
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		return each(tx.Bucket(filesBucket), id, func(file File) error {
			files = append(files, file)
			return nil
		})
	})
	return files, err
}

// File returns one file of a job, or ErrNotFound.
func (s *Store) File(ctx context.Context, id, name string) (File, error) {
	var file File
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		raw := tx.Bucket(filesBucket).Get(fileKey(id, name))
		if raw == nil {
			return ErrNotFound
		}
		return json.Unmarshal(raw, &file)
	})
	return file, err
}

// Restart takes a job back to where its kick-off left it. The caller has removed its files from the bucket. It fails with
// ErrFinal when the job does not run any more.
func (s *Store) Restart(ctx context.Context, id string) error {
	return s.updateRunning(ctx, id, func(tx *bbolt.Tx, job *Job) error {
		return errors.Join(deletePrefix(tx.Bucket(slicesBucket), id), deletePrefix(tx.Bucket(filesBucket), id), put(tx.Bucket(jobsBucket), []byte(id), job.kickedOff()))
	})
}

// Remove deletes the record of a job with its slices and files. A job that is not there is not an error.
func (s *Store) Remove(ctx context.Context, id string) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		return errors.Join(deletePrefix(tx.Bucket(slicesBucket), id), deletePrefix(tx.Bucket(filesBucket), id), tx.Bucket(jobsBucket).Delete([]byte(id)))
	})
}

// storedProfile is a profile with the time at which it was put.
type storedProfile struct {
	At      time.Time
	Profile json.RawMessage
}

// PutProfile stores what was learned of a server, raw JSON, in place of what was stored under the key before.
func (s *Store) PutProfile(ctx context.Context, key string, raw []byte) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		return put(tx.Bucket(profilesBucket), []byte(key), storedProfile{time.Now().UTC(), raw})
	})
}

// Profile returns what PutProfile stored under the key last, and when; ErrNotFound where there is nothing.
func (s *Store) Profile(ctx context.Context, key string) (raw []byte, at time.Time, err error) {
	var stored storedProfile
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		raw := tx.Bucket(profilesBucket).Get([]byte(key))
		if raw == nil {
			return ErrNotFound
		}
		return json.Unmarshal(raw, &stored)
	})
	return stored.Profile, stored.At, err
}

// LinkKey returns the key that signs links to files: 32 random bytes, made when it is asked for first and kept from then on.
func (s *Store) LinkKey(ctx context.Context) ([]byte, error) {
	var key []byte
	err := s.update(ctx, func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if key = bytes.Clone(meta.Get(linkKeyKey)); key != nil {
			return nil
		}
		key = randomKey()
		return meta.Put(linkKeyKey, key)
	})
	return key, err
}

// Ping tells whether the store can still write.
func (s *Store) Ping(ctx context.Context) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		return tx.Bucket(metaBucket).Put([]byte("ping"), []byte(time.Now().UTC().Format(time.RFC3339)))
	})
}

func (s *Store) view(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.db.View(fn)
}

func (s *Store) update(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	failpoint.Pass("before commit")
	err := s.db.Update(fn)
	failpoint.Pass("after commit")
	return err
}

// updateRunning is update for what only a running job may do.
func (s *Store) updateRunning(ctx context.Context, id string, fn func(*bbolt.Tx, *Job) error) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		job, err := getJob(tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && !job.Running() {
			return ErrFinal
		}
		if err != nil {
			return err
		}
		return fn(tx, job)
	})
}

func getJob(tx *bbolt.Tx, id string) (*Job, error) {
	raw := tx.Bucket(jobsBucket).Get([]byte(id))
	if raw == nil {
		return nil, ErrNotFound
	}
	var job Job
	if err := json.Unmarshal(raw, &job); err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if job.Status == Cancelled {
		return nil, ErrNotFound
	}
	return &job, nil
}

func eachJob(tx *bbolt.Tx, fn func(*Job) error) error {
	return tx.Bucket(jobsBucket).ForEach(func(_, raw []byte) error {
		var job Job
		if err := json.Unmarshal(raw, &job); err != nil {
			return fmt.Errorf("read job: %w", err)
		}
		return fn(&job)
	})
}

// each decodes the values below a job, in the order of their keys.
func each[T any](bucket *bbolt.Bucket, id string, fn func(T) error) error {
	prefix := id + "/"
	cursor := bucket.Cursor()
	for key, raw := cursor.Seek([]byte(prefix)); key != nil && string(key[:min(len(key), len(prefix))]) == prefix; key, raw = cursor.Next() {
		var value T
		if err := json.Unmarshal(raw, &value); err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
		if err := fn(value); err != nil {
			return err
		}
	}
	return nil
}

func deletePrefix(bucket *bbolt.Bucket, id string) error {
	prefix := id + "/"
	var keys [][]byte
	cursor := bucket.Cursor()
	for key, _ := cursor.Seek([]byte(prefix)); key != nil && string(key[:min(len(key), len(prefix))]) == prefix; key, _ = cursor.Next() {
		keys = append(keys, key)
	}
	for _, key := range keys {
		if err := bucket.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func put(bucket *bbolt.Bucket, key []byte, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return bucket.Put(key, raw)
}

// sliceKey sorts by number.
func sliceKey(id string, seq int) []byte {
	return binary.BigEndian.AppendUint32([]byte(id+"/"), uint32(seq))
}

func fileKey(id, name string) []byte { return []byte(id + "/" + name) }
