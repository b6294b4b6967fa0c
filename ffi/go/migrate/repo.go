package migrate

// A Kubo repo from outside: its lock, its config and datastore_spec, the store that these name. Kubo's own fsrepo does all of this in
// one go, but a migration has to hold the lock while config and spec don't agree, and to open a store that the config no longer names.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"basalt.dev/go/plugin"
	"basalt.dev/go/profile"
	lockfile "github.com/ipfs/go-fs-lock"
	kuboplugin "github.com/ipfs/kubo/plugin"
	"github.com/ipfs/kubo/plugin/plugins/badgerds"
	"github.com/ipfs/kubo/plugin/plugins/flatfs"
	"github.com/ipfs/kubo/plugin/plugins/levelds"
	"github.com/ipfs/kubo/plugin/plugins/pebbleds"
	kuborepo "github.com/ipfs/kubo/repo"
	"github.com/ipfs/kubo/repo/fsrepo"
	"github.com/ipfs/kubo/repo/fsrepo/migrations"
)

const (
	configFile = "config"
	specFile   = "datastore_spec"
	keystore   = "provider-keystore"
)

// register makes the datastores known that Kubo has built in. Not by its loader: that would run what its other plugins do at start.
var register = sync.OnceValue(func() error {
	for _, pl := range slices.Concat(flatfs.Plugins, levelds.Plugins, pebbleds.Plugins, badgerds.Plugins, []kuboplugin.Plugin{plugin.Plugin}) {
		store, ok := pl.(kuboplugin.PluginDatastore)
		if !ok {
			return fmt.Errorf("the plugin %s is no datastore", pl.Name())
		}
		if err := fsrepo.AddDatastoreConfigHandler(store.DatastoreTypeName(), store.DatastoreConfigParser()); err != nil {
			return err
		}
	}
	return nil
})

type repo struct {
	path string
	lock io.Closer
}

