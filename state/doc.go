// Package state says what an export job is and remembers it.
//
// A [Job] is one export. Its work is cut into [Slice]s, each one query window over one resource type, and its result
// is a list of [File]s. The [Store] keeps all three in one bbolt file, so that a process that was killed anywhere goes
// on where its last checkpoint was.
//
// A job's life, and who moves it:
//
//	         proxy: kick-off                exporter: run
//	client ──────────────────▶ accepted ──────────────────▶ in-progress ──▶ completed ──┐
//	                              │                              │  └─────▶ failed ─────┤ retention over,
//	                              │ DELETE                       │ DELETE               │ or DELETE
//	                              ▼                              ▼                      ▼
//	                          cancelled ─────────────────▶ (objects and record removed by the exporter)
//
// Promises: a change is durable when the method that made it returns; a job is changed by [Store.Update] alone, in one
// transaction that reads, decides and writes; a job that was cancelled never comes back, and nothing can be written
// below it any more.
//
// Caveat: bbolt has one writer at a time and syncs the disk on each change, so callers write checkpoints every few
// seconds or MiB, not every page.
package state
