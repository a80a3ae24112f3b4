//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// cell is one kind of request under full load.
type cell struct {
	name, path  string
	connections int
	post        bool
	goals       []goal
}

// goal is a figure: the sidecar's requests a second against those of another way.
type goal struct{ name, against, bound string }

var cells = []cell{
	{"2k", small, 32, false, []goal{{"2k/caddy", caddy, ">= 3.5"}, {"2k/nginx", nginx, ">= 0.5"}}},
	{"200k", chunked, 16, false, []goal{{"200k/caddy", caddy, ">= 4.5"}, {"200k/nginx", nginx, ">= 0.8"}}},
	{"200k-length", withLength, 16, false, []goal{{"200k-length/caddy", caddy, ">= 1.6"}, {"200k-length/nginx", nginx, ">= 0.9"}}},
	{"20m", huge, 4, false, []goal{{"20m/nginx", nginx, ">= 0.95"}}},
	{"post1m", posted, 8, true, []goal{{"post1m/nginx", nginx, ">= 1.1"}, {"post1m/caddy", caddy, ">= 1"}}},
}

// measure loads every way in turn.
func (c cell) measure(folder string, rounds int, upstream *process, proxies []*process) error {
	got, err := inTurn(rounds, proxies, func(proxy *process) (slice, error) { return c.slice(folder, upstream, proxy) })
	if err != nil {
		return fmt.Errorf("%s %w", c.name, err)
	}
	fmt.Printf("\n%-12s %12s %9s %14s %8s\n", c.name, "requests/s", "/ direct", "CPU us a req.", "others")
	for _, proxy := range proxies {
		slices := got[proxy.name]
		fmt.Printf("%-12s %12.0f %9.3f %14.1f %7.0f%%\n", proxy.name, median(slices, rate), ratio(slices, got[direct]).middle,
			median(slices, func(s slice) float64 { return s.cpu }), 100*median(slices, func(s slice) float64 { return s.others }))
	}
	for _, g := range c.goals {
		if got[g.against] != nil && got[sidecar] != nil {
			r := ratio(got[sidecar], got[g.against])
			fmt.Printf("figure: %s %.2f %s (%.2f to %.2f)\n", g.name, r.middle, g.bound, r.low, r.high)
		}
	}
	return nil
}

// length is how long a slice of full load lasts.
const length = time.Second

func (c cell) slice(folder string, upstream, proxy *process) (slice, error) {
	arguments := []string{"-c", strconv.Itoa(loadCPU), "wrk", "-t1", "-c" + strconv.Itoa(c.connections), "-d" + length.String(), "--timeout", "20s"}
	if c.post {
		arguments = append(arguments, "-s", filepath.Join(folder, "post.lua"))
	}
	output, used, err := underLoad(upstream, proxy, exec.Command("taskset", append(arguments, proxy.url(c.path))...))
	if err != nil {
		return slice{}, err
	}
	requests, perSecond, err := readWrk(output)
	if err != nil {
		return slice{}, err
	}
	return slice{perSecond: perSecond, cpu: 1e6 * used.proxy / requests, others: used.others}, nil
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkRate     = regexp.MustCompile(`Requests/sec: +([\d.]+)`)
	wrkTrouble  = regexp.MustCompile(`Socket errors.*|Non-2xx.*`)
)

// readWrk reads what wrk prints. A run with errors or with answers other than 2xx is none.
func readWrk(output []byte) (requests, perSecond float64, err error) {
	count, rate := wrkRequests.FindSubmatch(output), wrkRate.FindSubmatch(output)
	if trouble := wrkTrouble.Find(output); trouble != nil || count == nil || rate == nil {
		return 0, 0, fmt.Errorf("wrk: %s\n%s", trouble, output)
	}
	if requests, err = strconv.ParseFloat(string(count[1]), 64); err != nil {
		return 0, 0, err
	}
	perSecond, err = strconv.ParseFloat(string(rate[1]), 64)
	return requests, perSecond, err
}

// postScript makes wrk send bodies of 1 MB.
const postScript = `
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = string.rep("0123456789abcdef", 65536)
`

func writePostScript(folder string) error {
	return os.WriteFile(filepath.Join(folder, "post.lua"), []byte(postScript), 0o644)
}
