package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// summary is an entry's rounds in one.
type summary struct {
	run.Entry
	// figures: medians.
	figures run.Figures
	// least and most of the rate.
	least, most float64
	// failed says why there are no figures: a case of which a round failed has none.
	failed string
}

func summarise(e run.Entry) summary {
	s := summary{Entry: e, figures: run.Figures{}}
	values := map[string][]float64{}
	for i, row := range e.Rounds {
		if row.Error != "" {
			s.failed = fmt.Sprintf("round %d: %s", i+1, row.Error)
			s.figures = nil
			return s
		}
		for name, v := range row.Figures {
			values[name] = append(values[name], v)
		}
	}
	if len(e.Rounds) == 0 {
		s.failed, s.figures = "no round was run", nil
		return s
	}
	for name, v := range values {
		s.figures[name] = median(v)
	}
	s.least, s.most = slices.Min(values[run.Rate]), slices.Max(values[run.Rate])
	return s
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// class of what was measured: as claimed, unless the disk saw otherwise.
func (s summary) class() string {
	if s.figures[run.Unflushed] > 0 {
		return string(s.Class) + ", but **the disk saw no flush**"
	}
	return string(s.Class)
}

func (s summary) raw() bool    { return strings.HasPrefix(s.Store, "raw ") }
func (s summary) basalt() bool { return strings.HasPrefix(s.Store, "Basalt ") }

// durable: it flushes each, and was seen to.
func (s summary) durable() bool { return s.Class == stores.Each && s.figures[run.Unflushed] == 0 }

// better says whether a rate is better than another, in the case's unit.
func better(unit string, a, b float64) bool {
	if workload.LessIsBetter(unit) {
		return a < b
	}
	return a > b
}

// best of those that fit, or nil.
func best(all []summary, fits func(summary) bool) *summary {
	var found *summary
	for i, s := range all {
		if s.failed == "" && fits(s) && (found == nil || better(s.Unit, s.figures[run.Rate], found.figures[run.Rate])) {
			found = &all[i]
		}
	}
	return found
}

// ratio of one to another, how many times as fast, taken within each round; the median.
func ratio(a, b summary) float64 {
	var each []float64
	for i := range min(len(a.Rounds), len(b.Rounds)) {
		x, y := a.Rounds[i].Figures[run.Rate], b.Rounds[i].Figures[run.Rate]
		if workload.LessIsBetter(a.Unit) {
			x, y = y, x
		}
		if y > 0 {
			each = append(each, x/y)
		}
	}
	return median(each)
}

// number with three digits that count.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsNaN(v):
		return "?"
	case a >= 1e6:
		return fmt.Sprintf("%.3g M", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.0f k", v/1e3)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.995:
		return fmt.Sprintf("%.2f", v)
	case v == 0:
		return "0"
	}
	return fmt.Sprintf("%.2g", v)
}

// cases in the order in which they came, each with its stores.
func cases(entries []run.Entry) [][]summary {
	var order []string
	by := map[string][]summary{}
	for _, e := range entries {
		id := e.Session + "\x00" + e.Case
		if _, seen := by[id]; !seen {
			order = append(order, id)
		}
		by[id] = append(by[id], summarise(e))
	}
	all := make([][]summary, len(order))
	for i, id := range order {
		all[i] = by[id]
	}
	return all
}
