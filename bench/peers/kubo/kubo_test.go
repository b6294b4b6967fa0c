package kubo

import (
	"io"
	"os"
	"strings"
	"testing"

	"basalt.dev/go/bench/run"
)

func TestEveryStepIsMeasuredOnEveryStore(t *testing.T) {
	p := Plan{
		Rounds: 1, Folder: t.TempDir(), Ipfs: os.Getenv("IPFS_BIN"), IpfsFFI: os.Getenv("IPFS_FFI_BIN"), Basalt: os.Getenv("BASALT_BIN"),
		LargeBytes: 1 << 20, SmallFiles: 5, Log: io.Discard,
	}
	if p.Ipfs == "" || p.Basalt == "" {
		t.Skip("IPFS_BIN and BASALT_BIN name no programs")
	}
	entries, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		for _, row := range e.Rounds {
			if row.Error != "" || !(row.Figures[run.Rate] > 0) {
				t.Errorf("%s, %s: %+v", e.Store, e.Case, row)
			}
		}
	}
	if len(entries) < 8*len(steps) {
		t.Errorf("%d entries", len(entries))
	}
}

func TestAStepThatFailsIsNoNumber(t *testing.T) {
	p := Plan{Rounds: 1, Folder: t.TempDir(), Ipfs: "/bin/false", Basalt: "/bin/false", Words: "flatfs sync", SmallFiles: 1, Log: io.Discard}
	entries, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Rounds[0].Figures != nil || e.Rounds[0].Error == "" {
			t.Errorf("%+v", e)
		}
		if e.Case == steps[0].name && !strings.Contains(e.Rounds[0].Error, "ipfs init") {
			t.Errorf("%+v", e)
		}
	}
}
