// Package plugin is Kubo's datastore plugin of type `basalt`.
//
// What may stand in Datastore.Spec:
//
//	{"type": "basalt", "role": "root", "node": "<id>", "path": "basalt"}
//
//	role           which part of the node this is: "root" (mounted at /), "blocks" (at /blocks), "pins" (at /pins)
//	node           the node's id, made at init; an agent that serves another node is refused
//	path           the node's folder, absolute or relative to the repo; "basalt" if left out
//	socket         the data socket where it isn't at its usual place
//	lane           "auto" (if left out), "grpc", or "ffi" (the node in Kubo's own process; only in ipfs-ffi)
//	autostart      whether an agent is started where nobody serves the node; true if left out
//	retry_seconds  how long a call goes on trying while the agent is away; 30 if left out
//
// Only type, role and node enter datastore_spec: a node can move, and be reached another way, without touching that file.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"basalt.dev/go/autostart"
	"basalt.dev/go/datastore"
	"basalt.dev/go/profile"
	ds "github.com/ipfs/go-datastore"
	levelds "github.com/ipfs/go-ds-leveldb"
	kuboplugin "github.com/ipfs/kubo/plugin"
	"github.com/ipfs/kubo/repo"
	"github.com/ipfs/kubo/repo/fsrepo"
)

// Version is the plugin's, as the node's log and `basalt status` show it.
const Version = "0.1.0"

// Plugin is what a Kubo loads.
var Plugin kuboplugin.Plugin = basalt{}

// Native opens a node in this process; the FFI flavour of ipfs sets it, and then lane "auto" means it. An agent that was autostarted
// hands the node over; where another process has it and stays, the error is a datastore.ErrLocked, and lane "auto" means that process.
var Native func(path, node, role string) (repo.Datastore, error)

type basalt struct{}

var _ kuboplugin.PluginDatastore = basalt{}

func (basalt) Name() string                                { return "ds-basalt" }
func (basalt) Version() string                             { return Version }
func (basalt) Init(*kuboplugin.Environment) error          { return nil }
func (basalt) DatastoreTypeName() string                   { return "basalt" }
func (basalt) DatastoreConfigParser() fsrepo.ConfigFromMap { return parse }

type spec struct {
	role, node, path, socket, lane string
	autostart                      bool
	retry                          time.Duration
}

var (
	known  = []string{"type", "role", "node", "path", "socket", "lane", "autostart", "retry_seconds", "mountpoint"}
	roles  = map[string]string{"root": "/", "blocks": "/blocks", "pins": "/pins"}
	nodeID = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

const retryMaxSeconds = 3600

// parse takes a Spec strictly: a key that is misspelt is an error, not a default.
func parse(params map[string]any) (fsrepo.DatastoreConfig, error) {
	c := &spec{path: profile.Folder, lane: "auto", autostart: true}
	var problems []error
	complain := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("Datastore.Spec of type basalt: "+format, args...))
	}
	text := func(key string, into *string) {
		v, there := params[key]
		if !there {
			return
		}
		s, ok := v.(string)
		if !ok || s == "" {
			complain("%q must be a text that is not empty, it is %#v", key, v)
			return
		}
		*into = s
	}
	for key := range params {
		if !slices.Contains(known, key) {
			complain("unknown key %q; known are %s", key, strings.Join(known, ", "))
		}
	}
	text("role", &c.role)
	text("node", &c.node)
	text("path", &c.path)
	text("socket", &c.socket)
	text("lane", &c.lane)
	if v, there := params["autostart"]; there {
		b, ok := v.(bool)
		if !ok {
			complain("\"autostart\" must be true or false, it is %#v", v)
		}
		c.autostart = b
	}
	if v, there := params["retry_seconds"]; there {
		seconds, ok := number(v)
		if !ok || seconds <= 0 || seconds > retryMaxSeconds {
			complain("\"retry_seconds\" must be a number above 0, at most %d, it is %#v", retryMaxSeconds, v)
		}
		c.retry = time.Duration(seconds * float64(time.Second))
	}
	mountpoint, mounted := params["mountpoint"].(string)
	switch at, ok := roles[c.role]; {
	case c.role == "":
		complain("\"role\" is missing: \"root\" where it is mounted at /, \"blocks\" at /blocks, \"pins\" at /pins")
	case !ok:
		complain("unknown role %q: it is root, blocks or pins", c.role)
	case mounted && ds.NewKey(mountpoint).String() != at:
		complain("role %q belongs at mountpoint %s, but it is mounted at %s", c.role, at, mountpoint)
	}
	switch {
	case c.node == "":
		complain("\"node\" is missing: the node's id, which `basalt status` shows and `ipfs init --profile=basalt` makes up")
	case !nodeID.MatchString(c.node):
		complain("%q is no node id: 32 hex digits in lower case", c.node)
	}
	if !slices.Contains([]string{"auto", "grpc", "ffi"}, c.lane) {
		complain("unknown lane %q: it is auto, grpc or ffi", c.lane)
	}
	if c.lane == "ffi" && Native == nil {
		complain("lane \"ffi\" needs ipfs-ffi; this ipfs is built without it, use lane \"grpc\" or \"auto\"")
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return c, nil
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case float64: // what JSON gives
		return n, true
	case int:
		return float64(n), true
	}
	return 0, false
}

