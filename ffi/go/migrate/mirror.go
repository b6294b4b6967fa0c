package migrate

// Making a node hold what a store holds. Between a kill and the next run Kubo may have used the old store, so nothing that an earlier
// run saw is believed: every run goes over all keys. A block that the node has already costs one look-up, since a block never changes;
// all other keys are compared, and those that the old store no longer has are removed. What is copied is then read back: blocks are
// hashed anew, other keys compared byte by byte.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"basalt.dev/go/datastore"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	kuborepo "github.com/ipfs/kubo/repo"
	"golang.org/x/sync/errgroup"
)

const (
	chunkKeys     = 256
	batchMaxBytes = 4 << 20
	badMax        = 100_000 // with more, the store is lost, and the list would be too long for anybody
)

type mirror struct {
	from   kuborepo.Datastore
	node   *datastore.Datastore
	rest   ds.Batching // for what is neither block nor pin; nil: the node
	report Reporter

	blocks, blockBytes, keys         atomic.Int64 // of the old store, as verified
	copiedBlocks, copiedKeys, hidden atomic.Int64
	progress                         struct {
		sync.Mutex
		done, bytes int64
	}
	bad struct {
		sync.Mutex
		of map[ds.Key]Bad
	}
}

// to is where a key belongs.
func (m *mirror) to(key ds.Key) ds.Batching {
	if m.rest == nil || key == blocksKey || key == pinsKey || blocksKey.IsAncestorOf(key) || pinsKey.IsAncestorOf(key) {
		return m.node
	}
	return m.rest
}

// each runs f on all keys of a store, in chunks, on several goroutines.
func each(ctx context.Context, store ds.Datastore, prefix string, f func(context.Context, []ds.Key) error) error {
	found, err := store.Query(ctx, query.Query{Prefix: prefix, KeysOnly: true})
	if err != nil {
		return err
	}
	defer found.Close()
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(min(8, 2*runtime.NumCPU()))
	var chunk []ds.Key
	give := func() {
		keys := chunk
		chunk = nil
		work.Go(func() error { return f(ctx, keys) })
	}
	for {
		entry, ok := found.NextSync()
		if !ok {
			break
		}
		if err = errors.Join(entry.Error, ctx.Err()); err != nil {
			break
		}
		if chunk = append(chunk, ds.RawKey(entry.Key)); len(chunk) == chunkKeys {
			give()
		}
	}
	if err == nil && len(chunk) > 0 {
		give()
	}
	if failed := work.Wait(); failed != nil {
		return failed // the error of a worker is why the context ended
	}
	return err
}

func count(ctx context.Context, store ds.Datastore, prefix string) (int64, error) {
	var n atomic.Int64
	err := each(ctx, store, prefix, func(_ context.Context, keys []ds.Key) error {
		n.Add(int64(len(keys)))
		return nil
	})
	return n.Load(), err
}

func (m *mirror) step(name string, total int64) {
	m.progress.done, m.progress.bytes = 0, 0
	m.report.Begin(name, total)
}

func (m *mirror) at(keys int, bytes int64) {
	m.progress.Lock()
	defer m.progress.Unlock()
	m.progress.done += int64(keys)
	m.progress.bytes += bytes
	m.report.At(m.progress.done, m.progress.bytes)
}

// run copies, mirrors and verifies. Blocks that are bad in the old store are in m.bad afterwards; all others are in the node.
func (m *mirror) run(ctx context.Context) error {
	m.bad.of = map[ds.Key]Bad{}
	m.report.Begin("count", 0)
	total, err := count(ctx, m.from, "/")
	m.report.End()
	if err != nil {
		return fmt.Errorf("list the old store: %w", err)
	}
	m.step("copy", total)
	err = each(ctx, m.from, "/", m.copy)
	m.report.End()
	if err != nil {
		return err
	}
	extra, err := m.extra(ctx)
	if err != nil {
		return err
	}
	if err := m.remove(ctx, extra); err != nil {
		return err
	}
	for _, store := range m.targets() {
		if err := store.Sync(ctx, ds.NewKey("/")); err != nil {
			return err
		}
	}
	reached("copied")
	m.step("verify", total)
	err = each(ctx, m.from, "/", m.verify)
	m.report.End()
	return err
}

func (m *mirror) targets() []ds.Batching {
	if m.rest == nil {
		return []ds.Batching{m.node}
	}
	return []ds.Batching{m.node, m.rest}
}

// read reads a key of the old store. nil without an error: it is listed but can't be reached, for another mount lies over it.
func (m *mirror) read(ctx context.Context, key ds.Key) ([]byte, error) {
	value, err := m.from.Get(ctx, key)
	if errors.Is(err, ds.ErrNotFound) {
		return nil, nil
	}
	if err == nil && value == nil {
		value = []byte{}
	}
	if err != nil {
		err = fmt.Errorf("read %s from the old store: %w", key, err)
	}
	return value, err
}

