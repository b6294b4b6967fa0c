// Package run does the cases of a workload: one process for a session and a store, and one that starts those processes in turn.
package run

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"basalt.dev/go/bench/blocks"
	"basalt.dev/go/bench/measure"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// Meter is where figures about processes and disk come from.
type Meter struct {
	Processes func(beside int) (measure.Process, error)
	Device    func(folder string) (measure.Device, error)
	Space     func(folder string) (measure.Space, error)
	Settle    func(folder string) error
	Forget    func(folder string, all bool) error
}

// Kernel is the meter of a real run.
var Kernel = Meter{measure.Processes, measure.DeviceOf, measure.SpaceOf, measure.Settle, measure.Forget}

// Spec is a session, a store and a place.
type Spec struct {
	Session workload.Session `json:"session"`
	Store   string           `json:"store"`
	// Folder is the store's own; where it is kept and has been filled, Filled says so.
	Folder string `json:"folder"`
	Filled bool   `json:"filled"`
	Round  int    `json:"round"`
	// HeapMiB of live heap that the process holds.
	HeapMiB int `json:"heap_mib"`
	// ForgetAll: cold means that all of the machine's caches are dropped, not only the store's files.
	ForgetAll bool `json:"forget_all"`
	// Device whose counters are taken; "": the one of the folder's file system.
	Device string `json:"device,omitempty"`
	// Recover: the processes were killed in the middle of this session; see what is there.
	Recover bool `json:"recover,omitempty"`
}

// arenaBytes is how much is made at once; while blocks are made the clock stands.
const arenaBytes = 512 << 20

// picksMax is how many calls a reading case has before it begins again.
const picksMax = 1 << 20

type session struct {
	spec  Spec
	store stores.Store
	meter Meter
	fill  blocks.Source
	open  *stores.Opened
	base  measure.Process // before open
	warm  bool            // what is there has been read since it was opened
}

// Session does all cases and returns their rows; where one fails the later ones were not run.
func Session(ctx context.Context, spec Spec, store stores.Store, meter Meter) []Row {
	s := &session{spec: spec, store: store, meter: meter, fill: fillOf(spec.Session)}
	rows := make([]Row, len(spec.Session.Cases))
	err := s.prepare(ctx)
	for i, c := range spec.Session.Cases {
		rows[i].Case = c.Name
		if err != nil {
			rows[i].Error = err.Error()
			continue
		}
		var figures Figures
		figures, err = s.run(ctx, i, c)
		if err != nil {
			rows[i].Error = err.Error()
			err = fmt.Errorf("not run: %q before it failed", c.Name)
			continue
		}
		rows[i].Figures = figures
	}
	if closeErr := s.close(); closeErr != nil && err == nil && len(rows) > 0 {
		last := &rows[len(rows)-1]
		last.Figures, last.Error = nil, "close: "+closeErr.Error()
	}
	return rows
}

// fillOf makes the source of a session's fill; sessions that share a store share it.
func fillOf(s workload.Session) blocks.Source {
	name := s.Keep
	if name == "" {
		name = s.ID
	}
	return blocks.Source{Seed: seed("fill", name), Min: s.Fill.Min, Max: s.Fill.Max}
}

func seed(words ...string) uint64 {
	h := fnv.New64a()
	for _, w := range words {
		_, _ = h.Write([]byte(w + "\x00"))
	}
	return h.Sum64()
}

// prepare stores the fill.
func (s *session) prepare(ctx context.Context) error {
	fill := s.spec.Session.Fill
	if fill.Blocks == 0 || s.spec.Filled {
		return nil
	}
	store, err := s.store.Open(ctx, stores.Options{Folder: s.spec.Folder, Filling: true})
	if err != nil {
		return fmt.Errorf("fill: open: %w", err)
	}
	// As `dag import` on a few cores: batches of at most 128 blocks and 8 MiB.
	perBatch := max(1, min(128, 8<<20/max(fill.Min, fill.Max)))
	for from := 0; from < fill.Blocks && err == nil; {
		var arena *blocks.Arena
		if arena, err = blocks.Make(s.fill.Blocks, from, fill.Blocks-from, arenaBytes); err != nil {
			break
		}
		_, err = drive(4, (len(arena.Blocks)+perBatch-1)/perBatch, 0, nil, func(_, i int) (int, error) {
			return putBatch(ctx, store, arena.Blocks[i*perBatch:min((i+1)*perBatch, len(arena.Blocks))])
		})
		from += len(arena.Blocks)
		if err == nil {
			err = store.Sync(ctx, ds.NewKey("/")) // before the arena goes: a store may hold on to values
		}
		arena.Free()
	}
	if err = errors.Join(err, store.Close()); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	return s.meter.Settle(s.spec.Folder)
}

