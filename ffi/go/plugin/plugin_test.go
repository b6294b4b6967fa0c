package plugin

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"basalt.dev/go/internal/agenttest"
	"basalt.dev/go/profile"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/kubo/config"
	"github.com/ipfs/kubo/repo/fsrepo"
)

const id = "0123456789abcdef0123456789abcdef"

func valid(change ...string) map[string]any {
	spec := map[string]any{"type": "basalt", "role": "root", "node": id}
	for i := 0; i < len(change); i += 2 {
		spec[change[i]] = change[i+1]
	}
	return spec
}

func TestTheSpecOnDiskHoldsNothingThatMayChange(t *testing.T) {
	full := valid("path", "/elsewhere", "socket", "/run/x.sock", "lane", "grpc", "mountpoint", "/")
	full["autostart"], full["retry_seconds"] = false, 5.0
	for _, spec := range []map[string]any{valid(), full} {
		c, err := parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := c.DiskSpec().String(), `{"node":"`+id+`","role":"root","type":"basalt"}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestASpecThatIsWrongNamesTheKeyAndTheRemedy(t *testing.T) {
	wrongType := valid()
	wrongType["autostart"] = "yes"
	negative := valid()
	negative["retry_seconds"] = -1.0
	number := valid()
	number["path"] = 5.0
	for _, c := range []struct {
		spec map[string]any
		want []string
	}{
		{valid("pth", "x"), []string{`"pth"`, "path"}},
		{map[string]any{"type": "basalt", "node": id}, []string{`"role" is missing`, "/blocks"}},
		{map[string]any{"type": "basalt", "role": "root"}, []string{`"node" is missing`}},
		{valid("role", "pin"), []string{`"pin"`, "pins"}},
		{valid("node", "../.."), []string{"../..", "32 hex digits"}},
		{valid("mountpoint", "/blocks"), []string{`"root"`, "/blocks"}},
		{valid("lane", "tcp"), []string{`"tcp"`, "grpc"}},
		{valid("lane", "ffi"), []string{"ipfs-ffi"}},
		{wrongType, []string{`"autostart"`, "true or false"}},
		{negative, []string{`"retry_seconds"`, "above 0"}},
		{number, []string{`"path"`, "text"}},
		{map[string]any{"type": "basalt", "colour": 1}, []string{`"colour"`, `"role" is missing`, `"node" is missing`}},
	} {
		_, err := parse(c.spec)
		if err == nil {
			t.Errorf("%v was taken", c.spec)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: the error does not say %s: %v", c.spec, want, err)
			}
		}
	}
}

func TestTheProviderKeystoreIsALocalStoreThatSurvivesRemoveAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "provider-keystore")
	for round := range 2 {
		for _, suffix := range []string{"0", "1"} {
			c, err := parse(valid("path", filepath.Join(dir, suffix)))
			if err != nil {
				t.Fatal(err)
			}
			d, err := c.Create("")
			if err != nil {
				t.Fatal(err)
			}
			k := ds.NewKey("/size")
			if has, err := d.Has(t.Context(), k); has || err != nil {
				t.Fatalf("round %d: the removed store's keys are there: %v", round, err)
			}
			if err := d.Put(t.Context(), k, []byte("1")); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(dir, suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestANodeIsNeverOpenedAsASideStore(t *testing.T) {
	n := agenttest.Init(t, agenttest.Temp(t))
	c, err := parse(valid("path", n.Path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(""); err == nil || !strings.Contains(err.Error(), "is a node") {
		t.Fatalf("%v", err)
	}
}

func TestAMissingNodeIsNotMadeAnew(t *testing.T) {
	agenttest.Basalt(t)
	repo := agenttest.Temp(t)
	c, err := parse(valid())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Create(repo)
	if err == nil {
		t.Fatal("a repo whose node is gone was given an empty one")
	}
	for _, want := range []string{"no node is there", "mounted", "basalt init --node-id " + id} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(repo, "basalt")); err == nil {
		t.Error("its folder was made")
	}
}

func TestAnotherNodeInThePlaceIsRefusedByName(t *testing.T) {
	repo := agenttest.Temp(t)
	n := agenttest.Init(t, repo)
	for _, serve := range []bool{false, true} {
		if serve {
			n.Start()
		}
		c, err := parse(valid("path", "node"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Create(repo)
		if err == nil || !strings.Contains(err.Error(), n.ID) || !strings.Contains(err.Error(), id) {
			t.Fatalf("%v", err)
		}
	}
}

func TestWithoutAutostartNobodyIsStarted(t *testing.T) {
	repo := agenttest.Temp(t)
	n := agenttest.Init(t, repo)
	spec := valid("path", "node", "node", n.ID)
	spec["autostart"] = false
	c, err := parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Create(repo)
	if err == nil || !strings.Contains(err.Error(), "basalt agent --node "+n.Path) || !strings.Contains(err.Error(), "autostart") {
		t.Fatalf("%v", err)
	}
	if pids := agenttest.Agents(t, repo); len(pids) > 0 {
		t.Fatalf("agents %v", pids)
	}
}

func TestProfilesAreRefusedOutsideOfInit(t *testing.T) {
	for _, name := range []string{profile.Basalt, profile.Blocks} {
		c := &config.Config{Datastore: config.DefaultDatastoreConfig()}
		before, _ := json.Marshal(c)
		err := config.Profiles[name].Transform(c)
		if err == nil || !strings.Contains(err.Error(), "basalt-migrate") {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := json.Marshal(c); string(after) != string(before) {
			t.Errorf("%s changed the config", name)
		}
	}
}

func TestAProfileMakesASpecThatThePluginTakesAndIsItsOwnKind(t *testing.T) {
	if err := fsrepo.AddDatastoreConfigHandler("basalt", parse); err != nil {
		t.Fatal(err)
	}
	if err := fsrepo.AddDatastoreConfigHandler("levelds", func(m map[string]any) (fsrepo.DatastoreConfig, error) { return side{}, nil }); err != nil {
		t.Fatal(err)
	}
	profile.Allow("/some/repo")
	c := &config.Config{Datastore: config.DefaultDatastoreConfig()}
	if err := config.Profiles[profile.Blocks].Transform(c); err != nil {
		t.Fatal(err)
	}
	// As Kubo does: through JSON.
	text, err := json.Marshal(c.Datastore.Spec)
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	if _, err := fsrepo.AnyDatastoreConfig(spec); err != nil {
		t.Fatal(err)
	}
	if profile.Kind(spec) != profile.Blocks {
		t.Errorf("kind %q", profile.Kind(spec))
	}
	if err := config.Profiles[profile.Blocks].Transform(c); err != nil {
		t.Errorf("applied where it holds already: %v", err)
	}
	if err := config.Profiles[profile.Basalt].Transform(c); err == nil {
		t.Error("a second repo was made of the permission for one")
	}
}

type side struct{ fsrepo.DatastoreConfig }
