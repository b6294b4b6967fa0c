package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"basalt.dev/go/internal/agenttest"
)

// each runs a test on both profiles.
func each(t *testing.T, f func(t *testing.T, profile string)) {
	for _, profile := range profiles {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			f(t, profile)
		})
	}
}

// eachWay runs a test on both profiles with both programs.
func eachWay(t *testing.T, f func(t *testing.T, way flavour, profile string)) {
	for _, way := range []flavour{overAgent, inProcess} {
		for _, profile := range profiles {
			t.Run(way.program+"/"+profile, func(t *testing.T) {
				t.Parallel()
				f(t, way, profile)
			})
		}
	}
}

func TestInitSaysWhatHoldsAtAPowerCut(t *testing.T) {
	t.Parallel()
	for profile, durability := range map[string]string{"basalt": "ordered", "basalt-blocks": "strict"} {
		r := bare(t)
		_, errs, err := r.try(nil, "init", "--profile=test,"+profile)
		if err != nil || !strings.Contains(errs, "profile "+profile) || !strings.Contains(errs, "At a power cut") {
			t.Errorf("%v: %s", err, errs)
		}
		r.run("repo", "stat") // brings the agent back if it went
		if st := r.node().Status(); st.Durability != durability {
			t.Errorf("profile %s made a node that is %s, want %s", profile, st.Durability, durability)
		}
	}
	if help := bare(t).run("config", "profile", "--help"); !strings.Contains(help, "'basalt'") || !strings.Contains(help, "'basalt-blocks'") {
		t.Error("the profiles are not listed in the help")
	}
}

func TestDaemonInitMakesARepoToo(t *testing.T) {
	t.Parallel()
	r := bare(t)
	d := r.daemon("--init", "--init-profile=test,basalt", "--offline")
	cid := r.feed([]byte("x"), "add", "-Q")
	// The permission to make one repo is spent: a profile can't turn a live repo over.
	if _, errs, err := r.try(nil, "config", "profile", "apply", "basalt-blocks"); err == nil || !strings.Contains(errs, "basalt-migrate") {
		t.Errorf("%v: %s", err, errs)
	}
	d.stop()
	r.holds(cid, []byte("x"))
}

func TestFilesOfEveryShapeComeBack(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		data := random(1, 5<<20+123)
		path := r.file("data", data)
		cids := map[string]bool{}
		for _, flags := range [][]string{
			{},
			{"--cid-version=1", "--raw-leaves"},
			{"--cid-version=1", "--chunker=size-1048576"},
			{"--trickle"},
			{},
		} {
			cid := r.run(append([]string{"add", "-Q"}, append(flags, path)...)...)
			cids[cid] = true
			r.holds(cid, data)
		}
		if len(cids) != 4 {
			t.Errorf("%d different roots, want 4: adding the same again gives the same", len(cids))
		}
		if got := r.pinned(); !slices.ContainsFunc(slices.Collect(maps.Keys(cids)), func(c string) bool { return got[c] }) || len(got) < 4 {
			t.Errorf("pinned: %v", got)
		}
		empty := r.feed(nil, "add", "-Q")
		r.holds(empty, nil)
		r.run("repo", "verify")
	})
}

