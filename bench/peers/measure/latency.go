// Package measure takes the figures of a run: latencies, what processes and the disk did, what a folder takes up.
package measure

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies of one worker; merge those of all. Two digits are kept, to ten minutes.
type Latencies struct{ h *hdrhistogram.Histogram }

// NewLatencies holds none.
func NewLatencies() *Latencies {
	return &Latencies{hdrhistogram.New(1, int64(10*time.Minute), 2)}
}

// Add one.
func (l *Latencies) Add(took time.Duration) {
	_ = l.h.RecordValue(max(1, min(int64(took), int64(10*time.Minute)))) // within the histogram's range
}

// Merge adds those of another.
func (l *Latencies) Merge(other *Latencies) { l.h.Merge(other.h) }

// Count of all.
func (l *Latencies) Count() int64 { return l.h.TotalCount() }

// Percentile in microseconds: as long as that, at most, took so many of a hundred.
func (l *Latencies) Percentile(percent float64) float64 {
	return float64(l.h.ValueAtPercentile(percent)) / 1e3
}
