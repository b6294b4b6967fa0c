// Writes what `make bench` measured into docs/benchmarks.md, between its two markers; the text around them is people's.
//
//	bench-report PAGE MACHINE IN_PROCESS.json FROM_GO.json      MACHINE: lines "what: value"
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

const (
	begin = "<!-- figures: written by make bench -->"
	end   = "<!-- end of figures -->"
)

type measured struct {
	Name       string    `json:"name"`
	Durability string    `json:"durability"`
	Unit       string    `json:"unit"`
	Samples    []float64 `json:"samples"`
	Baseline   *string   `json:"baseline"`
	IsBaseline bool      `json:"is_baseline"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-report:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: bench-report PAGE MACHINE IN_PROCESS.json FROM_GO.json")
	}
	page, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the lines %q and %q", args[0], begin, end)
	}
	machine, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString(before + begin + "\n\n| | |\n|---|---|\n")
	for line := range strings.Lines(string(machine)) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		fmt.Fprintf(&text, "| %s | %s |\n", what, value)
	}
	for i, title := range []string{"In process (Rust), against the raw disk", "From a Go program, against go-ds-flatfs"} {
		if err := table(&text, title, args[2+i]); err != nil {
			return err
		}
	}
	text.WriteString("\n" + end + after)
	return os.WriteFile(args[0], []byte(text.String()), 0o644)
}

func table(text *strings.Builder, title, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var all []measured
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	byName := map[string]measured{}
	for _, m := range all {
		byName[m.Name] = m
	}
	fmt.Fprintf(text, "\n### %s\n\n| case | durability | median | spread | of its measure |\n|---|---|---|---|---|\n", title)
	for _, m := range all {
		if len(m.Samples) == 0 {
			return fmt.Errorf("%s: %q has no samples", path, m.Name)
		}
		name, ratio := m.Name, ""
		if m.IsBaseline {
			name, ratio = "*"+name+"*", "1"
		} else if m.Baseline != nil {
			against, there := byName[*m.Baseline]
			if !there || len(against.Samples) != len(m.Samples) {
				return fmt.Errorf("%s: %q is measured against %q, which wasn't run as often", path, m.Name, *m.Baseline)
			}
			ratios := make([]float64, len(m.Samples))
			for i := range ratios {
				ratios[i] = m.Samples[i] / against.Samples[i]
			}
			low, middle, high := spread(ratios)
			ratio = fmt.Sprintf("**%.2f** (%.2f to %.2f)", middle, low, high)
		}
		low, middle, high := spread(m.Samples)
		fmt.Fprintf(text, "| %s | %s | %s %s | %s to %s | %s |\n", name, m.Durability, figure(middle), m.Unit, figure(low), figure(high), ratio)
	}
	return nil
}

// spread returns the least, the median and the greatest.
func spread(samples []float64) (low, middle, high float64) {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	return s[0], (s[(n-1)/2] + s[n/2]) / 2, s[n-1]
}

func figure(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f k", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.1f", v)
	}
}
