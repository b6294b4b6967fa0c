package datastore

// What a way to a node has to do. Above it everything is the same whatever the way: go-datastore's semantics, mounts, the plan of a
// query, which view counts for what. Below it: gRPC over the node's socket (Node), or the node in this process (package native).

import (
	"context"
	"fmt"
	"sync"

	"basalt.dev/go/internal/basaltv1"
)

// Transport is one way to one node, for one view of it. Keys are the node's own, with the mountpoint. An error is one of
// go-datastore's own values, the context's, or an *Error. Safe for use by many goroutines.
type Transport interface {
	// Hello is what the node last said of itself.
	Hello() *basaltv1.HandshakeResponse
	Get(ctx context.Context, key string) ([]byte, error)
	Size(ctx context.Context, key string) (int, error)
	// Sizes has one size a key, in order, -1 where it is absent.
	Sizes(ctx context.Context, keys []string) ([]int64, error)
	Has(ctx context.Context, key string) (bool, error)
	// Put stores a value; a ttlMs of 0 is none.
	Put(ctx context.Context, key string, value []byte, ttlMs int64) error
	Delete(ctx context.Context, key string) error
	// Batch applies operations as a whole; no key comes twice.
	Batch(ctx context.Context, ops []*basaltv1.BatchOperation) error
	// Query returns when the node has begun to answer; ctx is for that only.
	Query(ctx context.Context, req *basaltv1.QueryRequest) (Cursor, error)
	Sync(ctx context.Context, prefix string) error
	DiskUsage(ctx context.Context) (uint64, error)
	Check(ctx context.Context) error
	Scrub(ctx context.Context) error
	CollectGarbage(ctx context.Context) error
	SetTTL(ctx context.Context, key string, ttlMs int64) error
	// Expiration is in milliseconds since the Unix epoch, 0 for never.
	Expiration(ctx context.Context, key string) (int64, error)
	// Close lets go of the node. Called once.
	Close() error
}

// Cursor is a query's answer being read, by one goroutine.
type Cursor interface {
	// Next returns the next entry; io.EOF where the answer is complete, and nothing else means that.
	Next() (*basaltv1.Entry, error)
	// Close ends the query; it may be called more than once, and while Next runs.
	Close() error
}

// Over is the view that role names, of the node at the other end of a transport, which the view closes.
func Over(way Transport, role string) (*Datastore, error) {
	mount, err := mountOf(role)
	if err != nil {
		return nil, err
	}
	d := &Datastore{way: way, node: way.Hello().GetNodeId(), role: role, mount: mount}
	views.add(d.node, role, 1)
	return d, nil
}

func mountOf(role string) (string, error) {
	mount, ok := Mounts[role]
	if !ok {
		return "", &Error{Refused, "open", "", fmt.Sprintf("unknown role %q: it is root, blocks or pins", role)}
	}
	return mount, nil
}

// views counts this process's open views of each node by role.
var views openViews

type openViews struct {
	mu    sync.Mutex
	roles map[string]map[string]int
}

func (v *openViews) add(node, role string, count int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.roles == nil {
		v.roles = map[string]map[string]int{}
	}
	if v.roles[node] == nil {
		v.roles[node] = map[string]int{}
	}
	v.roles[node][role] += count
}

// others says whether a view in another role is open: figures and chores of the whole node are then its business.
func (v *openViews) others(node, role string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for r, count := range v.roles[node] {
		if r != role && count > 0 {
			return true
		}
	}
	return false
}
