package fulldisk

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	"basalt.dev/go/internal/kuboload"
	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sys/unix"
)

const (
	guestDisk = "/dev/vda"
	pool      = "full"
	blockSize = 256 << 10
	noteMax   = 400 // a gc that fails says so for each block
	// Within this long after room was made, puts work again.
	again = 60 * time.Second
)

// settings of the nodes: a reserve that is enough for what the cases do, and small enough that filling takes seconds.
var settings = map[string]string{"BASALT_STORE_RESERVE_BYTES": "12 MiB", "BASALT_STORE_SEGMENT_BYTES": "16 MiB", "BASALT_HTTP_LISTEN": "127.0.0.1:0"}

type guest struct {
	plan       Plan
	ok, failed int
}

// Guest runs the plan's cases, as root of a guest that may be destroyed, or of a process with mounts of its own.
func Guest(plan Plan) error {
	g := &guest{plan: plan}
	for name, value := range settings {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for i, c := range plan.Cases {
		dir := filepath.Join(plan.Dir, c.Name)
		t := &trial{guest: g, Case: c, number: uint64(i), dir: dir, where: filepath.Join(dir, "disk")}
		fmt.Printf("case %s\n", c.Name)
		began := time.Now()
		t.check("it runs to its end", t.run())
		t.end()
		fmt.Printf("note %s %.0f s\n", c.Name, time.Since(began).Seconds())
	}
	fmt.Printf("done %d %d\n", g.ok, g.failed)
	return nil
}

// trial is one case.
type trial struct {
	*guest
	Case
	number uint64
	dir    string
	where  string // the file system under test

	k      *kuboload.Kubo
	view   *datastore.Datastore
	blocks map[ds.Key][32]byte // acknowledged, with the hash of their bytes
	next   uint64
	kept   string // a pinned file
	data   []byte // its bytes
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// check counts a line; it says whether it holds.
func (t *trial) check(what string, err error) bool {
	if err != nil {
		t.failed++
		fmt.Printf("FAILED %s %s: %s\n", t.Name, what, oneLine(err))
		return false
	}
	t.ok++
	fmt.Printf("ok %s %s\n", t.Name, what)
	return true
}

func (t *trial) note(format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	fmt.Printf("note %s %s\n", t.Name, text[:min(len(text), noteMax)])
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (t *trial) dataset() string {
	if t.FS == "zfs-pool" {
		return pool
	}
	return pool + "/node"
}

func (t *trial) mount() error {
	// What an earlier run left: a failed case's files stay until the next one.
	if err := errors.Join(os.RemoveAll(t.dir), os.MkdirAll(t.where, 0o700)); err != nil {
		return err
	}
	size := fmt.Sprintf("%dM", t.MiB)
	// A partition: for a whole disk zpool wants udev.
	partition := func(size string) error {
		return run("sh", "-c", fmt.Sprintf("echo ',%s' | sfdisk -q --wipe always %s", size, guestDisk))
	}
	switch t.FS {
	case "ext4":
		args := []string{"-q", "-F", "-t", "ext4", "-m", "0"}
		if t.How == "inodes" {
			args = append(args, "-N", "256")
		}
		if !t.plan.Native {
			return errors.Join(partition(size), run("mke2fs", append(args, t.device())...), run("mount", t.device(), t.where))
		}
		return errors.Join(run("truncate", "-s", size, t.device()), run("mke2fs", append(args, t.device())...), run("mount", "-o", "loop", t.device(), t.where))
	case "zfs-pool":
		return errors.Join(partition(size), run("zpool", "create", "-f", "-o", "ashift=12", "-O", "compression=lz4", "-m", t.where, pool, t.device()))
	case "zfs-quota":
		return errors.Join(partition(""),
			run("zpool", "create", "-f", "-o", "ashift=12", "-O", "compression=lz4", "-m", "none", pool, t.device()),
			run("zfs", "create", "-o", "mountpoint="+t.where, "-o", "quota="+size, t.dataset()),
			t.keepBack())
	}
	return fmt.Errorf("no file system %q", t.FS)
}

// keepBack makes the dataset that a node lifts when others take its headroom, where the case is about it.
func (t *trial) keepBack() error {
	if t.How != "reserve" {
		return nil
	}
	bytes := strconv.Itoa(reserveBytes)
	return run("zfs", "create", "-o", "canmount=off", "-o", "refreservation="+bytes, "-o", "basalt:reserve="+bytes, t.reserved())
}

func (t *trial) device() string {
	if t.plan.Native {
		return filepath.Join(t.dir, "image")
	}
	return guestDisk + "1"
}

// end takes everything away, whatever became of it.
func (t *trial) end() {
	if t.view != nil {
		t.view.Close()
	}
	if t.k != nil {
		t.k.Kill()
		_, _ = t.k.KillAgent()
		t.k.Close()
	}
	time.Sleep(100 * time.Millisecond) // a killed process lets go of its files a moment later
	if t.FS == "ext4" {
		t.check("the file system lets go", within(10*time.Second, func() error { return run("umount", t.where) }))
		t.check("the file system is sound", run("e2fsck", "-fn", t.device()))
		return
	}
	t.check("the pool lets go", run("zpool", "destroy", "-f", pool))
}

func (t *trial) run() error {
	if err := t.mount(); err != nil {
		return err
	}
	t.blocks = map[ds.Key][32]byte{}
	program := t.plan.IPFS
	if t.FFI {
		program = t.plan.IPFSwithN
	}
	// The node is on the small disk; Kubo's own few files are not, or it would be them that break first.
	if err := errors.Join(os.RemoveAll(filepath.Join(t.where, "lost+found")), os.MkdirAll(filepath.Join(t.dir, "repo"), 0o700),
		os.Symlink(t.where, filepath.Join(t.dir, "repo", "basalt"))); err != nil {
		return err
	}
	var err error
	if t.k, err = kuboload.Initialize(program, t.plan.Basalt, t.dir, "basalt"); err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	t.data = t.random(1 << 20)
	if t.kept, err = t.k.Add(t.data, nil); err != nil {
		return err
	}
	switch t.How {
	case "blocks":
		return t.full()
	case "snapshot":
		return t.snapshot()
	case "inodes":
		return t.inodes()
	case "other":
		return t.other()
	case "reserve":
		return t.reserve()
	}
	return fmt.Errorf("nothing fills a disk by %q", t.How)
}

func (t *trial) start() error {
	if err := errors.Join(t.k.Start(), t.k.Ready()); err != nil {
		return err
	}
	var err error
	t.view, err = t.k.View()
	return err
}

func (t *trial) random(size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], t.plan.Seed)
	binary.LittleEndian.PutUint64(key[8:], t.number)
	binary.LittleEndian.PutUint64(key[16:], t.next)
	t.next++
	data := make([]byte, size)
	rand.NewChaCha8(key).Read(data)
	return data
}

// put stores a block that nothing refers to.
func (t *trial) put(size int) error {
	data := t.random(size)
	digest := sha256.Sum256(data)
	hash, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		return err
	}
	key := ds.NewKey("/blocks").Child(dshelp.MultihashToDsKey(hash))
	if err := t.view.Put(context.Background(), key, data); err != nil {
		return err
	}
	t.blocks[key] = digest
	return nil
}

