package datastore

// Queries. What the node knows how to do (prefix, the filters and orders that go-datastore names) it does; from the first step
// that only Go can do, such as a filter that is a closure, this side does the rest, in go-datastore's order of steps. A query is
// complete or ends in an error: Kubo's gc would not notice a short list.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"google.golang.org/grpc"
)

// Query runs q. It returns once the node has begun to answer, so that a query that can't run is an error here and not in the
// results; ctx is for that only, and Close of the results ends the rest. A query without orders, offset and limit goes on where it
// was when the agent restarts in its midst; another one ends in an error then.
//
// With KeysOnly, filters and orders by value see no value, as with go-datastore's own stores.
func (d *Datastore) Query(ctx context.Context, q query.Query) (query.Results, error) {
	if err := d.open("query"); err != nil {
		return nil, err
	}
	req, rest, err := d.plan(q)
	if err != nil {
		return nil, err
	}
	live, cancel := context.WithCancel(context.Background())
	s := &stream{d: d, req: req, q: q, ctx: live, cancel: cancel}
	if err := s.begin(ctx); err != nil {
		cancel()
		return nil, err
	}
	return query.NaiveQueryApply(rest, query.ResultsFromIterator(q, query.Iterator{Next: s.next, Close: s.close})), nil
}

// plan splits a query into the part that the node does and the rest, which is done here.
func (d *Datastore) plan(q query.Query) (*basaltv1.QueryRequest, query.Query, error) {
	var rest query.Query
	prefix, err := d.key("query", ds.NewKey(q.Prefix))
	if err != nil {
		return nil, rest, err
	}
	req := &basaltv1.QueryRequest{
		Prefix:            prefix,
		KeysOnly:          q.KeysOnly,
		ReturnExpirations: q.ReturnExpirations,
		ReturnsSizes:      q.ReturnsSizes,
	}
	for i, f := range q.Filters {
		known, err := d.filter(f, q.KeysOnly)
		if err != nil {
			return nil, rest, err
		}
		if known == nil {
			rest = query.Query{Filters: q.Filters[i:], Orders: q.Orders, Offset: q.Offset, Limit: q.Limit}
			return req, rest, nil
		}
		req.Filters = append(req.Filters, known)
	}
	for _, o := range q.Orders {
		known := order(o, q.KeysOnly)
		if known == basaltv1.Order_ORDER_UNSPECIFIED {
			req.Orders = nil
			rest = query.Query{Orders: q.Orders, Offset: q.Offset, Limit: q.Limit}
			return req, rest, nil
		}
		req.Orders = append(req.Orders, known)
	}
	// As in go-datastore, zero and less mean none.
	req.Offset = uint64(max(q.Offset, 0))
	req.Limit = uint64(max(q.Limit, 0))
	return req, rest, nil
}

// filter translates a filter to the node's keys, or returns nil where only Go can evaluate it. All keys of a view begin with the
// same bytes, so comparing keys and prefixes with those bytes put before both sides gives the same.
func (d *Datastore) filter(f query.Filter, keysOnly bool) (*basaltv1.Filter, error) {
	switch f := f.(type) {
	case *query.FilterKeyCompare:
		if f != nil {
			return d.filter(*f, keysOnly)
		}
	case *query.FilterKeyPrefix:
		if f != nil {
			return d.filter(*f, keysOnly)
		}
	case *query.FilterValueCompare:
		if f != nil {
			return d.filter(*f, keysOnly)
		}
	case query.FilterKeyCompare:
		op, err := compare(f.Op)
		if err != nil || !utf8.ValidString(f.Key) {
			return nil, err
		}
		return &basaltv1.Filter{Filter: &basaltv1.Filter_KeyCompare_{KeyCompare: &basaltv1.Filter_KeyCompare{Op: op, Key: d.mount + f.Key}}}, nil
	case query.FilterKeyPrefix:
		if !utf8.ValidString(f.Prefix) {
			return nil, nil
		}
		return &basaltv1.Filter{Filter: &basaltv1.Filter_KeyPrefix{KeyPrefix: d.mount + f.Prefix}}, nil
	case query.FilterValueCompare:
		op, err := compare(f.Op)
		if err != nil || keysOnly {
			return nil, err
		}
		return &basaltv1.Filter{Filter: &basaltv1.Filter_ValueCompare_{ValueCompare: &basaltv1.Filter_ValueCompare{Op: op, Value: f.Value}}}, nil
	default:
		return nil, nil
	}
	return nil, &Error{InvalidValue, "query", "", fmt.Sprintf("filter of type %T is a nil pointer", f)}
}

