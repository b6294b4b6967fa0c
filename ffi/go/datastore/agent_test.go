package datastore_test

// What the suite does not ask of a real agent: many callers, expiry, restarts, crashes.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	"github.com/ipfs/boxo/datastore/dshelp"
	blocks "github.com/ipfs/go-block-format"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

func block(text string) (ds.Key, []byte) {
	b := blocks.NewBlock([]byte(text))
	return dshelp.MultihashToDsKey(b.Cid().Hash()), b.RawData()
}

func TestManyCallersEachFindTheirOwn(t *testing.T) {
	n := agenttest.Serve(t)
	d, inBlocks := n.Open("pins"), n.Open("blocks")
	const callers, each = 32, 60
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			ctx := context.Background()
			for i := range each {
				text := fmt.Sprintf("%d of %d", i, c)
				k, v := block(text)
				meta := ds.NewKey(fmt.Sprintf("/%d/%d", c, i))
				shared := ds.NewKey(fmt.Sprintf("/shared/%d", i))
				for _, err := range []error{inBlocks.Put(ctx, k, v), d.Put(ctx, meta, v), d.Put(ctx, shared, v)} {
					if err != nil {
						t.Error(err)
						return
					}
				}
				if got, err := inBlocks.Get(ctx, k); err != nil || string(got) != text {
					t.Errorf("block %q: %q %v", text, got, err)
				}
				if got, err := d.Get(ctx, meta); err != nil || string(got) != text {
					t.Errorf("key %s: %q %v", meta, got, err)
				}
				if got, err := d.Get(ctx, shared); err != nil || !strings.HasPrefix(string(got), fmt.Sprintf("%d of ", i)) {
					t.Errorf("key %s: %q %v", shared, got, err)
				}
				if i%3 == 0 {
					if err := d.Delete(ctx, meta); err != nil {
						t.Error(err)
					}
					if has, err := d.Has(ctx, meta); err != nil || has {
						t.Errorf("key %s was deleted: %v %v", meta, has, err)
					}
				}
			}
		})
	}
	wg.Wait()
	for c := range callers {
		r, err := d.Query(t.Context(), query.Query{Prefix: fmt.Sprint("/", c), KeysOnly: true})
		must(t, err)
		if entries, err := r.Rest(); err != nil || len(entries) != each*2/3 {
			t.Errorf("caller %d: %d keys, %v", c, len(entries), err)
		}
	}
}

