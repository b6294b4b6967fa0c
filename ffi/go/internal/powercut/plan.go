// Package powercut cuts the power of a guest whose disk is ours, again and again, and looks for what its store had acknowledged.
//
// The host (Run) keeps the disk (package cutdisk) and the list of what was acknowledged; the guest (Guest) only does what its plan says
// and says on stdout what it did. An acknowledgement counts once the host has read it before the cut. After each cut the guest boots anew,
// recovers, and reports the SHA-256 of every block that its store has; the host compares that with what follows from the seed.
//
// The same seed gives the same blocks, the same kinds of cuts and the same choice of what the drive loses; what the guest had under way at
// the moment of a cut is never the same twice. So what is needed to look into a failure is kept: the disk as the cut left it.
package powercut

import (
	"encoding/json"
	"fmt"
)

// Store is what is put to the test.
type Store string

const (
	Basalt Store = "basalt"
	// Kubo is `ipfs daemon` with the profile `basalt`, and the agent that it starts.
	Kubo Store = "kubo"
	// Migration is a Kubo's repo that is being moved from flatfs to Basalt and back when the power goes.
	Migration Store = "migration"
	// Flatfs is go-ds-flatfs with the pins in go-ds-leveldb, with the settings of a new Kubo repo, driven as `ipfs add` drives them.
	Flatfs Store = "flatfs"
	// FlatfsSync is Flatfs with "sync": true.
	FlatfsSync Store = "flatfs-sync"
)

// Plan is what a guest does in one life.
type Plan struct {
	FS         string // "ext4" or "zfs"
	Make       bool   // the disk is new: make file system and store
	Store      Store
	Durability string // of Basalt
	Control    bool   // without flushes: they do nothing in the kernel
	Lies       bool   // without flushes: the drive answers them and does nothing, from when the guest writes
	Seed       uint64
	Round      int
	Report     bool // say what is there
	Write      bool // then write until the cut
	Binary     string
}

// ours says whether the store is Basalt, which promises something.
func (p Plan) ours() bool { return p.Store == Basalt || p.files() }

// files says whether it is a Kubo with files, and not a store with blocks.
func (p Plan) files() bool { return p.Store == Kubo || p.Store == Migration }

// busy is about how many writes or flushes it has for a disk in a life worth cutting.
func (p Plan) busy() float64 {
	if p.Store == Migration {
		return 25 // a move has about 30 of either
	}
	return 500
}

// Encode is for the guest's command line.
func (p Plan) Encode() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// Decode reads what Encode wrote.
func Decode(text string) (p Plan, err error) {
	if err = json.Unmarshal([]byte(text), &p); err != nil {
		err = fmt.Errorf("the plan %q: %w", text, err)
	}
	return p, err
}
