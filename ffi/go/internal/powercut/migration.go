package powercut

// The guest's side of a lane whose repo is moved, from flatfs to Basalt and back, again and again, when the power goes. Its files were on the disk before, so
// none of them may be missing at any time: after each cut the next run of basalt-migrate goes forward, from whatever there is, and Kubo must have them all.

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"basalt.dev/go/internal/kuboload"
	"golang.org/x/sys/unix"
)

// filesMoved is how many files of each writer the repo has.
const filesMoved = 6

// addedFile is a file that the repo has had from the beginning.
type addedFile struct {
	writer, index int
	id            string
}

func (g *guest) openMigration() error {
	program, dir := filepath.Join(filepath.Dir(g.plan.Binary), "ipfs"), filepath.Join(guestRoot, "kubo")
	open := kuboload.Open
	if g.plan.Make {
		open = func(program, basalt, dir string, env ...string) (*kuboload.Kubo, error) {
			return kuboload.Initialize(program, basalt, dir, "flatfs", env...)
		}
	} else if err := g.move(); err != nil {
		return err
	}
	k, err := open(program, g.plan.Binary, dir, small...)
	if err != nil {
		return err
	}
	k.Patience = openMax
	g.kubo = k
	if !g.plan.Make && !g.plan.Report {
		return nil
	}
	for range startsMax {
		if err = errors.Join(k.Start(), k.Ready()); err == nil {
			break
		}
		g.line("step Kubo has not come up: %s", oneLine(err))
	}
	if err != nil || !g.plan.Make {
		return err
	}
	for writer := range writers {
		for index := range filesMoved {
			id, err := k.Add(content(g.plan.Seed, name{0, writer, index}), url.Values{"pin": {"true"}, "quieter": {"true"}, "progress": {"false"}})
			if err != nil {
				return err
			}
			g.added = append(g.added, addedFile{writer, index, id})
		}
	}
	if err := k.Stop(); err != nil {
		return err
	}
	unix.Sync() // flatfs flushes nothing
	return nil
}

// migrate moves the repo to and fro until the power is cut.
func (g *guest) migrate() error {
	for _, f := range g.added {
		g.line("adding %d %d", f.writer, f.index)
		g.line("added %d %d %s", f.writer, f.index, f.id)
	}
	if g.kubo.Running() {
		if err := g.kubo.Stop(); err != nil {
			return err
		}
		if _, err := g.kubo.StopAgent(); err != nil {
			return err
		}
	}
	forward := g.plan.Make
	for {
		var err error
		if forward {
			err = g.move()
		} else {
			err = g.move("--rollback")
		}
		if err != nil {
			return fmt.Errorf("forward %v: %w", forward, err)
		}
		forward = !forward
	}
}

// move runs basalt-migrate.
func (g *guest) move(args ...string) error {
	args = append([]string{filepath.Join(guestRoot, "kubo", "repo"), "--json"}, args...)
	err := run(filepath.Join(filepath.Dir(g.plan.Binary), "basalt-migrate"), args...)
	if err == nil {
		g.line("step moved %v", args[2:])
	}
	return err
}