// fill puts blocks until the node refuses one; it returns the refusal.
func (t *trial) fill() (int, error) {
	for n := 0; n <= t.MiB<<20/blockSize; n++ {
		if err := t.put(blockSize); err != nil {
			return n, err
		}
	}
	return 0, nil
}

// refused judges the answer to a put on a full disk.
func (t *trial) refused(err error, words ...string) error {
	if !errors.Is(err, datastore.ErrNoSpace) {
		return fmt.Errorf("not NoSpace: %w", err)
	}
	for _, word := range append(words, "/repo/basalt/") {
		if !strings.Contains(err.Error(), word) {
			return fmt.Errorf("it does not say %q: %w", word, err)
		}
	}
	return nil
}

var byReserve = []string{"bytes available", "kept for deletes", "free space"}

// serves reads everything that was acknowledged, and changes what takes no room.
func (t *trial) serves(when string) {
	ctx := context.Background()
	t.check("Get gives every acknowledged block, right to the byte, "+when, func() error {
		for key, want := range t.blocks {
			data, err := t.view.Get(ctx, key)
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			if sha256.Sum256(data) != want {
				return fmt.Errorf("%s: other bytes", key)
			}
		}
		got, err := t.k.Post("cat", url.Values{"arg": {t.kept}}, nil)
		if err == nil && string(got) != string(t.data) {
			err = errors.New("the pinned file has other bytes")
		}
		return err
	}())
	t.check("Has says so, "+when, func() error {
		for key := range t.blocks {
			if has, err := t.view.Has(ctx, key); err != nil || !has {
				return fmt.Errorf("%s: %v %w", key, has, err)
			}
		}
		return nil
	}())
	t.check("count and bytes are exact, "+when, t.counts())
}

