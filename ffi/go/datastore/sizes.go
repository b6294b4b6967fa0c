package datastore

import (
	"context"
	"fmt"

	ds "github.com/ipfs/go-datastore"
)

// Sizes is GetSize of many keys in one hop: the size of each key's value in bytes, in order, -1 where it is absent.
func (d *Datastore) Sizes(ctx context.Context, keys []ds.Key) ([]int64, error) {
	names := make([]string, len(keys))
	for i, key := range keys {
		k, err := d.key("get sizes", key)
		if err != nil {
			return nil, err
		}
		names[i] = k
	}
	sizes, err := d.way.Sizes(ctx, names)
	if err != nil {
		return nil, err
	}
	if len(sizes) != len(keys) {
		return nil, &Error{Unknown, "get sizes", "", fmt.Sprintf("the node answered %d sizes for %d keys", len(sizes), len(keys))}
	}
	return sizes, nil
}
