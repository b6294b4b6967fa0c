//go:build !cgo

package stores

import (
	"context"
	"errors"
)

// HasFFI says whether this program has the node linked in.
const HasFFI = false

func inProcess(context.Context, string) (*Opened, error) {
	return nil, errors.New("this program is built without the node in it: build it with cgo and the flags of `tools/build --ffi-flags`")
}
