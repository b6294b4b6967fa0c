package measure

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if got < want*(1-tolerance) || got > want*(1+tolerance) {
		t.Errorf("%s is %g, wanted %g", what, got, want)
	}
}

func TestPercentilesAreThoseOfTheSamples(t *testing.T) {
	// 1 to 10,000 microseconds, once each, by four workers.
	order := rand.New(rand.NewPCG(1, 1)).Perm(10_000)
	all := NewLatencies()
	for w := range 4 {
		mine := NewLatencies()
		for i := w; i < len(order); i += 4 {
			mine.Add(time.Duration(order[i]+1) * time.Microsecond)
		}
		all.Merge(mine)
	}
	if all.Count() != 10_000 {
		t.Fatalf("%d samples", all.Count())
	}
	near(t, "p50", all.Percentile(50), 5000, 0.01)
	near(t, "p99", all.Percentile(99), 9900, 0.01)
	near(t, "p99.9", all.Percentile(99.9), 9990, 0.01)
}

func TestALatencyOutOfRangeIsNotLost(t *testing.T) {
	l := NewLatencies()
	l.Add(0)
	l.Add(time.Hour)
	if l.Count() != 2 {
		t.Fatalf("%d of 2 samples are kept", l.Count())
	}
	near(t, "the slowest", l.Percentile(100), 600e6, 0.01)
}

func TestAProcessIsChargedForWhatItWritesAndUses(t *testing.T) {
	before, err := Of(0)
	if err != nil {
		t.Fatal(err)
	}
	disk := os.Getenv("BASALT_TEST_DISK")
	if disk == "" {
		disk = "."
	}
	file, err := os.CreateTemp(disk, "written-*.tmp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file.Name())
	const size = 8 << 20
	if _, err := file.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	after, err := Of(0)
	for began := time.Now(); err == nil && after.CPU-before.CPU < 0.1 && time.Since(began) < 30*time.Second; after, err = Of(0) {
	}
	if err != nil {
		t.Fatal(err)
	}
	near(t, "written", float64(after.Written-before.Written), size, 0.02)
	if used := after.CPU - before.CPU; used < 0.1 {
		t.Errorf("CPU time grew by %g s", used)
	}
	if after.RSS < 1<<20 || after.FDs < 4 {
		t.Errorf("%+v", after)
	}
	_ = file.Close()
}

func TestTheProcessBesideIsCounted(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	alone, err := Of(0)
	if err != nil {
		t.Fatal(err)
	}
	both, err := Processes(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if both.RSS <= alone.RSS || both.FDs <= 0 {
		t.Errorf("alone %+v, with another %+v", alone, both)
	}
}

func TestSpaceIsBlocksAndInodes(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	empty, err := SpaceOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "b", "c"), make([]byte, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	// Nothing but its inode: a hole.
	hole, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	if err := hole.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	_ = hole.Close()
	got, err := SpaceOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if empty.Inodes != 3 || got.Inodes != 5 || got.Bytes-empty.Bytes != 64<<10 {
		t.Errorf("empty %+v, then %+v", empty, got)
	}
}
