// Package e2e drives a real Kubo with a real agent under it, as a person would: by its command line.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"basalt.dev/go/internal/agenttest"
)

var profiles = []string{"basalt", "basalt-blocks"}

// repo is a Kubo repo of a test's own, below dir.
type repo struct {
	t    *testing.T
	bin  string
	dir  string // holds repo and whatever the test writes beside it
	path string
	env  []string
}

// flavour is how the program reaches the node.
type flavour struct{ env, program string }

var (
	overAgent = flavour{"IPFS_BIN", "ipfs"}
	inProcess = flavour{"IPFS_FFI_BIN", "ipfs-ffi"}
)

func bare(t *testing.T) *repo { return overAgent.bare(t) }

func made(t *testing.T, profile string) *repo { return overAgent.made(t, profile) }

func (f flavour) bare(t *testing.T) *repo {
	agenttest.Basalt(t)
	dir := agenttest.Temp(t)
	t.Cleanup(func() { agenttest.KillAgents(t, dir) })
	r := &repo{t: t, bin: agenttest.Program(t, f.env, f.program), dir: dir, path: filepath.Join(dir, "repo")}
	r.env = append(os.Environ(), "IPFS_PATH="+r.path, "IPFS_TELEMETRY=off")
	return r
}

func (f flavour) made(t *testing.T, profile string) *repo {
	r := f.bare(t)
	r.run("init", "--profile=test,"+profile)
	if f == inProcess {
		if pids := agenttest.Agents(t, r.dir); len(pids) > 0 {
			t.Fatalf("ipfs-ffi started agents: %v", pids)
		}
	}
	return r
}

func (r *repo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.bin, args...)
	cmd.Env = r.env
	return cmd
}

// try runs a command with the given input.
func (r *repo) try(in io.Reader, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*agenttest.Patience)
	defer cancel()
	cmd := r.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (r *repo) run(args ...string) string {
	r.t.Helper()
	return r.feed(nil, args...)
}

func (r *repo) feed(in []byte, args ...string) string {
	r.t.Helper()
	out, errs, err := r.try(bytes.NewReader(in), args...)
	if err != nil {
		r.t.Fatalf("ipfs %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return strings.TrimSpace(out)
}

// node is the node under the repo.
func (r *repo) node() *agenttest.Node { return agenttest.At(r.t, filepath.Join(r.path, "basalt")) }

// file writes a file beside the repo.
func (r *repo) file(name string, data []byte) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func random(seed uint64, size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(data)
	return data
}

func (r *repo) holds(cid string, want []byte) {
	r.t.Helper()
	if got := r.cat(cid); !bytes.Equal(got, want) {
		r.t.Fatalf("cat %s gives %d bytes that are not the %d that were added", cid, len(got), len(want))
	}
}

// holdsAll is holds of many by one command, for each has to start a Kubo.
func (r *repo) holdsAll(files map[string][]byte) {
	r.t.Helper()
	cids := slices.Sorted(maps.Keys(files))
	var want []byte
	for _, cid := range cids {
		want = append(want, files[cid]...)
	}
	if out, errs, err := r.try(nil, append([]string{"cat"}, cids...)...); err != nil || out != string(want) {
		for _, cid := range cids {
			r.holds(cid, files[cid]) // names it
		}
		r.t.Fatalf("cat of %d files gives %d bytes that are not the %d that were added, though each of them is there: %v\n%s", len(cids), len(out), len(want), err, errs)
	}
}

func (r *repo) cat(cid string) []byte {
	r.t.Helper()
	out, errs, err := r.try(nil, "cat", cid)
	if err != nil {
		r.t.Fatalf("cat %s: %v\n%s", cid, err, errs)
	}
	return []byte(out)
}

func (r *repo) pinned() map[string]bool {
	r.t.Helper()
	pins := map[string]bool{}
	for line := range strings.Lines(r.run("pin", "ls", "--type=recursive", "--quiet")) {
		pins[strings.TrimSpace(line)] = true
	}
	return pins
}

func (r *repo) objects() int {
	r.t.Helper()
	for line := range strings.Lines(r.run("repo", "stat")) {
		if value, ok := strings.CutPrefix(line, "NumObjects:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				r.t.Fatal(err)
			}
			return n
		}
	}
	r.t.Fatal("no NumObjects in repo stat")
	return 0
}

// daemon is `ipfs daemon` on random loopback ports.
type daemon struct {
	r     *repo
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	log   bytes.Buffer
}

func (r *repo) daemon(flags ...string) *daemon {
	r.t.Helper()
	d := &daemon{r: r, ended: make(chan struct{})}
	d.cmd = r.command(context.Background(), append([]string{"daemon"}, flags...)...)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	d.cmd.Stderr = d.cmd.Stdout
	if err := d.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			d.mu.Lock()
			fmt.Fprintln(&d.log, lines.Text())
			d.mu.Unlock()
			if strings.Contains(lines.Text(), "Daemon is ready") {
				close(ready)
			}
		}
		d.cmd.Wait()
		close(d.ended)
	}()
	r.t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.ended
	})
	select {
	case <-ready:
	case <-d.ended:
		r.t.Fatalf("the daemon ended: %s\n%s", d.cmd.ProcessState, d.text())
	case <-time.After(2 * agenttest.Patience):
		r.t.Fatalf("the daemon is not ready\n%s", d.text())
	}
	return d
}

func (d *daemon) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

func (d *daemon) stop() {
	d.r.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(2 * agenttest.Patience):
		d.r.t.Fatalf("the daemon does not stop\n%s", d.text())
	}
	if !d.cmd.ProcessState.Success() {
		d.r.t.Fatalf("the daemon ended with %s\n%s", d.cmd.ProcessState, d.text())
	}
}
