package conformance

// Random operations on a real node and on go-datastore's map store side by side: what one answers, the other must. A failure prints
// the seed; BASALT_SEED=n runs that one again. (go-datastore has such a comparer of its own, but as a program and not as a library.)

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"basalt.dev/go/internal/agenttest"
	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	detectrace "github.com/ipfs/go-detect-race"
)

const comparedOperations = 20_000

func seed(t *testing.T) *rand.Rand {
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("BASALT_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("run this again with BASALT_SEED=%d", s)
		}
	})
	return rand.New(rand.NewPCG(s, 0))
}

// comparer makes the operations. In blocks mode a value has one key, its multihash, as in Kubo.
type comparer struct {
	t      *testing.T
	r      *rand.Rand
	real   ds.Batching
	model  ds.Batching
	blocks bool
	log    []string
}

func (c *comparer) value() []byte {
	if c.r.IntN(20) == 0 {
		return []byte{}
	}
	v := make([]byte, 1+c.r.IntN(200))
	if c.r.IntN(50) == 0 {
		v = make([]byte, 64<<10+c.r.IntN(300<<10))
	}
	for i := range v {
		v[i] = byte(c.r.Uint32())
	}
	if c.blocks {
		// Few enough to come again: the value is a function of a small number.
		n := c.r.IntN(400)
		v = bytes.Repeat([]byte{byte(n), byte(n >> 8)}, n*n%3000)
	}
	return v
}

var words = []string{"a", "b", "ab", "A", "0", "a:b", "blocks", "pins", "x y", "ü", "a.b", "~", "!", "CIQ"}

func (c *comparer) keyOf(v []byte) ds.Key {
	if c.blocks {
		digest := sha256.Sum256(v)
		return dshelp.NewKeyFromBinary(append([]byte{0x12, 0x20}, digest[:]...))
	}
	k := ""
	for range 1 + c.r.IntN(4) {
		k += "/" + words[c.r.IntN(len(words))]
	}
	return ds.NewKey(k)
}

func (c *comparer) some() (ds.Key, []byte) {
	v := c.value()
	return c.keyOf(v), v
}

func (c *comparer) note(format string, args ...any) {
	c.log = append(c.log, fmt.Sprintf(format, args...))
	if len(c.log) > 30 {
		c.log = c.log[1:]
	}
}

func (c *comparer) fail(format string, args ...any) {
	c.t.Helper()
	for _, line := range c.log {
		c.t.Log(line)
	}
	c.t.Fatalf(format, args...)
}

func (c *comparer) same(what string, real, model any, realErr, modelErr error) {
	c.t.Helper()
	if realErr != modelErr {
		c.fail("%s: error %v, the map store says %v", what, realErr, modelErr)
	}
	if fmt.Sprint(real) != fmt.Sprint(model) {
		c.fail("%s: %.100v, the map store says %.100v", what, real, model)
	}
}

func (c *comparer) query() query.Query {
	q := query.Query{KeysOnly: c.r.IntN(2) == 0, ReturnsSizes: c.r.IntN(2) == 0}
	pick := func() string { return c.keyOf(c.value()).String() }
	if c.r.IntN(2) == 0 && !c.blocks {
		q.Prefix = []string{"/", "", "/a", "/a/", "/blocks", "a/b", "/ab/../a", "/pins/a", "/nothing"}[c.r.IntN(9)]
	}
	for range c.r.IntN(3) {
		op := []query.Op{query.Equal, query.NotEqual, query.GreaterThan, query.GreaterThanOrEqual, query.LessThan, query.LessThanOrEqual}[c.r.IntN(6)]
		switch c.r.IntN(5) {
		case 0:
			q.Filters = append(q.Filters, query.FilterKeyCompare{Op: op, Key: pick()})
		case 1:
			q.Filters = append(q.Filters, &query.FilterValueCompare{Op: op, Value: c.value()})
		case 2:
			q.Filters = append(q.Filters, query.FilterKeyPrefix{Prefix: pick()[:2]})
		case 3:
			q.Filters = append(q.Filters, oddFilter{})
		}
	}
	for range c.r.IntN(3) {
		q.Orders = append(q.Orders, []query.Order{
			query.OrderByKey{}, &query.OrderByKeyDescending{}, query.OrderByValue{}, query.OrderByValueDescending{},
			query.OrderByFunction(func(a, b query.Entry) int { return len(a.Key) - len(b.Key) }),
		}[c.r.IntN(5)])
	}
	if len(q.Orders) > 0 {
		// Without an order, which ones a limit takes is open.
		q.Offset, q.Limit = c.r.IntN(2)*c.r.IntN(30), c.r.IntN(2)*c.r.IntN(30)
	}
	return q
}

type oddFilter struct{}

func (oddFilter) Filter(e query.Entry) bool { return len(e.Key)%2 == 1 }

