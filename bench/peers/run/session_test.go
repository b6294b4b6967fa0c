package run

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"

	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

func near(t *testing.T, f Figures, name string, want float64) {
	t.Helper()
	got, there := f[name]
	if !there {
		t.Errorf("there is no figure %s", name)
	} else if math.Abs(got-want) > 0.011*math.Abs(want) { // latencies are kept to two digits
		t.Errorf("%s is %g, wanted %g", name, got, want)
	}
}

// rowsOf runs a session on a clock that only goes when all wait.
func rowsOf(t *testing.T, f *fake, class stores.Class, cache bool, s workload.Session) []Row {
	t.Helper()
	var rows []Row
	synctest.Test(t, func(t *testing.T) {
		rows = Session(context.Background(), Spec{Session: s, Store: "fake", Folder: t.TempDir()}, f.store(class), f.meter(cache))
	})
	if len(rows) != len(s.Cases) {
		t.Fatalf("%d rows of %d cases", len(rows), len(s.Cases))
	}
	return rows
}

func one(c workload.Case) workload.Session {
	return workload.Session{ID: "test", Cases: []workload.Case{c}}
}

func figures(t *testing.T, row Row) Figures {
	t.Helper()
	if row.Error != "" {
		t.Fatal(row.Error)
	}
	return row.Figures
}

func TestKnownLatenciesAndAmplificationGiveTheKnownFigures(t *testing.T) {
	f := newFake()
	f.put, f.sync, f.amplification, f.cpuPerPut = 2*time.Millisecond, 100*time.Millisecond, 3, 0.001
	rows := rowsOf(t, f, stores.Each, true, one(workload.Case{Name: "put", Op: workload.Put, Unit: "MB/s", Min: 10_000, Threads: 4, Ops: 400}))
	got := figures(t, rows[0])
	near(t, got, Ops, 400)
	near(t, got, Seconds, 0.2+0.1) // 400 Puts of 2 ms by four, and the Sync
	near(t, got, Rate, 4.0/0.3)
	near(t, got, P50, 2000)
	near(t, got, P999, 2000)
	near(t, got, Written, 3)
	near(t, got, OnDevice, 3)
	near(t, got, Flushes, 401.0/400)
	near(t, got, CPUPerOp, 1000)
	near(t, got, CPU, 0.4/4e6*(1<<30))
	near(t, got, Memory, 3)
	near(t, got, Inodes, 12)
	near(t, got, DiskPer, 6)
}

func TestTheSlowestCallsAreInTheTail(t *testing.T) {
	f := newFake()
	f.get = time.Millisecond
	s := workload.Session{ID: "test", Fill: workload.Fill{Blocks: 50, Min: 500}, Cases: []workload.Case{
		{Name: "get", Op: workload.Get, Unit: "MB/s", Threads: 1, Ops: 1000},
	}}
	got := figures(t, rowsOf(t, f, stores.Each, true, s)[0])
	near(t, got, Seconds, 1)
	near(t, got, Rate, 0.5)
	near(t, got, P99, 1000)
}

func TestAStoreThatDoesNotFlushIsNamed(t *testing.T) {
	c := workload.Case{Name: "put", Op: workload.Put, Unit: "MB/s", Min: 1000, Threads: 1, Ops: 100}
	for _, test := range []struct {
		name     string
		class    stores.Class
		perPut   int64
		cache    bool
		threads  int
		expected bool
	}{
		{"claims each, and does not", stores.Each, 0, true, 1, true},
		{"claims each, and does", stores.Each, 1, true, 1, false},
		{"claims nothing", stores.None, 0, true, 1, false},
		{"a disk without a cache gets no flush", stores.Each, 0, false, 1, false},
		{"many writers share flushes", stores.Each, 0, true, 16, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake()
			f.flushesPerPut = test.perPut
			c := c
			c.Threads = test.threads
			got := figures(t, rowsOf(t, f, test.class, test.cache, one(c))[0])
			if unflushed := got[Unflushed] > 0; unflushed != test.expected {
				t.Errorf("unflushed is %v, %g flushes a Put", unflushed, got[Flushes])
			}
		})
	}
}

func TestACaseThatFailsHasNoFigures(t *testing.T) {
	f := newFake()
	f.failAt = 50
	s := one(workload.Case{Name: "put", Op: workload.Put, Unit: "MB/s", Min: 1000, Threads: 4, Ops: 100})
	s.Cases = append(s.Cases, workload.Case{Name: "later", Op: workload.DiskUsage, Unit: "op/s", Threads: 1, Ops: 1})
	rows := rowsOf(t, f, stores.Each, true, s)
	if rows[0].Figures != nil || !strings.Contains(rows[0].Error, "no space left") {
		t.Errorf("%+v", rows[0])
	}
	if rows[1].Figures != nil || !strings.Contains(rows[1].Error, "not run") {
		t.Errorf("%+v", rows[1])
	}
}