func TestPinsMFSBlocksAndGarbage(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		keep, drop := random(2, 1<<20), random(3, 1<<20)
		kept := r.run("add", "-Q", r.file("keep", keep))
		dropped := r.run("add", "-Q", r.file("drop", drop))

		r.run("files", "mkdir", "-p", "/a/b")
		r.feed([]byte("written"), "files", "write", "--create", "/a/b/file")
		r.run("files", "cp", "/ipfs/"+dropped, "/a/copy")
		if got := r.run("files", "ls", "/a"); got != "b\ncopy" {
			t.Errorf("files ls: %q", got)
		}
		if got := r.run("files", "read", "/a/b/file"); got != "written" {
			t.Errorf("files read: %q", got)
		}

		block := r.feed([]byte("a block"), "block", "put")
		if got := r.run("block", "get", block); got != "a block" {
			t.Errorf("block get: %q", got)
		}
		r.run("block", "rm", block)
		if _, _, err := r.try(nil, "--offline", "block", "get", block); err == nil {
			t.Error("a removed block is there")
		}

		r.run("pin", "rm", dropped)
		if pins := r.pinned(); !pins[kept] || pins[dropped] {
			t.Errorf("pins: %v", pins)
		}
		r.run("repo", "gc")
		r.holds(dropped, drop) // MFS holds it
		r.run("files", "rm", "-r", "/a")
		before := r.objects()
		freed := strings.Count(r.run("repo", "gc"), "removed")
		if after := r.objects(); freed < 4 || after != before-freed {
			t.Errorf("gc removed %d of %d objects, %d are left", freed, before, after)
		}
		if _, _, err := r.try(nil, "--offline", "cat", dropped); err == nil {
			t.Error("garbage is there after gc")
		}
		r.holds(kept, keep)
		if refs := strings.Count(r.run("refs", "local")+"\n", "\n"); refs != r.objects() {
			t.Errorf("refs local has %d, repo stat %d", refs, r.objects())
		}
		r.run("pin", "add", kept)
		r.run("repo", "verify")
		objects := r.objects()
		if way == inProcess {
			r.daemon("--offline") // so that the node is open
		}
		st := r.node().Status()
		if int(st.Blocks) != objects {
			t.Errorf("the node counts %d blocks, Kubo %d objects", st.Blocks, objects)
		}
		if profile == "basalt" && st.Keyspace.GetKeys() == 0 {
			t.Error("pins and MFS root are not in the node")
		}
	})
}

func TestADagExportedHereIsImportedThere(t *testing.T) {
	t.Parallel()
	from, to := inProcess.made(t, "basalt"), made(t, "basalt-blocks")
	for i := range 50 {
		from.file(fmt.Sprintf("tree/%d/%d", i%5, i), random(uint64(i), i*1000))
	}
	root := from.run("add", "-Q", "-r", filepath.Join(from.dir, "tree"))
	car, _, err := from.try(nil, "dag", "export", root)
	if err != nil {
		t.Fatal(err)
	}
	for _, there := range []*repo{to, inProcess.made(t, "basalt")} {
		there.feed([]byte(car), "dag", "import")
		if !there.pinned()[root] {
			t.Error("the imported root is not pinned")
		}
		again, _, err := there.try(nil, "dag", "export", root)
		if err != nil || again != car {
			t.Errorf("exported again it has %d bytes, not the same %d (%v)", len(again), len(car), err)
		}
		out := filepath.Join(there.dir, "out")
		there.run("get", "-o", out, root)
		if diff, err := exec.Command("diff", "-r", filepath.Join(from.dir, "tree"), out).CombinedOutput(); err != nil {
			t.Errorf("the tree differs: %s", diff)
		}
	}
}

func TestADaemonFindsEverythingAfterItsRestart(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		d := r.daemon("--offline")
		data := random(4, 3<<20)
		cid := r.run("add", "-Q", r.file("data", data))
		r.feed([]byte("mfs"), "files", "write", "--create", "/f")
		d.stop()
		r.holds(cid, data) // offline, between
		d = r.daemon("--offline")
		r.holds(cid, data)
		if got := r.run("files", "read", "/f"); got != "mfs" {
			t.Errorf("MFS: %q", got)
		}
		if !r.pinned()[cid] {
			t.Error("the pin is gone")
		}
		d.stop()
	})
}

// With the network on (loopback only), Kubo opens and removes its provider keystores beside the node.
func TestAnOnlineDaemonKeepsItsKeystoresBesideTheNode(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		data := random(5, 1<<20)
		var cid string
		for range 2 {
			d := r.daemon()
			cid = r.run("add", "-Q", r.file("data", data))
			r.holds(cid, data)
			d.stop()
			if strings.Contains(d.text(), "ERROR") {
				t.Errorf("the daemon complains:\n%s", d.text())
			}
		}
		if profile == "basalt" {
			stores, err := filepath.Glob(filepath.Join(r.path, "provider-keystore", "*"))
			if err != nil || len(stores) == 0 {
				t.Errorf("no keystore: %v %v", stores, err)
			}
		}
		if err := os.RemoveAll(filepath.Join(r.path, "provider-keystore")); err != nil {
			t.Fatal(err)
		}
		r.holds(cid, data)
		r.run("repo", "verify")
	})
}