func TestAKeyWithATTLExpires(t *testing.T) {
	d := agenttest.Serve(t).Open("root")
	ctx := t.Context()
	long, short, never := ds.NewKey("/ttl/long"), ds.NewKey("/ttl/short"), ds.NewKey("/ttl/never")
	must(t, d.PutWithTTL(ctx, long, []byte("x"), time.Hour))
	must(t, d.PutWithTTL(ctx, short, []byte("x"), time.Millisecond))
	must(t, d.Put(ctx, never, []byte("x")))

	at, err := d.GetExpiration(ctx, long)
	if left := time.Until(at); err != nil || left < 59*time.Minute || left > time.Hour {
		t.Errorf("expires in %s, %v", left, err)
	}
	if at, err := d.GetExpiration(ctx, never); err != nil || !at.IsZero() {
		t.Errorf("a key without a TTL expires at %s, %v", at, err)
	}
	agenttest.Eventually(t, "the key is gone", func() error {
		if _, err := d.Get(ctx, short); err != ds.ErrNotFound {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	if has, err := d.Has(ctx, short); has || err != nil {
		t.Errorf("Has of an expired key: %v %v", has, err)
	}
	if _, err := d.GetExpiration(ctx, short); err != ds.ErrNotFound {
		t.Errorf("expiration of an expired key: %v", err)
	}
	if err := d.SetTTL(ctx, ds.NewKey("/ttl/absent"), time.Hour); err != ds.ErrNotFound {
		t.Errorf("SetTTL of an absent key: %v", err)
	}
	must(t, d.SetTTL(ctx, never, time.Hour))
	r, err := d.Query(ctx, query.Query{Prefix: "/ttl", KeysOnly: true, ReturnExpirations: true})
	must(t, err)
	entries, err := r.Rest()
	must(t, err)
	if len(entries) != 2 {
		t.Fatalf("%d entries, want long and never: %v", len(entries), entries)
	}
	for _, e := range entries {
		if left := time.Until(e.Expiration); left < 59*time.Minute || left > time.Hour {
			t.Errorf("%s expires in %s", e.Key, left)
		}
	}
	if err := d.PutWithTTL(ctx, long, nil, 0); !errors.Is(err, datastore.ErrInvalidValue) {
		t.Errorf("a ttl of zero: %v", err)
	}
}

func TestABlockTakesNoTTLAndIsNotStored(t *testing.T) {
	d := agenttest.Serve(t).Open("blocks")
	k, v := block("x")
	if err := d.PutWithTTL(t.Context(), k, v, time.Hour); !errors.Is(err, datastore.ErrUnsupported) {
		t.Fatalf("%v", err)
	}
	if has, err := d.Has(t.Context(), k); has || err != nil {
		t.Fatalf("it was stored: %v %v", has, err)
	}
}

func TestDiskUsageFallsAtOnceOnDelete(t *testing.T) {
	d := agenttest.Serve(t).Open("blocks")
	ctx := t.Context()
	usage := func() uint64 {
		u, err := d.DiskUsage(ctx)
		must(t, err)
		return u
	}
	before := usage()
	k, v := block(strings.Repeat("x", 10_000))
	must(t, d.Put(ctx, k, v))
	if after := usage(); after < before+10_000 {
		t.Errorf("%d, then %d after a Put of 10000 bytes", before, after)
	}
	must(t, d.Delete(ctx, k))
	if after := usage(); after != before {
		t.Errorf("%d, then %d after the Delete", before, after)
	}
}

func TestCheckScrubAndCollectGarbagePassOnASoundNode(t *testing.T) {
	d := agenttest.Serve(t).Open("root")
	ctx := t.Context()
	k, v := block("x")
	must(t, d.Put(ctx, ds.NewKey("/blocks"+k.String()), v))
	must(t, d.Put(ctx, ds.NewKey("/pins/a"), v))
	must(t, d.Check(ctx))
	must(t, d.Scrub(ctx))
	must(t, d.CollectGarbage(ctx))
}

func TestBadKeysAreRefusedByName(t *testing.T) {
	d := agenttest.Serve(t).Open("root")
	if err := d.Put(t.Context(), ds.RawKey("/\xff"), nil); !errors.Is(err, datastore.ErrInvalidKey) {
		t.Errorf("a key that is not UTF-8: %v", err)
	}
	if err := d.Put(t.Context(), ds.NewKey("/"+strings.Repeat("k", 1<<20)), nil); err == nil {
		t.Error("a key of 1 MiB was taken")
	}
	if _, err := d.Query(t.Context(), query.Query{Filters: []query.Filter{query.FilterKeyCompare{Op: "~", Key: "/a"}}}); !errors.Is(err, datastore.ErrInvalidValue) {
		t.Errorf("an unknown comparison: %v", err)
	}
}

func TestAnOversizeValueIsRefusedAndTheNodeGoesOn(t *testing.T) {
	d := agenttest.Serve(t).Open("root")
	huge := make([]byte, 256<<20)
	if err := d.Put(t.Context(), ds.NewKey("/huge"), huge); !errors.Is(err, datastore.ErrTooLarge) {
		t.Fatalf("%v", err)
	}
	must(t, d.Put(t.Context(), ds.NewKey("/small"), nil))
}

func TestWhatWasWrittenOutlivesAnOrderlyRestart(t *testing.T) {
	n := agenttest.Serve(t)
	d := n.Open("root")
	ctx := t.Context()
	bk, bv := block("kept")
	must(t, d.Put(ctx, ds.NewKey("/blocks"+bk.String()), bv))
	must(t, d.Put(ctx, ds.NewKey("/pins/a"), []byte("pin")))
	n.Stop()
	n.Start()
	for k, v := range map[string]string{"/blocks" + bk.String(): "kept", "/pins/a": "pin"} {
		if got, err := d.Get(ctx, ds.NewKey(k)); err != nil || string(got) != v {
			t.Errorf("%s: %q %v", k, got, err)
		}
	}
}

func TestAQueryOutlivesARestartOfTheAgent(t *testing.T) {
	n := agenttest.Init(t, agenttest.Temp(t), "--shards", "2")
	n.Start("--set", "node.drain_deadline_ms=100") // or the agent would let the query end first
	d := n.Open("root")
	ctx := t.Context()
	const count = 300
	want := map[string]bool{}
	b, err := d.Batch(ctx)
	must(t, err)
	for i := range count {
		k, v := block(strings.Repeat(fmt.Sprint(i), 20_000))
		key := "/blocks" + k.String()
		if i%2 == 0 {
			key = fmt.Sprintf("/pins/%d", i)
		}
		want[key] = true
		must(t, b.Put(ctx, ds.NewKey(key), v))
	}
	must(t, b.Commit(ctx))
	must(t, d.Sync(ctx, ds.NewKey("/")))
	r, err := d.Query(ctx, query.Query{})
	must(t, err)
	for i := 0; ; i++ {
		e, ok := r.NextSync()
		if !ok {
			break
		}
		must(t, e.Error)
		if !want[e.Key] {
			t.Fatalf("%s came twice, or was never put", e.Key)
		}
		delete(want, e.Key)
		if i == 10 {
			n.Stop()
			n.Start()
		}
	}
	if len(want) != 0 {
		t.Fatalf("%d keys were skipped", len(want))
	}
}

// The promise of a process that dies: what was acknowledged is there, whatever the class, for the machine did not lose power.
func TestAcknowledgedWritesSurviveKill9UnderLoad(t *testing.T) {
	for _, durability := range []string{"strict", "ordered"} {
		t.Run(durability, func(t *testing.T) {
			n := agenttest.Serve(t, "--durability", durability, "--shards", "2")
			d := n.Open("root")
			ctx := t.Context()
			var mu sync.Mutex
			acknowledged := map[string]string{}
			var count atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						text := fmt.Sprintf("%d.%d %s", w, i, strings.Repeat("x", i%5000))
						k, v := block(text)
						key := "/blocks" + k.String()
						if i%4 == 0 {
							key = fmt.Sprintf("/pins/%d/%d", w, i)
						}
						if err := d.Put(ctx, ds.NewKey(key), v); err != nil {
							t.Errorf("put: %v", err)
							return
						}
						mu.Lock()
						acknowledged[key] = text
						mu.Unlock()
						count.Add(1)
					}
				})
			}
			for range 4 {
				from := count.Load()
				agenttest.Eventually(t, "writers write", func() error {
					if got := count.Load(); got < from+200 {
						return fmt.Errorf("%d writes", got-from)
					}
					return nil
				})
				n.Kill()
				n.Start()
			}
			close(stop)
			wg.Wait()
			for key, text := range acknowledged {
				if got, err := d.Get(ctx, ds.NewKey(key)); err != nil || string(got) != text {
					t.Fatalf("%s was acknowledged; of %d: %v", key, len(acknowledged), err)
				}
			}
			must(t, d.Check(ctx))
			t.Logf("%d acknowledged writes over 4 kills", len(acknowledged))
		})
	}
}

const idleMaxMiB = 64

func TestAnIdleAgentStaysSmall(t *testing.T) {
	n := agenttest.Serve(t)
	d := n.Open("root")
	for i := range 100 {
		k, v := block(fmt.Sprint(i))
		must(t, d.Put(t.Context(), ds.NewKey("/blocks"+k.String()), v))
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			value, err := strconv.Atoi(strings.Fields(kib)[0])
			must(t, err)
			t.Logf("%d KiB resident", value)
			if value > idleMaxMiB<<10 {
				t.Errorf("an idle agent holds %d KiB, the bound is %d MiB", value, idleMaxMiB)
			}
			return
		}
	}
	t.Fatal("no VmRSS")
}
