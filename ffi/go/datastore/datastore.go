// Package datastore is a go-datastore whose keys live in a Basalt node, reached over gRPC on the node's data socket, or by another
// Transport.
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

	ds "github.com/ipfs/go-datastore"
)

// Datastore is a view of a node: all of it, or the part below a mountpoint. Safe for use by many goroutines.
type Datastore struct {
	way    Transport
	node   string // its id
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
	if _, err := mountOf(cfg.Role); err != nil {
		return nil, err
	}
	node, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return Over(node, cfg.Role)
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
	value, err := d.way.Get(ctx, k)
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
	size, err := d.way.Size(ctx, k)
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
	exists, err := d.way.Has(ctx, k)
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
	defer d.dirty.Store(true) // after it: a Sync that runs beside it does not cover it
	return d.way.Put(ctx, k, value, milliseconds(ttl))
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
	defer d.dirty.Store(true)
	if err := d.way.Delete(ctx, k); err != ds.ErrNotFound {
		return err
	}
	return nil
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
	err := d.way.Sync(ctx, prefix)
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
	return d.way.DiskUsage(ctx)
}

// secondary says whether figures and chores of the whole node are another view's business.
func (d *Datastore) secondary() bool { return d.role == "pins" && views.others(d.node, d.role) }

// Check makes the node check its own state (index against log); corruption is an error that says where.
func (d *Datastore) Check(ctx context.Context) error {
	return d.chore(ctx, "check", d.way.Check)
}

// Scrub makes the node read everything back against its checksums. It takes as long as that takes.
func (d *Datastore) Scrub(ctx context.Context) error {
	return d.chore(ctx, "scrub", d.way.Scrub)
}

// CollectGarbage makes the node give back the space of what was deleted.
func (d *Datastore) CollectGarbage(ctx context.Context) error {
	return d.chore(ctx, "collect garbage", d.way.CollectGarbage)
}

func (d *Datastore) chore(ctx context.Context, op string, f func(context.Context) error) error {
	if err := d.open(op); err != nil {
		return err
	}
	if d.secondary() {
		return nil
	}
	return f(ctx)
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
	defer d.dirty.Store(true)
	return d.way.SetTTL(ctx, k, milliseconds(ttl))
}

// GetExpiration returns when key expires, to the millisecond; the zero time if never.
func (d *Datastore) GetExpiration(ctx context.Context, key ds.Key) (time.Time, error) {
	k, err := d.key("get expiration", key)
	if err != nil {
		return time.Time{}, err
	}
	at, err := d.way.Expiration(ctx, k)
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
	views.add(d.node, d.role, -1)
	if closeErr := d.way.Close(); err == nil {
		err = closeErr
	}
	return err
}

// NodeID returns the id of the node behind this view, Durability its class, as the node said at the last handshake.
func (d *Datastore) NodeID() string { return d.node }

// Durability returns the node's durability class: "strict", "ordered" or "relaxed".
func (d *Datastore) Durability() string { return d.way.Hello().GetDurability() }
