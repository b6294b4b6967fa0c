// Package profile adds to `ipfs init` the profiles that put a new repo's data into a Basalt node.
//
//   - basalt: everything (blocks, pins, MFS root, names) in one node, so that they snapshot and recover together; durability `ordered`.
//   - basalt-blocks: blocks and pins in a node, the rest in Kubo's leveldb beside it; durability `strict`.
//
// A repo's kind is decided when it is made: its config and its file datastore_spec must agree for ever after, and Kubo does not
// stop `config profile apply` from breaking that. So the profiles here do nothing but where Allow said that a repo is being made.
// An existing repo is moved by basalt-migrate.
//
// This package imports nothing of Kubo but its config, for then its init runs before that of Kubo's commands and
// `ipfs config profile --help` lists the profiles.
package profile

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/ipfs/kubo/config"
)

// Names of the profiles.
const (
	Basalt = "basalt"
	Blocks = "basalt-blocks"
)

// Folder is where the profiles put the node, relative to the repo.
const Folder = "basalt"

// Ready is asked before a repo is made: an error here (no program `basalt`, say) leaves no half-made repo behind. May be nil.
var Ready func() error

// Existing says which node an operator has made in a folder for a repo to come, and of which durability; an empty id where there is none. May be
// nil.
var Existing func(node string) (id, durability string, err error)

var making struct {
	sync.Mutex
	repo       string
	node       string
	durability string
}

// Allow says that this process makes a new repo at `repo`: one profile may then be applied, once.
func Allow(repo string) {
	making.Lock()
	defer making.Unlock()
	making.repo = repo
}

// Minted says whether this process made up the node id for a new repo, so that the node has to be made as well, and with which
// durability.
func Minted(node string) (durability string, ok bool) {
	making.Lock()
	defer making.Unlock()
	return making.durability, node != "" && making.node == node
}

func init() {
	config.Profiles[Basalt] = config.Profile{
		InitOnly: true,
		Description: `Stores everything (blocks, pins, MFS root and names) in a Basalt
node in the folder 'basalt' of the repo, with durability 'ordered':
blocks are on stable storage within about a second of being added, and
always before pins, MFS or names that refer to them.

This profile may only be applied when first initializing the node.
To move an existing repo: basalt-migrate.
`,
		Transform: func(c *config.Config) error { return apply(c, Basalt, "ordered") },
	}
	config.Profiles[Blocks] = config.Profile{
		InitOnly: true,
		Description: `Stores blocks and pins in a Basalt node in the folder 'basalt' of
the repo, with durability 'strict': a block is on stable storage when
adding it has returned. The rest goes into leveldb.

This profile may only be applied when first initializing the node.
To move an existing repo: basalt-migrate.
`,
		Transform: func(c *config.Config) error { return apply(c, Blocks, "strict") },
	}
}

// Meaning says what a profile means at a power cut, for the person who runs init.
func Meaning(name string) string {
	switch name {
	case Basalt:
		return `profile basalt: blocks, pins, MFS and names are stored in a Basalt node.
  At a power cut: whatever is pinned, in MFS or published keeps all its blocks; 'ipfs add', 'pin add' and MFS changes
  that returned are kept. Blocks that nothing refers to yet ('block put', an import in progress) may lose the last second.
`
	case Blocks:
		return `profile basalt-blocks: blocks and pins are stored in a Basalt node, MFS and names in leveldb.
  At a power cut: every block and every pin whose command returned is kept.
`
	}
	return ""
}

// Kind returns which of the profiles a Datastore.Spec is of, or "".
func Kind(spec map[string]any) string {
	if spec["type"] == "basalt" {
		return Basalt
	}
	mounts, _ := spec["mounts"].([]any)
	found := ""
	for _, m := range mounts {
		mount, _ := m.(map[string]any)
		if child, ok := mount["child"].(map[string]any); ok && mount["type"] == "measure" {
			mount = map[string]any{"mountpoint": mount["mountpoint"], "type": child["type"]}
		}
		if mount["type"] != "basalt" {
			continue
		}
		switch mount["mountpoint"] {
		case "/":
			return Basalt
		case "/blocks":
			found = Blocks
		}
	}
	return found
}

func apply(c *config.Config, name, durability string) error {
	if Kind(c.Datastore.Spec) == name {
		return nil // it is so already
	}
	making.Lock()
	defer making.Unlock()
	if making.repo == "" {
		return fmt.Errorf("profile %s can only be applied by 'ipfs init': it would point this repo at an empty store. "+
			"To move the repo with all it holds, stop its daemon and run: basalt-migrate REPO", name)
	}
	if making.node != "" {
		return fmt.Errorf("profile %s: another profile of Basalt has been applied already; choose one of %s and %s", name, Basalt, Blocks)
	}
	if Ready != nil {
		if err := Ready(); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	minted := hex.EncodeToString(id)
	if Existing != nil {
		folder := filepath.Join(making.repo, Folder)
		found, has, err := Existing(folder)
		if err != nil {
			return err
		}
		// Where metadata lies elsewhere nothing orders it behind the blocks, so only strict will do; and relaxed never.
		if found != "" && has != "strict" && has != durability {
			return fmt.Errorf("profile %s: node %s in %s has durability %s, and this profile needs %s or strict: set [node] durability in %s",
				name, found, folder, has, durability, filepath.Join(folder, "basalt.toml"))
		}
		if found != "" {
			minted = found
		}
	}
	making.node, making.durability = minted, durability
	making.repo = ""
	node := func(role string) map[string]any {
		return map[string]any{"type": "basalt", "role": role, "node": making.node, "path": Folder}
	}
	switch name {
	case Basalt:
		c.Datastore.Spec = node("root")
	case Blocks:
		blocks, pins := node("blocks"), node("pins")
		blocks["mountpoint"], pins["mountpoint"] = "/blocks", "/pins"
		c.Datastore.Spec = map[string]any{
			"type": "mount",
			"mounts": []any{
				blocks,
				pins,
				map[string]any{"mountpoint": "/", "type": "levelds", "path": "datastore", "compression": "none"},
			},
		}
	}
	fmt.Fprint(os.Stderr, Meaning(name))
	return nil
}
