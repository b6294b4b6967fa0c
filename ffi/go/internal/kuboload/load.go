package kuboload

// What is stored, and the check that it is there. The process that has a Load is the checker: it holds what Kubo had acknowledged, outside of
// what is killed or restarted, and knows the bytes from the seed.

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"path"
	"sync"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// thing is a file that Kubo has acknowledged.
type thing struct {
	cid     string
	size    int
	numbers []uint64 // of its bytes
	pinned  bool     // false from the moment its removal is asked for: it may be there or not
	mfs     string   // its path, where it is in MFS
	round   int
}

// Load is what one Kubo was given.
type Load struct {
	Name   string // of the lane; with the seed it gives the bytes
	Seed   uint64
	Kubo   *Kubo
	Basalt string // the program
	Say    func(format string, args ...any)
	Round  int // now; only changed while nothing is stored

	Lost, Wrong int // found by Check so far
	Verified    int // how often everything was verified

	mu           sync.Mutex
	things       []*thing
	acknowledged int
}

// Draw gives the random numbers for one purpose in this round.
func (l *Load) Draw(purpose string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d %s", l.Name, l.Round, purpose)
	return rand.New(rand.NewPCG(l.Seed, h.Sum64()))
}

// Acknowledged says how many things Kubo has acknowledged.
func (l *Load) Acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acknowledged
}

func (l *Load) acknowledge(t *thing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.round = l.Round
	l.acknowledged++
	l.things = append(l.things, t)
}

func (l *Load) bytes(t *thing) []byte { return bytesOf(l.Seed, t.size, t.numbers...) }

func (l *Load) make(random *rand.Rand, worker, index uint64) (*thing, []byte) {
	size := 64 + random.IntN(4000) // so large that no two are the same
	if random.IntN(3) == 0 {
		size = 64 + random.IntN(1<<20)
	}
	lane := uint64(0)
	for _, c := range l.Name {
		lane = lane*31 + uint64(c)
	}
	t := &thing{size: size, numbers: []uint64{lane<<32 | uint64(l.Round), worker, index}, pinned: true}
	return t, l.bytes(t)
}

// Add is `ipfs add`, in some of its shapes.
func (l *Load) Add(random *rand.Rand, worker, index uint64) (err error) {
	t, data := l.make(random, worker, index)
	args := url.Values{"pin": {"true"}, "quieter": {"true"}, "progress": {"false"}}
	switch random.IntN(3) {
	case 0:
		args.Set("cid-version", "1")
	case 1:
		args.Set("chunker", "size-16384") // many blocks
	}
	if t.cid, err = l.Kubo.Add(data, args); err == nil {
		l.acknowledge(t)
	}
	return err
}

// ImportCAR is `ipfs dag import`.
func (l *Load) ImportCAR(random *rand.Rand, worker, index uint64) error {
	t, data := l.make(random, worker, index)
	car, err := carOf(data)
	if err != nil {
		return err
	}
	if t.cid, err = l.Kubo.ImportCAR(car); err == nil {
		l.acknowledge(t)
	}
	return err
}

// File writes into MFS; it is acknowledged once the root that has it is.
func (l *Load) File(random *rand.Rand, worker, index uint64) error {
	t, data := l.make(random, worker, index)
	t.mfs = fmt.Sprintf("/%d/%d", l.Round, index)
	if _, err := l.Kubo.Post("files/write", url.Values{"arg": {t.mfs}, "create": {"true"}, "parents": {"true"}, "raw-leaves": {"true"}}, data); err != nil {
		return err
	}
	if _, err := l.Kubo.Post("files/flush", url.Values{"arg": {"/"}}, nil); err != nil {
		return err
	}
	l.acknowledge(t)
	return nil
}

// Remove unpins a few of what was added, lets Kubo collect the garbage, and the node give the space back.
func (l *Load) Remove(random *rand.Rand, _, index uint64) error {
	for range 3 {
		t := l.doomed(random)
		if t == nil {
			break
		}
		if _, err := l.Kubo.Post("pin/rm", url.Values{"arg": {t.cid}}, nil); err != nil {
			return err
		}
	}
	if _, err := l.Kubo.Collect(); err != nil {
		return err
	}
	if index%2 == 1 {
		// Fails while nobody serves; the next one will do.
		_ = exec.Command(l.Basalt, "reclaim", "--node", l.Kubo.Node()).Run()
	}
	return nil
}

