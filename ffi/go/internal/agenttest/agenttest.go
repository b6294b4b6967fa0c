// Package agenttest gives tests a real node with a real agent, in a folder of its own that goes when the test ends.
package agenttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Patience is how long a test waits for what should be there soon; the machine may be busy.
const Patience = 60 * time.Second

// Program returns the path of a program under test: the environment variable if set, else bin/NAME of the checkout. A test that
// needs it fails without it: skipping would look like passing.
func Program(t testing.TB, env, name string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		dir, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				break
			}
			if dir == filepath.Dir(dir) {
				t.Fatal("no go.mod above the working folder")
			}
			dir = filepath.Dir(dir)
		}
		path = filepath.Join(dir, "..", "..", "bin", name)
	}
	if _, err := exec.LookPath(path); err != nil {
		t.Fatalf("%s is not there (%v): `make build`, or name it in %s", path, err, env)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Basalt returns the program `basalt`, and lets autostart find it too.
func Basalt(t testing.TB) string {
	t.Helper()
	bin := Program(t, autostart.BinaryEnv, "basalt")
	os.Setenv(autostart.BinaryEnv, bin)
	return bin
}

// Temp makes a folder in memory where the machine has one, for a path short enough for sockets; it goes with the test.
func Temp(t testing.TB) string {
	t.Helper()
	base := ""
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		base = "/dev/shm"
	}
	return TempIn(t, base)
}

// TempIn makes a folder below base (empty: the system's place for such) that goes with the test.
func TempIn(t testing.TB, base string) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "basalt-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Node is a node's folder, and the agent that a test runs on it.
type Node struct {
	Path    string
	ID      string
	Sockets []string
	NoLane  bool // its views go by gRPC alone
	t       testing.TB
	bin     string
	agent   *exec.Cmd
	ended   chan struct{}
	log     *os.File
}

// Init makes a node below dir; flags are those of `basalt init`.
func Init(t testing.TB, dir string, flags ...string) *Node {
	t.Helper()
	n := &Node{Path: filepath.Join(dir, "node"), t: t, bin: Basalt(t)}
	args := append([]string{"init"}, flags...)
	if out, err := exec.Command(n.bin, append(args, n.Path)...).CombinedOutput(); err != nil {
		t.Fatalf("basalt init: %v\n%s", err, out)
	}
	n.read()
	return n
}

// At is a node that somebody else made.
func At(t testing.TB, path string) *Node {
	t.Helper()
	n := &Node{Path: path, t: t, bin: Basalt(t)}
	n.read()
	return n
}

func (n *Node) read() {
	n.t.Helper()
	n.t.Cleanup(n.Kill) // once, so that what is opened on any of its agents is closed before
	var err error
	if n.ID, err = autostart.NodeID(n.Path); err != nil {
		n.t.Fatal(err)
	}
	if n.Sockets, err = autostart.DataSockets(n.Path, n.ID); err != nil {
		n.t.Fatal(err)
	}
}

// Serve is Init in memory and Start.
func Serve(t testing.TB, flags ...string) *Node {
	t.Helper()
	n := Init(t, Temp(t), flags...)
	n.Start()
	return n
}

// Start runs an agent as an operator would, and returns when it serves.
func (n *Node) Start(flags ...string) {
	n.t.Helper()
	if n.agent != nil {
		n.t.Fatal("the agent runs already")
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(n.Path), "agent.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	n.log = log
	cmd := exec.Command(n.bin, append([]string{"agent", "--node", n.Path}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "BASALT_HTTP_LISTEN=127.0.0.1:0")
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.agent, n.ended = cmd, make(chan struct{})
	go func() { cmd.Wait(); close(n.ended) }()
	Eventually(n.t, "the agent serves", func() error {
		select {
		case <-n.ended:
			n.t.Fatalf("the agent ended: %s\n%s", cmd.ProcessState, n.Log())
		default:
		}
		st, err := n.status()
		if err == nil && int(st.Pid) != cmd.Process.Pid {
			err = fmt.Errorf("pid %d serves, not ours", st.Pid)
		}
		return err
	})
}

// Log is what the agents of this test wrote.
func (n *Node) Log() string {
	text, _ := os.ReadFile(filepath.Join(filepath.Dir(n.Path), "agent.log"))
	return string(text)
}

// Kill ends the agent as a crash does, kill -9.
func (n *Node) Kill() { n.end(syscall.SIGKILL) }

// Stop ends the agent as an operator does, and checks that it says it is well.
func (n *Node) Stop() {
	n.t.Helper()
	cmd := n.agent
	n.end(syscall.SIGTERM)
	if cmd != nil && !cmd.ProcessState.Success() {
		n.t.Fatalf("the agent ended with %s\n%s", cmd.ProcessState, n.Log())
	}
}

func (n *Node) end(signal syscall.Signal) {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Signal(signal)
	select {
	case <-n.ended:
	case <-time.After(Patience):
		_ = n.agent.Process.Kill()
		<-n.ended
		n.t.Errorf("the agent did not end on %s\n%s", signal, n.Log())
	}
	n.agent = nil
	n.log.Close()
}

// Pid is the agent's.
func (n *Node) Pid() int { return n.agent.Process.Pid }

// Config is how a client reaches the node.
func (n *Node) Config(role string) datastore.Config {
	return datastore.Config{Sockets: n.Sockets, NodeID: n.ID, NodePath: n.Path, Role: role, Client: "test", NoLane: n.NoLane, Retry: Patience}
}

// Open opens a view of the node.
func (n *Node) Open(role string) *datastore.Datastore {
	n.t.Helper()
	d, err := datastore.Open(context.Background(), n.Config(role))
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.Log())
	}
	n.t.Cleanup(func() { d.Close() })
	return d
}

// Status asks the node over its admin socket.
func (n *Node) Status() *basaltv1.StatusResponse {
	n.t.Helper()
	st, err := n.status()
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func (n *Node) status() (*basaltv1.StatusResponse, error) {
	admin := ""
	for _, socket := range n.Sockets {
		path := filepath.Join(filepath.Dir(socket), "admin.sock")
		if _, err := os.Stat(path); err == nil {
			admin = path
			break
		}
	}
	if admin == "" {
		return nil, errors.New("no admin socket yet")
	}
	cc, err := grpc.NewClient("unix:"+admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return basaltv1.NewAdminClient(cc).Status(ctx, &basaltv1.StatusRequest{})
}

// Owned says whether a process has the node open.
func (n *Node) Owned() bool {
	f, err := os.Open(filepath.Join(n.Path, "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// Agents returns the pids of all processes that were started as an agent for a folder below dir.
func Agents(t testing.TB, dir string) (pids []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range procs {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		args := strings.Split(string(text), "\x00")
		if len(args) > 1 && args[1] == "agent" && strings.Contains(string(text), dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// KillAgents ends what Agents finds; for the end of tests whose agents were autostarted.
func KillAgents(t testing.TB, dir string) {
	for _, pid := range Agents(t, dir) {
		_ = exec.Command("kill", "-9", pid).Run()
	}
}

// Eventually polls until f has no error, and fails with its last one when patience ends.
func Eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s still not so: %s: %v", Patience, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
