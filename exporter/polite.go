package exporter

import (
	"math"
	"time"
)

// DefaultLiveSlowdown is the default of Config.LiveSlowdown.
const DefaultLiveSlowdown = 1.1

const (
	// firstShare is how many requests exports have under way on average when users come, growth and retreat what it is multiplied
	// with when these are unhurt and when they are not.
	firstShare = 0.25
	growth     = 1.2
	retreat    = 0.6
	// leastPart is the part of their requests that exports keep whatever users feel: about a tenth of the pace, since a server that
	// users keep busy answers few requests at once sooner than many.
	leastPart = 0.05
	// turn is how long exports ask beside users before they pause for restTurn, to see how long users wait without them.
	turn     = 4 * time.Second
	restTurn = time.Second
	// mostTurns is after how many of them nothing seen is taken for no harm, surely is the standard error at which it is one sooner.
	mostTurns = 3
	surely    = 0.15
	// sureOf is how many standard errors a slowdown has to be off for a retreat. At this many, chance alone makes for about as many
	// steps back as the growth makes good. soonSureOf is that of a look before enough was seen for a step forward: to look often
	// and take the worst would make steps back of chance alone.
	sureOf, soonSureOf = 0.6, 2.0
	// rememberFor is how long the share is kept while there are no users.
	rememberFor = 5 * time.Minute
	// besideFor is how long behind a request users are thought to be beside exports, if nothing follows.
	besideFor = time.Second
	// idleFor is how long a request that is due waits for a moment in which no user waits.
	idleFor = 100 * time.Millisecond
	// longestPause is the longest pause behind a request: one that the server never answered says little of what users feel.
	longestPause = time.Minute
)

// Traffic is what users do at the same time as the exports. Exports leave it room.
type Traffic interface {
	// Present tells whether there are users.
	Present() bool
	// Idle returns a channel that is closed when none of them waits for an answer, nil if none does now.
	Idle() <-chan struct{}
	// Beside says until when requests of users that begin do so beside exports; a moment in the past means that these pause.
	Beside(until time.Time)
	// Slowdown is how many times as long users wait beside exports as without them, and doubt the standard error of its logarithm,
	// infinite when nothing is known.
	Slowdown() (ratio, doubt float64)
	// Forget starts anew with the requests beside exports. With alone those without weigh less as well.
	Forget(alone bool)
}

// polite paces the requests of all exports by what users feel of them. They take turns: for some seconds exports ask, for one they do
// not, and users' waits of both are compared, so that a server that is slow by itself is not blamed on exports. While users wait hardly
// longer, exports may have a fifth more requests under way on average, else two fifths fewer; less than one means a pause behind
// each request. A request begins in a moment in which no user waits, if there soon is one, and asks for a small page (see pagecost.go):
// most users then meet none. A twentieth of what the server takes is theirs in any case, so that an export always ends, and all of it
// while there are no users. It is guarded by the limiter's mutex.
type polite struct {
	traffic Traffic
	// aim is the logarithm of the slowdown at which exports step back: half of the one allowed, since steps and chance go beyond it.
	aim   float64
	seen  func(slowdown float64)
	share float64
	// asks tells whose turn it is, ends when it is over. The pause begins with the end of the last request: ends is zero until then.
	asks  bool
	ends  time.Time
	turns int       // since the share was changed
	next  time.Time // when the share has room for a request again
	due   time.Time // when the next one could have begun had no user waited; zero where none did
	users bool      // there were some when it was looked last, at met
	met   time.Time
	idle  time.Duration        // of requests under way, in which the server only waited: no pause is owed for it
	pages map[string]*pageCost // by type: a search costs more the more rows there are to sort
}

func newPolite(traffic Traffic, slowdown float64) *polite {
	return &polite{traffic: traffic, aim: math.Log(slowdown) / 2, pages: map[string]*pageCost{}}
}

// room is how many requests may be under way now at the side of busy ones, and how long to wait before asking again, where that is
// what has to be waited for, or until idle is closed.
func (p *polite) room(busy, allowed int) (room int, wait time.Duration, idle <-chan struct{}) {
	now := time.Now()
	if !p.traffic.Present() {
		p.users = false
		return allowed, 0, nil
	}
	if !p.users { // begin with a pause, to see them alone
		p.users, p.asks, p.ends = true, false, time.Time{}
		if p.met.IsZero() || now.Sub(p.met) > rememberFor {
			p.share, p.turns = firstShare, 0
			p.traffic.Forget(false)
		}
	}
	p.met = now
	if p.asks && now.After(p.ends) {
		p.asks, p.ends = false, time.Time{}
		p.look(allowed)
	}
	if !p.asks {
		switch {
		case busy > 0:
			return 0, time.Second, nil // or users have left by then
		case p.ends.IsZero():
			p.ends = now.Add(restTurn)
			p.traffic.Beside(now)
		}
		if wait := p.ends.Sub(now); wait > 0 {
			return 0, wait, nil
		}
		p.asks, p.ends = true, now.Add(turn)
	}
	p.share = min(max(p.share, leastPart*float64(allowed)), float64(allowed))
	if wait := p.next.Sub(now); wait > 0 {
		return 0, wait, nil
	}
	room = int(math.Ceil(p.share))
	if busy >= room {
		return room, 0, nil
	}
	if idle = p.traffic.Idle(); idle != nil {
		if p.due.IsZero() {
			p.due = now
		}
		if wait := p.due.Add(idleFor).Sub(now); wait > 0 {
			return 0, wait, idle
		}
	}
	return room, 0, nil
}

// began notes that a request begins.
func (p *polite) began() {
	p.due = time.Time{}
	p.traffic.Beside(time.Now().Add(time.Hour))
}

// ended notes that a request that began at began has ended.
func (p *polite) ended(began time.Time, busy int) {
	if p.users {
		if due := began.Add(-idleFor); due.After(p.next) { // what idleFor cost is made good
			p.next = due
		}
		worked := max(time.Since(began)-p.idle, 0)
		p.next = p.next.Add(time.Duration(float64(worked) / p.share))
		if latest := time.Now().Add(longestPause); p.next.After(latest) {
			p.next = latest
		}
	}
	p.idle = 0
	if busy > 0 {
		return
	}
	until := time.Now()
	if p.next.After(until) {
		until = p.next
	}
	p.traffic.Beside(until.Add(besideFor))
}

// page is what is known of the pages of a type.
func (p *polite) page(typ string) *pageCost {
	if p.pages[typ] == nil {
		p.pages[typ] = newPageCost()
	}
	return p.pages[typ]
}

// look changes the share by what users felt during the last turns.
func (p *polite) look(allowed int) {
	ratio, doubt := p.traffic.Slowdown()
	if math.IsInf(doubt, 1) {
		return
	}
	if p.seen != nil {
		p.seen(ratio)
	}
	p.turns++
	enough, sure := doubt < surely || p.turns >= mostTurns, soonSureOf
	if enough {
		sure = sureOf
	}
	hurt := math.Log(ratio) > p.aim+sure*doubt
	switch {
	case hurt:
		p.share *= retreat
	case enough:
		p.share *= growth
	default:
		return
	}
	p.turns = 0
	p.traffic.Forget(hurt) // the next step back needs users who wait less now
}
