//go:build linux

package main

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// The ways to the upstream, in the order of the tables.
const (
	direct, nginx, caddy, plain, sidecar = "direct", "nginx", "caddy", "plain", "sidecar"
)

var ways = []string{direct, nginx, caddy, plain, sidecar}

// deployed is what the sidecar runs with: the image's GOGC, and the GOMEMLIMIT of the manifests. The others run as they come.
var deployed = []string{"GOGC=50", "GOMEMLIMIT=48MiB"}

// servers starts what is measured, in folders of its own.
type servers struct {
	folder   string
	upstream *process
	started  int
}

func startUpstream() (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return start(direct, address, loadCPU, []string{"GOMAXPROCS=1"}, os.Args[0], "upstream", address)
}

// start runs one proxy; for direct it gives the upstream itself.
func (s *servers) start(way string) (*process, error) {
	if way == direct {
		return s.upstream, nil
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s.started++
	folder := filepath.Join(s.folder, fmt.Sprintf("%s-%d", way, s.started))
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, err
	}
	env := []string{"GOMAXPROCS=1", "HOME=" + folder, "XDG_DATA_HOME=" + folder, "XDG_CONFIG_HOME=" + folder}
	switch way {
	case nginx:
		config, err := write(folder, "nginx.conf", nginxConfig, "FOLDER", folder, "ADDRESS", address, "UPSTREAM", s.upstream.address)
		if err != nil {
			return nil, err
		}
		return start(way, address, proxyCPU, env, "nginx", "-c", config, "-e", filepath.Join(folder, "error.log"))
	case caddy:
		config, err := write(folder, "Caddyfile", caddyConfig, "ADDRESS", address, "UPSTREAM", s.upstream.address)
		if err != nil {
			return nil, err
		}
		return start(way, address, proxyCPU, env, os.Getenv("BENCH_CADDY"), "run", "--adapter", "caddyfile", "--config", config)
	case plain:
		return start(way, address, proxyCPU, env, os.Args[0], "plain", address, s.upstream.address)
	default:
		admin, err := freeAddress()
		if err != nil {
			return nil, err
		}
		config, err := write(folder, "config.yaml", sidecarConfig, "FOLDER", folder, "ADDRESS", address, "ADMIN", admin, "UPSTREAM", s.upstream.address)
		if err != nil {
			return nil, err
		}
		return start(way, address, proxyCPU, append(env, deployed...), os.Getenv("BENCH_SIDECAR"), "serve", "-config", config)
	}
}

func write(folder, name, text string, replacements ...string) (path string, err error) {
	path = filepath.Join(folder, name)
	return path, os.WriteFile(path, []byte(strings.NewReplacer(replacements...).Replace(text)), 0o644)
}

// nginxConfig is nginx as one who knows it would set it up for this: it keeps its connections, and neither holds bodies back
// nor puts them into files.
const nginxConfig = `
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
pid FOLDER/nginx.pid;
error_log FOLDER/error.log;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path FOLDER/body;
  proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/fastcgi;
  uwsgi_temp_path FOLDER/uwsgi;
  scgi_temp_path FOLDER/scgi;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  upstream fhir {
    server UPSTREAM;
    keepalive 1024;
    keepalive_requests 1000000000;
  }
  server {
    listen ADDRESS backlog=4096;
    location / {
      proxy_pass http://fhir;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_buffers 8 32k;
    }
  }
}
`

// caddyConfig is Caddy as it comes.
const caddyConfig = `
{
	admin off
	auto_https off
}
http://ADDRESS {
	reverse_proxy UPSTREAM
}
`

// sidecarConfig sets only what has no default or would meet others on this machine.
const sidecarConfig = `
upstream: http://UPSTREAM/fhir
listen: ADDRESS
admin_listen: ADMIN
data: FOLDER/data
`

// servePlain is the standard library's proxy as it comes.
func servePlain(address, upstream string) error {
	target := &url.URL{Scheme: "http", Host: upstream}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	return http.ListenAndServe(address, proxy)
}
