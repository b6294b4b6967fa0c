package stores

// pebble: an LSM tree with the blocks as its values. Under Kubo a Put writes its log without a flush, and Sync flushes that log. The module can flush with
// every write; Kubo has no setting for it.

import (
	"context"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	pebbleds "github.com/ipfs/go-ds-pebble"
)

const pebbleModule = "github.com/ipfs/go-ds-pebble"

var pebbleStores = []Store{
	{Name: "pebble sync", Family: "pebble", Reads: true, Class: Each, Module: pebbleModule, Open: openPebble(true)},
	{Name: "pebble", Family: "pebble", Deletes: true, Class: AtSync, Module: pebbleModule, Open: openPebble(false)},
}

func openPebble(sync bool) func(context.Context, Options) (*Opened, error) {
	return func(_ context.Context, o Options) (*Opened, error) {
		path := filepath.Join(o.Folder, "pebbleds")
		if err := folder(path); err != nil {
			return nil, err
		}
		// As Kubo's profile pebbleds has it: the newest format, all else as the module has it.
		options := []pebbleds.Option{pebbleds.WithPebbleOpts(&pebble.Options{FormatMajorVersion: pebble.FormatNewest})}
		if sync && !o.Filling {
			options = append(options, pebbleds.WithPebbleWriteOptions(pebble.Sync))
		}
		store, err := pebbleds.NewDatastore(path, options...)
		if err != nil {
			return nil, err
		}
		return plain(store, nil)
	}
}
