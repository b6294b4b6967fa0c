// Package stores has the stores that are compared, each opened the way that Kubo opens it below /blocks; a file for each.
package stores

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	ds "github.com/ipfs/go-datastore"
)

// Class is what an acknowledged Put means at a power cut. Stores are compared within their class.
type Class string

// The classes, the strongest first.
const (
	// Each Put is on stable storage when it returns.
	Each Class = "each"
	// Ordered: before any later pin, MFS change or name is, and at Sync.
	Ordered Class = "ordered"
	// AtSync: when a Sync has returned.
	AtSync Class = "at Sync"
	// None: never by the store's own doing; its Sync does nothing.
	None Class = "none"
)

// Store is one contestant: a module with options, or a way to Basalt with a durability.
type Store struct {
	// Name is unique, and what -stores takes.
	Name string
	// Family are those that read alike; only one of a family is measured reading.
	Family string
	// Reads marks the one of its family that is.
	Reads bool
	// Deletes marks the one of its family that is measured deleting: as Kubo has it, where no Delete is promised to be durable when it returns.
	Deletes bool
	Class   Class
	// Version of what is measured, for the report: a module's path, or "" for this tree's.
	Module string
	// FFI says that the program needs the node linked in.
	FFI bool
	// Left out unless -stores names it.
	OnlyNamed bool

	Open func(ctx context.Context, o Options) (*Opened, error)
}

// Options say how to open.
type Options struct {
	// Folder is the store's own; it exists.
	Folder string
	// Filling opens it as fast as it can write, for what is stored before the clock starts; a Sync and a Close end that.
	Filling bool
}

// Opened is an open store.
type Opened struct {
	ds.Batching
	// Process beside this one that does the store's work, 0 for none.
	Process int
	// CPU seconds of that process's whole life; after Close.
	endedCPU func() float64
}

// EndedCPU says how much CPU time the process beside this one had used in all when it ended, in seconds; 0 where there was none. Only after
// Close.
func (o *Opened) EndedCPU() float64 {
	if o.endedCPU == nil {
		return 0
	}
	return o.endedCPU()
}

// All lists the stores that this program was built with, in the order in which they take turns.
func All() []Store {
	var all []Store
	for _, part := range [][]Store{flatfsStores, pebbleStores, leveldbStores, badgerStores, badger4Stores, basaltStores()} {
		all = append(all, part...)
	}
	return all
}

// ByName finds a store.
func ByName(name string) (Store, error) {
	var names []string
	for _, s := range All() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Store{}, fmt.Errorf("there is no store %q; there are: %s", name, strings.Join(names, ", "))
}

// Choose finds the stores whose names contain one of the words, or all that aren't left out for "".
func Choose(words string) ([]Store, error) {
	var chosen []Store
	used := map[string]bool{}
	for _, s := range All() {
		if words == "" {
			if !s.OnlyNamed {
				chosen = append(chosen, s)
			}
			continue
		}
		wanted := false
		for word := range strings.SplitSeq(words, ",") {
			if strings.HasPrefix(s.Name, strings.TrimSpace(word)) {
				wanted, used[word] = true, true
			}
		}
		if wanted {
			chosen = append(chosen, s)
		}
	}
	if words != "" {
		for word := range strings.SplitSeq(words, ",") {
			if !used[word] {
				_, err := ByName(strings.TrimSpace(word) + "…")
				return nil, fmt.Errorf("-stores: %w", err)
			}
		}
	}
	return chosen, nil
}

// plain is a store whose work is all done in this process.
func plain(store ds.Batching, err error) (*Opened, error) {
	if err != nil {
		return nil, err
	}
	return &Opened{Batching: store}, nil
}

func folder(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
