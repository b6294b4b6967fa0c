// Package datastore is a go-datastore whose keys live in a Basalt node, reached over gRPC on the node's data socket.
//
// It features: Batching, PersistentDatastore, CheckedDatastore, ScrubbedDatastore, GCDatastore and TTLDatastore; known filters and
// orders evaluated by the node, unknown ones here; reconnection when the agent restarts, so that Kubo need not; queries that are
// either complete or end in an error.
//
// Durability is the node's (see `basalt status`): under `strict` a Put or Commit that returned is on stable storage; under `ordered`
// it is on stable storage before any later change of pins, MFS or names is, and at Sync; under `relaxed` at Sync. Close makes what
// this datastore wrote durable, in every class.
//
// A cancelled context ends waiting for an agent that is away at once, and a call that the agent is answering after a few seconds: like
// stores in Kubo's own process, it serves callers that tidy up with a context that is cancelled already.
//
// It is not: a cache, or a way to Admin.
package datastore

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Datastore is a view of a node: all of it, or the part below a mountpoint. Safe for use by many goroutines.
type Datastore struct {
	node   *Node
	role   string
	mount  string // "" or "/blocks", "/pins": put before each key, taken off each result
	closed atomic.Bool
	dirty  atomic.Bool // wrote something since its last Sync of everything
}

var (
	_ ds.Batching            = (*Datastore)(nil)
	_ ds.PersistentDatastore = (*Datastore)(nil)
	_ ds.CheckedDatastore    = (*Datastore)(nil)
	_ ds.ScrubbedDatastore   = (*Datastore)(nil)
	_ ds.GCDatastore         = (*Datastore)(nil)
	_ ds.TTLDatastore        = (*Datastore)(nil)
)

// closeMax bounds the last Sync of Close.
const closeMax = 10 * time.Second

// Mounts maps a role to the mountpoint at which its view of the node begins.
var Mounts = map[string]string{"root": "", "blocks": "/blocks", "pins": "/pins", "migrate": ""}

// Open opens a view of the node that cfg names; cfg.Role decides which keys it sees. Views of one node in one process share
// their connections. It returns once the node has answered, or an error that says why not.
func Open(ctx context.Context, cfg Config) (*Datastore, error) {
	mount, ok := Mounts[cfg.Role]
	if !ok {
		return nil, &Error{Refused, "open", "", fmt.Sprintf("unknown role %q: it is root, blocks or pins", cfg.Role)}
	}
	node, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Datastore{node: node, role: cfg.Role, mount: mount}, nil
}

// key is the node's name for a key of this view.
func (d *Datastore) key(op string, key ds.Key) (string, error) {
	if d.closed.Load() {
		return "", &Error{Closed, op, key.String(), "the datastore is closed"}
	}
	k := key.String()
	if !utf8.ValidString(k) {
		return "", &Error{InvalidKey, op, fmt.Sprintf("%q", k), "a key must be valid UTF-8"}
	}
	if d.mount == "" {
		return k, nil
	}
	if k == "/" || k == "" {
		return d.mount, nil
	}
	return d.mount + k, nil
}

func (d *Datastore) open(op string) error {
	if d.closed.Load() {
		return &Error{Closed, op, "", "the datastore is closed"}
	}
	return nil
}

// Get returns the value of key, or nil and ds.ErrNotFound.
func (d *Datastore) Get(ctx context.Context, key ds.Key) ([]byte, error) {
	k, err := d.key("get", key)
	if err != nil {
		return nil, err
	}
	var value []byte
	err = d.node.call(ctx, "get", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.Get(ctx, &basaltv1.GetRequest{Key: k}, o...)
		value = r.GetValue()
		return err
	})
	if err != nil {
		return nil, err
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

// GetSize returns the size of key's value in bytes, or -1 and ds.ErrNotFound; no value is read.
func (d *Datastore) GetSize(ctx context.Context, key ds.Key) (int, error) {
	k, err := d.key("get size", key)
	if err != nil {
		return -1, err
	}
	size := -1
	err = d.node.call(ctx, "get size", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetSize(ctx, &basaltv1.GetSizeRequest{Key: k}, o...)
		size = int(r.GetSize())
		return err
	})
	if err != nil {
		return -1, err
	}
	return size, nil
}