func compare(op query.Op) (basaltv1.Compare, error) {
	switch op {
	case query.Equal:
		return basaltv1.Compare_COMPARE_EQUAL, nil
	case query.NotEqual:
		return basaltv1.Compare_COMPARE_NOT_EQUAL, nil
	case query.GreaterThan:
		return basaltv1.Compare_COMPARE_GREATER, nil
	case query.GreaterThanOrEqual:
		return basaltv1.Compare_COMPARE_GREATER_OR_EQUAL, nil
	case query.LessThan:
		return basaltv1.Compare_COMPARE_LESS, nil
	case query.LessThanOrEqual:
		return basaltv1.Compare_COMPARE_LESS_OR_EQUAL, nil
	}
	// go-datastore's own filter would panic.
	return 0, &Error{InvalidValue, "query", "", fmt.Sprintf("unknown comparison %q in a filter: it is ==, !=, <, <=, > or >=", op)}
}

func order(o query.Order, keysOnly bool) basaltv1.Order {
	switch o.(type) {
	case query.OrderByKey, *query.OrderByKey:
		return basaltv1.Order_ORDER_BY_KEY
	case query.OrderByKeyDescending, *query.OrderByKeyDescending:
		return basaltv1.Order_ORDER_BY_KEY_DESCENDING
	case query.OrderByValue, *query.OrderByValue:
		if !keysOnly {
			return basaltv1.Order_ORDER_BY_VALUE
		}
	case query.OrderByValueDescending, *query.OrderByValueDescending:
		if !keysOnly {
			return basaltv1.Order_ORDER_BY_VALUE_DESCENDING
		}
	}
	return basaltv1.Order_ORDER_UNSPECIFIED
}

// stream is the node's half of a query being read.
type stream struct {
	d      *Datastore
	req    *basaltv1.QueryRequest
	q      query.Query
	ctx    context.Context // of the stream; ends with Close
	cancel context.CancelFunc
	closed atomic.Bool

	on      atomic.Pointer[hold]
	recv    grpc.ServerStreamingClient[basaltv1.QueryResponse]
	entries []*basaltv1.Entry
	last    string // the last key handed out, in the node's terms
	done    bool   // all was received, or an error handed out
}

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
	n := s.d.node
	return n.try(ctx, "query", s.req.Prefix, func(ctx context.Context, on *session) fault {
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

// next hands out one entry, or an error as the last result.
func (s *stream) next() (query.Result, bool) {
	for {
		if s.closed.Load() {
			return query.Result{}, false
		}
		if len(s.entries) > 0 {
			e := s.entries[0]
			s.entries[0] = nil
			s.entries = s.entries[1:]
			s.last = e.Key
			return s.result(e)
		}
		if s.done {
			return query.Result{}, false
		}
		if err := s.more(); err != nil {
			s.done = true
			s.finish()
			if s.closed.Load() {
				return query.Result{}, false
			}
			return query.Result{Error: err}, true
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
	s.d.node.retire(h.session)
	s.finish()
	if s.last != "" {
		s.req.After = &s.last
	}
	return s.begin(s.ctx)
}

// result translates an entry to the view's keys.
func (s *stream) result(e *basaltv1.Entry) (query.Result, bool) {
	key := e.Key
	if m := s.d.mount; m != "" {
		if len(key) <= len(m) || key[:len(m)] != m || key[len(m)] != '/' {
			s.done = true
			s.entries = nil
			s.finish()
			return query.Result{Error: &Error{Unknown, "query", s.req.Prefix, fmt.Sprintf("the node answered with key %q outside the prefix", key)}}, true
		}
		key = key[len(m):]
	}
	r := query.Result{Entry: query.Entry{Key: key, Size: int(e.Size)}}
	if !s.q.KeysOnly {
		r.Value = e.Value
		if r.Value == nil {
			r.Value = []byte{}
		}
		r.Size = len(r.Value)
	}
	if s.q.ReturnExpirations {
		r.Expiration = expirationOf(e)
	}
	return r, true
}

func expirationOf(e *basaltv1.Entry) time.Time { return expiration(e.ExpiresUnixMs) }

// close ends the query early; it may be called more than once, and while next runs.
func (s *stream) close() error {
	s.closed.Store(true)
	s.cancel()
	s.finish()
	return nil
}
