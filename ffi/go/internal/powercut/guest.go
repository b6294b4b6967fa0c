package powercut

// The guest's side. Lines on stdout, one word first:
//
//	step WHAT             how far it is, for the log
//	dead WHY              the store does not open; nothing follows
//	block KEY SHA256 SIZE a block that is there; "block KEY error WHY" where it can't be read
//	meta KEY VALUE        other keys that are there
//	count BLOCKS BYTES    what the store counts
//	reported              that was all
//	begin                 writing begins
//	acked WRITER FROM TO  blocks with these indices (TO not included) are acknowledged
//	pinned WRITER N       metadata is acknowledged
//	flushing WRITER       a call begins that flushes, or may: metadata, or Sync
//	synced WRITER A P D   it has returned: before it began, blocks below A, metadata below P and deletions of blocks below D were acknowledged; a
//	                      number for each writer, separated by commas
//	tick MS               the guest's clock since it began, often
//	late MS               the longest that a timer was late
//	reclaimed SEGMENTS BYTES   what was given back so far

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	"basalt.dev/go/internal/kuboload"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/mount"
	"github.com/ipfs/go-datastore/query"
	flatfs "github.com/ipfs/go-ds-flatfs"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	guestDisk = "/dev/vda"
	guestRoot = "/chaos" // where the disk is mounted
	guestPool = "chaos"
	openMax   = 2 * time.Hour // the host is the one who loses patience: the clock of an emulated guest jumps by minutes when the machine is busy
)

var blocksPrefix = ds.NewKey("/blocks")

type guest struct {
	plan  Plan
	store ds.Batching
	count func(context.Context) (blocks, bytes uint64, err error) // nil where the store has no such figures
	admin basaltv1.AdminClient                                    // nil where the store has none
	kubo  *kuboload.Kubo
	added []addedFile // of a repo that is to be moved, on its disk
	say   sync.Mutex
}

// small makes what takes gigabytes happen within a few: segments fill, are compacted and recycled in each life.
var small = []string{"BASALT_STORE_SEGMENT_BYTES=1048576", "BASALT_STORE_COMPACT_DEAD_PERCENT=25"}

// line writes one line with one write, so that an acknowledgement is on its way when line returns.
func (g *guest) line(format string, args ...any) {
	g.say.Lock()
	defer g.say.Unlock()
	fmt.Fprintf(os.Stdout, format+"\n", args...)
}

// Guest does what the plan says, as root of a guest that may be destroyed. It ends only if the plan has it write nothing, or by an error.
func Guest(plan Plan) error {
	g := &guest{plan: plan}
	ctx := context.Background()
	if err := g.mount(); err != nil {
		g.line("dead %s", oneLine(err))
		return err
	}
	g.line("step %s is mounted", plan.FS)
	if err := g.open(ctx); err != nil {
		g.line("dead %s", oneLine(err))
		return err
	}
	g.line("step the store is open")
	if plan.Report {
		if err := g.report(ctx); err != nil {
			return err
		}
	}
	if plan.Write {
		g.line("begin")
		return g.write(ctx)
	}
	return nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (g *guest) mount() error {
	if err := os.MkdirAll(guestRoot, 0o755); err != nil {
		return err
	}
	switch {
	case g.plan.FS == "ext4" && g.plan.Make:
		return errors.Join(run("mke2fs", "-q", "-t", "ext4", guestDisk), run("mount", guestDisk, guestRoot))
	case g.plan.FS == "ext4":
		return run("mount", guestDisk, guestRoot)
	case g.plan.FS == "zfs" && g.plan.Make:
		// A partition: for a whole disk zpool wants udev.
		return errors.Join(
			run("sh", "-c", "echo ,, | sfdisk -q "+guestDisk),
			run("zpool", "create", "-f", "-o", "ashift=12", "-O", "compression=lz4", "-m", guestRoot, guestPool, guestDisk+"1"),
		)
	case g.plan.FS == "zfs":
		// -f: the pool was last used by a machine that has not let go of it.
		return run("zpool", "import", "-f", "-d", "/dev", guestPool)
	}
	return fmt.Errorf("no file system %q here; there are ext4 and zfs", g.plan.FS)
}

func (g *guest) open(ctx context.Context) error {
	switch g.plan.Store {
	case Basalt:
		return g.openBasalt(ctx)
	case Kubo:
		return g.openKubo()
	case Migration:
		return g.openMigration()
	default:
		return g.openFlatfs()
	}
}

func (g *guest) openBasalt(ctx context.Context) error {
	node := filepath.Join(guestRoot, "node")
	if g.plan.Make {
		if err := run(g.plan.Binary, "init", "--shards", "2", "--durability", g.plan.Durability, node); err != nil {
			return err
		}
	}
	id, err := autostart.NodeID(node)
	if err != nil {
		return err
	}
	sockets, err := autostart.DataSockets(node, id)
	if err != nil {
		return err
	}
	argv := []string{g.plan.Binary, "agent", "--node", node}
	if g.plan.Control {
		argv = append([]string{"/proc/self/exe", "nosync"}, argv...)
	}
	var log bytes.Buffer
	agent := exec.Command(argv[0], argv[1:]...)
	agent.Stdout, agent.Stderr = &log, &log
	agent.Env = append(os.Environ(), "BASALT_HTTP_LISTEN=127.0.0.1:0")
	agent.Env = append(agent.Env, small...)
	if err := agent.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	admin := filepath.Join(filepath.Dir(sockets[0]), "admin.sock")
	cc, err := grpc.NewClient("unix:"+admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	g.admin = basaltv1.NewAdminClient(cc)
	status := func(ctx context.Context) (*basaltv1.StatusResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return g.admin.Status(ctx, &basaltv1.StatusRequest{}, grpc.WaitForReady(true))
	}
	for deadline := time.Now().Add(openMax); ; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			return fmt.Errorf("the agent ended: %v: %s", err, log.Bytes())
		default:
		}
		// The socket of the life before is still there.
		if st, err := status(ctx); err == nil && st.Pid == uint64(agent.Process.Pid) {
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("the agent does not serve after %s: %w", openMax, err)
		}
	}
	g.count = func(ctx context.Context) (uint64, uint64, error) {
		st, err := status(ctx)
		return st.GetBlocks(), st.GetBlockBytes(), err
	}
	view, err := datastore.Open(ctx, datastore.Config{Sockets: sockets, NodeID: id, NodePath: node, Role: "root", Client: "chaos"})
	if err != nil {
		return fmt.Errorf("%w: %s", err, log.Bytes())
	}
	g.store = view
	return nil
}

