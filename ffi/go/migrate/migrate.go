// Package migrate moves a Kubo repo, with all it holds, from the datastore that its config names to a Basalt node, and back.
//
// The order of things, so that a kill at any point leaves a repo that works or an error that says how to go on:
//
//  1. State file: copying. A node is made in the repo's folder `basalt`, marked as migrating: its agent serves nobody but this.
//  2. Every key is copied; blocks are hashed on the way. Then everything is read back from the node and compared, and the pins are
//     listed over both stores with Kubo's own pinner. Until here the repo can be used as before between two runs: every run goes over
//     all keys again, and copies what is missing.
//  3. Copies of the old config and datastore_spec are put aside. State file: switching. Then config and datastore_spec get the new
//     Spec. Kubo refuses a repo in which only one of them has it. Where both are found old, Kubo may have run since, and it goes on at 2.
//  4. The mark is taken off the node, last of all: only now can Kubo change what is in it. State file: done.
//
// The old store is only read. A rollback goes the same way back: the node is marked first, then config and datastore_spec get the old
// Spec. What only the node has is listed before, and stays there.
package migrate

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/plugin"
	"basalt.dev/go/profile"
	ds "github.com/ipfs/go-datastore"
	levelds "github.com/ipfs/go-ds-leveldb"
	kuborepo "github.com/ipfs/kubo/repo"
	"golang.org/x/sys/unix"
)

// Options say what to migrate.
type Options struct {
	Repo        string
	Profile     string // profile.Basalt or profile.Blocks; empty: the one that was begun with, else profile.Basalt
	SkipCorrupt bool   // leave blocks out that are bad in the old store, instead of stopping
	Yes         bool   // roll back though the node has blocks or pins that the old store lacks
	Report      Reporter
	// Available says how many bytes there is room for at a folder; nil asks the file system.
	Available func(path string) (uint64, error)
}

// CorruptError says which blocks of the old store are bad. All others are in the node by then.
type CorruptError struct{ Bad []Bad }

func (e *CorruptError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%d blocks of the old store are corrupt; the repo still uses it:\n", len(e.Bad))
	for i, bad := range e.Bad {
		if i == 20 {
			fmt.Fprintf(&s, "  and %d more (all of them with --json)\n", len(e.Bad)-i)
			break
		}
		fmt.Fprintf(&s, "  %s: %s\n", bad.CID, bad.Reason)
	}
	s.WriteString("Mend them (`ipfs repo verify --heal`, or `ipfs block rm CID` and fetch them again) and run basalt-migrate again, " +
		"or leave them out with --skip-corrupt")
	return s.String()
}

// MissedError says what only the node has.
type MissedError struct{ Missed *Missed }

func (e *MissedError) Error() string {
	var s strings.Builder
	s.WriteString("since the migration the repo got what the old store does not have:\n")
	m := e.Missed
	list := func(what string, n int, all []string) {
		if n == 0 {
			return
		}
		fmt.Fprintf(&s, "  %d %s: %s", n, what, strings.Join(all[:min(len(all), 5)], ", "))
		if n > 5 {
			s.WriteString(", ...")
		}
		s.WriteString("\n")
	}
	list("blocks", m.Blocks, m.CIDs)
	list("pins", len(m.Pins), m.Pins)
	list("names", len(m.Names), m.Names)
	if m.MFSRoot != "" {
		fmt.Fprintf(&s, "  MFS has changed; its root is %s now\n", m.MFSRoot)
	}
	s.WriteString("After a rollback they are missing from the repo (they stay in the node's folder). `ipfs dag export` saves what is worth it; " +
		"--yes rolls back all the same")
	return s.String()
}

const missedMax = 1000

type run struct {
	Options
	repo *repo
	st   *state
	res  Result
}

// begin takes the repo and looks where an earlier run has left it.
func begin(o Options) (*run, error) {
	r, err := openRepo(o.Repo)
	if err != nil {
		return nil, err
	}
	m := &run{Options: o, repo: r}
	if m.Available == nil {
		m.Available = available
	}
	if m.st, err = readState(r.path); err != nil {
		return nil, errors.Join(err, r.close())
	}
	m.res = Result{Repo: r.path, Node: r.node()}
	return m, nil
}

