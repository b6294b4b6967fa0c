// Package kuboload gives a real Kubo on a real node work to do, and checks that what it acknowledged is there. Tests that kill it and tests that
// watch it for long share it.
package kuboload

// A Kubo with Basalt under it, as real processes, driven by Kubo's RPC over HTTP.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Patience is how long is waited for what should be there soon; the machine may be busy.
const Patience = 3 * time.Minute

// Kubo is a repo, and the daemon on it while one runs.
type Kubo struct {
	Before   []string      // a program and its arguments that runs the daemon; empty: none
	Patience time.Duration // how long is waited for what should be there soon

	program, basalt string
	repo            string
	env             []string
	log             *os.File

	cmd   *exec.Cmd
	ended chan struct{}
	api   string
	http  http.Client

	id      string
	sockets []string
}

// Initialize makes the repo, of any profile; env is for Kubo and the agent that it starts.
func Initialize(program, basalt, dir, profile string, env ...string) (*Kubo, error) {
	k, err := at(program, basalt, dir, env)
	if err != nil {
		return nil, err
	}
	if out, err := k.command("init", "--profile=test,"+profile).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ipfs init: %w: %s", err, out)
	}
	return k, k.locate()
}

// Open is for a repo that Initialize has made before.
func Open(program, basalt, dir string, env ...string) (*Kubo, error) {
	k, err := at(program, basalt, dir, env)
	if err != nil {
		return nil, err
	}
	return k, k.locate()
}

