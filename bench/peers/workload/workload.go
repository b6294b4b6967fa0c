// Package workload says what is measured, as data: a workload is sessions, a session is what one process does with one store, a case is a row.
package workload

import (
	"fmt"
	"strings"
)

// Op is what a case does.
type Op string

// What a case can do.
const (
	Put       Op = "put"       // one Put a block
	Batch     Op = "batch"     // batches of so many Puts
	Get       Op = "get"       // blocks that are there
	Has       Op = "has"       //
	GetSize   Op = "get size"  //
	Enumerate Op = "enumerate" // a query for all keys
	DiskUsage Op = "disk usage"
	Delete    Op = "delete"
	Open      Op = "open"       // and the first Get
	Crash     Op = "kill -9"    // in the middle of Puts; then open, first Get, and every acknowledged block
	Append    Op = "raw append" // of a file: pieces of so many bytes, an fdatasync after each
)

// Case is a row of the table.
type Case struct {
	Name string `json:"name"`
	Op   Op     `json:"op"`
	// Unit of its rate: "MB/s" (10^6 bytes of payload), "op/s", or, where less is better, "ms".
	Unit string `json:"unit"`
	// Sizes of blocks that it stores, in bytes; Max 0: all have Min.
	Min int `json:"min,omitempty"`
	Max int `json:"max,omitempty"`
	// Threads that call at once.
	Threads int `json:"threads,omitempty"`
	// Puts in a batch.
	PutsPerBatch int `json:"puts_per_batch,omitempty"`
	// It ends with the first of these that is reached; 0 is no limit.
	Ops     int     `json:"ops,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	// Sync after so many Puts of all threads; there is one at the end anyway.
	SyncEvery int `json:"sync_every,omitempty"`
	// Share of the calls that are about a block of the fill: a duplicate Put, a Has that hits. Get and Delete are about nothing else.
	Present float64 `json:"present,omitempty"`
	// Zipf's exponent of which block is read; 0: all alike.
	Zipf float64 `json:"zipf,omitempty"`
	// Cold: the store is closed, the page cache dropped and the store opened again before.
	Cold bool `json:"cold,omitempty"`
	// Share of the fill that is deleted, and how long its space is waited for.
	Share        float64 `json:"share,omitempty"`
	SpaceSeconds float64 `json:"space_seconds,omitempty"`
	// Beside runs while this case does, and is not limited by itself.
	Beside *Case `json:"beside,omitempty"`
}

// Size describes the sizes of a case's blocks.
func Size(least, most int) string {
	if most <= least {
		return bytes(least)
	}
	return fmt.Sprintf("%s to %s", bytes(least), bytes(most))
}

func bytes(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprint(n>>20, " MiB")
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprint(n>>10, " KiB")
	}
	return fmt.Sprint(n, " B")
}

func many(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprint(n, " ", what, "s")
}

// Fill is what a store holds before the clock starts.
type Fill struct {
	Blocks int `json:"blocks"`
	Min    int `json:"min"`
	Max    int `json:"max,omitempty"`
}

// Session is what one process does with one store; its cases follow each other on the same store.
type Session struct {
	// ID is unique; a folder is named after it.
	ID   string `json:"id"`
	Fill Fill   `json:"fill"`
	// Keep the store for later rounds, and for later sessions that keep one of the same name: they fill nothing.
	Keep string `json:"keep,omitempty"`
	// Reads: the classes of a store do the same, so one of each family is measured.
	Reads bool `json:"reads,omitempty"`
	// Deletes: the same, and the one of each family is another.
	Deletes bool `json:"deletes,omitempty"`
	// Raw limits that have a part in it: of writing (see run.Raw), or of reading.
	Raw []string `json:"raw,omitempty"`
	// RawOnly: no store has.
	RawOnly bool `json:"raw_only,omitempty"`
	// Rounds at most; 0: as many as are asked for.
	Rounds int    `json:"rounds,omitempty"`
	Cases  []Case `json:"cases"`
}

// LessIsBetter says so of a unit.
func LessIsBetter(unit string) bool { return unit == "ms" }

// Workload is a part of the report.
type Workload struct {
	// ID such as W1.
	ID string
	// Name, and what it is for.
	Name, What string
	Sessions   []Session
}

// Choose finds the workloads that `-only` names, all for ""; the name of a session, such as W1-256-16, is that part of its workload.
func Choose(scale Scale, only string) ([]Workload, error) {
	all := Table(scale)
	if only == "" {
		return all, nil
	}
	words := strings.Split(only, ",")
	known := make([]bool, len(words))
	var chosen []Workload
	for _, w := range all {
		part := w
		part.Sessions = nil
		for _, s := range w.Sessions {
			wanted := false
			for i, word := range words {
				if word = strings.TrimSpace(word); strings.EqualFold(word, w.ID) || strings.EqualFold(word, s.ID) {
					wanted, known[i] = true, true
				}
			}
			if wanted {
				part.Sessions = append(part.Sessions, s)
			}
		}
		if part.Sessions != nil {
			chosen = append(chosen, part)
		}
	}
	for i, word := range words {
		if !known[i] {
			return nil, fmt.Errorf("-only: there is no workload or session %q; there are W0 to W13, and -list has the sessions", word)
		}
	}
	return chosen, nil
}