func (t *trial) counts() error {
	ctx := context.Background()
	results, err := t.view.Query(ctx, query.Query{Prefix: "/blocks", KeysOnly: true, ReturnsSizes: true})
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
	st, err := t.k.Status()
	if err == nil && (st.Blocks != blocks || st.BlockBytes != bytes) {
		err = fmt.Errorf("the node counts %d blocks of %d bytes, and has %d of %d", st.Blocks, st.BlockBytes, blocks, bytes)
	}
	return err
}

// metadata changes pins and MFS on a full disk, and sees the change.
func (t *trial) metadata() {
	t.check("pins come and go, MFS changes and flushes", func() error {
		if _, err := t.k.Post("pin/rm", url.Values{"arg": {t.kept}}, nil); err != nil {
			return err
		}
		if pins, err := t.k.Pins(); err != nil || pins[t.kept] {
			return fmt.Errorf("pinned still: %w", err)
		}
		if _, err := t.k.Post("pin/add", url.Values{"arg": {t.kept}}, nil); err != nil {
			return err
		}
		pins, err := t.k.Pins()
		if err == nil && !pins[t.kept] {
			err = errors.New("not pinned")
		}
		return err
	}())
}

// condition waits until the node's status has a condition that says the words.
func (t *trial) condition(name string, words ...string) error {
	return within(again, func() error {
		st, err := t.k.Status()
		if err != nil {
			return err
		}
		for _, condition := range st.Conditions {
			if condition.Name == name && said(condition, words) {
				return nil
			}
		}
		return fmt.Errorf("no condition %q with %q among %v", name, words, st.Conditions)
	})
}

func said(condition *basaltv1.StatusResponse_Condition, words []string) bool {
	for _, word := range words {
		if !strings.Contains(condition.Message, word) {
			return false
		}
	}
	return true
}

func within(limit time.Duration, f func() error) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// collect lets Kubo collect everything that is not pinned.
func (t *trial) collect() error {
	removed, err := t.k.Collect()
	if err == nil && removed < len(t.blocks) {
		err = fmt.Errorf("%d blocks removed of %d", removed, len(t.blocks))
	}
	if err != nil {
		return err
	}
	clear(t.blocks)
	return nil
}

// works waits until a put of a file through Kubo and half of what went in at first go in again.
func (t *trial) works(blocks int) error {
	began := time.Now()
	err := within(again, func() error {
		_, err := t.k.Add(t.random(256<<10), url.Values{"pin": {"false"}})
		return err
	})
	if err != nil {
		return err
	}
	t.note("puts work again after %.1f s", time.Since(began).Seconds())
	for n := range blocks / 2 {
		if err := within(again, func() error { return t.put(blockSize) }); err != nil {
			return fmt.Errorf("block %d of %d: %w", n, blocks/2, err)
		}
	}
	return nil
}

func (t *trial) room() (uint64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(t.where, &st)
	return st.Bavail * uint64(st.Frsize), err
}

