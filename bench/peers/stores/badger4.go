package stores

// badger 4 by go-ds-badger4, which Kubo does not ship; values below 1 MiB lie in its LSM tree.

import (
	"context"
	"path/filepath"

	badger4 "github.com/ipfs/go-ds-badger4"
)

const badger4Module = "github.com/ipfs/go-ds-badger4"

var badger4Stores = []Store{
	{Name: "badger4 SyncWrites", Family: "badger4", Reads: true, Class: Each, Module: badger4Module, Open: openBadger4(true)},
	{Name: "badger4", Family: "badger4", Deletes: true, Class: AtSync, Module: badger4Module, Open: openBadger4(false)},
}

func openBadger4(sync bool) func(context.Context, Options) (*Opened, error) {
	return func(_ context.Context, o Options) (*Opened, error) {
		path := filepath.Join(o.Folder, "badger4")
		if err := folder(path); err != nil {
			return nil, err
		}
		options := badger4.DefaultOptions
		options.SyncWrites = sync && !o.Filling
		store, err := badger4.NewDatastore(path, &options)
		if err != nil {
			return nil, err
		}
		return plain(store, nil)
	}
}