// openFlatfs opens what `ipfs init` makes: Kubo 0.43's config has flatfs with "sync": false and leveldb, whose every write is synced.
func (g *guest) openFlatfs() error {
	shard, err := flatfs.ParseShardFunc("/repo/flatfs/shard/v1/next-to-last/2")
	if err != nil {
		return err
	}
	blocks, err := flatfs.CreateOrOpen(filepath.Join(guestRoot, "blocks"), shard, g.plan.Store == FlatfsSync)
	if err != nil {
		return err
	}
	rest, err := leveldb.NewDatastore(filepath.Join(guestRoot, "datastore"), nil)
	if err != nil {
		return err
	}
	if g.plan.Make {
		// A repo is mostly older than a power cut. Without this flatfs does not even open afterwards: it does not flush its own SHARDING.
		unix.Sync()
	}
	g.store = mount.New([]mount.Mount{{Prefix: blocksPrefix, Datastore: blocks}, {Prefix: ds.NewKey("/"), Datastore: rest}})
	return nil
}

// report says what is there, without knowing what should be.
func (g *guest) report(ctx context.Context) error {
	if g.plan.files() {
		return g.reportKubo(ctx)
	}
	results, err := g.store.Query(ctx, query.Query{KeysOnly: true})
	if err != nil {
		return err
	}
	defer results.Close()
	for result := range results.Next() {
		if result.Error != nil {
			return result.Error
		}
		key := ds.RawKey(result.Key)
		value, err := g.store.Get(ctx, key)
		switch {
		case !blocksPrefix.IsAncestorOf(key):
			if err != nil {
				value = []byte("error " + oneLine(err))
			}
			g.line("meta %s %s", key, value)
		case err != nil:
			g.line("block %s error %s", key, oneLine(err))
		default:
			g.line("block %s %x %d", key, sha256.Sum256(value), len(value))
		}
	}
	if g.count != nil {
		blocks, bytes, err := g.count(ctx)
		if err != nil {
			return err
		}
		g.line("count %d %d", blocks, bytes)
	}
	g.line("reported")
	return nil
}

// write writes until the power is cut.
func (g *guest) write(ctx context.Context) error {
	if g.plan.Store == Migration {
		go g.clock()
		return g.migrate()
	}
	failed := make(chan error, writers)
	var so sofar
	for w := range writers {
		go func() {
			switch g.plan.Store {
			case Basalt:
				failed <- g.writeBasalt(ctx, w, &so)
			case Kubo:
				failed <- g.addFiles(w)
			default:
				failed <- g.writeAsKubo(ctx, w)
			}
		}()
	}
	if g.plan.ours() {
		go g.clock()
		go g.reclaim(ctx)
	}
	return <-failed
}

// sofar is what a round has done, by writer: all below these numbers is acknowledged.
type sofar struct{ acked, pinned, deleted [writers]atomic.Int64 }

func list(all *[writers]atomic.Int64) string {
	var text []string
	for w := range all {
		text = append(text, fmt.Sprint(all[w].Load()))
	}
	return strings.Join(text, ",")
}

// clock says what time it is here, which is not the host's, and how late timers are, as the store's own may be.
func (g *guest) clock() {
	const every = 20 * time.Millisecond
	began, latest := time.Now(), time.Duration(0)
	for i := 0; ; i++ {
		before := time.Now()
		time.Sleep(every)
		if late := time.Since(before) - every; late > latest {
			latest = late
			g.line("late %d", late.Milliseconds())
		}
		if i%5 == 0 {
			g.line("tick %d", time.Since(began).Milliseconds())
		}
	}
}

