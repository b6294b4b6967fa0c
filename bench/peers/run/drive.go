package run

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"basalt.dev/go/bench/measure"
)

// driven is what workers did.
type driven struct {
	ops, bytes int64
	wall       time.Duration
	latencies  *measure.Latencies
}

// drive lets `threads` workers do items 0 to count, each taking the next that is free, until they are done, a worker fails, `seconds` have
// passed (0: no limit) or stop says so (may be nil). do returns the bytes of payload.
func drive(threads, count int, seconds float64, stop *atomic.Bool, do func(worker, i int) (int, error)) (driven, error) {
	var next, failed atomic.Int64
	var wait sync.WaitGroup
	results := make([]driven, threads)
	errs := make([]error, threads)
	began := time.Now()
	limit := time.Duration(seconds * float64(time.Second))
	for w := range threads {
		wait.Go(func() {
			mine := driven{latencies: measure.NewLatencies()}
			at := time.Now()
			for {
				i := int(next.Add(1)) - 1
				if i >= count || failed.Load() > 0 || (stop != nil && stop.Load()) || (limit > 0 && at.Sub(began) >= limit) {
					break
				}
				bytes, err := do(w, i)
				if err != nil {
					errs[w] = err
					failed.Add(1)
					break
				}
				now := time.Now()
				mine.latencies.Add(now.Sub(at))
				at = now
				mine.ops++
				mine.bytes += int64(bytes)
			}
			results[w] = mine
		})
	}
	wait.Wait()
	sum := driven{wall: time.Since(began), latencies: measure.NewLatencies()}
	for _, r := range results {
		sum.add(r)
	}
	return sum, errors.Join(errs...)
}

func (d *driven) add(other driven) {
	d.ops += other.ops
	d.bytes += other.bytes
	d.latencies.Merge(other.latencies)
}

// figures that every case has; wall includes what came after the last call.
func (d driven) figures(unit string, wall time.Duration) Figures {
	f := Figures{
		Ops: float64(d.ops), Seconds: wall.Seconds(),
		P50: d.latencies.Percentile(50), P99: d.latencies.Percentile(99), P999: d.latencies.Percentile(99.9),
	}
	rate := float64(d.ops)
	if unit == "MB/s" {
		rate = float64(d.bytes) / 1e6
	}
	if wall > 0 {
		f[Rate] = rate / wall.Seconds()
	}
	return f
}
