package report

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"basalt.dev/go/bench/kubo"
	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

// Write makes peers.md, peers-details.md and the plots of a folder from its peers.json.
func Write(folder string) error {
	r, err := Load(folder, nil)
	if err != nil {
		return err
	}
	page, details, plots := r.render()
	files := map[string]string{"peers.md": page, "peers-details.md": details}
	for name, svg := range plots {
		files[name] = svg
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const intro = `Written by ` + "`make bench-peers`" + ` (` + "`ONLY=W1,W6`" + ` measures these anew and leaves the rest). %s

- Each store runs in a process of its own, opened as Kubo opens it, in a folder of its own on one file system. Basalt's agent is counted with its client.
- Rounds interleave the stores (A, B, C, A, B, C); medians, and the least and greatest of the rounds. A ratio is taken within its round. Absolute
  figures belong to the machine of the table, and to the load that each workload names: what else ran took its share, from all stores alike.
- Blocks are unique, half incompressible and half text, under their real keys. Every process holds a live heap of 512 MiB, as a busy Kubo does.
- *Class* is what an acknowledged Put means at a power cut: **each** is on stable storage; **ordered**: it is before any later pin; **at Sync**: when a
  Sync has returned; **none**: its Sync does nothing. Stores are compared within their class; in each column the fastest of each class is bold.
  Where a store claims *each* and the disk saw no flush, it says so.
- *badger4* and *pebble sync* (a flush with every write) are nothing that Kubo can be set to.
- Raw limits are of the same bytes in one file, without names, index or checks.
- MB/s are 10^6 bytes of payload. *failed* stands where a round of the case failed; why is in the details.

`

func (r Result) render() (page, details string, plots map[string]string) {
	var p, d strings.Builder
	plots = map[string]string{}
	p.WriteString("# The stores side by side\n\n")
	fmt.Fprintf(&p, intro, "All figures of each case: [peers-details.md](peers-details.md); every round: [peers.json](peers.json).")
	p.WriteString("| | |\n|---|---|\n")
	for _, f := range r.Machine {
		fmt.Fprintf(&p, "| %s | %s |\n", f.What, f.Value)
	}
	d.WriteString("# The stores side by side: all figures\n\nMedians of the rounds. What the columns mean:\n\n")
	for _, c := range columns {
		fmt.Fprintf(&d, "- **%s**: %s\n", c.title, c.meaning)
	}
	against(&p, r)
	table := append(workload.Table(workload.Default), workload.Workload{ID: kubo.ID, Name: kubo.Name, What: kubo.What})
	for _, w := range table {
		at := slices.IndexFunc(r.Measured, func(m Measured) bool { return m.Workload == w.ID })
		if at < 0 {
			continue
		}
		m := r.Measured[at]
		all := cases(m.Entries)
		name := strings.ToLower(w.ID) + ".svg"
		plots[name] = plot(w.ID+" "+w.Name, all)
		fmt.Fprintf(&p, "\n## %s: %s\n\n%s\n\n*Run: %s.*\n\n![%s](%s)\n\n", w.ID, w.Name, w.What, m.Run, w.ID, name)
		rates(&p, all)
		for _, of := range all {
			fmt.Fprintf(&d, "\n## %s: %s\n\n", w.ID, of[0].Case)
			detail(&d, of)
		}
	}
	return p.String(), d.String(), plots
}

// rates is the table of a workload: stores down and cases across, or, where these are many, the other way round.
func rates(p *strings.Builder, all [][]summary) {
	var names []string
	classes := map[string]stores.Class{}
	for _, of := range all {
		for _, s := range of {
			if _, seen := classes[s.Store]; !seen {
				names = append(names, s.Store)
				classes[s.Store] = s.Class
			}
		}
	}
	cell := func(of []summary, name string) string {
		for _, s := range of {
			if s.Store != name {
				continue
			}
			if s.failed != "" {
				return "failed"
			}
			text := number(s.figures[run.Rate])
			if top := best(of, func(o summary) bool { return !o.raw() && o.Class == s.Class }); top != nil && top.Store == name {
				text = "**" + text + "**"
			}
			if len(s.Rounds) > 1 {
				text += fmt.Sprintf(" (%s to %s)", number(s.least), number(s.most))
			}
			if s.figures[run.Unflushed] > 0 {
				text += " not flushed"
			}
			return text
		}
		return ""
	}
	if len(all) > 7 {
		p.WriteString("| |")
		for _, name := range names {
			fmt.Fprintf(p, " %s |", name)
		}
		p.WriteString("\n|---|" + strings.Repeat("---|", len(names)) + "\n")
		for _, of := range all {
			fmt.Fprintf(p, "| %s, %s |", of[0].Case, of[0].Unit)
			for _, name := range names {
				fmt.Fprintf(p, " %s |", cell(of, name))
			}
			p.WriteString("\n")
		}
		return
	}
	p.WriteString("| | class |")
	for _, of := range all {
		fmt.Fprintf(p, " %s, %s |", of[0].Case, of[0].Unit)
	}
	p.WriteString("\n|---|---|" + strings.Repeat("---|", len(all)) + "\n")
	for _, name := range names {
		fmt.Fprintf(p, "| %s | %s |", name, classes[name])
		for _, of := range all {
			fmt.Fprintf(p, " %s |", cell(of, name))
		}
		p.WriteString("\n")
	}
}

// against is Basalt beside the fastest of the others: a line for each case.
func against(p *strings.Builder, r Result) {
	var entries []run.Entry
	for _, m := range r.Measured {
		entries = append(entries, m.Entries...)
	}
	slices.SortStableFunc(entries, func(a, b run.Entry) int { return order(a.Workload) - order(b.Workload) })
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Store, "Basalt ") && !slices.Contains(names, e.Store) {
			names = append(names, e.Store)
		}
	}
	var lines []string
	for _, of := range cases(entries) {
		peer := func(s summary) bool { return !s.raw() && !s.basalt() }
		durable := best(of, func(s summary) bool { return peer(s) && s.durable() })
		any := best(of, peer)
		raw := best(of, func(s summary) bool {
			return s.raw() && (strings.Contains(s.Store, "direct, growing") || strings.Contains(s.Store, "CRC"))
		})
		if any == nil {
			continue
		}
		named := func(s *summary) string {
			if s == nil {
				return ""
			}
			return fmt.Sprintf("%s: %s", strings.TrimPrefix(s.Store, "raw "), number(s.figures[run.Rate]))
		}
		line := fmt.Sprintf("| %s, %s | %s | %s | %s |", of[0].Case, of[0].Unit, named(durable), named(any), named(raw))
		measured := false
		for _, name := range names {
			cell := ""
			for _, s := range of {
				if s.Store != name {
					continue
				}
				measured = true
				if s.failed != "" {
					cell = "failed"
					continue
				}
				var ratios []string
				for i, other := range []*summary{durable, any, raw} {
					switch {
					case other != nil && i == 0:
						ratios = append(ratios, "**"+number(ratio(s, *other))+"**")
					case other != nil:
						ratios = append(ratios, number(ratio(s, *other)))
					case i < 2:
						ratios = append(ratios, "-")
					}
				}
				cell = strings.Join(ratios, " / ")
			}
			line += " " + cell + " |"
		}
		if measured {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return
	}
	p.WriteString("\n## Basalt against the fastest of the others\n\nHow many times as fast as **the fastest that flushes each** / the fastest of any class / the raw " +
		"limit (direct and growing; or pread with CRC), where there is one. Above 1 Basalt is the faster one.\n\n" +
		"| case | the fastest that flushes each | the fastest of any class | raw |")
	for _, name := range names {
		fmt.Fprintf(p, " %s |", strings.TrimPrefix(name, "Basalt "))
	}
	p.WriteString("\n|---|---|---|---|" + strings.Repeat("---|", len(names)) + "\n" + strings.Join(lines, "\n") + "\n")
}

// order of workloads by their numbers.
func order(id string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(id, "W"))
	return n
}

