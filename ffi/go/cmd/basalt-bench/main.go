// Command basalt-bench measures a Basalt node from a Go program, as Kubo sees it, side by side with go-ds-flatfs: over gRPC, and by the C ABI
// where it is built with that.
//
// One run, one process, rounds that interleave the stores, so that a disk or a neighbour that changes its mind hits all of them alike; a
// ratio is taken within its round. The process holds a live heap as large as a busy Kubo's: with an empty one the collector runs every
// few reads and all stores look alike.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	mh "github.com/multiformats/go-multihash"
)

var (
	dir    = flag.String("dir", "", "folder on the disk to measure; stores are made in it and removed")
	out    = flag.String("json", "", "where the samples go, as JSON")
	rounds = flag.Int("rounds", 5, "interleaved rounds")
	mib    = flag.Int("mib", 128, "MiB that each Put case of large blocks stores")
	small  = flag.Int("small", 1000, "small blocks of the Put case of small files")
	keys   = flag.Int("keys", 20000, "keys of the Has cases")
	heap   = flag.Int("heap", 512, "MiB of live heap")
)

const (
	largeBytes = 256 << 10
	smallBytes = 1 << 10
)

// measured is what the report reads; the Rust side writes the same.
type measured struct {
	Name       string    `json:"name"`
	Durability string    `json:"durability"`
	Unit       string    `json:"unit"`
	Samples    []float64 `json:"samples"`
	Baseline   *string   `json:"baseline"`
	IsBaseline bool      `json:"is_baseline"`
}

func main() {
	flag.Parse()
	if *dir == "" || *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ballast := make([]byte, *heap<<20)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "basalt-bench:", err)
		os.Exit(1)
	}
	runtime.KeepAlive(ballast)
}

func run() error {
	large := generate(*mib<<20/largeBytes, largeBytes, 1)
	lone := generate(*small, smallBytes, 2)
	present := generate(*keys, 64, 3)
	absent := generate(*keys, 64, 4)
	stores := kinds()

	var results []*measured
	for _, writers := range []int{1, 16, 128} {
		cell := "Put 256 KiB, " + many(writers, "writer")
		measured, err := interleave(cell, "MB/s", stores, func(k kind) (float64, error) {
			return putAll(k, large, writers)
		})
		if err != nil {
			return err
		}
		results = append(results, measured...)
	}
	// What `ipfs add` does with small files: one lone Put after the other, and Sync at the end.
	measured, err := interleave("Put 1 KiB, 1 writer", "op/s", stores, func(k kind) (float64, error) {
		rate, err := putAll(k, lone, 1)
		return rate * 1e6 / smallBytes, err
	})
	if err != nil {
		return err
	}
	results = append(results, measured...)

	measured, err = reads(stores, large, present, absent)
	if err != nil {
		return err
	}
	results = append(results, measured...)

	text, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(*out, text, 0o644)
}

