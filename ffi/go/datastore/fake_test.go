package datastore_test

// A node made of a map: a double for what a real agent can't be made to do at a given moment (break a stream after its second
// chunk, execute a Delete and break before the answer, be another node). What a node must do is tested against a real agent.

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type fake struct {
	basaltv1.UnimplementedDatastoreServer
	t      *testing.T
	socket string
	id     string
	limit  uint64

	mu          sync.Mutex
	data        map[string][]byte
	calls       map[string]int
	handshakes  int
	server      *grpc.Server
	features    []string
	incarnation []byte
	lane        func(asked) // serves fast lanes
	lanes       []net.Conn
	// What to do wrong; each is asked with the lock held.
	onDelete func() (breakAfter bool)
	onQuery  func(req *basaltv1.QueryRequest) (chunks int) // break after that many chunks; -1: don't
	breaking <-chan struct{}                               // if set, onQuery's break waits for it: what was sent before has arrived then
	endEarly bool                                          // end a query's stream without `complete`
	fail     func(method string) error
	kind     string // every Get fails with this kind
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, id: "fakenode", data: map[string][]byte{}, calls: map[string]int{}, socket: filepath.Join(t.TempDir(), "data.sock")}
	f.start()
	t.Cleanup(f.stop)
	return f
}

func (f *fake) start() {
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Error(err)
		return
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(1<<30),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
			f.mu.Lock()
			f.calls[method]++
			fail := f.fail
			f.mu.Unlock()
			if fail != nil {
				if err := fail(method); err != nil {
					return nil, err
				}
			}
			return h(ctx, req)
		}))
	basaltv1.RegisterDatastoreServer(s, f)
	f.mu.Lock()
	f.server = s
	f.mu.Unlock()
	go func() { _ = s.Serve(sniff(l, f)) }()
}

// stop cuts all connections and stops listening, as kill -9 would.
func (f *fake) stop() {
	f.mu.Lock()
	s, lanes := f.server, f.lanes
	f.lanes = nil
	f.mu.Unlock()
	for _, lane := range lanes {
		lane.Close()
	}
	s.Stop()
}

func (f *fake) restart() {
	f.stop()
	f.start()
}

func (f *fake) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *fake) config() datastore.Config {
	return datastore.Config{Sockets: []string{f.socket}, NodeID: f.id, Role: "root", Client: "test"}
}

func (f *fake) open(change ...func(*datastore.Config)) *datastore.Datastore {
	f.t.Helper()
	cfg := f.config()
	for _, c := range change {
		c(&cfg)
	}
	d, err := datastore.Open(context.Background(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { d.Close() })
	return d
}

func kindError(ctx context.Context, code codes.Code, kind, message string) error {
	_ = grpc.SetTrailer(ctx, metadata.Pairs("basalt-kind", kind))
	return status.Error(code, message)
}

func (f *fake) Handshake(context.Context, *basaltv1.HandshakeRequest) (*basaltv1.HandshakeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handshakes++
	return &basaltv1.HandshakeResponse{Protocol: 1, NodeId: f.id, ValueBytesMax: f.limit, Durability: "strict", Features: f.features, Incarnation: f.incarnation}, nil
}

func (f *fake) Get(ctx context.Context, r *basaltv1.GetRequest) (*basaltv1.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kind != "" {
		return nil, kindError(ctx, codes.Unavailable, f.kind, "said the node")
	}
	v, ok := f.data[r.Key]
	if !ok {
		return nil, kindError(ctx, codes.NotFound, "NotFound", "no such key")
	}
	return &basaltv1.GetResponse{Value: v}, nil
}

func (f *fake) Has(_ context.Context, r *basaltv1.HasRequest) (*basaltv1.HasResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.data[r.Key]
	return &basaltv1.HasResponse{Exists: ok}, nil
}

func (f *fake) Put(_ context.Context, r *basaltv1.PutRequest) (*basaltv1.PutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data[r.Key] = bytes.Clone(r.Value)
	return &basaltv1.PutResponse{}, nil
}

func (f *fake) Delete(ctx context.Context, r *basaltv1.DeleteRequest) (*basaltv1.DeleteResponse, error) {
	f.mu.Lock()
	delete(f.data, r.Key)
	hook := f.onDelete
	f.mu.Unlock()
	if hook != nil && hook() {
		go f.restart()
		<-ctx.Done()
	}
	return &basaltv1.DeleteResponse{}, nil
}

func (f *fake) Sync(context.Context, *basaltv1.SyncRequest) (*basaltv1.SyncResponse, error) {
	return &basaltv1.SyncResponse{}, nil
}

func (f *fake) DiskUsage(context.Context, *basaltv1.DiskUsageRequest) (*basaltv1.DiskUsageResponse, error) {
	return &basaltv1.DiskUsageResponse{Bytes: 42}, nil
}

func (f *fake) Batch(stream grpc.ClientStreamingServer[basaltv1.BatchRequest, basaltv1.BatchResponse]) error {
	var ops []*basaltv1.BatchOperation
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.calls["BatchChunk"]++
		f.mu.Unlock()
		ops = append(ops, r.Operations...)
		if !r.Commit {
			continue
		}
		f.mu.Lock()
		for _, o := range ops {
			if o.GetDelete() {
				delete(f.data, o.Key)
			} else {
				f.data[o.Key] = o.GetPut()
			}
		}
		f.mu.Unlock()
		return stream.SendAndClose(&basaltv1.BatchResponse{})
	}
}

func (f *fake) Query(r *basaltv1.QueryRequest, stream grpc.ServerStreamingServer[basaltv1.QueryResponse]) error {
	f.mu.Lock()
	f.calls["Query"]++
	prefix := strings.TrimSuffix(r.Prefix, "/") + "/"
	var keys []string
	for k := range f.data {
		if strings.HasPrefix(k, prefix) && (r.After == nil || k > *r.After) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	breakAfter := -1
	if f.onQuery != nil {
		breakAfter = f.onQuery(r)
	}
	var entries []*basaltv1.Entry
	for _, k := range keys {
		entries = append(entries, &basaltv1.Entry{Key: k, Value: f.data[k], Size: int64(len(f.data[k]))})
	}
	breaking, endEarly := f.breaking, f.endEarly
	f.mu.Unlock()
	for sent := 0; len(entries) > 0; sent++ {
		if sent == breakAfter {
			if breaking != nil {
				<-breaking
			}
			go f.restart()
			<-stream.Context().Done()
			return status.Error(codes.Unavailable, "cut")
		}
		chunk := entries[:min(2, len(entries))]
		entries = entries[len(chunk):]
		if err := stream.Send(&basaltv1.QueryResponse{Entries: chunk}); err != nil {
			return err
		}
	}
	if endEarly {
		return nil
	}
	return stream.Send(&basaltv1.QueryResponse{Complete: true})
}
