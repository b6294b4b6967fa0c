package autostart

// Where a node's data socket is, for whoever looks for it. The same rule as the node's own (node/src/sockets.rs): keep both in step.

import (
	"fmt"
	"os"
	"path/filepath"
)

// socketPathMax is the size of sun_path on Linux less its final NUL, unix(7).
const socketPathMax = 107

// DataSockets returns where the data socket of a node may be, in the order in which to look: NODE/run/data.sock; then, for a node
// whose path is too long for a socket or can't be written, $XDG_RUNTIME_DIR/basalt/ID/data.sock (without that variable
// /run/user/UID/...). `node` is absolute.
func DataSockets(node, id string) ([]string, error) {
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = fmt.Sprintf("/run/user/%d", os.Geteuid())
	}
	inside := filepath.Join(node, "run", "data.sock")
	outside := filepath.Join(runtime, "basalt", id, "data.sock")
	var fit []string
	for _, path := range []string{inside, outside} {
		if len(path) <= socketPathMax {
			fit = append(fit, path)
		}
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("basalt: no place for the socket of node %s: %s has %d bytes and %s %d, a socket's path may have %d. "+
			"Set [sockets] data_path in the node's basalt.toml and the same as \"socket\" in Datastore.Spec, or XDG_RUNTIME_DIR to a shorter path",
			id, inside, len(inside), outside, len(outside), socketPathMax)
	}
	return fit, nil
}
