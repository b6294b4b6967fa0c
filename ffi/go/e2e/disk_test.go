package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"basalt.dev/go/internal/agenttest"
)

// ownMounts marks the run of a test that has mounts of its own.
const ownMounts = "BASALT_TEST_OWN_MOUNTS"

// withMounts runs the test that calls it once more, in a process whose mounts nobody else sees and which go with it, and says whether
// this is that process. A user who may not mount gets a namespace in which they may.
func withMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownMounts) == t.Name() {
		// What is mounted here must not spread to the machine.
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatalf("make the mounts private: %v", err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), ownMounts+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Fatalf("this test needs a small disk of its own, and may not have one here: %v. Run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// small is a disk of that many MiB, in memory.
func small(t *testing.T, mib int) string {
	t.Helper()
	dir := agenttest.Temp(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatalf("mount a tmpfs of %d MiB at %s: %v", mib, dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

const (
	diskMiB = 140
	fileMiB = 8
)

// A full disk refuses what would fill it further, and nothing else: what is there is read, unpinned and collected, Kubo starts, and then
// there is room again.
func TestOnAFullDiskAddIsRefusedByNameAndEverythingElseGoesOn(t *testing.T) {
	t.Parallel()
	if !withMounts(t) {
		return
	}
	for _, way := range []flavour{overAgent, inProcess} {
		t.Run(way.program, func(t *testing.T) { onAFullDisk(t, way) })
	}
}

func onAFullDisk(t *testing.T, way flavour) {
	r := way.bare(t)
	disk := small(t, diskMiB)
	t.Cleanup(func() { agenttest.KillAgents(t, disk) }) // before the disk goes
	r.path = filepath.Join(disk, "repo")
	r.env = append(os.Environ(), "IPFS_PATH="+r.path, "IPFS_TELEMETRY=off")
	r.run("init", "--profile=test,basalt")

	kept := random(900, 4<<20)
	files := map[string][]byte{r.run("add", "-Q", r.file("kept", kept)): kept}
	keep := r.pinned()
	seed := uint64(901)
	fill := func() (added []string) {
		t.Helper()
		for range diskMiB/fileMiB + 1 {
			data := random(seed, fileMiB<<20)
			seed++
			cid, errs, err := r.try(nil, "add", "-Q", r.file("more", data))
			if err != nil {
				for _, want := range []string{filepath.Join(r.path, "basalt"), "bytes available", "kept for deletes", "free space"} {
					if !strings.Contains(errs, want) {
						t.Fatalf("the refusal does not say %q: %s", want, errs)
					}
				}
				return added
			}
			cid = strings.TrimSpace(cid)
			added, files[cid] = append(added, cid), data
		}
		t.Fatalf("%d MiB were added to a disk of %d", len(added)*fileMiB, diskMiB)
		return nil
	}
	collect := func(cids []string) {
		t.Helper()
		for _, cid := range cids {
			r.run("pin", "rm", cid)
			delete(files, cid)
		}
		if freed := strings.Count(r.run("repo", "gc"), "removed"); freed < len(cids)*fileMiB*4 {
			t.Errorf("gc removed %d blocks of %d files", freed, len(cids))
		}
		r.holdsAll(files)
	}

	d := r.daemon("--offline")
	added := fill()
	if len(added) < 3 {
		t.Fatalf("only %d files of %d MiB went onto a disk of %d", len(added), fileMiB, diskMiB)
	}
	t.Logf("%d MiB were added, then: no space", len(added)*fileMiB)
	r.holdsAll(files)
	if st := r.node().Status(); !strings.Contains(fmt.Sprint(st.Conditions), "no-space") {
		t.Errorf("status does not say so: %v", st.Conditions)
	}
	collect(added)
	again := fill() // by the same daemon
	if len(again)+1 < len(added) {
		t.Errorf("%d MiB went in at first, and only %d when they had gone", len(added)*fileMiB, len(again)*fileMiB)
	}

	// A Kubo that starts on a full disk, with an agent that starts on it too.
	d.stop()
	agenttest.KillAgents(t, disk)
	d = r.daemon("--offline")
	r.holdsAll(files)
	for cid := range keep {
		if !r.pinned()[cid] {
			t.Errorf("the pin of %s is gone", cid)
		}
	}
	collect(again)
	small := random(seed, 1<<20)
	files[r.run("add", "-Q", r.file("small", small))] = small
	d.stop()
	r.holdsAll(files)
	r.run("repo", "verify")
}

// A run folder that can't be written, as on a mount for reading: sockets and log of the agent that is started move out of it.
func TestOnAReadOnlyRunFolderSocketsAndLogMoveOut(t *testing.T) {
	t.Parallel()
	if !withMounts(t) {
		return
	}
	r := made(t, "basalt")
	agenttest.KillAgents(t, r.dir)
	if err := syscall.Mount("tmpfs", filepath.Join(r.path, "basalt", "run"), "tmpfs", syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(r.path, "basalt", "run"), syscall.MNT_DETACH) })
	runtime := filepath.Join(r.dir, "xdg")
	r.env = append(r.env, "XDG_RUNTIME_DIR="+runtime)
	cid := r.feed([]byte("moved out"), "add", "-Q")
	r.holds(cid, []byte("moved out"))
	for _, name := range []string{"data.sock", "admin.sock", "agent.log"} {
		if found, err := filepath.Glob(filepath.Join(runtime, "basalt", "*", name)); err != nil || len(found) != 1 {
			t.Errorf("%s: %v %v", name, found, err)
		}
	}
	if pids := agenttest.Agents(t, r.dir); len(pids) != 1 {
		t.Errorf("agents %v", pids)
	}
}
