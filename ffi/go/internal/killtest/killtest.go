// Package killtest kills real processes under a real Kubo's load, at random moments, and looks for what was acknowledged.
//
// The checker is the process that runs this: it holds what Kubo had acknowledged, outside of what is killed, and knows the bytes from the
// seed. After each kill everything is started again; pins are asked of Kubo, blocks are read from the node itself (past Kubo's caches) and
// hashed, and the node's counts are compared with what it has.
//
// SIGKILL takes nothing from the page cache, so this is no power cut (package powercut): it shows that a process may die between any two
// of its instructions, and that its successor cleans up. In every durability class all that was acknowledged must be there.
//
// The same seed gives the same things in the same order at the same delays; which instruction a kill hits is never the same.
package killtest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"basalt.dev/go/internal/kuboload"
)

// Options of a run.
type Options struct {
	Rounds                 int
	Seed                   uint64
	Only                   string // a lane's name, or empty
	Dir                    string // for repos; a lane that failed stays there
	Basalt, IPFS, IPFSwith string // the programs; IPFSwith has the node built in
	Log                    io.Writer
}

// Lanes are the ways in which something is killed; each is a repo of its own.
var Lanes = []struct {
	Name    string
	Profile string // of Kubo: "basalt" is `ordered`, "basalt-blocks" is `strict`
	FFI     bool   // Kubo has the node in its own process
	Agent   bool   // the agent is killed
	Kubo    bool   // Kubo is killed
}{
	{Name: "agent-ordered", Profile: "basalt", Agent: true},
	{Name: "ffi-strict", Profile: "basalt-blocks", FFI: true, Kubo: true},
	{Name: "both-ordered", Profile: "basalt", Agent: true, Kubo: true},
	{Name: "ffi-ordered", Profile: "basalt", FFI: true, Kubo: true},
	{Name: "agent-strict", Profile: "basalt-blocks", Agent: true},
	{Name: "both-strict", Profile: "basalt-blocks", Agent: true, Kubo: true},
}

// Result is what a run found.
type Result struct{ Kills, Acknowledged, Lost, Wrong int }

func (r Result) String() string {
	return fmt.Sprintf("%d kills, %d acknowledged, %d lost, %d wrong", r.Kills, r.Acknowledged, r.Lost, r.Wrong)
}

type lane struct {
	*kuboload.Load
	ffi     bool
	agent   bool
	kubo    bool
	kills   int
	mu      sync.Mutex
	refused int
}

func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Log, format+"\n", args...) }

// Run kills Rounds times or more: sometimes what recovers is killed too.
func Run(o Options) (result Result, err error) {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			l.stop()
			if err == nil {
				os.RemoveAll(filepath.Join(o.Dir, l.Name))
			}
		}
	}()
	for _, spec := range Lanes {
		if o.Only != "" && o.Only != spec.Name || o.Only == "" && len(lanes) == o.Rounds {
			continue
		}
		l := &lane{ffi: spec.FFI, agent: spec.Agent, kubo: spec.Kubo}
		program := o.IPFS
		if l.ffi {
			program = o.IPFSwith
		}
		dir := filepath.Join(o.Dir, spec.Name)
		if err := os.RemoveAll(dir); err != nil {
			return result, err
		}
		k, err := kuboload.Initialize(program, o.Basalt, dir, spec.Profile)
		if err != nil {
			return result, fmt.Errorf("%s: %w", spec.Name, err)
		}
		l.Load = &kuboload.Load{Name: spec.Name, Seed: o.Seed, Kubo: k, Basalt: o.Basalt, Say: o.say}
		lanes = append(lanes, l)
	}
	if len(lanes) == 0 {
		return result, fmt.Errorf("no lane %q", o.Only)
	}
	for i := range o.Rounds {
		l := lanes[i%len(lanes)]
		if err := l.live(); err != nil {
			return result, fmt.Errorf("%s, round %d: %w", l.Name, l.Round, err)
		}
		if l.Lost+l.Wrong > 0 {
			break
		}
	}
	for _, l := range lanes {
		if l.Round == 0 {
			continue
		}
		if l.Lost+l.Wrong == 0 {
			if err := l.Check(true); err != nil {
				return result, fmt.Errorf("%s, at the end: %w", l.Name, err)
			}
		}
		result.Kills += l.kills
		result.Acknowledged += l.Acknowledged()
		result.Lost += l.Lost
		result.Wrong += l.Wrong
		o.say("%s: %d kills in %d rounds, %d acknowledged, %d refused while nobody served, %d lost, %d wrong", l.Name, l.kills, l.Round,
			l.Acknowledged(), l.refused, l.Lost, l.Wrong)
	}
	switch {
	case result.Lost+result.Wrong > 0:
		err = fmt.Errorf("%d lost, %d wrong; the repos are in %s", result.Lost, result.Wrong, o.Dir)
	case result.Acknowledged == 0 || result.Kills < o.Rounds:
		err = fmt.Errorf("%v: that proves nothing", result)
	}
	return result, err
}