type place int

const (
	old place = iota // config and datastore_spec both
	mixed
	current
	foreign
)

// where says which store config and datastore_spec name. A spec that is none of the state's is returned as foreign.
func (m *run) where() (place, *spec, error) {
	config, err := m.repo.configSpec()
	if err != nil {
		return foreign, nil, err
	}
	disk, err := m.repo.diskSpec()
	if err != nil {
		return foreign, nil, err
	}
	if m.st != nil && m.st.NewDisk != "" {
		a, b := config.disk == m.st.NewDisk, disk == m.st.NewDisk
		switch {
		case a && b:
			return current, config, nil
		case (a || config.disk == m.st.OldDisk) && (b || disk == m.st.OldDisk) && a != b:
			return mixed, config, nil
		}
	}
	if config.disk != disk {
		return foreign, config, fmt.Errorf("Datastore.Spec in config is of another store than %s says:\n  %s\n  %s\nPut back the one that was changed "+
			"(`ls %s*`): Kubo would refuse this repo as well", m.repo.file(specFile), config.disk, disk, m.repo.file(configFile))
	}
	if m.st != nil && disk == m.st.OldDisk {
		return old, config, nil
	}
	return foreign, config, nil
}

// Migrate moves a repo to a node, or completes that.
func Migrate(ctx context.Context, o Options) (res Result, err error) {
	m, err := begin(o)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, m.repo.close()) }()
	at, config, err := m.where()
	if err != nil {
		return m.res, err
	}
	if m.st == nil || at == foreign {
		if kind := profile.Kind(config.params); kind != "" {
			return m.res, fmt.Errorf("%s is on Basalt already (profile %s)", m.repo.path, kind)
		}
	}
	if m.st != nil && at == current && (m.st.Phase == switching || m.st.Phase == rollingBack || m.st.Phase == done) {
		// Both files are written, so Kubo may have used the node: it is not filled again. What was left is the mark.
		outcome := "already migrated"
		if m.st.Phase != done {
			outcome = "migrated"
		}
		return m.finish(ctx, outcome)
	}
	if at == current {
		return m.res, fmt.Errorf("%s names the node of %s, but %s says %q: restore one of them from a backup", m.repo.file(configFile),
			m.repo.node(), m.repo.file(StateFile), m.st.Phase)
	}
	if at == old && m.st.Phase == done {
		return m.res, fmt.Errorf("config and datastore_spec of %s were put back by hand after it was migrated. Run `basalt-migrate %s --rollback` "+
			"first: it says what only the node has, which migrating again would replace", m.repo.path, m.repo.path)
	}
	if at == mixed {
		switch m.st.Phase {
		case switching, done:
			return m.switchOver(ctx, "migrated") // Kubo can't have used the repo since: the node has everything
		case rollingBack: // completed, and begun anew from there
		default:
			return m.res, fmt.Errorf("only one of %s and %s in %s names the node, though %s says %q: put back the one that was changed", configFile,
				specFile, m.repo.path, StateFile, m.st.Phase)
		}
		if err := m.switchBack(ctx); err != nil {
			return m.res, err
		}
		if config, err = parseSpec(m.st.OldSpec); err != nil {
			return m.res, err
		}
	}
	if err := m.prepare(ctx, config); err != nil {
		return m.res, err
	}
	if err := m.fill(ctx, config); err != nil {
		return m.res, err
	}
	if err := m.keep(); err != nil {
		return m.res, err
	}
	return m.switchOver(ctx, "migrated")
}

