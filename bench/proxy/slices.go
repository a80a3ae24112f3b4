//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"time"
)

// slice is a second or two of one way.
type slice struct {
	perSecond float64 // under full load
	cpu       float64 // microseconds of the proxy's, a request
	p50, p99  float64 // microseconds, at a fixed rate
	others    float64 // of a processor, what neither the proxy nor the upstream nor the load had
}

// calm is how much of a processor others may take of a slice; else it is measured once more, and the calmer one counts.
const calm = 0.15

// inTurn measures all ways as often as there are rounds, in an order that rotates and is reversed every other round.
func inTurn(rounds int, proxies []*process, measure func(*process) (slice, error)) (map[string][]slice, error) {
	got := map[string][]slice{}
	for round := range rounds {
		for i := range proxies {
			at := (i + round) % len(proxies)
			if round%2 == 1 {
				at = len(proxies) - 1 - at
			}
			name := proxies[at].name
			best, err := measure(proxies[at])
			if err == nil && best.others > calm {
				var again slice
				if again, err = measure(proxies[at]); again.others < best.others {
					best = again
				}
			}
			if err != nil {
				return nil, fmt.Errorf("through %s: %w", name, err)
			}
			got[name] = append(got[name], best)
		}
	}
	return got, nil
}

// used is what a slice took of the processors: seconds of the proxy's, and the part of one that others had.
type used struct{ proxy, others float64 }

// underLoad runs a load to its end.
func underLoad(upstream, proxy *process, load *exec.Cmd) (output []byte, u used, err error) {
	before, err := times(upstream, proxy)
	if err != nil {
		return nil, used{}, err
	}
	began := time.Now()
	output, err = load.CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil {
		return nil, used{}, fmt.Errorf("%w\n%s", err, output)
	}
	after, err := times(upstream, proxy)
	if err != nil {
		return nil, used{}, err
	}
	of := func(i int) float64 { return (after[i] - before[i]).Seconds() }
	ours := of(1) + (load.ProcessState.UserTime() + load.ProcessState.SystemTime()).Seconds()
	if proxy != upstream {
		ours += of(0)
	}
	return output, used{proxy: of(1), others: (of(2) - ours) / took}, nil
}

// times is what the upstream, the proxy and the machine have had of the processors.
func times(upstream, proxy *process) (sums [3]time.Duration, err error) {
	if sums[0], err = upstream.cpu(); err != nil {
		return sums, err
	}
	if sums[1], err = proxy.cpu(); err != nil {
		return sums, err
	}
	sums[2], err = machineCPU()
	return sums, err
}
