// Package e2e proves the built sidecar against servers that none of us wrote: HAPI FHIR JPA (built from hapi/), an S3
// gateway and a Google Cloud Storage server. Its tests do not skip: what is missing on a machine is an error that says
// what to install. It is a module of its own, so that the product's stays lean.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	hapiFolder       = "hapi"
	hapiStartTimeout = 3 * time.Minute
	hapiStopTimeout  = 2 * time.Minute
)

// hapiServer is the HAPI FHIR server of the whole test run, loaded with records. It is started by the first test
// that asks for it and stopped by TestMain.
type hapiServer struct {
	base string // FHIR base, without a slash at the end
	data *dataset

	cmd    *exec.Cmd
	exited chan error
	stderr string
}

var theHAPI struct {
	once   sync.Once
	server *hapiServer
	folder string
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := stopSharedHAPI(); err != nil {
		fmt.Fprintf(os.Stderr, "stop HAPI: %v\n", err)
		code = 1
	}
	if err := removeSidecarBinaries(); err != nil {
		fmt.Fprintf(os.Stderr, "remove the sidecar's binaries: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// hapi gives the loaded server. It fails the test where the server cannot be built, loaded or started: a machine
// without Java must not make these tests pass.
func hapi(t *testing.T) *hapiServer {
	t.Helper()
	theHAPI.once.Do(func() { theHAPI.server, theHAPI.err = startSharedHAPI() })
	if theHAPI.err != nil {
		t.Fatalf("start HAPI: %v", theHAPI.err)
	}
	return theHAPI.server
}

func startSharedHAPI() (*hapiServer, error) {
	var err error
	theHAPI.folder, err = os.MkdirTemp("", "sidecar-e2e-hapi-")
	if err != nil {
		return nil, fmt.Errorf("make the database folder: %w", err)
	}
	return startLoadedHAPI(theHAPI.folder)
}

// ownHAPI gives a loaded server that ends with the test: for tests after which the records are not what they were.
func ownHAPI(t *testing.T) *hapiServer {
	t.Helper()
	server, err := startLoadedHAPI(t.TempDir())
	if err != nil {
		t.Fatalf("start HAPI: %v", err)
	}
	t.Cleanup(func() {
		if err := server.stop(); err != nil {
			t.Errorf("stop HAPI: %v", err)
		}
	})
	return server
}

// startLoadedHAPI starts a server in a folder on a copy of the loaded database, because the tests write.
func startLoadedHAPI(folder string) (*hapiServer, error) {
	if err := buildHAPI(); err != nil {
		return nil, err
	}
	data, err := readDataset()
	if err != nil {
		return nil, err
	}
	cached, err := loadedDatabase(data)
	if err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(folder, "hapi.mv.db"), cached); err != nil {
		return nil, err
	}
	began := time.Now()
	server, err := startHAPI(folder)
	if err != nil {
		return nil, err
	}
	say("HAPI started on the loaded database in %v", time.Since(began).Round(time.Millisecond))
	server.data = data
	return server, nil
}

func stopSharedHAPI() error {
	var errs []error
	if theHAPI.server != nil {
		errs = append(errs, theHAPI.server.stop())
	}
	if theHAPI.folder != "" {
		errs = append(errs, os.RemoveAll(theHAPI.folder))
	}
	return errors.Join(errs...)
}

// hapiBuilt is written when a build has ended well: a jar alone says nothing of the folder lib, which comes behind it. Its time is that
// at which the build began.
var hapiBuilt = filepath.Join(hapiFolder, "target", "built")

// buildHAPI runs Maven where HAPI is not built, or older than what it is made of.
func buildHAPI() error {
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed, run: apt-get install openjdk-17-jdk-headless maven", tool)
		}
	}
	fresh, err := hapiIsFresh()
	if err != nil {
		return err
	}
	if fresh {
		return nil
	}
	began := time.Now()
	// Maven would keep half of a file for its being new.
	if err := os.RemoveAll(filepath.Dir(hapiBuilt)); err != nil {
		return fmt.Errorf("remove an earlier build of HAPI: %w", err)
	}
	if err := install(hapiFolder, "mvn", "-q", "-B", "package"); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(hapiBuilt, nil, 0o600), os.Chtimes(hapiBuilt, began, began)); err != nil {
		return fmt.Errorf("note the build of HAPI: %w", err)
	}
	say("HAPI built in %v", time.Since(began).Round(time.Millisecond))
	return nil
}

