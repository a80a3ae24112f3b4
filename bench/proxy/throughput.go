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

// slice is one second of one way.
type slice struct {
	perSecond float64
	cpu       float64 // microseconds of the proxy's, a request
	others    float64 // of a processor, what neither the proxy nor the upstream nor the load had
}

// calm is how much of a processor others may take of a slice; else it is measured once more, and the calmer one counts.
const calm = 0.15

// measure loads every way in turn, in an order that rotates and is reversed every other round.
func (c cell) measure(folder string, rounds int, upstream *process, proxies []*process) error {
	got := map[string][]slice{}
	for round := range rounds {
		for i := range proxies {
			at := (i + round) % len(proxies)
			if round%2 == 1 {
				at = len(proxies) - 1 - at
			}
			proxy := proxies[at]
			best, err := c.slice(folder, upstream, proxy)
			if err == nil && best.others > calm {
				var again slice
				if again, err = c.slice(folder, upstream, proxy); again.others < best.others {
					best = again
				}
			}
			if err != nil {
				return fmt.Errorf("%s through %s: %w", c.name, proxy.name, err)
			}
			got[proxy.name] = append(got[proxy.name], best)
		}
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

// length is how long a slice lasts.
const length = time.Second

func (c cell) slice(folder string, upstream, proxy *process) (slice, error) {
	arguments := []string{"-c", strconv.Itoa(loadCPU), "wrk", "-t1", "-c" + strconv.Itoa(c.connections), "-d" + length.String(), "--timeout", "20s"}
	if c.post {
		arguments = append(arguments, "-s", filepath.Join(folder, "post.lua"))
	}
	before, err := usage(upstream, proxy)
	if err != nil {
		return slice{}, err
	}
	wrk := exec.Command("taskset", append(arguments, proxy.url(c.path))...)
	began := time.Now()
	output, err := wrk.CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil {
		return slice{}, fmt.Errorf("wrk: %w\n%s", err, output)
	}
	after, err := usage(upstream, proxy)
	if err != nil {
		return slice{}, err
	}
	requests, perSecond, err := readWrk(output)
	if err != nil {
		return slice{}, err
	}
	of := func(i int) float64 { return (after[i] - before[i]).Seconds() }
	load := (wrk.ProcessState.UserTime() + wrk.ProcessState.SystemTime()).Seconds()
	s := slice{perSecond: perSecond, cpu: 1e6 * of(1) / requests, others: (of(2) - of(1) - load) / took}
	if proxy != upstream {
		s.others -= of(0) / took
	}
	return s, nil
}

// usage is what the upstream, the proxy and the machine have had of the processors.
func usage(upstream, proxy *process) (used [3]time.Duration, err error) {
	if used[0], err = upstream.cpu(); err != nil {
		return used, err
	}
	if used[1], err = proxy.cpu(); err != nil {
		return used, err
	}
	used[2], err = machineCPU()
	return used, err
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
