package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
)

func entry(store string, class stores.Class, rates ...float64) run.Entry {
	e := run.Entry{Workload: "W1", Session: "s", Case: "put", Unit: "MB/s", Store: store, Class: class}
	for _, rate := range rates {
		e.Rounds = append(e.Rounds, run.Row{Case: "put", Figures: run.Figures{run.Rate: rate, run.P50: 1000 / rate}})
	}
	return e
}

func result(entries ...run.Entry) Result {
	return Result{Measured: []Measured{{Workload: "W1", Run: "now", Entries: entries}}}
}

func TestTheMedianStandsWithItsSpread(t *testing.T) {
	s := summarise(entry("a", stores.Each, 30, 10, 20))
	if s.figures[run.Rate] != 20 || s.least != 10 || s.most != 30 {
		t.Errorf("%+v", s)
	}
	if even := summarise(entry("a", stores.Each, 1, 2, 3, 4)); even.figures[run.Rate] != 2.5 {
		t.Errorf("%+v", even)
	}
}

func TestARatioIsTakenWithinItsRound(t *testing.T) {
	a, b := summarise(entry("a", stores.Each, 10, 100, 1000)), summarise(entry("b", stores.Each, 5, 50, 250))
	if got := ratio(a, b); got != 2 {
		t.Errorf("ratio %g", got)
	}
	a.Unit = "ms"
	if got := ratio(a, b); got != 0.5 {
		t.Errorf("less is better: ratio %g", got)
	}
}

func TestACaseOfWhichARoundFailedIsNoNumber(t *testing.T) {
	e := entry("flatfs sync", stores.Each, 123, 124, 125)
	e.Rounds[1] = run.Row{Case: "put", Error: "no space left"}
	r := result(e, entry("badger", stores.AtSync, 77))
	page, details, plots := r.render()
	for name, text := range map[string]string{"page": page, "plot": plots["w1.svg"]} {
		if !strings.Contains(text, "failed") || strings.Contains(text, "124") || !strings.Contains(text, "77") {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	if !strings.Contains(details, "round 2: no space left") {
		t.Error(details)
	}
}

func TestAStoreThatClaimsMoreThanTheDiskSawSaysSo(t *testing.T) {
	liar := entry("liar", stores.Each, 900)
	liar.Rounds[0].Figures[run.Unflushed] = 1
	r := result(liar, entry("flatfs sync", stores.Each, 100), entry("Basalt gRPC strict", stores.Each, 300))
	page, details, _ := r.render()
	if !strings.Contains(page, "not flushed") || !strings.Contains(details, "the disk saw no flush") {
		t.Error(page, details)
	}
	if !strings.Contains(page, "| flatfs sync: 100 |") || !strings.Contains(page, "| **3.00** / 0.33 |") {
		t.Errorf("it is not compared with the fastest that flushes:\n%s", page)
	}
}

func TestTheFastestOfAClassIsBold(t *testing.T) {
	r := result(
		entry("raw direct, growing", stores.Each, 999), entry("x", stores.Each, 10), entry("y", stores.Each, 20), entry("z", stores.None, 15),
	)
	page, _, _ := r.render()
	for text, want := range map[string]bool{"**20.0**": true, "**15.0**": true, "**10.0**": false, "**999**": false} {
		if strings.Contains(page, text) != want {
			t.Errorf("%s: %v\n%s", text, !want, page)
		}
	}
}

func TestAPlotIsXML(t *testing.T) {
	svg := plot("W1 <put>", cases([]run.Entry{entry("a & b", stores.Each, 1, 2), entry("c", stores.Ordered, 0)}))
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAWorkloadThatIsMeasuredAgainReplacesItsOldFigures(t *testing.T) {
	folder := t.TempDir()
	here := []Fact{{"CPU", "2 x one"}}
	for _, step := range []struct {
		facts []Fact
		m     Measured
		want  string
	}{
		{here, Measured{"W1", "first", []run.Entry{entry("a", stores.Each, 1)}}, "W1"},
		{here, Measured{"W4", "first", []run.Entry{entry("a", stores.Each, 1)}}, "W1 W4"},
		{here, Measured{"W1", "second", []run.Entry{entry("a", stores.Each, 2)}}, "W4 W1"},
		{[]Fact{{"CPU", "64 x another"}}, Measured{"W6", "elsewhere", nil}, "W6"}, // never beside the other machine's
	} {
		r, err := Load(folder, step.facts)
		if err != nil {
			t.Fatal(err)
		}
		r.Put(step.m)
		if err := r.Save(folder); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range r.Measured {
			got = append(got, m.Workload)
		}
		if strings.Join(got, " ") != step.want {
			t.Errorf("%v, wanted %s", got, step.want)
		}
	}
}