// full is a disk that blocks have filled: cycles in one process, then a restart and a kill while it is full.
func (t *trial) full() error {
	filled, rooms := []int{}, []uint64{}
	fill := func() bool {
		n, refusal := t.fill()
		filled = append(filled, n)
		t.note("%d blocks of %d KiB went in, then: %v", n, blockSize>>10, refusal)
		return t.check("Put says NoSpace, where, and what to do", t.refused(refusal, byReserve...))
	}
	emptied := func(when string) error {
		if !t.check("gc removes all garbage, "+when, t.collect()) || !t.check("Put works again after gc, "+when, t.works(filled[0])) {
			return errors.New("the disk does not become free again")
		}
		t.check("count and bytes are exact after gc, "+when, t.counts())
		return nil
	}
	cycles := 3
	if t.Short {
		cycles = 1
	}
	for cycle := range cycles {
		if !fill() {
			return errors.New("the disk does not become full")
		}
		if cycle == 0 {
			t.serves("on the full disk")
			t.metadata()
			t.check("status says that there is no space", t.condition("no-space"))
			_, err := t.k.Add(t.random(1<<20), nil)
			t.check("ipfs add is refused in words", words(err, byReserve...))
			_, err = t.k.Add(t.data, nil)
			t.check("ipfs add of what is there succeeds", err)
			_, err = t.fill()
			t.check("Put says NoSpace again", t.refused(err, byReserve...))
		}
		if err := emptied(fmt.Sprintf("cycle %d without a restart", cycle+1)); err != nil {
			return err
		}
		// What the works check has put goes too, so that each cycle begins alike.
		if err := t.collect(); err != nil {
			return err
		}
		room := uint64(0)
		t.check("space comes back", within(again, func() error {
			var err error
			if room, err = t.room(); err == nil && len(rooms) > 0 && room+16<<20 < rooms[0] {
				err = fmt.Errorf("%d bytes are free, %d were after the first cycle", room, rooms[0])
			}
			return err
		}))
		rooms = append(rooms, room)
	}
	t.note("blocks that went in, by cycle: %v; bytes free after gc: %v", filled, rooms)
	if last := filled[len(filled)-1]; last*10 < filled[0]*8 {
		t.check("as much goes in at last as at first", fmt.Errorf("%d blocks at first, %d at last", filled[0], last))
	}
	ways := []string{"a clean restart", "kill -9"}
	if t.Short {
		ways = nil
	}
	for _, way := range ways {
		if !fill() {
			return errors.New("the disk does not become full")
		}
		t.check("the node ends by "+way+" on the full disk", t.endNode(way == "kill -9"))
		if err := t.start(); !t.check("Kubo and node start on the full disk after "+way, err) {
			return errors.New("it does not start")
		}
		t.serves("on the full disk after " + way)
		if err := emptied("after " + way); err != nil {
			return err
		}
		if err := t.collect(); err != nil {
			return err
		}
	}
	t.check("basalt verify finds nothing wrong", run(t.plan.Basalt, "verify", "--hash", "--node", t.k.Node()))
	return nil
}

func (t *trial) endNode(kill bool) error {
	t.view.Close()
	t.view = nil
	if kill {
		t.k.Kill()
		_, err := t.k.KillAgent()
		return err
	}
	if err := t.k.Stop(); err != nil {
		return err
	}
	_, err := t.k.StopAgent()
	return err
}

func words(err error, words ...string) error {
	if err == nil {
		return errors.New("it succeeded")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			return fmt.Errorf("it does not say %q: %w", word, err)
		}
	}
	return nil
}

