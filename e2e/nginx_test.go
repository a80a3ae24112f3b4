package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/proxy/fidelity"
)

// nginxConfig makes nginx as plain a proxy as it can be: it holds nothing back, hides nothing and adds only who asked.
const nginxConfig = `
daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid FOLDER/pid;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
  ignore_invalid_headers off;
  underscores_in_headers on;
  merge_slashes off;
  large_client_header_buffers 4 64k;
  client_max_body_size 0;
  client_header_buffer_size 4k;
  keepalive_requests 100000;
  default_type "";
  map $http_upgrade $hop { default upgrade; "" ""; }
  map $http_x_forwarded_host $host_seen { default $http_x_forwarded_host; "" $http_host; }
  map $http_x_forwarded_proto $proto_seen { default $http_x_forwarded_proto; "" $scheme; }
  upstream server { server SERVER max_fails=0; keepalive 64; keepalive_requests 100000; }
  server {
    listen LISTEN;
    location / {
      proxy_pass http://server;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection $hop;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $host_seen;
      proxy_set_header X-Forwarded-Proto $proto_seen;
      proxy_pass_header Server;
      proxy_pass_header Date;
      proxy_redirect off;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_buffer_size 64k;
      proxy_buffers 8 64k;
      proxy_busy_buffers_size 128k;
      proxy_read_timeout 60s;
    }
  }
}
`

// Ensure that what the table of forwarding asks for is what a good proxy does: nginx differs only where the table says so.
func TestNginxPassesTheTableOfForwarding(t *testing.T) {
	fidelity.Run(t, fidelity.Subject{Open: startNginx, Nginx: true})
}

// startNginx starts nginx before a server and returns its address.
func startNginx(t *testing.T, server string) string {
	t.Helper()
	address, folder := freeAddress(t), t.TempDir()
	path := filepath.Join(folder, "nginx.conf")
	text := strings.NewReplacer("FOLDER", folder, "SERVER", server, "LISTEN", address).Replace(nginxConfig)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	command := exec.CommandContext(ctx, "nginx", "-c", path, "-p", folder)
	said := &strings.Builder{}
	command.Stderr = said
	if err := command.Start(); err != nil {
		cancel()
		t.Fatalf("nginx (Debian package nginx-light): %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err == nil {
			t.Error("nginx has ended by itself")
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			return address
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatal(fmt.Errorf("nginx: %w: %s", err, said))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("nginx does not listen")
		}
	}
}