func putBatch(ctx context.Context, store ds.Batching, part []blocks.Block) (int, error) {
	batch, err := store.Batch(ctx)
	if err != nil {
		return 0, err
	}
	bytes := 0
	for _, b := range part {
		if err := batch.Put(ctx, b.Key, b.Value); err != nil {
			return 0, err
		}
		bytes += len(b.Value)
	}
	return bytes, batch.Commit(ctx)
}

// reopen opens the store anew, after dropping caches where it shall be cold.
func (s *session) reopen(ctx context.Context, cold bool) (time.Duration, error) {
	if err := s.close(); err != nil {
		return 0, fmt.Errorf("close: %w", err)
	}
	if cold {
		if err := s.meter.Forget(s.spec.Folder, s.spec.ForgetAll); err != nil {
			return 0, err
		}
	}
	s.warm = false
	runtime.GC()
	var err error
	if s.base, err = s.meter.Processes(0); err != nil {
		return 0, err
	}
	began := time.Now()
	s.open, err = s.store.Open(ctx, stores.Options{Folder: s.spec.Folder})
	if err != nil {
		return 0, fmt.Errorf("open: %w", err)
	}
	took := time.Since(began)
	for _, pid := range []int{0, s.open.Process} {
		_ = measure.ResetPeak(pid) // where the kernel can't, the peak is that of all its life
	}
	return took, nil
}

func (s *session) close() error {
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}

func (s *session) run(ctx context.Context, at int, c workload.Case) (Figures, error) {
	switch c.Op {
	case workload.Put, workload.Batch:
		return s.write(ctx, at, c)
	case workload.Open:
		return s.reopened(ctx, c)
	case workload.Crash:
		return s.crash(ctx, c)
	}
	if s.open == nil || c.Cold {
		if _, err := s.reopen(ctx, c.Cold); err != nil {
			return nil, err
		}
	}
	var figures Figures
	var err error
	switch c.Op {
	case workload.Get, workload.Has, workload.GetSize:
		figures, err = s.read(ctx, at, c)
	case workload.Enumerate:
		figures, err = s.enumerate(ctx, c)
	case workload.DiskUsage:
		figures, err = s.diskUsage(ctx, c)
	case workload.Delete:
		figures, err = s.delete(ctx, c)
	default:
		err = fmt.Errorf("a store can't do %q", c.Op)
	}
	if err != nil {
		return nil, err
	}
	return figures, s.resources(figures)
}

// resources adds what the processes hold.
func (s *session) resources(f Figures) error {
	now, err := s.meter.Processes(s.open.Process)
	if err != nil {
		return err
	}
	f[Memory] = float64(now.Peak-s.base.RSS) / (1 << 20)
	f[FDs] = float64(now.FDs - s.base.FDs)
	return nil
}