// snapshot is a quota whose space a snapshot holds: gc gives nothing back until the snapshot goes.
func (t *trial) snapshot() error {
	n, refusal := t.fill()
	t.note("%d blocks of %d KiB went in, then: %v", n, blockSize>>10, refusal)
	if !t.check("Put says NoSpace", t.refused(refusal, byReserve...)) {
		return errors.New("the disk does not become full")
	}
	held := t.dataset() + "@held"
	if err := run("zfs", "snapshot", held); err != nil {
		return err
	}
	t.serves("under a snapshot on the full disk")
	t.check("gc removes all garbage under the snapshot", t.collect())
	var last error
	t.check("Put says NoSpace and that the snapshot holds the space", within(again, func() error {
		last = t.put(blockSize)
		return t.refused(last, append([]string{"snapshots of " + t.dataset() + " hold ", held}, byReserve...)...)
	}))
	t.note("%v", last)
	t.check("status says so too", t.condition("no-space", "snapshots of "+t.dataset()+" hold ", held))
	t.serves("after gc under the snapshot")
	t.metadata()
	if !t.Short {
		t.check("the node ends by a clean restart under the snapshot", t.endNode(false))
		if err := t.start(); !t.check("Kubo and node start under the snapshot", err) {
			return errors.New("it does not start")
		}
		t.serves("after a restart under the snapshot")
		t.check("Put says NoSpace still", t.refused(t.put(blockSize), byReserve...))
	}
	if err := run("zfs", "destroy", held); err != nil {
		return err
	}
	if !t.check("Put works again once the snapshot is gone, without a restart", t.works(n)) {
		return errors.New("the space does not come back")
	}
	t.check("count and bytes are exact", t.counts())
	t.check("basalt verify finds nothing wrong", run(t.plan.Basalt, "verify", "--hash", "--node", t.k.Node()))
	return nil
}

// inodes is a disk with room for bytes and none for files, which another program made.
func (t *trial) inodes() error {
	others := filepath.Join(t.where, "of another program")
	if err := os.Mkdir(others, 0o700); err != nil {
		return err
	}
	made := 0
	for ; ; made++ {
		if err := os.WriteFile(filepath.Join(others, fmt.Sprint(made)), nil, 0o600); err != nil {
			t.note("another program made %d files, then: %v", made, err)
			break
		}
	}
	n, refusal := t.fill()
	t.note("%d blocks of %d KiB went in, then: %v", n, blockSize>>10, refusal)
	if !t.check("Put says NoSpace once it needs a file", t.refused(refusal)) {
		return errors.New("the disk does not become full")
	}
	t.serves("without an inode")
	t.check("status says that there are no inodes", t.condition("no-inodes"))
	// To give space back the index wants a file, so gc ends with an error; the blocks are gone all the same.
	_, err := t.k.Collect()
	t.note("gc without an inode: %v", err)
	t.check("gc removes all garbage, without an inode", t.gone())
	clear(t.blocks)
	t.endures("without an inode", func() error { return os.RemoveAll(others) }, n)
	return nil
}

// other is a disk that another program has filled to its last byte.
func (t *trial) other() error {
	for range 64 {
		if err := t.put(blockSize); err != nil {
			return err
		}
	}
	file := filepath.Join(t.where, "of another program")
	if err := t.take(file); err != nil {
		return err
	}
	n, refusal := t.fill()
	t.note("%d blocks of %d KiB went in, then: %v", n, blockSize>>10, refusal)
	if !t.check("Put says NoSpace", t.refused(refusal)) {
		return errors.New("the disk does not become full")
	}
	t.serves("on a disk full to the last byte")
	t.check("status says that there is no space", t.condition("no-space"))
	t.endures("on a disk full to the last byte", func() error { return os.Remove(file) }, 64)
	return nil
}

const reserveBytes = 16 << 20

func (t *trial) reserved() string { return t.dataset() + "/reserve" }

// isLifted waits until what is kept back is lifted, or kept back again.
func (t *trial) isLifted(want bool) error {
	return within(40*time.Second, func() error {
		out, err := exec.Command("zfs", "get", "-Hp", "-o", "value", "refreservation", t.reserved()).Output()
		if err != nil {
			return err
		}
		bytes, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
		if lifted := err == nil && bytes == 0 || strings.TrimSpace(string(out)) == "none"; lifted != want {
			return fmt.Errorf("refreservation is %s", out)
		}
		return nil
	})
}

