package datastore_test

// What the suite does not ask of a real agent: many callers, expiry, restarts, crashes.

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

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
