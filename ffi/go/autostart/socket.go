package autostart

// Where a node's sockets are. The same rule as the node's own (node/src/layout.rs): keep both in step.

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// socketPathMax is the size of sun_path on Linux less its final zero, unix(7).
const socketPathMax = 107

// DataSocket returns the path of the data socket of the node in folder `node` (absolute) with this id: NODE/run/data.sock, or
// $XDG_RUNTIME_DIR/basalt/ID/data.sock where the former is too long for a socket or on a read-only file system.
func DataSocket(node, id string) (string, error) {
	inside := filepath.Join(node, "run", "data.sock")
	tooLong := len(inside) > socketPathMax
	if !tooLong && !readOnly(node) {
		return inside, nil
	}
	if !tooLong {
		if _, err := os.Stat(inside); err == nil {
			return inside, nil
		}
	}
	why := "is on a read-only file system"
	if tooLong {
		why = fmt.Sprintf("has %d bytes, a socket's path may have %d", len(inside), socketPathMax)
	}
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		return "", fmt.Errorf("basalt: %s %s, and XDG_RUNTIME_DIR is not set. Set it to a folder of yours, give the agent and "+
			"Datastore.Spec a \"socket\", or move the node to a shorter path", inside, why)
	}
	return filepath.Join(base, "basalt", id, "data.sock"), nil
}

// readOnly says whether a folder, or the nearest one above it that exists, is on a read-only file system. Permission doesn't
// count: an operator's agent runs under its own uid, and its folder is not ours to write.
func readOnly(folder string) bool {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(folder, &st)
		if err == nil {
			return st.Flags&unix.ST_RDONLY != 0
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			return false
		}
		folder = parent
	}
}
