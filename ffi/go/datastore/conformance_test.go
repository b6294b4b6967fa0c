package datastore_test

import (
	"testing"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/conformance"
)

func overGRPC(t testing.TB, dir string, flags ...string) conformance.Node {
	n := agenttest.Init(t, dir, flags...)
	n.Start()
	return n
}

func TestOverGRPC(t *testing.T) { conformance.Run(t, overGRPC) }

func TestOverGRPCOnDisk(t *testing.T) { conformance.OnDisk(t, overGRPC) }
