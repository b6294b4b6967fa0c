package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/migrate"
)

// moved runs basalt-migrate on the repo. killed says that it ended by SIGKILL.
func (r *repo) moved(kill string, args ...string) (out, errs string, code int, killed bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*agenttest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, agenttest.Program(r.t, "BASALT_MIGRATE_BIN", "basalt-migrate"), append([]string{r.path}, args...)...)
	cmd.Env = r.env
	if kill != "" {
		cmd.Env = append(cmd.Env, migrate.KillEnv+"="+kill)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return stdout.String(), stderr.String(), exit.ExitCode(), exit.ExitCode() == -1 && ctx.Err() == nil
	} else if err != nil {
		r.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), 0, false
}

func (r *repo) move(args ...string) string {
	r.t.Helper()
	out, errs, code, _ := r.moved("", args...)
	if code != 0 {
		r.t.Fatalf("basalt-migrate %v: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

func (r *repo) killed(at string, args ...string) {
	r.t.Helper()
	if out, errs, code, killed := r.moved(at, args...); !killed {
		r.t.Fatalf("basalt-migrate was not killed at %s but ended with %d\n%s%s", at, code, out, errs)
	}
}

func (r *repo) refuses(part string, args ...string) string {
	r.t.Helper()
	out, errs, code, _ := r.moved("", args...)
	if code != 1 || !strings.Contains(errs+out, part) {
		r.t.Errorf("basalt-migrate %v: exit code %d, and not %q in:\n%s%s", args, code, part, out, errs)
	}
	return errs
}

// content is what a person sees of a repo; it must be the same before and after. Each command is a Kubo started, so they are few: the
// root's hash stands for all of MFS, whose blocks `repo verify` reads.
type content struct {
	pins, files, name, blocks string
	cids                      map[string][]byte
	key                       string // the id of a key that has published a name
}

// filled is a repo of some kind of Kubo's with everything in it that a person may have put there.
func filled(t *testing.T, kind string) (*repo, content) {
	r := bare(t)
	r.run("init", "--profile=test"+kind)
	var c content
	c.cids = map[string][]byte{}
	add := func(seed uint64, size int, flags ...string) string {
		data := random(seed, size)
		cid := r.run(append([]string{"add", "-Q", r.file(fmt.Sprint(seed), data)}, flags...)...)
		c.cids[cid] = data
		return cid
	}
	first := add(1, 3<<20+5)
	add(2, 1<<20, "--cid-version=1", "--raw-leaves", "--chunker=size-1048576")
	add(3, 0)
	add(4, 700<<10, "--hash=blake3")
	loose := add(5, 300<<10, "--pin=false")
	r.run("pin", "add", "--recursive=false", loose)
	r.run("pin", "add", "--name", "a name", add(6, 10, "--pin=false"))
	r.run("files", "mkdir", "-p", "/a/b")
	r.run("files", "cp", "/ipfs/"+first, "/a/b/file")
	r.feed([]byte("written to mfs"), "files", "write", "--create", "/a/text")
	c.key = r.run("key", "gen", "other")
	r.run("name", "publish", "--allow-offline", "--key=other", "/ipfs/"+first)
	c.see(r)
	return r, c
}

func (c *content) see(r *repo) {
	r.t.Helper()
	lines := func(args ...string) string { // whose order a store may choose
		return strings.Join(slices.Sorted(strings.Lines(r.run(args...)+"\n")), "")
	}
	c.pins = lines("pin", "ls", "--names")
	c.files = r.run("files", "stat", "--hash", "/") + r.run("files", "read", "/a/text")
	c.name = r.run("name", "resolve", "--offline", c.key)
	c.blocks = lines("refs", "local")
}

// same checks that the repo shows what it showed.
func (c content) same(r *repo) {
	r.t.Helper()
	now := content{key: c.key}
	now.see(r)
	for what, pair := range map[string][2]string{
		"pins": {c.pins, now.pins}, "MFS": {c.files, now.files}, "name": {c.name, now.name}, "blocks": {c.blocks, now.blocks},
	} {
		if pair[0] != pair[1] || pair[0] == "" {
			r.t.Errorf("%s were\n%s\nand are\n%s", what, pair[0], pair[1])
		}
	}
	r.holdsAll(c.cids)
	r.run("repo", "verify")
}

// onBasalt checks which store config and datastore_spec name.
func (r *repo) onBasalt() bool {
	r.t.Helper()
	config, err := os.ReadFile(filepath.Join(r.path, "config"))
	if err != nil {
		r.t.Fatal(err)
	}
	spec, err := os.ReadFile(filepath.Join(r.path, "datastore_spec"))
	if err != nil {
		r.t.Fatal(err)
	}
	a, b := strings.Contains(string(config), `"basalt"`), strings.Contains(string(spec), `"basalt"`)
	if a != b {
		r.t.Errorf("config says basalt: %t, datastore_spec: %t", a, b)
	}
	return a
}

// prints is a fingerprint of every file below the folders; a store that was only read has the same ones.
func prints(t *testing.T, folders ...string) map[string][32]byte {
	t.Helper()
	found := map[string][32]byte{}
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			found[path] = sha256.Sum256(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func TestARepoOfEveryKindMovesWithAllItHolds(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"", ",flatfs-measure", ",pebbleds", ",badgerds"} {
		for _, profile := range profiles {
			if profile == "basalt-blocks" && (kind == ",flatfs-measure" || kind == ",badgerds") {
				continue
			}
			t.Run(fmt.Sprintf("%s%s", profile, kind), func(t *testing.T) {
				t.Parallel()
				r, c := filled(t, kind)
				blocks := filepath.Join(r.path, "blocks")
				var before map[string][32]byte
				if kind == "" {
					before = prints(t, blocks)
				}
				keystore := filepath.Join(r.path, "provider-keystore", "0")
				if err := os.MkdirAll(keystore, 0o755); err != nil {
					t.Fatal(err)
				}
				out := r.move("--profile", profile)
				for _, part := range []string{"migrated", "verified", "1 direct pins", "1 of them with names", "rm -r", "At a power cut"} {
					if !strings.Contains(out, part) {
						t.Errorf("not %q in:\n%s", part, out)
					}
				}
				if !r.onBasalt() {
					t.Error("the repo is not on basalt")
				}
				if before != nil && !maps.Equal(before, prints(t, blocks)) {
					t.Error("the old store has changed")
				}
				c.same(r)
				_, err := os.Stat(keystore)
				if kept := err == nil; kept != (kind == "" || kind == ",flatfs-measure") {
					t.Errorf("the provider keystore is kept: %t", kept)
				}
				if durability := r.node().Status().Durability; durability != map[string]string{"basalt": "ordered", "basalt-blocks": "strict"}[profile] {
					t.Errorf("the node is %s", durability)
				}
				if out := r.move(); !strings.Contains(out, "already") {
					t.Errorf("again: %s", out)
				}
				d := r.daemon("--offline")
				c.same(r)
				d.stop()
			})
		}
	}
}

func TestAMigrationKilledAtAnyStepIsCompletedByTheNext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, profile string) {
		r, c := filled(t, "")
		// One repo, moved and moved back once a step: killed there, then at its first batch, then let through.
		for i, step := range migrate.Steps {
			if profile == "basalt-blocks" && i%3 != 0 {
				continue
			}
			t.Log(step)
			// Something that the node doesn't have yet, so that there is a batch to be killed at.
			fresh := random(uint64(200+i), 400<<10)
			c.cids[r.run("add", "-Q", r.file("fresh", fresh))] = fresh
			c.see(r)
			r.killed(step, "--profile", profile)
			if i < slices.Index(migrate.Steps, "config-written") {
				if r.onBasalt() {
					t.Fatalf("%s: the repo is on basalt before it has been filled", step)
				}
				// It goes on as it was between two runs, and what changes there is taken along.
				data := random(uint64(100+i), 400<<10)
				c.cids[r.run("add", "-Q", r.file("more", data))] = data
				r.run("pin", "rm", r.feed([]byte(step), "add", "-Q"))
				r.feed([]byte(step), "files", "write", "--create", "--truncate", "/a/text")
				c.see(r)
			}
			if second := "batch"; i < slices.Index(migrate.Steps, second) {
				r.killed(second)
			}
			r.move()
			if !r.onBasalt() {
				t.Fatalf("%s: the repo is not on basalt", step)
			}
			c.same(r)
			r.move("--rollback")
			if r.onBasalt() {
				t.Fatalf("%s: the repo is still on basalt", step)
			}
			c.same(r)
		}
		r.move()
		for _, step := range migrate.RollbackSteps {
			t.Log(step)
			r.killed(step, "--rollback")
			r.move("--rollback")
			if r.onBasalt() {
				t.Fatalf("%s: the repo is still on basalt", step)
			}
			c.same(r)
			r.move()
			r.killed(step, "--rollback")
			r.move() // the other way out
			if !r.onBasalt() {
				t.Fatalf("%s: the repo is not on basalt", step)
			}
			c.same(r)
		}
	})
}

func TestARepoBetweenTwoStoresIsRefusedByKubo(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"config-written", "spec-written"} {
		r, c := filled(t, "")
		r.killed(step)
		if _, errs, err := r.try(nil, "pin", "ls"); err == nil || step == "spec-written" && !strings.Contains(errs, "basalt-migrate") {
			t.Errorf("%s: %v: %s", step, err, errs)
		}
		r.move()
		c.same(r)
	}
}

