package soak

import (
	"math/rand/v2"
	"testing"
)

// run makes a series of a run of 1800 s: a point each 20 s, in lives of a process of these many points each (none: what outlives processes).
func run(f func(at, age float64) float64, lives ...int) (points []Point) {
	life, begun, left := 0, 0.0, 0
	for i := range 90 {
		at := float64(20 * i)
		if len(lives) > 0 && left == 0 {
			left = lives[life%len(lives)]
			life++
			begun = at
		}
		left--
		points = append(points, Point{at, f(at, at-begun), life})
	}
	return points
}

func noise(sigma float64) func() float64 {
	random := rand.New(rand.NewPCG(1, 2))
	return func() float64 { return sigma * random.NormFloat64() }
}

var memory = Bound{Share: 0.2, Floor: 8}

func wants(t *testing.T, what string, points []Point, flat bool) {
	t.Helper()
	if j := judge(points, 1800, memory); (j.Why == "") != flat {
		t.Errorf("%s: flat %v, want %v: %+v", what, !flat, flat, j)
	}
}

func TestWhatStaysIsFlat(t *testing.T) {
	n := noise(20)
	wants(t, "a constant", run(func(_, _ float64) float64 { return 100 }), true)
	wants(t, "noise of a fifth", run(func(_, _ float64) float64 { return 100 + n() }), true)
	wants(t, "noise of a fifth, in short lives", run(func(_, _ float64) float64 { return 100 + n() }, 3, 17, 5, 12), true)
	wants(t, "what falls", run(func(at, _ float64) float64 { return 100 - at/50 }), true)
	wants(t, "what grows while it warms up", run(func(at, _ float64) float64 { return 100 + min(at, 400) }), true)
	wants(t, "what a process grows by when it begins", run(func(_, age float64) float64 { return 60 + min(age, 40) }, 8, 20, 15), true)
	outlier := run(func(_, _ float64) float64 { return 100 })
	outlier[60].Value, outlier[80].Value = 1000, 900
	wants(t, "two outliers", outlier, true)
}

func TestWhatGrowsIsNotFlat(t *testing.T) {
	n := noise(20)
	wants(t, "a leak", run(func(at, _ float64) float64 { return 100 + at/20 }), false)
	wants(t, "a leak below noise", run(func(at, _ float64) float64 { return 100 + at/25 + n() }), false)
	wants(t, "a leak that each restart takes back", run(func(_, age float64) float64 { return 100 + age/5 }, 8, 20, 15), false)
	wants(t, "the same below noise", run(func(_, age float64) float64 { return 100 + age/5 + n() }, 8, 20, 15), false)
	wants(t, "a step in the midst of the run", run(func(at, _ float64) float64 {
		if at > 1200 {
			return 140
		}
		return 100
	}), false)
}

func TestTooFewPointsAreNotFlat(t *testing.T) {
	wants(t, "none", nil, false)
	wants(t, "seven", run(func(_, _ float64) float64 { return 100 })[83:], false)
	wants(t, "many lives of two points", run(func(_, _ float64) float64 { return 100 }, 2), false)
}
