package datastore

import (
	"context"
	"fmt"

	"basalt.dev/go/internal/basaltv1"
	ds "github.com/ipfs/go-datastore"
	"google.golang.org/grpc"
)

// Sizes is GetSize of many keys in one hop: the size of each key's value in bytes, in order, -1 where it is absent.
func (d *Datastore) Sizes(ctx context.Context, keys []ds.Key) ([]int64, error) {
	req := &basaltv1.GetSizesRequest{Keys: make([]string, len(keys))}
	for i, key := range keys {
		k, err := d.key("get sizes", key)
		if err != nil {
			return nil, err
		}
		req.Keys[i] = k
	}
	var sizes []int64
	err := d.node.call(ctx, "get sizes", "", func(ctx context.Context, s *session, o ...grpc.CallOption) error {
		r, err := s.rpc.GetSizes(ctx, req, o...)
		sizes = r.GetSizes()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(sizes) != len(keys) {
		return nil, &Error{Unknown, "get sizes", "", fmt.Sprintf("the agent answered %d sizes for %d keys", len(sizes), len(keys))}
	}
	return sizes, nil
}
