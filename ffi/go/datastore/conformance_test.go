package datastore_test

import (
	"testing"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/conformance"
)

func overLane(t testing.TB, dir string, flags ...string) conformance.Node {
	n := agenttest.Init(t, dir, flags...)
	n.Start()
	return n
}

func overGRPC(t testing.TB, dir string, flags ...string) conformance.Node {
	n := agenttest.Init(t, dir, flags...)
	n.NoLane = true
	n.Start()
	return n
}

func TestOverTheLane(t *testing.T) { conformance.Run(t, overLane) }

func TestOverTheLaneOnDisk(t *testing.T) { conformance.OnDisk(t, overLane) }

func TestOverGRPC(t *testing.T) { conformance.Run(t, overGRPC) }

func TestOverGRPCOnDisk(t *testing.T) { conformance.OnDisk(t, overGRPC) }