// For ipfs-ffi too: where an operator's agent owns the node, it is a client like any other. (Where it hosts the node itself there is no
// agent; what becomes of that node when Kubo is killed is another test's.)
func TestTheAgentRestartsUnderARunningDaemon(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, way flavour, profile string) {
		r := way.made(t, profile)
		agenttest.KillAgents(t, r.dir)
		n := r.node()
		n.Start()
		d := r.daemon("--offline")
		data := random(6, 2<<20)
		cid := r.run("add", "-Q", r.file("data", data))
		for _, end := range []func(){n.Stop, n.Kill} {
			end()
			n.Start()
			r.holds(cid, data)
			r.run("pin", "add", cid)
			r.run("repo", "stat")
			if st := n.Status(); int(st.Pid) != n.Pid() || len(st.Clients) == 0 {
				t.Errorf("served by pid %d, not by the agent, or Kubo is not its client: %v", st.Pid, st.Clients)
			}
		}
		d.stop()
		n.Stop()
	})
}

func TestAnAutostartedAgentComesBackUnderARunningDaemon(t *testing.T) {
	t.Parallel()
	r := made(t, "basalt")
	d := r.daemon("--offline")
	data := random(7, 2<<20)
	cid := r.run("add", "-Q", r.file("data", data))
	agenttest.KillAgents(t, r.dir)
	r.holds(cid, data)
	d.stop()
	agenttest.Eventually(t, "no agent is left", func() error {
		if pids := agenttest.Agents(t, r.dir); len(pids) > 0 {
			return fmt.Errorf("pids %v", pids)
		}
		return nil
	})
}

func TestTwentyReposMadeSideBySideLeaveNoProcess(t *testing.T) {
	t.Parallel()
	const repos = 20
	first := bare(t)
	var made sync.WaitGroup
	for i := range repos {
		r := *first
		r.path = filepath.Join(r.dir, fmt.Sprint(i))
		r.env = append(slices.Clone(first.env), "IPFS_PATH="+r.path)
		made.Go(func() {
			if _, errs, err := r.try(nil, "init", "--profile=test,"+profiles[i%len(profiles)]); err != nil {
				t.Errorf("init %d: %v\n%s", i, err, errs)
				return
			}
			out, errs, err := r.try(strings.NewReader(r.path), "add", "-Q")
			if err != nil {
				t.Errorf("add %d: %v\n%s", i, err, errs)
				return
			}
			if got, errs, err := r.try(nil, "cat", strings.TrimSpace(out)); err != nil || got != r.path {
				t.Errorf("cat %d: %q %v\n%s", i, got, err, errs)
			}
		})
	}
	made.Wait()
	if agents := len(agenttest.Agents(t, first.dir)); agents > repos {
		t.Errorf("%d agents for %d repos", agents, repos)
	}
	agenttest.Eventually(t, "no agent is left", func() error {
		if pids := agenttest.Agents(t, first.dir); len(pids) > 0 {
			return fmt.Errorf("pids %v", pids)
		}
		return nil
	})
}

// What `ipfs add` has said to have added and pinned is there, though the agent is killed again and again meanwhile.
func TestWhatWasAddedIsThereAfterKill9DuringAdd(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, profile string) {
		r := made(t, profile)
		d := r.daemon("--offline")
		var mu sync.Mutex
		added := map[string][]byte{}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for w := range 3 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					data := random(uint64(w*1000+i), 1+(i*i*w*7919)%(3<<20))
					out, errs, err := r.try(bytes.NewReader(data), "add", "-Q")
					if err != nil {
						t.Errorf("add: %v\n%s", err, errs)
						return
					}
					mu.Lock()
					added[strings.TrimSpace(out)] = data
					mu.Unlock()
				}
			})
		}
		count := func() int { mu.Lock(); defer mu.Unlock(); return len(added) }
		kills := 0
		for range 5 {
			from := count()
			agenttest.Eventually(t, "adding goes on", func() error {
				if count() < from+4 && !t.Failed() {
					return fmt.Errorf("%d added", count()-from)
				}
				return nil
			})
			kills += len(agenttest.Agents(t, r.dir))
			agenttest.KillAgents(t, r.dir)
		}
		close(stop)
		wg.Wait()
		if kills < 5 {
			t.Errorf("only %d agents were killed", kills)
		}
		d.stop()
		agenttest.KillAgents(t, r.dir)
		pins := r.pinned()
		for cid := range added {
			if !pins[cid] {
				t.Errorf("%s was added and is not pinned", cid)
			}
		}
		r.holdsAll(added)
		r.run("repo", "verify")
		t.Logf("%d files added over %d kills", len(added), kills)
	})
}

