package fulldisk

import (
	"os"
	"path/filepath"
	"testing"

	"basalt.dev/go/internal/agenttest"
)

// `make full-disk` does this on ZFS too, in every way and for longer.
func TestAFullExt4RefusesPutsAndServesOn(t *testing.T) {
	if !runsHere(ShortCases[0]) {
		t.Skip("needs root and loop devices; `make full-disk` takes a guest")
	}
	chaos, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Cases: ShortCases[:1], Seed: 1, Self: chaos, Dir: agenttest.TempIn(t, os.TempDir()), Log: t.Output(),
		Basalt: agenttest.Basalt(t), IPFS: agenttest.Program(t, "IPFS_BIN", "ipfs"),
	}
	result, err := Run(o)
	t.Log(result)
	if err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(o.Dir, "*", "disk", "*")); err != nil || len(left) > 0 {
		t.Errorf("something is mounted here still: %v %v", left, err)
	}
}

// TestMain is the program in which the cases run, when Run starts it.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "fill" {
		plan, err := Decode(os.Args[2])
		if err == nil {
			err = Guest(plan)
		}
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