func TestAWrongAnswerIsAFailure(t *testing.T) {
	f := newFake()
	f.lies = true
	s := workload.Session{ID: "test", Fill: workload.Fill{Blocks: 10, Min: 100}, Cases: []workload.Case{
		{Name: "has", Op: workload.Has, Unit: "op/s", Threads: 1, Present: 1, Ops: 10},
	}}
	if row := rowsOf(t, f, stores.Each, true, s)[0]; row.Figures != nil || !strings.Contains(row.Error, "has of") {
		t.Errorf("%+v", row)
	}
}

func TestACaseEndsWhenItsTimeIsOver(t *testing.T) {
	f := newFake()
	f.put = 10 * time.Millisecond
	got := figures(t, rowsOf(t, f, stores.Each, true, one(workload.Case{Name: "put", Op: workload.Put, Unit: "op/s", Min: 100, Threads: 2, Ops: 100_000, Seconds: 0.5}))[0])
	near(t, got, Ops, 100)
	near(t, got, Rate, 200)
}

func TestBatchesAreCountedByTheirBlocks(t *testing.T) {
	f := newFake()
	f.put = time.Millisecond
	got := figures(t, rowsOf(t, f, stores.Each, true, one(workload.Case{Name: "batch", Op: workload.Batch, Unit: "op/s", Min: 100, Threads: 1, PutsPerBatch: 4, Ops: 40}))[0])
	near(t, got, Ops, 10)
	near(t, got, Rate, 1000)
	near(t, got, P50, 4000)
}

func TestNineOfTenAreThere(t *testing.T) {
	f := newFake()
	s := workload.Session{ID: "test", Fill: workload.Fill{Blocks: 100, Min: 100}, Cases: []workload.Case{
		{Name: "dup", Op: workload.Put, Unit: "op/s", Min: 100, Threads: 1, Present: 0.9, Ops: 2000},
		{Name: "all", Op: workload.Enumerate, Unit: "op/s"},
	}}
	rows := rowsOf(t, f, stores.Each, true, s)
	figures(t, rows[0])
	if count := figures(t, rows[1])[Ops]; count < 100+150 || count > 100+250 {
		t.Errorf("%g keys after 2000 Puts, of which a tenth were new, on 100", count)
	}
}

func TestSyncsComeAsOftenAsTheCaseSays(t *testing.T) {
	f := newFake()
	figures(t, rowsOf(t, f, stores.AtSync, true, one(workload.Case{Name: "put", Op: workload.Put, Unit: "op/s", Min: 100, Threads: 3, Ops: 1000, SyncEvery: 100}))[0])
	if n := f.syncs.Load(); n != 10+1 {
		t.Errorf("%d syncs", n)
	}
}

func TestDeletedBytesComeBack(t *testing.T) {
	f := newFake()
	s := workload.Session{ID: "test", Fill: workload.Fill{Blocks: 100, Min: 1000}, Cases: []workload.Case{
		{Name: "delete", Op: workload.Delete, Unit: "op/s", Threads: 2, Share: 0.3, Beside: &workload.Case{Op: workload.Get, Threads: 2}},
		{Name: "all", Op: workload.Enumerate, Unit: "op/s"},
	}}
	f.get = time.Millisecond
	s.Fill.Blocks = 100
	var rows []Row
	synctest.Test(t, func(t *testing.T) {
		slow := f.store(stores.Each)
		open := slow.Open
		slow.Open = func(ctx context.Context, o stores.Options) (*stores.Opened, error) {
			opened, err := open(ctx, o)
			if !o.Filling {
				opened.Batching = slowDelete{f}
			}
			return opened, err
		}
		meter := f.meter(true)
		f.written.Store(500_000) // the disk then has 2 bytes for each
		rows = Session(context.Background(), Spec{Session: s, Folder: t.TempDir()}, slow, meter)
	})
	got := figures(t, rows[0])
	near(t, got, Ops, 30)
	near(t, got, Rate, 2/0.01)
	near(t, got, BackAtOnce, 1)
	near(t, got, BesideRate, 2000)
	if rows[1].Error == "" { // 70 are left, fewer than the fill: the harness notices
		t.Errorf("%+v", rows[1])
	}
}

// slowDelete takes ten milliseconds and gives the bytes back at once.
type slowDelete struct{ *fake }

func (s slowDelete) Delete(ctx context.Context, key ds.Key) error {
	time.Sleep(10 * time.Millisecond)
	s.written.Add(-500)
	return s.fake.Delete(ctx, key)
}
