package datastore

// A batch is collected here and sent at Commit, in chunks well below any message limit. The node applies it as a whole: nothing of
// a stream that breaks before its last chunk is kept, so a Commit that lost its connection may be sent again.

import (
	"context"
	"io"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
)

// chunkMax is how many bytes of keys and values go into one message; a larger value has a message of its own.
const chunkMax = 1 << 20

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
	var puts, dels []string
	for _, o := range b.ops {
		if o.GetDelete() {
			dels = append(dels, o.Key)
		} else {
			puts = append(puts, o.Key)
		}
	}
	n := b.d.node
	b.d.dirty.Store(true)
	t := n.deletes.begin(dels...)
	defer n.deletes.end(t, dels...)
	tried := false
	err := n.try(ctx, "commit", "", func(ctx context.Context, s *session) fault {
		if tried && n.deletes.overtaken(t) {
			return fault{err: outcomeUnknown("commit", "")}
		}
		tried = true
		return b.send(ctx, s)
	})
	if err == nil {
		n.deletes.put(t, puts...)
		b.ops, b.at = nil, nil
	}
	return err
}

// send streams the whole batch once.
func (b *batch) send(ctx context.Context, s *session) fault {
	for _, o := range b.ops {
		if err := s.fits("batch put", o.Key, o.GetPut()); err != nil {
			return fault{err: err}
		}
	}
	rpc, end := patient(ctx)
	defer end()
	rpc, cancel := context.WithCancel(rpc)
	defer cancel()
	stream, err := s.rpc.Batch(rpc)
	if err != nil {
		return judge(ctx, "commit", "", err, nil, s.broken.Load())
	}
	for begin := 0; begin < len(b.ops); {
		end, bytes := begin, 0
		for end < len(b.ops) {
			size := len(b.ops[end].Key) + len(b.ops[end].GetPut())
			if end > begin && bytes+size > chunkMax {
				break
			}
			bytes += size
			end++
		}
		err = stream.Send(&basaltv1.BatchRequest{Operations: b.ops[begin:end], Commit: end == len(b.ops)})
		if err == io.EOF {
			break // the node has answered already; CloseAndRecv says what
		}
		if err != nil {
			return judge(ctx, "commit", "", err, stream.Trailer(), s.broken.Load())
		}
		begin = end
	}
	if _, err = stream.CloseAndRecv(); err != nil {
		return judge(ctx, "commit", "", err, stream.Trailer(), s.broken.Load())
	}
	return fault{}
}
