package migrate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FuzzState feeds the state file of a migration: a state that reads back, or an error that names the file.
func FuzzState(f *testing.F) {
	for _, text := range []string{
		`{"format":1,"phase":"copying","profile":"basalt","node_id":"ab","old_spec":{"type":"flatfs"},"new_spec":{},"old_datastore_spec":"x","new_datastore_spec":"y"}`,
		`{"format":1,"phase":"no such phase","node_id":"ab","skipped":[{}]}`,
		`{"format":2,"node_id":"ab"}`, `{"format":-1,"node_id":"ab"}`, `null`, `[]`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, StateFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := readState(dir)
		if (st == nil) == (err == nil) {
			t.Fatalf("%v and %v", st, err)
		}
		if err != nil {
			return
		}
		if err := st.write(dir); err != nil {
			t.Skip("raw JSON that can't be written again")
		}
		if again, err := readState(dir); err != nil || again.NodeID != st.NodeID || again.Phase != st.Phase {
			t.Fatalf("%v %v", again, err)
		}
	})
}

// FuzzRepoConfig feeds Kubo's config: its Datastore.Spec, or an error; and replacing the Spec changes nothing else.
func FuzzRepoConfig(f *testing.F) {
	for _, text := range []string{
		`{"Identity":{"PeerID":"x"},"Datastore":{"Spec":{"type":"mount","mounts":[{"mountpoint":"/blocks","type":"measure","prefix":"p","child":{"type":"flatfs","path":"blocks","sync":false,"shardFunc":"/repo/flatfs/shard/v1/next-to-last/2"}},{"mountpoint":"/","type":"levelds","path":"datastore","compression":"none"}]}}}`,
		`{"Identity":{},"Datastore":{"Spec":{"type":"pebbleds","path":"p"}}}`,
		`{"Identity":1,"Datastore":{"Spec":{"type":"basalt","role":"root","node":"0123456789abcdef0123456789abcdef"}}}`,
		`{"Identity":{},"Datastore":{"Spec":{"type":"log","name":"x","child":{"type":"badgerds","path":"b","syncWrites":true,"truncate":true,"vlogFileSize":"1GB"}}}}`,
		`{"Identity":{},"Datastore":{"Spec":{"type":"mount","mounts":[null,7,{"mountpoint":9}]}}}`,
		`{"Identity":{},"Datastore":{"Spec":null}}`, `{"Datastore":[]}`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	if err := register(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &repo{path: t.TempDir()}
		if err := os.WriteFile(r.file(configFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := r.configSpec(); (s == nil) == (err == nil) {
			t.Fatalf("%v and %v", s, err)
		}
		whole, _, err := r.config()
		if err != nil {
			return
		}
		if err := r.setSpec(json.RawMessage(`{"type":"new"}`)); err != nil {
			t.Fatal(err)
		}
		now, datastore, err := r.config()
		if err != nil || len(now) != len(whole) {
			t.Fatalf("%v: %d parts, there were %d", err, len(now), len(whole))
		}
		var spec map[string]string
		if err := json.Unmarshal(datastore["Spec"], &spec); err != nil || spec["type"] != "new" {
			t.Fatalf("%s %v", datastore["Spec"], err)
		}
	})
}