func (c *comparer) rest(d ds.Datastore, q query.Query) []query.Entry {
	c.t.Helper()
	r, err := d.Query(c.t.Context(), q)
	if err != nil {
		c.fail("query %s: %v", q, err)
	}
	entries, err := r.Rest()
	if err != nil {
		c.fail("query %s: %v", q, err)
	}
	if len(q.Orders) == 0 {
		query.Sort([]query.Order{query.OrderByKey{}}, entries)
	}
	return entries
}

func (c *comparer) compareQuery(q query.Query) {
	c.t.Helper()
	real, model := c.rest(c.real, q), c.rest(c.model, q)
	for i := range max(len(real), len(model)) {
		if i >= len(real) || i >= len(model) {
			c.fail("query %s: %d entries, the map store has %d", q, len(real), len(model))
		}
		a, b := real[i], model[i]
		if a.Key != b.Key || !bytes.Equal(a.Value, b.Value) || (a.Value == nil) != (b.Value == nil) || (q.ReturnsSizes || !q.KeysOnly) && a.Size != b.Size {
			c.fail("query %s, entry %d: %q %d bytes size %d, the map store has %q %d bytes size %d", q, i, a.Key, len(a.Value), a.Size, b.Key, len(b.Value), b.Size)
		}
	}
}

func (c *comparer) step() {
	ctx := c.t.Context()
	k, v := c.some()
	switch op := c.r.IntN(100); {
	case op < 30:
		c.note("put %s (%d bytes)", k, len(v))
		c.same("put", nil, nil, c.real.Put(ctx, k, v), c.model.Put(ctx, k, v))
	case op < 45:
		c.note("get %s", k)
		a, aErr := c.real.Get(ctx, k)
		b, bErr := c.model.Get(ctx, k)
		c.same("get "+k.String(), a, b, aErr, bErr)
		if (a == nil) != (b == nil) {
			c.fail("get %s: nil is for what is absent", k)
		}
	case op < 55:
		a, aErr := c.real.Has(ctx, k)
		b, bErr := c.model.Has(ctx, k)
		c.same("has "+k.String(), a, b, aErr, bErr)
	case op < 65:
		a, aErr := c.real.GetSize(ctx, k)
		b, bErr := c.model.GetSize(ctx, k)
		c.same("size "+k.String(), a, b, aErr, bErr)
	case op < 85:
		c.note("delete %s", k)
		c.same("delete", nil, nil, c.real.Delete(ctx, k), c.model.Delete(ctx, k))
	case op < 92:
		a, aErr := c.real.Batch(ctx)
		b, bErr := c.model.Batch(ctx)
		c.same("batch", nil, nil, aErr, bErr)
		for range c.r.IntN(20) {
			k, v := c.some()
			if c.r.IntN(3) == 0 {
				c.note("batch delete %s", k)
				c.same("batch delete", nil, nil, a.Delete(ctx, k), b.Delete(ctx, k))
			} else {
				c.note("batch put %s (%d bytes)", k, len(v))
				c.same("batch put", nil, nil, a.Put(ctx, k, v), b.Put(ctx, k, v))
			}
		}
		c.note("commit")
		c.same("commit", nil, nil, a.Commit(ctx), b.Commit(ctx))
	case op < 93:
		c.note("sync %s", k)
		c.same("sync", nil, nil, c.real.Sync(ctx, k), c.model.Sync(ctx, k))
	case op < 97:
		c.compareQuery(c.query())
	default:
		a, err := c.real.(ds.Datastore).Has(ctx, ds.NewKey("/absent/for/ever"))
		c.same("has of what never was", a, false, err, nil)
	}
}

func compare(t *testing.T, real ds.Batching, blocks bool) {
	c := &comparer{t: t, r: seed(t), real: real, model: dssync.MutexWrap(ds.NewMapDatastore()), blocks: blocks}
	operations := comparedOperations
	if detectrace.WithRace() {
		operations /= 10
	}
	for range operations {
		c.step()
	}
	c.compareQuery(query.Query{})
}

func theNodeAnswersAsTheMapStoreDoes(t *testing.T, serve Way) {
	compare(t, serve(t, agenttest.Temp(t)).Open("root"), false)
}

func theViewsOfANodeAnswerAsTheMapStoreDoes(t *testing.T, serve Way) {
	compare(t, serve(t, agenttest.Temp(t)).Open("pins"), false)
}

func blocksAnswerAsTheMapStoreDoes(t *testing.T, serve Way) {
	n := serve(t, agenttest.Temp(t), "--shards", "3")
	d := n.Open("blocks")
	compare(t, d, true)
	entries, err := d.Query(context.Background(), query.Query{KeysOnly: true})
	must(t, err)
	keys, err := entries.Rest()
	must(t, err)
	if st := n.Status(); st.Blocks != uint64(len(keys)) || st.Keyspace.GetKeys() != 0 {
		t.Fatalf("%d blocks and %d other keys in the node, %d keys in the view", st.Blocks, st.Keyspace.GetKeys(), len(keys))
	}
}
