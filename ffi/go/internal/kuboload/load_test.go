package kuboload

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"basalt.dev/go/internal/agenttest"
	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
)

// start runs a Kubo on a node in memory, both of which go with the test.
func start(t *testing.T) *Load {
	t.Helper()
	dir, basalt := agenttest.Temp(t), agenttest.Basalt(t)
	k, err := Initialize(agenttest.Program(t, "IPFS_BIN", "ipfs"), basalt, filepath.Join(dir, "lane"), "basalt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Kill()
		_, _ = k.KillAgent()
		k.Close()
	})
	if err := errors.Join(k.Start(), k.Ready()); err != nil {
		t.Fatal(err)
	}
	return &Load{Name: "test", Seed: 1, Kubo: k, Basalt: basalt, Say: t.Logf}
}

// A checker that can't see a loss proves nothing.
func TestTheCheckSeesWhatIsMissing(t *testing.T) {
	l := start(t)
	k := l.Kubo
	random := l.Draw("things")
	for i, store := range []func() error{
		func() error { return l.Add(random, 0, 0) },
		func() error { return l.Add(random, 0, 1) },
		func() error { return l.ImportCAR(random, 1, 0) },
		func() error { return l.File(random, 2, 0) },
	} {
		if err := store(); err != nil {
			t.Fatal(i, err)
		}
	}
	wants := func(what string, lost, wrong int) {
		t.Helper()
		l.Lost, l.Wrong = 0, 0
		if err := l.Check(true); err != nil {
			t.Fatal(what, err)
		}
		if l.Lost != lost || l.Wrong != wrong {
			t.Errorf("%s: %d lost, %d wrong, want %d and %d", what, l.Lost, l.Wrong, lost, wrong)
		}
	}
	wants("all is there", 0, 0)

	if _, err := k.Post("pin/rm", map[string][]string{"arg": {l.things[0].cid}}, nil); err != nil {
		t.Fatal(err)
	}
	wants("a pin is gone", 1, 0)

	view, err := k.View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	id, err := cid.Decode(l.things[2].cid)
	if err != nil {
		t.Fatal(err)
	}
	key := ds.NewKey("/blocks").Child(dshelp.MultihashToDsKey(id.Hash()))
	ctx := context.Background()
	if err := view.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	wants("a pin and a block are gone", 2, 0)
	if err := view.Put(ctx, key, []byte("not that block")); err != nil {
		t.Fatal(err)
	}
	wants("a pin is gone, a block has other bytes, and verify says so", 2, 1)

	l.things[3].numbers[1]++ // as if other bytes had been written
	wants("and a file has other bytes", 2, 2)
}

// What is trimmed is not looked for any more, and goes; what is left is read.
func TestTrimBringsTheLiveSetBack(t *testing.T) {
	l := start(t)
	random := l.Draw("things")
	for i := range uint64(12) {
		store := l.Add
		if i%3 == 2 {
			store = l.File
		}
		if err := store(random, 0, i); err != nil {
			t.Fatal(err)
		}
	}
	all := l.Live()
	if err := l.Trim(all / 2); err != nil {
		t.Fatal(err)
	}
	if live := l.Live(); live > all/2 || live == 0 {
		t.Errorf("%d bytes are left of %d", live, all)
	}
	if _, err := l.Kubo.Collect(); err != nil {
		t.Fatal(err)
	}
	st, err := l.Kubo.Status()
	if err != nil {
		t.Fatal(err)
	}
	if st.BlockBytes < l.Live() || st.BlockBytes > l.Live()+l.Live()/4+1<<16 {
		t.Errorf("the node has %d bytes for %d that are live", st.BlockBytes, l.Live())
	}
	if err := errors.Join(l.Read(random, 0, 0), l.Check(true)); err != nil || l.Lost+l.Wrong > 0 || l.Acknowledged() != 12 {
		t.Error(err, l.Lost, l.Wrong, l.Acknowledged())
	}
}