// write puts new blocks, or, by c.Present, such as are there.
func (s *session) write(ctx context.Context, at int, c workload.Case) (Figures, error) {
	if err := s.close(); err != nil {
		return nil, fmt.Errorf("close: %w", err)
	}
	pick := s.picker(at, c)
	count := math.MaxInt32
	if c.Ops > 0 {
		count = c.Ops
	}
	bytes := int64(math.MaxInt64)
	if c.Bytes > 0 {
		bytes = c.Bytes
	}
	perCall := max(1, c.PutsPerBatch)

	first, err := blocks.Make(pick, 0, count, min(arenaBytes, bytes))
	if err != nil {
		return nil, err
	}
	arena := first
	defer func() { arena.Free() }()
	if _, err := s.reopen(ctx, c.Cold); err != nil {
		return nil, err
	}
	began, err := s.begin()
	if err != nil {
		return nil, err
	}
	sum := driven{latencies: measure.NewLatencies()}
	var wall time.Duration
	var puts atomic.Int64
	made := 0
	for {
		left := 0.0
		if c.Seconds > 0 {
			left = c.Seconds - wall.Seconds()
		}
		part, err := drive(c.Threads, (len(arena.Blocks)+perCall-1)/perCall, left, nil, func(_, i int) (int, error) {
			if c.Op == workload.Batch {
				return putBatch(ctx, s.open, arena.Blocks[i*perCall:min((i+1)*perCall, len(arena.Blocks))])
			}
			b := arena.Blocks[i]
			if err := s.open.Put(ctx, b.Key, b.Value); err != nil {
				return 0, err
			}
			if c.SyncEvery > 0 && puts.Add(1)%int64(c.SyncEvery) == 0 {
				return len(b.Value), s.open.Sync(ctx, ds.NewKey("/"))
			}
			return len(b.Value), nil
		})
		sum.add(part)
		wall += part.wall
		if err != nil {
			return nil, err
		}
		made += len(arena.Blocks)
		bytes -= arena.Bytes
		if made >= count || bytes < int64(max(c.Min, 1)) || (c.Seconds > 0 && wall.Seconds() >= c.Seconds) {
			break
		}
		paused := time.Now()
		if err := s.open.Sync(ctx, ds.NewKey("/")); err != nil {
			return nil, err
		}
		wall += time.Since(paused)
		before, err := s.meter.Processes(0)
		if err != nil {
			return nil, err
		}
		arena.Free()
		if arena, err = blocks.Make(pick, made, count-made, min(arenaBytes, bytes)); err != nil {
			return nil, err
		}
		after, err := s.meter.Processes(0)
		if err != nil {
			return nil, err
		}
		began.both.CPU += after.CPU - before.CPU // the making is not the store's
	}
	last := time.Now()
	if err := s.open.Sync(ctx, ds.NewKey("/")); err != nil {
		return nil, err
	}
	wall += time.Since(last)

	figures := sum.figures(c.Unit, wall)
	if c.Op == workload.Batch && c.Unit == "op/s" {
		figures[Rate] *= float64(perCall) // blocks, not batches
	}
	if err := s.resources(figures); err != nil {
		return nil, err
	}
	return figures, s.end(figures, c, began, sum)
}

// picker says which blocks a case puts.
func (s *session) picker(at int, c workload.Case) blocks.Pick {
	fresh := blocks.Source{Seed: seed("new", s.spec.Session.ID, fmt.Sprint(s.spec.Round, at)), Min: c.Min, Max: c.Max}
	if c.Present == 0 {
		return fresh.Blocks
	}
	there := s.spec.Session.Fill.Blocks
	return func(i int) (blocks.Source, int) {
		r := rand.New(rand.NewPCG(fresh.Seed, uint64(i)))
		if r.Float64() < c.Present {
			return s.fill, r.IntN(there)
		}
		return fresh, i
	}
}

// counters at the beginning of what writes.
type counters struct {
	both      measure.Process
	device    measure.Device
	deviceErr error
}

func (s *session) begin() (counters, error) {
	var c counters
	var err error
	if err := s.meter.Settle(s.spec.Folder); err != nil {
		return c, err
	}
	if c.both, err = s.meter.Processes(s.open.Process); err != nil {
		return c, err
	}
	c.device, c.deviceErr = s.meter.Device(s.spec.Folder)
	return c, nil
}

// end closes the store and takes what it wrote and used by then.
func (s *session) end(f Figures, c workload.Case, began counters, d driven) error {
	flushed, deviceErr := s.meter.Device(s.spec.Folder)
	open := s.open
	if err := s.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := s.meter.Settle(s.spec.Folder); err != nil {
		return err
	}
	self, err := s.meter.Processes(0)
	if err != nil {
		return err
	}
	// A process that has ended counts as written by the one that waited for it (task_io_accounting), but not its CPU time. What it had done
	// before is of its life, but not of the case.
	written := self.Written - began.both.Written
	cpu := self.CPU + open.EndedCPU() - began.both.CPU
	if d.bytes > 0 {
		f[Written] = float64(written) / float64(d.bytes)
		f[CPU] = cpu / float64(d.bytes) * (1 << 30)
	}
	if d.ops > 0 {
		f[CPUPerOp] = cpu / float64(d.ops) * 1e6
	}
	if began.deviceErr == nil && deviceErr == nil {
		settled, err := s.meter.Device(s.spec.Folder)
		if err != nil {
			return err
		}
		if d.bytes > 0 {
			f[OnDevice] = float64(settled.Written-began.device.Written) / float64(d.bytes)
		}
		if d.ops > 0 && flushed.Cache {
			f[Flushes] = float64(flushed.Flushes-began.device.Flushes) / float64(d.ops)
			// A lone caller whose every call has been flushed has seen a flush for each. Requests of several programs may be joined, hence not all.
			if s.store.Class == stores.Each && c.Threads == 1 && c.Present == 0 && f[Flushes] < 0.5 {
				f[Unflushed] = 1
			}
		}
	}
	space, err := s.meter.Space(s.spec.Folder)
	if err != nil {
		return err
	}
	f[Inodes] = float64(space.Inodes)
	if s.spec.Session.Fill.Blocks == 0 && d.bytes > 0 {
		f[DiskPer] = float64(space.Bytes) / float64(d.bytes)
	}
	return nil
}

