// Package autostart runs an agent for a node that nobody serves, so that `ipfs` just works where no operator set one up.
//
// The agent it starts opens no TCP port, serves until nobody has been connected for a while, and is not a child to be waited for:
// it has a session of its own and outlives the command that started it. Two processes that need one at once get the same: starting
// has its own lock (NODE/starting.lock), held until a socket answers. An agent that is there is used, and never stopped.
package autostart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// BinaryEnv names a `basalt` to use instead of the one beside the executable or in PATH.
const BinaryEnv = "BASALT_BIN"

const (
	poll        = 5 * time.Millisecond
	logMaxBytes = 1 << 20 // a log beyond this is begun anew
	tailBytes   = 2 << 10
)

// Agent says which agent to start.
type Agent struct {
	Node    string   // the node's folder, absolute
	Sockets []string // where its data socket may come to be
}

// Binary finds `basalt`: $BASALT_BIN, then beside this executable, then in PATH.
func Binary() (string, error) {
	if bin := os.Getenv(BinaryEnv); bin != "" {
		if _, err := exec.LookPath(bin); err != nil {
			return "", fmt.Errorf("basalt: %s names %s, which can't be run: %w", BinaryEnv, bin, err)
		}
		return filepath.Abs(bin)
	}
	beside := ""
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		beside = filepath.Join(filepath.Dir(self), "basalt")
		if _, err := exec.LookPath(beside); err == nil {
			return beside, nil
		}
	}
	bin, err := exec.LookPath("basalt")
	if err != nil {
		return "", fmt.Errorf("basalt: the program `basalt` is neither %s nor in PATH. Put it there, or name it in %s", beside, BinaryEnv)
	}
	return filepath.Abs(bin)
}

