//go:build cgo

// Package native opens a Basalt node in this process, through its C ABI (ffi/include/basalt.h): the same node as the agent's, without
// a hop. While it is open it is served on its sockets as well, so that `basalt status` and the like work the same.
//
// A call blocks its thread until it is done and ignores its context once it has begun, like other stores in Kubo's own process. Views
// of one node share it; closing the last one closes it, which is a Sync.
//
// The library is linked by `-ldflags=-extldflags=...` (tools/build), so that this source names no path of a machine.
package native

/*
#cgo CFLAGS: -I${SRCDIR}/../../include
#cgo noescape basalt_open
#cgo nocallback basalt_open
#cgo noescape basalt_get
#cgo nocallback basalt_get
#cgo noescape basalt_size
#cgo nocallback basalt_size
#cgo noescape basalt_has
#cgo nocallback basalt_has
#cgo noescape basalt_put
#cgo nocallback basalt_put
#cgo noescape basalt_delete
#cgo nocallback basalt_delete
#cgo noescape basalt_batch
#cgo nocallback basalt_batch
#cgo noescape basalt_query
#cgo nocallback basalt_query
#cgo nocallback basalt_query_next
#cgo noescape basalt_sync
#cgo nocallback basalt_sync
#cgo noescape basalt_set_ttl
#cgo nocallback basalt_set_ttl
#cgo noescape basalt_expiration
#cgo nocallback basalt_expiration
#cgo noescape basalt_free
#cgo nocallback basalt_free
#include "basalt.h"
*/
import "C"

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"google.golang.org/protobuf/proto"
)

// HandOverMax is how long Open waits for an autostarted agent to hand the node over.
const HandOverMax = 30 * time.Second

const protocol = 1

// Config says which node to open.
type Config struct {
	// Path is the node's folder.
	Path string
	// NodeID is the id that the node must have; empty: any.
	NodeID string
	// Role is which view of it this is: "root", "blocks", "pins".
	Role string
	// Client names the program for logs and `basalt status`.
	Client string
}

// Open opens a view of a node in this process. An agent that a plugin started is asked to hand the node over; where another process
// holds it and stays, the error's kind is datastore.Locked.
func Open(cfg Config) (*datastore.Datastore, error) {
	n, err := open(cfg)
	if err != nil {
		return nil, err
	}
	d, err := datastore.Over(n, cfg.Role)
	if err != nil {
		n.Close()
		return nil, err
	}
	return d, nil
}

// node is one handle.
type node struct {
	handle C.uint64_t
	hello  *basaltv1.HandshakeResponse
}

var _ datastore.Transport = (*node)(nil)

func open(cfg Config) (*node, error) {
	if got := C.basalt_abi_version(); got != C.BASALT_ABI_VERSION {
		return nil, fmt.Errorf("basalt: the library speaks version %d of its ABI, this program was built for version %d: build both anew", got, C.BASALT_ABI_VERSION)
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, err
	}
	hello, err := proto.Marshal(&basaltv1.HandshakeRequest{
		ProtocolMin:  protocol,
		ProtocolMax:  protocol,
		Client:       cfg.Client,
		ExpectNodeId: cfg.NodeID,
		Role:         cfg.Role,
	})
	if err != nil {
		return nil, err
	}
	o := C.basalt_open(text(path), C.size_t(len(path)), data(hello), C.size_t(len(hello)), C.uint64_t(HandOverMax.Milliseconds()))
	answer, err := taken("open", path, o)
	if err != nil {
		return nil, err
	}
	n := &node{handle: o.value, hello: &basaltv1.HandshakeResponse{}}
	if err := proto.Unmarshal(answer, n.hello); err != nil {
		n.Close()
		return nil, fmt.Errorf("basalt: the node's handshake: %w", err)
	}
	return n, nil
}

// text and data point to bytes for the length of a call.
func text(s string) *C.uint8_t { return (*C.uint8_t)(unsafe.Pointer(unsafe.StringData(s))) }
func data(b []byte) *C.uint8_t { return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(b))) }

var kinds = map[C.uint32_t]datastore.Kind{
	C.BASALT_KIND_NO_SPACE:      datastore.NoSpace,
	C.BASALT_KIND_CORRUPT:       datastore.Corrupt,
	C.BASALT_KIND_TOO_LARGE:     datastore.TooLarge,
	C.BASALT_KIND_INVALID_KEY:   datastore.InvalidKey,
	C.BASALT_KIND_INVALID_VALUE: datastore.InvalidValue,
	C.BASALT_KIND_READ_ONLY:     datastore.ReadOnly,
	C.BASALT_KIND_UNAVAILABLE:   datastore.Unavailable,
	C.BASALT_KIND_UNSUPPORTED:   datastore.Unsupported,
	C.BASALT_KIND_LOCKED:        datastore.Locked,
	C.BASALT_KIND_FORMAT:        datastore.Format,
	C.BASALT_KIND_CLOSED:        datastore.Closed,
	C.BASALT_KIND_IO:            datastore.IO,
	C.BASALT_KIND_PANICKED:      datastore.Panicked,
}

