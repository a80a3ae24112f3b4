package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// subject is one resource of a lane: alive or deleted.
type subject struct {
	key  string
	body json.RawMessage
	// kept may not be deleted: HAPI refuses that while another resource names it.
	kept bool
	// round is when it was written last.
	round int
}

// lane is a part of a writer with resources and dice of its own, so that no two writes of a resource overlap.
type lane struct {
	number     int
	random     *rand.Rand
	patients   []string // keys that references are moved to
	live, gone []*subject
	groups     []*subject
	round      int // of dice; a transaction writes no resource twice
	made       int // resources made here; each gets an id of its own
	did        map[string]int
	written    int // each body gets a text of its own: HAPI makes no version of an update without a change
}

// A change is one write: key gets the body, or is deleted where that is nil.
type change struct {
	key  string
	body json.RawMessage
}

// next rolls the dice for one write, in one round of twenty for a burst of up to 20 at the same time, and in one of a hundred,
// soon after the start for the first lane, for those of a transaction of 50 to 200: then many is true.
func (l *lane) next() (changes []change, many bool, err error) {
	l.round++
	size := 1
	switch {
	case l.round%100 == 10+20*l.number:
		size, many = 50+l.random.IntN(151), true
		changes = []change{l.create()} // which makes the answer tell the time
		l.did["transactions"]++
	case l.round%20 == 3+4*l.number:
		size = 5 + l.random.IntN(16)
		l.did["bursts"]++
	}
	for len(changes) < size {
		one, err := l.single()
		if err != nil {
			return nil, many, err
		}
		changes = append(changes, one)
	}
	return changes, many, nil
}

func (l *lane) single() (change, error) {
	switch dice := l.random.IntN(100); {
	case dice < 15:
		return l.create(), nil
	case dice < 30:
		if place := l.pick(l.live); !l.live[place].kept {
			return l.remove(place), nil
		}
	case dice < 42:
		if place := l.pick(l.gone); place >= 0 {
			return l.bringBack(place)
		}
	case dice < 45:
		if place := l.pick(l.groups); place >= 0 {
			return l.update(l.groups[place])
		}
	}
	return l.update(l.live[l.pick(l.live)])
}

// pick gives the place of a resource that this round has not written yet, -1 where there hardly is one.
func (l *lane) pick(from []*subject) int {
	for range 50 * min(1, len(from)) {
		place := l.random.IntN(len(from))
		if from[place].round != l.round {
			from[place].round = l.round
			return place
		}
	}
	return -1
}

func (l *lane) create() change {
	l.did["creations"]++
	l.made++
	id := fmt.Sprintf("written-%d-%d", l.number, l.made)
	patient := l.patients[l.random.IntN(len(l.patients))]
	var body json.RawMessage
	switch l.random.IntN(6) {
	case 0:
		body = row(`{"resourceType":"Patient","id":%q,"gender":"unknown"}`, id)
	case 1:
		body = row(`{"resourceType":"Immunization","id":%q,"status":"completed","vaccineCode":{"text":"x"},"occurrenceString":"x","patient":{"reference":%q}}`, id, patient)
	case 2:
		body = row(`{"resourceType":"Organization","id":%q,"name":"x"}`, id)
	default:
		body = row(`{"resourceType":"Observation","id":%q,"status":"final","code":{"text":"x"},"subject":{"reference":%q}}`, id, patient)
	}
	key, _, _ := strings.Cut(string(body[len(`{"resourceType":"`):]), `"`)
	made := &subject{key: key + "/" + id, body: body, round: l.round}
	l.live = append(l.live, made)
	return change{made.key, made.body}
}

// update changes the text of a resource, and now and then whose it is.
func (l *lane) update(s *subject) (change, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(s.body, &fields); err != nil {
		return change{}, fmt.Errorf("decode %s: %w", s.key, err)
	}
	l.did["updates"]++
	l.written++
	fields["language"] = row(`"x-%d-%d"`, l.number, l.written)
	if l.random.IntN(8) == 0 && strings.HasPrefix(string(fields["subject"]), `{"reference":"Patient/`) {
		fields["subject"] = row(`{"reference":%q}`, l.patients[l.random.IntN(len(l.patients))])
	}
	if typeOf(s.key) == "Group" {
		if err := l.swapMember(fields); err != nil {
			return change{}, err
		}
	}
	body, err := json.Marshal(fields)
	if err != nil {
		return change{}, fmt.Errorf("encode %s: %w", s.key, err)
	}
	s.body = body
	return change{s.key, body}, nil
}

// swapMember puts another Patient in the place of the first member.
func (l *lane) swapMember(fields map[string]json.RawMessage) error {
	var members []json.RawMessage
	if len(fields["member"]) == 0 {
		return nil
	}
	if err := json.Unmarshal(fields["member"], &members); err != nil {
		return fmt.Errorf("decode members: %w", err)
	}
	members = append(members[1:], row(`{"entity":{"reference":%q}}`, l.patients[l.random.IntN(len(l.patients))]))
	list, err := json.Marshal(members)
	fields["member"] = list
	return err
}

func (l *lane) remove(place int) change {
	l.did["deletions"]++
	s := l.live[place]
	l.live = slices.Delete(l.live, place, place+1)
	l.gone = append(l.gone, s)
	return change{s.key, nil}
}

// bringBack makes a deleted resource again under its id.
func (l *lane) bringBack(place int) (change, error) {
	l.did["re-creations"]++
	s := l.gone[place]
	l.gone = slices.Delete(l.gone, place, place+1)
	l.live = append(l.live, s)
	return l.update(s)
}
