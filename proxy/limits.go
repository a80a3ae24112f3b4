package proxy

import (
	"crypto/sha256"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sidecar/state"
)

const (
	// pollsASecond and pollBurst bound the polls of one job. Clients poll at once, then each second or two; those that are told no
	// Retry-After were seen to poll five times a second, for as long as it takes, and many take a poll that is refused for the
	// end. So only what no client does who waits at all is too much.
	pollsASecond, pollBurst = 60, 30
	// burstSeconds is for how many seconds a client may save up requests that it did not send.
	burstSeconds = 5
	// maxThrottled bounds how many clients or jobs are remembered.
	maxThrottled = 10_000
	// clientsOfAnAddress is how many times as often as one client an address may ask with credentials: several clients come by
	// one gateway, and whoever makes up a token for each request comes by it too.
	clientsOfAnAddress = 10
)

// throttle bounds how often something is asked for, by a key.
type throttle struct {
	mu       sync.Mutex
	limiters map[string]*rate.Limiter
}

// allow takes note of one request and tells whether it is one too many.
func (t *throttle) allow(key string, limit rate.Limit, burst int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	limiter := t.limiters[key]
	if limiter == nil {
		if t.limiters == nil {
			t.limiters = map[string]*rate.Limiter{}
		}
		if len(t.limiters) >= maxThrottled {
			t.forgetOne()
		}
		limiter = rate.NewLimiter(limit, burst)
		t.limiters[key] = limiter
	}
	return limiter.AllowN(time.Now(), 1)
}

// forgetOne forgets of some, as the map has them, the one that has asked least: it may do what it may do now anyway. Those who ask
// too much stay.
func (t *throttle) forgetOne() {
	least, most, seen := "", -1.0, 0
	for key, limiter := range t.limiters {
		if left := limiter.Tokens() / float64(limiter.Burst()); left > most {
			least, most = key, left
		}
		if seen++; seen == 16 {
			break
		}
	}
	delete(t.limiters, least)
}

// errTooOften is told to whoever asks more often than any client has a reason to.
var errTooOften = &refusal{http.StatusTooManyRequests, "throttled", "too many requests: ask less often"}

// mayAsk bounds the requests of one client on our routes.
func (p *Proxy) mayAsk(r *http.Request) error {
	if p.RequestsPerSecond <= 0 {
		return nil
	}
	limit := func(clients int) (rate.Limit, int) {
		return rate.Limit(clients * p.RequestsPerSecond), max(1, burstSeconds*clients*p.RequestsPerSecond)
	}
	one, burst := limit(1)
	several, burstOfSeveral := limit(clientsOfAnAddress)
	if !p.addresses.allow(p.address(r), several, burstOfSeveral) || !p.requests.allow(p.sender(r), one, burst) {
		return errTooOften
	}
	return nil
}

// mayPoll bounds the requests for the status of one job, of each who asks for it: what one sends does not count against another.
func (p *Proxy) mayPoll(r *http.Request, job *state.Job) error {
	if !p.polls.allow(job.ID+" "+p.sender(r), pollsASecond, pollBurst) {
		return errTooOften
	}
	return nil
}

// sender tells clients apart before it is known who they are: by a hash of their credentials, else by their address.
func (p *Proxy) sender(r *http.Request) string {
	if said := p.clientHeaders(r).Get("Authorization"); said != "" {
		hash := sha256.Sum256([]byte(said))
		return string(hash[:])
	}
	return p.address(r)
}

// address is where a request comes from, as trusted hops report it.
func (p *Proxy) address(r *http.Request) string {
	if p.trusted(r.RemoteAddr) {
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		for i := len(hops) - 1; i >= 0; i-- { // the last one that no trusted hop has: what stands before it, anybody can write
			if hop := strings.TrimSpace(hops[i]); hop != "" && !p.trusted(net.JoinHostPort(hop, "0")) {
				return hop
			}
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
