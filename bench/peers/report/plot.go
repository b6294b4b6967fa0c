package report

// Plots: a panel for each case, a bar for each store, coloured by its class; a line from the least to the greatest of the rounds.

import (
	"fmt"
	"html"
	"strings"

	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
)

const (
	panelWidth  = 560
	labelWidth  = 190
	barHeight   = 15
	panelGap    = 34
	plotMargin  = 16
	plotHeading = 58
)

var colours = map[stores.Class]string{stores.Each: "#1f5fa8", stores.Ordered: "#2a8c4a", stores.AtSync: "#d9a30b", stores.None: "#b0483a"}

func plot(title string, all [][]summary) string {
	var body strings.Builder
	heights := [2]int{plotHeading, plotHeading}
	for _, of := range all {
		side := 0
		if heights[1] < heights[0] {
			side = 1
		}
		heights[side] += panel(&body, plotMargin+side*(panelWidth+plotMargin), heights[side], of)
	}
	width, height := 2*(panelWidth+plotMargin)+plotMargin, max(heights[0], heights[1])
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	fmt.Fprintf(&svg, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="24" font-size="16">%s</text>`+"\n", width, height, plotMargin, html.EscapeString(title))
	x := plotMargin
	for _, class := range []stores.Class{stores.Each, stores.Ordered, stores.AtSync, stores.None} {
		fmt.Fprintf(&svg, `<rect x="%d" y="34" width="11" height="11" fill="%s"/><text x="%d" y="44">durable: %s</text>`+"\n", x, colours[class], x+16, class)
		x += 120
	}
	fmt.Fprintf(&svg, `<text x="%d" y="44" fill="#666">grey: no store, the file alone</text>`+"\n", x)
	svg.WriteString(body.String())
	svg.WriteString("</svg>\n")
	return svg.String()
}

// panel draws one case and returns its height.
func panel(svg *strings.Builder, x, y int, of []summary) int {
	most := 0.0
	for _, s := range of {
		if s.failed == "" {
			most = max(most, s.most)
		}
	}
	fmt.Fprintf(svg, `<text x="%d" y="%d" font-weight="bold">%s, %s</text>`+"\n", x, y+14, html.EscapeString(of[0].Case), of[0].Unit)
	scale := func(v float64) float64 {
		if most <= 0 {
			return 0
		}
		return v / most * (panelWidth - labelWidth - 60)
	}
	for i, s := range of {
		top := y + 22 + i*barHeight
		fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="end">%s</text>`, x+labelWidth-6, top+11, html.EscapeString(s.Store))
		if s.failed != "" {
			fmt.Fprintf(svg, `<text x="%d" y="%d" fill="#b0483a">failed</text>`+"\n", x+labelWidth, top+11)
			continue
		}
		colour := colours[s.Class]
		if s.raw() {
			colour = "#999"
		}
		rate := s.figures[run.Rate]
		fmt.Fprintf(svg, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, x+labelWidth, top+2, max(1, scale(rate)), barHeight-4, colour)
		fmt.Fprintf(svg, `<path d="M%.1f %dH%.1f" stroke="black"/>`, float64(x+labelWidth)+scale(s.least), top+barHeight/2, float64(x+labelWidth)+scale(s.most))
		fmt.Fprintf(svg, `<text x="%.1f" y="%d">%s</text>`+"\n", float64(x+labelWidth)+scale(s.most)+5, top+11, number(rate))
	}
	return 22 + len(of)*barHeight + panelGap - 12
}
