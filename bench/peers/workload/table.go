package workload

// The workloads. Sizes come from a scale; what they are does not.

import (
	"fmt"
	"slices"
	"strings"
)

// Scale is how much of everything.
type Scale struct {
	Name string
	// Bounds of a case that moves blocks, the first that is reached; 0 seconds: no bound.
	Bytes   int64
	Seconds float64
	// Small blocks of W4.
	Small int
	// Blocks of the store in W7 to W11.
	Keys int
	// Bytes of the store that W6 reads.
	ReadBytes int64
	// Calls of W7's cases at most.
	Calls int
	// How long freed space is waited for, in seconds.
	SpaceSeconds float64
	// W12's matrix.
	Primes, Sizes, Batches []int
	// W13: the large file, the small files, and rounds at most.
	KuboBytes             int64
	KuboFiles, KuboRounds int
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// The scales: Default ends within half an hour on two cores, Full is what the workloads were meant for, Tiny is for tests.
var (
	Default = Scale{
		Name: "default", Bytes: 128 * mib, Seconds: 1, Small: 50_000, Keys: 100_000, ReadBytes: 256 * mib, Calls: 100_000, SpaceSeconds: 15,
		Primes: []int{256, 1024}, Sizes: []int{kib, 16 * kib}, Batches: []int{8, 512},
		KuboBytes: 256 * mib, KuboFiles: 2000, KuboRounds: 2,
	}
	Full = Scale{
		Name: "full", Bytes: 64 * gib, Small: 1_600_000, Keys: 10_000_000, ReadBytes: 96 * gib, Calls: 10_000_000, SpaceSeconds: 60,
		Primes:    []int{256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536},
		Sizes:     []int{kib, 2 * kib, 4 * kib, 8 * kib, 16 * kib, 32 * kib, 64 * kib, 128 * kib},
		Batches:   []int{2, 4, 8, 16, 32, 64, 128, 256, 512},
		KuboBytes: 100 * gib, KuboFiles: 102_400, KuboRounds: 3,
	}
	Tiny = Scale{
		Name: "tiny", Bytes: 2 * mib, Seconds: 0.1, Small: 200, Keys: 300, ReadBytes: 2 * mib, Calls: 500, SpaceSeconds: 0.1,
		Primes: []int{8}, Sizes: []int{kib}, Batches: []int{4},
		KuboBytes: mib, KuboFiles: 20, KuboRounds: 1,
	}
)

// RawWrites and RawReads are the raw limits that stand beside the stores.
var (
	RawWrites = []string{"raw buffered, growing", "raw buffered, recycled", "raw direct, growing", "raw direct, recycled"}
	RawReads  = []string{"raw pread", "raw pread + CRC"}
)

var writers = []int{1, 16, 128}

// Table is all workloads, W0 to W12.
func Table(s Scale) []Workload {
	return []Workload{
		{"W0", "raw limits", "One file, pieces of so many bytes, an fdatasync after each: what no store on this disk can beat.", rawLimits(s)},
		{"W1", "put", "Unique blocks, one Put each, a Sync at the end. Raw: the same bytes to one file, an fdatasync whenever as much is written " +
			"as the writers can have under way at once, at most 8 MiB.", puts(s)},
		{"W2", "add-shape", "`ipfs add` of a large file on 16 cores: 16 streams of batches of 3 blocks; a Sync at the end. (Chunks of 1 MiB go one by one: W1.)", addShape(s)},
		{"W3", "import-shape", "`ipfs dag import`: 16 streams of batches of 9 blocks.", importShape(s)},
		{"W4", "small blocks", "500 to 4,000 bytes.", small(s)},
		{"W5", "duplicates", "9 of 10 blocks are there already.", duplicates(s)},
		{"W6", "get", "From the page cache, and from the disk.", gets(s)},
		{"W7", "has, get size", "Present and absent keys; a gateway asks for what is absent 19 times of 20.", asks(s)},
		{"W8", "enumerate", "All keys, without values, as `repo gc` and `repo stat` ask for them.", enumerate(s)},
		{"W9", "stat", "DiskUsage. (Counting is W8: go-datastore has no count.)", stat(s)},
		{"W10", "gc", "30 % of the blocks, at random, each by a Delete of its own, while others are read; then CollectGarbage, and how much of the " +
			"deleted bytes the file system has back. As Kubo has them: only leveldb flushes a Delete.", collect(s)},
		{"W11", "restart", "Open with the first Get; and the same after kill -9 of all processes in the middle of Puts.", restart(s)},
		{"W12", "go-ds-bench", "The matrix of go-ds-bench, one caller: a store primed with so many records; get, has (half of them hits), add, add by batches.", matrix(s)},
	}
}

func id(parts ...any) string {
	words := make([]string, len(parts))
	for i, p := range parts {
		words[i] = strings.ReplaceAll(fmt.Sprint(p), " ", "")
	}
	return strings.Join(words, "-")
}

// room is how many blocks of a size have so many bytes.
func room(size int, bytes int64) int { return max(1, int(bytes/int64(size))) }

func rawLimits(s Scale) []Session {
	var all []Session
	for _, piece := range []int{256 * kib, mib, 4 * mib, 8 * mib} {
		all = append(all, Session{ID: id("W0", piece>>10), Raw: RawWrites, RawOnly: true, Cases: []Case{{
			Name: "append, pieces of " + bytes(piece), Op: Append, Unit: "MB/s", Min: piece, Threads: 1, Bytes: s.Bytes, Seconds: s.Seconds,
		}}})
	}
	return append(all, Session{ID: "W0-reads", Raw: RawReads, RawOnly: true, Fill: Fill{Blocks: room(256*kib, s.ReadBytes), Min: 256 * kib}, Keep: "reads",
		Cases: []Case{get(s, 1, 0, false), get(s, 128, 0, false)}})
}

func puts(s Scale) []Session {
	var all []Session
	for _, size := range []int{256 * kib, mib} {
		for _, w := range writers {
			all = append(all, Session{ID: id("W1", size>>10, w), Raw: RawWrites, Cases: []Case{put(s, size, w, 0)}})
		}
	}
	// A Sync now and then is something else only for those that promise nothing before.
	return append(all, Session{ID: "W1-sync-1000", Cases: []Case{put(s, 256*kib, 16, 1000)}})
}

func put(s Scale, size, writers, syncEvery int) Case {
	c := Case{
		Name: fmt.Sprintf("put %s, %s", bytes(size), many(writers, "writer")), Op: Put, Unit: "MB/s", Min: size, Threads: writers, Bytes: s.Bytes, Seconds: s.Seconds,
		SyncEvery: syncEvery,
	}
	if syncEvery > 0 {
		c.Name += fmt.Sprintf(", Sync every %d", syncEvery)
	}
	return c
}

func addShape(s Scale) []Session {
	return []Session{{ID: "W2", Cases: []Case{{
		Name: "16 streams of 3 x 256 KiB", Op: Batch, Unit: "MB/s", Min: 256 * kib, Threads: 16, PutsPerBatch: 3, Bytes: s.Bytes, Seconds: s.Seconds,
	}}}}
}

func importShape(s Scale) []Session {
	return []Session{{ID: "W3", Cases: []Case{{
		Name: "16 streams of 9 x 256 KiB", Op: Batch, Unit: "MB/s", Min: 256 * kib, Threads: 16, PutsPerBatch: 9, Bytes: s.Bytes, Seconds: s.Seconds,
	}}}}
}

func small(s Scale) []Session {
	var all []Session
	for _, w := range writers {
		all = append(all, Session{ID: id("W4", w), Cases: []Case{{
			Name: "put 500 to 4,000 B, " + many(w, "writer"), Op: Put, Unit: "op/s", Min: 500, Max: 4000, Threads: w, Ops: s.Small, Seconds: s.Seconds,
		}}})
	}
	return all
}

func duplicates(s Scale) []Session {
	fill := Fill{Blocks: room(256*kib, s.Bytes/2), Min: 256 * kib}
	return []Session{{ID: "W5", Fill: fill, Cases: []Case{
		{Name: "put 256 KiB, 9 of 10 there, 16 writers", Op: Put, Unit: "op/s", Min: 256 * kib, Threads: 16, Present: 0.9, Bytes: s.Bytes, Seconds: s.Seconds},
	}}}
}

func get(s Scale, readers int, zipf float64, cold bool) Case {
	c := Case{Name: "get 256 KiB, " + many(readers, "reader"), Op: Get, Unit: "MB/s", Threads: readers, Zipf: zipf, Cold: cold, Bytes: 4 * s.ReadBytes, Seconds: s.Seconds}
	if zipf > 0 {
		c.Name += fmt.Sprintf(", zipf %g", zipf)
	}
	if cold {
		c.Name += ", cold"
		c.Bytes = s.ReadBytes
	}
	return c
}

func gets(s Scale) []Session {
	var cases []Case
	for _, r := range []int{1, 16, 128} {
		cases = append(cases, get(s, r, 0, false))
	}
	cases = append(cases, get(s, 128, 0.99, false), get(s, 128, 0, true))
	return []Session{{ID: "W6", Fill: Fill{Blocks: room(256*kib, s.ReadBytes), Min: 256 * kib}, Keep: "reads", Reads: true, Raw: RawReads, Cases: cases}}
}

// keys is the store of W7 to W11: many small blocks.
func keys(s Scale) Fill { return Fill{Blocks: s.Keys, Min: 100, Max: 1000} }

func asks(s Scale) []Session {
	var cases []Case
	add := func(op Op, name string, threads int, present float64, cold bool) {
		c := Case{Op: op, Unit: "op/s", Threads: threads, Present: present, Cold: cold, Ops: s.Calls, Seconds: s.Seconds / 2}
		c.Name = fmt.Sprintf("%s, %s, %s", op, name, many(threads, "caller"))
		if cold {
			c.Name += ", cold"
		}
		cases = append(cases, c)
	}
	for _, threads := range []int{1, 128} {
		add(Has, "hit", threads, 1, false)
		add(Has, "miss", threads, 0, false)
	}
	add(GetSize, "hit", 128, 1, false)
	add(GetSize, "miss", 128, 0, false)
	add(Has, "5 % hit", 128, 0.05, false)
	add(Has, "5 % hit", 128, 0.05, true)
	add(GetSize, "half hit", 128, 0.5, true)
	return []Session{{ID: "W7", Fill: keys(s), Keep: "keys", Reads: true, Cases: cases}}
}

func enumerate(s Scale) []Session {
	beside := put(s, 256*kib, 4, 0)
	return []Session{{ID: "W8", Fill: keys(s), Keep: "keys", Reads: true, Cases: []Case{
		{Name: "all keys, cold", Op: Enumerate, Unit: "op/s", Cold: true},
		{Name: "all keys, warm", Op: Enumerate, Unit: "op/s"},
		{Name: "all keys, beside 4 writers", Op: Enumerate, Unit: "op/s", Beside: &beside},
	}}}
}

func stat(s Scale) []Session {
	return []Session{{ID: "W9", Fill: keys(s), Keep: "keys", Reads: true, Cases: []Case{
		{Name: "DiskUsage", Op: DiskUsage, Unit: "op/s", Threads: 1, Ops: 200, Seconds: s.Seconds},
	}}}
}

func collect(s Scale) []Session {
	var all []Session
	for _, threads := range []int{1, 128} {
		beside := Case{Name: "get beside", Op: Get, Unit: "op/s", Threads: 4}
		c := Case{
			Name: "delete 30 %, " + many(threads, "caller"), Op: Delete, Unit: "op/s", Threads: threads, Share: 0.3, Beside: &beside,
			Seconds: 4 * s.Seconds,
		}
		if threads > 1 {
			c.SpaceSeconds = s.SpaceSeconds
		}
		// 16 KiB, so that there is space to be had back.
		all = append(all, Session{ID: id("W10", threads), Fill: Fill{Blocks: s.Keys / 5, Min: 4 * kib, Max: 28 * kib}, Deletes: true, Rounds: 1, Cases: []Case{c}})
	}
	return all
}

func restart(s Scale) []Session {
	return []Session{
		{ID: "W11-open", Fill: keys(s), Keep: "keys", Reads: true, Cases: []Case{
			{Name: "open, warm", Op: Open, Unit: "ms"},
			{Name: "open, cold", Op: Open, Unit: "ms", Cold: true},
		}},
		{ID: "W11-kill", Fill: keys(s), Rounds: 2, Cases: []Case{
			{Name: "open after kill -9", Op: Crash, Unit: "ms", Min: 256 * kib, Threads: 16, Bytes: s.Bytes, Seconds: s.Seconds / 2},
		}},
	}
}

func matrix(s Scale) []Session {
	const size, batch = 256 * kib, 64
	one := func(prime, size, batch int) Session {
		name := fmt.Sprintf("%s, primed with %d", bytes(size), prime)
		reads := max(1, prime/5)
		adds := max(1, min(prime, 256))
		return Session{ID: id("W12", prime, size, batch), Fill: Fill{Blocks: prime, Min: size}, Reads: true, Rounds: 1, Cases: []Case{
			{Name: "get " + name, Op: Get, Unit: "op/s", Threads: 1, Ops: reads, Seconds: s.Seconds},
			{Name: "has " + name, Op: Has, Unit: "op/s", Threads: 1, Present: 0.5, Ops: reads, Seconds: s.Seconds},
			{Name: "add " + name, Op: Put, Unit: "op/s", Min: size, Threads: 1, Ops: adds, Seconds: s.Seconds},
			{Name: fmt.Sprintf("add by batches of %d, %s", batch, name), Op: Batch, Unit: "op/s", Min: size, Threads: 1, PutsPerBatch: batch,
				Ops: max(adds, batch), Seconds: s.Seconds},
		}}
	}
	var all []Session
	for _, prime := range s.Primes {
		all = append(all, one(prime, size, batch))
	}
	last := s.Primes[len(s.Primes)-1]
	for _, size := range s.Sizes {
		all = append(all, one(last, size, batch))
	}
	for _, b := range s.Batches {
		if b != batch || !slices.Contains(s.Sizes, kib) {
			all = append(all, one(last, kib, b))
		}
	}
	return all
}
