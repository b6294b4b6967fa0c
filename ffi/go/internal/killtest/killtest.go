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
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
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

// thing is a file that Kubo has acknowledged.
type thing struct {
	cid     string
	size    int
	numbers []uint64 // of its bytes
	pinned  bool     // false from the moment its unpinning is asked for: it may be there or not
	mfs     string   // its path, where it is in MFS
	round   int
}

type lane struct {
	o        Options
	name     string
	ffi      bool
	agent    bool
	kubo     bool
	k        *kubo
	round    int
	kills    int
	refused  int
	lost     int
	wrong    int
	verified int

	mu     sync.Mutex
	things []*thing
}

func (o *Options) say(format string, args ...any) { fmt.Fprintf(o.Log, format+"\n", args...) }

// Run kills Rounds times or more: sometimes what recovers is killed too.
func Run(o Options) (result Result, err error) {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			l.stop()
			if err == nil {
				os.RemoveAll(filepath.Join(o.Dir, l.name))
			}
		}
	}()
	for _, spec := range Lanes {
		if o.Only != "" && o.Only != spec.Name || o.Only == "" && len(lanes) == o.Rounds {
			continue
		}
		l := &lane{o: o, name: spec.Name, ffi: spec.FFI, agent: spec.Agent, kubo: spec.Kubo}
		program := o.IPFS
		if l.ffi {
			program = o.IPFSwith
		}
		dir := filepath.Join(o.Dir, l.name)
		if err := os.RemoveAll(dir); err != nil {
			return result, err
		}
		if l.k, err = initialize(program, o.Basalt, dir, spec.Profile); err != nil {
			return result, fmt.Errorf("%s: %w", l.name, err)
		}
		lanes = append(lanes, l)
	}
	if len(lanes) == 0 {
		return result, fmt.Errorf("no lane %q", o.Only)
	}
	for i := range o.Rounds {
		l := lanes[i%len(lanes)]
		if err := l.live(); err != nil {
			return result, fmt.Errorf("%s, round %d: %w", l.name, l.round, err)
		}
		if l.lost+l.wrong > 0 {
			break
		}
	}
	for _, l := range lanes {
		if l.round == 0 {
			continue
		}
		if l.lost+l.wrong == 0 {
			if err := l.check(true); err != nil {
				return result, fmt.Errorf("%s, at the end: %w", l.name, err)
			}
		}
		result.Kills += l.kills
		result.Acknowledged += len(l.things)
		result.Lost += l.lost
		result.Wrong += l.wrong
		o.say("%s: %d kills in %d rounds, %d acknowledged, %d refused while nobody served, %d lost, %d wrong", l.name, l.kills, l.round,
			len(l.things), l.refused, l.lost, l.wrong)
	}
	switch {
	case result.Lost+result.Wrong > 0:
		err = fmt.Errorf("%d lost, %d wrong; the repos are in %s", result.Lost, result.Wrong, o.Dir)
	case result.Acknowledged == 0 || result.Kills < o.Rounds:
		err = fmt.Errorf("%v: that proves nothing", result)
	}
	return result, err
}

func (l *lane) draw(purpose string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d %s", l.name, l.round, purpose)
	return rand.New(rand.NewPCG(l.o.Seed, h.Sum64()))
}