// taken turns an outcome into its bytes, which it gives back, or its error.
func taken(op, key string, o C.basalt_outcome) ([]byte, error) {
	if o.kind == C.BASALT_KIND_OK && o.data == nil {
		return nil, nil
	}
	if o.kind == C.BASALT_KIND_NOT_FOUND {
		C.basalt_free(o.data, o.len)
		return nil, ds.ErrNotFound
	}
	var bytes []byte
	if o.data != nil {
		bytes = make([]byte, o.len)
		copy(bytes, unsafe.Slice((*byte)(unsafe.Pointer(o.data)), o.len))
		C.basalt_free(o.data, o.len)
	}
	if o.kind == C.BASALT_KIND_OK {
		return bytes, nil
	}
	kind, ok := kinds[o.kind]
	if !ok {
		kind = datastore.Unknown
	}
	return nil, &datastore.Error{Kind: kind, Op: op, Key: key, Message: string(bytes)}
}

func done(op, key string, o C.basalt_outcome) error {
	_, err := taken(op, key, o)
	return err
}

// Hello implements datastore.Transport.
func (n *node) Hello() *basaltv1.HandshakeResponse { return n.hello }

// glance is what a value may have to be read by the look-up itself, in bytes: pins, directories, names.
const glance = 4 << 10

var glances = sync.Pool{New: func() any { return new([glance]byte) }}

// Get implements datastore.Transport. The first call brings a small value, or the size; a block is then read straight into the slice
// that is returned.
func (n *node) Get(_ context.Context, key string) ([]byte, error) {
	small := glances.Get().(*[glance]byte)
	o := C.basalt_get(n.handle, text(key), C.size_t(len(key)), data(small[:]), glance)
	if o.kind == C.BASALT_KIND_OK {
		value := append([]byte{}, small[:o.value]...)
		glances.Put(small)
		return value, nil
	}
	glances.Put(small)
	for o.kind == C.BASALT_KIND_BUFFER_TOO_SMALL {
		value := make([]byte, o.value)
		o = C.basalt_get(n.handle, text(key), C.size_t(len(key)), data(value), C.size_t(len(value)))
		if o.kind == C.BASALT_KIND_OK {
			return value[:o.value], nil
		}
		// Not a block, and it grew between the calls.
	}
	return nil, done("get", key, o)
}

// Size implements datastore.Transport.
func (n *node) Size(_ context.Context, key string) (int, error) {
	o := C.basalt_size(n.handle, text(key), C.size_t(len(key)))
	return int(o.value), done("get size", key, o)
}

// Sizes implements datastore.Transport. There is no hop to save.
func (n *node) Sizes(ctx context.Context, keys []string) ([]int64, error) {
	sizes := make([]int64, len(keys))
	for i, key := range keys {
		size, err := n.Size(ctx, key)
		if err == ds.ErrNotFound {
			size = -1
		} else if err != nil {
			return nil, err
		}
		sizes[i] = int64(size)
	}
	return sizes, nil
}

// Has implements datastore.Transport.
func (n *node) Has(_ context.Context, key string) (bool, error) {
	o := C.basalt_has(n.handle, text(key), C.size_t(len(key)))
	return o.value != 0, done("has", key, o)
}

// Put implements datastore.Transport.
func (n *node) Put(_ context.Context, key string, value []byte, ttlMs int64) error {
	return done("put", key, C.basalt_put(n.handle, text(key), C.size_t(len(key)), data(value), C.size_t(len(value)), C.uint64_t(ttlMs)))
}

// Delete implements datastore.Transport.
func (n *node) Delete(_ context.Context, key string) error {
	return done("delete", key, C.basalt_delete(n.handle, text(key), C.size_t(len(key))))
}

// Batch implements datastore.Transport.
func (n *node) Batch(_ context.Context, ops []*basaltv1.BatchOperation) error {
	size := 0
	for _, o := range ops {
		size += 13 + len(o.Key) + len(o.GetPut())
	}
	flat := make([]byte, 0, size)
	for _, o := range ops {
		op := byte(1)
		if o.GetDelete() {
			op = 2
		}
		flat = append(flat, op)
		flat = binary.LittleEndian.AppendUint32(flat, uint32(len(o.Key)))
		flat = binary.LittleEndian.AppendUint64(flat, uint64(len(o.GetPut())))
		flat = append(flat, o.Key...)
		flat = append(flat, o.GetPut()...)
	}
	return done("commit", "", C.basalt_batch(n.handle, data(flat), C.size_t(len(flat))))
}

