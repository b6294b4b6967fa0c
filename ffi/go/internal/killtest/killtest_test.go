package killtest

import (
	"testing"

	"basalt.dev/go/internal/agenttest"
)

func options(t *testing.T) Options {
	return Options{
		Seed: 1, Dir: agenttest.Temp(t), Log: t.Output(),
		Basalt: agenttest.Basalt(t), IPFS: agenttest.Program(t, "IPFS_BIN", "ipfs"), IPFSwith: agenttest.Program(t, "IPFS_FFI_BIN", "ipfs-ffi"),
	}
}

// The agent, Kubo with the node in it, and both: `make kill-test` does this more often.
func TestWhatKuboAcknowledgedSurvivesKills(t *testing.T) {
	o := options(t)
	o.Rounds = 3
	result, err := Run(o)
	t.Log(result)
	if err != nil {
		t.Error(err)
	}
}