// Has says whether key is there; no value is read.
func (d *Datastore) Has(ctx context.Context, key ds.Key) (bool, error) {
	k, err := d.key("has", key)
	if err != nil {
		return false, err
	}
	exists := false
	err = d.node.call(ctx, "has", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.Has(ctx, &basaltv1.HasRequest{Key: k}, o...)
		exists = r.GetExists()
		return err
	})
	return exists && err == nil, err
}

// Put stores value; a block that is there already stays as it is and costs no write.
func (d *Datastore) Put(ctx context.Context, key ds.Key, value []byte) error {
	return d.put(ctx, key, value, 0)
}

// PutWithTTL stores value until ttl (rounded up to milliseconds) has passed. Not for blocks: ErrUnsupported, and nothing is stored.
func (d *Datastore) PutWithTTL(ctx context.Context, key ds.Key, value []byte, ttl time.Duration) error {
	if ttl <= 0 {
		return &Error{InvalidValue, "put with ttl", key.String(), fmt.Sprintf("ttl %s: it must be above zero", ttl)}
	}
	return d.put(ctx, key, value, ttl)
}

func (d *Datastore) put(ctx context.Context, key ds.Key, value []byte, ttl time.Duration) error {
	k, err := d.key("put", key)
	if err != nil {
		return err
	}
	req := &basaltv1.PutRequest{Key: k, Value: value, TtlMs: milliseconds(ttl)}
	d.dirty.Store(true)
	err = d.node.call(ctx, "put", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		if err := s.fits("put", k, value); err != nil {
			return err
		}
		_, err := s.rpc.Put(ctx, req, o...)
		return err
	})
	if err == nil {
		d.node.deletes.put(nil, k)
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

func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// Delete removes key; nil where it is absent.
func (d *Datastore) Delete(ctx context.Context, key ds.Key) error {
	k, err := d.key("delete", key)
	if err != nil {
		return err
	}
	d.dirty.Store(true)
	t := d.node.deletes.begin(k)
	defer d.node.deletes.end(t, k)
	tried := false
	err = d.node.call(ctx, "delete", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		if tried && d.node.deletes.overtaken(t) {
			return outcomeUnknown("delete", k)
		}
		tried = true
		_, err := s.rpc.Delete(ctx, &basaltv1.DeleteRequest{Key: k}, o...)
		return err
	})
	if err == ds.ErrNotFound {
		return nil
	}
	return err
}

func outcomeUnknown(op, key string) error {
	return &Error{Unavailable, op, key,
		"outcome unknown: the agent went away during the call, and the key was put again since; look at it before you delete again"}
}

// Sync returns when everything under prefix that was put or deleted before is on stable storage.
func (d *Datastore) Sync(ctx context.Context, prefix ds.Key) error {
	p, err := d.key("sync", prefix)
	if err != nil {
		return err
	}
	return d.sync(ctx, p)
}

func (d *Datastore) sync(ctx context.Context, prefix string) error {
	everything := prefix == "/" || prefix == "" || prefix == d.mount
	if everything {
		// Before the call: what is written while it runs is dirty again.
		d.dirty.Store(false)
	}
	err := d.node.call(ctx, "sync", prefix, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Sync(ctx, &basaltv1.SyncRequest{Prefix: prefix}, o...)
		return err
	})
	if err != nil {
		d.dirty.Store(true)
	}
	return err
}

// DiskUsage returns the node's live bytes, exact and without a walk; it falls at once on Delete. The figure is the node's: the
// view `pins` says 0 while another view of the node is open, so that a mount that adds its children up counts the node once.
func (d *Datastore) DiskUsage(ctx context.Context) (uint64, error) {
	if err := d.open("disk usage"); err != nil {
		return 0, err
	}
	if d.secondary() {
		return 0, nil
	}
	var bytes uint64
	err := d.node.call(ctx, "disk usage", "", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.DiskUsage(ctx, &basaltv1.DiskUsageRequest{}, o...)
		bytes = r.GetBytes()
		return err
	})
	return bytes, err
}