// prepare makes the node, or takes the one that an earlier run made, and marks it.
func (m *run) prepare(ctx context.Context, config *spec) error {
	if m.Profile == "" {
		m.Profile = profile.Basalt
		if m.st != nil {
			m.Profile = m.st.Profile
		}
	}
	durability := map[string]string{profile.Basalt: "ordered", profile.Blocks: "strict"}[m.Profile]
	if durability == "" {
		return fmt.Errorf("unknown profile %q: it is %s or %s", m.Profile, profile.Basalt, profile.Blocks)
	}
	node := m.repo.node()
	if m.st == nil {
		for _, folder := range []string{node, m.repo.file(RestFolder)} {
			entries, err := os.ReadDir(folder)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			// A file system of its own may be mounted there for the node.
			entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "lost+found" })
			if len(entries) > 0 {
				return fmt.Errorf("%s is there already, and no migration of this repo made it: move it away", folder)
			}
		}
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails, says crypto/rand
		m.st = &state{NodeID: hex.EncodeToString(id), Profile: m.Profile}
	}
	if m.st.Profile != m.Profile {
		return fmt.Errorf("the migration of %s was begun with profile %s, and its node was made for that: go on with --profile %s, or remove %s "+
			"and %s to begin anew", m.repo.path, m.st.Profile, m.st.Profile, m.repo.file(StateFile), node)
	}
	id, err := autostart.NodeID(node)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if made && id != m.st.NodeID {
		return fmt.Errorf("%s is node %s, but the migration that %s is about made node %s: move the folder away, or put back the right one",
			node, id, m.repo.file(StateFile), m.st.NodeID)
	}
	if !made {
		if err := m.room(ctx, config, 0); err != nil {
			return err
		}
	}
	next, err := newSpec(m.Profile, m.st.NodeID)
	if err != nil {
		return err
	}
	m.st.Phase, m.st.Skipped = copying, nil
	m.st.OldSpec, m.st.OldDisk = config.raw, config.disk
	m.st.NewSpec, m.st.NewDisk = next.raw, next.disk
	if err := m.st.write(m.repo.path); err != nil {
		return err
	}
	reached("begun")
	if made {
		err = m.mark(ctx, "migrating")
	} else {
		err = autostart.Init(ctx, node, m.st.NodeID, durability, "--migrating")
	}
	if err != nil {
		return err
	}
	reached("node-made")
	return nil
}

