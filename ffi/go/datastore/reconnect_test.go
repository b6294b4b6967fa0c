package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCallsGoOnAfterTheAgentRestarts(t *testing.T) {
	f := newFake(t)
	d := f.open()
	ctx := t.Context()
	must(t, d.Put(ctx, ds.NewKey("/a"), []byte("1")))
	f.restart()
	v, err := d.Get(ctx, ds.NewKey("/a"))
	if err != nil || string(v) != "1" {
		t.Fatalf("got %q, %v", v, err)
	}
	if f.handshakes != 2 {
		t.Fatalf("%d handshakes, each connection must begin with one: want 2", f.handshakes)
	}
}

// A Kubo lives for months, over many lives of its agent; most of them end while no call is under way.
func TestALostConnectionLeavesNothingBehind(t *testing.T) {
	const restarts = 20
	f := newFake(t)
	d := f.open()
	ctx := t.Context()
	must(t, d.Put(ctx, ds.NewKey("/a"), []byte("1")))
	before := runtime.NumGoroutine()
	for range restarts {
		f.restart()
		_, err := d.Has(ctx, ds.NewKey("/a"))
		must(t, err)
	}
	agenttest.Eventually(t, "no goroutine is left of connections that are lost", func() error {
		if now := runtime.NumGoroutine(); now > before+restarts/2 {
			return fmt.Errorf("%d goroutines, %d before %d restarts", now, before, restarts)
		}
		return nil
	})
}

func TestAnAgentThatStaysAwayIsNamedWithSocketAndRemedy(t *testing.T) {
	f := newFake(t)
	d := f.open(func(c *datastore.Config) { c.Retry = 100 * time.Millisecond; c.NodePath = "/some/node" })
	f.stop()
	began := time.Now()
	_, err := d.Get(t.Context(), ds.NewKey("/a"))
	if !errors.Is(err, datastore.ErrAway) {
		t.Fatalf("want ErrAway, got %v", err)
	}
	for _, want := range []string{f.socket, "basalt agent --node /some/node", "need not be restarted"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if time.Since(began) > 5*time.Second {
		t.Errorf("gave up after %s, the bound is 100 ms", time.Since(began))
	}
	f.start()
	if _, err := d.Has(t.Context(), ds.NewKey("/a")); err != nil {
		t.Errorf("the agent is back: %v", err)
	}
}

func TestOpenWithNobodyServingSaysSoAtOnce(t *testing.T) {
	began := time.Now()
	_, err := datastore.Open(t.Context(), datastore.Config{Sockets: []string{t.TempDir() + "/data.sock"}, Role: "root"})
	if !errors.Is(err, datastore.ErrAway) || time.Since(began) > 5*time.Second {
		t.Fatalf("after %s: %v", time.Since(began), err)
	}
}

func TestANodeWithAnotherIdIsRefusedByName(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.NodeID = "mine"
	_, err := datastore.Open(t.Context(), cfg)
	if !errors.Is(err, datastore.ErrRefused) || !strings.Contains(err.Error(), "mine") || !strings.Contains(err.Error(), "fakenode") {
		t.Fatalf("%v", err)
	}
}

func TestANodeThatBecomesAnotherOneIsRefusedNotUsed(t *testing.T) {
	f := newFake(t)
	d := f.open()
	f.stop()
	f.id = "other"
	f.start()
	if err := d.Put(t.Context(), ds.NewKey("/a"), nil); !errors.Is(err, datastore.ErrRefused) {
		t.Fatalf("%v", err)
	}
	if f.count("Put") != 0 {
		t.Fatal("the Put reached the foreign node")
	}
}

func TestAnErrorOfTheNodeIsNotTriedAgain(t *testing.T) {
	f := newFake(t)
	d := f.open()
	f.mu.Lock()
	f.fail = func(method string) error {
		if method == "Put" {
			return status.Error(codes.ResourceExhausted, "the shard is full")
		}
		return nil
	}
	f.mu.Unlock()
	err := d.Put(t.Context(), ds.NewKey("/a"), nil)
	if err == nil || !strings.Contains(err.Error(), "the shard is full") || f.count("Put") != 1 {
		t.Fatalf("%d calls: %v", f.count("Put"), err)
	}
}

func TestACancelledCallerWaitsForNoAgentThatIsAway(t *testing.T) {
	f := newFake(t)
	d := f.open()
	f.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if _, err := d.Get(ctx, ds.NewKey("/a")); err != context.Canceled {
		t.Fatalf("got %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Get(ctx, ds.NewKey("/a")); err != context.DeadlineExceeded {
		t.Fatalf("got %v", err)
	}
	if time.Since(began) > 5*time.Second {
		t.Errorf("it took %s", time.Since(began))
	}
	f.start()
}

// Kubo saves its provide queue at shutdown with a context that is cancelled already.
func TestACancelledCallerIsServedByAnAgentThatAnswers(t *testing.T) {
	f := newFake(t)
	d := f.open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := ds.NewKey("/a")
	must(t, d.Put(ctx, k, []byte("1")))
	if v, err := d.Get(ctx, k); err != nil || string(v) != "1" {
		t.Fatalf("got %q, %v", v, err)
	}
	r, err := d.Query(ctx, query.Query{KeysOnly: true})
	must(t, err)
	if entries, err := r.Rest(); err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	b, err := d.Batch(ctx)
	must(t, err)
	must(t, b.Delete(ctx, k))
	must(t, b.Commit(ctx))
	must(t, d.Sync(ctx, ds.NewKey("/")))
}

func TestACancelledCallerIsLetGoByAnAgentThatHangs(t *testing.T) {
	f := newFake(t)
	d := f.open()
	release := make(chan struct{})
	f.mu.Lock()
	f.fail = func(method string) error {
		if method == "Get" {
			<-release
		}
		return nil
	}
	f.mu.Unlock()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.Get(ctx, ds.NewKey("/a")); err != context.DeadlineExceeded {
		t.Fatalf("got %v", err)
	}
}

func TestADeleteWhoseOutcomeIsUnknownIsSentAgain(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Put(t.Context(), ds.NewKey("/a"), nil))
	var once sync.Once
	f.onDelete = func() (breaks bool) { once.Do(func() { breaks = true }); return }
	must(t, d.Delete(t.Context(), ds.NewKey("/a")))
	if f.count("Delete") != 2 {
		t.Fatalf("%d calls", f.count("Delete"))
	}
}

func TestADeleteIsNotSentAgainOverALaterPut(t *testing.T) {
	f := newFake(t)
	d := f.open(func(c *datastore.Config) { c.Connections = 2 })
	k := ds.NewKey("/a")
	must(t, d.Put(t.Context(), k, []byte("old")))
	var once sync.Once
	f.onDelete = func() (breaks bool) {
		once.Do(func() {
			must(t, d.Put(t.Context(), k, []byte("new"))) // acknowledged while the Delete is on its way
			breaks = true
		})
		return
	}
	err := d.Delete(t.Context(), k)
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "outcome unknown") {
		t.Fatalf("%v", err)
	}
	if v, err := d.Get(t.Context(), k); err != nil || string(v) != "new" {
		t.Fatalf("the acknowledged Put is gone: %q %v", v, err)
	}
}

