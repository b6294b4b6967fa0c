package soak

// What "flat" means. A series is looked at from the end of the warm-up, the run's first quarter, in three ways:
//
//   - drift: the Theil-Sen slope (the median of the slopes between any two points) times the time looked at. A few outliers don't move it.
//   - step: the median of the run's last quarter less that of its second. It sees what grows in steps.
//   - growth in a life: the same slope, of pairs within one life of the process only, times its longest life. A process that leaks starts
//     anew at each restart, so its drift over the run may be none.
//
// Each must be below a share of the level (the median) plus a floor, below which nobody would care.

import (
	"fmt"
	"slices"
)

// Point is one value of a series.
type Point struct {
	At    float64 // seconds since the run began
	Value float64
	Life  int // of the process; 0 for what outlives processes
}

// Bound is how much a series may grow and be flat.
type Bound struct {
	Share float64 // of its level
	Floor float64 // and this much in any case
}

// Judgement is how a series is.
type Judgement struct {
	Points int     // looked at
	Level  float64 // the median
	Drift  float64 // over the time looked at
	Step   float64 // last quarter of the run against its second
	InLife float64 // over the longest life of the process
	Max    float64 // what each of them must be below
	Why    string  // it is not flat; empty: it is
}

const (
	pointsMin = 8 // after the warm-up; fewer say nothing
	firstOnes = 2 // points of a life that are left out: a process that has just begun has less of everything
)

// judge says whether a series of a run of this length is flat. The points are in order of time.
func judge(points []Point, length float64, bound Bound) Judgement {
	var kept []Point
	born := map[int]int{}
	for _, p := range points {
		born[p.Life]++
		if p.At >= length/4 && (p.Life == 0 || born[p.Life] > firstOnes) {
			kept = append(kept, p)
		}
	}
	j := Judgement{Points: len(kept)}
	if len(kept) < pointsMin {
		j.Why = fmt.Sprintf("%d points after the warm-up, of %d in all, say nothing; %d would", len(kept), len(points), pointsMin)
		return j
	}
	values := func(from, to float64) (all []float64) {
		for _, p := range kept {
			if p.At >= from && p.At < to {
				all = append(all, p.Value)
			}
		}
		return all
	}
	j.Level = median(values(0, length*2))
	j.Max = bound.Share*j.Level + bound.Floor
	j.Drift = median(slopes(kept, false)) * (kept[len(kept)-1].At - kept[0].At)
	if second, last := values(length/4, length/2), values(length*3/4, length*2); len(second) > 0 && len(last) > 0 {
		j.Step = median(last) - median(second)
	}
	longest := 0.0
	first := map[int]float64{}
	for _, p := range kept {
		if _, seen := first[p.Life]; !seen {
			first[p.Life] = p.At
		}
		longest = max(longest, p.At-first[p.Life])
	}
	j.InLife = median(slopes(kept, true)) * longest
	switch {
	case j.Drift > j.Max:
		j.Why = "it drifts upwards"
	case j.Step > j.Max:
		j.Why = "its last quarter is above its second"
	case j.InLife > j.Max:
		j.Why = "it grows while the process lives"
	}
	return j
}

func slopes(points []Point, inLife bool) (all []float64) {
	for i, p := range points {
		for _, q := range points[i+1:] {
			if q.At > p.At && (!inLife || p.Life == q.Life) {
				all = append(all, (q.Value-p.Value)/(q.At-p.At))
			}
		}
	}
	return all
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