func TestAProfileOnARepoOfAnotherKindIsRefused(t *testing.T) {
	t.Parallel()
	r := bare(t)
	r.run("init", "--profile=test")
	cid := r.feed([]byte("x"), "add", "-Q")
	before, err := os.ReadFile(filepath.Join(r.path, "config"))
	if err != nil {
		t.Fatal(err)
	}
	for _, profile := range profiles {
		_, errs, err := r.try(nil, "config", "profile", "apply", profile)
		if err == nil || !strings.Contains(errs, "basalt-migrate") {
			t.Errorf("%v: %s", err, errs)
		}
	}
	if after, _ := os.ReadFile(filepath.Join(r.path, "config")); !bytes.Equal(before, after) {
		t.Error("the config was changed")
	}
	r.holds(cid, []byte("x"))
	basalt := made(t, "basalt")
	basalt.run("config", "profile", "apply", "basalt") // it is so already
	basalt.feed([]byte("x"), "add", "-Q")
}

func TestInitWithoutTheProgramBasaltLeavesNoRepo(t *testing.T) {
	t.Parallel()
	r := bare(t)
	program, err := os.ReadFile(r.bin)
	if err != nil {
		t.Fatal(err)
	}
	r.bin = r.file("alone/ipfs", program)
	if err := os.Chmod(r.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	r.env = []string{"IPFS_PATH=" + r.path, "PATH=" + r.dir, "HOME=" + r.dir}
	_, errs, err := r.try(nil, "init", "--profile=test,basalt")
	if err == nil || !strings.Contains(errs, filepath.Join(r.dir, "alone/basalt")) || !strings.Contains(errs, "PATH") {
		t.Errorf("%v: %s", err, errs)
	}
	if _, err := os.Stat(filepath.Join(r.path, "config")); err == nil {
		t.Error("a half-made repo was left")
	}
}

func TestAMovedNodeNeedsNoEditOfTheSpecOnDisk(t *testing.T) {
	t.Parallel()
	r := made(t, "basalt")
	cid := r.feed([]byte("moved"), "add", "-Q")
	for _, pid := range agenttest.Agents(t, r.dir) {
		exec.Command("kill", pid).Run()
	}
	agenttest.Eventually(t, "the agent is gone", func() error {
		if pids := agenttest.Agents(t, r.dir); len(pids) > 0 {
			return fmt.Errorf("pids %v", pids)
		}
		return nil
	})
	moved := filepath.Join(r.dir, "elsewhere")
	if err := os.Rename(filepath.Join(r.path, "basalt"), moved); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := r.try(nil, "cat", cid); err == nil || !strings.Contains(errs, "Did the folder move") {
		t.Errorf("%v: %s", err, errs)
	}
	config, err := os.ReadFile(filepath.Join(r.path, "config"))
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"path": "basalt"`), []byte(`"path": "`+moved+`", "lane": "grpc"`), 1)
	if err := os.WriteFile(filepath.Join(r.path, "config"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	r.holds(cid, []byte("moved"))
}

func TestADaemonSaysWhenItsAgentStaysAway(t *testing.T) {
	t.Parallel()
	r := made(t, "basalt")
	agenttest.KillAgents(t, r.dir)
	n := r.node()
	n.Start()
	config, err := os.ReadFile(filepath.Join(r.path, "config"))
	if err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"path": "basalt"`), []byte(`"path": "basalt", "autostart": false, "retry_seconds": 1`), 1)
	if err := os.WriteFile(filepath.Join(r.path, "config"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	d := r.daemon("--offline")
	cid := r.feed([]byte("there"), "add", "-Q")
	n.Kill()
	// A new block, for Kubo may still know the old one.
	_, errs, err := r.try(strings.NewReader("new"), "add", "-Q")
	if err == nil || !strings.Contains(errs, "no agent answers on "+n.Sockets[0]) || !strings.Contains(errs, "basalt agent --node "+n.Path) {
		t.Errorf("%v: %s", err, errs)
	}
	if d.cmd.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("the daemon ended")
	}
	n.Start()
	r.holds(cid, []byte("there"))
	d.stop()
	n.Stop()
}
