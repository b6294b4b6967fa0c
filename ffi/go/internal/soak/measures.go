package soak

// What is judged, and how much each may grow.

import "fmt"

const mib = 1 << 20

// measure reads one value out of a sample; false: the sample has none.
type measure struct {
	name, unit string
	bound      Bound
	process    func(Sample) *Process // nil: of the node
	value      func(Sample) (float64, bool)
	most       bool // the most of each cycle, not what is at rest
}

func processMeasures(name string, node bool, of func(Sample) *Process) (all []measure) {
	add := func(what, unit string, bound Bound, most bool, value func(*Process) float64) {
		all = append(all, measure{name: name + ": " + what, unit: unit, bound: bound, most: most, process: of, value: func(s Sample) (float64, bool) {
			if p := of(s); p != nil {
				return value(p), true
			}
			return 0, false
		}})
	}
	anon := func(p *Process) float64 { return float64(p.Anon) }
	floor := float64(16 * mib)
	if node {
		floor += 2 * memtable // that of the shard and that of the keyspace
	}
	add("memory", "MiB", Bound{0.2, floor}, false, anon)
	add("most memory in a cycle", "MiB", Bound{0.25, floor + 16*mib}, true, anon)
	add("descriptors", "", Bound{0.1, 6}, false, func(p *Process) float64 { return float64(p.Files) })
	add("threads", "", Bound{0.1, 4}, false, func(p *Process) float64 { return float64(p.Threads) })
	if name == "Kubo" {
		add("goroutines", "", Bound{0.1, 20}, false, func(p *Process) float64 { return float64(p.Goroutines) })
		add("live heap", "MiB", Bound{0.2, 8 * mib}, false, func(p *Process) float64 { return float64(p.Heap) })
	}
	return all
}

func nodeMeasures() (all []measure) {
	add := func(what, unit string, bound Bound, value func(*Node) float64) {
		all = append(all, measure{name: "node: " + what, unit: unit, bound: bound, value: func(s Sample) (float64, bool) {
			if s.Node == nil {
				return 0, false
			}
			return value(s.Node), true
		}})
	}
	add("disk space", "MiB", Bound{0.15, 3 * segmentBytes}, func(n *Node) float64 { return float64(n.Allocated) })
	add("segments", "", Bound{0.15, 3}, func(n *Node) float64 { return float64(n.Segments) })
	add("index", "MiB", Bound{0.3, 4 * mib}, func(n *Node) float64 { return float64(n.Index) })
	add("live bytes (the load's own steadiness)", "MiB", Bound{0.1, 4 * mib}, func(n *Node) float64 { return float64(n.Live) })
	return all
}

func agentOf(s Sample) *Process { return s.Agent }
func kuboOf(s Sample) *Process  { return s.Kubo }

// series takes a measure out of samples: of those at rest, or the most of each cycle and process.
func series(samples []Sample, m measure) (points []Point) {
	lives := map[int]int{}
	cycle := -1
	for _, s := range samples {
		value, there := m.value(s)
		if !there || !m.most && !s.Rest {
			continue
		}
		life := 0
		if m.process != nil {
			pid := m.process(s).Pid
			if lives[pid] == 0 {
				lives[pid] = len(lives) + 1
			}
			life = lives[pid]
		}
		if last := len(points) - 1; m.most && last >= 0 && cycle == s.Cycle && points[last].Life == life {
			points[last].Value = max(points[last].Value, value)
			continue
		}
		cycle = s.Cycle
		points = append(points, Point{s.At, value, life})
	}
	return points
}

// judged judges all that a lane has.
func judged(r LaneReport, length float64) (all []Judged) {
	measures := append(processMeasures("Kubo", r.Name == "ffi", kuboOf), nodeMeasures()...)
	if r.Name == "grpc" {
		measures = append(processMeasures("agent", true, agentOf), measures...)
	}
	for _, m := range measures {
		all = append(all, Judged{m.name, m.unit, judge(series(r.Samples, m), length, m.bound)})
	}
	return append(all, overhead(r.Samples))
}

// overhead bounds disk space by what is live: a segment is compacted when half of it is dead, and besides each store has its open segment, one that
// is being filled by compaction, those that it keeps for new writes, and an index.
func overhead(samples []Sample) Judged {
	j := Judged{"node: disk space beyond twice the live bytes", "MiB", Judgement{}}
	for _, s := range samples {
		if s.Node == nil || !s.Rest {
			continue
		}
		j.Points++
		j.Max = float64(s.Node.Stores * ((spentMax+2)*segmentBytes + 4*mib))
		j.Level = max(j.Level, float64(s.Node.Allocated)-2*float64(s.Node.Live))
	}
	if j.Points == 0 || j.Level > j.Max {
		j.Why = "it is more than segments that are open or kept account for"
	}
	return j
}

// inUnit writes a value for people.
func inUnit(value float64, unit string) string {
	if unit == "MiB" {
		return fmt.Sprintf("%.1f MiB", value/mib)
	}
	return fmt.Sprintf("%.0f", value)
}
