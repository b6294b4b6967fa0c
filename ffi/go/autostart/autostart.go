// Package autostart runs an agent for a node that nobody serves, so that `ipfs` just works where no operator set one up.
//
// The agent it starts opens no TCP port, serves until nobody has been connected for a while, and is not a child to be waited for:
// it has a session of its own and outlives the command that started it. Two processes that need one at once get the same: starting
// has its own lock, held until the socket answers. An agent that is there is used, and never stopped.
package autostart

import (
	"bytes"
	"context"
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
	successor   = 3 * time.Second // how long after our agent failed another owner's socket may still appear
	logMaxBytes = 1 << 20         // a log beyond this is begun anew
	tailBytes   = 2 << 10
)

// Agent says which agent to start.
type Agent struct {
	Node   string // the node's folder, absolute
	Socket string // its data socket
}

// Binary finds `basalt`: $BASALT_BIN, then beside this executable, then in PATH.
func Binary() (string, error) {
	if bin := os.Getenv(BinaryEnv); bin != "" {
		if _, err := exec.LookPath(bin); err != nil {
			return "", fmt.Errorf("basalt: %s names %s, which can't be run: %w", BinaryEnv, bin, err)
		}
		return bin, nil
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

// Start returns once the node's socket answers: at once if somebody serves it, else after starting an agent.
func (a Agent) Start(ctx context.Context) error {
	if a.answers() {
		return nil
	}
	if _, err := os.Stat(a.Node); err != nil {
		return fmt.Errorf("basalt: the node's folder %s is not there (%w). Is its file system mounted?", a.Node, err)
	}
	dir := filepath.Dir(a.Socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("basalt: can't make %s for the agent's sockets: %w", dir, err)
	}
	lock, err := takeLock(ctx, filepath.Join(dir, "start.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if a.answers() {
		return nil
	}
	return a.spawn(ctx, dir)
}

func (a Agent) answers() bool {
	conn, err := net.Dial("unix", a.Socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// takeLock waits for an exclusive lock on a file; closing the file lets go of it.
func takeLock(ctx context.Context, path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("basalt: the lock for starting an agent: %w", err)
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

func (a Agent) spawn(ctx context.Context, dir string) error {
	bin, err := Binary()
	if err != nil {
		return err
	}
	logPath := filepath.Join(dir, "agent.log")
	logFile, begin := openLog(logPath)
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

	var failure error
	gone := (<-chan time.Time)(nil)
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
			failure = fmt.Errorf("basalt: the agent `%s` ended before it served %s: %w%s", strings.Join(cmd.Args, " "), a.Socket, err, tail(logPath, begin))
			gone = time.After(successor) // another owner may have been faster
			ended = nil
		case <-gone:
			return failure
		case <-ctx.Done():
			return fmt.Errorf("basalt: the agent (pid %d) has started but does not serve %s yet: it may be recovering. See %s, and try again%s",
				cmd.Process.Pid, a.Socket, logPath, tail(logPath, begin))
		}
	}
}

// openLog opens the agent's log for appending and says where this run's part begins; nil where it can't be written.
func openLog(path string) (*os.File, int64) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0
	}
	st, err := f.Stat()
	if err != nil {
		return f, 0
	}
	if st.Size() > logMaxBytes && f.Truncate(0) == nil {
		return f, 0
	}
	return f, st.Size()
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

// Init makes the folder of a new node with `basalt init`, with the id that the repo's config already names.
func Init(ctx context.Context, node, id, durability string) error {
	bin, err := Binary()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bin, "init", "--node-id", id, "--durability", durability, node)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("basalt: making the node: `%s`: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