func at(program, basalt, dir string, env []string) (k *Kubo, err error) {
	k = &Kubo{Patience: Patience, program: program, basalt: basalt, repo: filepath.Join(dir, "repo")}
	k.env = append(os.Environ(), "IPFS_PATH="+k.repo, "IPFS_TELEMETRY=off", autostart.BinaryEnv+"="+basalt)
	k.env = append(k.env, env...)
	k.http.Transport = &http.Transport{MaxIdleConnsPerHost: 8}
	if err = os.MkdirAll(dir, 0o700); err == nil {
		k.log, err = os.OpenFile(filepath.Join(dir, "kubo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}
	return k, err
}

// locate learns where its node is. A repo with another store has none.
func (k *Kubo) locate() (err error) {
	if _, err := os.Stat(k.Node()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if k.id, err = autostart.NodeID(k.Node()); err == nil {
		k.sockets, err = autostart.DataSockets(k.Node(), k.id)
	}
	return err
}

// Configure sets one of Kubo's own settings, in JSON, for the next start.
func (k *Kubo) Configure(setting, value string) error {
	if out, err := k.command("config", "--json", setting, value).CombinedOutput(); err != nil {
		return fmt.Errorf("ipfs config %s %s: %w: %s", setting, value, err, out)
	}
	return nil
}

// Node is the folder of its node.
func (k *Kubo) Node() string { return filepath.Join(k.repo, "basalt") }

func (k *Kubo) command(args ...string) *exec.Cmd {
	cmd := exec.Command(k.program, args...)
	cmd.Env = k.env
	return cmd
}

// Start runs `ipfs daemon`; Ready waits until it answers.
func (k *Kubo) Start() error {
	os.Remove(filepath.Join(k.repo, "api"))
	k.cmd = k.command("daemon", "--offline")
	if len(k.Before) > 0 {
		k.cmd = exec.Command(k.Before[0], append(append(k.Before[1:], k.program), "daemon", "--offline")...)
		k.cmd.Env = k.env
	}
	k.cmd.Stdout, k.cmd.Stderr = k.log, k.log
	if err := k.cmd.Start(); err != nil {
		return err
	}
	k.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { _ = cmd.Wait(); close(ended) }(k.cmd, k.ended)
	return nil
}

// Ready waits until the daemon answers.
func (k *Kubo) Ready() error {
	return k.Eventually("the daemon answers", func() error {
		select {
		case <-k.ended:
			text, _ := os.ReadFile(k.log.Name())
			return final{fmt.Errorf("ipfs daemon ended: %s: %s", k.cmd.ProcessState, tail(text))}
		default:
		}
		text, err := os.ReadFile(filepath.Join(k.repo, "api"))
		if err != nil {
			return err
		}
		var host, port string
		if _, err := fmt.Sscanf(strings.ReplaceAll(string(text), "/", " "), " ip4 %s tcp %s", &host, &port); err != nil {
			return fmt.Errorf("the address %q: %w", text, err)
		}
		k.api = "http://" + net.JoinHostPort(host, port) + "/api/v0/"
		_, err = k.Post("repo/stat", url.Values{"size-only": {"true"}}, nil)
		return err
	})
}

func tail(text []byte) []byte { return text[max(0, len(text)-2000):] }

// final is an error that waiting doesn't mend.
type final struct{ error }

// Eventually asks f until it has no error, or patience ends.
func (k *Kubo) Eventually(what string, f func() error) error {
	for deadline := time.Now().Add(k.Patience); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if (errors.As(err, &final{})) || time.Now().After(deadline) {
			return fmt.Errorf("still not so: %s: %w", what, err)
		}
	}
}

// Kill ends the daemon as a crash does.
func (k *Kubo) Kill() {
	if k.cmd != nil {
		_ = k.cmd.Process.Kill()
		<-k.ended
		k.cmd = nil
	}
	k.http.CloseIdleConnections()
}

// Stop ends the daemon as an operator does; that it does not end well is an error.
func (k *Kubo) Stop() error {
	if k.cmd == nil {
		return nil
	}
	if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-k.ended:
	case <-time.After(k.Patience):
		return fmt.Errorf("ipfs daemon %d has not ended %s after SIGTERM", k.cmd.Process.Pid, k.Patience)
	}
	state := k.cmd.ProcessState
	k.cmd = nil
	k.http.CloseIdleConnections()
	if !state.Success() {
		return fmt.Errorf("ipfs daemon ended with %s", state)
	}
	return nil
}

// Running says whether the daemon was started and not ended by us.
func (k *Kubo) Running() bool { return k.cmd != nil }

// Pid is the daemon's.
func (k *Kubo) Pid() int { return k.cmd.Process.Pid }

// Close lets go of what a Kubo that doesn't run still has.
func (k *Kubo) Close() { k.log.Close() }

// AgentPid is the process number of the node's agent; zero: there is none.
func (k *Kubo) AgentPid() int {
	text, err := os.ReadFile(filepath.Join(k.Node(), "lock"))
	if err != nil {
		return 0
	}
	pid := 0
	_, _ = fmt.Sscanf(string(text), "pid %d", &pid)
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	// An owner that is gone leaves its number behind, which may be another process's by now.
	if err != nil || !bytes.Contains(args, []byte("\x00agent\x00")) || !bytes.Contains(args, []byte(k.Node())) {
		return 0
	}
	return pid
}

// KillAgent ends the node's agent as a crash does, also while it still opens the node, and returns once it is gone; false: there was none.
func (k *Kubo) KillAgent() (bool, error) { return k.endAgent(syscall.SIGKILL) }

// StopAgent ends it as an operator does.
func (k *Kubo) StopAgent() (bool, error) { return k.endAgent(syscall.SIGTERM) }

func (k *Kubo) endAgent(signal syscall.Signal) (bool, error) {
	pid := k.AgentPid()
	if pid == 0 || syscall.Kill(pid, signal) != nil {
		return false, nil // it was just going
	}
	return true, k.Eventually(fmt.Sprintf("the agent is gone after %s", signal), func() error {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(state, []byte(") Z ")) {
			return fmt.Errorf("process %d is there", pid)
		}
		return nil
	})
}

// Admin calls f with a client of whoever has the node open.
func (k *Kubo) Admin(f func(context.Context, basaltv1.AdminClient) error) error {
	var all error
	for _, socket := range k.sockets {
		admin := filepath.Join(filepath.Dir(socket), "admin.sock")
		cc, err := grpc.NewClient("unix:"+admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), k.Patience)
		err = f(ctx, basaltv1.NewAdminClient(cc))
		cancel()
		cc.Close()
		if err == nil {
			return nil
		}
		all = errors.Join(all, err)
	}
	return all
}

// Status asks whoever has the node open.
func (k *Kubo) Status() (st *basaltv1.StatusResponse, err error) {
	err = k.Admin(func(ctx context.Context, admin basaltv1.AdminClient) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		st, err = admin.Status(ctx, &basaltv1.StatusRequest{})
		return err
	})
	return st, err
}

// Sockets are where its node may be reached.
func (k *Kubo) Sockets() []string { return k.sockets }

