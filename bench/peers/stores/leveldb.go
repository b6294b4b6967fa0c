package stores

// leveldb: an LSM tree that flushes every write, as go-ds-leveldb has it; there is no other class of it.

import (
	"context"
	"path/filepath"

	levelds "github.com/ipfs/go-ds-leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

var leveldbStores = []Store{
	{Name: "leveldb", Family: "leveldb", Reads: true, Deletes: true, Class: Each, Module: "github.com/ipfs/go-ds-leveldb", Open: openLeveldb},
}

func openLeveldb(_ context.Context, o Options) (*Opened, error) {
	// Kubo's profiles give it no compression.
	store, err := levelds.NewDatastore(filepath.Join(o.Folder, "datastore"), &levelds.Options{Compression: opt.NoCompression})
	if err != nil {
		return nil, err
	}
	return plain(store, nil)
}