func hapiIsFresh() (bool, error) {
	built, err := os.Stat(hapiBuilt)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the build of HAPI: %w", err)
	}
	for _, source := range append(hapiSources(), filepath.Join(hapiFolder, "src", "main", "java", "hapi", "Validate.java")) {
		info, err := os.Stat(source)
		if err != nil {
			return false, fmt.Errorf("look at the sources of HAPI: %w", err)
		}
		if info.ModTime().After(built.ModTime()) {
			return false, nil
		}
	}
	return true, nil
}

// hapiSources are those of the server: the database that it loads depends on them.
func hapiSources() []string {
	return []string{
		filepath.Join(hapiFolder, "pom.xml"),
		filepath.Join(hapiFolder, "src", "main", "java", "hapi", "Main.java"),
	}
}

// javaFlags are those of HAPI's virtual machine, as hapi/README.md explains them: it is to be ready soon.
var javaFlags = []string{"-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}

// startHAPI starts a server on the H2 file "hapi" of a folder and waits until it accepts requests.
func startHAPI(folder string) (*hapiServer, error) {
	jar, err := filepath.Abs(filepath.Join(hapiFolder, "target", "hapi.jar"))
	if err != nil {
		return nil, fmt.Errorf("find hapi.jar: %w", err)
	}
	server := &hapiServer{exited: make(chan error, 1), stderr: filepath.Join(folder, "stderr")}
	server.cmd = exec.Command("java", append(slices.Clone(javaFlags), "-jar", jar, "--port=0", "--db="+filepath.Join(folder, "hapi"))...)
	stdout, err := server.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("open the output of HAPI: %w", err)
	}
	stderr, err := os.Create(server.stderr)
	if err != nil {
		return nil, fmt.Errorf("keep the log of HAPI: %w", err)
	}
	server.cmd.Stderr = stderr
	if err := errors.Join(server.cmd.Start(), stderr.Close()); err != nil {
		return nil, fmt.Errorf("start java: %w", err)
	}
	ready := make(chan string, 1)
	go server.follow(stdout, ready)
	select {
	case server.base = <-ready:
		return server, nil
	case err := <-server.exited:
		if err == nil {
			err = errors.New("exit status 0")
		}
		return nil, fmt.Errorf("HAPI ended before it was ready: %w\n%s", err, server.log())
	case <-time.After(hapiStartTimeout):
		return nil, errors.Join(fmt.Errorf("HAPI was not ready after %v\n%s", hapiStartTimeout, server.log()), server.cmd.Process.Kill())
	}
}

// follow reads standard output to its end, so that the server never blocks on it, and reaps the process.
func (s *hapiServer) follow(stdout io.Reader, ready chan<- string) {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if base, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
			ready <- base
		}
	}
	s.exited <- errors.Join(lines.Err(), s.cmd.Wait())
}

// log is the end of what the server wrote to standard error.
func (s *hapiServer) log() string {
	text, err := os.ReadFile(s.stderr)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

func (s *hapiServer) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop HAPI: %w", err)
	}
	select {
	case err := <-s.exited:
		return err
	case <-time.After(hapiStopTimeout):
		return errors.Join(fmt.Errorf("HAPI did not stop within %v", hapiStopTimeout), s.cmd.Process.Kill())
	}
}

