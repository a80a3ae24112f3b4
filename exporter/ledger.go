package exporter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ledger holds the ids that a client has of one type after the last export of a scope: level, Group and type. It is what
// deletions are found by on a server without history. The file's first line is the transaction time of that export, each
// further line an id, ascending. Only the export that goes on from that time can use it: by an earlier one deletions before
// the ledger would be missed, by a later one those of resources that came after it, and others would be reported anew.
type ledger struct {
	ids *sortedLines
	in  *os.File
}

// ledgerSuffix is how the files are called that a job has written and that are not valid before it is completed.
const ledgerSuffix = ".ledger"

// ledgerName is the file's name for a scope. The ids of another server mean something else.
func (r *run) ledgerName(typ string) string {
	kickoff := &r.job.Kickoff
	sum := sha256.Sum256([]byte(strings.Join([]string{r.Client.Base(), string(kickoff.Level), kickoff.Group, typ}, "\n")))
	return hex.EncodeToString(sum[:]) + ledgerSuffix
}

// openLedger opens a ledger and returns its transaction time. It fails with fs.ErrNotExist, wrapped, when there is none.
func openLedger(path string) (*ledger, time.Time, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, time.Time{}, local(err)
	}
	lines := bufio.NewScanner(in)
	lines.Scan()
	at, err := time.Parse(time.RFC3339, lines.Text())
	if err = errors.Join(lines.Err(), err); err != nil {
		return nil, time.Time{}, local(errors.Join(err, in.Close()))
	}
	l := &ledger{ids: &sortedLines{}, in: in}
	if err := l.ids.take(&lineRun{lines: lines}); err != nil {
		return nil, time.Time{}, errors.Join(err, l.close())
	}
	return l, at, nil
}

func (l *ledger) close() error { return local(l.in.Close()) }

// writeLedger writes a ledger into the job's folder. The file appears as a whole or not at all.
func (r *run) writeLedger(typ string, ids *sortedLines) (err error) {
	path := filepath.Join(r.dir, r.ledgerName(typ))
	part, err := os.OpenFile(path+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return local(err)
	}
	out := bufio.NewWriterSize(part, 64<<10)
	_, err = out.WriteString(r.job.TransactionTime.UTC().Format(time.RFC3339) + "\n")
	for err == nil {
		id, more, failed := ids.next()
		if err = failed; err != nil || !more {
			break
		}
		_, err = out.WriteString(id + "\n")
	}
	if err := errors.Join(err, out.Flush(), part.Sync(), part.Close()); err != nil {
		return local(err)
	}
	return local(os.Rename(path+".part", path))
}

// publishLedgers makes the ledgers of a completed job the valid ones, each unless there is a later one. What was published
// already is not there any more, so that a crash in it costs nothing.
func (e *Exporter) publishLedgers(ctx context.Context, dir string) error {
	if e.Ledger == "" {
		return nil
	}
	written, err := filepath.Glob(filepath.Join(dir, "*"+ledgerSuffix))
	if err != nil || len(written) == 0 {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := os.MkdirAll(e.Ledger, 0o700); err != nil {
		return fmt.Errorf("make ledger folder: %w", err)
	}
	for _, path := range written {
		valid := filepath.Join(e.Ledger, filepath.Base(path))
		later, err := laterLedger(valid, path)
		if err != nil {
			e.Log.ErrorContext(ctx, "ledger cannot be read, it is replaced", "error", err)
		}
		if later {
			continue
		}
		if err := os.Rename(path, valid); err != nil {
			return fmt.Errorf("publish ledger: %w", err)
		}
	}
	return nil
}

// laterLedger tells whether a ledger is of a later time than another one.
func laterLedger(path, than string) (bool, error) {
	times := [2]time.Time{}
	for i, path := range []string{path, than} {
		l, at, err := openLedger(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if err := l.close(); err != nil {
			return false, err
		}
		times[i] = at
	}
	return times[0].After(times[1]), nil
}
