package datastore

// The gRPC half of a query: one answer over as many connections as it takes.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/grpc"
)

// Query implements Transport. A query without orders, offset and limit goes on where it was when the agent restarts in its midst.
func (n *Node) Query(ctx context.Context, req *basaltv1.QueryRequest) (Cursor, error) {
	live, cancel := context.WithCancel(context.Background())
	s := &stream{node: n, req: req, ctx: live, cancel: cancel}
	if err := s.begin(ctx); err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

// stream is the node's half of a query being read.
type stream struct {
	node   *Node
	req    *basaltv1.QueryRequest
	ctx    context.Context // of the stream; ends with Close
	cancel context.CancelFunc
	closed atomic.Bool

	on      atomic.Pointer[hold]
	recv    grpc.ServerStreamingClient[basaltv1.QueryResponse]
	entries []*basaltv1.Entry
	last    string // the last key handed out, in the node's terms
	resumed int    // times in a row that the answer broke behind the same key
	behind  string // that key
	done    bool   // all was received, or an error handed out
	err     error  // handed out
}

// resumesMax is how often a query goes on behind the same key: an agent that restarts gets further each time.
const resumesMax = 8

// hold is the rpc in progress and the connection that it keeps.
type hold struct {
	session *session
	stop    context.CancelFunc
}

// resumable says whether the node can go on after a given key.
func (s *stream) resumable() bool {
	return len(s.req.Orders) == 0 && s.req.Offset == 0 && s.req.Limit == 0
}

// begin sends the query, on a new connection if need be, and waits for the first chunk of the answer. The caller's ctx holds until then.
func (s *stream) begin(ctx context.Context) error {
	return s.node.try(ctx, "query", s.req.Prefix, func(ctx context.Context, on *session) fault {
		rpc, stop := context.WithCancel(s.ctx)
		asked, end := patient(ctx)
		unbind := context.AfterFunc(asked, stop)
		recv, err := on.rpc.Query(rpc, s.req)
		var chunk *basaltv1.QueryResponse
		if err == nil {
			chunk, err = recv.Recv()
		}
		unbind()
		end()
		if err == io.EOF {
			stop()
			return fault{err: s.cut(errors.New("it ended without saying that it is complete"))}
		}
		if err != nil {
			var ft fault
			if recv != nil {
				ft = judge(ctx, "query", s.req.Prefix, err, recv.Trailer(), on.broken.Load())
			} else {
				ft = judge(ctx, "query", s.req.Prefix, err, nil, on.broken.Load())
			}
			stop()
			if s.closed.Load() {
				return fault{err: context.Canceled}
			}
			return ft
		}
		on.inflight.Add(1) // until finish
		s.recv = recv
		s.on.Store(&hold{on, stop})
		s.take(chunk)
		if s.closed.Load() {
			s.finish()
		}
		return fault{}
	})
}

func (s *stream) take(chunk *basaltv1.QueryResponse) {
	s.entries = chunk.Entries
	if chunk.Complete {
		s.done = true
		s.finish()
	}
}

// finish lets go of the connection.
func (s *stream) finish() {
	if h := s.on.Swap(nil); h != nil {
		h.stop()
		h.session.leave()
	}
}

func (s *stream) cut(cause error) error {
	return &Error{Unavailable, "query", s.req.Prefix, fmt.Sprintf("the answer was cut, the list is not complete: %v", cause)}
}

// Next implements Cursor.
func (s *stream) Next() (*basaltv1.Entry, error) {
	for {
		if s.closed.Load() {
			return nil, io.EOF // nobody reads on
		}
		if len(s.entries) > 0 {
			e := s.entries[0]
			s.entries[0] = nil
			s.entries = s.entries[1:]
			s.last = e.Key
			return e, nil
		}
		if s.done {
			if s.err != nil {
				return nil, s.err
			}
			return nil, io.EOF
		}
		if err := s.more(); err != nil {
			s.done, s.err = true, err
			s.finish()
		}
	}
}

// more receives the next chunk, or resumes on a new connection.
func (s *stream) more() error {
	h := s.on.Load()
	if h == nil {
		return context.Canceled // closed meanwhile
	}
	chunk, err := s.recv.Recv()
	if err == nil {
		s.take(chunk)
		return nil
	}
	if err == io.EOF {
		return s.cut(errors.New("it ended without saying that it is complete"))
	}
	ft := judge(s.ctx, "query", s.req.Prefix, err, s.recv.Trailer(), h.session.broken.Load())
	if !ft.lost {
		return ft.err
	}
	if !s.resumable() {
		return s.cut(fmt.Errorf("the agent went away in its midst (%v), and a query with orders, offset or limit can't be resumed; run it again", ft.err))
	}
	if s.behind != s.last {
		s.resumed, s.behind = 0, s.last
	}
	if s.resumed++; s.resumed > resumesMax {
		return s.cut(fmt.Errorf("it broke %d times at the same place: %v", s.resumed, ft.err))
	}
	s.node.retire(h.session)
	s.finish()
	if s.last != "" {
		s.req.After = &s.last
	}
	return s.begin(s.ctx)
}

// Close implements Cursor.
func (s *stream) Close() error {
	s.closed.Store(true)
	s.cancel()
	s.finish()
	return nil
}
