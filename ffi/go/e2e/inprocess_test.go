package e2e

// A Kubo that hosts its node itself: who it takes the node over from, who it leaves it with, and what is left when it dies.

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"basalt.dev/go/internal/agenttest"
)

func TestBothProgramsUseOneRepoByTurns(t *testing.T) {
	t.Parallel()
	r := made(t, "basalt") // leaves an autostarted agent, which hands over
	other := *r
	other.bin = agenttest.Program(t, inProcess.env, inProcess.program)
	first := r.feed([]byte("by ipfs"), "add", "-Q")
	second := other.feed([]byte("by ipfs-ffi"), "add", "-Q")
	agenttest.Eventually(t, "the agent has handed over and ended", func() error {
		if pids := agenttest.Agents(t, r.dir); len(pids) > 0 {
			return fmt.Errorf("pids %v", pids)
		}
		return nil
	})
	r.holds(second, []byte("by ipfs-ffi"))
	other.holds(first, []byte("by ipfs"))
}

func TestAnOperatorsAgentIsUsedAndNotStopped(t *testing.T) {
	t.Parallel()
	r := inProcess.made(t, "basalt-blocks")
	n := r.node()
	n.Start()
	pid := n.Pid()
	d := r.daemon("--offline")
	cid := r.feed([]byte("through the agent"), "add", "-Q")
	if st := n.Status(); int(st.Pid) != pid || st.Host != "agent" || st.Blocks == 0 {
		t.Errorf("host %s, pid %d, %d blocks", st.Host, st.Pid, st.Blocks)
	}
	d.stop()
	n.Stop()
	r.holds(cid, []byte("through the agent"))
}

func TestTheCommandsWorkOnANodeInKubo(t *testing.T) {
	t.Parallel()
	r := inProcess.made(t, "basalt")
	source := r.file("source", random(60, 1<<20))
	d := r.daemon("--offline")
	cid := r.run("add", "-Q", source)
	if out := r.must("status"); !strings.Contains(out, "kubo (ffi)") {
		t.Errorf("status: %s", out)
	}
	r.must("verify")
	byKubo, _, err := r.try(nil, "dag", "export", cid)
	if err != nil {
		t.Fatal(err)
	}
	if byBasalt := r.must("export", "car", "-", "--root", cid); byBasalt != byKubo {
		t.Error("basalt export car --root differs from ipfs dag export")
	}
	car := r.file("in.car", []byte(byKubo))
	if _, errs, code := r.basalt("import", "car", car); code != 1 || !strings.Contains(errs, "--allow-connected") {
		t.Errorf("an import behind the Kubo that hosts the node: exit code %d: %s", code, errs)
	}
	d.stop()
}

// The node dies with Kubo; what `ipfs add` has said to have added and pinned is there all the same.
func TestWhatWasAddedIsThereAfterKuboItselfIsKilled(t *testing.T) {
	t.Parallel()
	for _, profile := range profiles {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			r := inProcess.made(t, profile)
			var mu sync.Mutex
			added := map[string][]byte{}
			for round := range 3 {
				d := r.daemon("--offline")
				var wg sync.WaitGroup
				for w := range 2 {
					wg.Go(func() {
						for i := 0; ; i++ {
							data := random(uint64(round*10_000+w*1000+i), 1+(i*i*(w+1)*7919)%(1<<20))
							out, _, err := r.try(bytes.NewReader(data), "add", "-Q", "--api="+d.api())
							if err != nil {
								return // killed
							}
							mu.Lock()
							added[strings.TrimSpace(out)] = data
							mu.Unlock()
						}
					})
				}
				agenttest.Eventually(t, "files are added", func() error {
					mu.Lock()
					defer mu.Unlock()
					if len(added) < 6*(round+1) {
						return fmt.Errorf("%d", len(added))
					}
					return nil
				})
				_ = d.cmd.Process.Kill()
				<-d.ended
				wg.Wait()
			}
			pins := r.pinned()
			for cid := range added {
				if !pins[cid] {
					t.Errorf("%s was added and is not pinned", cid)
				}
			}
			r.holdsAll(added)
			r.run("repo", "verify")
			t.Logf("%d files added over 3 kills", len(added))
		})
	}
}

// api is where the daemon takes commands; one that names it never opens the repo itself.
func (d *daemon) api() string {
	d.r.t.Helper()
	for line := range strings.Lines(d.text()) {
		if _, at, ok := strings.Cut(line, "RPC API server listening on "); ok {
			return strings.TrimSpace(at)
		}
	}
	d.r.t.Fatalf("the daemon does not say where its API is\n%s", d.text())
	return ""
}
