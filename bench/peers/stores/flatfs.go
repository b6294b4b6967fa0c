package stores

// flatfs, Kubo's default: a file for each block. With sync it flushes file and folder of each; without, its Sync does nothing.

import (
	"context"
	"path/filepath"

	flatfs "github.com/ipfs/go-ds-flatfs"
)

const flatfsModule = "github.com/ipfs/go-ds-flatfs"

var flatfsStores = []Store{
	{Name: "flatfs sync", Family: "flatfs", Reads: true, Class: Each, Module: flatfsModule, Open: openFlatfs(true)},
	{Name: "flatfs no sync", Family: "flatfs", Deletes: true, Class: None, Module: flatfsModule, Open: openFlatfs(false)},
}

func openFlatfs(sync bool) func(context.Context, Options) (*Opened, error) {
	return func(_ context.Context, o Options) (*Opened, error) {
		// As Kubo's default profile has it.
		store, err := flatfs.CreateOrOpen(filepath.Join(o.Folder, "blocks"), flatfs.NextToLast(2), sync && !o.Filling)
		if err != nil {
			return nil, err
		}
		return plain(store, nil)
	}
}
