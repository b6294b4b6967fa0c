package killtest

import (
	"context"
	"path/filepath"
	"testing"

	"basalt.dev/go/internal/agenttest"
	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
)

func options(t *testing.T) Options {
	return Options{
		Seed: 1, Dir: agenttest.Temp(t), Log: t.Output(),
		Basalt: agenttest.Basalt(t), IPFS: agenttest.Program(t, "IPFS_BIN", "ipfs"), IPFSwith: agenttest.Program(t, "IPFS_FFI_BIN", "ipfs-ffi"),
	}
}

// The agent, Kubo with the node in it, and both: `make kill-test` does this more often.
func TestWhatKuboAcknowledgedSurvivesKills(t *testing.T) {
	o := options(t)
	o.Rounds = 3
	result, err := Run(o)
	t.Log(result)
	if err != nil {
		t.Error(err)
	}
}

// A checker that can't see a loss proves nothing.
func TestTheCheckSeesWhatIsMissing(t *testing.T) {
	o := options(t)
	k, err := initialize(o.IPFS, o.Basalt, filepath.Join(o.Dir, "lane"), "basalt")
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{o: o, name: "test", k: k}
	defer l.stop()
	if err := k.start(); err != nil {
		t.Fatal(err)
	}
	if err := k.ready(); err != nil {
		t.Fatal(err)
	}
	random := l.draw("things")
	for i, store := range []func() error{
		func() error { return l.add(random, 0, 0) },
		func() error { return l.add(random, 0, 1) },
		func() error { return l.importCAR(random, 1, 0) },
		func() error { return l.file(random, 2, 0) },
	} {
		if err := store(); err != nil {
			t.Fatal(i, err)
		}
	}
	wants := func(what string, lost, wrong int) {
		t.Helper()
		l.lost, l.wrong = 0, 0
		if err := l.check(true); err != nil {
			t.Fatal(what, err)
		}
		if l.lost != lost || l.wrong != wrong {
			t.Errorf("%s: %d lost, %d wrong, want %d and %d", what, l.lost, l.wrong, lost, wrong)
		}
	}
	wants("all is there", 0, 0)

	if _, err := k.post("pin/rm", map[string][]string{"arg": {l.things[0].cid}}, nil); err != nil {
		t.Fatal(err)
	}
	wants("a pin is gone", 1, 0)

	view, err := k.view()
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