func TestARollbackSaysWhatWouldBeMissed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, profile string) {
		r, c := filled(t, "")
		config, err := os.ReadFile(filepath.Join(r.path, "config"))
		if err != nil {
			t.Fatal(err)
		}
		r.move("--profile", profile)
		data := random(50, 1<<20)
		cid := r.run("add", "-Q", r.file("new", data))
		r.feed([]byte("mfs of later"), "files", "write", "--create", "--truncate", "/a/text")
		errs := r.refuses("--yes", "--rollback")
		if !strings.Contains(errs, cid) || !strings.Contains(errs, "MFS has changed") {
			t.Errorf("%s", errs)
		}
		if !r.onBasalt() {
			t.Fatal("a rollback that was refused changed the repo")
		}
		r.holds(cid, data)
		out := r.move("--rollback", "--yes", "--json")
		var res migrate.Result
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &res); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if res.Outcome != "rolled back" || res.Missed == nil || res.Missed.Blocks < 5 || !slices.Contains(res.Missed.Pins, cid) || res.Missed.MFSRoot == "" {
			t.Errorf("%s", out)
		}
		if after, _ := os.ReadFile(filepath.Join(r.path, "config")); !bytes.Equal(config, after) {
			t.Errorf("the config is not what it was:\n%s\n%s", config, after)
		}
		c.same(r)

		// Redone, with what the old store has now; blocks that only the node has stay there.
		again := random(51, 1<<20)
		c.cids[r.run("add", "-Q", r.file("again", again))] = again
		r.move()
		r.holdsAll(c.cids)
		if r.pinned()[cid] {
			t.Error("a pin that only the node had came back without its being asked for")
		}
		r.holds(cid, data)
		r.run("repo", "verify")
	})
}

