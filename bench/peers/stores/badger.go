package stores

// badger 1.6, Kubo's badgerds, deprecated there: an LSM tree of keys beside a log of values.

import (
	"context"
	"path/filepath"

	badgerds "github.com/ipfs/go-ds-badger"
)

const badgerModule = "github.com/ipfs/go-ds-badger"

var badgerStores = []Store{
	{Name: "badger SyncWrites", Family: "badger", Reads: true, Class: Each, Module: badgerModule, Open: openBadger(true)},
	{Name: "badger", Family: "badger", Deletes: true, Class: AtSync, Module: badgerModule, Open: openBadger(false)},
}

func openBadger(sync bool) func(context.Context, Options) (*Opened, error) {
	return func(_ context.Context, o Options) (*Opened, error) {
		path := filepath.Join(o.Folder, "badgerds")
		if err := folder(path); err != nil {
			return nil, err
		}
		// As Kubo's profile badgerds has it.
		options := badgerds.DefaultOptions
		options.SyncWrites = sync && !o.Filling
		options.Truncate = true
		store, err := badgerds.NewDatastore(path, &options)
		if err != nil {
			return nil, err
		}
		return plain(store, nil)
	}
}