// block is read for a block, whose errors don't stop a migration: they are noted. nil: there is no good block.
func (m *mirror) block(ctx context.Context, key ds.Key) ([]byte, error) {
	hash, _ := hashOf(key)
	value, err := m.read(ctx, key)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, m.note(key, Bad{name(hash), "it can't be read: " + err.Error()})
	case value == nil:
		return nil, nil
	}
	if ok, known := matches(hash, value); known && !ok {
		return nil, m.note(key, Bad{name(hash), fmt.Sprintf("its %d bytes do not hash to its key", len(value))})
	}
	return value, nil
}

func (m *mirror) note(key ds.Key, bad Bad) error {
	m.bad.Lock()
	defer m.bad.Unlock()
	m.bad.of[key] = bad
	if len(m.bad.of) > badMax {
		return fmt.Errorf("more than %d blocks of the old store are bad, the last one %s (%s): is its disk all right?", badMax, bad.CID, bad.Reason)
	}
	return nil
}

func (m *mirror) isBad(key ds.Key) bool {
	m.bad.Lock()
	defer m.bad.Unlock()
	_, bad := m.bad.of[key]
	return bad
}

// badOnes are the blocks that were noted, in the order of their names.
func (m *mirror) badOnes() []Bad {
	m.bad.Lock()
	defer m.bad.Unlock()
	var all []Bad
	for _, bad := range m.bad.of {
		all = append(all, bad)
	}
	slices.SortFunc(all, func(a, b Bad) int { return bytes.Compare([]byte(a.CID), []byte(b.CID)) })
	return all
}

// writes are changes of one store on their way: committed together, because each commit is a flush, and each lone Put would be one too.
type writes struct {
	store ds.Batching
	batch ds.Batch
	count int
	bytes int64
	done  func(count int) // after each commit
}

func (w *writes) put(ctx context.Context, key ds.Key, value []byte) error {
	return w.add(ctx, int64(len(value)), func(b ds.Batch) error { return b.Put(ctx, key, value) })
}

func (w *writes) delete(ctx context.Context, key ds.Key) error {
	return w.add(ctx, 0, func(b ds.Batch) error { return b.Delete(ctx, key) })
}

func (w *writes) add(ctx context.Context, size int64, change func(ds.Batch) error) (err error) {
	if w.batch == nil {
		if w.batch, err = w.store.Batch(ctx); err != nil {
			return err
		}
	}
	if err := change(w.batch); err != nil {
		return err
	}
	w.count++
	if w.bytes += size; w.bytes >= batchMaxBytes || w.count >= chunkKeys {
		return w.commit(ctx)
	}
	return nil
}

func (w *writes) commit(ctx context.Context) error {
	if w.count == 0 {
		return nil
	}
	if err := w.batch.Commit(ctx); err != nil {
		return err
	}
	count := w.count
	w.batch, w.count, w.bytes = nil, 0, 0
	if w.done != nil {
		w.done(count)
	}
	return nil
}

func (m *mirror) copy(ctx context.Context, keys []ds.Key) error {
	var blocks, others []ds.Key
	for _, key := range keys {
		if _, ok := hashOf(key); ok {
			blocks = append(blocks, key)
		} else {
			others = append(others, key)
		}
	}
	if err := m.copyBlocks(ctx, blocks); err != nil {
		return err
	}
	return m.copyOthers(ctx, others)
}

func (m *mirror) copyBlocks(ctx context.Context, blocks []ds.Key) error {
	if len(blocks) == 0 {
		return nil
	}
	sizes, err := m.node.Sizes(ctx, blocks)
	if err != nil {
		return err
	}
	to := writes{store: m.node, done: func(count int) {
		m.copiedBlocks.Add(int64(count))
		reached("batch")
	}}
	for i, key := range blocks {
		if sizes[i] >= 0 {
			m.at(1, 0)
			continue
		}
		value, err := m.block(ctx, key)
		if err != nil {
			return err
		}
		m.at(1, int64(len(value)))
		if value == nil {
			continue
		}
		if err := to.put(ctx, key, value); err != nil {
			return err
		}
	}
	return to.commit(ctx)
}

