package datastore_test

import (
	"testing"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/conformance"
)

func TestOverGRPC(t *testing.T) {
	conformance.Run(t, func(t testing.TB, dir string, flags ...string) conformance.Node {
		n := agenttest.Init(t, dir, flags...)
		n.Start()
		return n
	})
}