func TestACorruptBlockStopsAMigrationOrIsLeftOutByName(t *testing.T) {
	t.Parallel()
	r, c := filled(t, "")
	data := random(60, 1000)
	cid := r.run("add", "-Q", "--raw-leaves", "--cid-version=1", r.file("rotten", data))
	var file string
	_ = filepath.WalkDir(filepath.Join(r.path, "blocks"), func(path string, _ fs.DirEntry, _ error) error {
		if text, err := os.ReadFile(path); err == nil && bytes.Equal(text, data) {
			file = path
		}
		return nil
	})
	data[500] ^= 1
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if errs := r.refuses(cid); !strings.Contains(errs, "--skip-corrupt") {
		t.Errorf("%s", errs)
	}
	if r.onBasalt() {
		t.Fatal("the repo was moved without its corrupt block")
	}
	if out := r.move("--skip-corrupt"); !strings.Contains(out, cid) || !strings.Contains(out, "left out") {
		t.Errorf("%s", out)
	}
	r.holdsAll(c.cids)
	if strings.Contains(r.run("refs", "local"), cid) {
		t.Error("the corrupt block is in the node")
	}
	if out := r.move("--rollback"); !strings.Contains(out, "old store") {
		t.Errorf("%s", out)
	}
	// Mended, it goes along.
	data[500] ^= 1
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	r.move()
	r.holds(cid, data)
}

func TestWhatIsNoStoppedRepoIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("a running daemon", func(t *testing.T) {
		t.Parallel()
		r, c := filled(t, "")
		d := r.daemon("--offline")
		r.refuses("ipfs shutdown")
		d.stop()
		r.move()
		c.same(r)
		d = r.daemon("--offline")
		r.refuses("ipfs shutdown", "--rollback")
		d.stop()
	})
	t.Run("no repo", func(t *testing.T) {
		t.Parallel()
		r := bare(t)
		r.refuses("is no Kubo repo")
		if _, err := os.Stat(r.path); err == nil {
			t.Error("something was made there")
		}
	})
	t.Run("half a repo", func(t *testing.T) {
		t.Parallel()
		r := bare(t)
		r.run("init", "--profile=test")
		os.Remove(filepath.Join(r.path, "datastore_spec"))
		r.refuses("only half a Kubo repo")
	})
	t.Run("config and spec differ", func(t *testing.T) {
		t.Parallel()
		r := bare(t)
		r.run("init", "--profile=test")
		if err := os.WriteFile(filepath.Join(r.path, "datastore_spec"), []byte(`{"type":"flatfs"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r.refuses("another store than")
	})
	t.Run("the old store is missing", func(t *testing.T) {
		t.Parallel()
		r := bare(t)
		r.run("init", "--profile=test")
		if err := os.Rename(filepath.Join(r.path, "blocks"), filepath.Join(r.dir, "blocks")); err != nil {
			t.Fatal(err)
		}
		r.refuses("is missing")
		if _, err := os.Stat(filepath.Join(r.path, "blocks")); err == nil {
			t.Error("an empty store was made in its place")
		}
	})
	t.Run("a foreign folder where the node would be", func(t *testing.T) {
		t.Parallel()
		r := bare(t)
		r.run("init", "--profile=test")
		r.file("repo/basalt/precious", []byte("x"))
		r.refuses("move it away")
	})
	t.Run("on basalt since it was made", func(t *testing.T) {
		t.Parallel()
		r := made(t, "basalt")
		r.refuses("on Basalt already")
		r.refuses("nothing to roll back", "--rollback")
	})
	t.Run("a store that Kubo doesn't have", func(t *testing.T) {
		r := bare(t)
		r.run("init", "--profile=test")
		config, err := os.ReadFile(filepath.Join(r.path, "config"))
		if err != nil {
			t.Fatal(err)
		}
		r.file("repo/config", bytes.Replace(config, []byte(`"type": "flatfs"`), []byte(`"type": "s3ds"`), 1))
		r.refuses("unknown datastore type: s3ds")
	})
}