// reclaim has the space of what was deleted given back, again and again: holes, compaction and recycling are under way when the power goes.
func (g *guest) reclaim(ctx context.Context) {
	segments, bytes := uint64(0), uint64(0)
	for {
		time.Sleep(time.Duration(300+rand.IntN(1500)) * time.Millisecond) // it flushes, and what is flushed no cut takes
		var answer *basaltv1.ReclaimResponse
		var err error
		if g.kubo != nil {
			err = g.kubo.Admin(func(ctx context.Context, admin basaltv1.AdminClient) (err error) {
				answer, err = admin.Reclaim(ctx, &basaltv1.ReclaimRequest{})
				return err
			})
		} else {
			answer, err = g.admin.Reclaim(ctx, &basaltv1.ReclaimRequest{})
		}
		if err != nil {
			g.line("step reclaim: %s", oneLine(err))
			return
		}
		if answer.Segments+answer.FreedBytes > 0 {
			segments += answer.Segments
			bytes += answer.FreedBytes
			g.line("reclaimed %d %d", segments, bytes)
		}
	}
}

// writeBasalt puts blocks alone and by batch, and metadata that stands for all that was acknowledged before; it deletes some again, and syncs
// now and then.
func (g *guest) writeBasalt(ctx context.Context, writer int, so *sofar) error {
	const pinEvery, syncEvery = 10, 70
	pins := 0
	for index := 0; ; {
		n := name{g.plan.Round, writer, index}
		next, err := g.put(ctx, n)
		if err != nil {
			return err
		}
		so.acked[writer].Store(int64(next))
		g.line("acked %d %d %d", writer, index, next)

		for i := index; i < next; i++ {
			passing := name{n.round, writer, i}
			if passing.passing() {
				if err := g.store.Put(ctx, ownPin(passing), nil); err != nil {
					return err
				}
			}
			// Kubo unpins, then gc deletes: the pin's end is durable before the block's may be.
			if old := (name{n.round, writer, i - later}); i >= later && old.fleeting() {
				digest := sha256.Sum256(content(g.plan.Seed, old))
				if old.passing() {
					if err := g.store.Delete(ctx, ownPin(old)); err != nil {
						return err
					}
				}
				if err := g.store.Delete(ctx, blocksPrefix.Child(blockKey(digest))); err != nil {
					return err
				}
			}
			so.deleted[writer].Store(int64(max(0, i+1-later)))
		}
		if index/pinEvery != next/pinEvery {
			var value strings.Builder
			for w := range so.acked {
				fmt.Fprintf(&value, "%d ", so.acked[w].Load())
			}
			g.line("flushing %d", writer)
			if err := g.store.Put(ctx, pinKey(n.round, writer, pins), []byte(value.String())); err != nil {
				return err
			}
			g.line("pinned %d %d", writer, pins)
			pins++
			so.pinned[writer].Store(int64(pins))
		}
		if shift := syncEvery / writers * writer; (index+shift)/syncEvery != (next+shift)/syncEvery {
			g.line("flushing %d", writer)
			before := fmt.Sprintf("%s %s %s", list(&so.acked), list(&so.pinned), list(&so.deleted))
			if err := g.store.Sync(ctx, ds.NewKey("/")); err != nil {
				return err
			}
			g.line("synced %d %s", writer, before)
		}
		index = next
	}
}

// put stores a block, or the batch that begins with it, and returns the index after.
func (g *guest) put(ctx context.Context, n name) (int, error) {
	size := n.batched()
	if size == 0 {
		data := content(g.plan.Seed, n)
		return n.index + 1, g.store.Put(ctx, blocksPrefix.Child(blockKey(sha256.Sum256(data))), data)
	}
	return n.index + size, g.batch(ctx, n, size)
}

func (g *guest) batch(ctx context.Context, n name, size int) error {
	batch, err := g.store.Batch(ctx)
	if err != nil {
		return err
	}
	for i := range size {
		data := content(g.plan.Seed, name{n.round, n.writer, n.index + i})
		if err := batch.Put(ctx, blocksPrefix.Child(blockKey(sha256.Sum256(data))), data); err != nil {
			return err
		}
	}
	return batch.Commit(ctx)
}

// writeAsKubo does what `ipfs add` does for a file of some blocks: a batch, Sync of the blocks, the pin. Only then it is acknowledged.
func (g *guest) writeAsKubo(ctx context.Context, writer int) error {
	const file = 5
	for pins := 0; ; pins++ {
		first := pins * file
		if err := g.batch(ctx, name{g.plan.Round, writer, first}, file); err != nil {
			return err
		}
		if err := g.store.Sync(ctx, blocksPrefix); err != nil {
			return err
		}
		var value strings.Builder
		for w := range writers {
			upTo := 0
			if w == writer {
				upTo = first + file
			}
			fmt.Fprintf(&value, "%d ", upTo)
		}
		if err := g.store.Put(ctx, pinKey(g.plan.Round, writer, pins), []byte(value.String())); err != nil {
			return err
		}
		g.line("acked %d %d %d", writer, first, first+file)
		g.line("pinned %d %d", writer, pins)
	}
}
