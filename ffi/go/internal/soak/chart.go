package soak

// The graph: one panel for each thing that must not grow, both lanes in each, and below them what was restarted when.

import (
	"fmt"
	"html"
	"math"
	"strings"
)

const (
	chartWidth  = 980
	panelHeight = 150
	panelGap    = 46
	left, right = 76, 20
	top         = 56
)

type curve struct {
	lane  string
	name  string
	color string
	value func(Sample) (float64, bool)
	pid   func(Sample) int // a new one begins a new line
	dash  bool
}

type panel struct {
	title  string
	scale  float64 // what one on the axis is
	curves []curve
}

func panels() []panel {
	const agent, kubo, ffi = "#1f5fa8", "#d9740b", "#2a8c4a"
	processes := func(title string, scale float64, value func(*Process) float64) panel {
		of := func(lane, name, color string, who func(Sample) *Process) curve {
			return curve{lane, name, color, func(s Sample) (float64, bool) {
				if p := who(s); p != nil {
					if v := value(p); v > 0 {
						return v, true
					}
				}
				return 0, false
			}, func(s Sample) int {
				if p := who(s); p != nil {
					return p.Pid
				}
				return 0
			}, false}
		}
		return panel{title, scale, []curve{
			of("grpc", "agent", agent, agentOf), of("grpc", "Kubo beside it", kubo, kuboOf), of("ffi", "Kubo with the node in it", ffi, kuboOf),
		}}
	}
	node := func(title string, scale float64, values map[string]func(*Node) float64, names ...string) panel {
		p := panel{title, scale, nil}
		for i, name := range names {
			for _, lane := range []struct{ lane, name, color string }{{"grpc", "agent", agent}, {"ffi", "in Kubo", ffi}} {
				p.curves = append(p.curves, curve{lane.lane, lane.name + ": " + name, lane.color, func(s Sample) (float64, bool) {
					if s.Node == nil {
						return 0, false
					}
					return values[name](s.Node), true
				}, func(Sample) int { return 1 }, i > 0})
			}
		}
		return p
	}
	return []panel{
		processes("Memory (anonymous), MiB", mib, func(p *Process) float64 { return float64(p.Anon) }),
		processes("Memory with file pages (RSS), MiB", mib, func(p *Process) float64 { return float64(p.RSS) }),
		processes("Open descriptors", 1, func(p *Process) float64 { return float64(p.Files) }),
		processes("Threads", 1, func(p *Process) float64 { return float64(p.Threads) }),
		processes("Goroutines, at rest", 1, func(p *Process) float64 { return float64(p.Goroutines) }),
		node("Disk space of the node, and its live bytes (dashed), MiB", mib, map[string]func(*Node) float64{
			"disk space": func(n *Node) float64 { return float64(n.Allocated) }, "live": func(n *Node) float64 { return float64(n.Live) },
		}, "disk space", "live"),
		node("Segments", 1, map[string]func(*Node) float64{"all stores": func(n *Node) float64 { return float64(n.Segments) }}, "all stores"),
		node("Index on disk, MiB", mib, map[string]func(*Node) float64{"all stores": func(n *Node) float64 { return float64(n.Index) }}, "all stores"),
	}
}

// Chart draws a report as SVG.
func Chart(r Report) []byte {
	var b strings.Builder
	all := panels()
	height := top + len(all)*(panelHeight+panelGap) + 30*len(r.Lanes) + 60
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	text := func(x, y float64, anchor, style, format string, args ...any) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, style, html.EscapeString(fmt.Sprintf(format, args...)))
	}
	text(left, 22, "start", `font-size="16" font-weight="bold"`, "Basalt under mixed load with restarts, %.0f minutes", r.Minutes)
	text(left, 40, "start", `fill="#555"`, "a sample each %.0f s, and one at rest after each cycle of load, gc and reclaim; all three lines share each panel", between.Seconds())
	minutes := math.Max(r.Minutes, 0.1)
	x := func(seconds float64) float64 { return left + seconds/60/minutes*(chartWidth-left-right) }
	every := step(minutes)
	axis := func(y float64) {
		for m := 0.0; m <= minutes; m += every {
			text(x(m*60), y+15, "middle", `fill="#555"`, "%g", m)
		}
	}
	y0 := float64(top)
	for _, p := range all {
		most := 0.0
		for _, c := range p.curves {
			for _, lane := range r.Lanes {
				if lane.Name != c.lane {
					continue
				}
				for _, s := range lane.Samples {
					if v, there := c.value(s); there {
						most = math.Max(most, v/p.scale)
					}
				}
			}
		}
		tick := step(most * 1.6)
		most = math.Max(math.Ceil(most/tick)*tick, tick)
		bottom := y0 + 16 + panelHeight
		y := func(v float64) float64 { return bottom - v/most*panelHeight }
		text(left, y0+8, "start", `font-weight="bold"`, "%s", p.title)
		legend := float64(chartWidth - right)
		for i := len(p.curves) - 1; i >= 0; i-- {
			c := p.curves[i]
			text(legend, y0+8, "end", fmt.Sprintf(`fill="%s"`, c.color), "%s", c.name)
			legend -= 7*float64(len(c.name)) + 14
		}
		for v := 0.0; v <= most*1.001; v += tick {
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", left, chartWidth-right, y(v), y(v))
			text(left-8, y(v)+4, "end", `fill="#555"`, "%g", v)
		}
		axis(bottom)
		for _, c := range p.curves {
			dash := ""
			if c.dash {
				dash = ` stroke-dasharray="4 3"`
			}
			for _, lane := range r.Lanes {
				if lane.Name != c.lane {
					continue
				}
				var points []string
				pid := 0
				flush := func() {
					if len(points) > 0 {
						fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.2"%s points="%s"/>`+"\n", c.color, dash, strings.Join(points, " "))
					}
					points = nil
				}
				for _, s := range lane.Samples {
					v, there := c.value(s)
					if !there {
						continue
					}
					if now := c.pid(s); now != pid {
						flush()
						pid = now
					}
					points = append(points, fmt.Sprintf("%.1f,%.1f", x(s.At), y(v/p.scale)))
				}
				flush()
			}
		}
		y0 = bottom + panelGap - 16
	}
	text(left, y0+8, "start", `font-weight="bold"`, "Restarts: | clean, x by SIGKILL")
	for i, lane := range r.Lanes {
		line := y0 + 34 + 30*float64(i)
		text(left-8, line, "end", `fill="#555"`, "%s", lane.Name)
		for _, e := range lane.Events {
			mark, color := "|", "#555"
			if e.Kill {
				mark, color = "x", "#c0202a"
			}
			text(x(e.At), line, "middle", fmt.Sprintf(`fill="%s" font-weight="bold"`, color), "%s", mark)
			text(x(e.At), line+11, "middle", fmt.Sprintf(`fill="%s" font-size="8"`, color), "%s", e.What)
		}
	}
	text(chartWidth-right, float64(height-8), "end", `fill="#555"`, "minutes; seed %#x", r.Seed)
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// step is a round number, of which about five to ten make the whole.
func step(whole float64) float64 {
	if whole <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(whole/5)))
	for _, factor := range []float64{1, 2, 5} {
		if whole/(power*factor) <= 10 {
			return power * factor
		}
	}
	return power * 10
}
