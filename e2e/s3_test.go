package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"

	"sidecar/exporter/blob/s3blob"
)

const (
	s3Bucket    = "exports"
	s3AccessKey = "e2e-access"
	s3Secret    = "e2e-secret-of-the-gateway"
	s3Region    = "eu-central-1"

	// gatewayEnv makes the test binary an S3 gateway; its value is
	// "address|folder of the objects|folder of their metadata".
	gatewayEnv = "SIDECAR_E2E_S3_GATEWAY"
	gatewayUp  = "gateway is up"
)

// init turns a child process of the test binary into the gateway before any test
// or TestMain runs. The gateway is embedded, but has a process of its own: its
// folder back end changes the working directory of its process, which would pull
// the ground from under every other test, and one process can hold only one.
func init() {
	settings := os.Getenv(gatewayEnv)
	if settings == "" {
		return
	}
	if err := runGateway(settings); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runGateway serves until standard input ends: so the gateway dies with the test
// process, however that ends.
func runGateway(settings string) error {
	part := strings.Split(settings, "|")
	if len(part) != 3 {
		return fmt.Errorf("settings: got %d parts, want 3", len(part))
	}
	metadata, err := meta.NewSideCar(part[2])
	if err != nil {
		return err
	}
	backend, err := posix.New(part[1], metadata, posix.PosixOpts{SideCarDir: part[2]})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		RootUserAccess:    s3AccessKey,
		RootUserSecret:    s3Secret,
		Region:            s3Region,
		Ports:             []string{part[0]},
		MaxConnections:    256,
		MaxRequests:       256,
		MultipartMaxParts: 10000,
		Quiet:             true,
		KeepAlive:         true,
		S3Options:         []s3api.Option{s3api.WithOnListen(func() { fmt.Println(gatewayUp) })},
	})
}

// startS3 starts an S3 gateway over an empty folder for the length of the test and
// makes a bucket in it. Several may run at once.
func startS3(t *testing.T) s3blob.Config {
	t.Helper()
	cfg, _ := startS3Gateway(t)
	return cfg
}

// startS3Gateway is startS3 for a test that ends the gateway before its own end;
// stop may be called more than once.
func startS3Gateway(t *testing.T) (cfg s3blob.Config, stop func()) {
	t.Helper()
	objects, metadata := filepath.Join(t.TempDir(), "objects"), filepath.Join(t.TempDir(), "metadata")
	for _, folder := range []string{objects, metadata} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	address := freeAddress(t)
	stop = startGatewayProcess(t, address+"|"+objects+"|"+metadata)
	cfg = s3blob.Config{
		Bucket: s3Bucket, Region: s3Region, Endpoint: "http://" + address, PathStyle: true,
		AccessKeyID: s3AccessKey, SecretAccessKey: s3Secret,
	}
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(cfg.Endpoint), Region: cfg.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""),
	})
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(s3Bucket)}); err != nil {
		t.Fatal(err)
	}
	return cfg, stop
}

func startGatewayProcess(t *testing.T, settings string) (stop func()) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not the test's context: it ends before the clean-up that stops the process.
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), gatewayEnv+"="+settings)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			t.Errorf("s3 gateway: %v", err)
		}
	}
	t.Cleanup(stop)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if strings.Contains(lines.Text(), gatewayUp) {
			return stop
		}
	}
	t.Fatalf("s3 gateway ended before it was up: %v", lines.Err())
	return nil
}