// NodeID reads which node a folder is; os.ErrNotExist where it is none (yet).
func NodeID(node string) (string, error) {
	text, err := os.ReadFile(filepath.Join(node, "node.json"))
	if err != nil {
		return "", err
	}
	var file struct {
		NodeID string `json:"node_id"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return "", fmt.Errorf("basalt: %s does not read as a node's: %w", filepath.Join(node, "node.json"), err)
	}
	return file.NodeID, nil
}

// Start returns once one of the node's sockets answers: at once if somebody serves it, else after starting an agent.
func (a Agent) Start(ctx context.Context) error {
	if a.answers() {
		return nil
	}
	starting, err := takeLock(ctx, filepath.Join(a.Node, "starting.lock"))
	if err != nil {
		return err
	}
	defer starting.Close()
	for {
		// An owner that doesn't serve is closing (then it is our turn when it has let go) or opening (then its socket will answer).
		if err := a.waitForOwner(ctx); err != nil || a.answers() {
			return err
		}
		err := a.spawn(ctx)
		if err == nil || ctx.Err() != nil || owner(a.Node) == "" {
			return err
		}
		// Another owner was faster than ours.
	}
}

func (a Agent) answers() bool {
	for _, socket := range a.Sockets {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return true
		}
	}
	return false
}

// waitForOwner returns when a socket answers, or nobody has the node open.
func (a Agent) waitForOwner(ctx context.Context) error {
	for {
		if a.answers() {
			return nil
		}
		who := owner(a.Node)
		if who == "" {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("basalt: node %s is open in another process (%s), which does not serve %s: %w", a.Node, who, a.Sockets[0], ctx.Err())
		}
	}
}

// owner says who has the node open, "" for nobody. A moment later it may be otherwise.
func owner(node string) string {
	f, err := os.Open(filepath.Join(node, "lock"))
	if err != nil {
		return ""
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return ""
	}
	text := make([]byte, 256)
	n, _ := f.Read(text)
	if who := strings.Join(strings.Fields(string(text[:n])), " "); who != "" {
		return who
	}
	return "it has not said who it is"
}

// takeLock waits for an exclusive lock on a file; closing the file lets go of it.
func takeLock(ctx context.Context, path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("basalt: the lock for starting an agent: %w. Is the node an operator's? Then start its agent, and set \"autostart\": false", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("basalt: locking %s: %w", path, err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("basalt: another process has been starting the agent (it holds %s): %w", path, ctx.Err())
		}
	}
}

func (a Agent) spawn(ctx context.Context) error {
	bin, err := Binary()
	if err != nil {
		return err
	}
	logPath, logFile, begin := a.openLog()
	if logFile != nil {
		defer logFile.Close()
	}
	cmd := exec.Command(bin, "agent", "--node", a.Node, "--exit-when-idle")
	cmd.Dir = "/" // so that it keeps no folder of its caller busy
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if logFile != nil { // else os/exec gives it /dev/null
		cmd.Stdout, cmd.Stderr = logFile, logFile
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("basalt: starting %s: %w", bin, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // no zombie while this process lives

	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if a.answers() {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-ended:
			if err == nil {
				err = errors.New("it ended without an error")
			}
			return fmt.Errorf("basalt: the agent `%s` ended before it served %s: %w%s", strings.Join(cmd.Args, " "), a.Sockets[0], err, tail(logPath, begin))
		case <-ctx.Done():
			return fmt.Errorf("basalt: the agent (pid %d) has started but does not serve %s yet; it may be recovering. Look at %s, and try again%s",
				cmd.Process.Pid, a.Sockets[0], logPath, tail(logPath, begin))
		}
	}
}

// openLog opens the agent's log, beside a socket, for appending, and says where this run's part begins; nil where it can't be written.
func (a Agent) openLog() (path string, f *os.File, begin int64) {
	for _, socket := range a.Sockets {
		path = filepath.Join(filepath.Dir(socket), "agent.log")
		if os.MkdirAll(filepath.Dir(path), 0o750) != nil {
			continue
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			continue
		}
		st, err := f.Stat()
		if err != nil || st.Size() > logMaxBytes && f.Truncate(0) == nil {
			return path, f, 0
		}
		return path, f, st.Size()
	}
	return path, nil, 0
}

// tail is the end of this run's log, for an error message.
func tail(path string, begin int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size()-begin > tailBytes {
		begin = st.Size() - tailBytes
	}
	text, err := io.ReadAll(io.NewSectionReader(f, begin, tailBytes))
	if text = bytes.TrimSpace(text); err != nil || len(text) == 0 {
		return ""
	}
	return "\n" + string(text)
}

// Fresh says which node is in a folder and of which durability, where an operator has made one for a repo to come; id is empty where there is
// none. A node that holds something already is another repo's, and an error.
func Fresh(ctx context.Context, node string) (id, durability string, err error) {
	if id, err = NodeID(node); errors.Is(err, os.ErrNotExist) {
		return "", "", nil
	} else if err != nil {
		return "", "", err
	}
	bin, err := Binary()
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, bin, "--node", node, "status", "--json")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", "", fmt.Errorf("basalt: %s is a node, and `%s` failed: %w\n%s", node, strings.Join(cmd.Args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	var status struct {
		Durability string `json:"durability"`
		Blocks     uint64 `json:"blocks"`
		Keyspace   struct {
			Keys uint64 `json:"keys"`
		} `json:"keyspace"`
	}
	if err := json.Unmarshal(out.Bytes(), &status); err != nil {
		return "", "", fmt.Errorf("basalt: the status of node %s: %w", node, err)
	}
	if status.Blocks+status.Keyspace.Keys > 0 {
		return "", "", fmt.Errorf("basalt: %s is node %s and holds %d blocks and %d other keys: a new repo takes only an empty node. Restore the config "+
			"and datastore_spec of the repo that it belongs to, or name another repo folder", node, id, status.Blocks, status.Keyspace.Keys)
	}
	return id, status.Durability, nil
}

// Init makes the folder of a new node with `basalt init`, with the id that the repo's config already names; flags are further ones of
// that command.
func Init(ctx context.Context, node, id, durability string, flags ...string) error {
	bin, err := Binary()
	if err != nil {
		return err
	}
	args := append([]string{"init", "--node-id", id, "--durability", durability}, flags...)
	cmd := exec.CommandContext(ctx, bin, append(args, node)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("basalt: making the node: `%s`: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
