package datastore

// Queries. What the node knows how to do (prefix, the filters and orders that go-datastore names) it does; from the first step
// that only Go can do, such as a filter that is a closure, this side does the rest, in go-datastore's order of steps. A query is
// complete or ends in an error: Kubo's gc would not notice a short list.

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
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
	answer, err := d.way.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &reader{d: d, q: q, answer: answer}
	return query.NaiveQueryApply(rest, query.ResultsFromIterator(q, query.Iterator{Next: r.next, Close: answer.Close})), nil
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

// reader hands an answer out, in the view's keys.
type reader struct {
	d      *Datastore
	q      query.Query
	answer Cursor
	done   atomic.Bool
}

// next hands out one entry, or an error as the last result.
func (r *reader) next() (query.Result, bool) {
	if r.done.Load() {
		return query.Result{}, false
	}
	e, err := r.answer.Next()
	if err == nil {
		var result query.Result
		if result, err = r.result(e); err == nil {
			return result, true
		}
	}
	r.done.Store(true)
	r.answer.Close()
	if err == io.EOF {
		return query.Result{}, false
	}
	return query.Result{Error: err}, true
}

// result translates an entry to the view's keys.
func (r *reader) result(e *basaltv1.Entry) (query.Result, error) {
	key := e.Key
	if m := r.d.mount; m != "" {
		if len(key) <= len(m) || key[:len(m)] != m || key[len(m)] != '/' {
			return query.Result{}, &Error{Unknown, "query", m, fmt.Sprintf("the node answered with key %q outside the prefix", key)}
		}
		key = key[len(m):]
	}
	if !isKey(key) {
		return query.Result{}, &Error{Unknown, "query", r.d.mount, fmt.Sprintf("the node answered with %q, which is no key", e.Key)}
	}
	result := query.Result{Entry: query.Entry{Key: key, Size: int(e.Size)}}
	if !r.q.KeysOnly {
		result.Value = e.Value
		if result.Value == nil {
			result.Value = []byte{}
		}
		result.Size = len(result.Value)
	}
	if r.q.ReturnExpirations {
		result.Expiration = expirationOf(e)
	}
	return result, nil
}

// isKey says whether ds.RawKey takes it: that is what Kubo makes of what it lists, and it panics on others.
func isKey(s string) bool {
	return s == "/" || len(s) > 1 && s[0] == '/' && s[len(s)-1] != '/'
}

func expirationOf(e *basaltv1.Entry) time.Time { return expiration(e.ExpiresUnixMs) }