// live is a round: load, a kill in the midst of it, a start, a check.
func (l *lane) live() error {
	if !l.Kubo.Running() {
		if err := errors.Join(l.Kubo.Start(), l.Kubo.Ready()); err != nil {
			return err
		}
	}
	random := l.Draw("moment")
	moment := time.Duration(20+random.IntN(1500)) * time.Millisecond
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w, work := range []func(*rand.Rand, uint64, uint64) error{l.Add, l.Add, l.Add, l.ImportCAR, l.File, l.Remove} {
		load.Go(func() {
			random := l.Draw(fmt.Sprint("worker ", w))
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := work(random, uint64(w), i); err != nil {
					l.mu.Lock()
					l.refused++
					l.mu.Unlock()
					if l.kubo {
						return // nobody answers any more
					}
				}
			}
		})
	}
	before := l.Acknowledged()
	time.Sleep(moment)
	if err := l.kill(random); err != nil {
		return err
	}
	if !l.kubo {
		// Kubo lives on: its calls wait for the next agent and are then answered. Something must be, before the load ends.
		from := l.Acknowledged()
		if err := l.Kubo.Eventually("Kubo stores again", func() error {
			if l.Acknowledged() == from {
				return errors.New("nothing was acknowledged since the kill")
			}
			return nil
		}); err != nil {
			return err
		}
	}
	close(stop)
	load.Wait()
	// A third of the time what recovers is killed too.
	if random.IntN(3) == 0 {
		after := time.Duration(random.IntN(700)) * time.Millisecond
		if l.kubo {
			if err := l.Kubo.Start(); err != nil {
				return err
			}
		}
		time.Sleep(after)
		if err := l.kill(random); err != nil {
			return err
		}
	}
	if l.kubo {
		if err := errors.Join(l.Kubo.Start(), l.Kubo.Ready()); err != nil {
			return err
		}
	}
	l.Say("%s: round %d, killed after %d ms: %d acknowledged in it", l.Name, l.Round, moment.Milliseconds(), l.Acknowledged()-before)
	err := l.Check(l.Round%10 == 9)
	l.Round++
	return err
}

// kill kills what this lane kills; of two, either first.
func (l *lane) kill(random *rand.Rand) error {
	first := random.IntN(2) == 0
	killed := false
	for _, kubo := range []bool{first, !first} {
		if kubo && l.kubo {
			killed = killed || l.Kubo.Running()
			l.Kubo.Kill()
		}
		if !kubo && l.agent {
			one, err := l.Kubo.KillAgent()
			if err != nil {
				return err
			}
			killed = killed || one
		}
	}
	if killed {
		l.kills++
	}
	return nil
}

func (l *lane) stop() {
	l.Kubo.Kill()
	_, _ = l.Kubo.KillAgent()
	l.Kubo.Close()
}
