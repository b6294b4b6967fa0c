package soak

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/internal/kuboload"
)

// made is a report of a run of half an hour in which one process has this many descriptors, and a node this many bytes on disk.
func made(files func(cycle int) int, disk func(cycle int) uint64) Report {
	lane := LaneReport{Name: "ffi", Cycles: 90, Restarts: 3, Acknowledged: 9, Events: []Event{{At: 600, What: "Kubo", Kill: true}}}
	for cycle := range 90 {
		for _, rest := range []bool{false, true} {
			p := &Process{Pid: 100 + cycle/30, RSS: 60 * mib, Anon: 30 * mib, Files: files(cycle), Threads: 10}
			if rest {
				p.Goroutines, p.Heap = 40, 8*mib
			} else {
				p.Files *= 2 // load has more open
			}
			lane.Samples = append(lane.Samples, Sample{At: float64(20 * cycle), Cycle: cycle, Rest: rest, Kubo: p,
				Node: &Node{Live: 48 * mib, Allocated: disk(cycle), Index: 8 * mib, Segments: 9, Stores: 3}})
		}
	}
	return Report{Seed: 1, Minutes: 30, Lanes: []LaneReport{lane}}
}

func steady(int) int        { return 40 }
func steadyDisk(int) uint64 { return 70 * mib }

func TestARunInWhichNothingGrowsIsFlat(t *testing.T) {
	r := made(steady, steadyDisk)
	if result, err := Judge(&r, t.Output()); err != nil || !strings.HasSuffix(result.String(), "; flat") {
		t.Error(result, err)
	}
}

func TestALeakOfDescriptorsIsNamed(t *testing.T) {
	r := made(func(cycle int) int { return 40 + cycle%30 }, steadyDisk) // each restart takes it back
	if result, err := Judge(&r, t.Output()); err == nil || len(result.Grown) != 1 || !strings.Contains(result.Grown[0], "descriptors") {
		t.Error(result, err)
	}
}

func TestDiskSpaceThatGrowsIsNamed(t *testing.T) {
	r := made(steady, func(cycle int) uint64 { return uint64(50+cycle) * mib })
	if result, err := Judge(&r, t.Output()); err == nil || len(result.Grown) != 1 || !strings.Contains(result.Grown[0], "disk space") {
		t.Error(result, err)
	}
	r = made(steady, func(int) uint64 { return 300 * mib }) // it does not grow, and is far more than the live bytes account for
	if result, err := Judge(&r, t.Output()); err == nil || len(result.Grown) != 1 || !strings.Contains(result.Grown[0], "beyond twice") {
		t.Error(result, err)
	}
}

func TestWhatProvesNothingFails(t *testing.T) {
	r := made(steady, steadyDisk)
	r.Lanes[0].Restarts = 0
	if _, err := Judge(&r, t.Output()); err == nil {
		t.Error("a run without a restart passes")
	}
	r = made(steady, steadyDisk)
	r.Lanes[0].Samples = nil
	if _, err := Judge(&r, t.Output()); err == nil {
		t.Error("a run without a sample passes")
	}
	r = made(steady, steadyDisk)
	r.Lanes[0].Lost = 1
	if _, err := Judge(&r, t.Output()); err == nil {
		t.Error("a run with a loss passes")
	}
}

func TestTheGraphHasAPanelForEachMeasureAndALineForEachLifeOfAProcess(t *testing.T) {
	graph := Chart(made(steady, steadyDisk))
	decoder := xml.NewDecoder(bytes.NewReader(graph))
	for {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range panels() {
		if !strings.Contains(string(graph), p.title) {
			t.Errorf("no panel %q", p.title)
		}
	}
	// Five panels of processes, with three lives each; of the node three, one of which has two lines.
	if lines := strings.Count(string(graph), "<polyline"); lines != 5*3+4 {
		t.Errorf("%d lines", lines)
	}
}

// The real thing, for some seconds: nothing is lost, and it can say what it saw. What is flat needs longer: `make soak`.
func TestAShortRunIsSampledRestartedAndLosesNothing(t *testing.T) {
	o := Options{
		Length: 15 * time.Second, Seed: early(), Dir: agenttest.Temp(t), Log: t.Output(),
		Basalt: agenttest.Basalt(t), IPFS: agenttest.Program(t, "IPFS_BIN", "ipfs"), IPFSwith: agenttest.Program(t, "IPFS_FFI_BIN", "ipfs-ffi"),
	}
	result, err := Run(o)
	if result.Lost+result.Wrong > 0 || result.Samples == 0 || result.Restarts+result.Kills < 2 || result.Acknowledged == 0 {
		t.Error(result, err)
	}
	for _, file := range []string{"soak.json", "soak.svg"} {
		if _, err := os.Stat(filepath.Join(o.Dir, file)); err != nil {
			t.Error(err)
		}
	}
	var flat notFlat
	if err != nil && !errors.As(err, &flat) {
		t.Error(err)
	}
}

// early is a seed with which both lanes restart within their first cycles.
func early() (seed uint64) {
	for {
		seed++
		latest := 0
		for _, name := range []string{"grpc", "ffi"} {
			l := lane{Load: &kuboload.Load{Name: name, Seed: seed}}
			latest = max(latest, l.span())
		}
		if latest <= 2 {
			return seed
		}
	}
}
