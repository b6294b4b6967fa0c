//go:build cgo

package native

import (
	"testing"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/conformance"
)

func TestInProcess(t *testing.T) {
	conformance.Run(t, func(t testing.TB, dir string, flags ...string) conformance.Node {
		return inProcess{agenttest.Init(t, dir, flags...), t}
	})
}

// inProcess is a node that no agent serves.
type inProcess struct {
	*agenttest.Node
	t testing.TB
}

func (n inProcess) config(role string) Config {
	return Config{Path: n.Path, NodeID: n.ID, Role: role, Client: "test"}
}

func (n inProcess) Open(role string) *datastore.Datastore {
	n.t.Helper()
	d, err := Open(n.config(role))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			n.t.Errorf("close: %v", err)
		}
	})
	return d
}
