// Command basalt-migrate moves a Kubo repo that is stopped, with all it holds, to a Basalt node, and back.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"basalt.dev/go/migrate"
	"basalt.dev/go/profile"
)

const usage = `basalt-migrate REPO [--profile basalt|basalt-blocks] [--skip-corrupt] [--json]
basalt-migrate REPO --rollback [--yes] [--json]

Moves a Kubo repo to a Basalt node in the repo's folder 'basalt': every key is copied, every block verified, then config and
datastore_spec are switched. Until then the repo stays as it is, and the old store is kept afterwards. Stop the repo's daemon
first. Killed at any point: run it again. 'basalt' has to lie beside this program or in PATH.

  --profile NAME    basalt (default): everything into the node; basalt-blocks: blocks and pins, the rest into a leveldb beside it
  --skip-corrupt    leave out blocks that are corrupt in the old store, and list them, instead of stopping
  --rollback        return to the old store; what only the node has is listed first
  --yes             with --rollback: though the node has something that the old store lacks
  --json            one JSON object a line

Exit codes: 0 done; 1 failed, the message says what to do; 2 wrong command line.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errs io.Writer) int {
	flags := flag.NewFlagSet("basalt-migrate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	name := flags.String("profile", "", "")
	rollback := flags.Bool("rollback", false, "")
	yes := flags.Bool("yes", false, "")
	skip := flags.Bool("skip-corrupt", false, "")
	asJSON := flags.Bool("json", false, "")
	var repos []string
	for rest := args; ; { // flags may stand before and after REPO
		if err := flags.Parse(rest); errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, usage)
			return 0
		} else if err != nil {
			fmt.Fprintf(errs, "basalt-migrate: %v\n\n%s", err, usage)
			return 2
		}
		if rest = flags.Args(); len(rest) == 0 {
			break
		}
		repos, rest = append(repos, rest[0]), rest[1:]
	}
	problem := ""
	switch {
	case len(repos) != 1:
		problem = fmt.Sprintf("name one repo, not %d", len(repos))
	case *name != "" && *name != profile.Basalt && *name != profile.Blocks:
		problem = fmt.Sprintf("unknown profile %q: it is %s or %s", *name, profile.Basalt, profile.Blocks)
	case *rollback && (*name != "" || *skip):
		problem = "--rollback goes with --yes and --json only"
	case *yes && !*rollback:
		problem = "--yes goes with --rollback only"
	}
	if problem != "" {
		fmt.Fprintf(errs, "basalt-migrate: %s\n\n%s", problem, usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	options := migrate.Options{Repo: repos[0], Profile: *name, SkipCorrupt: *skip, Yes: *yes, Report: reporter(*asJSON, out, errs)}
	work := migrate.Migrate
	if *rollback {
		work = migrate.Rollback
	}
	res, err := work(ctx, options)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted; run it again to go on, or with --rollback (%w)", err)
	}
	switch {
	case *asJSON:
		printJSON(out, res, err)
	case err != nil:
		fmt.Fprintf(errs, "basalt-migrate: %v\n", err)
	case *rollback:
		fmt.Fprint(out, back(res))
	default:
		fmt.Fprint(out, forth(res))
	}
	if err != nil {
		return 1
	}
	return 0
}

func printJSON(out io.Writer, res migrate.Result, err error) {
	var line any = struct {
		Event string `json:"event"`
		migrate.Result
	}{"result", res}
	if err != nil {
		failed := struct {
			Event   string          `json:"event"`
			Message string          `json:"message"`
			Corrupt []migrate.Bad   `json:"corrupt,omitempty"`
			Missed  *migrate.Missed `json:"missed,omitempty"`
		}{Event: "error", Message: err.Error()}
		if corrupt := (*migrate.CorruptError)(nil); errors.As(err, &corrupt) {
			failed.Corrupt = corrupt.Bad
		}
		if missed := (*migrate.MissedError)(nil); errors.As(err, &missed) {
			failed.Missed = missed.Missed
		}
		line = failed
	}
	_ = json.NewEncoder(out).Encode(line)
}

func forth(res migrate.Result) string {
	var s strings.Builder
	if res.Outcome == "already migrated" {
		fmt.Fprintf(&s, "%s is on Basalt already: profile %s, node %s\n", res.Repo, res.Profile, res.NodeID)
	} else {
		fmt.Fprintf(&s, "migrated %s to node %s in %s\n", res.Repo, res.NodeID, res.Node)
		if res.Blocks+res.Keys > 0 { // else an earlier run has copied, and this one only completed it
			fmt.Fprintf(&s, "verified %d blocks (%s), %d other keys, %d recursive and %d direct pins, %d of them with names\n", res.Blocks,
				migrate.Bytes(res.BlockBytes), res.Keys, res.Pins.Recursive, res.Pins.Direct, res.Pins.Named)
		}
		if res.Extra > 0 {
			fmt.Fprintf(&s, "%d blocks are in the node alone, from before; `ipfs repo gc` removes those that nothing refers to\n", res.Extra)
		}
		s.WriteString(profile.Meaning(res.Profile))
	}
	if len(res.Skipped) > 0 {
		fmt.Fprintf(&s, "%d corrupt blocks were left out:\n", len(res.Skipped))
		for _, bad := range res.Skipped {
			fmt.Fprintf(&s, "  %s: %s\n", bad.CID, bad.Reason)
		}
	}
	if len(res.Old) > 0 {
		s.WriteString("the old store is still there, for --rollback:\n")
		var paths []string
		for _, old := range res.Old {
			fmt.Fprintf(&s, "  %s  %s\n", old.Path, migrate.Bytes(old.Bytes))
			paths = append(paths, "'"+strings.ReplaceAll(old.Path, "'", `'\''`)+"'")
		}
		fmt.Fprintf(&s, "when you are sure: rm -r %s\n", strings.Join(paths, " "))
	}
	return s.String()
}

func back(res migrate.Result) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s uses its old store again\n", res.Repo)
	if m := res.Missed; m.Any() {
		fmt.Fprintf(&s, "only the node has: %d blocks, %d pins, %d names", m.Blocks, len(m.Pins), len(m.Names))
		if m.MFSRoot != "" {
			fmt.Fprintf(&s, ", MFS as of %s", m.MFSRoot)
		}
		s.WriteString("\n")
	}
	if m := res.Missed; m != nil && len(m.Back) > 0 {
		fmt.Fprintf(&s, "%d pins that were removed since are there again\n", len(m.Back))
	}
	beside := ""
	if res.Profile == profile.Blocks {
		beside = ", " + migrate.RestFolder
	}
	fmt.Fprintf(&s, "the node stays in %s; basalt-migrate uses it again. To be rid of it remove it%s and %s\n", res.Node, beside, migrate.StateFile)
	return s.String()
}
