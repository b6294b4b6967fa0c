package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"basalt.dev/go/internal/agenttest"
	"github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/ipfs/kubo/config"
	"github.com/ipfs/kubo/repo/fsrepo"
	mh "github.com/multiformats/go-multihash"
)

type silent struct{ notes []string }

func (*silent) Begin(string, int64) {}
func (*silent) At(int64, int64)     {}
func (*silent) End()                {}
func (s *silent) Note(text string)  { s.notes = append(s.notes, text) }

// plain is a new flatfs and leveldb repo without a key that anybody could use.
func plain(t *testing.T) string {
	t.Helper()
	agenttest.Basalt(t)
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	path := filepath.Join(dir, "repo")
	if err := register(); err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{Identity: config.Identity{PeerID: "test"}}
	cfg.Datastore = config.DefaultDatastoreConfig()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := fsrepo.Init(path, cfg); err != nil {
		t.Fatal(err)
	}
	opened, err := fsrepo.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Datastore().Put(t.Context(), blockKey(t, []byte("block")), []byte("block")); err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func blockKey(t testing.TB, data []byte) ds.Key {
	hash, err := mh.Sum(data, mh.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return blocksKey.Child(dshelp.MultihashToDsKey(hash))
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func TestWithoutRoomNothingIsBegun(t *testing.T) {
	path := plain(t)
	full := func(string) (uint64, error) { return 1 << 20, nil }
	_, err := Migrate(t.Context(), Options{Repo: path, Report: &silent{}, Available: full})
	if err == nil || !strings.Contains(err.Error(), "1.0 MiB free") || !strings.Contains(err.Error(), "the node needs") {
		t.Errorf("%v", err)
	}
	for _, name := range names(t, path) {
		if name == StateFile || name == "basalt" {
			t.Errorf("%s was made", name)
		}
	}
}

func TestWhatTheOperatorWroteIntoTheConfigStays(t *testing.T) {
	path := plain(t)
	file := filepath.Join(path, configFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A number that a float64 can't hold, a key that this Kubo doesn't know, and a character that Go's encoder likes to escape.
	own := `"Own": {"Number": 12345678901234567890, "Text": "a<b>&c"},`
	text = bytes.Replace(text, []byte("{"), []byte("{"+own), 1)
	real := filepath.Join(filepath.Dir(path), "config.elsewhere")
	if err := os.WriteFile(real, text, 0o640); err != nil {
		t.Fatal(err)
	}
	os.Remove(file)
	if err := os.Symlink(real, file); err != nil {
		t.Fatal(err)
	}
	r := &repo{path: path}
	if err := r.setSpec(json.RawMessage(`{"type":"new"}`)); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"12345678901234567890", "a<b>&c", `"type": "new"`, `"StorageMax"`} {
		if !bytes.Contains(after, []byte(part)) {
			t.Errorf("%s is not in:\n%s", part, after)
		}
	}
	if st, err := os.Lstat(file); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link has become a file")
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %s", st.Mode())
	}
}

func TestAStateFileThatCantBeReadIsNotTakenForNone(t *testing.T) {
	for text, want := range map[string]string{"": "does not read", "{}": "does not read", `{"format":2,"node_id":"x"}`: "newer one"} {
		path := plain(t)
		if err := os.WriteFile(filepath.Join(path, StateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Migrate(t.Context(), Options{Repo: path, Report: &silent{}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAnotherNodeInItsPlaceIsRefused(t *testing.T) {
	path := plain(t)
	if _, err := Migrate(t.Context(), Options{Repo: path, Report: &silent{}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Rollback(t.Context(), Options{Repo: path, Report: &silent{}}); err != nil {
		t.Fatal(err)
	}
	agenttest.KillAgents(t, path)
	if err := os.Rename(filepath.Join(path, "basalt"), filepath.Join(path, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	other := agenttest.Init(t, path)
	if err := os.Rename(other.Path, filepath.Join(path, "basalt")); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(t.Context(), Options{Repo: path, Report: &silent{}}); err == nil || !strings.Contains(err.Error(), other.ID) {
		t.Errorf("%v", err)
	}
}

// everything is all keys and values of a store.
func everything(t *testing.T, store ds.Datastore) map[string]string {
	t.Helper()
	found := map[string]string{}
	var collecting sync.Mutex
	err := each(context.Background(), store, "/", func(ctx context.Context, keys []ds.Key) error {
		for _, key := range keys {
			value, err := store.Get(ctx, key)
			if err != nil {
				return err
			}
			collecting.Lock()
			found[key.String()] = string(value)
			collecting.Unlock()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAMirrorHasEveryKeyAndNoOther(t *testing.T) {
	ctx := t.Context()
	from := dssync.MutexWrap(ds.NewMapDatastore())
	put := func(key string, value string) {
		t.Helper()
		if err := from.Put(ctx, ds.NewKey(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2000 {
		data := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, i%5000)
		put(blockKey(t, data).String(), string(data))
		put("/keys/"+strings.Repeat("k/", i%7)+blockKey(t, data).BaseNamespace(), "v")
	}
	put("/blocks/no-multihash", "x")
	put("/blocks", "on the mountpoint itself")
	put("/pins/pin/a", "b")
	put("/empty", "")
	put("/Case", "1")
	put("/case:with/a:colon", "2")
	node := agenttest.Serve(t, "--migrating", "--durability", "ordered").Open("migrate")
	work := &mirror{from: from, node: node, report: &silent{}}
	if err := work.run(ctx); err != nil {
		t.Fatal(err)
	}
	if want, got := everything(t, from), everything(t, node); !maps.Equal(want, got) {
		t.Errorf("%d keys, and %d in the node", len(want), len(got))
	}
	if all := len(everything(t, from)); int(work.blocks.Load()+work.keys.Load()) != all {
		t.Errorf("%d blocks and %d keys were verified of %d", work.blocks.Load(), work.keys.Load(), all)
	}

	// The old store is used again, and mirrored again.
	for _, key := range []string{"/pins/pin/a", "/empty", "/blocks/no-multihash"} {
		if err := from.Delete(ctx, ds.NewKey(key)); err != nil {
			t.Fatal(err)
		}
	}
	put("/Case", "another value")
	put("/new", "x")
	put(blockKey(t, []byte("a new block")).String(), "a new block")
	again := &mirror{from: from, node: node, report: &silent{}}
	if err := again.run(ctx); err != nil {
		t.Fatal(err)
	}
	if again.copiedBlocks.Load() != 1 || again.copiedKeys.Load() != 2 {
		t.Errorf("%d blocks and %d keys were copied again", again.copiedBlocks.Load(), again.copiedKeys.Load())
	}
	if want, got := everything(t, from), everything(t, node); !maps.Equal(want, got) {
		t.Errorf("%d keys, and %d in the node", len(want), len(got))
	}
	if extra, err := again.extraBlocks(ctx); extra != 0 || err != nil {
		t.Errorf("%d extra blocks, %v", extra, err)
	}
}

// counting is a store that counts what would each be a flush.
type counting struct {
	ds.Batching
	alone, commits atomic.Int64
}

type countingBatch struct {
	ds.Batch
	of *counting
}

func (c *counting) Put(ctx context.Context, key ds.Key, value []byte) error {
	c.alone.Add(1)
	return c.Batching.Put(ctx, key, value)
}

func (c *counting) Delete(ctx context.Context, key ds.Key) error {
	c.alone.Add(1)
	return c.Batching.Delete(ctx, key)
}

func (c *counting) Batch(ctx context.Context) (ds.Batch, error) {
	b, err := c.Batching.Batch(ctx)
	return &countingBatch{b, c}, err
}

func (b *countingBatch) Commit(ctx context.Context) error {
	b.of.commits.Add(1)
	return b.Batch.Commit(ctx)
}

func TestKeysAreCopiedAndRemovedManyAtATime(t *testing.T) {
	ctx := t.Context()
	from, rest := dssync.MutexWrap(ds.NewMapDatastore()), &counting{Batching: dssync.MutexWrap(ds.NewMapDatastore())}
	const keys = 10*chunkKeys + 1
	for i := range keys {
		if err := from.Put(ctx, ds.NewKey(fmt.Sprintf("/local/%d", i)), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	node := agenttest.Serve(t, "--migrating", "--durability", "ordered").Open("migrate")
	move := func(what string) {
		t.Helper()
		work := &mirror{from: from, node: node, rest: rest, report: &silent{}}
		if err := work.run(ctx); err != nil {
			t.Fatal(err)
		}
		if want, got := everything(t, from), everything(t, rest); !maps.Equal(want, got) {
			t.Errorf("%s: %d keys, and %d in the new store", what, len(want), len(got))
		}
		if alone, commits := rest.alone.Swap(0), rest.commits.Swap(0); alone != 0 || commits != keys/chunkKeys+1 {
			t.Errorf("%s: %d keys were written alone and the others in %d batches", what, alone, commits)
		}
	}
	move("copied")
	for i := range keys {
		if err := from.Delete(ctx, ds.NewKey(fmt.Sprintf("/local/%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	move("removed")
}

func TestANodeThatGivesBackSomethingElseIsNoticed(t *testing.T) {
	ctx := t.Context()
	from := dssync.MutexWrap(ds.NewMapDatastore())
	data := []byte("data")
	key := blockKey(t, data)
	if err := from.Put(ctx, key, data); err != nil {
		t.Fatal(err)
	}
	node := agenttest.Serve(t, "--migrating").Open("migrate")
	// The node believes its clients, so it holds now what is not the block; the first value of a block stays.
	if err := node.Put(ctx, key, []byte("date")); err != nil {
		t.Fatal(err)
	}
	err := (&mirror{from: from, node: node, report: &silent{}}).run(ctx)
	if hash, _ := hashOf(key); err == nil || !strings.Contains(err.Error(), name(hash)) {
		t.Errorf("%v", err)
	}
}

func TestPinsAreReadWithoutMendingThem(t *testing.T) {
	ctx := t.Context()
	store := dssync.MutexWrap(ds.NewMapDatastore())
	if err := store.Put(ctx, dirtyKey, []byte{1}); err != nil {
		t.Fatal(err)
	}
	before := everything(t, store)
	if _, _, err := pinsOf(ctx, store); err != nil {
		t.Fatal(err)
	}
	if after := everything(t, store); !maps.Equal(before, after) {
		t.Errorf("the pins were changed: %v, %v", before, after)
	}
}