// interleave runs a cell over all stores, once each in every round.
func interleave(cell, unit string, stores []kind, one func(kind) (float64, error)) ([]*measured, error) {
	results := make([]*measured, len(stores))
	base := cell + ": " + baseline
	for i, k := range stores {
		results[i] = &measured{Name: cell + ": " + k.name, Durability: k.durability, Unit: unit, IsBaseline: k.name == baseline}
		if k.name != baseline {
			results[i].Baseline = &base
		}
	}
	for round := range *rounds {
		for i, k := range stores {
			runtime.GC()
			rate, err := one(k)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", results[i].Name, round+1, err)
			}
			results[i].Samples = append(results[i].Samples, rate)
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %d rounds\n", cell, *rounds)
	return results, nil
}

type block struct {
	key   ds.Key
	value []byte
}

// generate makes unique, incompressible blocks with the keys that Kubo gives them; another seed makes others.
func generate(count, size int, seed byte) []block {
	blocks := make([]block, count)
	source := rand.NewChaCha8([32]byte{seed})
	for i := range blocks {
		value := make([]byte, size)
		_, _ = source.Read(value) // never fails
		hash, err := mh.Sum(value, mh.SHA2_256, -1)
		if err != nil {
			panic(err) // sha2-256 is always there
		}
		blocks[i] = block{dshelp.MultihashToDsKey(hash), value}
	}
	return blocks
}

// shuffled returns the blocks in an order that no read-ahead guesses, the same in every run.
func shuffled(blocks []block) []block {
	blocks = slices.Clone(blocks)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	return blocks
}

// share lets `workers` goroutines do the blocks, each every so-manieth one, and returns the wall time.
func share(blocks []block, workers int, do func(block) error) (time.Duration, error) {
	var wait sync.WaitGroup
	errs := make([]error, workers)
	began := time.Now()
	for w := range workers {
		wait.Go(func() {
			for i := w; i < len(blocks) && errs[w] == nil; i += workers {
				errs[w] = do(blocks[i])
			}
		})
	}
	wait.Wait()
	took := time.Since(began)
	for _, err := range errs {
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

// putAll stores the blocks in a new store, one Put each and a Sync at the end as `ipfs add` asks for one; returns MB/s.
func putAll(k kind, blocks []block, writers int) (float64, error) {
	ctx := context.Background()
	folder, err := os.MkdirTemp(*dir, "basalt-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	store, closeStore, err := k.open(folder)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = share(blocks, writers, func(b block) error { return store.Put(ctx, b.key, b.value) })
	if err == nil {
		err = store.Sync(ctx, ds.NewKey("/"))
	}
	took := time.Since(began)
	if closeErr := closeStore(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, err
	}
	return float64(len(blocks)*len(blocks[0].value)) / 1e6 / took.Seconds(), nil
}

// reads measures Get and Has on stores that stay open over all rounds.
func reads(stores []kind, large, present, absent []block) ([]*measured, error) {
	ctx := context.Background()
	stores = slices.DeleteFunc(slices.Clone(stores), func(k kind) bool { return k.writesOnly })
	open := map[string]ds.Batching{}
	for _, k := range stores {
		folder, err := os.MkdirTemp(*dir, "basalt-bench-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(folder)
		store, closeStore, err := k.open(folder)
		if err != nil {
			return nil, err
		}
		defer closeStore()
		for _, blocks := range [][]block{large, present} {
			if _, err := share(blocks, 16, func(b block) error { return store.Put(ctx, b.key, b.value) }); err != nil {
				return nil, fmt.Errorf("%s: %w", k.name, err)
			}
		}
		open[k.name] = store
	}
	large, present, absent = shuffled(large), shuffled(present), shuffled(absent)

	var results []*measured
	for _, readers := range []int{1, 16, 128} {
		get, err := interleave("Get 256 KiB hot, "+many(readers, "reader"), "MB/s", stores, func(k kind) (float64, error) {
			took, err := share(large, readers, func(b block) error {
				value, err := open[k.name].Get(ctx, b.key)
				if err == nil && len(value) != len(b.value) {
					err = fmt.Errorf("%s came back with %d bytes", b.key, len(value))
				}
				return err
			})
			return float64(len(large)*largeBytes) / 1e6 / took.Seconds(), err
		})
		if err != nil {
			return nil, err
		}
		results = append(results, get...)
		for _, has := range []struct {
			name   string
			blocks []block
			want   bool
		}{{"hit", present, true}, {"miss", absent, false}} {
			hasResults, err := interleave("Has "+has.name+", "+many(readers, "reader"), "op/s", stores, func(k kind) (float64, error) {
				took, err := share(has.blocks, readers, func(b block) error {
					there, err := open[k.name].Has(ctx, b.key)
					if err == nil && there != has.want {
						err = fmt.Errorf("Has of %s is %v", b.key, there)
					}
					return err
				})
				return float64(len(has.blocks)) / took.Seconds(), err
			})
			if err != nil {
				return nil, err
			}
			results = append(results, hasResults...)
		}
	}
	return results, nil
}

func many(count int, what string) string {
	if count == 1 {
		return "1 " + what
	}
	return fmt.Sprint(count, " ", what, "s")
}