// loadedDatabase gives the H2 file that holds the records, out of the cache or made now.
func loadedDatabase(data *dataset) (string, error) {
	cached, err := cachePath(data)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(cached); err == nil {
		say("HAPI database of %d records taken from %s", len(data.rows), cached)
		return cached, nil
	}
	fresh, err := os.MkdirTemp("", "sidecar-e2e-load-")
	if err != nil {
		return "", fmt.Errorf("make the database folder: %w", err)
	}
	err = loadDatabase(fresh, data)
	if err == nil {
		err = keepInCache(cached, filepath.Join(fresh, "hapi.mv.db"), data.name)
	}
	if err := errors.Join(err, os.RemoveAll(fresh)); err != nil {
		return "", err
	}
	return cached, nil
}

// keepInCache drops earlier databases of the same set, which would otherwise pile up with each change of the extras.
func keepInCache(cached, database, name string) error {
	folder := filepath.Dir(cached)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	older, err := filepath.Glob(filepath.Join(folder, name+"-*"))
	if err != nil {
		return fmt.Errorf("list the cache: %w", err)
	}
	for _, old := range older {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("tidy the cache: %w", err)
		}
	}
	if err := copyFile(cached+".part", database); err != nil {
		return err
	}
	if err := os.Rename(cached+".part", cached); err != nil {
		return fmt.Errorf("keep the loaded database: %w", err)
	}
	return nil
}

// cachePath names the file for exactly this server with exactly these records.
func cachePath(data *dataset) (string, error) {
	folder := os.Getenv("E2E_CACHE")
	if folder == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			// No home folder: the cache then lives as long as the machine's temporary files.
			user = os.TempDir()
		}
		folder = filepath.Join(user, "sidecar-e2e")
	}
	sum := sha256.New()
	for _, source := range hapiSources() {
		content, err := os.ReadFile(source)
		if err != nil {
			return "", fmt.Errorf("read the sources of HAPI: %w", err)
		}
		sum.Write(content)
	}
	sum.Write(fmt.Appendf(nil, "%s %d %s", loaderVersion, len(data.rows), data.hash()))
	return filepath.Join(folder, data.name+"-"+hex.EncodeToString(sum.Sum(nil))[:24]+".mv.db"), nil
}

func loadDatabase(folder string, data *dataset) error {
	server, err := startHAPI(folder)
	if err != nil {
		return err
	}
	began := time.Now()
	loadErr := data.load(context.Background(), server.base)
	say("%d records loaded in %v", len(data.rows), time.Since(began).Round(time.Millisecond))
	if loadErr != nil {
		loadErr = fmt.Errorf("%w\n%s", loadErr, server.log())
	}
	// SIGTERM makes HAPI compact the file, so the stop belongs to the load.
	if err := errors.Join(loadErr, server.stop()); err != nil {
		return err
	}
	return os.Remove(server.stderr)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return errors.Join(fmt.Errorf("copy the database: %w", err), in.Close())
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close(), in.Close()); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	return nil
}

// read is a GET of a path below the base, the body of the answer compacted by HAPI itself.
func (s *hapiServer) read(ctx context.Context, path string) ([]byte, error) {
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/"+path+separator+"_pretty=false", nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	request.Header.Set("Cache-Control", "no-cache")
	return do(request)
}

// put writes a resource and keeps it among the expected ones. It gives the lastUpdated that HAPI stamped.
func (s *hapiServer) put(t *testing.T, resource []byte) time.Time {
	t.Helper()
	key, err := keyOf(resource)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.base+"/"+key, bytes.NewReader(resource))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/fhir+json")
	body, err := do(request)
	if err != nil {
		t.Fatal(err)
	}
	s.data.add(key, resource)
	return lastUpdatedOf(t, body)
}

// do sends a request and gives the body of a 2xx answer; any other answer is an error with the beginning of its body.
func do(request *http.Request) ([]byte, error) {
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", request.Method, err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", request.Method, request.URL.Path, err)
	}
	if response.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: status %d: %.600s", request.Method, request.URL.Path, response.StatusCode, body)
	}
	return body, nil
}

// say tells the progress of the shared parts, which belong to no test.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "e2e: "+format+"\n", args...)
}