// secondary says whether figures and chores of the whole node are another view's business.
func (d *Datastore) secondary() bool { return d.role == "pins" && d.node.others(d.role) }

// Check makes the node check its own state (index against log); corruption is an error that says where.
func (d *Datastore) Check(ctx context.Context) error {
	return d.chore(ctx, "check", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Check(ctx, &basaltv1.CheckRequest{}, o...)
		return err
	})
}

// Scrub makes the node read everything back against its checksums. It takes as long as that takes.
func (d *Datastore) Scrub(ctx context.Context) error {
	return d.chore(ctx, "scrub", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.Scrub(ctx, &basaltv1.ScrubRequest{}, o...)
		return err
	})
}

// CollectGarbage makes the node give back the space of what was deleted.
func (d *Datastore) CollectGarbage(ctx context.Context) error {
	return d.chore(ctx, "collect garbage", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.CollectGarbage(ctx, &basaltv1.CollectGarbageRequest{}, o...)
		return err
	})
}

func (d *Datastore) chore(ctx context.Context, op string, f func(context.Context, *session, ...grpc.CallOption) error) error {
	if err := d.open(op); err != nil {
		return err
	}
	if d.secondary() {
		return nil
	}
	// These may take hours, so a cancelled caller ends them at once.
	return d.node.try(ctx, op, "", func(ctx context.Context, s *session) fault {
		var trailer metadata.MD
		if err := f(ctx, s, grpc.Trailer(&trailer)); err != nil {
			return judge(ctx, op, "", err, trailer, s.broken.Load())
		}
		return fault{}
	})
}

// SetTTL lets key expire when ttl has passed from now. Not for blocks: ErrUnsupported.
func (d *Datastore) SetTTL(ctx context.Context, key ds.Key, ttl time.Duration) error {
	k, err := d.key("set ttl", key)
	if err != nil {
		return err
	}
	if ttl <= 0 {
		return &Error{InvalidValue, "set ttl", k, fmt.Sprintf("ttl %s: it must be above zero", ttl)}
	}
	d.dirty.Store(true)
	return d.node.call(ctx, "set ttl", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		_, err := s.rpc.SetTTL(ctx, &basaltv1.SetTTLRequest{Key: k, TtlMs: milliseconds(ttl)}, o...)
		return err
	})
}

// GetExpiration returns when key expires, to the millisecond; the zero time if never.
func (d *Datastore) GetExpiration(ctx context.Context, key ds.Key) (time.Time, error) {
	k, err := d.key("get expiration", key)
	if err != nil {
		return time.Time{}, err
	}
	var at int64
	err = d.node.call(ctx, "get expiration", k, func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetExpiration(ctx, &basaltv1.GetExpirationRequest{Key: k}, o...)
		at = r.GetExpiresUnixMs()
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	return expiration(at), nil
}

func expiration(unixMs int64) time.Time {
	if unixMs == 0 {
		return time.Time{}
	}
	return time.UnixMilli(unixMs)
}

// Close makes what this view wrote durable and lets go of the node. The agent goes on serving others; one that was started for
// this node ends by itself when nobody is connected.
func (d *Datastore) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	var err error
	if d.dirty.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), closeMax)
		err = d.sync(ctx, "/"+strings.TrimPrefix(d.mount, "/"))
		cancel()
		if err != nil {
			err = fmt.Errorf("closing: what was written last may not be on stable storage: %w", err)
		}
	}
	d.node.release(d.role)
	return err
}

// NodeID returns the id of the node behind this view, Durability its class, as the agent said at the last handshake.
func (d *Datastore) NodeID() string { return d.hello().GetNodeId() }

// Durability returns the node's durability class: "strict", "ordered" or "relaxed".
func (d *Datastore) Durability() string { return d.hello().GetDurability() }

func (d *Datastore) hello() *basaltv1.HandshakeResponse {
	for i := range d.node.slots {
		sl := &d.node.slots[i]
		sl.mu.Lock()
		s := sl.current
		sl.mu.Unlock()
		if s != nil {
			return s.hello
		}
	}
	return nil
}