// call is about one key: a block of the fill, or one that is absent.
type call struct {
	key  ds.Key
	size int // -1: absent
}

// numbers says which blocks of the fill a reading case asks for, in an order that no read-ahead guesses; below 0: absent ones.
func (s *session) numbers(at int, c workload.Case) ([]int, error) {
	fill := s.spec.Session.Fill
	if fill.Blocks == 0 {
		return nil, errors.New("there is nothing to read: the session has no fill")
	}
	known := min(fill.Blocks, picksMax)
	count, present := known, 1.0
	if c.Op != workload.Get {
		present = c.Present
		if c.Ops > 0 {
			count = min(c.Ops, picksMax)
		}
	}
	r := rand.New(rand.NewPCG(seed(s.spec.Session.ID), uint64(at)))
	pick := func() int { return r.IntN(fill.Blocks) }
	if c.Zipf > 0 {
		pick = zipf(r, known, c.Zipf)
		count = min(4*known, picksMax)
	}
	order := r.Perm(known)
	which := make([]int, count)
	for i := range which {
		switch {
		case r.Float64() >= present:
			which[i] = -1 - i
		case c.Zipf == 0 && i < len(order):
			which[i] = order[i] * (fill.Blocks / known)
		default:
			which[i] = pick()
		}
	}
	return which, nil
}

// calls makes what a reading case asks for.
func (s *session) calls(at int, c workload.Case) ([]call, error) {
	which, err := s.numbers(at, c)
	if err != nil {
		return nil, err
	}
	// Only their keys count, so they may be small. Each round asks for others.
	absent := blocks.Source{Seed: seed("absent", s.spec.Session.ID, fmt.Sprint(at, s.spec.Round)), Min: 100}
	// Many calls may be about one block; its key is made once.
	distinct := slices.Compact(slices.Sorted(slices.Values(which)))
	keys := make([]ds.Key, len(distinct))
	blocks.EachKey(func(i int) (blocks.Source, int) {
		if n := distinct[i]; n >= 0 {
			return s.fill, n
		}
		return absent, -1 - distinct[i]
	}, len(distinct), func(i int, key ds.Key) { keys[i] = key })
	calls := make([]call, len(which))
	for i, n := range which {
		at, _ := slices.BinarySearch(distinct, n)
		calls[i] = call{keys[at], -1}
		if n >= 0 {
			calls[i].size = s.fill.Size(n)
		}
	}
	return calls, nil
}

// zipf draws numbers below n, the smaller the more often; Go's own wants an exponent above 1.
func zipf(r *rand.Rand, n int, exponent float64) func() int {
	sums := make([]float64, n)
	sum := 0.0
	for i := range sums {
		sum += 1 / math.Pow(float64(i+1), exponent)
		sums[i] = sum
	}
	scattered := r.Perm(n)
	return func() int { return scattered[min(n-1, sort.SearchFloat64s(sums, r.Float64()*sum))] }
}

// ask does one reading call and checks the answer.
func ask(ctx context.Context, store ds.Datastore, op workload.Op, c call) (int, error) {
	switch op {
	case workload.Get:
		value, err := store.Get(ctx, c.key)
		if err == nil && len(value) != c.size {
			err = fmt.Errorf("get of %s: %d bytes, it has %d", c.key, len(value), c.size)
		}
		return len(value), err
	case workload.Has:
		there, err := store.Has(ctx, c.key)
		if err == nil && there != (c.size >= 0) {
			err = fmt.Errorf("has of %s is %v", c.key, there)
		}
		return 0, err
	default:
		size, err := store.GetSize(ctx, c.key)
		if c.size < 0 && err == ds.ErrNotFound {
			return 0, nil
		}
		if err == nil && size != c.size {
			err = fmt.Errorf("size of %s is %d, it has %d", c.key, size, c.size)
		}
		return 0, err
	}
}