// fill copies and verifies.
func (m *run) fill(ctx context.Context, config *spec) (err error) {
	from, err := m.repo.open(config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	node, err := m.view(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	if there, err := node.DiskUsage(ctx); err != nil {
		return err
	} else if err := m.roomFor(ctx, from, there); err != nil {
		return err
	}
	work := &mirror{from: from, node: node, report: m.Report}
	if m.Profile == profile.Blocks {
		rest, err := levelds.NewDatastore(m.repo.file(RestFolder), nil)
		if err != nil {
			return fmt.Errorf("open %s: %w", m.repo.file(RestFolder), err)
		}
		defer func() { err = errors.Join(err, rest.Close()) }()
		work.rest = rest
	}
	if err := work.run(ctx); err != nil {
		return err
	}
	m.res.Blocks, m.res.BlockBytes, m.res.Keys = work.blocks.Load(), work.blockBytes.Load(), work.keys.Load()
	m.res.CopiedBlocks, m.res.CopiedKeys = work.copiedBlocks.Load(), work.copiedKeys.Load()
	m.res.Skipped = work.badOnes()
	if hidden := work.hidden.Load(); hidden > 0 {
		m.Report.Note(fmt.Sprintf("%d keys of the old store can't be reached by Kubo, because another mount lies over them; they were left out", hidden))
	}
	if len(m.res.Skipped) > 0 && !m.SkipCorrupt {
		return &CorruptError{m.res.Skipped}
	}
	if m.res.Extra, err = work.extraBlocks(ctx); err != nil {
		return err
	}
	m.res.Blocks = work.blocks.Load()
	if m.res.Pins, err = comparePins(ctx, from, node); err != nil {
		return err
	}
	m.st.Skipped = m.res.Skipped
	reached("verified")
	return nil
}

// keep puts copies of the old config and datastore_spec aside.
func (m *run) keep() error {
	for from, to := range map[string]string{configFile: KeptConfig, specFile: KeptSpec} {
		text, err := os.ReadFile(m.repo.file(from))
		if err != nil {
			return err
		}
		if err := replace(m.repo.file(to), text); err != nil {
			return err
		}
	}
	reached("kept")
	m.st.Phase = switching
	if err := m.st.write(m.repo.path); err != nil {
		return err
	}
	reached("switching")
	return nil
}

// switchOver writes the new config and datastore_spec. To be called in phase switching.
func (m *run) switchOver(ctx context.Context, outcome string) (Result, error) {
	before, err := parseSpec(m.st.OldSpec)
	if err != nil {
		return m.res, err
	}
	if err := m.repo.dropKeystore(before); err != nil {
		return m.res, err
	}
	if err := m.repo.setSpec(m.st.NewSpec); err != nil {
		return m.res, err
	}
	reached("config-written")
	if err := replace(m.repo.file(specFile), []byte(m.st.NewDisk)); err != nil {
		return m.res, err
	}
	reached("spec-written")
	return m.finish(ctx, outcome)
}

// finish takes the mark off: from here on the node is the repo's store.
func (m *run) finish(ctx context.Context, outcome string) (Result, error) {
	if id, err := autostart.NodeID(m.repo.node()); err != nil || id != m.st.NodeID {
		return m.res, fmt.Errorf("node %s is not in %s any more (%w): put it back. The old store is untouched, --rollback returns to it", m.st.NodeID,
			m.repo.node(), errors.Join(err, fmt.Errorf("found %q", id)))
	}
	if err := m.mark(ctx, "ready"); err != nil {
		return m.res, err
	}
	reached("ready")
	m.st.Phase = done
	if err := m.st.write(m.repo.path); err != nil {
		return m.res, err
	}
	reached("done")
	m.res.Outcome, m.res.Profile, m.res.NodeID, m.res.Skipped = outcome, m.st.Profile, m.st.NodeID, m.st.Skipped
	if before, err := parseSpec(m.st.OldSpec); err == nil {
		for _, folder := range m.repo.folders(before) {
			if _, err := os.Stat(folder); err == nil {
				m.res.Old = append(m.res.Old, Place{folder, folderBytes(folder)})
			}
		}
	}
	return m.res, nil
}

// Rollback returns to the old config and datastore_spec.
func Rollback(ctx context.Context, o Options) (res Result, err error) {
	m, err := begin(o)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, m.repo.close()) }()
	if m.st == nil {
		return m.res, fmt.Errorf("there is nothing to roll back: %s has no %s, so no basalt-migrate was at work there", m.repo.path, StateFile)
	}
	m.res.Profile, m.res.NodeID = m.st.Profile, m.st.NodeID
	m.res.Outcome = "rolled back"
	at, _, err := m.where()
	if err != nil {
		return m.res, err
	}
	switch at {
	case foreign:
		return m.res, fmt.Errorf("config and datastore_spec of %s name a store that is neither the old one nor the node of %s: there is nothing to roll back",
			m.repo.path, StateFile)
	case old:
		if m.st.Phase != done { // else it was put back by hand
			m.st.Phase = rolledBack
			return m.res, m.st.write(m.repo.path)
		}
	case mixed: // Kubo can't have used the node
		return m.res, m.switchBack(ctx)
	}
	if m.res.Missed, err = m.missed(ctx); err != nil {
		return m.res, err
	}
	if m.res.Missed.Any() && !m.Yes {
		return m.res, &MissedError{m.res.Missed}
	}
	m.st.Phase = rollingBack
	if err := m.st.write(m.repo.path); err != nil {
		return m.res, err
	}
	reached("rolling-back")
	return m.res, m.switchBack(ctx)
}

// switchBack writes the old config and datastore_spec.
func (m *run) switchBack(ctx context.Context) error {
	if err := m.mark(ctx, "migrating"); err != nil {
		return err
	}
	reached("unready")
	before, err := parseSpec(m.st.OldSpec)
	if err != nil {
		return err
	}
	if err := m.repo.dropKeystore(before); err != nil {
		return err
	}
	if err := m.repo.restoreSpec(m.st.OldSpec); err != nil {
		return err
	}
	reached("config-restored")
	if err := replace(m.repo.file(specFile), []byte(m.st.OldDisk)); err != nil {
		return err
	}
	reached("spec-restored")
	m.st.Phase = rolledBack
	if err := m.st.write(m.repo.path); err != nil {
		return err
	}
	reached("rolled-back")
	return nil
}

