package powercut

// What is written follows from the seed alone, so that the checker on the host needs nothing from the guest to know what must be there.

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	"github.com/multiformats/go-multihash"
)

// writers write side by side, each its own blocks one after the other.
const writers = 4

// name names a block: the index-th of a writer in a round.
type name struct{ round, writer, index int }

func (n name) String() string { return fmt.Sprintf("%d/%d/%d", n.round, n.writer, n.index) }

// passing says whether the block will be deleted again by its writer: it has a pin of its own meanwhile.
func (n name) passing() bool { return n.index%8 == 7 }

// dropped says whether the block will be deleted again without ever having had a pin, as garbage is.
func (n name) dropped() bool { return n.index%4 == 1 }

// fleeting is either.
func (n name) fleeting() bool { return n.passing() || n.dropped() }

// later is how many blocks a writer writes on before it deletes one.
const later = 8

// batched says how many blocks, from this one on, are stored by one Batch.Commit; zero: by a lone Put.
func (n name) batched() int {
	if n.index%16 == 2 {
		return 5
	}
	return 0
}

// content is the block's bytes.
func content(seed uint64, n name) []byte {
	random := rand.New(rand.NewPCG(seed, uint64(n.round)<<40|uint64(n.writer)<<32|uint64(n.index)))
	var size int
	switch random.IntN(10) {
	case 0:
		size = 256 << 10 // Kubo's chunk
	case 1, 2, 3:
		size = 4096 + random.IntN(60<<10)
	default:
		size = 40 + random.IntN(4000)
	}
	var key [32]byte
	for i := range key {
		key[i] = byte(random.Uint32())
	}
	data := make([]byte, size)
	rand.NewChaCha8(key).Read(data)
	return data
}

// blockKey is the key below /blocks of the block with this SHA-256.
func blockKey(digest [sha256.Size]byte) ds.Key {
	mh, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		panic(err) // a digest of the right length always has one
	}
	return dshelp.MultihashToDsKey(mh)
}

// pinKey is the metadata that a writer writes when its blocks up to here are acknowledged; ownPin that of a passing block.
func pinKey(round, writer, n int) ds.Key {
	return ds.NewKey(fmt.Sprintf("/pins/all/%d/%d/%d", round, writer, n))
}

func ownPin(n name) ds.Key { return ds.NewKey("/pins/own/" + n.String()) }