func (s *session) read(ctx context.Context, at int, c workload.Case) (Figures, error) {
	calls, err := s.calls(at, c)
	if err != nil {
		return nil, err
	}
	if !c.Cold && !s.warm {
		// What is there is read once before; what is absent never was asked for.
		if _, err := drive(max(4, c.Threads/8), len(calls), 10*c.Seconds, nil, func(_, i int) (int, error) {
			if calls[i].size < 0 {
				return 0, nil
			}
			return ask(ctx, s.open, c.Op, calls[i])
		}); err != nil {
			return nil, err
		}
		s.warm = c.Op == workload.Get || c.Present == 1
	}
	runtime.GC()
	count := c.Ops
	if count == 0 {
		count = math.MaxInt32
		if c.Bytes > 0 {
			count = max(1, int(c.Bytes/int64(max(1, (s.fill.Min+max(s.fill.Min, s.fill.Max))/2))))
		}
	}
	before, err := s.meter.Processes(s.open.Process)
	if err != nil {
		return nil, err
	}
	d, err := drive(c.Threads, count, c.Seconds, nil, func(_, i int) (int, error) { return ask(ctx, s.open, c.Op, calls[i%len(calls)]) })
	if err != nil {
		return nil, err
	}
	after, err := s.meter.Processes(s.open.Process)
	if err != nil {
		return nil, err
	}
	f := d.figures(c.Unit, d.wall)
	if d.ops > 0 {
		f[CPUPerOp] = (after.CPU - before.CPU) / float64(d.ops) * 1e6
	}
	if d.bytes > 0 {
		f[CPU] = (after.CPU - before.CPU) / float64(d.bytes) * (1 << 30)
	}
	return f, nil
}

// beside starts what runs while a case does; stopping it gives its figures.
func (s *session) beside(ctx context.Context, c *workload.Case, calls []call) (stop func(Figures) error, err error) {
	if c == nil {
		return func(Figures) error { return nil }, nil
	}
	var halt atomic.Bool
	var d driven
	done := make(chan error, 1)
	switch c.Op {
	case workload.Get:
		if len(calls) == 0 {
			return nil, errors.New("there is nothing to read beside")
		}
		go func() {
			var err error
			d, err = drive(c.Threads, math.MaxInt32, 0, &halt, func(_, i int) (int, error) { return ask(ctx, s.open, workload.Get, calls[i%len(calls)]) })
			done <- err
		}()
	case workload.Put:
		source := blocks.Source{Seed: seed("beside", s.spec.Session.ID, fmt.Sprint(s.spec.Round)), Min: c.Min, Max: c.Max}
		arena, err := blocks.Make(source.Blocks, 0, math.MaxInt32, min(arenaBytes, max(c.Bytes, int64(c.Min))))
		if err != nil {
			return nil, err
		}
		go func() {
			d2, err := drive(c.Threads, len(arena.Blocks), 0, &halt, func(_, i int) (int, error) {
				return len(arena.Blocks[i].Value), s.open.Put(ctx, arena.Blocks[i].Key, arena.Blocks[i].Value)
			})
			d = d2
			err = errors.Join(err, s.open.Sync(ctx, ds.NewKey("/"))) // before the arena goes
			arena.Free()
			done <- err
		}()
	default:
		return nil, fmt.Errorf("%q can't run beside", c.Op)
	}
	return func(f Figures) error {
		halt.Store(true)
		if err := <-done; err != nil {
			return fmt.Errorf("beside: %w", err)
		}
		if f != nil && d.wall > 0 {
			f[BesideRate] = float64(d.ops) / d.wall.Seconds()
			f[BesideP99] = d.latencies.Percentile(99)
		}
		return nil
	}, nil
}

func (s *session) enumerate(ctx context.Context, c workload.Case) (Figures, error) {
	once := func() (count int, first, all time.Duration, err error) {
		began := time.Now()
		results, err := s.open.Query(ctx, query.Query{Prefix: "/", KeysOnly: true})
		if err != nil {
			return 0, 0, 0, err
		}
		for {
			entry, more := results.NextSync()
			if !more {
				break
			}
			if entry.Error != nil {
				return 0, 0, 0, errors.Join(entry.Error, results.Close())
			}
			if count == 0 {
				first = time.Since(began)
			}
			count++
		}
		return count, first, time.Since(began), results.Close()
	}
	if !c.Cold {
		if _, _, _, err := once(); err != nil {
			return nil, err
		}
	}
	stop, err := s.beside(ctx, c.Beside, nil)
	if err != nil {
		return nil, err
	}
	before, err := s.meter.Processes(s.open.Process)
	if err != nil {
		return nil, errors.Join(err, stop(nil))
	}
	count, first, all, err := once()
	if err != nil {
		return nil, errors.Join(err, stop(nil))
	}
	f := Figures{Ops: float64(count), Seconds: all.Seconds(), Rate: float64(count) / all.Seconds(), FirstKeyMS: first.Seconds() * 1e3}
	if err := stop(f); err != nil {
		return nil, err
	}
	after, err := s.meter.Processes(s.open.Process)
	if c.Beside == nil {
		f[CPUPerOp] = (after.CPU - before.CPU) / float64(max(1, count)) * 1e6
	}
	if count < s.spec.Session.Fill.Blocks {
		return nil, fmt.Errorf("the query ended after %d keys, there are %d", count, s.spec.Session.Fill.Blocks)
	}
	return f, err
}

