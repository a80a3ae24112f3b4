package exporter

import (
	"sync"
	"time"
)

// stages are what the jobs of this process do now, in words for clients. Nothing of it is stored: after a restart a job
// enters its stage again.
type stages struct {
	mu   sync.Mutex
	jobs map[string]stage
}

type stage struct {
	does string
	// waits is what a request waits for until a moment, because it has failed.
	waits string
	until time.Time
	// retries is how many requests had to be sent again.
	retries int64
}

// enter says what a job begins to do; empty where its numbers tell.
func (s *stages) enter(id, does string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs == nil {
		s.jobs = map[string]stage{}
	}
	s.jobs[id] = stage{does: does, retries: s.jobs[id].retries}
}

// waitShown is how long a wait is still shown when it is over: the request that follows it may fail again.
const waitShown = 5 * time.Second

// wait says that a job waits for something, and how long.
func (s *stages) wait(id, what string, long time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	job, known := s.jobs[id]
	if !known {
		return
	}
	job.waits, job.until = what, time.Now().Add(long+waitShown)
	job.retries++
	s.jobs[id] = job
}

func (s *stages) leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, id)
}

// Stage says in a few words what the work on a job does now; empty while it reads, and for a job without work. It holds no
// address and nothing of a resource.
func (e *Exporter) Stage(id string) string {
	e.stages.mu.Lock()
	job, known := e.stages.jobs[id]
	e.stages.mu.Unlock()
	now := time.Now()
	switch wait := e.QuietHours.until(now); {
	case !known:
		return ""
	case wait > 0:
		return "waiting for the quiet hours from " + now.Add(wait).Format("15:04")
	case now.Before(job.until):
		return job.waits
	}
	return job.does
}

// Retries is how many requests of a job, to the server or to the bucket, this process had to send again.
func (e *Exporter) Retries(id string) int64 {
	e.stages.mu.Lock()
	defer e.stages.mu.Unlock()
	return e.stages.jobs[id].retries
}
