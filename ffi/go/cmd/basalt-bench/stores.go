package main

// The stores that are measured, each opened the way that Kubo opens it, below /blocks.

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
	flatfs "github.com/ipfs/go-ds-flatfs"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
)

// kind is a store with the promise that it makes.
type kind struct {
	name       string
	durability string
	writesOnly bool // it reads as another one here does
	open       func(folder string) (store ds.Batching, closeStore func() error, err error)
}

// baseline is the fastest of Kubo's own stores that keeps what it has acknowledged.
const baseline = "flatfs, sync"

// inProcess are the stores of this process, where it is built with them.
var inProcess []kind

func kinds() []kind {
	return append([]kind{
		{name: baseline, durability: "each Put", open: openFlatfs(true)},
		{name: "flatfs, no sync", durability: "none: its Sync does nothing", open: openFlatfs(false), writesOnly: true},
		{name: "Basalt, lane, strict", durability: "strict", open: openAgent("strict", false)},
		{name: "Basalt, lane, ordered", durability: "ordered", open: openAgent("ordered", false), writesOnly: true},
		{name: "Basalt, gRPC, strict", durability: "strict", open: openAgent("strict", true)},
		{name: "Basalt, gRPC, ordered", durability: "ordered", open: openAgent("ordered", true), writesOnly: true},
	}, inProcess...)
}

func openFlatfs(sync bool) func(string) (ds.Batching, func() error, error) {
	return func(folder string) (ds.Batching, func() error, error) {
		store, err := flatfs.CreateOrOpen(filepath.Join(folder, "blocks"), flatfs.NextToLast(2), sync)
		if err != nil {
			return nil, nil, err
		}
		return store, store.Close, nil
	}
}

// initNode makes a node with the program `basalt`, and returns that program.
func initNode(node, durability string) (bin string, err error) {
	if bin, err = autostart.Binary(); err != nil {
		return "", err
	}
	if text, err := exec.Command(bin, "init", "--durability", durability, node).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s init: %w\n%s", bin, err, text)
	}
	return bin, nil
}

// openAgent makes a node, starts an agent for it and connects to it, with the fast lane or by gRPC alone.
func openAgent(durability string, noLane bool) func(string) (ds.Batching, func() error, error) {
	return func(folder string) (ds.Batching, func() error, error) {
		node := filepath.Join(folder, "node")
		bin, err := initNode(node, durability)
		if err != nil {
			return nil, nil, err
		}
		log, err := os.Create(filepath.Join(folder, "agent.log"))
		if err != nil {
			return nil, nil, err
		}
		defer log.Close()
		agent := exec.Command(bin, "agent", "--node", node, "--exit-when-idle")
		agent.Stdout, agent.Stderr = log, log
		agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if err := agent.Start(); err != nil {
			return nil, nil, err
		}
		stop := func() error {
			return errors.Join(agent.Process.Signal(syscall.SIGTERM), agent.Wait())
		}
		store, err := connect(node, noLane)
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return nil, nil, errors.Join(err, stop(), fmt.Errorf("the agent's log: %s", text))
		}
		return store, func() error { return errors.Join(store.Close(), stop()) }, nil
	}
}

func connect(node string, noLane bool) (*datastore.Datastore, error) {
	id, err := autostart.NodeID(node)
	if err != nil {
		return nil, err
	}
	sockets, err := autostart.DataSockets(node, id)
	if err != nil {
		return nil, err
	}
	return datastore.Open(context.Background(), datastore.Config{
		Sockets: sockets, NodeID: id, NodePath: node, Role: "blocks", Client: "basalt-bench", NoLane: noLane,
		Start: func(ctx context.Context) error { return answers(ctx, sockets) },
	})
}

// answers waits until the agent that was started serves one of the sockets.
func answers(ctx context.Context, sockets []string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		for _, socket := range sockets {
			if conn, err := net.Dial("unix", socket); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no agent answers at %v: %w", sockets, ctx.Err())
		}
	}
}
