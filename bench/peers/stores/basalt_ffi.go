//go:build cgo

package stores

// The node in this process, by the C ABI, as under ipfs-ffi.

import (
	"context"

	"basalt.dev/go/autostart"
	"basalt.dev/go/native"
)

// HasFFI says whether this program has the node linked in.
const HasFFI = true

func inProcess(_ context.Context, node string) (*Opened, error) {
	id, err := autostart.NodeID(node)
	if err != nil {
		return nil, err
	}
	store, err := native.Open(native.Config{Path: node, NodeID: id, Role: "blocks", Client: "basalt-peers"})
	if err != nil {
		return nil, err
	}
	return &Opened{Batching: store}, nil
}
