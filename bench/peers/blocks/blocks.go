// Package blocks makes what is stored: unique blocks, half of them incompressible and half text, under the keys that Kubo gives them.
//
// A block is a function of its source's seed and of its number, so that another process finds the same ones without a list.
package blocks

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sys/unix"
)

// Source is a sequence of blocks without an end.
type Source struct {
	Seed uint64
	// Sizes in bytes: at least Min, at most Max, evenly spread.
	Min, Max int
}

// Block is one of them.
type Block struct {
	Key   ds.Key
	Value []byte
}

// Size of block i, in bytes.
func (s Source) Size(i int) int {
	if s.Max <= s.Min {
		return s.Min
	}
	return s.Min + int(mix(s.Seed^uint64(i)*0x9e3779b97f4a7c15)%uint64(s.Max-s.Min+1))
}

// Value writes block i into room, which has s.Size(i) bytes.
func (s Source) Value(i int, room []byte) {
	if i%2 == 0 {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], s.Seed)
		binary.LittleEndian.PutUint64(seed[8:], uint64(i))
		_, _ = rand.NewChaCha8(seed).Read(room) // never fails
		return
	}
	state := mix(s.Seed + 0x51ed270b*uint64(i))
	at := copy(room, fmt.Sprintf("%x ", state)) // no two texts alike, however short
	for at < len(room) {
		state = state*6364136223846793005 + 1442695040888963407
		at += copy(room[at:], words[state>>32%uint64(len(words))])
	}
}

// At makes block i.
func (s Source) At(i int) Block {
	value := make([]byte, s.Size(i))
	s.Value(i, value)
	return Block{Key(value), value}
}

// Key is the key under which Kubo stores a value, below /blocks.
func Key(value []byte) ds.Key {
	hash, err := mh.Sum(value, mh.SHA2_256, -1)
	if err != nil {
		panic(err) // sha2-256 is always there
	}
	return dshelp.MultihashToDsKey(hash)
}

// Arena holds blocks outside of Go's heap, so that they are no live heap to the collector, and gives the memory back when it is told to.
type Arena struct {
	Blocks []Block
	// Bytes of all values.
	Bytes  int64
	memory []byte
}

// Pick says which block of which source comes i-th.
type Pick func(i int) (Source, int)

// Make makes the blocks that come from-th to (from+count)-th, fewer if they have more than limit bytes, on all cores.
func Make(pick Pick, from, count int, limit int64) (*Arena, error) {
	var bytes int64
	offsets := make([]int64, 0, min(count, 1<<20))
	for i := range count {
		source, n := pick(from + i)
		size := int64(source.Size(n))
		if i > 0 && bytes+size > limit {
			break
		}
		offsets = append(offsets, bytes)
		bytes += size
	}
	memory, err := unix.Mmap(-1, 0, int(max(bytes, 1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("no memory for %d bytes of blocks: %w", bytes, err)
	}
	a := &Arena{make([]Block, len(offsets)), bytes, memory}
	parallel(len(offsets), func(i int) {
		source, n := pick(from + i)
		end := offsets[i] + int64(source.Size(n))
		value := memory[offsets[i]:end:end]
		source.Value(n, value)
		a.Blocks[i] = Block{Key(value), value}
	})
	return a, nil
}

// Blocks comes through the source in order.
func (s Source) Blocks(i int) (Source, int) { return s, i }

// Free unmaps the values; nobody may hold one.
func (a *Arena) Free() {
	_ = unix.Munmap(a.memory)
	a.Blocks = nil
}

func parallel(count int, do func(int)) {
	workers := runtime.GOMAXPROCS(0)
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			for i := w; i < count; i += workers {
				do(i)
			}
		})
	}
	wait.Wait()
}

// mix is SplitMix64's finaliser.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// words make texts that compress as texts do, to about a half by lz4.
var words = func() []string {
	const consonants, vowels = "bcdfghklmnprstvw", "aeiou"
	state := uint64(1)
	pick := func(from string) string {
		state = state*6364136223846793005 + 1442695040888963407
		return from[state>>33%uint64(len(from)):][:1]
	}
	list := make([]string, 4096)
	for i := range list {
		for range 1 + i%4 {
			list[i] += pick(consonants) + pick(vowels)
		}
		list[i] += " "
	}
	return list
}()

// Each makes the first count blocks that pick picks, on all cores; each sees them, from several goroutines at once, and keeps none.
func Each(pick Pick, count int, each func(i int, value []byte)) {
	parallel(count, func(i int) {
		source, n := pick(i)
		each(i, source.At(n).Value)
	})
}

// EachKey makes the keys of the first count blocks that pick picks.
func EachKey(pick Pick, count int, each func(i int, key ds.Key)) {
	Each(pick, count, func(i int, value []byte) { each(i, Key(value)) })
}
