package datastore

// The node's calls, each on whichever connection there is: by its fast lane where it has one and the lane knows the call, else by gRPC.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"

	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// chunkMax is how many bytes of a batch's keys and values go into one message; a larger value has a message of its own.
const chunkMax = 1 << 20

var _ Transport = (*Node)(nil)

// Hello is what the agent said at the last handshake.
func (n *Node) Hello() *basaltv1.HandshakeResponse {
	for i := range n.slots {
		sl := &n.slots[i]
		sl.mu.Lock()
		s := sl.current
		sl.mu.Unlock()
		if s != nil {
			return s.hello
		}
	}
	return nil
}

// Get implements Transport.
func (n *Node) Get(ctx context.Context, key string) (value []byte, err error) {
	err = n.read(ctx, "get", key, func(l *lane) (ft fault) {
		value, ft = l.ask(ctx, "get", laneGet, key, 0, nil)
		return ft
	}, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.Get(ctx, &basaltv1.GetRequest{Key: key}, o...)
		value = r.GetValue()
		return err
	})
	return value, err
}

// Size implements Transport.
func (n *Node) Size(ctx context.Context, key string) (size int, err error) {
	err = n.read(ctx, "get size", key, func(l *lane) (ft fault) {
		size, ft = l.size(ctx, key)
		return ft
	}, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetSize(ctx, &basaltv1.GetSizeRequest{Key: key}, o...)
		if r.GetSize() > math.MaxInt64 {
			return &Error{Unknown, "get size", key, fmt.Sprintf("the node answered with a size of %d", r.GetSize())}
		}
		size = int(r.GetSize())
		return err
	})
	return size, err
}

// Sizes implements Transport, in one hop.
func (n *Node) Sizes(ctx context.Context, keys []string) (sizes []int64, err error) {
	err = n.read(ctx, "get sizes", "", func(l *lane) (ft fault) {
		sizes, ft = l.sizes(ctx, keys)
		return ft
	}, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetSizes(ctx, &basaltv1.GetSizesRequest{Keys: keys}, o...)
		sizes = r.GetSizes()
		return err
	})
	return sizes, err
}

// Has implements Transport.
func (n *Node) Has(ctx context.Context, key string) (exists bool, err error) {
	err = n.read(ctx, "has", key, func(l *lane) (ft fault) {
		exists, ft = l.has(ctx, key)
		return ft
	}, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.Has(ctx, &basaltv1.HasRequest{Key: key}, o...)
		exists = r.GetExists()
		return err
	})
	return exists, err
}

// Put implements Transport.
func (n *Node) Put(ctx context.Context, key string, value []byte, ttlMs int64) error {
	err := n.try(ctx, "put", key, func(ctx context.Context, s *session) fault {
		if err := s.fits("put", key, value); err != nil {
			return fault{err: err}
		}
		if s.writes != nil {
			_, ft := s.writes.ask(ctx, "put", lanePut, key, ttlMs, value)
			return ft
		}
		return unary(ctx, "put", key, s, func(ctx context.Context, o ...grpc.CallOption) error {
			_, err := s.rpc.Put(ctx, &basaltv1.PutRequest{Key: key, Value: value, TtlMs: ttlMs}, o...)
			return err
		})
	})
	if err == nil {
		n.deletes.put(nil, key)
	}
	return err
}

// fits refuses a value that the node would refuse, before it is sent.
func (s *session) fits(op, key string, value []byte) error {
	limit := s.hello.ValueBytesMax
	if limit > 0 && uint64(len(value)) > limit {
		return &Error{TooLarge, op, key, fmt.Sprintf(
			"the value has %d bytes, the node takes at most %d (the limit is in the node's config; see `basalt config`)", len(value), limit)}
	}
	return nil
}

// Delete implements Transport.
func (n *Node) Delete(ctx context.Context, key string) error {
	t := n.deletes.begin(key)
	defer n.deletes.end(t, key)
	number := laneNumber.Add(1)
	var tried *session
	return n.try(ctx, "delete", key, func(ctx context.Context, s *session) fault {
		if tried != nil && !s.remembers(tried) && n.deletes.overtaken(t) {
			return fault{err: outcomeUnknown("delete", key)}
		}
		tried = s
		if s.writes != nil {
			_, ft := s.writes.askAs(ctx, number, "delete", laneDelete, key, 0, nil)
			return ft
		}
		return unary(ctx, "delete", key, s, func(ctx context.Context, o ...grpc.CallOption) error {
			_, err := s.rpc.Delete(ctx, &basaltv1.DeleteRequest{Key: key}, o...)
			return err
		})
	})
}

