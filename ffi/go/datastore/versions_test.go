package datastore_test

// Answers of an agent one version older and one newer, recorded byte by byte, so that no generated code can bend them. What the node does
// with recorded requests is tested with the node.

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"basalt.dev/go/datastore"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// frames is a codec that takes messages for what they are on the wire.
type frames struct{}

func (frames) Name() string { return "proto" }

func (frames) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (frames) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = frames{}

// recording answers each method with its frames, or with an error where it has none.
type recording struct {
	answers map[string][]string
	refuse  func(stream grpc.ServerStream, method string) error
}

// unknown are fields that this version has never heard of: 15 (varint 300), 100 (bytes "zz"), 101 (fixed32).
const unknown = "\x78\xac\x02" + "\xa2\x06\x02zz" + "\xad\x06\x01\x02\x03\x04"

var recordings = map[string]recording{
	// Knew neither limits nor durability nor features, nor GetSize.
	"older": {
		answers: map[string][]string{
			"Handshake": {"\x08\x01" + "\x1a\x08fakenode"},
			"Get":       {"\x0a\x05value"},
			"Has":       {"\x08\x01"},
			"Put":       {""},
			"Delete":    {""},
			"Sync":      {""},
			"Query":     {"\x0a\x0b" + "\x0a\x02/a" + "\x12\x05value", "\x10\x01"},
		},
		refuse: func(_ grpc.ServerStream, method string) error {
			return status.Error(codes.Unimplemented, "unknown method "+method)
		},
	},
	// Says more everywhere, and has a kind of error of its own.
	"newer": {
		answers: map[string][]string{
			"Handshake": {"\x08\x01" + "\x12\x0bbasalt 99.0" + "\x1a\x08fakenode" + "\x22\x02id" + "\x2a\x01x" + "\x32\x07eternal" + "\x38\x80\x80\x40" + unknown},
			"Get":       {"\x0a\x05value" + unknown},
			"Has":       {"\x08\x01" + unknown},
			"Put":       {unknown},
			"Delete":    {unknown},
			"Sync":      {unknown},
			"Query":     {"\x0a\x19" + "\x0a\x02/a" + "\x12\x05value" + unknown + unknown, "\x10\x01" + unknown},
		},
		refuse: func(stream grpc.ServerStream, _ string) error {
			stream.SetTrailer(metadata.Pairs("basalt-kind", "Weathered", "basalt-other", "x"))
			return status.Error(codes.Internal, "the stone is weathered")
		},
	},
}

func (r recording) serve(t *testing.T) (socket string) {
	socket = filepath.Join(t.TempDir(), "data.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(frames{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		path, _ := grpc.MethodFromServerStream(stream)
		method := path[strings.LastIndex(path, "/")+1:]
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		answers, ok := r.answers[method]
		if !ok {
			return r.refuse(stream, method)
		}
		for _, frame := range answers {
			if err := stream.SendMsg([]byte(frame)); err != nil {
				return err
			}
		}
		return nil
	}))
	t.Cleanup(s.Stop)
	go func() { _ = s.Serve(l) }()
	return socket
}

func TestRecordedAnswersOfOlderAndNewerAgentsAreUnderstood(t *testing.T) {
	for name, recorded := range recordings {
		t.Run(name, func(t *testing.T) {
			d, err := datastore.Open(context.Background(), datastore.Config{
				Sockets: []string{recorded.serve(t)}, NodeID: "fakenode", Role: "root", Client: "test", Retry: time.Second,
			})
			must(t, err)
			t.Cleanup(func() { d.Close() })
			ctx, key := t.Context(), ds.NewKey("/a")
			must(t, d.Put(ctx, key, []byte("value")))
			if v, err := d.Get(ctx, key); err != nil || string(v) != "value" {
				t.Errorf("Get: %q %v", v, err)
			}
			if has, err := d.Has(ctx, key); err != nil || !has {
				t.Errorf("Has: %v %v", has, err)
			}
			r, err := d.Query(ctx, query.Query{Prefix: "/"})
			must(t, err)
			if entries, err := r.Rest(); err != nil || len(entries) != 1 || entries[0].Key != "/a" || string(entries[0].Value) != "value" {
				t.Errorf("Query: %v %v", entries, err)
			}
			must(t, d.Delete(ctx, key))
			must(t, d.Sync(ctx, ds.NewKey("/")))

			// What one of them does not know is an error that says so, and no wrong answer.
			size, err := d.GetSize(ctx, key)
			weathered := &datastore.Error{Kind: "Weathered"}
			switch {
			case size != -1:
				t.Errorf("GetSize: %d", size)
			case name == "older" && (!errors.Is(err, datastore.ErrUnsupported) || !strings.Contains(err.Error(), "update basalt")):
				t.Errorf("GetSize: %v", err)
			case name == "newer" && (!errors.Is(err, weathered) || !strings.Contains(err.Error(), "the stone is weathered")):
				t.Errorf("GetSize: %v", err)
			}
		})
	}
}
