package blocks

import (
	"bytes"
	"compress/flate"
	"sync"
	"testing"

	ds "github.com/ipfs/go-datastore"
)

func TestTheSameBlocksComeFromTheSameSeed(t *testing.T) {
	s := Source{Seed: 7, Min: 500, Max: 4000}
	made, err := Make(s.Blocks, 10, 100, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Free()
	keys := make([]ds.Key, 100)
	EachKey(func(i int) (Source, int) { return s, 10 + i }, 100, func(i int, key ds.Key) { keys[i] = key })
	for i, b := range made.Blocks {
		again := s.At(10 + i)
		if again.Key != b.Key || !bytes.Equal(again.Value, b.Value) || keys[i] != b.Key {
			t.Fatalf("block %d differs", i)
		}
		if len(b.Value) < 500 || len(b.Value) > 4000 {
			t.Fatalf("block %d has %d bytes", i, len(b.Value))
		}
	}
	if other := (Source{Seed: 8, Min: 500, Max: 4000}).At(10); other.Key == made.Blocks[0].Key {
		t.Fatal("another seed gives the same block")
	}
}

func TestNoTwoBlocksAreAlike(t *testing.T) {
	var all sync.Map
	EachKey(Source{Seed: 1, Min: 16, Max: 100}.Blocks, 20000, func(i int, key ds.Key) {
		if other, there := all.LoadOrStore(key, i); there {
			t.Errorf("blocks %d and %d are alike", i, other)
		}
	})
}

func TestAnArenaKeepsToItsLimit(t *testing.T) {
	made, err := Make(Source{Seed: 1, Min: 1000}.Blocks, 0, 100, 10_500)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Free()
	if len(made.Blocks) != 10 || made.Bytes != 10_000 {
		t.Fatalf("%d blocks, %d bytes", len(made.Blocks), made.Bytes)
	}
}

func TestHalfIsTextAndHalfIsIncompressible(t *testing.T) {
	s := Source{Seed: 3, Min: 64 << 10}
	for i, most := range []float64{1.01, 0.6} {
		var packed bytes.Buffer
		w, _ := flate.NewWriter(&packed, flate.BestSpeed)
		value := s.At(i).Value
		_, _ = w.Write(value)
		_ = w.Close()
		ratio := float64(packed.Len()) / float64(len(value))
		if ratio > most || (i == 0 && ratio < 0.99) {
			t.Errorf("block %d is compressed to %.2f", i, ratio)
		}
	}
}
