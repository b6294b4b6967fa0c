package conformance

// go-datastore's own suite, in every way in which a node is mounted.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"basalt.dev/go/internal/agenttest"
	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/mount"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	dstest "github.com/ipfs/go-datastore/test"
)

// elements sets the suite's size until the test ends. Of SubtestCombinations, some 460,000 calls at full size, one run is in full.
func elements(t *testing.T, count int) {
	before := dstest.ElemCount
	dstest.ElemCount = min(before, count)
	t.Cleanup(func() { dstest.ElemCount = before })
}

const few = 10

func suiteOnTheWholeNode(t *testing.T, serve Way) {
	dstest.SubtestAll(t, serve(t, agenttest.Temp(t)).Open("root"))
}

func suiteMountedAtRoot(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("root")
	dstest.SubtestAll(t, mount.New([]mount.Mount{{Prefix: ds.NewKey("/"), Datastore: d}}))
}

func suiteMountedAtBlocksBesideAMap(t *testing.T, serve Way) {
	n := serve(t, agenttest.Temp(t))
	beside := dssync.MutexWrap(ds.NewMapDatastore())
	mounted := mount.New([]mount.Mount{
		{Prefix: ds.NewKey("/"), Datastore: beside},
		{Prefix: ds.NewKey("/blocks"), Datastore: n.Open("blocks")},
	})
	// The suite's keys are all over; this puts them below the mount.
	dstest.SubtestAll(t, namespace.Wrap(mounted, ds.NewKey("/blocks")))
	if r, err := beside.Query(t.Context(), query.Query{}); err != nil {
		t.Fatal(err)
	} else if entries, _ := r.Rest(); len(entries) != 0 {
		t.Fatalf("%d keys went into the map beside", len(entries))
	}
}

// OnDisk runs the suite on a disk's file system: where BASALT_TEST_DISK says, else the machine's place for temporary files. Once is
// enough: a way to a node does not know what is under it, and flushes take their time; so SubtestCombinations is left out.
func OnDisk(t *testing.T, serve Way) {
	elements(t, few)
	all := dstest.BasicSubtests
	t.Cleanup(func() { dstest.BasicSubtests = all })
	dstest.BasicSubtests = slices.DeleteFunc(slices.Clone(all), func(f func(*testing.T, ds.Datastore)) bool {
		return strings.HasSuffix(runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name(), ".SubtestCombinations")
	})
	base := os.Getenv("BASALT_TEST_DISK")
	n := serve(t, agenttest.TempIn(t, base))
	dstest.SubtestAll(t, n.Open("root"))
}

// multihashed gives every key the name of a block, so that the suite runs on the shards' logs. It keeps the way back, and does
// queries the naive way over all that is there.
type multihashed struct {
	ds.Batching
	mu   sync.Mutex
	back map[ds.Key]ds.Key
}

func (m *multihashed) key(k ds.Key) ds.Key {
	digest := sha256.Sum256([]byte(k.String()))
	block := dshelp.NewKeyFromBinary(append([]byte{0x12, 0x20}, digest[:]...))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.back[block] = k
	return block
}

func (m *multihashed) Get(ctx context.Context, k ds.Key) ([]byte, error) {
	return m.Batching.Get(ctx, m.key(k))
}

func (m *multihashed) Has(ctx context.Context, k ds.Key) (bool, error) {
	return m.Batching.Has(ctx, m.key(k))
}

func (m *multihashed) GetSize(ctx context.Context, k ds.Key) (int, error) {
	return m.Batching.GetSize(ctx, m.key(k))
}

func (m *multihashed) Put(ctx context.Context, k ds.Key, v []byte) error {
	return m.Batching.Put(ctx, m.key(k), v)
}

func (m *multihashed) Delete(ctx context.Context, k ds.Key) error {
	return m.Batching.Delete(ctx, m.key(k))
}

func (m *multihashed) Sync(ctx context.Context, _ ds.Key) error {
	return m.Batching.Sync(ctx, ds.NewKey("/"))
}

func (m *multihashed) Query(ctx context.Context, q query.Query) (query.Results, error) {
	r, err := m.Batching.Query(ctx, query.Query{KeysOnly: q.KeysOnly, ReturnsSizes: q.ReturnsSizes, ReturnExpirations: q.ReturnExpirations})
	if err != nil {
		return nil, err
	}
	named := query.ResultsFromIterator(q, query.Iterator{Close: r.Close, Next: func() (query.Result, bool) {
		e, ok := r.NextSync()
		if ok && e.Error == nil {
			m.mu.Lock()
			k, known := m.back[ds.RawKey(e.Key)]
			m.mu.Unlock()
			if !known {
				return query.Result{Error: fmt.Errorf("key %s was never put", e.Key)}, true
			}
			e.Key = k.String()
		}
		return e, ok
	}})
	return query.NaiveQueryApply(q, named), nil
}

