package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"basalt.dev/go/migrate"
	"golang.org/x/term"
)

const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 5 * time.Second
	barWidth  = 30
)

// reporter picks how progress is shown: objects on the output, a bar on a terminal, lines elsewhere.
func reporter(asJSON bool, out, errs io.Writer) migrate.Reporter {
	if asJSON {
		return &progress{every: time.Second, show: func(p *progress, last bool) {
			_ = json.NewEncoder(out).Encode(map[string]any{"event": "progress", "step": p.step, "done": p.done, "total": p.total, "bytes": p.bytes, "ended": last})
		}, note: func(text string) { _ = json.NewEncoder(out).Encode(map[string]any{"event": "note", "message": text}) }}
	}
	say := func(text string) { fmt.Fprintln(errs, "basalt-migrate: "+text) }
	if f, ok := errs.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progress{every: barEvery, note: say, show: func(p *progress, last bool) {
			filled := barWidth
			if p.total > 0 {
				filled = int(min(barWidth, barWidth*p.done/p.total))
			}
			fmt.Fprintf(errs, "\r\x1b[K%-6s [%s%s] %s", p.step, strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled), p)
			if last {
				fmt.Fprintln(errs)
			}
		}}
	}
	return &progress{every: lineEvery, note: say, show: func(p *progress, _ bool) { say(p.step + ": " + p.String()) }}
}

type progress struct {
	every       time.Duration
	show        func(p *progress, last bool)
	note        func(string)
	step        string
	done, total int64
	bytes       int64
	begin, last time.Time
}

func (p *progress) Begin(step string, total int64) {
	p.step, p.total, p.done, p.bytes = step, total, 0, 0
	p.begin = time.Now()
	p.last = p.begin
}

func (p *progress) At(done, bytes int64) {
	p.done, p.bytes = done, bytes
	if now := time.Now(); now.Sub(p.last) >= p.every {
		p.last = now
		p.show(p, false)
	}
}

func (p *progress) End() {
	if p.total > 0 {
		p.show(p, true)
	}
}

func (p *progress) Note(text string) { p.note(text) }

func (p *progress) String() string {
	s := fmt.Sprintf("%d of %d keys", p.done, p.total)
	if seconds := time.Since(p.begin).Seconds(); p.bytes > 0 && seconds > 0 {
		s += fmt.Sprintf(", %s, %s/s", migrate.Bytes(p.bytes), migrate.Bytes(int64(float64(p.bytes)/seconds)))
		if p.done > 0 && p.done < p.total {
			left := time.Duration(seconds * float64(p.total-p.done) / float64(p.done) * float64(time.Second))
			s += fmt.Sprintf(", %s left", left.Round(time.Second))
		}
	}
	return s
}
