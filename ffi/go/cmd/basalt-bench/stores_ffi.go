//go:build cgo

package main

// The node in this process. Built without cgo, the program measures gRPC alone.

import (
	"path/filepath"

	"basalt.dev/go/autostart"
	"basalt.dev/go/native"
	ds "github.com/ipfs/go-datastore"
)

func init() {
	inProcess = []kind{
		{name: "Basalt, FFI, strict", durability: "strict", open: openInProcess("strict")},
		{name: "Basalt, FFI, ordered", durability: "ordered", open: openInProcess("ordered"), writesOnly: true},
	}
}

// openInProcess makes a node and opens it here.
func openInProcess(durability string) func(string) (ds.Batching, func() error, error) {
	return func(folder string) (ds.Batching, func() error, error) {
		node := filepath.Join(folder, "node")
		if _, err := initNode(node, durability); err != nil {
			return nil, nil, err
		}
		id, err := autostart.NodeID(node)
		if err != nil {
			return nil, nil, err
		}
		store, err := native.Open(native.Config{Path: node, NodeID: id, Role: "blocks", Client: "basalt-bench"})
		if err != nil {
			return nil, nil, err
		}
		return store, store.Close, nil
	}
}