// remembers says whether the node at the other end knows what became of a Delete that was sent on an earlier session: it has not been opened anew
// since, and both sent it by their lane, with its number.
func (s *session) remembers(earlier *session) bool {
	return s.writes != nil && earlier.writes != nil && len(s.hello.Incarnation) > 0 && bytes.Equal(s.hello.Incarnation, earlier.hello.Incarnation)
}

func outcomeUnknown(op, key string) error {
	return &Error{Unavailable, op, key,
		"outcome unknown: the agent went away during the call, and the key was put again since; look at it before you delete again"}
}

// Batch implements Transport. The node applies a batch as a whole: nothing of a stream that breaks before its last chunk is kept, so
// one that lost its connection may be sent again.
func (n *Node) Batch(ctx context.Context, ops []*basaltv1.BatchOperation) error {
	var puts, dels []string
	for _, o := range ops {
		if o.GetDelete() {
			dels = append(dels, o.Key)
		} else {
			puts = append(puts, o.Key)
		}
	}
	t := n.deletes.begin(dels...)
	defer n.deletes.end(t, dels...)
	tried := false
	err := n.try(ctx, "commit", "", func(ctx context.Context, s *session) fault {
		if tried && n.deletes.overtaken(t) {
			return fault{err: outcomeUnknown("commit", "")}
		}
		tried = true
		return send(ctx, s, ops)
	})
	if err == nil {
		n.deletes.put(t, puts...)
	}
	return err
}

// send streams a whole batch once.
func send(ctx context.Context, s *session, ops []*basaltv1.BatchOperation) fault {
	for _, o := range ops {
		if err := s.fits("batch put", o.Key, o.GetPut()); err != nil {
			return fault{err: err}
		}
	}
	if s.writes != nil {
		return s.writes.batch(ctx, ops)
	}
	rpc, end := patient(ctx)
	defer end()
	rpc, cancel := context.WithCancel(rpc)
	defer cancel()
	stream, err := s.rpc.Batch(rpc)
	if err != nil {
		return judge(ctx, "commit", "", err, nil, s.broken.Load())
	}
	for begin := 0; begin < len(ops); {
		end, bytes := begin, 0
		for end < len(ops) {
			size := len(ops[end].Key) + len(ops[end].GetPut())
			if end > begin && bytes+size > chunkMax {
				break
			}
			bytes += size
			end++
		}
		err = stream.Send(&basaltv1.BatchRequest{Operations: ops[begin:end], Commit: end == len(ops)})
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

// Sync implements Transport.
func (n *Node) Sync(ctx context.Context, prefix string) error {
	return n.call(ctx, "sync", prefix, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Sync(ctx, &basaltv1.SyncRequest{Prefix: prefix}, o...)
		return err
	})
}

// DiskUsage implements Transport.
func (n *Node) DiskUsage(ctx context.Context) (bytes uint64, err error) {
	err = n.call(ctx, "disk usage", "", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.DiskUsage(ctx, &basaltv1.DiskUsageRequest{}, o...)
		bytes = r.GetBytes()
		return err
	})
	return bytes, err
}

// Check implements Transport.
func (n *Node) Check(ctx context.Context) error {
	return n.chore(ctx, "check", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Check(ctx, &basaltv1.CheckRequest{}, o...)
		return err
	})
}

// Scrub implements Transport.
func (n *Node) Scrub(ctx context.Context) error {
	return n.chore(ctx, "scrub", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Scrub(ctx, &basaltv1.ScrubRequest{}, o...)
		return err
	})
}

// CollectGarbage implements Transport.
func (n *Node) CollectGarbage(ctx context.Context) error {
	return n.chore(ctx, "collect garbage", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.CollectGarbage(ctx, &basaltv1.CollectGarbageRequest{}, o...)
		return err
	})
}

func (n *Node) chore(ctx context.Context, op string, f func(context.Context, *session, ...grpc.CallOption) error) error {
	// These may take hours, so a cancelled caller ends them at once.
	return n.try(ctx, op, "", func(ctx context.Context, s *session) fault {
		var trailer metadata.MD
		if err := f(ctx, s, grpc.Trailer(&trailer)); err != nil {
			return judge(ctx, op, "", err, trailer, s.broken.Load())
		}
		return fault{}
	})
}

// SetTTL implements Transport.
func (n *Node) SetTTL(ctx context.Context, key string, ttlMs int64) error {
	return n.call(ctx, "set ttl", key, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.SetTTL(ctx, &basaltv1.SetTTLRequest{Key: key, TtlMs: ttlMs}, o...)
		return err
	})
}

// Expiration implements Transport.
func (n *Node) Expiration(ctx context.Context, key string) (at int64, err error) {
	err = n.call(ctx, "get expiration", key, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetExpiration(ctx, &basaltv1.GetExpirationRequest{Key: key}, o...)
		at = r.GetExpiresUnixMs()
		return err
	})
	return at, err
}