// openRepo takes the repo's lock, and makes sure that it is a whole repo of the version that this Kubo has.
func openRepo(path string) (*repo, error) {
	if err := register(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{configFile, specFile, "version"} {
		st, err := os.Stat(filepath.Join(path, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == configFile:
			return nil, fmt.Errorf("%s is no Kubo repo: it has no file %s. Name the folder that IPFS_PATH names, mostly ~/.ipfs", path, name)
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s is only half a Kubo repo: it has no file %s. An `ipfs init` that failed leaves that: if the repo holds "+
				"nothing, remove the folder and make it anew; else restore the file from a backup", path, name)
		case err != nil:
			return nil, err
		case !st.Mode().IsRegular():
			return nil, fmt.Errorf("%s is no Kubo repo: its %s is not a file", path, name)
		}
	}
	lock, err := lockfile.Lock(path, fsrepo.LockFile)
	if locked := lockfile.LockedError(""); errors.As(err, &locked) {
		return nil, fmt.Errorf("%s is in use by a daemon or another ipfs command: stop it first (`ipfs shutdown`), and keep it stopped until "+
			"the migration has completed", path)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the repo %s: %w", path, err)
	}
	r := &repo{path, lock}
	version, err := migrations.RepoVersion(path)
	if err == nil && version != fsrepo.RepoVersion {
		err = fmt.Errorf("the repo %s has version %d, this basalt-migrate knows %d: run `ipfs repo migrate` of the Kubo that will use it first",
			path, version, fsrepo.RepoVersion)
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *repo) close() error { return r.lock.Close() }

func (r *repo) file(name string) string { return filepath.Join(r.path, name) }

func (r *repo) node() string { return r.file(profile.Folder) }

// spec is a Datastore.Spec, and the datastore_spec that belongs to it.
type spec struct {
	raw    json.RawMessage
	params map[string]any
	config fsrepo.DatastoreConfig
	disk   string
}

func parseSpec(raw json.RawMessage) (*spec, error) {
	s := &spec{raw: raw}
	if err := json.Unmarshal(raw, &s.params); err != nil {
		return nil, err
	}
	var err error
	if s.config, err = fsrepo.AnyDatastoreConfig(s.params); err != nil {
		return nil, fmt.Errorf("%w (known are those that Kubo has built in: flatfs, levelds, pebbleds, badgerds, mount, measure, log)", err)
	}
	s.disk = s.config.DiskSpec().String()
	return s, nil
}

// configSpec is the Spec that config names now.
func (r *repo) configSpec() (*spec, error) {
	_, datastore, err := r.config()
	if err != nil {
		return nil, err
	}
	s, err := parseSpec(datastore["Spec"])
	if err != nil {
		return nil, fmt.Errorf("Datastore.Spec in %s: %w", r.file(configFile), err)
	}
	return s, nil
}

func (r *repo) diskSpec() (string, error) {
	text, err := os.ReadFile(r.file(specFile))
	return strings.TrimSpace(string(text)), err
}

// config is the config file, whose parts stay as they are written there, and its part Datastore.
func (r *repo) config() (whole, datastore map[string]json.RawMessage, err error) {
	text, err := os.ReadFile(r.file(configFile))
	if err != nil {
		return nil, nil, err
	}
	if err = json.Unmarshal(text, &whole); err == nil {
		err = json.Unmarshal(whole["Datastore"], &datastore)
	}
	if err == nil && (len(datastore["Spec"]) == 0 || len(whole["Identity"]) == 0) {
		err = errors.New("it lacks Datastore.Spec or Identity")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s does not read as Kubo's config: %w", r.file(configFile), err)
	}
	return whole, datastore, nil
}

// setSpec replaces Datastore.Spec in config, and nothing else of it.
func (r *repo) setSpec(raw json.RawMessage) error {
	whole, datastore, err := r.config()
	if err != nil {
		return err
	}
	datastore["Spec"] = raw
	if whole["Datastore"], err = encode(datastore); err != nil {
		return err
	}
	text, err := encode(whole)
	if err != nil {
		return err
	}
	return replace(r.file(configFile), text)
}

// restoreSpec is setSpec to the old one; a config in which nothing else was changed since becomes byte for byte what it was.
func (r *repo) restoreSpec(raw json.RawMessage) error {
	if err := r.setSpec(raw); err != nil {
		return err
	}
	kept, err := os.ReadFile(r.file(KeptConfig))
	if err != nil {
		return nil // the Spec is what counts
	}
	now, err := os.ReadFile(r.file(configFile))
	if err != nil {
		return err
	}
	var a, b any
	if json.Unmarshal(kept, &a) == nil && json.Unmarshal(now, &b) == nil {
		if x, _ := json.Marshal(a); len(x) > 0 {
			if y, _ := json.Marshal(b); bytes.Equal(x, y) {
				return replace(r.file(configFile), kept)
			}
		}
	}
	return nil
}

func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return out.Bytes(), err
}

// leaves are the stores of a Spec that lie on disk: type and folder, by mountpoint.
func leaves(params map[string]any) map[string]leaf {
	found := map[string]leaf{}
	var walk func(at string, p map[string]any)
	walk = func(at string, p map[string]any) {
		if mounts, ok := p["mounts"].([]any); ok {
			for _, m := range mounts {
				if m, ok := m.(map[string]any); ok {
					point, _ := m["mountpoint"].(string)
					walk(filepath.Join(at, point), m)
				}
			}
			return
		}
		if child, ok := p["child"].(map[string]any); ok {
			walk(at, child)
			return
		}
		kind, _ := p["type"].(string)
		path, _ := p["path"].(string)
		found[at] = leaf{kind, path}
	}
	walk("/", params)
	return found
}

type leaf struct{ kind, path string }

// folders are where the stores of a Spec lie, absolute.
func (r *repo) folders(s *spec) (folders []string) {
	for _, l := range leaves(s.params) {
		if l.path == "" {
			continue
		}
		if !filepath.IsAbs(l.path) {
			l.path = r.file(l.path)
		}
		folders = append(folders, l.path)
	}
	slices.Sort(folders)
	return folders
}

// open opens the store of a Spec. What isn't there is an error: Kubo's datastores would make an empty one.
func (r *repo) open(s *spec) (kuborepo.Datastore, error) {
	for at, l := range leaves(s.params) {
		if l.kind == "mem" {
			return nil, fmt.Errorf("the store at mountpoint %s is in memory only: there is nothing to migrate", at)
		}
	}
	for _, folder := range r.folders(s) {
		if st, err := os.Stat(folder); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("the old store is not there: %s is missing. Is its file system mounted?", folder)
		}
	}
	store, err := s.config.Create(r.path)
	if err != nil {
		return nil, fmt.Errorf("open the old store: %w", err)
	}
	return store, nil
}

// dropKeystore removes Kubo's provider keystore where the store at / changes to another type: it is a cache of the root store's type,
// which Kubo makes anew, and another type can't open it.
func (r *repo) dropKeystore(old *spec) error {
	if leaves(old.params)["/"].kind == "levelds" {
		return nil // as is the keystore of a Basalt at /
	}
	return os.RemoveAll(r.file(keystore))
}

// RestFolder is the leveldb of profile basalt-blocks for what is neither block nor pin. Not the old one: that stays as it was, so that
// a rollback finds MFS and names of the same moment as its blocks.
const RestFolder = "datastore-basalt"

func newSpec(name, node string) (*spec, error) {
	view := func(role string) map[string]any {
		return map[string]any{"type": "basalt", "role": role, "node": node, "path": profile.Folder}
	}
	params := view("root")
	if name == profile.Blocks {
		blocks, pins := view("blocks"), view("pins")
		blocks["mountpoint"], pins["mountpoint"] = "/blocks", "/pins"
		rest := map[string]any{"mountpoint": "/", "type": "levelds", "path": RestFolder, "compression": "none"}
		params = map[string]any{"type": "mount", "mounts": []any{blocks, pins, rest}}
	}
	raw, err := json.Marshal(maps.Clone(params))
	if err != nil {
		return nil, err
	}
	return parseSpec(raw)
}
