package stores

// pebble: an LSM tree with the blocks as its values. Put writes its log without a flush; Sync flushes that log.

import (
	"context"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	pebbleds "github.com/ipfs/go-ds-pebble"
)

const pebbleModule = "github.com/ipfs/go-ds-pebble"

var pebbleStores = []Store{
	{Name: "pebble Put+Sync", Family: "pebble", Reads: true, Class: Each, Module: pebbleModule, Open: openPebble(true)},
	{Name: "pebble", Family: "pebble", Class: AtSync, Module: pebbleModule, Open: openPebble(false)},
}

func openPebble(sync bool) func(context.Context, Options) (*Opened, error) {
	return func(_ context.Context, o Options) (*Opened, error) {
		path := filepath.Join(o.Folder, "pebbleds")
		if err := folder(path); err != nil {
			return nil, err
		}
		// As Kubo's profile pebbleds has it: the newest format, all else as the module has it.
		store, err := pebbleds.NewDatastore(path, pebbleds.WithCacheSize(0), pebbleds.WithPebbleOpts(&pebble.Options{FormatMajorVersion: pebble.FormatNewest}))
		if err != nil {
			return nil, err
		}
		if sync && !o.Filling {
			return plain(syncedPuts{store}, nil)
		}
		return plain(store, nil)
	}
}
