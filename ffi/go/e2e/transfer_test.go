package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"basalt.dev/go/internal/agenttest"
)

// basalt runs a command of the program for the repo's node; its exit code, 0 where it did well.
func (r *repo) basalt(args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	cmd := exec.Command(agenttest.Basalt(r.t), append([]string{"--node", filepath.Join(r.path, "basalt")}, args...)...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, &out, &errs
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return out.String(), errs.String(), exit.ExitCode()
	} else if err != nil {
		r.t.Fatal(err)
	}
	return out.String(), errs.String(), 0
}

func (r *repo) must(args ...string) string {
	r.t.Helper()
	out, errs, code := r.basalt(args...)
	if code != 0 {
		r.t.Fatalf("basalt %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// flatfs is a repo as Kubo makes it without Basalt, with some files in it.
func flatfs(t *testing.T) (r *repo, cid string, data []byte) {
	r = bare(t)
	r.run("init", "--profile=test")
	data = random(40, 3<<20+7)
	return r, r.run("add", "-Q", r.file("data", data)), data
}

func TestAnImportBehindALiveDaemonIsRefusedUnlessItIsAllowed(t *testing.T) {
	t.Parallel()
	source, cid, data := flatfs(t)
	car, _, err := source.try(nil, "dag", "export", cid)
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, profile string) {
		r := made(t, profile)
		file := r.file("in.car", []byte(car))
		d := r.daemon("--offline")
		// From now on Kubo remembers that the root is absent.
		if _, _, err := r.try(nil, "cat", cid); err == nil {
			t.Fatal("the block is there already")
		}
		before := r.node().Status().Blocks
		for _, command := range [][]string{{"import", "car", file}, {"import", "flatfs", source.path}} {
			_, errs, code := r.basalt(command...)
			if code != 1 || !strings.Contains(errs, "--allow-connected") || !strings.Contains(errs, "restart") {
				t.Errorf("%v: exit code %d: %s", command, code, errs)
			}
		}
		if after := r.node().Status().Blocks; after != before {
			t.Errorf("a refused import changed the node: %d blocks, then %d", before, after)
		}
		if out := r.must("import", "car", file, "--allow-connected"); !strings.Contains(out, "restart every Kubo") {
			t.Errorf("it does not say that Kubo must restart: %s", out)
		}
		// This is why: the daemon goes on with what it remembers.
		if _, _, err := r.try(nil, "cat", cid); err == nil {
			t.Log("this Kubo found the block without a restart: the refusal could be less strict")
		}
		d.stop()
		d = r.daemon("--offline")
		r.holds(cid, data)
		d.stop()
		// With Kubo stopped nothing needs to be allowed, whether its agent has gone or not.
		r.must("import", "flatfs", source.path)
		r.run("repo", "verify")
	})
}

func TestWhatIsExportedIsWhatKuboReads(t *testing.T) {
	t.Parallel()
	r := made(t, "basalt")
	data := random(41, 2<<20+1)
	cid := r.run("add", "-Q", r.file("data", data))
	byKubo, _, err := r.try(nil, "dag", "export", cid)
	if err != nil {
		t.Fatal(err)
	}
	if byBasalt := r.must("export", "car", "-", "--root", cid); byBasalt != byKubo {
		t.Errorf("basalt export car --root gives %d bytes, ipfs dag export %d, and they differ", len(byBasalt), len(byKubo))
	}

	all, folder := filepath.Join(r.dir, "all.car"), filepath.Join(r.dir, "out")
	r.must("export", "car", all)
	r.must("export", "flatfs", folder)
	other := bare(t)
	other.run("init", "--profile=test")
	other.run("dag", "import", "--pin-roots=false", all)
	other.holds(cid, data)

	third := bare(t)
	third.run("init", "--profile=test")
	if out, err := exec.Command("cp", "-r", folder+"/.", filepath.Join(third.path, "blocks")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	third.holds(cid, data)
	third.run("repo", "verify")
}
