// Package kubo is the program that both flavours of ipfs are: Kubo with Basalt built in, the plugin of type `basalt`, and the profiles
// `basalt` and `basalt-blocks`.
package kubo

import (
	"context"
	"os"

	"basalt.dev/go/autostart"
	"basalt.dev/go/plugin"
	"basalt.dev/go/profile"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/kubo/cmd/ipfs/kubo"
	oldcmds "github.com/ipfs/kubo/commands"
	"github.com/ipfs/kubo/plugin/loader"
	"github.com/ipfs/kubo/repo/fsrepo"
)

// Main runs ipfs and ends the process.
func Main() {
	profile.Ready = func() error { _, err := autostart.Binary(); return err }
	profile.Existing = func(node string) (string, string, error) { return autostart.Fresh(context.Background(), node) }
	build := kubo.BuildEnv(func(l *loader.PluginLoader) error { return l.Load(plugin.Plugin) })
	os.Exit(kubo.Start(func(ctx context.Context, req *cmds.Request) (cmds.Environment, error) {
		env, err := build(ctx, req)
		if c, ok := env.(*oldcmds.Context); ok && err == nil && makes(req) && !fsrepo.IsInitialized(c.ConfigRoot) {
			profile.Allow(c.ConfigRoot)
		}
		return env, err
	}))
}

// makes says whether a command makes a repo: only then may a profile decide where its data goes.
func makes(req *cmds.Request) bool {
	switch {
	case len(req.Path) == 1 && req.Path[0] == "init":
		return true
	case len(req.Path) == 1 && req.Path[0] == "daemon":
		initialize, _ := req.Options["init"].(bool)
		return initialize
	}
	return false
}
