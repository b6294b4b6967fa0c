//go:build cgo

// Command ipfs-ffi is Kubo with Basalt built in, and the node in Kubo's own process: no agent, no hop. Where an agent serves the node
// that an operator runs, that one is used, and never stopped.
package main

import (
	"basalt.dev/go/internal/kubo"
	"basalt.dev/go/native"
	"basalt.dev/go/plugin"
	"github.com/ipfs/kubo/repo"
)

func main() {
	plugin.Native = func(path, node, role string) (repo.Datastore, error) {
		d, err := native.Open(native.Config{Path: path, NodeID: node, Role: role, Client: "kubo-plugin " + plugin.Version})
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	kubo.Main()
}
