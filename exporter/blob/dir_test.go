package blob_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/blob/blobtest"
)

func newDir(t *testing.T) (*blob.Dir, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "files")
	d, err := blob.NewDir(root)
	if err != nil {
		t.Fatal(err)
	}
	return d, root
}

func TestDir(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Bucket {
		d, root := newDir(t)
		t.Cleanup(func() { wantNoParts(t, root) })
		return d
	})
}

func TestDirFilesAreReadableByTheirOwnerAlone(t *testing.T) {
	d, root := newDir(t)
	if err := d.Put(t.Context(), "job/Patient.1.ndjson", blob.Media{}, strings.NewReader("x\n")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		root:                       fs.ModeDir | 0o700,
		filepath.Join(root, "job"): fs.ModeDir | 0o700,
		filepath.Join(root, "job/Patient.1.ndjson"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != want {
			t.Errorf("mode of %s: got %v, want %v", filepath.Base(path), got, want)
		}
	}
}

// Ensure a file can be served with Range, below a prefix too.
func TestDirOpensFiles(t *testing.T) {
	d, _ := newDir(t)
	b := blob.WithPrefix(d, "/a/b/")
	if err := b.Put(t.Context(), "job/x.ndjson", blob.Media{}, strings.NewReader("x\n")); err != nil {
		t.Fatal(err)
	}
	body, err := b.Open(t.Context(), "job/x.ndjson", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := body.(*os.File); !ok {
		t.Errorf("stream: got %T, want *os.File", body)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

func TestDirDoesNotOpenFolders(t *testing.T) {
	d, _ := newDir(t)
	if err := d.Put(t.Context(), "job/x.ndjson", blob.Media{}, strings.NewReader("x\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(t.Context(), "job", 0); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestDirDeleteRemovesEmptyFoldersButNotTheRoot(t *testing.T) {
	d, root := newDir(t)
	for _, name := range []string{"a/job/1.ndjson", "a/job/2.ndjson"} {
		if err := d.Put(t.Context(), name, blob.Media{}, strings.NewReader("x\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Delete(t.Context(), "a/job/1.ndjson"); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, filepath.Join(root, "a/job"), "2.ndjson")
	if err := d.Delete(t.Context(), "a/job/2.ndjson"); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, root)
}

// Ensure what a killed process left of a file goes with its job's files: it holds
// health data and no record names it.
func TestDirDeleteRemovesWhatACrashLeft(t *testing.T) {
	d, root := newDir(t)
	if err := d.Put(t.Context(), "job/1.ndjson", blob.Media{}, strings.NewReader("x\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "job/.2.ndjson.part"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), "job/1.ndjson"); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, root)
}

func TestDirPutTakesOverWhatACrashLeft(t *testing.T) {
	d, root := newDir(t)
	if err := os.Mkdir(filepath.Join(root, "job"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "job/.1.ndjson.part"), []byte("a long half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "job/1.ndjson", blob.Media{}, strings.NewReader("x\n")); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(root, "job/1.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(content), "x\n"; got != want {
		t.Errorf("content: got %q, want %q", got, want)
	}
	wantEntries(t, filepath.Join(root, "job"), "1.ndjson")
}

// whole is a body that is one file.
type whole struct {
	io.ReadSeeker
	file *os.File
}

func (w whole) File() *os.File { return w.file }

// Ensure a file that does not change any more is kept as it is, and never written to, also where a crash left it under a
// name in the making or under both.
func TestDirKeepsAWholeFileItself(t *testing.T) {
	for name, names := range map[string][]string{
		"first time": nil, "after a crash": {".1.ndjson.part"}, "done already": {"1.ndjson"}, "done, and begun again": {".1.ndjson.part", "1.ndjson"},
	} {
		t.Run(name, func(t *testing.T) {
			d, root := newDir(t)
			folder := filepath.Join(root, "job")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "spool")
			if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.Link(path, filepath.Join(folder, name)); err != nil {
					t.Fatal(err)
				}
			}
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = file.Close() }) // it was only read
			put := func(body io.ReadSeeker, want string) os.FileInfo {
				t.Helper()
				if err := d.Put(t.Context(), "job/1.ndjson", blob.Media{}, body); err != nil {
					t.Fatal(err)
				}
				wantEntries(t, folder, "1.ndjson")
				content, err := os.ReadFile(filepath.Join(folder, "1.ndjson"))
				if err != nil || string(content) != want {
					t.Errorf("got %q, want %q: %v", content, want, err)
				}
				info, err := os.Stat(filepath.Join(folder, "1.ndjson"))
				if err != nil {
					t.Fatal(err)
				}
				return info
			}
			before, err := file.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if !os.SameFile(before, put(whole{file, file}, "x\n")) {
				t.Error("it was copied")
			}
			for _, name := range names {
				if err := os.Link(path, filepath.Join(folder, name)); err != nil && !errors.Is(err, fs.ErrExist) {
					t.Fatal(err)
				}
			}
			if os.SameFile(before, put(whole{strings.NewReader("other\n"), nil}, "other\n")) {
				t.Error("it was written to")
			}
			if content, err := os.ReadFile(path); err != nil || string(content) != "x\n" {
				t.Errorf("the file is %q now: %v", content, err)
			}
		})
	}
}

func TestDirRefusesNamesOfUnfinishedFiles(t *testing.T) {
	d, _ := newDir(t)
	if err := d.Put(t.Context(), "job/.1.ndjson.part", blob.Media{}, strings.NewReader("x")); err == nil {
		t.Error("got nil, want an error")
	}
}

// Ensure a folder that went away is an error and not made again: it may be a
// volume that is not mounted.
func TestDirDoesNotMakeALostRootAgain(t *testing.T) {
	d, root := newDir(t)
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	err := blob.Check(t.Context(), d, nil)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("check: got %v, want fs.ErrNotExist", err)
	}
	if err != nil && strings.Contains(err.Error(), root) {
		t.Errorf("error shows the server's path: %v", err)
	}
	if err := d.Put(t.Context(), "job/1.ndjson", blob.Media{}, strings.NewReader("x")); err == nil {
		t.Error("put: got nil, want an error")
	}
}

func TestNewDirFailsOnAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blob.NewDir(path); err == nil {
		t.Error("got nil, want an error")
	}
}

func TestDirHasNoLinks(t *testing.T) {
	d, _ := newDir(t)
	if _, _, err := d.SignURL(t.Context(), "job/x", time.Hour); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want errors.ErrUnsupported", err)
	}
}

// Ensure putting one file of a job while another one is deleted never loses the
// folder between.
func TestDirPutAndDeleteInOneFolderAtOnce(t *testing.T) {
	d, root := newDir(t)
	var wg sync.WaitGroup
	for _, name := range []string{"job/1.ndjson", "job/2.ndjson", "job/3.ndjson"} {
		wg.Go(func() {
			for range 50 {
				if err := d.Put(t.Context(), name, blob.Media{}, strings.NewReader("x")); err != nil {
					t.Error(err)
				}
				if err := d.Delete(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantEntries(t, root)
}

// rewound calls a function when it is rewound, which is before its part file is made.
type rewound struct {
	io.ReadSeeker
	before func()
}

func (r rewound) Seek(offset int64, whence int) (int64, error) {
	r.before()
	return r.ReadSeeker.Seek(offset, whence)
}

// Ensure the folder of a Put that has just begun stays when the last file in it is deleted.
func TestDirPutWhileTheLastFileIsDeleted(t *testing.T) {
	d, root := newDir(t)
	if err := d.Put(t.Context(), "job/1.ndjson", blob.Media{}, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	body := rewound{strings.NewReader("y"), func() {
		if err := d.Delete(t.Context(), "job/1.ndjson"); err != nil {
			t.Error(err)
		}
	}}
	if err := d.Put(t.Context(), "job/2.ndjson", blob.Media{}, body); err != nil {
		t.Error(err)
	}
	wantEntries(t, filepath.Join(root, "job"), "2.ndjson")
}

func wantEntries(t *testing.T, folder string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("entries of %s: got %q, want %q", filepath.Base(folder), got, want)
	}
}

func wantNoParts(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(entry.Name(), ".part") {
			t.Errorf("unfinished file left: %s", entry.Name())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
