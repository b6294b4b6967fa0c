package migrate

// What has to survive a kill: a state file in the repo that says how far the migration is, and which config and spec are the old and
// the new ones. It is replaced as a whole, and on stable storage before the step that it announces.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// StateFile is the name of the state file in the repo.
const StateFile = "basalt-migrate.json"

// Where the old config and spec are kept, in the repo.
const (
	KeptConfig = "config-pre-basalt-migrate"
	KeptSpec   = "datastore_spec-pre-basalt-migrate"
)

const stateFormat = 1

type phase string

// The phases. Config and spec are the old ones in copying and rolledBack, the new ones in done; in the two others they may be mixed.
const (
	copying     phase = "copying"
	switching   phase = "switching"
	done        phase = "done"
	rollingBack phase = "rolling-back"
	rolledBack  phase = "rolled-back"
)

type state struct {
	Format  int             `json:"format"`
	Phase   phase           `json:"phase"`
	Profile string          `json:"profile"`
	NodeID  string          `json:"node_id"`
	OldSpec json.RawMessage `json:"old_spec"` // Datastore.Spec of the config
	NewSpec json.RawMessage `json:"new_spec"`
	OldDisk string          `json:"old_datastore_spec"` // the file datastore_spec
	NewDisk string          `json:"new_datastore_spec"`
	Skipped []Bad           `json:"skipped,omitempty"`
}

// readState returns nil where the repo has no state file.
func readState(repo string) (*state, error) {
	path := filepath.Join(repo, StateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st := &state{}
	if err := json.Unmarshal(text, st); err != nil || st.NodeID == "" || st.Format < 1 {
		return nil, fmt.Errorf("%s does not read as the state of a migration (%v): restore it from a backup. If config still names the old "+
			"store, removing it and the folder of the node begins anew", path, err)
	}
	if st.Format > stateFormat {
		return nil, fmt.Errorf("%s has format %d, this basalt-migrate reads up to %d: use the version that began the migration, or a newer one",
			path, st.Format, stateFormat)
	}
	return st, nil
}

func (st *state) write(repo string) error {
	st.Format = stateFormat
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(repo, StateFile), append(text, '\n'))
}

// replace writes a file so that after a crash there is the old content or the new one, on stable storage when it returns. A link is
// followed, and the mode kept.
func replace(path string, text []byte) (err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := os.FileMode(0o600)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	tmp := path + ".basalt-migrate.tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// KillEnv names a step at which this process kills itself, as a power cut or an operator would; "STEP:N" at its N-th time. For tests.
const KillEnv = "BASALT_MIGRATE_KILL_AT"

// Steps and RollbackSteps are all steps that KillEnv knows, in their order.
var (
	Steps         = []string{"begun", "node-made", "batch", "keys", "copied", "verified", "kept", "switching", "config-written", "spec-written", "ready", "done"}
	RollbackSteps = []string{"rolling-back", "unready", "config-restored", "spec-restored", "rolled-back"}
)

var batches atomic.Int64

// reached marks a step for KillEnv.
func reached(step string) {
	at, count, _ := strings.Cut(os.Getenv(KillEnv), ":")
	if at != step {
		return
	}
	if n, err := strconv.Atoi(count); err == nil && batches.Add(1) < int64(n) {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