// missed lists what only the node has.
func (m *run) missed(ctx context.Context) (missed *Missed, err error) {
	before, err := parseSpec(m.st.OldSpec)
	if err != nil {
		return nil, err
	}
	from, err := m.repo.open(before)
	if err != nil {
		return nil, fmt.Errorf("a rollback needs the old store: %w", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	node, err := m.view(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	work := &mirror{from: from, node: node, report: m.Report}
	if m.st.Profile == profile.Blocks {
		rest, err := levelds.NewDatastore(m.repo.file(RestFolder), nil)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", m.repo.file(RestFolder), err)
		}
		defer func() { err = errors.Join(err, rest.Close()) }()
		work.rest = rest
	}
	return work.missed(ctx)
}

// view opens the node as the migration that fills it.
func (m *run) view(ctx context.Context) (*datastore.Datastore, error) {
	node := m.repo.node()
	sockets, err := autostart.DataSockets(node, m.st.NodeID)
	if err != nil {
		return nil, err
	}
	return datastore.Open(ctx, datastore.Config{
		Sockets:  sockets,
		NodeID:   m.st.NodeID,
		NodePath: node,
		Role:     "migrate",
		Client:   "basalt-migrate " + plugin.Version,
		Start:    autostart.Agent{Node: node, Sockets: sockets}.Start,
	})
}

// mark says of the node that it is "migrating" or "ready".
func (m *run) mark(ctx context.Context, as string) error {
	bin, err := autostart.Binary()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bin, "--node", m.repo.node(), "mark", as)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mark the node as %s: %w\n%s", as, err, bytes.TrimSpace(out))
	}
	return nil
}

// room makes sure, before anything is written, that the node's file system has room for the old store.
func (m *run) room(ctx context.Context, config *spec, there uint64) (err error) {
	from, err := m.repo.open(config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	return m.roomFor(ctx, from, there)
}

// A node needs some more than the values: record headers, the index, space that is reserved so that a full disk can delete.
const (
	overhead = 20 // a 20th
	base     = 128 << 20
)

func (m *run) roomFor(ctx context.Context, from kuborepo.Datastore, there uint64) error {
	usage, err := ds.DiskUsage(ctx, from)
	if err != nil {
		return fmt.Errorf("ask the old store for its size: %w", err)
	}
	if usage == 0 {
		m.Report.Note("the old store does not say how large it is, so nobody knows whether there is room for it")
		return nil
	}
	free, err := m.Available(m.repo.path)
	if err != nil {
		return err
	}
	need := usage + usage/overhead + base
	if there > usage {
		there = usage
	}
	if need -= there; free < need {
		return fmt.Errorf("the old store has %s, and the file system of %s has %s free: the node needs %s. Free some space (`ipfs repo gc`), or "+
			"put a larger file system at %s", Bytes(usage), m.repo.node(), Bytes(free), Bytes(need), m.repo.node())
	}
	return nil
}

// available is asked of the node's folder where it is a file system of its own already.
func available(path string) (uint64, error) {
	var st unix.Statfs_t
	node := filepath.Join(path, profile.Folder)
	if err := unix.Statfs(node, &st); err != nil {
		if err := unix.Statfs(path, &st); err != nil {
			return 0, fmt.Errorf("ask for the free space at %s: %w", path, err)
		}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

func folderBytes(folder string) (bytes int64) {
	_ = filepath.WalkDir(folder, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if st, err := entry.Info(); err == nil {
				bytes += st.Size()
			}
		}
		return nil
	})
	return bytes
}

// Bytes writes a number of bytes for a person.
func Bytes[N int64 | uint64](n N) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= 1024 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[unit])
}
