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
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
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
	machine   = flag.String("machine", "", "file of lines 'what: value' about the machine, for the report")
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
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
		Workloads: workloads, Stores: chosen, Raw: *raw, Rounds: max(1, *rounds), Folder: site, HeapMiB: *heap, ForgetAll: *forgetAll,
		Program: program, FFI: *ffi, Log: os.Stderr,
	}
	if !*full {
		plan.Limit = 5 * time.Minute
	}
	result := report.Result{Command: os.Args[1:], Scale: scale.Name, Rounds: plan.Rounds}
	if result.Machine, err = report.Machine(*machine, *dir, chosen); err != nil {
		return err
	}
	began := time.Now()
	take := func(e run.Entry) { result.Entries = append(result.Entries, e) }
	if err := plan.Run(ctx, take); err != nil {
		return err
	}
	if endToEnd {
		if err := kuboPlan(scale, site).Run(ctx, take); err != nil {
			return err
		}
	}
	result.Machine = append(result.Machine, report.Fact{What: "run", Value: fmt.Sprintf("%s scale, %d rounds, %s", scale.Name, plan.Rounds, time.Since(began).Round(time.Second))},
		report.Fact{What: "load average at the end", Value: report.Load()})
	text, err := json.MarshalIndent(result, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*out, "peers.json"), text, 0o644); err != nil {
		return err
	}
	return report.Write(*out)
}