func (s *session) diskUsage(ctx context.Context, c workload.Case) (Figures, error) {
	d, err := drive(c.Threads, c.Ops, c.Seconds, nil, func(_, _ int) (int, error) {
		_, err := ds.DiskUsage(ctx, s.open.Batching)
		return 0, err
	})
	if err != nil {
		return nil, err
	}
	return d.figures(c.Unit, d.wall), nil
}

func (s *session) delete(ctx context.Context, c workload.Case) (Figures, error) {
	fill := s.spec.Session.Fill
	order := rand.New(rand.NewPCG(seed(s.spec.Session.ID), 0)).Perm(fill.Blocks)
	gone := order[:int(float64(fill.Blocks)*c.Share)]
	stay := order[len(gone):]
	keys := make([]ds.Key, len(gone))
	number := func(numbers []int) blocks.Pick {
		return func(i int) (blocks.Source, int) { return s.fill, numbers[i] }
	}
	blocks.EachKey(number(gone), len(gone), func(i int, key ds.Key) { keys[i] = key })
	reads := make([]call, min(len(stay), 10_000))
	blocks.EachKey(number(stay), len(reads), func(i int, key ds.Key) { reads[i] = call{key, s.fill.Size(stay[i])} })
	if err := s.meter.Settle(s.spec.Folder); err != nil {
		return nil, err
	}
	before, err := s.meter.Space(s.spec.Folder)
	if err != nil {
		return nil, err
	}
	stop, err := s.beside(ctx, c.Beside, reads)
	if err != nil {
		return nil, err
	}
	var payload atomic.Int64
	d, err := drive(c.Threads, len(gone), c.Seconds, nil, func(_, i int) (int, error) {
		payload.Add(int64(s.fill.Size(gone[i])))
		return 0, s.open.Delete(ctx, keys[i])
	})
	if err != nil {
		return nil, errors.Join(err, stop(nil))
	}
	f := d.figures(c.Unit, d.wall)
	if err := stop(f); err != nil {
		return nil, err
	}
	// What Kubo asks for after a gc.
	if gc, ok := s.open.Batching.(ds.GCDatastore); ok {
		if err := gc.CollectGarbage(ctx); err != nil {
			return nil, fmt.Errorf("collect garbage: %w", err)
		}
	}
	back := func() (float64, error) {
		now, err := s.meter.Space(s.spec.Folder)
		return float64(before.Bytes-now.Bytes) / float64(max(1, payload.Load())), err
	}
	if f[BackAtOnce], err = back(); err != nil {
		return nil, err
	}
	f[BackLater] = f[BackAtOnce]
	for began := time.Now(); time.Since(began).Seconds() < c.SpaceSeconds && f[BackLater] < 0.99; {
		time.Sleep(time.Duration(min(1, c.SpaceSeconds) * float64(time.Second)))
		if f[BackLater], err = back(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// reopened is open with the first Get.
func (s *session) reopened(ctx context.Context, c workload.Case) (Figures, error) {
	n := s.spec.Session.Fill.Blocks / 2
	first := s.fill.At(n)
	if s.open == nil { // so that closing is not part of it, nor what a first open after a fill has to tidy up
		if _, err := s.reopen(ctx, false); err != nil {
			return nil, err
		}
	}
	took, err := s.reopen(ctx, c.Cold)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if _, err := ask(ctx, s.open, workload.Get, call{first.Key, len(first.Value)}); err != nil {
		return nil, err
	}
	get := time.Since(began)
	f := Figures{Rate: (took + get).Seconds() * 1e3, OpenMS: took.Seconds() * 1e3, FirstGetMS: get.Seconds() * 1e3}
	return f, s.resources(f)
}

// acksFile lists the numbers of acknowledged blocks, four bytes each, beside the store.
func acksFile(folder string) string { return filepath.Clean(folder) + ".acks" }