func (m *mirror) copyOthers(ctx context.Context, others []ds.Key) error {
	to := map[ds.Batching]*writes{}
	for _, store := range m.targets() {
		to[store] = &writes{store: store, done: func(count int) {
			m.copiedKeys.Add(int64(count))
			reached("keys")
		}}
	}
	for _, key := range others {
		value, err := m.read(ctx, key)
		if err != nil {
			return err
		}
		if value == nil {
			continue
		}
		store := m.to(key)
		switch there, err := store.Get(ctx, key); {
		case err != nil && !errors.Is(err, ds.ErrNotFound):
			return err
		case err == nil && bytes.Equal(there, value):
		default:
			if err := to[store].put(ctx, key, value); err != nil {
				return err
			}
		}
	}
	for _, w := range to {
		if err := w.commit(ctx); err != nil {
			return err
		}
	}
	m.at(len(others), 0)
	return nil
}

// extra lists the keys that the old store doesn't have; not blocks, which do no harm and may be all that is left of something.
func (m *mirror) extra(ctx context.Context) ([]ds.Key, error) {
	var mu sync.Mutex
	var extra []ds.Key
	for _, store := range m.targets() {
		err := each(ctx, store, "/", func(ctx context.Context, keys []ds.Key) error {
			for _, key := range keys {
				if _, block := hashOf(key); block {
					continue
				}
				there, err := m.from.Has(ctx, key)
				if err != nil {
					return fmt.Errorf("look for %s in the old store: %w", key, err)
				}
				if !there || m.to(key) != store {
					mu.Lock()
					extra = append(extra, key)
					mu.Unlock()
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return extra, nil
}

func (m *mirror) remove(ctx context.Context, keys []ds.Key) error {
	for _, store := range m.targets() {
		from := writes{store: store}
		for _, key := range keys {
			there, err := m.from.Has(ctx, key)
			if err != nil {
				return err
			}
			if there && m.to(key) == store {
				continue
			}
			if err := from.delete(ctx, key); err != nil {
				return err
			}
		}
		if err := from.commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (m *mirror) verify(ctx context.Context, keys []ds.Key) error {
	for _, key := range keys {
		size, err := m.verifyOne(ctx, key)
		if err != nil {
			return err
		}
		m.at(1, size)
	}
	return nil
}

func (m *mirror) verifyOne(ctx context.Context, key ds.Key) (int64, error) {
	hash, block := hashOf(key)
	if block && m.isBad(key) {
		return 0, nil
	}
	there, err := m.to(key).Get(ctx, key)
	absent := errors.Is(err, ds.ErrNotFound)
	if err != nil && !absent {
		return 0, err
	}
	if block && !absent {
		ok, known := matches(hash, there)
		if ok {
			m.blocks.Add(1)
			m.blockBytes.Add(int64(len(there)))
			return int64(len(there)), nil
		}
		if known {
			return 0, fmt.Errorf("verify: block %s reads back from the node with %d bytes that do not hash to it. Look at `basalt verify` and at the disk; "+
				"the repo still uses its old store", name(hash), len(there))
		}
	}
	want, err := m.read(ctx, key)
	if err != nil {
		return 0, err
	}
	if want == nil && absent {
		m.hidden.Add(1)
		return 0, nil
	}
	if want == nil || absent || !bytes.Equal(want, there) {
		return 0, fmt.Errorf("verify: %s has %d bytes in the old store, and reads back from the node otherwise. Has something changed one of them "+
			"meanwhile? The repo still uses its old store; run basalt-migrate again", key, len(want))
	}
	if block {
		m.blocks.Add(1)
		m.blockBytes.Add(int64(len(want)))
	} else {
		m.keys.Add(1)
	}
	return int64(len(want)), nil
}

// extraBlocks counts the blocks that only the node has, and checks that it lists all that the old store has.
func (m *mirror) extraBlocks(ctx context.Context) (int64, error) {
	listed, err := count(ctx, m.node, blocksKey.String())
	if err != nil {
		return 0, err
	}
	if listed == m.blocks.Load() {
		return 0, nil
	}
	// Seldom, so it may cost: an earlier run, or blocks that the old store lists twice.
	var extra, common atomic.Int64
	err = each(ctx, m.node, blocksKey.String(), func(ctx context.Context, keys []ds.Key) error {
		for _, key := range keys {
			there, err := m.from.Has(ctx, key)
			if err != nil {
				return err
			}
			if there {
				common.Add(1)
			} else {
				extra.Add(1)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if common.Load() > m.blocks.Load() {
		return 0, fmt.Errorf("verify: the node lists %d blocks of the old store, which listed only %d: has something changed it meanwhile? "+
			"Run basalt-migrate again", common.Load(), m.blocks.Load())
	}
	if common.Load() < m.blocks.Load() {
		m.report.Note(fmt.Sprintf("the old store lists %d blocks, of which %d are different ones", m.blocks.Load(), common.Load()))
		m.blocks.Store(common.Load())
	}
	return extra.Load(), nil
}
