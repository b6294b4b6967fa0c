//go:build cgo

package native

// What is peculiar to a node in the caller's own process.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

func made(t *testing.T, flags ...string) inProcess {
	return inProcess{agenttest.Init(t, agenttest.Temp(t), flags...), t}
}

func block(i, size int) (ds.Key, []byte) {
	v := bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i >> 16)}, size/3+1)[:size]
	digest := sha256.Sum256(v)
	return dshelp.NewKeyFromBinary(append([]byte{0x12, 0x20}, digest[:]...)), v
}

func TestAPanicInTheNodeIsAnError(t *testing.T) {
	n := made(t)
	d := n.Open("root")
	for range 2 {
		err := provoke("on purpose")
		if !errors.Is(err, datastore.ErrPanicked) {
			t.Fatalf("%v", err)
		}
		for _, want := range []string{"on purpose", "abi.rs", "unknown"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not say %q: %v", want, err)
			}
		}
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), []byte("x")); err != nil {
		t.Errorf("the node does not go on: %v", err)
	}
}

func TestAClosedHandleIsAnErrorAndNotUndefinedBehaviour(t *testing.T) {
	n := made(t)
	way, err := open(n.config("root"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := way.Put(ctx, "/a", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := way.Close(); err != nil {
		t.Fatal(err)
	}
	closed := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, datastore.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	closed("close again", way.Close())
	_, err = way.Get(ctx, "/a")
	closed("get", err)
	_, err = way.Has(ctx, "/a")
	closed("has", err)
	closed("put", way.Put(ctx, "/a", nil, 0))
	closed("sync", way.Sync(ctx, "/"))
	closed("check", way.Check(ctx))
	made := &node{handle: 1 << 40}
	closed("a handle that never was", made.Close())
}

func TestViewsShareANodeAndTheLastOneClosesIt(t *testing.T) {
	n := made(t)
	blocks, err := Open(n.config("blocks"))
	if err != nil {
		t.Fatal(err)
	}
	pins, err := Open(n.config("pins"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	k, v := block(1, 1000)
	if err := blocks.Put(ctx, k, v); err != nil {
		t.Fatal(err)
	}
	if clients := n.Status().Clients; len(clients) < 2 {
		t.Errorf("status shows %v, want both views", clients)
	}
	if used, err := pins.DiskUsage(ctx); used != 0 || err != nil {
		t.Errorf("the view pins counts the node a second time: %d %v", used, err)
	}
	if err := blocks.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pins.Put(ctx, ds.NewKey("/a"), []byte("x")); err != nil {
		t.Errorf("the other view was closed too: %v", err)
	}
	if used, err := pins.DiskUsage(ctx); used < 1000 || err != nil {
		t.Errorf("the last view counts the node: %d %v", used, err)
	}
	if !n.Owned() {
		t.Error("the node was closed")
	}
	if err := pins.Close(); err != nil {
		t.Fatal(err)
	}
	if n.Owned() {
		t.Error("the node is still open")
	}
	again := n.Open("blocks")
	if got, err := again.Get(ctx, k); err != nil || !bytes.Equal(got, v) {
		t.Errorf("after it was opened again: %d bytes, %v", len(got), err)
	}
}

func TestOpeningAndClosingSideBySideNeverMeetsAHalfOpenNode(t *testing.T) {
	n := made(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 5 {
				d, err := Open(n.config("root"))
				if err != nil {
					t.Error(err)
					return
				}
				if err := d.Put(context.Background(), ds.NewKey(fmt.Sprint("/", w, "/", i)), []byte("x")); err != nil {
					t.Error(err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r, err := n.Open("root").Query(t.Context(), query.Query{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := r.Rest(); len(entries) != 20 || err != nil {
		t.Errorf("%d keys, %v", len(entries), err)
	}
}

func TestAnAutostartedAgentHandsOver(t *testing.T) {
	n := made(t)
	agent := exec.Command(agenttest.Basalt(t), "agent", "--node", n.Path, "--exit-when-idle")
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer agent.Process.Kill()
	agenttest.Eventually(t, "the agent serves", func() error {
		if !n.Owned() {
			return errors.New("nobody has the node")
		}
		return nil
	})
	d := n.Open("root")
	if err := d.Put(t.Context(), ds.NewKey("/a"), []byte("x")); err != nil {
		t.Error(err)
	}
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent: %v", err)
	}
	if st := n.Status(); st.Host != "kubo (ffi)" {
		t.Errorf("the host is %q", st.Host)
	}
}

func TestAnOperatorsAgentIsLeftAloneAndNamed(t *testing.T) {
	n := made(t)
	n.Start()
	_, err := Open(n.config("root"))
	if !errors.Is(err, datastore.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(n.Pid())) {
		t.Errorf("%v", err)
	}
	if st := n.Status(); int(st.Pid) != n.Pid() {
		t.Errorf("pid %d serves", st.Pid)
	}
}

func TestTheWrongNodeIsRefusedByNameAndLeftClosed(t *testing.T) {
	n := made(t)
	cfg := n.config("root")
	cfg.NodeID = strings.Repeat("0", 32)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), n.ID) || !strings.Contains(err.Error(), cfg.NodeID) {
		t.Errorf("%v", err)
	}
	cfg = n.config("root")
	cfg.Path = t.TempDir()
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), cfg.Path) {
		t.Errorf("a folder that is no node: %v", err)
	}
	if n.Owned() {
		t.Error("the node is open")
	}
}

func TestAQueryThatIsClosedEarlyAndOneOfAClosedViewEnd(t *testing.T) {
	n := made(t)
	d := n.Open("root")
	ctx := t.Context()
	b, err := d.Batch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const count, size = 40, 256 << 10
	for i := range count {
		k, v := block(i, size)
		if err := b.Put(ctx, ds.NewKey("/blocks"+k.String()), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := d.Query(ctx, query.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := r.NextSync(); !ok || e.Error != nil {
		t.Fatalf("%v", e.Error)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	way, err := open(n.config("root"))
	if err != nil {
		t.Fatal(err)
	}
	view, err := datastore.Over(way, "root")
	if err != nil {
		t.Fatal(err)
	}
	r, err = view.Query(ctx, query.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if err := view.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := r.Rest(); err == nil {
		t.Errorf("a list of %d of %d entries passes for complete", len(entries), count)
	}
}

// Go's profiler interrupts whichever thread burns time, a hundred times a second, also in the library.
func TestTheProfilerMayRun(t *testing.T) {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	n := made(t, "--shards", "2")
	d := n.Open("blocks")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			ctx := context.Background()
			for i := range 100 {
				k, v := block(w*1000+i, 100<<10)
				if err := d.Put(ctx, k, v); err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					if got, err := d.Get(ctx, k); err != nil || !bytes.Equal(got, v) {
						t.Errorf("%d bytes, %v", len(got), err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := d.Scrub(t.Context()); err != nil {
		t.Error(err)
	}
}