func (c *spec) DiskSpec() fsrepo.DiskSpec {
	return fsrepo.DiskSpec{"type": "basalt", "role": c.role, "node": c.node}
}

// Create opens the view of the node that this Spec is; it makes the node first where this process is making the repo.
func (c *spec) Create(base string) (repo.Datastore, error) {
	if base == "" && filepath.IsAbs(c.path) {
		return keystore(c.path)
	}
	path, err := c.resolve(base, c.path)
	if err != nil {
		return nil, err
	}
	if durability, minted := profile.Minted(c.node); minted && !c.there(path) {
		if err := autostart.Init(context.Background(), path, c.node, durability); err != nil {
			return nil, err
		}
	}
	if Native != nil && c.lane != "grpc" {
		if err := c.vet(path); err != nil {
			return nil, err
		}
		d, err := Native(path, c.node, c.role)
		if err == nil || c.lane == "ffi" || !errors.Is(err, datastore.ErrLocked) {
			return d, err
		}
		d, grpcErr := c.remote(base, path)
		if grpcErr != nil {
			return nil, errors.Join(err, grpcErr)
		}
		return d, nil
	}
	return c.remote(base, path)
}

// remote opens the view through whoever serves the node's data socket.
func (c *spec) remote(base, path string) (repo.Datastore, error) {
	var err error
	var sockets []string
	if c.socket != "" {
		socket, err := c.resolve(base, c.socket)
		if err != nil {
			return nil, err
		}
		sockets = []string{socket}
	} else if sockets, err = autostart.DataSockets(path, c.node); err != nil {
		return nil, err
	}
	cfg := datastore.Config{
		Sockets:  sockets,
		NodeID:   c.node,
		NodePath: path,
		Role:     c.role,
		Client:   "kubo-plugin " + Version,
		Retry:    c.retry,
		NoLane:   c.lane == "grpc",
	}
	if c.autostart {
		cfg.Start = func(ctx context.Context) error {
			if err := c.vet(path); err != nil {
				return err
			}
			return autostart.Agent{Node: path, Sockets: sockets}.Start(ctx)
		}
	}
	d, err := datastore.Open(context.Background(), cfg)
	if err != nil {
		return nil, err // and no interface that holds a nil pointer
	}
	return d, nil
}

// vet says what is wrong with a folder that is not this repo's node.
func (c *spec) vet(path string) error {
	if !c.there(path) {
		return fmt.Errorf("basalt: this repo's data is in node %s in %s, but no node is there. Is its file system mounted? "+
			"Did the folder move (then set \"path\" in Datastore.Spec)? Only if the repo is new and holds nothing yet, make it: "+
			"basalt init --node-id %s %s", c.node, path, c.node, path)
	}
	if id, err := autostart.NodeID(path); err == nil && id != c.node {
		return &datastore.Error{Kind: datastore.Refused, Op: "open", Message: fmt.Sprintf(
			"%s is node %s, but this repo belongs to node %s. Point \"path\" in Datastore.Spec at the folder of node %s", path, id, c.node, c.node)}
	}
	return nil
}

func (c *spec) resolve(base, path string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(base, path)
	}
	return filepath.Abs(path)
}

// there says whether a folder is a node; one that we may not read may be.
func (c *spec) there(path string) bool {
	_, err := autostart.NodeID(path)
	return !errors.Is(err, os.ErrNotExist)
}

// keystore opens what Kubo wants for its provider keystore. Kubo takes the Spec that is mounted at / for it, puts an absolute path
// in, creates with no base, one or two at a time, and removes their folders whenever it likes: a small store of its own, never the
// node.
func keystore(path string) (repo.Datastore, error) {
	if _, err := autostart.NodeID(path); err == nil {
		return nil, fmt.Errorf("basalt: %s is a node; it is opened with the repo's folder as base, not as a side store", path)
	}
	return levelds.NewDatastore(path, nil)
}