// Sync implements datastore.Transport.
func (n *node) Sync(_ context.Context, prefix string) error {
	return done("sync", prefix, C.basalt_sync(n.handle, text(prefix), C.size_t(len(prefix))))
}

// DiskUsage implements datastore.Transport.
func (n *node) DiskUsage(context.Context) (uint64, error) {
	o := C.basalt_disk_usage(n.handle)
	return uint64(o.value), done("disk usage", "", o)
}

// Check implements datastore.Transport.
func (n *node) Check(ctx context.Context) error {
	return chore(ctx, func() error { return done("check", "", C.basalt_check(n.handle)) })
}

// Scrub implements datastore.Transport.
func (n *node) Scrub(ctx context.Context) error {
	return chore(ctx, func() error { return done("scrub", "", C.basalt_scrub(n.handle)) })
}

// CollectGarbage implements datastore.Transport.
func (n *node) CollectGarbage(ctx context.Context) error {
	return chore(ctx, func() error { return done("collect garbage", "", C.basalt_collect_garbage(n.handle)) })
}

// chore runs what may take hours: a caller that is cancelled does not wait for its end, which harms nobody and comes at the latest
// when the node is closed.
func chore(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return f()
	}
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetTTL implements datastore.Transport.
func (n *node) SetTTL(_ context.Context, key string, ttlMs int64) error {
	return done("set ttl", key, C.basalt_set_ttl(n.handle, text(key), C.size_t(len(key)), C.uint64_t(ttlMs)))
}

// Expiration implements datastore.Transport.
func (n *node) Expiration(_ context.Context, key string) (int64, error) {
	o := C.basalt_expiration(n.handle, text(key), C.size_t(len(key)))
	return int64(o.value), done("get expiration", key, o)
}

// Close implements datastore.Transport.
func (n *node) Close() error { return done("close", "", C.basalt_close(n.handle)) }

// cursor is a query's answer.
type cursor struct {
	number C.uint64_t
	sizes  bool
	page   []byte
	ended  error
	closed atomic.Bool
}

// Query implements datastore.Transport.
func (n *node) Query(_ context.Context, req *basaltv1.QueryRequest) (datastore.Cursor, error) {
	flat, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	o := C.basalt_query(n.handle, data(flat), C.size_t(len(flat)))
	if err := done("query", req.Prefix, o); err != nil {
		return nil, err
	}
	c := &cursor{number: o.value, sizes: req.ReturnsSizes || !req.KeysOnly}
	// A query that can't run says so here, and not in its results.
	if err := c.turn(); err != nil && err != io.EOF {
		c.Close()
		return nil, err
	}
	return c, nil
}

// turn gets the next page.
func (c *cursor) turn() error {
	page, err := taken("query", "", C.basalt_query_next(c.number))
	if err == nil && len(page) == 0 {
		err = io.EOF
	}
	c.page, c.ended = page, err
	return err
}

var errPage = errors.New("basalt: query: the node's answer is malformed")

// Next implements datastore.Cursor.
func (c *cursor) Next() (*basaltv1.Entry, error) {
	if c.closed.Load() {
		return nil, io.EOF // nobody reads on
	}
	if len(c.page) == 0 {
		if c.ended != nil {
			return nil, c.ended
		}
		if err := c.turn(); err != nil {
			if c.closed.Load() {
				return nil, io.EOF
			}
			return nil, err
		}
	}
	const head = 28
	if len(c.page) < head {
		return nil, errPage
	}
	key := uint64(binary.LittleEndian.Uint32(c.page))
	value := binary.LittleEndian.Uint64(c.page[4:])
	e := &basaltv1.Entry{
		Size:          -1,
		ExpiresUnixMs: int64(binary.LittleEndian.Uint64(c.page[20:])),
	}
	if c.sizes {
		e.Size = int64(binary.LittleEndian.Uint64(c.page[12:]))
	}
	rest := c.page[head:]
	if uint64(len(rest)) < key || uint64(len(rest))-key < value {
		return nil, errPage
	}
	e.Key = string(rest[:key])
	if value > 0 {
		// A copy, so that a value that is kept does not keep its page.
		e.Value = append([]byte{}, rest[key:key+value]...)
	}
	c.page = rest[key+value:]
	return e, nil
}

// Close implements datastore.Cursor.
func (c *cursor) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := done("query", "", C.basalt_query_close(c.number))
	var e *datastore.Error
	if errors.As(err, &e) && e.Kind == datastore.Closed {
		return nil // with its view
	}
	return err
}

// provoke makes the node panic, for the test of what becomes of that.
func provoke(message string) error {
	return done("panic", "", C.basalt_test_panic(text(message), C.size_t(len(message))))
}