func fill(t *testing.T, d ds.Datastore, n int) (keys []string) {
	t.Helper()
	for i := range n {
		k := fmt.Sprintf("/q/%03d", i)
		must(t, d.Put(t.Context(), ds.NewKey(k), []byte{byte(i)}))
		keys = append(keys, k)
	}
	return keys
}

func TestAQueryThatBreaksGoesOnNeitherSkippingNorRepeating(t *testing.T) {
	for _, mount := range []string{"root", "blocks"} {
		f := newFake(t)
		d := f.open(func(c *datastore.Config) { c.Role = mount })
		want := fill(t, d, 20)
		breaks := 0
		f.onQuery = func(*basaltv1.QueryRequest) int {
			if breaks++; breaks > 3 {
				return -1
			}
			return breaks
		}
		r, err := d.Query(t.Context(), query.Query{Prefix: "/q", KeysOnly: true})
		must(t, err)
		entries, err := r.Rest()
		must(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Key)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("%s: got %v", mount, got)
		}
		if breaks != 4 {
			t.Fatalf("the stream broke %d times, not 3: nothing was tested", breaks-1)
		}
	}
}

func TestAnOrderedQueryThatBreaksIsAnErrorNeverAShortList(t *testing.T) {
	for _, q := range []query.Query{
		{Prefix: "/q", Orders: []query.Order{query.OrderByValue{}}},
		{Prefix: "/q", Limit: 15},
		{Prefix: "/q", Offset: 1},
	} {
		f := newFake(t)
		d := f.open()
		fill(t, d, 20)
		arrived := make(chan struct{})
		f.onQuery, f.breaking = func(*basaltv1.QueryRequest) int { return 2 }, arrived
		r, err := d.Query(t.Context(), q)
		must(t, err)
		close(arrived) // a query of which nothing has come yet may begin again
		if entries, err := r.Rest(); !errors.Is(err, datastore.ErrUnavailable) {
			t.Fatalf("%s: %d entries, %v", q, len(entries), err)
		}
	}
}

func TestAStreamThatEndsWithoutSayingCompleteIsAnError(t *testing.T) {
	f := newFake(t)
	d := f.open()
	fill(t, d, 20)
	f.endEarly = true
	r, err := d.Query(t.Context(), query.Query{Prefix: "/q"})
	must(t, err)
	if entries, err := r.Rest(); err == nil {
		t.Fatalf("%d entries and no error", len(entries))
	}
}