func (m *multihashed) Batch(ctx context.Context) (ds.Batch, error) {
	b, err := m.Batching.Batch(ctx)
	return &multihashedBatch{b, m}, err
}

type multihashedBatch struct {
	ds.Batch
	m *multihashed
}

func (b *multihashedBatch) Put(ctx context.Context, k ds.Key, v []byte) error {
	return b.Batch.Put(ctx, b.m.key(k), v)
}

func (b *multihashedBatch) Delete(ctx context.Context, k ds.Key) error {
	return b.Batch.Delete(ctx, b.m.key(k))
}

func suiteOnTheShardsLogs(t *testing.T, serve Way) {
	n := serve(t, agenttest.Temp(t), "--shards", "2")
	dstest.SubtestAll(t, &multihashed{Batching: n.Open("blocks"), back: map[ds.Key]ds.Key{}})
	if st := n.Status(); st.Blocks != 0 || st.Keyspace.GetKeys() != 0 {
		t.Errorf("the suite deleted all it put, but there are %d blocks and %d other keys", st.Blocks, st.Keyspace.GetKeys())
	}
}

// Put, batch and delete move the shards' counters by just as much as they should, and the keyspace holds nothing: so what Get, Has,
// GetSize and a KeysOnly query answered of the same keys came from the shards.
func blocksReachTheShardsAndNothingElse(t *testing.T, serve Way) {
	n := serve(t, agenttest.Temp(t), "--shards", "2")
	m := &multihashed{Batching: n.Open("blocks"), back: map[ds.Key]ds.Key{}}
	ctx := t.Context()
	const count, size = 64, 1000
	expect := func(when string, blocks uint64) {
		t.Helper()
		st := n.Status()
		var inShards, bytes uint64
		for _, s := range st.Shards {
			inShards += s.Blocks
			bytes += s.Bytes
		}
		if inShards != blocks || bytes != blocks*size || st.Blocks != blocks || st.Keyspace.GetKeys() != 0 {
			t.Fatalf("%s: %d blocks and %d bytes in the shards, %d keys in the keyspace; want %d, %d, 0",
				when, inShards, bytes, st.Keyspace.GetKeys(), blocks, blocks*size)
		}
	}
	key := func(i int) ds.Key { return ds.NewKey(fmt.Sprint("block ", i)) }
	value := func(i int) []byte {
		v := make([]byte, size)
		copy(v, key(i).String())
		return v
	}
	expect("empty", 0)
	for i := range count {
		must(t, m.Put(ctx, key(i), value(i)))
	}
	expect("after Put", count)
	must(t, m.Put(ctx, key(0), value(0)))
	expect("after a Put of what is there", count)
	for i := range count {
		if v, err := m.Get(ctx, key(i)); err != nil || string(v) != string(value(i)) {
			t.Fatalf("Get %d: %v", i, err)
		}
		if has, err := m.Has(ctx, key(i)); err != nil || !has {
			t.Fatalf("Has %d: %v", i, err)
		}
		if s, err := m.GetSize(ctx, key(i)); err != nil || s != size {
			t.Fatalf("GetSize %d: %d %v", i, s, err)
		}
	}
	r, err := m.Query(ctx, query.Query{KeysOnly: true})
	must(t, err)
	entries, err := r.Rest()
	if err != nil || len(entries) != count {
		t.Fatalf("KeysOnly: %d keys, %v", len(entries), err)
	}
	b, err := m.Batch(ctx)
	must(t, err)
	for i := range count {
		must(t, b.Put(ctx, key(count+i), value(count+i)))
	}
	expect("before Commit", count)
	must(t, b.Commit(ctx))
	expect("after Commit", 2*count)
	for i := range count {
		must(t, m.Delete(ctx, key(i)))
	}
	expect("after Delete", count)
	b, err = m.Batch(ctx)
	must(t, err)
	for i := range count {
		must(t, b.Delete(ctx, key(count+i)))
	}
	must(t, b.Commit(ctx))
	expect("after a batch of deletes", 0)
}
