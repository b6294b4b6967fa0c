package datastore_test

// An agent that answers anything. Whatever it says, Kubo gets values or errors, and nothing that its own code panics on.

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// rawCodec sends bytes as they are, and keeps what comes.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
func (rawCodec) Name() string { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

// liar answers every call but the handshake with the same messages.
type liar struct {
	socket string

	mu       sync.Mutex
	messages [][]byte
	code     codes.Code // after the messages
	kind     string
	breaks   bool // the connection is cut after the messages
	server   *grpc.Server
}

func newLiar(t testing.TB) *liar {
	l := &liar{socket: filepath.Join(t.TempDir(), "data.sock")}
	l.start(t)
	t.Cleanup(func() { l.mu.Lock(); s := l.server; l.mu.Unlock(); s.Stop() })
	return l
}

func (l *liar) start(t testing.TB) {
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Error(err)
		return
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var asked []byte
		_ = stream.RecvMsg(&asked)
		if strings.HasSuffix(method, "/Handshake") {
			hello, err := proto.Marshal(&basaltv1.HandshakeResponse{Protocol: 1, NodeId: "liar", ValueBytesMax: 1 << 20, Durability: "strict"})
			if err != nil {
				return err
			}
			return stream.SendMsg(hello)
		}
		l.mu.Lock()
		messages, code, kind, breaks := l.messages, l.code, l.kind, l.breaks
		l.mu.Unlock()
		for _, message := range messages {
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
		if breaks {
			return status.Error(codes.Unavailable, "cut")
		}
		if kind != "" {
			stream.SetTrailer(metadata.Pairs("basalt-kind", kind))
		}
		if code != codes.OK {
			return status.Error(code, "said the liar")
		}
		return nil
	}))
	l.mu.Lock()
	l.server = s
	l.mu.Unlock()
	go func() { _ = s.Serve(listener) }()
}

func (l *liar) says(code codes.Code, kind string, breaks bool, messages ...[]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages, l.code, l.kind, l.breaks = messages, code, kind, breaks
}

func (l *liar) open(t testing.TB, role string) *datastore.Datastore {
	t.Helper()
	d, err := datastore.Open(context.Background(), datastore.Config{
		Sockets: []string{l.socket}, NodeID: "liar", Role: role, Client: "test", Retry: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// believe does with a store what Kubo does with it.
func believe(t testing.TB, d *datastore.Datastore) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	key := ds.NewKey("/CIQA")
	if v, err := d.Get(ctx, key); err == nil && v == nil {
		t.Error("a value that is nil and no error")
	}
	_, _ = d.Has(ctx, key)
	if size, err := d.GetSize(ctx, key); err == nil && size < 0 {
		t.Errorf("a size of %d", size)
	}
	_, _ = d.Sizes(ctx, []ds.Key{key, key})
	_ = d.Put(ctx, key, []byte("x"))
	_ = d.Delete(ctx, key)
	_ = d.Sync(ctx, key)
	_, _ = d.DiskUsage(ctx)
	_, _ = d.GetExpiration(ctx, key)
	if b, err := d.Batch(ctx); err == nil {
		_ = b.Put(ctx, key, []byte("x"))
		_ = b.Commit(ctx)
	}
	for _, q := range []query.Query{{}, {KeysOnly: true}, {Orders: []query.Order{query.OrderByKey{}}, Limit: 3}, {ReturnExpirations: true}} {
		results, err := d.Query(ctx, q)
		if err != nil {
			continue
		}
		for n := 0; n < 1000; n++ {
			r, ok := results.NextSync()
			if !ok {
				break
			}
			if r.Error == nil {
				// boxo's blockstore does this with every key that it lists, and it panics on what is no key.
				_ = ds.RawKey(r.Key).BaseNamespace()
			}
		}
		results.Close()
	}
	if ctx.Err() != nil {
		t.Error("a call did not end")
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answers are what a good agent might say, and worse.
func answers(t testing.TB) [][]byte {
	entry := func(key string) []byte {
		return marshal(t, &basaltv1.QueryResponse{Complete: true, Entries: []*basaltv1.Entry{{Key: key, Value: []byte("v"), Size: 1}}})
	}
	return [][]byte{
		nil,
		marshal(t, &basaltv1.GetResponse{Value: []byte("value")}),
		marshal(t, &basaltv1.GetSizeResponse{Size: 1 << 63}),
		marshal(t, &basaltv1.HasResponse{Exists: true}),
		marshal(t, &basaltv1.GetSizesResponse{Sizes: []int64{-1, -9, 1 << 62}}),
		marshal(t, &basaltv1.GetExpirationResponse{ExpiresUnixMs: -1 << 63}),
		marshal(t, &basaltv1.DiskUsageResponse{Bytes: 1<<64 - 1}),
		marshal(t, &basaltv1.QueryResponse{Entries: []*basaltv1.Entry{{Key: "/blocks/CIQA", Size: -7, ExpiresUnixMs: 1<<63 - 1}, {}}}),
		entry("/blocks/CIQA"), entry(""), entry("/"), entry("blocks"), entry("/blocks/"), entry("/blocks/x/"), entry("/blocks//"), entry("/x/"),
		entry("/pins"), entry("/blocks\x00"), []byte("\x0a\x05\x0a\x03/\xff\xfe"),
		{0xff}, {0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f},
	}
}

func TestAnAgentThatAnswersAnythingNeverPanicsKubo(t *testing.T) {
	l := newLiar(t)
	stores := []*datastore.Datastore{l.open(t, "root"), l.open(t, "blocks")}
	for _, answer := range answers(t) {
		for _, code := range []codes.Code{codes.OK, codes.DataLoss, codes.Code(99)} {
			for _, kind := range []string{"", "NotFound", "no such kind"} {
				l.says(code, kind, false, answer, answer)
				for _, d := range stores {
					believe(t, d)
				}
			}
		}
	}
}

func TestAnAgentThatBreaksEveryListingIsGivenUp(t *testing.T) {
	l := newLiar(t)
	d := l.open(t, "root")
	// The same entry again and again, and never the end.
	l.says(codes.OK, "", true, marshal(t, &basaltv1.QueryResponse{Entries: []*basaltv1.Entry{{Key: "/a"}}}))
	for range 2 {
		results, err := d.Query(context.Background(), query.Query{KeysOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			for {
				r, ok := results.NextSync()
				if !ok || r.Error != nil {
					done <- r.Error
					return
				}
			}
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Fatal("the listing seems complete")
			}
			var own *datastore.Error
			if !errors.As(err, &own) || !strings.Contains(err.Error(), "not complete") {
				t.Fatalf("%v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it is asked for ever")
		}
		results.Close()
		// Nor is one without any entry.
		l.says(codes.OK, "", true, marshal(t, &basaltv1.QueryResponse{}))
	}
}

func FuzzHostileAgent(f *testing.F) {
	for i, answer := range answers(f) {
		f.Add(answer, uint32(i%18), "", false)
		f.Add(answer, uint32(0), "NotFound", i%5 == 0)
	}
	l := newLiar(f)
	stores := []*datastore.Datastore{l.open(f, "root"), l.open(f, "blocks"), l.open(f, "pins")}
	f.Fuzz(func(t *testing.T, answer []byte, code uint32, kind string, breaks bool) {
		if strings.ContainsFunc(kind, func(r rune) bool { return r < ' ' || r > '~' }) {
			kind = "odd"
		}
		l.says(codes.Code(code), kind, breaks, answer, answer)
		for _, d := range stores {
			believe(t, d)
		}
	})
}
