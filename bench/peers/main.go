// Command basalt-peers measures the stores that Kubo can have, side by side, in one run: flatfs, pebble, leveldb, badger, badger4, Basalt by each
// of its lanes, and what the disk does without a store. The page it writes says how.
//
//	basalt-peers -dir FOLDER -out FOLDER        all workloads; -only W1,W4 -stores "flatfs,Basalt gRPC" -rounds 3 -full
//	basalt-peers -report FOLDER                 the page and plots again, from FOLDER/peers.json
//
// It starts itself again for each session and store (-spec, -rows), so that memory, CPU time and descriptors are that store's.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"basalt.dev/go/bench/kubo"
	"basalt.dev/go/bench/report"
	"basalt.dev/go/bench/run"
	"basalt.dev/go/bench/stores"
	"basalt.dev/go/bench/workload"
)

var (
	dir       = flag.String("dir", "", "folder on the disk to measure; stores are made in it and removed")
	out       = flag.String("out", "", "folder for peers.json, peers.md and the plots")
	only      = flag.String("only", "", "workloads, such as W1,W4; all without")
	words     = flag.String("stores", "", "stores whose names begin so, separated by commas; without, all that are compared by default")
	rounds    = flag.Int("rounds", 3, "interleaved rounds")
	full      = flag.Bool("full", false, "the workloads' full sizes: hours, and hundreds of GiB")
	tiny      = flag.Bool("tiny", false, "next to nothing, to see that all of it runs")
	raw       = flag.Bool("raw", true, "the raw limits as well")
	heap      = flag.Int("heap", 512, "MiB of live heap of each process")
	forgetAll = flag.Bool("drop-caches", true, "cold: where we are root, drop all caches of the machine; else only the stores' files")
	ffi       = flag.String("ffi", "", "this program with the node linked in, for Basalt's FFI lane")
	device    = flag.String("device", "", "block device whose counters are taken, such as vda, where the file system names none (ZFS)")
	mib       = flag.Int64("mib", 0, "MiB that a case stores at most, instead of the scale's")
	seconds   = flag.Float64("seconds", -1, "seconds that a case takes at most, instead of the scale's; 0: no limit")
	note      = flag.String("note", "", "what the report shall say of this run, such as the commit")
	page      = flag.String("report", "", "only write the page and the plots of this folder's peers.json")
	list      = flag.Bool("list", false, "list stores and workloads")
	specFile  = flag.String("spec", "", "internal: a session to run")
	rowsFile  = flag.String("rows", "", "internal: where its rows go")
)

func main() {
	flag.Parse()
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "basalt-peers:", err)
		os.Exit(1)
	}
}

// kuboPlan is W13 at a scale.
func kuboPlan(scale workload.Scale, site string) kubo.Plan {
	p := kubo.Plan{
		Words: *words, Rounds: max(1, min(*rounds, scale.KuboRounds)), Folder: site, LargeBytes: scale.KuboBytes, SmallFiles: scale.KuboFiles, Log: os.Stderr,
		Ipfs: os.Getenv("IPFS_BIN"), IpfsFFI: os.Getenv("IPFS_FFI_BIN"), Basalt: os.Getenv("BASALT_BIN"),
	}
	return p
}

func start() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q; -help lists the flags", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case *specFile != "":
		return run.Child(ctx, *specFile, *rowsFile)
	case *page != "":
		return report.Write(*page)
	case *list:
		for _, s := range stores.All() {
			fmt.Printf("%-24s %s\n", s.Name, s.Class)
		}
		for _, w := range workload.Table(workload.Default) {
			fmt.Printf("%-4s %s: %s\n", w.ID, w.Name, w.What)
			for _, s := range w.Sessions {
				fmt.Printf("     %s\n", s.ID)
			}
		}
		fmt.Printf("%-4s %s: %s\n", kubo.ID, kubo.Name, kubo.What)
		return nil
	case *dir == "" || *out == "":
		return fmt.Errorf("name a folder on the disk to measure by -dir, and one for the results by -out")
	}
	scale := workload.Default
	if *full {
		scale = workload.Full
	} else if *tiny {
		scale = workload.Tiny
	}
	if *mib > 0 {
		scale.Bytes, scale.Name = *mib<<20, fmt.Sprintf("%s (-mib %d)", scale.Name, *mib)
	}
	if *seconds >= 0 {
		scale.Seconds, scale.Name = *seconds, fmt.Sprintf("%s (-seconds %g)", scale.Name, *seconds)
	}
	endToEnd := *only == ""
	var others []string
	for word := range strings.SplitSeq(*only, ",") {
		if strings.EqualFold(strings.TrimSpace(word), kubo.ID) {
			endToEnd = true
		} else {
			others = append(others, word)
		}
	}
	var workloads []workload.Workload
	var err error
	if len(others) > 0 {
		if workloads, err = workload.Choose(scale, strings.Join(others, ",")); err != nil {
			return err
		}
	}
	if endToEnd {
		for _, name := range []string{"IPFS_BIN", "BASALT_BIN"} {
			if os.Getenv(name) == "" {
				return fmt.Errorf("W13 needs the programs that %s and the like name; leave it out by -only, or use tools/bench-peers", name)
			}
		}
	}
	chosen, err := stores.Choose(*words)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	for _, folder := range []string{*dir, *out} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	site, err := os.MkdirTemp(*dir, "peers-")
	if err != nil {
		return err
	}
	if site, err = filepath.Abs(site); err != nil {
		return err
	}
	defer os.RemoveAll(site)
	plan := run.Plan{
		Stores: chosen, Raw: *raw, Rounds: max(1, *rounds), Folder: site, HeapMiB: *heap, ForgetAll: *forgetAll, Program: program, FFI: *ffi, Device: *device,
		Log: os.Stderr,
	}
	if !*full {
		plan.Limit = 5 * time.Minute
	}
	facts, err := report.Machine(*dir, stores.All())
	if err != nil {
		return err
	}
	result, err := report.Load(*out, facts)
	if err != nil {
		return err
	}
	began, load := time.Now(), report.LoadAverage()
	// Saved after each workload, so that a run that is ended keeps what it has.
	take := func(w workload.Workload, entries []run.Entry) error {
		rounds := 0
		for _, e := range entries {
			rounds = max(rounds, len(e.Rounds))
		}
		text := fmt.Sprintf("%s, %s scale, rounds: %d, %s; load average %s before and %s after", began.UTC().Format("2006-01-02 15:04 UTC"), scale.Name, rounds,
			time.Since(began).Round(time.Second), load, report.LoadAverage())
		if *note != "" {
			text += "; " + *note
		}
		result.Put(report.Measured{Workload: w.ID, Run: text, Entries: entries})
		began, load = time.Now(), report.LoadAverage()
		return result.Save(*out)
	}
	if err := plan.Run(ctx, workloads, take); err != nil {
		return err
	}
	if endToEnd {
		entries, err := kuboPlan(scale, site).Run(ctx)
		if err != nil {
			return err
		}
		return take(workload.Workload{ID: kubo.ID}, entries)
	}
	return nil
}
