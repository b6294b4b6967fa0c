package run

// Every workload, next to nothing of it, on every store as it is.

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// The test program stands in for the program that a plan starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "-spec" {
		if err := Child(context.Background(), os.Args[2], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// measured is what a plan gives for these workloads on these stores.
func measured(t *testing.T, words, only string, change func(*Plan)) []Entry {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := stores.Choose(words)
	if err != nil {
		t.Fatal(err)
	}
	workloads, err := workload.Choose(workload.Tiny, only)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if disk := os.Getenv("BASALT_TEST_DISK"); disk != "" { // the raw limits want a file system with O_DIRECT
		if folder, err = os.MkdirTemp(disk, "peers-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(folder) })
	}
	p := Plan{Stores: chosen, Raw: true, Rounds: 1, Folder: folder, HeapMiB: 16, Program: program, Log: io.Discard, Limit: time.Minute}
	if change != nil {
		change(&p)
	}
	var all []Entry
	if err := p.Run(t.Context(), workloads, func(_ workload.Workload, entries []Entry) error {
		all = append(all, entries...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(p.Folder, "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if len(all) == 0 {
		t.Error("nothing was measured")
	}
	return all
}

func TestEveryStoreDoesEveryWorkload(t *testing.T) {
	words := "flatfs,pebble,leveldb,badger,badger4"
	if os.Getenv("BASALT_BIN") != "" {
		words += ",Basalt lane,Basalt gRPC"
	}
	for _, only := range []string{"W0", "W4", "W5", "W6", "W7,W8,W9", "W10", "W12"} {
		t.Run(only, func(t *testing.T) {
			for _, e := range measured(t, words, only, nil) {
				if len(e.Rounds) == 0 {
					t.Errorf("%s, %s: no round", e.Case, e.Store)
				}
				for _, row := range e.Rounds {
					if row.Error != "" {
						t.Errorf("%s, %s: %s", e.Case, e.Store, row.Error)
					} else if !(row.Figures[Rate] > 0) {
						t.Errorf("%s, %s: %v", e.Case, e.Store, row.Figures)
					}
				}
			}
		})
	}
}

func TestAKilledStoreIsOpenedAgain(t *testing.T) {
	words := "flatfs sync,badger SyncWrites"
	if os.Getenv("BASALT_BIN") != "" {
		words += ",Basalt lane strict"
	}
	killed := 0
	for _, e := range measured(t, words, "W11", nil) {
		for _, row := range e.Rounds {
			if row.Error != "" {
				t.Errorf("%s, %s: %s", e.Case, e.Store, row.Error)
			}
			if e.Session == "W11-kill" {
				killed++
				if row.Figures[Ops] == 0 || row.Figures[Lost] != 0 {
					t.Errorf("%s: %g acknowledged, %g lost", e.Store, row.Figures[Ops], row.Figures[Lost])
				}
			}
		}
	}
	if killed == 0 {
		t.Error("nobody was killed")
	}
}

func TestAProgramThatDiesIsAFailureOfItsStoreAlone(t *testing.T) {
	for _, e := range measured(t, "flatfs sync", "W9", func(p *Plan) { p.Stores[0].Name = "no such store" }) {
		if len(e.Rounds) != 1 || e.Rounds[0].Figures != nil || !strings.Contains(e.Rounds[0].Error, "no such store") {
			t.Errorf("%+v", e)
		}
	}
}

func TestRoundsInterleaveTheStores(t *testing.T) {
	var log strings.Builder
	measured(t, "flatfs sync,leveldb", "W9", func(p *Plan) { p.Rounds, p.Log = 2, &log })
	var turns []string
	for line := range strings.Lines(log.String()) {
		turn, _, _ := strings.Cut(line, " (")
		turns = append(turns, turn)
	}
	want := "W9 round 1 flatfs sync; W9 round 1 leveldb; W9 round 2 flatfs sync; W9 round 2 leveldb"
	if got := strings.Join(turns, "; "); got != want {
		t.Errorf("%s", got)
	}
}
