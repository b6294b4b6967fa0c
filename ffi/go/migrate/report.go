package migrate

import (
	mh "github.com/multiformats/go-multihash"
	_ "github.com/multiformats/go-multihash/register/all" // every hash that a block in a repo may have

	"github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
)

// Reporter shows how far a migration is. Its calls come from one goroutine at a time.
type Reporter interface {
	// Begin begins a step of `total` keys.
	Begin(step string, total int64)
	// At says how many keys of the step are done, and how many bytes were read for it.
	At(done, bytes int64)
	// End ends the step.
	End()
	// Note says something that a person should know.
	Note(text string)
}

// Bad is a block that can't be migrated.
type Bad struct {
	CID    string `json:"cid"`
	Reason string `json:"reason"`
}

// Pins counts pins; Named are those that have a name.
type Pins struct {
	Recursive int `json:"recursive"`
	Direct    int `json:"direct"`
	Named     int `json:"named"`
}

// Place is a folder that holds a store.
type Place struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// Missed is what only the node has when a migration is rolled back: not lost, but not in the repo.
type Missed struct {
	Blocks  int      `json:"blocks"`
	CIDs    []string `json:"cids,omitempty"` // of the blocks, at most missedMax
	Pins    []string `json:"pins,omitempty"`
	MFSRoot string   `json:"mfs_root,omitempty"` // where it differs
	Names   []string `json:"names,omitempty"`    // keys of IPNS records that differ
	Back    []string `json:"back,omitempty"`     // pins that were removed since, and are there again
}

// Any says whether something would be missed.
func (m *Missed) Any() bool {
	return m != nil && (m.Blocks > 0 || len(m.Pins) > 0 || m.MFSRoot != "" || len(m.Names) > 0)
}

// Result is what has been done.
type Result struct {
	Outcome      string  `json:"outcome"` // "migrated", "already migrated", "rolled back"
	Repo         string  `json:"repo"`
	Profile      string  `json:"profile"`
	NodeID       string  `json:"node_id"`
	Node         string  `json:"node"`
	Blocks       int64   `json:"blocks"` // in the old store
	BlockBytes   int64   `json:"block_bytes"`
	Keys         int64   `json:"keys"` // other ones, in the old store
	CopiedBlocks int64   `json:"copied_blocks"`
	CopiedKeys   int64   `json:"copied_keys"`
	Extra        int64   `json:"extra_blocks"` // in the node alone, kept
	Pins         Pins    `json:"pins"`
	Skipped      []Bad   `json:"skipped,omitempty"`
	Old          []Place `json:"old_store,omitempty"`
	Missed       *Missed `json:"missed,omitempty"`
}

// hashOf returns the multihash that a key below /blocks stands for; false for any other key.
func hashOf(key ds.Key) (mh.Multihash, bool) {
	if !blocksKey.IsAncestorOf(key) || len(key.Namespaces()) != 2 {
		return nil, false
	}
	hash, err := dshelp.DsKeyToMultihash(ds.RawKey("/" + key.BaseNamespace()))
	if err != nil {
		return nil, false
	}
	return hash, dshelp.MultihashToDsKey(hash).String() == "/"+key.BaseNamespace()
}

var blocksKey, pinsKey = ds.NewKey("/blocks"), ds.NewKey("/pins")

// matches says whether a block hashes to its key; known is false for a hash function that can't be computed here.
func matches(hash mh.Multihash, block []byte) (ok, known bool) {
	decoded, err := mh.Decode(hash)
	if err != nil {
		return false, true
	}
	sum, err := mh.Sum(block, decoded.Code, decoded.Length)
	if err != nil {
		return false, false
	}
	return string(sum) == string(hash), true
}

func name(hash mh.Multihash) string { return cid.NewCidV1(cid.Raw, hash).String() }
