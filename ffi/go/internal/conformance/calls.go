package conformance

// What the suite does not ask: many callers, expiry, figures, limits.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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

func manyCallersEachFindTheirOwn(t *testing.T, serve Way) {
	n := serve(t, agenttest.Temp(t))
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

func aKeyWithATTLExpires(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("root")
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

func aBlockTakesNoTTLAndIsNotStored(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("blocks")
	k, v := block("x")
	if err := d.PutWithTTL(t.Context(), k, v, time.Hour); !errors.Is(err, datastore.ErrUnsupported) {
		t.Fatalf("%v", err)
	}
	if has, err := d.Has(t.Context(), k); has || err != nil {
		t.Fatalf("it was stored: %v %v", has, err)
	}
}

func diskUsageFallsAtOnceOnDelete(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("blocks")
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

func checkScrubAndCollectGarbagePassOnASoundNode(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("root")
	ctx := t.Context()
	k, v := block("x")
	must(t, d.Put(ctx, ds.NewKey("/blocks"+k.String()), v))
	must(t, d.Put(ctx, ds.NewKey("/pins/a"), v))
	must(t, d.Check(ctx))
	must(t, d.Scrub(ctx))
	must(t, d.CollectGarbage(ctx))
}

func badKeysAreRefusedByName(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("root")
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

func anOversizeValueIsRefusedAndTheNodeGoesOn(t *testing.T, serve Way) {
	d := serve(t, agenttest.Temp(t)).Open("root")
	huge := make([]byte, 256<<20)
	if err := d.Put(t.Context(), ds.NewKey("/huge"), huge); !errors.Is(err, datastore.ErrTooLarge) {
		t.Fatalf("%v", err)
	}
	must(t, d.Put(t.Context(), ds.NewKey("/small"), nil))
}