func TestAnAgentThatStaysAwayEndsAQueryInAnError(t *testing.T) {
	f := newFake(t)
	d := f.open(func(c *datastore.Config) { c.Retry = 100 * time.Millisecond })
	fill(t, d, 20)
	r, err := d.Query(t.Context(), query.Query{Prefix: "/q", KeysOnly: true})
	must(t, err)
	if _, ok := r.NextSync(); !ok {
		t.Fatal("nothing")
	}
	f.stop()
	entries, err := r.Rest()
	// What was on its way may still be handed out, but then all of it or an error.
	if err == nil && len(entries) != 19 {
		t.Fatalf("%d entries and no error", len(entries))
	}
	f.start()
}

func TestABatchIsSentInChunksAndAgainAsAWhole(t *testing.T) {
	f := newFake(t)
	d := f.open()
	b, err := d.Batch(t.Context())
	must(t, err)
	value := make([]byte, 300<<10)
	for i := range 20 {
		must(t, b.Put(t.Context(), ds.NewKey(fmt.Sprint(i)), value))
	}
	must(t, b.Put(t.Context(), ds.NewKey("large"), make([]byte, 5<<20)))
	f.restart()
	must(t, b.Commit(t.Context()))
	if got := f.count("BatchChunk"); got != 8 { // three of 300 KiB in one, and the large one alone
		t.Fatalf("%d chunks", got)
	}
	if len(f.data) != 21 {
		t.Fatalf("%d keys", len(f.data))
	}
	if err := b.Commit(t.Context()); err == nil {
		t.Fatal("a second Commit of one batch must be refused")
	}
}

func TestAValueOverTheLimitIsRefusedBeforeItIsSent(t *testing.T) {
	f := newFake(t)
	f.limit = 100
	d := f.open()
	err := d.Put(t.Context(), ds.NewKey("/a"), make([]byte, 101))
	if !errors.Is(err, datastore.ErrTooLarge) || !strings.Contains(err.Error(), "101") || !strings.Contains(err.Error(), "100") || f.count("Put") != 0 {
		t.Fatalf("%v", err)
	}
}

func TestViewsOfOneNodeShareTheirConnections(t *testing.T) {
	f := newFake(t)
	f.open(func(c *datastore.Config) { c.Role = "blocks" })
	pins := f.open(func(c *datastore.Config) { c.Role = "pins" })
	if f.handshakes != 1 {
		t.Fatalf("%d handshakes", f.handshakes)
	}
	if usage, err := pins.DiskUsage(t.Context()); err != nil || usage != 0 {
		t.Fatalf("the node would be counted twice: %d %v", usage, err)
	}
}

func TestThePinsViewAloneReportsTheNodesUsage(t *testing.T) {
	f := newFake(t)
	pins := f.open(func(c *datastore.Config) { c.Role = "pins" })
	if usage, err := pins.DiskUsage(t.Context()); err != nil || usage != 42 {
		t.Fatalf("%d %v", usage, err)
	}
}

func TestAClosedDatastoreSaysSo(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Put(t.Context(), ds.NewKey("/a"), nil))
	must(t, d.Close())
	must(t, d.Close())
	if f.count("Sync") != 1 {
		t.Fatalf("Close made %d Syncs of what was written, want 1", f.count("Sync"))
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), nil); !errors.Is(err, datastore.ErrClosed) {
		t.Fatalf("%v", err)
	}
	if _, err := d.Query(t.Context(), query.Query{}); !errors.Is(err, datastore.ErrClosed) {
		t.Fatalf("%v", err)
	}
}

func TestCloseEndsAQueryThatNobodyReads(t *testing.T) {
	f := newFake(t)
	d := f.open()
	fill(t, d, 20)
	r, err := d.Query(t.Context(), query.Query{Prefix: "/q"})
	must(t, err)
	must(t, r.Close())
	must(t, r.Close())
	if _, ok := r.NextSync(); ok {
		t.Fatal("a closed query hands out results")
	}
}

func TestKindsOfTheNodeAreKeptForErrorsIs(t *testing.T) {
	for kind, want := range map[string]error{
		"NoSpace": datastore.ErrNoSpace, "Corrupt": datastore.ErrCorrupt, "TooLarge": datastore.ErrTooLarge,
		"InvalidKey": datastore.ErrInvalidKey, "ReadOnly": datastore.ErrReadOnly, "Unavailable": datastore.ErrUnavailable,
		"Unsupported": datastore.ErrUnsupported, "NotFound": ds.ErrNotFound,
	} {
		f := newFake(t)
		f.kind = kind
		d := f.open()
		_, err := d.Get(t.Context(), ds.NewKey("/a"))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
		if kind == "NotFound" && err != ds.ErrNotFound {
			t.Error("boxo compares with ==: the value must be identical")
		}
	}
}