// live is a round: load, a kill in the midst of it, a start, a check.
func (l *lane) live() error {
	if l.k.cmd == nil {
		if err := errors.Join(l.k.start(), l.k.ready()); err != nil {
			return err
		}
	}
	random := l.draw("moment")
	moment := time.Duration(20+random.IntN(1500)) * time.Millisecond
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w, work := range []func(*rand.Rand, uint64, uint64) error{l.add, l.add, l.add, l.importCAR, l.file, l.remove} {
		load.Go(func() {
			random := l.draw(fmt.Sprint("worker ", w))
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
	acknowledged := l.acknowledged()
	time.Sleep(moment)
	if err := l.kill(random); err != nil {
		return err
	}
	if !l.kubo {
		// Kubo lives on: its calls wait for the next agent and are then answered. Something must be, before the load ends.
		from := l.acknowledged()
		if err := l.k.eventually("Kubo stores again", func() error {
			if l.acknowledged() == from {
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
			if err := l.k.start(); err != nil {
				return err
			}
		}
		time.Sleep(after)
		if err := l.kill(random); err != nil {
			return err
		}
	}
	if l.kubo {
		if err := errors.Join(l.k.start(), l.k.ready()); err != nil {
			return err
		}
	}
	l.o.say("%s: round %d, killed after %d ms: %d acknowledged in it", l.name, l.round, moment.Milliseconds(), l.acknowledged()-acknowledged)
	err := l.check(l.round%10 == 9)
	l.round++
	return err
}

// kill kills what this lane kills; of two, either first.
func (l *lane) kill(random *rand.Rand) error {
	first := random.IntN(2) == 0
	killed := false
	for _, kubo := range []bool{first, !first} {
		if kubo && l.kubo {
			killed = killed || l.k.cmd != nil
			l.k.kill()
		}
		if !kubo && l.agent {
			one, err := l.k.killAgent()
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
	l.k.kill()
	_, _ = l.k.killAgent()
	l.k.log.Close()
}

func (l *lane) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.things)
}

func (l *lane) acknowledge(t *thing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.round = l.round
	l.things = append(l.things, t)
}

func (l *lane) bytes(t *thing) []byte { return bytesOf(l.o.Seed, t.size, t.numbers...) }

func (l *lane) make(random *rand.Rand, worker, index uint64) (*thing, []byte) {
	size := 64 + random.IntN(4000) // so large that no two are the same
	if random.IntN(3) == 0 {
		size = 64 + random.IntN(1<<20)
	}
	lane := uint64(0)
	for _, c := range l.name {
		lane = lane*31 + uint64(c)
	}
	t := &thing{size: size, numbers: []uint64{lane<<32 | uint64(l.round), worker, index}, pinned: true}
	return t, l.bytes(t)
}

// add is `ipfs add`, in some of its shapes.
func (l *lane) add(random *rand.Rand, worker, index uint64) (err error) {
	t, data := l.make(random, worker, index)
	args := url.Values{"pin": {"true"}, "quieter": {"true"}, "progress": {"false"}}
	switch random.IntN(3) {
	case 0:
		args.Set("cid-version", "1")
	case 1:
		args.Set("chunker", "size-16384") // many blocks
	}
	if t.cid, err = l.k.add(data, args); err == nil {
		l.acknowledge(t)
	}
	return err
}

func (l *lane) importCAR(random *rand.Rand, worker, index uint64) error {
	t, data := l.make(random, worker, index)
	car, err := carOf(data)
	if err != nil {
		return err
	}
	if t.cid, err = l.k.importCAR(car); err == nil {
		l.acknowledge(t)
	}
	return err
}

// file writes into MFS; it is acknowledged once the root that has it is.
func (l *lane) file(random *rand.Rand, worker, index uint64) error {
	t, data := l.make(random, worker, index)
	t.mfs = fmt.Sprintf("/%d/%d", l.round, index)
	if _, err := l.k.post("files/write", url.Values{"arg": {t.mfs}, "create": {"true"}, "parents": {"true"}, "raw-leaves": {"true"}}, data); err != nil {
		return err
	}
	if _, err := l.k.post("files/flush", url.Values{"arg": {"/"}}, nil); err != nil {
		return err
	}
	l.acknowledge(t)
	return nil
}

// remove unpins a few of what was added, lets Kubo collect the garbage, and the node give the space back.
func (l *lane) remove(random *rand.Rand, _, index uint64) error {
	for range 3 {
		t := l.doomed(random)
		if t == nil {
			break
		}
		if _, err := l.k.post("pin/rm", url.Values{"arg": {t.cid}}, nil); err != nil {
			return err
		}
	}
	if _, err := l.k.collect(); err != nil {
		return err
	}
	if index%2 == 1 {
		// Fails while nobody serves; the next one will do.
		_ = exec.Command(l.o.Basalt, "reclaim", "--node", l.k.node()).Run()
	}
	return nil
}

// doomed takes a thing that is pinned, and says that it may be there or not from now on.
func (l *lane) doomed(random *rand.Rand) *thing {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range 10 {
		if len(l.things) == 0 {
			return nil
		}
		if t := l.things[random.IntN(len(l.things))]; t.pinned && t.mfs == "" {
			t.pinned = false
			return t
		}
	}
	return nil
}

func (l *lane) note(lost, wrong int, format string, args ...any) {
	l.lost += lost
	l.wrong += wrong
	if l.lost+l.wrong < 20 {
		l.o.say("%s: round %d: %s", l.name, l.round, fmt.Sprintf(format, args...))
	}
}

// check looks for what must be there: all of it, or what is new and some of the rest.
func (l *lane) check(all bool) error {
	ctx := context.Background()
	// The first call after a kill may be the one that starts the agent.
	if _, err := l.k.post("repo/stat", url.Values{"size-only": {"true"}}, nil); err != nil {
		return err
	}
	pins, err := l.k.pins()
	if err != nil {
		return err
	}
	node, err := l.k.view()
	if err != nil {
		return err
	}
	defer node.Close()
	random := l.draw("check")
	for _, t := range l.things {
		switch {
		case t.mfs != "":
			if all || t.round == l.round || random.IntN(8) == 0 {
				data, err := l.k.post("files/read", url.Values{"arg": {t.mfs}}, nil)
				if err != nil {
					l.note(1, 0, "%s of MFS: %v", t.mfs, err)
				} else if string(data) != string(l.bytes(t)) {
					l.note(0, 1, "%s of MFS has %d bytes that are not the %d written", t.mfs, len(data), t.size)
				}
			}
			continue
		case !t.pinned:
			continue
		case !pins[t.cid]:
			l.note(1, 0, "the pin of %s is lost", t.cid)
		}
		if !all && t.round != l.round && random.IntN(8) > 0 {
			continue
		}
		id, err := cid.Decode(t.cid)
		if err != nil {
			return err
		}
		data, err := read(ctx, node, id)
		if gone := (missing{}); errors.As(err, &gone) {
			l.note(1, 0, "%s: %v", t.cid, err)
		} else if err != nil {
			return err
		} else if string(data) != string(l.bytes(t)) {
			l.note(0, 1, "%s has %d bytes that are not the %d stored", t.cid, len(data), t.size)
		}
	}
	if err := l.counts(ctx, node); err != nil {
		return err
	}
	if all {
		l.verified++
		if out, err := exec.Command(l.o.Basalt, "verify", "--hash", "--node", l.k.node()).CombinedOutput(); err != nil {
			l.note(0, 1, "basalt verify: %v: %s", err, out)
		}
	}
	return nil
}

// counts compares the node's figures with what it lists. Kubo may still write bookkeeping of its own, but no blocks.
func (l *lane) counts(ctx context.Context, node ds.Datastore) error {
	results, err := node.Query(ctx, query.Query{Prefix: "/blocks", KeysOnly: true, ReturnsSizes: true})
	if err != nil {
		return err
	}
	blocks, bytes := uint64(0), uint64(0)
	for entry := range results.Next() {
		if entry.Error != nil {
			return entry.Error
		}
		blocks++
		bytes += uint64(entry.Size)
	}
	if err := results.Close(); err != nil {
		return err
	}
	st, err := l.k.status()
	if err != nil {
		return err
	}
	if st.Blocks != blocks || st.BlockBytes != bytes {
		l.note(0, 1, "the node counts %d blocks of %d bytes, and has %d of %d", st.Blocks, st.BlockBytes, blocks, bytes)
	}
	return nil
}
