package stores

// Basalt by each of its lanes and in each of its classes: a lane is a row of `lanes`.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	ds "github.com/ipfs/go-datastore"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
)

// lane is a way from a Go program to a node.
type lane struct {
	name string
	ffi  bool
	// open opens the blocks of a node; process is that of the agent, if there is one, which close ends.
	open func(ctx context.Context, node string) (*Opened, error)
}

var lanes = []lane{
	{name: "lane", open: byAgent(nil)},
	{name: "gRPC", open: byAgent(func(cfg *datastore.Config) { cfg.NoLane = true })},
	{name: "FFI", ffi: true, open: inProcess},
}

// classes of a node, by the names that `basalt init` knows.
var classes = []struct {
	durability string
	class      Class
	onlyNamed  bool
}{{"strict", Each, false}, {"ordered", Ordered, false}, {"relaxed", AtSync, true}}

func basaltStores() []Store {
	var all []Store
	for _, l := range lanes {
		for i, c := range classes {
			all = append(all, Store{
				Name: fmt.Sprintf("Basalt %s %s", l.name, c.durability), Family: "Basalt " + l.name, Reads: i == 0, Deletes: i == 0, Class: c.class, FFI: l.ffi, OnlyNamed: c.onlyNamed,
				Open: func(ctx context.Context, o Options) (*Opened, error) {
					node := filepath.Join(o.Folder, "node")
					if _, err := os.Stat(node); errors.Is(err, os.ErrNotExist) {
						if err := initNode(node, c.durability); err != nil {
							return nil, err
						}
					}
					return l.open(ctx, node)
				},
			})
		}
	}
	return all
}

func initNode(node, durability string) error {
	bin, err := autostart.Binary()
	if err != nil {
		return err
	}
	if text, err := exec.Command(bin, "init", "--durability", durability, node).CombinedOutput(); err != nil {
		return fmt.Errorf("%s init: %w\n%s", bin, err, text)
	}
	return nil
}

// byAgent starts an agent for the node and opens it through that; configure may ask for another way than the fast lane.
func byAgent(configure func(*datastore.Config)) func(context.Context, string) (*Opened, error) {
	return func(ctx context.Context, node string) (*Opened, error) {
		bin, err := autostart.Binary()
		if err != nil {
			return nil, err
		}
		log, err := os.OpenFile(filepath.Join(filepath.Dir(node), "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		agent := exec.Command(bin, "agent", "--node", node, "--exit-when-idle")
		agent.Stdout, agent.Stderr = log, log
		agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := agent.Start(); err != nil {
			return nil, err
		}
		stop := func() error { return errors.Join(agent.Process.Signal(syscall.SIGTERM), agent.Wait()) }
		store, err := connect(ctx, node, configure)
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return nil, errors.Join(err, stop(), fmt.Errorf("the agent's log: %s", text))
		}
		return &Opened{
			Batching: closing{store, stop},
			Process:  agent.Process.Pid,
			endedCPU: func() float64 { return (agent.ProcessState.UserTime() + agent.ProcessState.SystemTime()).Seconds() },
		}, nil
	}
}

// closing ends the agent after the connection to it.
type closing struct {
	*datastore.Datastore
	stop func() error
}

func (c closing) Close() error { return errors.Join(c.Datastore.Close(), c.stop()) }

var _ ds.PersistentDatastore = closing{}

func connect(ctx context.Context, node string, configure func(*datastore.Config)) (*datastore.Datastore, error) {
	id, err := autostart.NodeID(node)
	if err != nil {
		return nil, err
	}
	sockets, err := autostart.DataSockets(node, id)
	if err != nil {
		return nil, err
	}
	cfg := datastore.Config{
		Sockets: sockets, NodeID: id, NodePath: node, Role: "blocks", Client: "basalt-peers",
		Start: func(ctx context.Context) error { return answers(ctx, sockets) },
	}
	if configure != nil {
		configure(&cfg)
	}
	return datastore.Open(ctx, cfg)
}

// answers waits until the agent that was started serves one of the sockets.
func answers(ctx context.Context, sockets []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		for _, socket := range sockets {
			if conn, err := net.Dial("unix", socket); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no agent answers at %v: %w", sockets, ctx.Err())
		}
	}
}
