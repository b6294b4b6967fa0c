package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"basalt.dev/go/internal/agenttest"
)

// rot flips a bit in the middle of a value, in whichever segment file of the node holds it.
func (r *repo) rot(value []byte) {
	r.t.Helper()
	segments, err := filepath.Glob(filepath.Join(r.path, "basalt", "shards", "*", "seg-*.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	flipped := 0
	for _, segment := range segments {
		held, err := os.ReadFile(segment)
		if err != nil {
			r.t.Fatal(err)
		}
		at := bytes.Index(held, value)
		if at < 0 {
			continue
		}
		at += len(value) / 2
		f, err := os.OpenFile(segment, os.O_WRONLY, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{held[at] ^ 4}, int64(at)); err != nil {
			r.t.Fatal(err)
		}
		f.Close()
		flipped++
	}
	if flipped != 1 {
		r.t.Fatalf("%d places hold the value, want 1", flipped)
	}
}

// A block that rots under a running Kubo, which has it in its cache of what is there, is absent to it from the first read on, and is
// healed by the next put of the same bytes, by `block put` as by `add`.
func TestABlockThatRotsUnderALiveKuboIsHealedByAPut(t *testing.T) {
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		d := r.daemon("--offline")
		data := random(7, 100_000)
		cid := r.run("add", "-Q", "--raw-leaves", r.file("data", data))
		whole := r.objects()
		for _, heal := range []func(){
			func() {
				if got := r.feed(data, "block", "put", "--cid-codec=raw"); got != cid {
					t.Fatalf("block put gives %s, want %s", got, cid)
				}
			},
			func() { r.run("add", "-Q", "--raw-leaves", r.file("data", data)) },
		} {
			r.holds(cid, data)
			r.rot(data)
			for range 2 {
				out, errs, err := r.try(nil, "cat", cid)
				if err == nil || out != "" || !strings.Contains(errs, "not found") {
					t.Fatalf("cat of a rotten block: %v, %d bytes, %s", err, len(out), errs)
				}
			}
			if _, errs, err := r.try(nil, "block", "stat", cid); err == nil || !strings.Contains(errs, "not found") {
				t.Fatalf("block stat of a rotten block: %v: %s", err, errs)
			}
			st := r.node().Status()
			if len(st.Quarantined) != 1 || st.Quarantined[0].Cid != cid {
				t.Fatalf("quarantined: %v, want %s", st.Quarantined, cid)
			}
			if got := r.objects(); got != whole {
				t.Errorf("%d objects, want %d: a quarantined block is still counted", got, whole)
			}
			heal()
			r.holds(cid, data)
			if st := r.node().Status(); len(st.Quarantined) != 0 {
				t.Fatalf("still quarantined: %v", st.Quarantined)
			}
		}
		r.run("repo", "verify")
		d.stop()
		r.holds(cid, data)
	})
}

// What `ipfs repo verify` says of a rotten block in each mode, and that gc can remove it.
func TestRepoVerifyNamesARottenBlock(t *testing.T) {
	for _, mode := range []string{"refetch", "error"} {
		t.Run(mode, func(t *testing.T) {
			r := bare(t)
			// Before the first agent starts.
			r.env = append(r.env, "BASALT_STORE_CORRUPT="+mode)
			r.run("init", "--profile=test,basalt")
			data := random(8, 50_000)
			cid := r.run("add", "-Q", "--raw-leaves", r.file("data", data))
			r.run("repo", "verify")
			r.rot(data)
			for range 2 { // as it is found, and as it is known
				out, errs, err := r.try(nil, "repo", "verify")
				t.Logf("%s: %v\n%s%s", mode, err, out, errs)
				if err == nil || !strings.Contains(out+errs, cid) {
					t.Errorf("repo verify does not name %s: %v\n%s%s", cid, err, out, errs)
				}
			}
			if _, errs, err := r.try(nil, "--offline", "cat", cid); err == nil {
				t.Error("a rotten block was given out")
			} else if says := map[string]string{"refetch": "not found", "error": "quarantined"}[mode]; !strings.Contains(errs, says) {
				t.Errorf("cat says %q, want %q in it", errs, says)
			}
			// It heals in either mode: where damage is an error, Has is one too, so Kubo puts what it is given.
			r.run("add", "-Q", "--raw-leaves", r.file("data", data))
			r.holds(cid, data)
			r.run("repo", "verify")
			// And what is rotten can be collected.
			r.rot(data)
			if _, _, err := r.try(nil, "--offline", "cat", cid); err == nil {
				t.Fatal("a rotten block was given out")
			}
			r.run("pin", "rm", cid)
			if out := r.run("repo", "gc"); !strings.Contains(out, cid) {
				t.Errorf("gc leaves the rotten block: %s", out)
			}
			if st := r.node().Status(); len(st.Quarantined) != 0 {
				t.Errorf("still quarantined: %v", st.Quarantined)
			}
		})
	}
}

// Where the scrub finds the rot and not Kubo's own read, a running Kubo goes on believing what its cache says until it reads the block.
func TestARunningKuboLearnsOfWhatTheScrubFoundByReading(t *testing.T) {
	r := made(t, "basalt")
	r.daemon("--offline")
	data := random(9, 60_000)
	cid := r.run("add", "-Q", "--raw-leaves", r.file("data", data))
	r.holds(cid, data)
	r.rot(data)
	basalt := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(agenttest.Basalt(t), args...)
		cmd.Env = append(r.env, "BASALT_NODE="+filepath.Join(r.path, "basalt"))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("basalt %v: %v", args, err)
		}
		return string(out)
	}
	basalt("scrub", "start", "--rate", "1GiB")
	for deadline := time.Now().Add(agenttest.Patience); len(r.node().Status().Quarantined) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the scrub has not found it")
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.feed(data, "block", "put", "--cid-codec=raw")
	t.Logf("quarantined after a put alone: %d", len(r.node().Status().Quarantined))
	if _, _, err := r.try(nil, "block", "get", cid); err == nil && len(r.node().Status().Quarantined) > 0 {
		t.Error("a rotten block was given out")
	}
	r.feed(data, "block", "put", "--cid-codec=raw")
	if st := r.node().Status(); len(st.Quarantined) != 0 {
		t.Errorf("a put after a read did not heal: %v", st.Quarantined)
	}
	r.holds(cid, data)
}
