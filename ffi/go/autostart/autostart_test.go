package autostart_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/agenttest"
	ds "github.com/ipfs/go-datastore"
)

func starting(n *agenttest.Node) datastore.Config {
	cfg := n.Config("root")
	cfg.Start = autostart.Agent{Node: n.Path, Sockets: n.Sockets}.Start
	return cfg
}

func gone(t *testing.T, dir string) {
	t.Helper()
	agenttest.Eventually(t, "no agent is left", func() error {
		if pids := agenttest.Agents(t, dir); len(pids) > 0 {
			return fmt.Errorf("pids %v", pids)
		}
		return nil
	})
}

func TestTwentyReposSideBySideLeaveNoProcess(t *testing.T) {
	t.Parallel()
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	const repos = 20
	var wg sync.WaitGroup
	for i := range repos {
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		n := agenttest.Init(t, sub)
		wg.Go(func() {
			d, err := datastore.Open(context.Background(), starting(n))
			if err != nil {
				t.Error(err)
				return
			}
			k := ds.NewKey("/pins/a")
			if err := d.Put(context.Background(), k, []byte(n.ID)); err != nil {
				t.Error(err)
			}
			if v, err := d.Get(context.Background(), k); err != nil || string(v) != n.ID {
				t.Errorf("%q %v", v, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := len(agenttest.Agents(t, dir)); left > repos {
		t.Errorf("%d agents for %d repos", left, repos)
	}
	gone(t, dir)
}

func TestTwoThatRaceGetOneAgent(t *testing.T) {
	t.Parallel()
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	n := agenttest.Init(t, dir)
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := (autostart.Agent{Node: n.Path, Sockets: n.Sockets}).Start(context.Background()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, pid := range agenttest.Agents(t, dir) {
				seen[pid] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Fatalf("agents %v, want one", seen)
	}
	if log, _ := os.ReadFile(filepath.Join(n.Path, "run", "agent.log")); strings.Contains(string(log), "open in another process") {
		t.Errorf("a second one was started and refused:\n%s", log)
	}
	gone(t, dir)
}

func TestAnOperatorsAgentIsUsedAndNeverStopped(t *testing.T) {
	t.Parallel()
	n := agenttest.Serve(t)
	pid := n.Pid()
	d, err := datastore.Open(t.Context(), starting(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if st := n.Status(); int(st.Pid) != pid || st.Host != "agent" {
		t.Fatalf("served by %s, pid %d, want %d", st.Host, st.Pid, pid)
	}
	n.Stop()
}

func TestAKilledAutostartedAgentIsStartedAgainUnderItsClient(t *testing.T) {
	t.Parallel()
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	n := agenttest.Init(t, dir)
	d, err := datastore.Open(t.Context(), starting(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	agenttest.KillAgents(t, dir)
	if v, err := d.Get(t.Context(), ds.NewKey("/a")); err != nil || string(v) != "kept" {
		t.Fatalf("%q %v", v, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, dir)
}

func TestAnOperatorsAgentTakesOverAndItsClientsGoOn(t *testing.T) {
	t.Parallel()
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	n := agenttest.Init(t, dir)
	d, err := datastore.Open(t.Context(), starting(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	n.Start()
	if st := n.Status(); st.Host != "agent" {
		t.Fatalf("served by %s", st.Host)
	}
	if v, err := d.Get(t.Context(), ds.NewKey("/a")); err != nil || string(v) != "kept" {
		t.Fatalf("%q %v", v, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	n.Stop()
}

func TestOnlyAnEmptyNodeIsTakenForANewRepo(t *testing.T) {
	ctx := context.Background()
	if id, _, err := autostart.Fresh(ctx, filepath.Join(agenttest.Temp(t), "none")); id != "" || err != nil {
		t.Fatalf("where there is none: %q, %v", id, err)
	}
	n := agenttest.Init(t, agenttest.Temp(t), "--durability", "ordered")
	if id, durability, err := autostart.Fresh(ctx, n.Path); id != n.ID || durability != "ordered" || err != nil {
		t.Fatalf("an empty node: %q, %q, %v", id, durability, err)
	}
	d, err := datastore.Open(ctx, starting(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, ds.NewKey("/pins/x"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if id, _, err := autostart.Fresh(ctx, n.Path); err == nil || !strings.Contains(err.Error(), "holds 0 blocks and 1 other keys") {
		t.Fatalf("a node with a pin: %q, %v", id, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAnAgentThatCannotStartSaysWhyAtOnce(t *testing.T) {
	t.Parallel()
	n := agenttest.Init(t, agenttest.Temp(t))
	if err := os.WriteFile(filepath.Join(n.Path, "basalt.toml"), []byte("[node]\ndurabilty = \"strict\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := datastore.Open(t.Context(), starting(n))
	if err == nil || !strings.Contains(err.Error(), "durabilty") {
		t.Fatalf("the error does not hold what the agent said: %v", err)
	}
	if time.Since(began) > 20*time.Second {
		t.Errorf("it took %s", time.Since(began))
	}
}

func TestAnOwnerThatDoesNotServeIsNamed(t *testing.T) {
	t.Parallel()
	n := agenttest.Init(t, agenttest.Temp(t))
	// Another process has the owner's lock and serves nothing.
	holder := exec.Command("flock", filepath.Join(n.Path, "lock"), "-c", "echo pid $PPID > "+filepath.Join(n.Path, "lock")+"; echo held; read x")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); holder.Wait() }()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = autostart.Agent{Node: n.Path, Sockets: n.Sockets}.Start(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint("pid ", holder.Process.Pid)) {
		t.Fatalf("%v", err)
	}
}

func TestTheSocketMovesOutWhereThePathIsTooLong(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", agenttest.Temp(t))
	dir := filepath.Join(agenttest.Temp(t), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	n := agenttest.Init(t, dir)
	if len(n.Sockets) != 1 || !strings.HasPrefix(n.Sockets[0], os.Getenv("XDG_RUNTIME_DIR")) {
		t.Fatalf("sockets %v", n.Sockets)
	}
	d, err := datastore.Open(t.Context(), starting(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), ds.NewKey("/a"), nil); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	gone(t, dir)
}