// doomed takes a thing that is pinned, and says that it may be there or not from now on.
func (l *Load) doomed(random *rand.Rand) *thing {
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

// Read is `ipfs cat`, or `ipfs files read`, of something that must be there.
func (l *Load) Read(random *rand.Rand, _, _ uint64) error {
	l.mu.Lock()
	var t *thing
	if len(l.things) > 0 {
		t = l.things[random.IntN(len(l.things))]
	}
	l.mu.Unlock()
	if t == nil {
		return nil
	}
	method, arg := "cat", t.cid
	if t.mfs != "" {
		method, arg = "files/read", t.mfs
	}
	data, err := l.Kubo.Post(method, url.Values{"arg": {arg}}, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !t.pinned:
	case err != nil:
		return err // nobody may answer just now; the check looks for what is lost
	case string(data) != string(l.bytes(t)):
		l.note(0, 1, "%s reads as %d bytes that are not the %d stored", arg, len(data), t.size)
	}
	return nil
}

// Live is how many bytes were stored and not removed.
func (l *Load) Live() (bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.things {
		if t.pinned {
			bytes += uint64(t.size)
		}
	}
	return bytes
}

// Trim unpins and removes the oldest until no more than max bytes are live, and whatever Kubo has stored without saying so before it died, and
// forgets what is removed. Nothing else may be stored meanwhile. Kubo's gc does the rest.
func (l *Load) Trim(max uint64) error {
	live := l.Live()
	l.mu.Lock()
	defer l.mu.Unlock()
	var kept []*thing
	pins, files, folders := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, t := range l.things {
		switch {
		case !t.pinned:
			continue
		case live > max:
			live -= uint64(t.size)
			t.pinned = false
			continue
		case t.mfs != "":
			files[t.mfs], folders[path.Dir(t.mfs)] = true, true
		default:
			pins[t.cid] = true
		}
		kept = append(kept, t)
	}
	l.things = kept
	pinned, err := l.Kubo.Pins()
	if err != nil {
		return err
	}
	for id := range pinned {
		if !pins[id] {
			if _, err := l.Kubo.Post("pin/rm", url.Values{"arg": {id}}, nil); err != nil {
				return err
			}
		}
	}
	remove := func(folder string, keep map[string]bool) error {
		names, err := l.Kubo.List(folder)
		if err != nil {
			return err
		}
		for _, name := range names {
			if at := path.Join(folder, name); !keep[at] {
				if _, err := l.Kubo.Post("files/rm", url.Values{"arg": {at}, "recursive": {"true"}, "force": {"true"}}, nil); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := remove("/", folders); err != nil {
		return err
	}
	for folder := range folders {
		if err := remove(folder, files); err != nil {
			return err
		}
	}
	_, err = l.Kubo.Post("files/flush", url.Values{"arg": {"/"}}, nil)
	return err
}

func (l *Load) note(lost, wrong int, format string, args ...any) {
	l.Lost += lost
	l.Wrong += wrong
	if l.Lost+l.Wrong < 20 {
		l.Say("%s: round %d: %s", l.Name, l.Round, fmt.Sprintf(format, args...))
	}
}

// Check looks for what must be there: all of it, or what is new and some of the rest.
func (l *Load) Check(all bool) error {
	ctx := context.Background()
	// The first call after a kill may be the one that starts the agent.
	if _, err := l.Kubo.Post("repo/stat", url.Values{"size-only": {"true"}}, nil); err != nil {
		return err
	}
	pins, err := l.Kubo.Pins()
	if err != nil {
		return err
	}
	node, err := l.Kubo.View()
	if err != nil {
		return err
	}
	defer node.Close()
	random := l.Draw("check")
	for _, t := range l.things {
		switch {
		case t.mfs != "" && t.pinned:
			if all || t.round == l.Round || random.IntN(8) == 0 {
				data, err := l.Kubo.Post("files/read", url.Values{"arg": {t.mfs}}, nil)
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
		if !all && t.round != l.Round && random.IntN(8) > 0 {
			continue
		}
		id, err := cid.Decode(t.cid)
		if err != nil {
			return err
		}
		data, err := ReadFile(ctx, node, id)
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
		l.Verified++
		if out, err := exec.Command(l.Basalt, "verify", "--hash", "--node", l.Kubo.Node()).CombinedOutput(); err != nil {
			l.note(0, 1, "basalt verify: %v: %s", err, out)
		}
	}
	return nil
}

// counts compares the node's figures with what it lists. Kubo may still write bookkeeping of its own, but no blocks.
func (l *Load) counts(ctx context.Context, node ds.Datastore) error {
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
	st, err := l.Kubo.Status()
	if err != nil {
		return err
	}
	if st.Blocks != blocks || st.BlockBytes != bytes {
		l.note(0, 1, "the node counts %d blocks of %d bytes, and has %d of %d", st.Blocks, st.BlockBytes, blocks, bytes)
	}
	return nil
}