// column of the details.
type column struct{ title, figure, meaning string }

var columns = []column{
	{"rate", run.Rate, "in the unit of the case"},
	{"p50, us", run.P50, "latency of a call"},
	{"p99, us", run.P99, ""},
	{"p99.9, us", run.P999, ""},
	{"calls", run.Ops, "that were made"},
	{"written per byte", run.Written, "bytes that the store's processes wrote for each of payload, from open to after close"},
	{"on device", run.OnDevice, "the same by the block device's counters, in which is what else runs on the machine"},
	{"flushes per call", run.Flushes, "of the block device; others' are in it"},
	{"CPU s per GiB", run.CPU, "of all processes of the store; with writes, to after close"},
	{"CPU us per call", run.CPUPerOp, ""},
	{"memory, MiB", run.Memory, "peak of the RSS above what the program had before it opened the store, with all of the agent's"},
	{"fds", run.FDs, "open at the end, above what was open before"},
	{"inodes", run.Inodes, "files and folders on disk after close"},
	{"disk per byte", run.DiskPer, "space on disk for each byte stored, after close"},
	{"back at once", run.BackAtOnce, "share of the deleted bytes that the file system has again when the last Delete and CollectGarbage have returned"},
	{"back later", run.BackLater, "and after the time that the case waits for it; below 0: the store has grown"},
	{"open, ms", run.OpenMS, "for Basalt by an agent: with its start"},
	{"first get, ms", run.FirstGetMS, ""},
	{"first key, ms", run.FirstKeyMS, ""},
	{"lost", run.Lost, "acknowledged blocks that are gone after kill -9"},
	{"beside, per s", run.BesideRate, "calls a second of what ran beside"},
	{"beside p99, us", run.BesideP99, ""},
}

func detail(d *strings.Builder, of []summary) {
	var used []column
	for _, c := range columns {
		for _, s := range of {
			if _, there := s.figures[c.figure]; there {
				used = append(used, c)
				break
			}
		}
	}
	fmt.Fprint(d, "| | class |")
	for _, c := range used {
		title := c.title
		if c.figure == run.Rate {
			title = of[0].Unit
		}
		fmt.Fprintf(d, " %s |", title)
	}
	fmt.Fprint(d, "\n|---|---|"+strings.Repeat("---|", len(used))+"\n")
	for _, s := range of {
		if s.failed != "" {
			reason := strings.Join(strings.Fields(strings.ReplaceAll(s.failed, "|", "/")), " ")
			if len(reason) > 300 {
				reason = reason[:300] + "..."
			}
			fmt.Fprintf(d, "| %s | %s | failed: %s%s |\n", s.Store, s.Class, reason, strings.Repeat(" |", max(0, len(used)-1)))
			continue
		}
		fmt.Fprintf(d, "| %s | %s |", s.Store, s.class())
		for _, c := range used {
			if v, there := s.figures[c.figure]; there {
				fmt.Fprintf(d, " %s |", number(v))
			} else {
				fmt.Fprint(d, " |")
			}
		}
		fmt.Fprint(d, "\n")
	}
}
