package killtest

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

// patience is how long is waited for what should be there soon; the machine may be busy.
const patience = 3 * time.Minute

type kubo struct {
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

// initialize makes the repo and learns where its node is.
func initialize(program, basalt, dir, profile string) (*kubo, error) {
	k := &kubo{program: program, basalt: basalt, repo: filepath.Join(dir, "repo")}
	k.env = append(os.Environ(), "IPFS_PATH="+k.repo, "IPFS_TELEMETRY=off", autostart.BinaryEnv+"="+basalt)
	k.http.Transport = &http.Transport{MaxIdleConnsPerHost: 8}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if k.log, err = os.OpenFile(filepath.Join(dir, "kubo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	if out, err := k.command("init", "--profile=test,"+profile).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ipfs init: %w: %s", err, out)
	}
	if k.id, err = autostart.NodeID(k.node()); err != nil {
		return nil, err
	}
	k.sockets, err = autostart.DataSockets(k.node(), k.id)
	return k, err
}

func (k *kubo) node() string { return filepath.Join(k.repo, "basalt") }

func (k *kubo) command(args ...string) *exec.Cmd {
	cmd := exec.Command(k.program, args...)
	cmd.Env = k.env
	return cmd
}

// start runs `ipfs daemon`; ready waits until it answers.
func (k *kubo) start() error {
	os.Remove(filepath.Join(k.repo, "api"))
	k.cmd = k.command("daemon", "--offline")
	k.cmd.Stdout, k.cmd.Stderr = k.log, k.log
	if err := k.cmd.Start(); err != nil {
		return err
	}
	k.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { _ = cmd.Wait(); close(ended) }(k.cmd, k.ended)
	return nil
}

func (k *kubo) ready() error {
	return k.eventually("the daemon answers", func() error {
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
		_, err = k.post("repo/stat", url.Values{"size-only": {"true"}}, nil)
		return err
	})
}

func tail(text []byte) []byte { return text[max(0, len(text)-2000):] }

// final is an error that waiting doesn't mend.
type final struct{ error }

func (k *kubo) eventually(what string, f func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if (errors.As(err, &final{})) || time.Now().After(deadline) {
			return fmt.Errorf("still not so: %s: %w", what, err)
		}
	}
}

// kill ends the daemon as a crash does.
func (k *kubo) kill() {
	if k.cmd != nil {
		_ = k.cmd.Process.Kill()
		<-k.ended
		k.cmd = nil
	}
	k.http.CloseIdleConnections()
}

// killAgent ends the node's agent as a crash does, also while it still opens the node, and returns once it is gone; false: there was none.
func (k *kubo) killAgent() (bool, error) {
	text, err := os.ReadFile(filepath.Join(k.node(), "lock"))
	if err != nil {
		return false, nil
	}
	pid := 0
	_, _ = fmt.Sscanf(string(text), "pid %d", &pid)
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	// An owner that is gone leaves its number behind, which may be another process's by now.
	if err != nil || !bytes.Contains(args, []byte("\x00agent\x00")) || !bytes.Contains(args, []byte(k.node())) {
		return false, nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return false, nil // it was just going
	}
	return true, k.eventually("the killed agent is gone", func() error {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(state, []byte(") Z ")) {
			return fmt.Errorf("process %d is there", pid)
		}
		return nil
	})
}

// status asks whoever has the node open.
func (k *kubo) status() (*basaltv1.StatusResponse, error) {
	var all error
	for _, socket := range k.sockets {
		admin := filepath.Join(filepath.Dir(socket), "admin.sock")
		cc, err := grpc.NewClient("unix:"+admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		st, err := basaltv1.NewAdminClient(cc).Status(ctx, &basaltv1.StatusRequest{})
		cancel()
		cc.Close()
		if err == nil {
			return st, nil
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

// view opens the node as another client beside Kubo, past Kubo's caches.
func (k *kubo) view() (*datastore.Datastore, error) {
	return datastore.Open(context.Background(), datastore.Config{Sockets: k.sockets, NodeID: k.id, NodePath: k.node(), Role: "root", Client: "chaos", Retry: patience})
}

// post calls Kubo's RPC; file is sent as a form's file if it is not nil. An answer that ends in an error is an error.
func (k *kubo) post(method string, args url.Values, file []byte) ([]byte, error) {
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
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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

// add stores data and pins it; what it returns Kubo has acknowledged.
func (k *kubo) add(data []byte, args url.Values) (string, error) {
	answer, err := k.post("add", args, data)
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

// importCAR stores a CAR and pins its root.
func (k *kubo) importCAR(car []byte) (string, error) {
	answer, err := k.post("dag/import", url.Values{"pin-roots": {"true"}}, car)
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

// collect runs Kubo's gc and returns how many blocks it removed.
func (k *kubo) collect() (int, error) {
	answer, err := k.post("repo/gc", url.Values{"stream-errors": {"true"}}, nil)
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

func (k *kubo) pins() (map[string]bool, error) {
	answer, err := k.post("pin/ls", url.Values{"type": {"recursive"}, "stream": {"true"}}, nil)
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