// View opens the node as another client beside Kubo, past Kubo's caches.
func (k *Kubo) View() (*datastore.Datastore, error) {
	return datastore.Open(context.Background(), datastore.Config{Sockets: k.sockets, NodeID: k.id, NodePath: k.Node(), Role: "root", Client: "chaos", Retry: k.Patience})
}

// Post calls Kubo's RPC; file is sent as a form's file if it is not nil. An answer that ends in an error is an error.
func (k *Kubo) Post(method string, args url.Values, file []byte) ([]byte, error) {
	var body io.Reader
	kind := ""
	if file != nil {
		var form bytes.Buffer
		w := multipart.NewWriter(&form)
		part, err := w.CreateFormFile("file", "file")
		if err != nil {
			return nil, err
		}
		_, _ = part.Write(file)
		_ = w.Close()
		body, kind = &form, w.FormDataContentType()
	}
	ctx, cancel := context.WithTimeout(context.Background(), k.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.api+method+"?"+args.Encode(), body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := k.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if fault := resp.Trailer.Get("X-Stream-Error"); resp.StatusCode != http.StatusOK || fault != "" {
		return nil, fmt.Errorf("%s: %s %s %s", method, resp.Status, fault, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// lines decodes an answer of one JSON object a line.
func lines[T any](answer []byte) (all []T, err error) {
	decoder := json.NewDecoder(bytes.NewReader(answer))
	for {
		var one T
		if err := decoder.Decode(&one); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("%w in %s", err, answer)
		}
		all = append(all, one)
	}
}

// Add stores data and pins it; what it returns Kubo has acknowledged.
func (k *Kubo) Add(data []byte, args url.Values) (string, error) {
	answer, err := k.Post("add", args, data)
	if err != nil {
		return "", err
	}
	added, err := lines[struct{ Hash, Message string }](answer)
	if err != nil {
		return "", err
	}
	if len(added) == 0 || added[len(added)-1].Hash == "" {
		return "", fmt.Errorf("add answered %s", answer)
	}
	return added[len(added)-1].Hash, nil
}

// ImportCAR stores a CAR and pins its root.
func (k *Kubo) ImportCAR(car []byte) (string, error) {
	answer, err := k.Post("dag/import", url.Values{"pin-roots": {"true"}}, car)
	if err != nil {
		return "", err
	}
	type imported struct {
		Root *struct {
			Cid         map[string]string
			PinErrorMsg string
		}
	}
	all, err := lines[imported](answer)
	if err != nil {
		return "", err
	}
	for _, one := range all {
		if one.Root != nil {
			if one.Root.PinErrorMsg != "" {
				return "", errors.New(one.Root.PinErrorMsg)
			}
			return one.Root.Cid["/"], nil
		}
	}
	return "", fmt.Errorf("dag import answered %s", answer)
}

// Collect runs Kubo's gc and returns how many blocks it removed.
func (k *Kubo) Collect() (int, error) {
	answer, err := k.Post("repo/gc", url.Values{"stream-errors": {"true"}}, nil)
	if err != nil {
		return 0, err
	}
	removed, err := lines[struct{ Error string }](answer)
	for _, one := range removed {
		if one.Error != "" {
			return 0, errors.New(one.Error)
		}
	}
	return len(removed), err
}

// Pins lists what is pinned recursively.
func (k *Kubo) Pins() (map[string]bool, error) {
	answer, err := k.Post("pin/ls", url.Values{"type": {"recursive"}, "stream": {"true"}}, nil)
	if err != nil {
		return nil, err
	}
	all, err := lines[struct{ Cid string }](answer)
	pins := map[string]bool{}
	for _, one := range all {
		pins[one.Cid] = true
	}
	return pins, err
}

// List names what a folder of MFS has.
func (k *Kubo) List(folder string) (names []string, err error) {
	answer, err := k.Post("files/ls", url.Values{"arg": {folder}}, nil)
	if err != nil {
		return nil, err
	}
	all, err := lines[struct{ Entries []struct{ Name string } }](answer)
	for _, one := range all {
		for _, entry := range one.Entries {
			names = append(names, entry.Name)
		}
	}
	return names, err
}

// Debug reads one of the pages that Go's pprof serves beside the RPC.
func (k *Kubo) Debug(page string) ([]byte, error) {
	resp, err := k.http.Get(strings.TrimSuffix(k.api, "api/v0/") + "debug/" + page)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", page, resp.Status, text)
	}
	return text, err
}