// reserve is a disk that another program has filled to its last byte, where a dataset keeps space back for deletes.
func (t *trial) reserve() error {
	for range 64 {
		if err := t.put(blockSize); err != nil {
			return err
		}
	}
	file := filepath.Join(t.where, "of another program")
	if err := t.take(file); err != nil {
		return err
	}
	_, refusal := t.fill()
	t.check("Put says NoSpace", t.refused(refusal))
	const when = "on a disk that another program has filled"
	t.serves(when)
	t.check("nothing is lifted for puts", t.isLifted(false))
	t.check("gc removes all garbage, "+when, t.collect())
	t.check("what is kept back is lifted", t.isLifted(true))
	t.check("flush and reclaim work, "+when,
		errors.Join(run(t.plan.Basalt, "flush", "--node", t.k.Node()), run(t.plan.Basalt, "reclaim", "--node", t.k.Node())))
	if err := os.Remove(file); !t.check("the other program lets go", err) {
		return err
	}
	t.check("Put works again, without a restart", t.works(64))
	t.check("space is kept back again", t.isLifted(false))
	t.check("count and bytes are exact", t.counts())
	t.check("basalt verify finds nothing wrong", run(t.plan.Basalt, "verify", "--hash", "--node", t.k.Node()))
	return nil
}

// take makes a file of all that is left.
func (t *trial) take(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	written := 0
	for _, size := range []int{1 << 20, 4096, 512} {
		for tries := 0; tries < 3; tries++ {
			for {
				n, err := file.Write(t.random(size))
				written += n
				if err != nil {
					_ = file.Sync() // what ZFS has free it knows once it has written
					break
				}
			}
		}
	}
	t.note("another program wrote %.1f MiB", float64(written)/(1<<20))
	return nil
}

// endures is what a disk with nothing left still owes: nothing acknowledged is lost whatever is tried, and all works again, without a restart, once there is room.
func (t *trial) endures(when string, free func() error, blocks int) {
	removed, err := t.k.Collect()
	t.note("gc %s: %d removed, %v", when, removed, err)
	if err == nil {
		clear(t.blocks)
	} else {
		// Some may be gone: which, the node says.
		t.check("what gc has not removed is whole", t.whole())
	}
	out, err := exec.Command(t.plan.Basalt, "flush", "--node", t.k.Node()).CombinedOutput()
	t.note("basalt flush %s: %v %s", when, err, strings.TrimSpace(string(out)))
	out, err = exec.Command(t.plan.Basalt, "reclaim", "--node", t.k.Node()).CombinedOutput()
	t.note("basalt reclaim %s: %v %s", when, err, strings.TrimSpace(string(out)))
	time.Sleep(3 * time.Second) // so that background work meets it too
	t.serves(when + ", after gc, flush and reclaim")
	if err := free(); !t.check("the other program lets go", err) {
		return
	}
	t.check("Put works again, without a restart", t.works(blocks))
	// An index that failed is opened anew once a second.
	t.check("flush and reclaim work again", within(10*time.Second, func() error {
		return errors.Join(run(t.plan.Basalt, "flush", "--node", t.k.Node()), run(t.plan.Basalt, "reclaim", "--node", t.k.Node()))
	}))
	t.check("gc works again", t.collect())
	t.check("count and bytes are exact", t.counts())
	t.check("basalt verify finds nothing wrong", run(t.plan.Basalt, "verify", "--hash", "--node", t.k.Node()))
}

// gone is whether the node has none of the blocks any more.
func (t *trial) gone() error {
	for key := range t.blocks {
		if has, err := t.view.Has(context.Background(), key); err != nil || has {
			return fmt.Errorf("%s is still there (%w)", key, err)
		}
	}
	return nil
}

// whole takes what is gone off the list, and reads the rest.
func (t *trial) whole() error {
	for key, want := range t.blocks {
		data, err := t.view.Get(context.Background(), key)
		switch {
		case errors.Is(err, ds.ErrNotFound):
			delete(t.blocks, key)
		case err != nil:
			return err
		case sha256.Sum256(data) != want:
			return fmt.Errorf("%s: other bytes", key)
		}
	}
	return nil
}
