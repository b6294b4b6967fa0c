package datastore

// A batch is collected here, reduced to the last operation of each key, and handed to the node at Commit, which applies it as a whole.

import (
	"context"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
)

type batch struct {
	d         *Datastore
	at        map[string]int // key to its place in operations: the last operation of a key wins
	ops       []*basaltv1.BatchOperation
	committed bool
}

// Batch begins a batch. Nothing of it is visible before Commit, the last operation of a key wins, and it is used once. Like other
// datastores' it keeps the caller's slices until Commit has returned: don't change them before.
func (d *Datastore) Batch(context.Context) (ds.Batch, error) {
	if err := d.open("batch"); err != nil {
		return nil, err
	}
	return &batch{d: d, at: map[string]int{}}, nil
}

func (b *batch) add(op string, key ds.Key, o *basaltv1.BatchOperation) error {
	k, err := b.d.key(op, key)
	if err != nil {
		return err
	}
	if b.committed {
		return &Error{Closed, op, k, "the batch was committed before; begin a new one"}
	}
	o.Key = k
	if i, ok := b.at[k]; ok {
		b.ops[i] = o
		return nil
	}
	b.at[k] = len(b.ops)
	b.ops = append(b.ops, o)
	return nil
}

func (b *batch) Put(_ context.Context, key ds.Key, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	return b.add("batch put", key, &basaltv1.BatchOperation{Operation: &basaltv1.BatchOperation_Put{Put: value}})
}

func (b *batch) Delete(_ context.Context, key ds.Key) error {
	return b.add("batch delete", key, &basaltv1.BatchOperation{Operation: &basaltv1.BatchOperation_Delete{Delete: true}})
}

func (b *batch) Commit(ctx context.Context) error {
	if err := b.d.open("commit"); err != nil {
		return err
	}
	if b.committed {
		return &Error{Closed, "commit", "", "the batch was committed before; begin a new one"}
	}
	b.committed = true
	if len(b.ops) == 0 {
		return nil
	}
	defer b.d.dirty.Store(true)
	err := b.d.way.Batch(ctx, b.ops)
	if err == nil {
		b.ops, b.at = nil, nil
	}
	return err
}
