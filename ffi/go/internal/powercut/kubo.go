package powercut

// The guest's side of a lane with a real Kubo. Further lines:
//
//	adding WRITER INDEX         `ipfs add` of a file begins
//	added WRITER INDEX CID      it has returned
//	unpinning WRITER INDEX      the file may go from now on
//	file CID SHA256 SIZE        a pinned file that reads back; "file CID error WHY" where it doesn't
//	listed BLOCKS BYTES         what the node enumerates; each block was read and hashed
//	rotten KEY WHY              one that can't be read or has another hash

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"basalt.dev/go/internal/kuboload"
	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"golang.org/x/sys/unix"
)

func (g *guest) openKubo() error {
	dir := filepath.Join(guestRoot, "kubo")
	program, basalt := filepath.Join(filepath.Dir(g.plan.Binary), "ipfs"), g.plan.Binary
	var before []string
	if g.plan.Control {
		before = []string{"/proc/self/exe", "nosync"}
	}
	var k *kuboload.Kubo
	var err error
	if g.plan.Make {
		for range startsMax {
			if k, err = kuboload.Initialize(program, basalt, dir, "basalt", small...); err == nil {
				break
			}
			g.line("step the repo is not made: %s", oneLine(err))
			os.RemoveAll(dir)
		}
	} else {
		k, err = kuboload.Open(program, basalt, dir, small...)
	}
	if err != nil {
		return err
	}
	k.Before, k.Patience = before, openMax
	if g.plan.Make && g.plan.Control {
		// The agent that `ipfs init` has started would serve on, with flushes.
		if _, err := k.KillAgent(); err != nil {
			return err
		}
	}
	if g.plan.Make {
		// A repo is mostly older than a power cut, and Kubo flushes none of the files that `ipfs init` makes.
		unix.Sync()
	}
	g.kubo = k
	// Again where it ends, as an operator's systemd does: Kubo waits half a minute for its agent, and to an emulated guest whose clock jumps that
	// may be a moment.
	for range startsMax {
		if err = errors.Join(k.Start(), k.Ready()); err == nil {
			return nil
		}
		g.line("step Kubo has not come up: %s", oneLine(err))
	}
	return err
}

const startsMax = 6

// addFiles adds files, unpins some again, and has Kubo collect them.
func (g *guest) addFiles(writer int) error {
	var ids []string
	for index := 0; ; index++ {
		n := name{g.plan.Round, writer, index}
		args := url.Values{"pin": {"true"}, "quieter": {"true"}, "progress": {"false"}}
		if index%2 == 0 {
			args.Set("cid-version", "1")
		}
		if index%3 == 0 {
			args.Set("chunker", "size-16384") // many blocks
		}
		g.line("adding %d %d", writer, index)
		id, err := g.kubo.Add(content(g.plan.Seed, n), args)
		if err != nil {
			return err
		}
		g.line("added %d %d %s", writer, index, id)
		ids = append(ids, id)
		if old := (name{n.round, writer, index - 2}); index >= 2 && old.fleeting() {
			g.line("unpinning %d %d", writer, old.index)
			if _, err := g.kubo.Post("pin/rm", url.Values{"arg": {ids[old.index]}}, nil); err != nil {
				return err
			}
		}
		if writer == 0 && index%3 == 2 {
			if _, err := g.kubo.Collect(); err != nil {
				return err
			}
		}
	}
}

// reportKubo says which pins there are and whether what they stand for reads back, block by block from the node, past Kubo's caches.
func (g *guest) reportKubo(ctx context.Context) error {
	pins, err := g.kubo.Pins()
	if err != nil {
		return err
	}
	view, err := g.kubo.View()
	if err != nil {
		return err
	}
	defer view.Close()
	for pin := range pins {
		id, err := cid.Decode(pin)
		if err != nil {
			return err
		}
		data, err := kuboload.ReadFile(ctx, view, id)
		if err != nil {
			g.line("file %s error %s", pin, oneLine(err))
			continue
		}
		g.line("file %s %x %d", pin, sha256.Sum256(data), len(data))
	}
	results, err := view.Query(ctx, query.Query{Prefix: "/blocks", KeysOnly: true})
	if err != nil {
		return err
	}
	defer results.Close()
	blocks, bytes := 0, 0
	for result := range results.Next() {
		if result.Error != nil {
			return result.Error
		}
		blocks++
		value, err := view.Get(ctx, ds.RawKey(result.Key))
		bytes += len(value)
		if err == nil {
			err = hashed(result.Key, value)
		}
		if err != nil {
			g.line("rotten %s %s", result.Key, oneLine(err))
		}
	}
	st, err := g.kubo.Status()
	if err != nil {
		return err
	}
	g.line("listed %d %d", blocks, bytes)
	g.line("count %d %d", st.Blocks, st.BlockBytes)
	g.line("reported")
	return nil
}

// hashed says whether a block is what its key names.
func hashed(key string, value []byte) error {
	mh, err := dshelp.DsKeyToMultihash(ds.NewKey(strings.TrimPrefix(key, blocksPrefix.String())))
	if err != nil {
		return err
	}
	id := cid.NewCidV1(cid.Raw, mh)
	again, err := id.Prefix().Sum(value)
	if err == nil && !again.Equals(id) {
		err = fmt.Errorf("its %d bytes have another hash", len(value))
	}
	return err
}
